"""Tests of the planner and the executor together, over several passes."""

import contextlib

import pytest

from agent.core.model import Read, Snapshot, SourceKey
from tests.world import Killed, MemoryKind, MemoryLedger, Node, Steps, build_reconciler, run_pass


def read(keys: dict[str, bytes], origin: str = "dir /p") -> Read:
    source_keys = (
        SourceKey(profile_set=origin, key=key, content=content) for key, content in keys.items()
    )
    return Read(profile_set=origin, revision="r", source_keys=tuple(source_keys))


def node_with_adopted_profiles() -> Node:
    """Return a node on which the agent has adopted two foreign profiles for one key."""
    node = Node(loaded={"a": b"compiled a,b:x", "b": b"compiled a,b:x"})
    run_pass(node, [read({"one": b"a,b:x"}, "dir /q")])
    return node


def test_the_rest_of_an_adopted_key_stays_adopted() -> None:
    """If one profile of an adopted key moves to another profile set, the other profile stays
    adopted.
    """
    node = node_with_adopted_profiles()
    run_pass(node, [read({"k": b"a:y"}, "dir /p")])
    run_pass(node, [read({"z": b"c:y"}, "dir /q")])
    assert (node.removed, sorted(node.loaded)) == ([], ["a", "b", "c"])


@pytest.mark.parametrize("step", range(12))
def test_an_adopted_profile_stays_foreign_after_a_kill(step: int) -> None:
    """If the agent exits after it has released only one of two adopted names, the other profile
    still counts as foreign.
    """
    node = node_with_adopted_profiles()
    snapshots = [read({"two": b"a:y"}, "dir /q")]
    with contextlib.suppress(Killed):
        run_pass(node, snapshots, steps=Steps(fatal=step))
    run_pass(node, snapshots)
    run_pass(node, snapshots)
    assert (node.removed, sorted(node.loaded)) == ([], ["a", "b"])


def test_a_duplicate_of_a_conflicting_key_keeps_its_last_good_version() -> None:
    """If a key and its duplicate conflict with a third key, their last good version is restored."""
    node = Node(loaded={"b": b"foreign"})
    run_pass(node, [read({"two": b"a:x"})])
    snapshots = [read({"one": b"a,b:y", "two": b"a,b:y"})]
    run_pass(node, snapshots)
    node.loaded.pop("a")
    run_pass(node, snapshots)
    assert node.loaded == {"a": b"compiled a:x", "b": b"foreign"}


def test_the_last_good_version_of_a_duplicate_of_a_rejected_key_is_restored() -> None:
    """If the node rejects the new content of two equal keys after a reboot, the last good version
    is restored.
    """
    node = Node()
    run_pass(node, [read({"two": b"a:x"})])
    node.loaded.clear()
    run_pass(node, [read({"one": b"a:?", "two": b"a:?"})])
    assert node.loaded == {"a": b"compiled a:x"}


def test_a_failed_restoration_is_reported() -> None:
    """If the last good version is damaged too, neither version can be installed, and the report
    contains both failures.
    """
    node = Node()
    run_pass(node, [read({"one": b"a:x"})])
    node.loaded.clear()
    node.bodies.clear()
    (outcome,) = run_pass(node, [read({"one": b"a:?"})])
    assert [finding.code for finding in outcome.findings] == ["kernel_refused", "ledger_damaged"]


def test_a_name_that_a_rejected_key_has_dropped_can_move() -> None:
    """A name that the new text of a rejected key omits can move to another key."""
    node = Node(used={"b"})
    run_pass(node, [read({"two": b"a,b:x"})])
    run_pass(node, [read({"two": b"a:x"})])
    run_pass(node, [read({"two": b"!bad", "one": b"b:y"})])
    assert node.loaded == {"a": b"compiled a:x", "b": b"compiled b:y"}


class Source:
    """A fake source with one snapshot, which the test sets."""

    watched_path = None

    def __init__(self, snapshot: Read) -> None:
        self.snapshot = snapshot

    def read(self) -> tuple[Read]:
        return (self.snapshot,)

    def invalidate(self) -> None:
        pass

    def explain_absence(self, profile_set: str) -> Snapshot | None:
        return None


def test_the_last_good_version_is_restored_when_the_node_rejects_its_update() -> None:
    """If the node rejects an update, the last good version is restored, as after a rejection by the
    parser.
    """
    for update in (b"a:?", b"!bad"):
        node, source = Node(), Source(read({"one": b"a:x"}))
        reconciler = build_reconciler(
            [source], MemoryKind(node, Steps()), MemoryLedger(node, Steps())
        )
        reconciler.run()
        source.snapshot = read({"one": update})
        reconciler.run()
        node.loaded.clear()
        reconciler.run()
        assert node.loaded == {"a": b"compiled a:x"}, update
