"""Tests of agent.core.pod_references."""

import pytest

from agent.core import pod_references
from tests.json_object import JsonObject


def local(name: str) -> dict[str, str]:
    return {"type": "Localhost", "localhostProfile": name}


def test_references_in_every_part_of_a_pod_count() -> None:
    """References in the pod, in its three types of containers, and in the annotations of older API
    servers count.
    """
    pod = {
        "metadata": {
            "annotations": {
                "container.apparmor.security.beta.kubernetes.io/web": "localhost/old-web",
                "container.seccomp.security.alpha.kubernetes.io/web": "localhost/old.json",
                "seccomp.security.alpha.kubernetes.io/pod": "localhost/old-pod.json",
                "container.apparmor.security.beta.kubernetes.io/other": "runtime/default",
                "example.org/x": "localhost/no",
            }
        },
        "spec": {
            "securityContext": {"seccompProfile": local("pod.json")},
            "containers": [{"securityContext": {"appArmorProfile": local("web")}}, {}],
            "initContainers": [{"securityContext": {"seccompProfile": local("init.json")}}],
            "ephemeralContainers": [{"securityContext": {"appArmorProfile": local("debug")}}],
        },
        "status": {"phase": "Pending"},
    }
    assert pod_references.referenced_profiles(pod) == {
        ("apparmor", "old-web"),
        ("seccomp", "old.json"),
        ("seccomp", "old-pod.json"),
        ("seccomp", "pod.json"),
        ("apparmor", "web"),
        ("seccomp", "init.json"),
        ("apparmor", "debug"),
    }


@pytest.mark.parametrize("written", ["./a/b.json", "a//b.json", "a/./b.json", "a/b.json/"])
def test_the_path_of_a_seccomp_file_is_normalized_as_in_the_kubelet(written: str) -> None:
    """The agent normalizes the path of a seccomp file as the kubelet does, because the API server
    accepts other paths.
    """
    pod = {"spec": {"securityContext": {"seccompProfile": local(written)}}}
    assert pod_references.referenced_profiles(pod) == {("seccomp", "a/b.json")}


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"spec": {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}},
        {"spec": {"securityContext": None, "containers": None}, "metadata": {"annotations": None}},
        {
            "spec": {"securityContext": {"seccompProfile": local("a")}},
            "status": {"phase": "Failed"},
        },
        {
            "spec": {"securityContext": {"seccompProfile": local("a")}},
            "status": {"phase": "Succeeded"},
        },
    ],
)
def test_a_terminated_pod_or_a_pod_without_a_profile_has_no_references(pod: JsonObject) -> None:
    """A pod that has terminated does not reference a profile."""
    assert pod_references.referenced_profiles(pod) == frozenset()
