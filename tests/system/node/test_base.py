"""Tests of the DaemonSet of manifests/base on a real node."""

import re

from tests.system.cluster import NAMESPACE
from tests.system.node.lab import DOMAIN, until

PROFILE = "k8s-apparmor-example-deny-write"
# These fields of /proc/PID/status (proc(5)) show that the only capability is CAP_MAC_ADMIN (33),
# and that no_new_privs and a seccomp filter are set.
RIGHTS = {
    "Uid": "0\t0\t0\t0",
    "CapInh": "0000000000000000",
    "CapPrm": "0000000200000000",
    "CapEff": "0000000200000000",
    "CapBnd": "0000000200000000",
    "CapAmb": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
}


def test_the_daemonset_becomes_ready_with_the_rights_of_the_base(lab, node):
    """With a single capability, the agent labels its Node and sends Events.

    The process of the agent has exactly the expected rights. The command `status` in the pod of the
    agent lists the profiles.
    """
    pod = lab.until_agent()
    security = pod["spec"]["containers"][0]["securityContext"]
    assert (security["privileged"], security["capabilities"]) == (
        False,
        {"drop": ["ALL"], "add": ["MAC_ADMIN"]},
    )
    pid = node.pid(pod["metadata"]["name"], namespace=NAMESPACE)
    status = dict(
        line.split(":\t", 1)
        for line in node.run(f"cat /proc/{pid}/status").splitlines()
        if ":\t" in line
    )
    assert {key: status[key] for key in RIGHTS} == RIGHTS
    expected = {
        f"{DOMAIN}/apparmor": "enabled",
        f"{DOMAIN}/seccomp": "enabled",
        f"{DOMAIN}/selinux": "disabled",
        f"apparmor.{DOMAIN}/{PROFILE}": "enforce",
        f"seccomp.{DOMAIN}/prevent-chmod": "installed",
        f"seccomp.{DOMAIN}/profiles__audit.json": "installed",
        f"seccomp.{DOMAIN}/profiles__fine-grained.json": "installed",
        f"seccomp.{DOMAIN}/profiles__violation.json": "installed",
        f"set.{DOMAIN}/profile-loader__node-profiles": "ready",
        f"set.{DOMAIN}/profile-loader__node-profiles-2": "ready",
    }
    labels = lab.labels()  # The Node may also have labels for the profiles of other tests.
    assert {key: labels.get(key) for key in expected} == expected

    def described():
        text = lab.kubectl("describe", "node", "node-a")
        lines = [line for line in text.splitlines() if f'apparmor profile "{PROFILE}" of' in line]
        return [line for line in lines if "ProfileLoaded" in line]

    until(described, "the Event")

    name = pod["metadata"]["name"]
    output = node.execute(name, "profile-loader status", namespace=NAMESPACE, container="agent")
    assert re.search(rf"\b{PROFILE} +installed\b", output), output
