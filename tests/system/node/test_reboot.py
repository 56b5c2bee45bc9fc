"""Tests of a reboot of the node while the API server is unavailable."""

from tests.system.node.lab import until
from tests.system.node.pods import enforced, installed, pod, refusing_mkdir, text

# This script checks the condition of the systemd unit, and then runs the command of the unit.
UNIT = """set -e
unit=/etc/profile-loader-restore.service
[ -e "$(sed -n s/^ConditionPathExists=//p $unit)" ]
$(sed -n s/^ExecStart=//p $unit)
"""


def test_the_last_good_profiles_are_restored_before_the_api_server_starts(lab, node):
    """The command `restore` installs the profiles without a source. When the API server is
    available again, pods start confined.
    """
    lab.config_map("boot", {"pl-boot": text("pl-boot", "deny /tmp/** w")})
    lab.config_map("boot-2", {"boot.json": refusing_mkdir(95)})
    lab.cluster.apply(
        pod("boot", apparmor="pl-boot", selector=enforced("pl-boot")),
        pod("boot-file", seccomp="boot.json", selector=installed("boot.json")),
    )
    for name in ("boot", "boot-file"):
        lab.until_running(name)
    lab.config_map("boot", {"pl-boot": "profile pl-boot { broken"})
    until(
        lambda: any(
            "pl-boot" in note for reason, note in lab.events() if reason == "ProfileRejected"
        ),
        "the rejection of the broken update",
    )
    lab.cluster.stop("kube-apiserver")
    try:
        node.machine.reboot()
        assert not node.loaded("pl-boot")
        node.run(UNIT)
        assert node.loaded("pl-boot")
        assert node.loaded("k8s-apparmor-example-deny-write")
        assert node.errno("boot.json") == 95
        node.start_kubelet()
    finally:
        lab.cluster.start_api()
    node.until_ready()

    def restarted(name):
        (status,) = lab.pod(name)["status"]["containerStatuses"]
        return status["restartCount"] == 1 and status["ready"]

    for name in ("boot", "boot-file"):
        until(lambda name=name: restarted(name), f"{name} runs again")
    assert node.attribute(node.pid("boot")) == "pl-boot (enforce)"
    assert "Permission denied" in node.execute("boot", "touch /tmp/x")
    assert "Operation not supported" in node.execute("boot-file", "mkdir /tmp/d")
    lab.until_agent()
    lab.config_map("boot", {"pl-boot": text("pl-boot", "deny /tmp/** w")})
    lab.delete("boot", "boot-file", wait=False)
