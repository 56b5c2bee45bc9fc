"""The DaemonSet of manifests/base on a real node."""

from tests.system.node.lab import DOMAIN

PROFILE = "k8s-apparmor-example-deny-write"


def test_the_daemonset_becomes_ready_with_the_rights_of_the_base(lab, node):
    """One capability, not privileged; labels are on the Node, Events in `kubectl describe node`."""
    pod = lab.until_agent()
    security = pod["spec"]["containers"][0]["securityContext"]
    assert (security["privileged"], security["capabilities"]) == (
        False,
        {"drop": ["ALL"], "add": ["MAC_ADMIN"]},
    )
    expected = {
        f"{DOMAIN}/apparmor": "enabled",
        f"{DOMAIN}/seccomp": "enabled",
        f"apparmor.{DOMAIN}/{PROFILE}": "enforce",
        f"seccomp.{DOMAIN}/prevent-chmod": "installed",
        f"seccomp.{DOMAIN}/profiles__audit.json": "installed",
        f"seccomp.{DOMAIN}/profiles__fine-grained.json": "installed",
        f"seccomp.{DOMAIN}/profiles__violation.json": "installed",
        f"set.{DOMAIN}/node-profiles": "ready",
        f"set.{DOMAIN}/node-profiles-2": "ready",
    }
    labels = lab.labels()  # and those of profiles that other tests put
    assert {key: labels.get(key) for key in expected} == expected
    described = lab.kubectl("describe", "node", "node-a")
    assert f'apparmor profile "{PROFILE}" of configmap' in described
    assert "ProfileLoaded" in described
