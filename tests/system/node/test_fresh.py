"""Tests of special nodes: a new node with the startup taint, and a node without AppArmor."""

import json

from tests.system import kustomize
from tests.system.node.lab import BASE, DOMAIN, until
from tests.system.node.node import NAME
from tests.system.node.pods import enforced, installed, pod, refusing_mkdir, text

TAINT = "profile-loader.io/startup"


def tainted(lab):
    """Return whether the Node has the startup taint."""
    taints = lab.get(f"/api/v1/nodes/{NAME}")["spec"].get("taints", [])
    return any(item["key"] == TAINT for item in taints)


def test_a_new_node_runs_no_ordinary_pod_before_its_profiles_are_installed(lab, tmp_path):
    """The agent removes the startup taint after it has installed the profiles. Ordinary pods start
    only after this removal.
    """
    lab.drop()
    folder = kustomize.write(tmp_path / "startup-taint", "startup-taint")
    lab.kubectl("apply", "--server-side", "--force-conflicts", "-k", folder)
    lab.config_map("fresh", {"pl-fresh": text("pl-fresh")})
    lab.cluster.apply(pod("ordinary", apparmor="pl-fresh"))
    try:
        node = lab.ensure_node(taints=f"{TAINT}=:NoSchedule")
        # The Node is Ready, but the agent needs some seconds to install the profiles.
        assert (tainted(lab), lab.pod("ordinary")["spec"].get("nodeName")) == (True, None)
        until(lambda: lab.pod("ordinary")["spec"].get("nodeName"), "ordinary is scheduled")
        labels = lab.labels()
        assert enforced("pl-fresh").items() <= labels.items()
        assert labels[f"set.{DOMAIN}/profile-loader__node-profiles"] == "ready"
        assert node.loaded("pl-fresh")
        lab.until_running("ordinary")
        assert node.attribute(node.pid("ordinary")) == "pl-fresh (enforce)"
        events = json.loads(lab.kubectl("get", "events", "-o", "json"))["items"]
        about = [item for item in events if item["involvedObject"]["name"] == "ordinary"]
        reasons = {item["reason"] for item in about}
        assert "Failed" not in reasons
        assert not tainted(lab)
    finally:
        lab.delete("ordinary", wait=False)
        lab.install(BASE)


def test_a_node_without_apparmor_supports_only_seccomp(lab):
    """The labels show which kinds the node supports. A pod with an AppArmor profile stays pending,
    and a pod with a seccomp profile runs.
    """
    node = lab.ensure_node(append="apparmor=0")
    lab.config_map("off", {"pl-off": text("pl-off")})
    lab.config_map("off-2", {"off.json": refusing_mkdir(95)})
    lab.install()
    until(lambda: installed("off.json").items() <= lab.labels().items(), "the labels")
    labels = lab.labels()
    assert labels[f"{DOMAIN}/apparmor"] == "disabled"
    assert labels[f"{DOMAIN}/seccomp"] == "enabled"
    assert [key for key in labels if key.startswith("apparmor.")] == []
    lab.cluster.apply(
        pod("needs-apparmor", apparmor="pl-off", selector=enforced("pl-off")),
        pod("needs-seccomp", seccomp="off.json", selector=installed("off.json")),
    )
    lab.until_running("needs-seccomp")
    assert "Operation not supported" in node.execute("needs-seccomp", "mkdir /tmp/d")
    result = lab.pod("needs-apparmor")
    assert (result["status"]["phase"], result["spec"].get("nodeName")) == ("Pending", None)
    lab.delete("needs-apparmor", "needs-seccomp", wait=False)
