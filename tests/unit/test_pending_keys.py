"""Tests of passes while a key is checked in the background."""

from pathlib import Path

import pytest

from agent.wake_queue import WakeReason
from tests.daemon_world import GRACE_SECONDS, DaemonWorld, converged_world

KEPT = ("installed", "keep", "unchanged")


@pytest.fixture
def world(tmp_path: Path) -> DaemonWorld:
    """Return a daemon after one pass over a new key that is still being checked."""
    world = converged_world(tmp_path)
    world.backend.slow_texts = frozenset({"new:1"})
    world.source.keys["new"] = "new:1"
    world.run_pass()
    return world


def test_a_slow_check_does_not_delay_other_profiles(world: DaemonWorld) -> None:
    """While one key is pending, the agent restores missing profiles and installs other new keys."""
    world.source.keys["fast"] = "fast:1"
    del world.node.loaded["web"]
    world.run_pass()
    assert world.rows() == {
        "web": ("installed", "restore", "went missing"),
        "old": KEPT,
        "third": KEPT,
        "fast": ("installed", "install", "new"),
        "new": ("pending", "hold", "pending"),
    }
    assert world.loaded() == {"web", "old", "third", "fast"}


def test_a_node_with_a_pending_key_is_not_converged(world: DaemonWorld) -> None:
    """A node with a pending key is not converged."""
    assert (world.report.pending, world.report.converged) == (1, False)


def test_the_pass_after_the_check_installs_the_profile(world: DaemonWorld) -> None:
    """When the check of a pending key has finished, a pass installs the profile."""
    world.backend.slow_texts = frozenset()
    assert world.calls_for_pass(WakeReason.COMPILED)
    world.run_pass()
    assert world.rows()["new"] == ("installed", "install", "new")
    assert world.report.converged


def test_the_last_good_version_stays_while_an_update_is_checked(world: DaemonWorld) -> None:
    """While an update is checked, a missing last good version is restored."""
    world.backend.slow_texts = frozenset({"new:1", "web:2"})
    world.source.keys["web"] = "web:2"
    world.run_pass()
    assert world.rows()["web"] == ("outdated", "hold", "pending")
    del world.node.loaded["web"]
    world.run_pass()
    assert world.rows()["web"] == ("outdated", "restore", "went missing")
    assert world.node.loaded["web"] == b"compiled web:1"


def test_no_profile_is_removed_while_a_key_is_pending(world: DaemonWorld) -> None:
    """While a key is pending, no profile is removed."""
    del world.source.keys["old"]
    world.node.removed.clear()
    for _ in range(3):
        world.run_pass()
        world.clock.now += GRACE_SECONDS
    assert world.rows()["old"] == ("held", "hold", "pending")
    world.backend.slow_texts = frozenset()
    for _ in range(3):
        world.run_pass()
        world.clock.now += GRACE_SECONDS
    assert world.node.removed == ["old"]


def test_a_new_profile_waits_for_a_pending_key_that_may_declare_it(world: DaemonWorld) -> None:
    """A new profile waits for a pending key that may declare the same name."""
    world.backend.slow_texts = frozenset({"new,b:1"})
    world.source.keys |= {"new": "new,b:1", "other": "b:2"}
    world.run_pass()
    assert world.rows()["b"] == ("pending", "hold", "pending")
    world.backend.slow_texts = frozenset()
    world.run_pass()
    states = {row.key: row.state for row in world.report.profiles}
    assert (states["new"], states["other"]) == ("rejected", "rejected")
    assert "b" not in world.node.loaded


def test_a_pass_over_a_pending_key_reuses_no_report(world: DaemonWorld) -> None:
    """While a key is pending, a pass does not reuse the report of the previous pass."""
    first = world.run_pass()
    second = world.run_pass()
    assert second.pass_number == first.pass_number + 1
