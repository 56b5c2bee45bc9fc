"""A cluster with one real node: control plane on this machine, kubelet and containerd in a machine.

Rule 1: a node is what its machine is: a fresh one gets a fresh Node object. Rule 2: what tests look
at inside a container they look at through the kubelet or from the node, never through the agent.
"""

import contextlib
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

from tests.system.cluster import until
from tests.system.node import disk
from tests.system.node.machine import APPARMOR, CommandFailedError, GuestDiedError, Machine

NAME = "node-a"  # the one of the cluster's tokens
STARTS = 3
LOOKS = 20  # at a process, at least, before its label was "the same all the time"
READY_SECONDS = 300.0
KUBELET = 10250
METRICS = 9808
SERVICE = "10.0.0.1"  # of the API server; what kube-proxy would do, nftables does
NETWORK = """
table ip node {
    chain out { type nat hook output priority -100; ip daddr SERVICE tcp dport 443 dnat to 10.0.2.2:PORT; }
    chain in { type nat hook prerouting priority -100; ip daddr SERVICE tcp dport 443 dnat to 10.0.2.2:PORT; }
    chain post { type nat hook postrouting priority 100; ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 masquerade; }
}
"""  # noqa: E501 - a line a rule
# 20 looks a second; the pause forks nothing.
WATCH = """(
declare -A seen
mkfifo {folder}/pause; exec 9<> {folder}/pause
while [ ! -e {folder}/stop ]; do
    for pid in {pids}; do
        IFS= read -r label < /proc/$pid/attr/current || label=ended
        seen[$pid $label]=$((seen[$pid $label] + 1))
    done
    [ -e {folder}/began ] || : > {folder}/began
    read -r -t 0.05 -u 9
done
for one in "${{!seen[@]}}"; do echo "${{seen[$one]}} $one"; done > {folder}/told
mv {folder}/told {folder}/seen
)"""


