"""Tests of pods whose profile is not installed yet."""

import time

from tests.system.node.lab import until
from tests.system.node.pods import enforced, pod, refusing_mkdir, text


def test_a_pod_waits_for_a_label_and_runs_after_the_installation(lab, node):
    """A pod is Pending until a ConfigMap provides its profile, and then runs confined.

    The test never changes the pod, and prints the duration of each step.
    """
    lab.cluster.apply(pod("later", apparmor="pl-later", selector=enforced("pl-later")))

    def unschedulable():
        conditions = lab.pod("later").get("status", {}).get("conditions", [])
        return [item["message"] for item in conditions if item.get("reason") == "Unschedulable"]

    (message,) = until(unschedulable, "later is unschedulable")
    assert "didn't match Pod's node affinity/selector" in message

    begin = time.monotonic()
    steps = {}

    def note(step):
        steps[step] = time.monotonic() - begin

    lab.config_map("later", {"pl-later": text("pl-later", "deny /tmp/** w")})
    note("ConfigMap written")
    until(lambda: enforced("pl-later").items() <= lab.labels().items(), "the label")
    note("label on the Node")
    until(lambda: lab.pod("later")["spec"].get("nodeName"), "later is scheduled")
    note("pod scheduled")
    lab.until_running("later")
    note("pod ready")
    assert node.attribute(node.pid("later")) == "pl-later (enforce)"
    note("confinement seen")
    print("\na waiting pod: " + ", ".join(f"{step} {at:.1f} s" for step, at in steps.items()))
    assert "Permission denied" in node.execute("later", "touch /tmp/x")
    lab.delete("later", wait=False)


def test_pods_whose_profile_is_missing_recover_by_themselves(lab, node):
    """Pods without a nodeSelector cannot start until a ConfigMap provides their profiles.

    After the profiles are installed, the same pods start.
    """
    lab.cluster.apply(
        pod("lost", apparmor="pl-lost"), pod("lost-file", seccomp="lost/refusing.json")
    )
    message = lab.until_waiting("lost", "CreateContainerError")
    assert "apparmor profile not found pl-lost" in message
    message = lab.until_waiting("lost-file", "CreateContainerError")
    assert "cannot load seccomp profile" in message
    before = {name: lab.pod(name)["metadata"]["uid"] for name in ("lost", "lost-file")}

    begin = time.monotonic()
    lab.config_map("lost", {"pl-lost": text("pl-lost", "deny /tmp/** w")})
    lab.config_map("lost-2", {"refusing.json": refusing_mkdir(95)}, seccomp_prefix="lost/")
    result = {name: lab.until_running(name) for name in before}
    print(f"\nfailing pods: ready {time.monotonic() - begin:.1f} s after the ConfigMap")
    assert {name: item["metadata"]["uid"] for name, item in result.items()} == before
    assert {item["status"]["containerStatuses"][0]["restartCount"] for item in result.values()} == {
        0
    }
    assert node.attribute(node.pid("lost")) == "pl-lost (enforce)"
    assert "Operation not supported" in node.execute("lost-file", "mkdir /tmp/d")
    lab.delete(*before, wait=False)
