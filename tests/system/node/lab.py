"""Runs the control plane and its node, and provides operations on both for the tests.

A lab has one node at a time. A test requests a node with certain properties. If the existing node
has these properties and still runs, the lab returns this node. If no such node runs, the lab
creates a new node. The tests apply the manifests without changes.
"""

import tempfile
import time
from pathlib import Path

from tests.system.cluster import NAMESPACE, Cluster
from tests.system.guest import pace
from tests.system.node.machine import APPARMOR
from tests.system.node.node import NAME, Node

BASE = "manifests/base"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
AGENT = "app.kubernetes.io/name=profile-loader"
# This selector matches the profile ConfigMaps that tests created, but not the ConfigMaps of the
# base.
TEST_PROFILES = "profile-loader.io/profiles,app.kubernetes.io/part-of!=profile-loader"
PATIENCE_SECONDS = 300.0  # This limit is ten times the duration on an idle machine with two cores.


def until(condition, what, seconds=PATIENCE_SECONDS):
    """Check a condition repeatedly, and return its first true result."""
    return pace.until(condition, what, seconds, 0.3)


class Lab:
    """A running control plane, which has a node after the first call of `ensure_node`."""

    def __init__(self):
        self.cluster = Cluster()
        self.node = None
        self.kind = None
        self.kept = None

    def __enter__(self):
        begin = time.monotonic()
        self.cluster.__enter__()
        try:
            self.cluster.start_scheduler()
            self.cluster.start_controllers("*")
            path = "/api/v1/namespaces/default/serviceaccounts/default"
            until(lambda: self.get(path), "the service account of ordinary pods exists")
        except BaseException:
            self.__exit__()
            raise
        print(f"\ncontrol plane: up in {time.monotonic() - begin:.1f} s")
        return self

    def __exit__(self, *_):
        if self.node is not None:
            self.node.__exit__()
            self.node = None
        self.cluster.__exit__()

    # --- the node ---------------------------------------------------------------------------------

    def ensure_node(self, *, append=APPARMOR, taints="", fresh=False):
        """Return a running node with these properties, which may be the existing node."""
        kind = (append, taints)
        if fresh or self.node is None or self.kind != kind or not self.alive():
            self.drop()
            self.node, self.kind = Node(self.cluster, append=append, taints=taints), kind
            self.node.__enter__()
        return self.node

    def alive(self):
        """Return whether the machine of the node is running."""
        machine = self.node.machine if self.node is not None else None
        return machine is not None and machine.process.poll() is None

    def drop(self):
        """End the node, and delete its pods, its Events and the ConfigMaps of tests.

        When a test is repeated on another node, no object of its first attempt may remain.
        """
        if self.node is None:
            return
        self.node.__exit__()
        self.node = None
        self.kubectl("delete", "node", NAME, "--ignore-not-found")
        self.kubectl("delete", "pods", "-A", "--all", "--force", "--grace-period=0", check=False)
        self.kubectl("-n", NAMESPACE, "delete", "configmaps", "-l", TEST_PROFILES, check=False)
        self.kubectl("delete", "events", "-A", "--all", check=False)
        until(
            lambda: not self._namespace_ends(), "the namespace that a test deleted has disappeared"
        )

    def _namespace_ends(self):
        result = self.get(f"/api/v1/namespaces/{NAMESPACE}")
        return result is not None and "deletionTimestamp" in result["metadata"]

    def install(self, path=BASE):
        """Apply manifests, and wait until the DaemonSet's pod has the new template and is ready."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-k", path)
        return self.until_agent()

    # --- the cluster ------------------------------------------------------------------------------

    def kubectl(self, *words, **more):
        """Run kubectl as an administrator."""
        return self.cluster.kubectl(*words, **more)

    def get(self, path):
        """Return an object from the API server, or None.

        Raises:
            GuestDiedError: The machine of the node has stopped, so no condition can become true.
        """
        if self.node is not None and self.node.machine is not None:
            self.node.machine.check()
        return self.cluster.get(path)

    def labels(self):
        """Return the agent's labels on the Node."""
        result = self.get(f"/api/v1/nodes/{NAME}") or {"metadata": {}}
        return {
            key: value
            for key, value in result["metadata"].get("labels", {}).items()
            if key.partition("/")[0].endswith(DOMAIN)
        }

    def events(self):
        """Return (reason, note) for each Event of the agent about the Node, oldest first."""
        result = self.get("/apis/events.k8s.io/v1/namespaces/default/events") or {"items": []}
        ours = [
            one
            for one in result["items"]
            if one["regarding"].get("kind") == "Node"
            and one.get("reportingController") == "profile-loader.io/agent"
        ]
        ours.sort(key=lambda one: one["eventTime"])
        return [(one["reason"], one["note"]) for one in ours]

    def config_map(self, name, data, **annotations):
        """Create a profile ConfigMap, or replace its content."""
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": {"profile-loader.io/profiles": "true"},
                    "annotations": {
                        f"{DOMAIN}/{key.replace('_', '-')}": value
                        for key, value in annotations.items()
                    },
                },
                "data": data,
            }
        )

    # --- pods -------------------------------------------------------------------------------------

    def pod(self, name, namespace="default"):
        """Return a pod, or None if it does not exist."""
        return self.get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def until_running(self, name, namespace="default", seconds=PATIENCE_SECONDS):
        """Wait until a pod is ready, and return it."""

        def ready():
            result = self.pod(name, namespace)
            return result if result and is_ready(result) else None

        return until(ready, lambda: self._story(name, namespace), seconds)

    def until_waiting(self, name, reason, seconds=PATIENCE_SECONDS):
        """Wait until the container of a pod waits for this reason, and return the message."""

        def waiting():
            for status in (self.pod(name) or {}).get("status", {}).get("containerStatuses", []):
                result = status["state"].get("waiting", {})
                if result.get("reason") == reason:
                    return result.get("message", "")
            return None

        return until(waiting, lambda: self._story(name, "default"), seconds)

    def _story(self, name, namespace):
        result = self.kubectl("-n", namespace, "describe", "pod", name, check=False)
        return f"{namespace}/{name}\n{result.stdout[-3000:]}{result.stderr}"

    def delete(self, *names, wait=True):
        """Delete pods. With `wait`, return after the pods have disappeared."""
        self.kubectl(
            "delete",
            "pod",
            *names,
            "--ignore-not-found",
            "--grace-period=1",
            f"--wait={wait}".lower(),
        )

    # --- the agent --------------------------------------------------------------------------------

    def agents(self):
        """Return the pods of the agent."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={AGENT.replace('/', '%2F')}"
        return (self.get(path) or {"items": []})["items"]

    def until_agent(self, seconds=PATIENCE_SECONDS, *, other_than=None):
        """Wait until the pod with the DaemonSet's current template is ready, and return it."""

        def ready():
            path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/profile-loader"
            result = self.get(path)
            status = (result or {}).get("status", {})
            pods = self.agents()
            if (
                result
                and status.get("observedGeneration") == result["metadata"]["generation"]
                and status.get("updatedNumberScheduled") == status.get("numberReady") == 1
                and len(pods) == 1
                and is_ready(pods[0])
                and pods[0]["metadata"]["uid"] != other_than
            ):
                return pods[0]
            return None

        return until(ready, self._agents_story, seconds)

    def _agents_story(self):
        return "\n".join(
            self._story(item["metadata"]["name"], NAMESPACE) for item in self.agents()
        ) or self.kubectl("-n", NAMESPACE, "describe", "daemonset", "profile-loader")

    def metrics(self):
        """Return the value of each series in the agent's metrics."""
        address = self.until_agent()["status"]["podIP"]
        page = self.node.run(f"busybox wget -q -O - http://{address}:9808/metrics")
        lines = [line for line in page.splitlines() if line and not line.startswith("#")]
        return {
            series: float(value) for series, _, value in (item.rpartition(" ") for item in lines)
        }

    # --- after a failure --------------------------------------------------------------------------

    def save_state(self, what):
        """Save the logs and the states of all pods in a folder, and return the folder."""
        self.kept = self.kept or Path(tempfile.mkdtemp(prefix="profile-loader-node-"))
        folder = self.kept / what
        folder.mkdir(parents=True, exist_ok=True)
        for name, words in {
            "pods.yaml": ("get", "pods", "-A", "-o", "yaml"),
            "pods": ("get", "pods", "-A", "-o", "wide"),
            "describe-pods": ("describe", "pods", "-A"),
            "describe-nodes": ("describe", "nodes"),
            "events": ("get", "events", "-A", "--sort-by=.metadata.creationTimestamp"),
            "configmaps.yaml": ("-n", NAMESPACE, "get", "configmaps", "-o", "yaml"),
        }.items():
            result = self.kubectl(*words, check=False)
            (folder / name).write_text(result.stdout + result.stderr)
        for name in self.cluster.running:
            (folder / f"{name}.log").write_text(self.cluster.log(name))
        if self.node is not None and self.node.machine is not None:
            (folder / "console").write_text(self.node.machine.console_output())
            if self.alive():
                self._keep_from_node(folder)
        return folder

    def _keep_from_node(self, folder):
        for name, script in {
            "kubelet.log": "cat /var/log/kubelet.log",
            "containerd.log": "cat /var/log/containerd.log",
            "dmesg": "dmesg",
            "containers": "tail -n 200 /var/log/pods/*/*/*.log",
            "labels": "grep -H . /proc/[0-9]*/attr/current",
        }.items():
            try:
                text = self.node.run(script, check=False)
            except OSError as error:
                text = str(error)
            (folder / name).write_text(text)


def is_ready(pod):
    """Return whether a pod is ready and is not being deleted."""
    conditions = pod.get("status", {}).get("conditions", [])
    statuses = {item["type"]: item["status"] for item in conditions}
    return statuses.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]