class Node:
    """One machine that is a Node of a cluster. Ends with its context."""

    starts = 0  # of all machines, those after a death included
    deaths = 0

    def __init__(self, cluster, *, append=APPARMOR, taints=""):
        self.cluster, self.append, self.taints = cluster, append, taints
        self.machine = None

    def __enter__(self):
        for attempt in range(1, STARTS + 1):
            try:
                return self._started()
            except (GuestDiedError, AssertionError, OSError) as error:
                self.__exit__()
                died = isinstance(error, GuestDiedError)
                Node.deaths += died
                if not died or attempt == STARTS:
                    raise
                print(f"node: start {attempt} died:\n{error}")
        raise AssertionError("unreachable")

    def _started(self):
        prepared = disk.prepared()
        self.cluster.kubectl("delete", "node", NAME, "--ignore-not-found", "--wait=true")
        begin = time.monotonic()
        Node.starts += 1
        self.machine = Machine(prepared, append=self.append, ports=(KUBELET, METRICS)).__enter__()
        answered = time.monotonic()
        self.start_kubelet()
        self.until_ready()
        seconds = time.monotonic() - begin
        print(f"node: answers after {answered - begin:.1f} s, Ready after {seconds:.1f} s")
        return self

    def __exit__(self, *_):
        if self.machine is not None:
            self.machine.__exit__()
            self.machine = None

    # --- the machine ------------------------------------------------------------------------------

    def run(self, script, **more):
        """Run a script on the node."""
        return self.machine.run(script, **more)

    def start_kubelet(self):
        """Give the node its way to the API server, and start its kubelet."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "node",
            "clusters": [
                {
                    "name": "node",
                    "cluster": {
                        "server": f"https://10.0.2.2:{self.cluster.port}",
                        "certificate-authority": "/etc/kubernetes/ca.crt",
                    },
                }
            ],
            "users": [{"name": "node", "user": {"token": "kubelet-a"}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": "node"}}],
        }
        network = NETWORK.replace("SERVICE", SERVICE).replace("PORT", str(self.cluster.port))
        taints = f"--register-with-taints={self.taints}" if self.taints else ""
        self.run(
            f"""set -e
            cat > /etc/kubernetes/ca.crt <<'END'\n{self.cluster.ca.read_text()}\nEND
            cat > /etc/kubernetes/kubeconfig <<'END'\n{json.dumps(config)}\nEND
            nft -f - <<'END'\nflush ruleset\n{network}\nEND
            until ctr version > /dev/null 2>&1; do sleep 0.2; done
            kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig /etc/kubernetes/kubeconfig \\
                --hostname-override {NAME} --node-ip 10.0.2.15 {taints} -v 2 \\
                >> /var/log/kubelet.log 2>&1 < /dev/null &"""
        )

    def until_ready(self):
        """Wait until the API server calls the node Ready and pods may be scheduled to it."""

        def ready():
            self.machine.check()
            found = self.cluster.get(f"/api/v1/nodes/{NAME}") or {}
            taints = [one["key"] for one in found.get("spec", {}).get("taints", [])]
            conditions = found.get("status", {}).get("conditions", [])
            told = {one["type"]: one["status"] for one in conditions}
            return told.get("Ready") == "True" and "node.kubernetes.io/not-ready" not in taints

        until(ready, lambda: self.run("tail -n 20 /var/log/kubelet.log"), READY_SECONDS)

    # --- what happens on it -----------------------------------------------------------------------

    def _kubelet(self, path, method="GET", **words):
        url = f"https://127.0.0.1:{self.machine.ports[KUBELET]}{path}"
        if words:
            url += "?" + urllib.parse.urlencode(words)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its own certificate
        request = urllib.request.Request(url, method=method)  # noqa: S310 - https only
        with urllib.request.urlopen(request, timeout=1800, context=context) as answer:  # noqa: S310 - https only
            return answer.read().decode("utf-8", "replace")

    def execute(self, pod, command, *, namespace="default", container=None):
        """Run a command in a container as `kubectl exec` does; return what it printed."""
        path = f"/run/{namespace}/{pod}/{container or pod}"
        try:
            return self._kubelet(path, "POST", cmd=command)
        except urllib.error.HTTPError as error:
            return error.read().decode("utf-8", "replace")

    def log(self, pod, *, namespace="default", container=None):
        """Return what a container said."""
        return self._kubelet(f"/containerLogs/{namespace}/{pod}/{container or pod}")

    def pid(self, pod, *, namespace="default"):
        """Return the process id, on the node, of the first process of a pod's first container."""
        found = self.cluster.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        container = found["status"]["containerStatuses"][0]["containerID"].partition("://")[2]
        text = self.run(f"ctr -n k8s.io tasks ls | grep ^{container}")
        return int(text.split()[1])

    def attribute(self, pid):
        """Return a process's AppArmor label, as the node sees it."""
        try:
            return self.run(f"cat /proc/{pid}/attr/current").strip("\0\n ")
        except CommandFailedError:
            return ""

    @contextlib.contextmanager
    def watched(self, *pids):
        """Read the AppArmor labels of processes all the time; gives how often each was seen.

        It is filled at the end, by "PID LABEL", or "PID ended".
        """
        seen = {}
        folder = self.run("mktemp -d").strip()
        self.run(
            WATCH.format(folder=folder, pids=" ".join(map(str, pids)))
            + " > /dev/null 2>&1 < /dev/null &"
        )
        self.run(f"until [ -e {folder}/began ]; do sleep 0.05; done")
        try:
            yield seen
        finally:
            told = self.run(
                f"touch {folder}/stop; until [ -e {folder}/seen ]; do sleep 0.05; done; "
                f"cat {folder}/seen; rm -r {folder}"
            )
        for line in told.splitlines():
            number, _, one = line.partition(" ")
            seen[one] = int(number)
        print(f"\nlooks at labels: {seen}")

    def loaded(self, name):
        """Return whether the kernel has an AppArmor profile."""
        return any(
            line.rpartition(" (")[0] == name
            for line in self.run("cat /sys/kernel/security/apparmor/profiles").splitlines()
        )

    def errno(self, name):
        """Return the error number that the first rule of an installed seccomp file answers with."""
        return json.loads(self.run(f"cat /var/lib/kubelet/seccomp/{name}"))["syscalls"][0][
            "errnoRet"
        ]

    @contextlib.contextmanager
    def relayed(self, address):
        """Make the metrics port of a pod reachable; gives the address on this machine."""
        relay = self.run(
            f"busybox nc -ll -p {METRICS} -e busybox nc {address} {METRICS} "
            "> /dev/null 2>&1 < /dev/null & echo $!"
        ).strip()
        try:
            yield f"127.0.0.1:{self.machine.ports[METRICS]}"
        finally:
            self.run(f"kill {relay}", check=False)
