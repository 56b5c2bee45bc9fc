"""Histories of a node that would lose something, with the real plan and reconciler."""

import contextlib

import pytest

from agent.core.model import Read, SourceKey
from tests.world import Killed, MemoryKind, MemoryLedger, Node, Steps, build_reconciler, turn


def read(keys, origin="dir /p"):
    blobs = (
        SourceKey(profile_set=origin, key=key, content=content) for key, content in keys.items()
    )
    return Read(profile_set=origin, revision="r", source_keys=tuple(blobs))


def adopting():
    """Return a node on which one key has adopted two names of somebody else's."""
    node = Node(loaded={"a": b"compiled a,b:x", "b": b"compiled a,b:x"})
    turn(node, [read({"one": b"a,b:x"}, "dir /q")])
    return node


def test_what_is_left_of_an_adoption_stays_somebody_elses():
    """One of its names moves to another set; then its key is gone."""
    node = adopting()
    turn(node, [read({"k": b"a:y"}, "dir /p")])
    turn(node, [read({"z": b"c:y"}, "dir /q")])
    assert (node.removed, sorted(node.loaded)) == ([], ["a", "b", "c"])


@pytest.mark.parametrize("step", range(12))
def test_no_kill_makes_an_adopted_name_this_agents(step):
    """Between the releases of two names of one entry, say."""
    node = adopting()
    after = [read({"two": b"a:y"}, "dir /q")]
    with contextlib.suppress(Killed):
        turn(node, after, steps=Steps(fatal=step))
    turn(node, after)
    turn(node, after)
    assert (node.removed, sorted(node.loaded)) == ([], ["a", "b"])


def test_a_duplicate_of_a_barred_key_keeps_its_last_good_version():
    """Two keys of the same content wait for a name; what one of them had is put back meanwhile."""
    node = Node(loaded={"b": b"foreign"})
    turn(node, [read({"two": b"a:x"})])
    both = [read({"one": b"a,b:y", "two": b"a,b:y"})]
    turn(node, both)
    node.loaded.pop("a")
    turn(node, both)
    assert node.loaded == {"a": b"compiled a:x", "b": b"foreign"}


def test_a_duplicate_of_a_refused_key_has_its_last_good_version_put_back():
    """After a reboot, when the node refuses the content that both have now."""
    node = Node()
    turn(node, [read({"two": b"a:x"})])
    node.loaded.clear()
    turn(node, [read({"one": b"a:?", "two": b"a:?"})])
    assert node.loaded == {"a": b"compiled a:x"}


def test_a_put_back_that_fails_is_told_too():
    """The last good version is not whole: neither it nor the new one is there."""
    node = Node()
    turn(node, [read({"one": b"a:x"})])
    node.loaded.clear()
    node.bodies.clear()
    (outcome,) = turn(node, [read({"one": b"a:?"})])
    assert [one.code for one in outcome.findings] == ["kernel_refused", "ledger_damaged"]


def test_a_name_that_a_refused_key_only_left_over_is_free():
    """It is no part of the version that stays."""
    node = Node(used={"b"})
    turn(node, [read({"two": b"a,b:x"})])
    turn(node, [read({"two": b"a:x"})])
    turn(node, [read({"two": b"!bad", "one": b"b:y"})])
    assert node.loaded == {"a": b"compiled a:x", "b": b"compiled b:y"}


class Source:
    """A source that gives what it is told to."""

    now = None

    def read(self):
        return (self.now,)

    def invalidate(self):
        pass

    def explain_absence(self, _):
        return None


def test_the_last_good_version_is_restored_when_the_node_refuses_its_update():
    """An update that the node refuses is held like one that the parser rejects."""
    for update in (b"a:?", b"!bad"):
        node, source = Node(), Source()
        one = build_reconciler([source], MemoryKind(node, Steps()), MemoryLedger(node, Steps()))
        source.now = read({"one": b"a:x"})
        one.run()
        source.now = read({"one": update})
        one.run()
        node.loaded.clear()
        one.run()
        assert node.loaded == {"a": b"compiled a:x"}, update
