"""Runs a real node: kubelet and containerd in a virtual machine, with a control plane on the host.

Each new machine gets a new Node object. Tests observe containers through the kubelet or on the
node, and never through the agent.
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

NAME = "node-a"  # the Node name that the cluster's tokens contain
STARTS = 3
MIN_OBSERVATIONS = 20  # A test must observe an unchanged label at least this often.
READY_SECONDS = 300.0
KUBELET = 10250
METRICS = 9808
SERVICE = "10.0.0.1"  # The service address of the API server. nftables rules replace kube-proxy.
NETWORK = """
table ip node {
    chain out { type nat hook output priority -100; ip daddr SERVICE tcp dport 443 dnat to 10.0.2.2:PORT; }
    chain in { type nat hook prerouting priority -100; ip daddr SERVICE tcp dport 443 dnat to 10.0.2.2:PORT; }
    chain post { type nat hook postrouting priority 100; ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 masquerade; }
}
"""  # noqa: E501 - a line a rule
# The loop reads each label 20 times per second. The pauses need no child process.
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
    """A machine that is a Node of a cluster, and is stopped when the context ends."""

    starts = 0  # the number of started machines, including the replacements of crashed machines
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
        """Configure the connection to the API server, and start the kubelet."""
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
        """Wait until the Node is Ready, so that pods can be scheduled to it."""

        def ready():
            self.machine.check()
            result = self.cluster.get(f"/api/v1/nodes/{NAME}") or {}
            taints = [item["key"] for item in result.get("spec", {}).get("taints", [])]
            conditions = result.get("status", {}).get("conditions", [])
            statuses = {item["type"]: item["status"] for item in conditions}
            return statuses.get("Ready") == "True" and "node.kubernetes.io/not-ready" not in taints

        until(ready, lambda: self.run("tail -n 20 /var/log/kubelet.log"), READY_SECONDS)

    # --- operations on the node -------------------------------------------------------------------

    def _kubelet(self, path, method="GET", **words):
        url = f"https://127.0.0.1:{self.machine.ports[KUBELET]}{path}"
        if words:
            url += "?" + urllib.parse.urlencode(words)
        context = ssl.create_default_context()
        # the kubelet's own certificate
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        request = urllib.request.Request(url, method=method)  # noqa: S310 - https only
        with urllib.request.urlopen(request, timeout=1800, context=context) as answer:  # noqa: S310 - https only
            return answer.read().decode("utf-8", "replace")

    def execute(self, pod, command, *, namespace="default", container=None):
        """Run a command in a container, as `kubectl exec` does, and return its output."""
        path = f"/run/{namespace}/{pod}/{container or pod}"
        try:
            return self._kubelet(path, "POST", cmd=command)
        except urllib.error.HTTPError as error:
            return error.read().decode("utf-8", "replace")

    def log(self, pod, *, namespace="default", container=None):
        """Return the log of a container."""
        return self._kubelet(f"/containerLogs/{namespace}/{pod}/{container or pod}")

    def pid(self, pod, *, namespace="default"):
        """Return the PID on the node of the first process in the first container of a pod."""
        result = self.cluster.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        container = result["status"]["containerStatuses"][0]["containerID"].partition("://")[2]
        text = self.run(f"ctr -n k8s.io tasks ls | grep ^{container}")
        return int(text.split()[1])

    def attribute(self, pid):
        """Return the AppArmor label of a process from /proc on the node."""
        try:
            return self.run(f"cat /proc/{pid}/attr/current").strip("\0\n ")
        except CommandFailedError:
            return ""

    @contextlib.contextmanager
    def recorded_labels(self, *pids):
        """Read the AppArmor labels of processes continuously, and yield the number of observations.

        The yielded dictionary is filled at the end. The keys of the dictionary have the form "PID
        LABEL" or "PID ended".
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
            output = self.run(
                f"touch {folder}/stop; until [ -e {folder}/seen ]; do sleep 0.05; done; "
                f"cat {folder}/seen; rm -r {folder}"
            )
        for line in output.splitlines():
            number, _, one = line.partition(" ")
            seen[one] = int(number)
        print(f"\nobservations of labels: {seen}")

    def loaded(self, name):
        """Return whether an AppArmor profile is loaded."""
        return any(
            line.rpartition(" (")[0] == name
            for line in self.run("cat /sys/kernel/security/apparmor/profiles").splitlines()
        )

    def errno(self, name):
        """Return the error number of the first rule in an installed seccomp file."""
        return json.loads(self.run(f"cat /var/lib/kubelet/seccomp/{name}"))["syscalls"][0][
            "errnoRet"
        ]

    @contextlib.contextmanager
    def relayed(self, address):
        """Forward the metrics port of a pod, and yield its address on this machine."""
        relay = self.run(
            f"busybox nc -ll -p {METRICS} -e busybox nc {address} {METRICS} "
            "> /dev/null 2>&1 < /dev/null & echo $!"
        ).strip()
        try:
            yield f"127.0.0.1:{self.machine.ports[METRICS]}"
        finally:
            self.run(f"kill {relay}", check=False)
