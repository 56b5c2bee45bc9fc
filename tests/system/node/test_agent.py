"""Tests that upgrade, kill, evict and delete the agent's pod, and tests of the limits of the
agent's token.
"""

import json

from tests.system.cluster import NAMESPACE
from tests.system.node import disk
from tests.system.node.lab import BASE, DOMAIN, until
from tests.system.node.node import MIN_OBSERVATIONS, NAME
from tests.system.node.pods import enforced, pod, text


def test_no_pod_loses_confinement_whatever_happens_to_the_agent(lab, node):
    """Pods stay confined while the agent is upgraded, killed, evicted or deleted."""
    lab.config_map("stay", {"pl-stay": text("pl-stay", "deny /tmp/** w")})
    names = ("stay-1", "stay-2")
    lab.cluster.apply(
        *(pod(name, apparmor="pl-stay", selector=enforced("pl-stay")) for name in names)
    )
    for name in names:
        lab.until_running(name)
    pids = [node.pid(name) for name in names]
    with node.recorded_labels(*pids) as seen:
        before = lab.until_agent()

        lab.kubectl(
            "-n", NAMESPACE, "set", "image", "daemonset/profile-loader", f"agent={disk.UPGRADE}"
        )
        after = lab.until_agent(other_than=before["metadata"]["uid"])
        ids = {item["status"]["containerStatuses"][0]["imageID"] for item in (before, after)}
        assert len(ids) == 2

        node.run(f"kill -9 {node.pid(after['metadata']['name'], namespace=NAMESPACE)}")

        def restarted():
            (status,) = lab.agents()[0]["status"]["containerStatuses"]
            return status["restartCount"] == 1 and status["ready"]

        until(restarted, "the killed agent runs again")

        about = lab.until_agent()["metadata"]
        name = about["name"]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": NAMESPACE},
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
        lab.kubectl("create", "--raw", path, "-f", "-", stdin=eviction)
        lab.until_agent(other_than=about["uid"])

        labels = lab.labels()
        lab.kubectl("delete", "namespace", NAMESPACE)
        assert lab.labels() == labels
        assert node.loaded("pl-stay")
        # Many users use client-side apply. All other tests use server-side apply.
        lab.kubectl("apply", "-k", BASE)
        lab.until_agent()
    assert set(seen) == {f"{pid} pl-stay (enforce)" for pid in pids}
    assert min(seen.values()) >= MIN_OBSERVATIONS
    assert [node.pid(name) for name in names] == pids
    for name in names:
        assert "Permission denied" in node.execute(name, "touch /tmp/x")
    # The deletion of the namespace also deleted the ConfigMap. The agent reports this until the
    # ConfigMap exists again.
    lab.config_map("stay", {"pl-stay": text("pl-stay", "deny /tmp/** w")})
    lab.delete(*names, wait=False)


def token(lab, node):
    """Return the token of the agent's pod, which an attacker on the node can read."""
    uid = lab.until_agent()["metadata"]["uid"]
    folder = f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected"
    return node.run(f"cat {folder}/kube-api-access-*/token").strip()


def test_the_agents_token_can_only_label_its_own_node(lab, node):
    """A stolen token cannot change other Nodes, labels or taints, and cannot read secrets."""
    lab.cluster.write_kubeconfig("thief", token(lab, node))
    if lab.get("/api/v1/nodes/node-b") is None:
        lab.cluster.node("node-b")
    own = f"seccomp.{DOMAIN}/x.json"

    def patched(name, patch, *words):
        return ("patch", "node", name, *words, "--type=merge", "-p", json.dumps(patch))

    def labels(**more):
        return {"metadata": {"labels": {key.replace("__", "/"): more[key] for key in more}}}

    refused = {
        "another Node": patched("node-b", {"metadata": {"labels": {own: "installed"}}}),
        "another label": patched(NAME, {"metadata": {"labels": {"pool": "a"}}}),
        "a label of Kubernetes": patched(
            NAME, {"metadata": {"labels": {"kubernetes.io/hostname": "node-b"}}}
        ),
        "another value": patched(NAME, {"metadata": {"labels": {own: "anything"}}}),
        "a taint": patched(NAME, {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}),
        "cordoned": patched(NAME, {"spec": {"unschedulable": True}}),
        "an annotation": patched(NAME, {"metadata": {"annotations": {"a": "b"}}}),
        "its status": patched(NAME, {"status": {"phase": "x"}}, "--subresource=status"),
        "a deletion": ("delete", "node", NAME),
        "Secrets": ("get", "secrets", "-A"),
        "Secrets of its namespace": ("-n", NAMESPACE, "get", "secrets"),
        "ConfigMaps elsewhere": ("-n", "kube-system", "get", "configmaps"),
        "a ConfigMap of its own": ("-n", NAMESPACE, "create", "configmap", "x"),
        "pods": ("get", "pods", "-A"),
        "a pod": ("-n", NAMESPACE, "run", "x", "--image=busybox:1.28"),
        "a token": ("-n", NAMESPACE, "create", "token", "profile-loader"),
    }
    before = lab.get(f"/api/v1/nodes/{NAME}")["metadata"]["labels"]
    for what, words in refused.items():
        result = lab.kubectl(*words, user="thief", check=False)
        assert result.returncode == 1, what
        assert "forbidden" in result.stderr.lower(), f"{what}: {result.stderr}"
    assert lab.get(f"/api/v1/nodes/{NAME}")["metadata"]["labels"] == before
    allowed = patched(NAME, {"metadata": {"labels": {own: "installed"}}})
    lab.kubectl(*allowed, user="thief")
    lab.kubectl("label", "node", NAME, f"{own}-")
    lab.kubectl("delete", "node", "node-b")
