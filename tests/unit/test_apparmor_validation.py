"""Tests of agent.backends.apparmor.validation."""

from typing import Any

import pytest

from agent.backends.apparmor import container_checks, validation
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.core.finding_codes import FindingCode


def declared(name: str, *, mode: str = "enforce", attached: bool = False) -> DeclaredProfile:
    return DeclaredProfile(name=name, mode=mode, has_attachment=attached, evidence=frozenset())


def codes(*profiles: DeclaredProfile, **options: Any) -> list[FindingCode]:
    """Return the codes of the errors about profiles, with the given options."""
    findings = validation.errors(profiles, "", validation.ValidationRules(**options))
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    "name",
    [
        "docker-default", "cri-containerd.apparmor.d", "crio-default", "crio-default-1.30",
        "containers-default-0.50", "lxc-container-default", "snap.x.y", "unconfined",
        "nerdctl-default", "incus-a", "libvirt-1", "lxd-a", "unprivileged_userns",
    ],
)  # fmt: skip
def test_a_profile_name_of_the_host_is_denied(name: str) -> None:
    """Profile names that container runtimes, LXC or snap use are rejected."""
    assert codes(declared(name)) == ["name_denied"]


def test_a_hat_of_a_denied_name_is_denied_too() -> None:
    """If the name of a hat's outermost parent is denied, the hat is denied too."""
    profiles = [declared("docker-default"), declared("docker-default//hat")]
    assert codes(*profiles) == ["name_denied", "name_denied"]


def test_the_deny_list_can_be_changed() -> None:
    """The deny list of the operator replaces the default list."""
    profiles = [declared("docker-default"), declared("mine-1")]
    assert codes(*profiles, deny_names=["mine-*"]) == ["name_denied"]


@pytest.mark.parametrize(
    "name",
    [
        "a\tb",
        "a\nb",
        "a\u202eb",
        "a\x7f",
        " a",
        "a ",
        "a//b",
        "n" * 201,
        "é" * 101,
        "a//&b",
        "localhost/web",
    ],
)
def test_an_unsafe_name_is_rejected(name: str) -> None:
    """A name is rejected if it would make the kernel reject every later load, forge a line of the
    kernel's list, or not be found by a runtime.
    """
    assert codes(declared(name)) == ["name_unsafe"]


@pytest.mark.parametrize("name", ["web", "n" * 200, "two words", "é", "k8s-apparmor-example"])
def test_a_plain_name_is_accepted(name: str) -> None:
    """A name of up to 200 bytes may contain inner spaces and all printable characters."""
    assert codes(declared(name)) == []


def test_a_key_with_too_many_names_is_rejected() -> None:
    """A key with more names than the limit is rejected. A key with exactly as many names is
    accepted.
    """
    names = [declared(f"n{number}") for number in range(validation.MAX_NAMES + 1)]
    assert (codes(*names), codes(*names[:-1])) == (["key_too_large"], [])


def test_a_child_needs_its_nearest_parent_in_the_same_key() -> None:
    """If a key contains a grandchild of a profile, the key must also contain the child between
    them.
    """
    assert codes(declared("a"), declared("a//b")) == []
    assert codes(declared("a"), declared("a//b//c")) == ["name_unsafe"]


def test_an_attachment_is_rejected_unless_allowed() -> None:
    """An attachment, or a path as the name of a profile, is rejected, because it would confine
    processes on the host.
    """
    profiles = [declared("/usr/bin/x"), declared("x", attached=True)]
    assert codes(*profiles) == ["attachment_refused", "attachment_refused"]
    assert codes(*profiles, allow_attachments=True) == []


def test_the_attachment_of_a_child_is_accepted() -> None:
    """The attachment of a child applies only within its parent, so it is accepted."""
    profiles = [declared("x"), declared("x///bin/ls", attached=True)]
    assert codes(*profiles) == []


def test_unconfined_mode_is_rejected_unless_allowed() -> None:
    """A profile in unconfined mode is rejected, because it does not protect anything."""
    profile = declared("x", mode="unconfined")
    assert codes(profile) == ["unconfined_refused"]
    assert codes(profile, allow_unconfined_mode=True) == []


def test_a_policy_namespace_is_rejected() -> None:
    """A profile in another policy namespace is rejected, because a pod cannot use it."""
    assert codes(declared(":ns:x")) == ["namespace_refused"]


def test_all_errors_of_a_profile_are_reported_together() -> None:
    """All errors of a profile are reported together, so that the author can correct them at
    once.
    """
    profile = declared("snap.x", mode="unconfined", attached=True)
    assert codes(profile) == ["name_denied", "attachment_refused", "unconfined_refused"]


def test_complain_mode_causes_a_warning_with_the_line() -> None:
    """A profile in complain mode is accepted with a warning that contains the line."""
    findings = validation.warnings(
        [declared("web", mode="complain")], "\nprofile web flags=(complain) {"
    )
    assert [(finding.code, finding.location) for finding in findings] == [
        ("complain_mode", "line 2")
    ]


@pytest.mark.parametrize("name", ["flags=(complain)", "flags=(attach_disconnected,complain)"])
def test_a_name_that_looks_like_flags_causes_a_warning(name: str) -> None:
    """If the name before the flags is missing, a warning explains that the flags have no effect."""
    findings = validation.warnings([declared(name)], f"profile {name} {{\n  file,\n}}\n")
    assert [(finding.code, finding.location) for finding in findings] == [
        ("name_suspicious", "line 1")
    ]


@pytest.mark.parametrize(
    ("rules", "can_start"),
    [
        ("network,", False),
        ("deny /** w,", False),
        ("# file,", False),
        ("include <abstractions/base>\n  network,", False),
        ("#include <abstractions/base>", False),
        ("file,", True),
        ("/** rix,", True),
        ("deny /etc/** w,\n  /** rix,", True),
        ("owner @{HOME}/** rw,", True),
        ('"/a b" r,', True),
        ("r /a,", True),
        ("allow file,", True),
        ("include <abstractions/container>", True),
        ("include if exists <local/web>", True),
    ],
)
def test_a_profile_without_file_rules_causes_a_warning(rules: str, can_start: bool) -> None:
    """A profile without file rules causes a warning, unless an included file may contain file
    rules.
    """
    source = f"#include <tunables/global>\nprofile web {{\n  {rules}\n}}\n"
    codes_ = [finding.code for finding in container_checks.warnings([declared("web")], source)]
    assert codes_ == ([] if can_start else ["start_impossible"])


@pytest.mark.parametrize("mode", ["complain", "unconfined"])
def test_a_profile_that_denies_nothing_lets_containers_start(mode: str) -> None:
    """A profile in a mode that denies nothing causes no warning about missing file rules."""
    assert container_checks.warnings([declared("web", mode=mode)], "profile web {}\n") == ()
