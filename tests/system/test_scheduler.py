"""Tests that a real scheduler assigns pods to Nodes by the labels that a real agent sets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.system.cluster import NAMESPACE, Cluster, until

ROOT = Path(__file__).parents[2] / "manifests"
BOOT_ID = "11111111-2222-3333-4444-555555555555"
ALLOCATABLE = {"cpu": "4", "memory": "8Gi", "pods": "10"}


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as one:
        one.kubectl("apply", "--server-side", "-k", ROOT / "base")
        one.start_scheduler()
        yield one


def ready(cluster, name):
    """Create a Node that is ready for pods, with the status that a kubelet reports."""
    cluster.node(name, BOOT_ID)
    status = {
        "status": {
            "allocatable": ALLOCATABLE,
            "capacity": ALLOCATABLE,
            "conditions": [{"type": "Ready", "status": "True"}],
        }
    }
    cluster.kubectl("patch", "node", name, "--subresource=status", "-p", json.dumps(status))
    # In a real cluster, a controller removes this taint from a new Node when the Node is ready.
    cluster.kubectl("patch", "node", name, "--type=merge", "-p", '{"spec":{"taints":null}}')


def scheduled(cluster, name):
    """Return the Node of a pod, or the scheduler's message if the pod is not scheduled."""
    pod = cluster.get(f"/api/v1/namespaces/default/pods/{name}")
    messages = [
        item["message"]
        for item in pod.get("status", {}).get("conditions", [])
        if item["type"] == "PodScheduled" and item["status"] == "False"
    ]
    return pod["spec"].get("nodeName", ""), "".join(messages)


def agent(cluster, name, folder):
    """Run one pass of the agent on a separate host root, with the rights of the manifests."""
    boot = folder / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text(BOOT_ID)
    kubeconfig = cluster.write_kubeconfig(name, cluster.agent_token(name))
    command = [
        sys.executable, "-m", "agent", "--oneshot", "--kinds", "seccomp",
        "--source", f"configmaps:{NAMESPACE}?profile-loader.io/profiles=true",
        "--node-name", name, "--kubeconfig", str(kubeconfig), "--host-root", str(folder),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_pod_waits_for_a_node_with_its_profile(cluster, tmp_path):
    """A pod is Pending until a Node has the label of its profile. The scheduler then assigns the
    pod to this Node.
    """
    ready(cluster, "with")
    ready(cluster, "without")
    pod = yaml.safe_load((ROOT / "examples/fine-pod.yaml").read_text())
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "default"},
    }
    cluster.apply(account)
    cluster.kubectl("create", "-f", "-", stdin=pod)
    message = until(lambda: scheduled(cluster, "fine-pod")[1], "the scheduler to report a reason")
    assert "2 node(s) didn't match Pod's node affinity/selector" in message
    agent(cluster, "with", tmp_path)
    node = until(lambda: scheduled(cluster, "fine-pod")[0], lambda: scheduled(cluster, "fine-pod"))
    assert node == "with"
