"""Tests of agent.core.desired, which accepts or rejects keys and finds conflicts."""

from collections.abc import Callable
from typing import Any

from agent.core.desired import Desired, join
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    Inspected,
    KeyId,
    Pending,
    ProfileKind,
    Read,
    Snapshot,
    SourceKey,
    Unchecked,
)
from tests.world import MemoryKind, Node, Steps

KIND = MemoryKind(Node(), Steps())


def key(name: str, origin: str = "dir /p", kind: ProfileKind = "apparmor") -> KeyId:
    return KeyId(kind=kind, profile_set=origin, key=name)


def read(keys: dict[str, bytes], origin: str = "dir /p", **more: Any) -> Read:
    source_keys = tuple(
        SourceKey(profile_set=origin, key=key, content=content) for key, content in keys.items()
    )
    return Read(profile_set=origin, revision="", source_keys=source_keys, **more)


def joined(
    *snapshots: Snapshot,
    inspect: Callable[[ProfileKind, SourceKey], Inspected] = lambda _, source_key: KIND.inspect(
        source_key
    ),
) -> Desired:
    return join(snapshots, inspect, frozenset({"apparmor"}))


def codes(desired: Desired) -> dict[str, list[FindingCode]]:
    return {
        id_.key: [finding.code for finding in desired.rejections[id_].findings]
        for id_ in desired.rejections
    }


def test_each_key_is_accepted_or_rejected_separately() -> None:
    """A rejected key does not affect an accepted key."""
    desired = joined(read({"good.profile": b"a:x", "bad.profile": b"!", "README.md": b"x"}))
    assert (set(desired.profiles), codes(desired)) == (
        {key("good.profile")},
        {"bad.profile": ["parser_rejected"]},
    )


def test_keys_of_an_excluded_kind_are_ignored() -> None:
    """Keys of a kind that the option --kinds excludes are ignored."""
    desired = joined(read({"a.json": b"{}"}))
    assert (desired.profiles, desired.rejections) == ({}, {})


def test_a_key_that_cannot_be_checked_is_unchecked() -> None:
    """If a key cannot be checked, for example without a parser, it is neither accepted nor
    rejected.
    """
    finding = Finding(code=FindingCode.KIND_UNSUPPORTED, location="a", message="no parser")
    unchecked = Unchecked(id=key("a.profile"), finding=finding)
    desired = joined(read({"a.profile": b"a:x"}), inspect=lambda *_: unchecked)
    assert desired.unchecked == {key("a.profile"): unchecked}
    assert desired.contains(key("a.profile"))


def test_a_key_that_is_still_being_checked_is_pending() -> None:
    """A key that is still being checked is neither accepted nor rejected."""
    pending = Pending(id=key("a.profile"), source=b"a:x")
    desired = joined(read({"a.profile": b"a:x"}), inspect=lambda *_: pending)
    assert (desired.pending, desired.profiles) == ({key("a.profile"): pending}, {})


def test_a_key_that_its_source_rejected_is_rejected() -> None:
    """A key that its source rejected is rejected, and its last good version is kept."""
    finding = Finding(code=FindingCode.KEY_TOO_LARGE, location="big.profile", message="2 MiB")
    note = Finding(code=FindingCode.KEY_TOO_LARGE, location="notes.md", message="2 MiB")
    snapshot = read({}, rejected_keys=(("big.profile", finding), ("notes.md", note)))
    assert codes(joined(snapshot)) == {"big.profile": ["key_too_large"]}


def test_an_unread_key_of_unknown_kind_is_rejected_for_both_kinds() -> None:
    """If the kind of an unread key is unknown, the key is rejected for both kinds."""
    finding = Finding(code=FindingCode.KEY_NOT_REGULAR, location="prevent-chmod", message="a FIFO")
    snapshot = read({}, rejected_keys=(("prevent-chmod", finding),))
    both: frozenset[ProfileKind] = frozenset({"apparmor", "seccomp"})
    desired = join([snapshot], lambda _, source_key: KIND.inspect(source_key), both)
    assert {(id_.kind, id_.key) for id_ in desired.rejections} == {
        ("apparmor", "prevent-chmod"),
        ("seccomp", "prevent-chmod"),
    }


def test_keys_with_the_same_name_and_other_content_are_rejected() -> None:
    """If two keys declare the same name with different content, both are rejected. A third key is
    not affected.
    """
    desired = joined(read({"1.profile": b"a:x", "2.profile": b"a:y", "3.profile": b"b:x"}))
    assert (set(desired.profiles), codes(desired)) == (
        {key("3.profile")},
        {"1.profile": ["name_conflict"], "2.profile": ["name_conflict"]},
    )


def test_a_key_with_the_same_content_is_a_duplicate() -> None:
    """Two keys with the same content result in one profile and one duplicate."""
    desired = joined(read({"1.profile": b"a:x"}), read({"1.profile": b"a:x"}, origin="dir /q"))
    assert (set(desired.profiles), desired.duplicates) == (
        {key("1.profile")},
        {key("1.profile", "dir /q"): key("1.profile")},
    )


def test_a_conflict_rejects_duplicates_too() -> None:
    """If three keys define a profile of the same name, all three are rejected, even if two have
    equal content.
    """
    desired = joined(read({"1.profile": b"a:x", "2.profile": b"a:x", "3.profile": b"a:y"}))
    assert (desired.profiles, desired.duplicates, set(codes(desired))) == (
        {},
        {},
        {"1.profile", "2.profile", "3.profile"},
    )


def test_a_set_that_was_not_read_keeps_its_snapshot() -> None:
    """A profile set that was not read keeps its snapshot, so an emptied set differs from a set
    without keys.
    """
    emptied = Emptied(profile_set="dir /p", revision="")
    assert joined(emptied) == Desired(profile_sets={"dir /p": emptied})


def test_two_versions_of_a_generated_configmap_get_their_own_hint() -> None:
    """For two versions of a generated ConfigMap, the hint recommends to delete the older version,
    which Kustomize does not delete.
    """
    origins = ("configmap a/profiles-8b5m2tg7dk", "configmap a/profiles-5h29m5c4ff")
    desired = joined(
        *(
            read({"web.profile": b"web:" + content}, origin=origin)
            for origin, content in zip(origins, (b"x", b"y"), strict=True)
        )
    )
    hints = {finding.hint for item in desired.rejections.values() for finding in item.findings}
    assert len(hints) == 1
    assert "delete the older ConfigMap" in hints.pop()


def test_other_conflicts_get_the_hint_to_rename() -> None:
    """All other conflicts have the hint to rename a profile. Two ConfigMaps count as versions only
    if their names differ in nothing but the hash suffix.
    """
    for origins in (
        ("configmap a/web", "configmap a/api"),
        ("configmap a/web-8b5m2tg7dk", "configmap a/api-8b5m2tg7dk"),
        ("configmap a/web-production", "configmap a/web-testsystem"),
    ):
        desired = joined(
            *(
                read({"web.profile": b"web:" + content}, origin=origin)
                for origin, content in zip(origins, (b"x", b"y"), strict=True)
            )
        )
        hints = {finding.hint for item in desired.rejections.values() for finding in item.findings}
        assert hints == {"Rename one of the profiles, or make their content equal."}
