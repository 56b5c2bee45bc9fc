"""What a hostile kubelet, or somebody between agent and API server, can make of the agent.

A kubelet's credential is that of one Node (system:node:NAME). The node authorizer and the plugin
NodeRestriction, both of the API server, limit it; these tests hold that their limits and those of
the manifests leave no gap between them.
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
    """A control plane with the manifests, the Nodes a and b, and an agent's pod on each."""
    with Cluster() as one:
        one.kubectl("create", "priorityclass", "unused", "--value", "1")
        one.kubectl("apply", "--server-side", "-k", ROOT / "base")
        for name in ("node-a", "node-b"):
            one.node(name)
            one.apply(agent_pod(name))
        one.write_kubeconfig("kubelet", "kubelet-a")
        until(lambda: token(one, "node-a").stdout, lambda: token(one, "node-a").stderr)
        yield one


def agent_pod(node):
    """Return a pod on a Node that the agent's token is mounted into, as the DaemonSet's."""
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
    """Label a Node as somebody; return what the API server said against it."""
    done = cluster.kubectl(
        "label", "node", node, f"{key}=installed", "--overwrite", user=user, check=False
    )
    return done.stderr if done.returncode else ""


def token(cluster, node):
    """Ask as the kubelet of node-a for the token of the agent's pod on a Node."""
    pod = cluster.get(f"/api/v1/namespaces/{NAMESPACE}/pods/agent-{node}")
    return cluster.kubectl(
        "-n", NAMESPACE, "create", "token", "profile-loader", "--bound-object-kind", "Pod",
        "--bound-object-name", f"agent-{node}", "--bound-object-uid", pod["metadata"]["uid"],
        user="kubelet", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_a_kubelet_cannot_label_a_node_as_having_a_profile(cluster, node):
    """Neither its own Node, since the domain is one of node-restriction, nor another."""
    assert "forbidden" in label(cluster, node, OWN)
    assert OWN not in cluster.labels(node)


def test_a_kubelet_cannot_bring_the_label_with_a_new_node(cluster):
    """Registering its Node again is no way round."""
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a", "labels": {OWN: ""}}}
    cluster.kubectl("delete", "node", "node-a", user="admin")
    try:
        done = cluster.kubectl("create", "-f", "-", stdin=body, user="kubelet", check=False)
        assert "is not allowed to set the following labels" in done.stderr
    finally:
        cluster.node("node-a")


def test_a_kubelet_gets_no_token_of_another_nodes_agent(cluster):
    """The API server gives it tokens of pods on its own Node alone."""
    assert token(cluster, "node-a").stdout.count(".") == 2
    refused = token(cluster, "node-b")
    assert (refused.stdout, "forbidden" in refused.stderr) == ("", True)


def test_with_its_own_agents_token_a_kubelet_reaches_its_own_node_alone(cluster):
    """That is what root on a node has: it may say of itself what it likes, and of no other Node."""
    cluster.write_kubeconfig("stolen", token(cluster, "node-a").stdout.strip())

    def patch(node):
        body = json.dumps({"metadata": {"labels": {OWN: "installed"}}})
        return cluster.kubectl(
            "patch", "node", node, "--type=merge", "-p", body, user="stolen", check=False
        ).stderr

    until(lambda: "not to" in patch("node-b"), "the policy to hold")
    assert patch("node-a") == ""
    assert OWN not in cluster.labels("node-b")


def test_in_another_domain_a_kubelet_can_forge_the_label(cluster):
    """What is given up with a label domain outside node-restriction.kubernetes.io."""
    assert label(cluster, "node-a", "seccomp.example.org/a.json") == ""
    assert "forbidden" in label(cluster, "node-b", "seccomp.example.org/a.json")


def test_an_api_server_of_another_authority_is_not_asked(cluster, tmp_path):
    """A server in between has no certificate of the cluster's authority, and gets no token."""
    with pytest.raises(errors.UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        api(cluster, tmp_path, authority(tmp_path)).get("/api/v1/nodes/node-b")
    assert api(cluster, tmp_path, cluster.ca).get("/api/v1/nodes/node-b")["kind"] == "Node"


def api(cluster, folder, ca):
    """Return the agent's client, told to believe an authority."""
    config = json.loads(cluster.write_kubeconfig("between", "admin").read_text())
    config["clusters"][0]["cluster"]["certificate-authority"] = str(ca)
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return client.Api(kubeconfig=str(path))


def authority(folder):
    """Return the certificate of an authority that signed nothing here."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -subj /CN=other"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "other.crt"
