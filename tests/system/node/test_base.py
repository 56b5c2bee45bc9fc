"""The DaemonSet of manifests/base on a real node, and a pod that a profile confines."""

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
    assert lab.labels() == {
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
    described = lab.kubectl("describe", "node", "node-a")
    assert f'apparmor profile "{PROFILE}" of configmap' in described
    assert "ProfileLoaded" in described


def test_hello_apparmor_is_confined(lab, node):
    """The pod of the tutorial runs under the profile, and may not write."""
    lab.kubectl("apply", "-f", "manifests/examples/hello-apparmor.yaml")
    lab.until_running("hello-apparmor")
    assert node.execute("hello-apparmor", "cat /proc/1/attr/current").strip() == (
        f"{PROFILE} (enforce)"
    )
    assert "Permission denied" in node.execute("hello-apparmor", "touch /tmp/x")
    lab.delete("hello-apparmor")
