"""Joining snapshots: which key is a profile, and which keys contradict each other."""

from agent.core.desired import Desired, join
from agent.core.findings import Finding
from agent.core.model import Emptied, KeyId, Pending, Read, SourceKey, Unchecked
from tests.world import MemoryKind, Node, Steps

KIND = MemoryKind(Node(), Steps())


def key(name, origin="dir /p", kind="apparmor"):
    return KeyId(kind=kind, profile_set=origin, key=name)


def read(keys, origin="dir /p", **more):
    blobs = tuple(SourceKey(profile_set=origin, key=k, content=v) for k, v in keys.items())
    return Read(profile_set=origin, revision="", source_keys=blobs, **more)


def joined(*snapshots, inspect=lambda _, blob: KIND.inspect(blob)):
    return join(snapshots, inspect, frozenset({"apparmor"}))


def codes(desired):
    return {
        id_.key: [one.code for one in desired.rejections[id_].findings]
        for id_ in desired.rejections
    }


def test_every_key_is_accepted_or_rejected_on_its_own():
    """One bad key does not stop a good one."""
    desired = joined(read({"good.profile": b"a:x", "bad.profile": b"!", "README.md": b"x"}))
    assert (set(desired.profiles), codes(desired)) == (
        {key("good.profile")},
        {"bad.profile": ["parser_rejected"]},
    )


def test_keys_of_a_kind_that_is_off_are_left_out():
    """--kinds decides which keys count at all."""
    desired = joined(read({"a.json": b"{}"}))
    assert (desired.profiles, desired.rejections) == ({}, {})


def test_a_key_that_cannot_be_checked_is_neither_accepted_nor_rejected():
    """A node without a parser knows nothing about a text."""
    finding = Finding(code="kind_unsupported", location="a", message="no parser")
    unchecked = Unchecked(id=key("a.profile"), finding=finding)
    desired = joined(read({"a.profile": b"a:x"}), inspect=lambda *_: unchecked)
    assert desired.unchecked == {key("a.profile"): unchecked}
    assert desired.contains(key("a.profile"))


def test_a_key_that_is_still_being_checked_is_pending():
    """It is neither accepted nor rejected."""
    pending = Pending(id=key("a.profile"), source=b"a:x")
    desired = joined(read({"a.profile": b"a:x"}), inspect=lambda *_: pending)
    assert (desired.pending, desired.profiles) == ({key("a.profile"): pending}, {})


def test_a_key_that_its_source_rejected_is_rejected():
    """The last good version of the key is held, as for any rejected key."""
    finding = Finding(code="key_too_large", location="big.profile", message="2 MiB")
    note = Finding(code="key_too_large", location="notes.md", message="2 MiB")
    snapshot = read({}, rejected_keys=(("big.profile", finding), ("notes.md", note)))
    assert codes(joined(snapshot)) == {"big.profile": ["key_too_large"]}


def test_a_rejected_key_without_a_known_suffix_is_rejected_as_either_kind():
    """Its content is unknown, so neither kind may take its last good version for undesired."""
    finding = Finding(code="key_not_regular", location="prevent-chmod", message="a FIFO")
    snapshot = read({}, rejected_keys=(("prevent-chmod", finding),))
    both = frozenset({"apparmor", "seccomp"})
    desired = join([snapshot], lambda *_: None, both)
    assert {(id_.kind, id_.key) for id_ in desired.rejections} == {
        ("apparmor", "prevent-chmod"),
        ("seccomp", "prevent-chmod"),
    }


def test_the_same_name_with_other_content_rejects_both():
    """Neither of two contradicting keys silently wins; the third is not harmed."""
    desired = joined(read({"1.profile": b"a:x", "2.profile": b"a:y", "3.profile": b"b:x"}))
    assert (set(desired.profiles), codes(desired)) == (
        {key("3.profile")},
        {"1.profile": ["name_conflict"], "2.profile": ["name_conflict"]},
    )


def test_identical_content_counts_once():
    """Two keys of the same content are one profile and its copy."""
    desired = joined(read({"1.profile": b"a:x"}), read({"1.profile": b"a:x"}, origin="dir /q"))
    assert (set(desired.profiles), desired.duplicates) == (
        {key("1.profile")},
        {key("1.profile", "dir /q"): key("1.profile")},
    )


def test_a_contested_name_is_contested_for_its_copies_too():
    """If two keys are equal and a third is different, all three are rejected."""
    desired = joined(read({"1.profile": b"a:x", "2.profile": b"a:x", "3.profile": b"a:y"}))
    assert (desired.profiles, desired.duplicates, set(codes(desired))) == (
        {},
        {},
        {"1.profile", "2.profile", "3.profile"},
    )


def test_a_set_that_was_not_read_is_known_as_such():
    """Emptied is an answer of its own, not a set without keys."""
    emptied = Emptied(profile_set="dir /p", revision="")
    assert joined(emptied) == Desired(profile_sets={"dir /p": emptied})
