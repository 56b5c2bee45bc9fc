"""Tests of a malicious kubelet, and of an attacker between the agent and the API server.

A kubelet has the credential of one Node (system:node:NAME). The node authorizer and the
NodeRestriction admission plugin limit this credential. These tests check that the limits of the API
server and of the manifests leave no gap.
"""

import json
import subprocess
from pathlib import Path

import pytest

from agent.kube import client, errors
from tests.system.cluster import NAMESPACE, Cluster, until

ROOT = Path(__file__).parents[2] / "manifests"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
OWN = f"seccomp.{DOMAIN}/a.json"


@pytest.fixture(scope="module")
def cluster():
    """A control plane with the manifests, the Nodes a and b, and an agent's pod on each Node."""
    with Cluster() as control_plane:
        control_plane.kubectl("create", "priorityclass", "unused", "--value", "1")
        control_plane.kubectl("apply", "--server-side", "-k", ROOT / "base")
        for name in ("node-a", "node-b"):
            control_plane.node(name)
            control_plane.apply(agent_pod(name))
        control_plane.write_kubeconfig("kubelet", "kubelet-a")
        until(
            lambda: token(control_plane, "node-a").stdout,
            lambda: token(control_plane, "node-a").stderr,
        )
        yield control_plane


def agent_pod(node):
    """Return a pod of the agent on a Node, with the same token as in the DaemonSet."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"agent-{node}", "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "profile-loader",
            "automountServiceAccountToken": True,
            "containers": [{"name": "agent", "image": "agent"}],
        },
    }


def label(cluster, node, key, *, user="kubelet"):
    """Set a label on a Node with a user's credentials, and return the error from the API server, or
    "".
    """
    result = cluster.kubectl(
        "label", "node", node, f"{key}=installed", "--overwrite", user=user, check=False
    )
    return result.stderr if result.returncode else ""


def token(cluster, node):
    """Request the token of the agent's pod on a Node with the credential of the kubelet on
    node-a.
    """
    pod = cluster.get(f"/api/v1/namespaces/{NAMESPACE}/pods/agent-{node}")
    return cluster.kubectl(
        "-n", NAMESPACE, "create", "token", "profile-loader", "--bound-object-kind", "Pod",
        "--bound-object-name", f"agent-{node}", "--bound-object-uid", pod["metadata"]["uid"],
        user="kubelet", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_a_kubelet_cannot_label_a_node_as_having_a_profile(cluster, node):
    """NodeRestriction denies the label on the kubelet's own Node and on other Nodes."""
    assert "forbidden" in label(cluster, node, OWN)
    assert OWN not in cluster.labels(node)


def test_a_kubelet_cannot_register_a_node_with_the_label(cluster):
    """A kubelet that has deleted its Node cannot create the Node again with the label."""
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a", "labels": {OWN: ""}}}
    cluster.kubectl("delete", "node", "node-a", user="admin")
    try:
        result = cluster.kubectl("create", "-f", "-", stdin=body, user="kubelet", check=False)
        assert "is not allowed to set the following labels" in result.stderr
    finally:
        cluster.node("node-a")


def test_a_kubelet_gets_no_token_of_another_nodes_agent(cluster):
    """The API server issues tokens to a kubelet only for pods on its own Node."""
    assert token(cluster, "node-a").stdout.count(".") == 2
    denied = token(cluster, "node-b")
    assert (denied.stdout, "forbidden" in denied.stderr) == ("", True)


def test_with_the_token_of_its_agent_a_kubelet_can_label_its_own_node_only(cluster):
    """With the token of the agent on its node, a kubelet can label its own Node, but no
    other Node.
    """
    cluster.write_kubeconfig("stolen", token(cluster, "node-a").stdout.strip())

    def patch(node):
        body = json.dumps({"metadata": {"labels": {OWN: "installed"}}})
        return cluster.kubectl(
            "patch", "node", node, "--type=merge", "-p", body, user="stolen", check=False
        ).stderr

    until(lambda: "not to" in patch("node-b"), "the policy is not effective")
    assert patch("node-a") == ""
    assert OWN not in cluster.labels("node-b")


def test_in_another_domain_a_kubelet_can_forge_the_label(cluster):
    """With a label domain outside node-restriction.kubernetes.io, a kubelet can forge the label on
    its own Node.
    """
    assert label(cluster, "node-a", "seccomp.example.org/a.json") == ""
    assert "forbidden" in label(cluster, "node-b", "seccomp.example.org/a.json")


def test_an_api_server_of_another_authority_gets_no_request(cluster, tmp_path):
    """If the certificate of the server comes from another authority, the client sends neither a
    request nor a token.
    """
    with pytest.raises(errors.UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        api(cluster, tmp_path, authority(tmp_path)).get("/api/v1/nodes/node-b")
    assert api(cluster, tmp_path, cluster.ca).get("/api/v1/nodes/node-b")["kind"] == "Node"


def api(cluster, folder, ca):
    """Return the agent's client, which trusts the given authority."""
    config = json.loads(cluster.write_kubeconfig("between", "admin").read_text())
    config["clusters"][0]["cluster"]["certificate-authority"] = str(ca)
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return client.Api(kubeconfig=str(path))


def authority(folder):
    """Return the certificate of an authority that has signed no certificate of the cluster."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -subj /CN=other"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "other.crt"
