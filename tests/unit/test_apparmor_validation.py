"""Specification of agent.backends.apparmor.validation."""

import pytest

from agent.backends.apparmor import validation
from agent.backends.apparmor.compiled_policy import DeclaredProfile


def declared(name, *, mode="enforce", attached=False):
    return DeclaredProfile(name=name, mode=mode, has_attachment=attached, evidence=frozenset())


def codes(*given, **options):
    found = validation.errors(given, "", validation.ValidationRules(**options))
    return [one.code for one in found]


@pytest.mark.parametrize(
    "name",
    [
        "docker-default", "cri-containerd.apparmor.d", "crio-default", "crio-default-1.30",
        "containers-default-0.50", "lxc-container-default", "snap.x.y", "unconfined",
    ],
)  # fmt: skip
def test_a_name_of_the_host_is_denied(name):
    """Names of container runtimes, LXC and snap are refused."""
    assert codes(declared(name)) == ["name_denied"]


def test_a_hat_of_a_denied_name_is_denied_too():
    """The deny list looks at the outermost parent."""
    found = codes(declared("docker-default"), declared("docker-default//hat"))
    assert found == ["name_denied", "name_denied"]


def test_the_deny_list_can_be_changed():
    """An operator's list replaces the default."""
    assert codes(declared("docker-default"), declared("mine-1"), deny_names=["mine-*"]) == [
        "name_denied"
    ]


@pytest.mark.parametrize(
    "name",
    ["a\tb", "a\nb", "a\u202eb", "a\x7f", " a", "a ", "a//b", "n" * 201, "é" * 101, "a//&b"],
)
def test_a_name_that_jams_the_kernel_or_forges_a_line_is_refused(name):
    """Control characters, outer spaces, orphans and names over 200 bytes are unsafe."""
    assert codes(declared(name)) == ["name_unsafe"]


@pytest.mark.parametrize("name", ["web", "n" * 200, "two words", "é", "k8s-apparmor-example"])
def test_a_plain_name_is_accepted(name):
    """Spaces inside and any printable character are allowed, up to 200 bytes."""
    assert codes(declared(name)) == []


def test_a_key_of_too_many_names_is_refused():
    """Each is a load for the kernel, a row and a label; up to the limit they are fine."""
    names = [declared(f"n{number}") for number in range(validation.MAX_NAMES + 1)]
    assert (codes(*names), codes(*names[:-1])) == (["key_too_large"], [])


def test_a_child_needs_its_nearest_parent_in_the_same_key():
    """A grandchild's parent is its child, not the profile at the top."""
    assert codes(declared("a"), declared("a//b")) == []
    assert codes(declared("a"), declared("a//b//c")) == ["name_unsafe"]


def test_an_attachment_is_refused_unless_allowed():
    """An attachment, or a path as the name, confines processes of the host."""
    given = [declared("/usr/bin/x"), declared("x", attached=True)]
    assert codes(*given) == ["attachment_refused", "attachment_refused"]
    assert codes(*given, allow_attachments=True) == []


def test_a_childs_attachment_is_its_parents_matter():
    """A child's path only chooses among the children of its parent."""
    given = [declared("x"), declared("x///bin/ls", attached=True)]
    assert codes(*given) == []


def test_unconfined_mode_is_refused_unless_allowed():
    """A profile in unconfined mode looks like protection and is none."""
    given = declared("x", mode="unconfined")
    assert codes(given) == ["unconfined_refused"]
    assert codes(given, allow_unconfined_mode=True) == []


def test_a_namespace_is_refused():
    """A profile of a policy namespace cannot be named by a pod."""
    assert codes(declared(":ns:x")) == ["namespace_refused"]


def test_every_reason_is_told_at_once():
    """The user needs one round."""
    found = codes(declared("snap.x", mode="unconfined", attached=True))
    assert found == ["name_denied", "attachment_refused", "unconfined_refused"]


def test_complain_mode_is_remarked_with_its_line():
    """A profile in complain mode is accepted with a warning."""
    found = validation.warnings(
        [declared("web", mode="complain")], "\nprofile web flags=(complain) {"
    )
    assert [(one.code, one.location) for one in found] == [("complain_mode", "line 2")]
