"""Tests of agent.control.repair_fights, alone and in a daemon."""

from pathlib import Path

import pytest

from agent.control.repair_fights import (
    FIGHT_REPAIRS,
    FIGHT_SECONDS,
    LONGEST_PAUSE_SECONDS,
    RepairFights,
)
from agent.wake_queue import WakeReason
from tests.daemon_world import DaemonWorld, converged_world
from tests.reports import report, row

FOREIGN = b"written by another program"


@pytest.fixture
def world(tmp_path: Path) -> DaemonWorld:
    """Return a daemon that has installed and labelled three profiles."""
    return converged_world(tmp_path)


def fight(world: DaemonWorld, seconds: float) -> int:
    """Undo each repair for some time, and return the number of passes that ran."""
    passes, end = 0, world.clock.now + seconds
    while world.clock.now < end:
        world.node.loaded["web"] = FOREIGN
        if not world.calls_for_pass(WakeReason.KERNEL):
            world.sleep()
        world.run_pass()
        passes += 1
    return passes


def test_a_repair_fight_is_reported_and_repaired_with_growing_delays(world: DaemonWorld) -> None:
    """A repair fight is reported, and the delays between repairs grow. After a time without
    changes, repairs are immediate again.
    """
    for _ in range(FIGHT_REPAIRS):
        world.node.loaded["web"] = FOREIGN
        assert world.calls_for_pass(WakeReason.KERNEL)
        world.run_pass()
        assert world.node.loaded["web"] == b"compiled web:1"
    world.node.loaded["web"] = FOREIGN
    assert not world.calls_for_pass(WakeReason.KERNEL)
    assert world.sleep() == 1.0
    fight(world, 10.0)
    fought = [item.location for item in world.report.findings if item.code == "drift_fought"]
    assert fought == ["web"]
    assert fight(world, 600.0) < 10 * FIGHT_REPAIRS
    for _ in range(2):
        world.clock.now += FIGHT_SECONDS + LONGEST_PAUSE_SECONDS
        world.run_pass()
    assert world.report.findings == ()
    world.node.loaded["web"] = FOREIGN
    assert world.calls_for_pass(WakeReason.KERNEL)


def test_a_repair_fight_is_not_reported_after_its_end(tmp_path: Path) -> None:
    """After a repair fight has ended, a pass runs long before the resync and ends the finding."""
    world = converged_world(tmp_path, resync_seconds=1e6)
    began = world.clock.now
    for _ in range(FIGHT_REPAIRS):
        world.node.loaded["web"] = FOREIGN
        world.run_pass()
    world.sleep()
    world.run_pass()
    assert [item.code for item in world.report.findings] == ["drift_fought"]
    world.sleep()
    assert world.clock.now == began + FIGHT_SECONDS
    world.sink.received.clear()
    world.run_pass()
    assert world.sink.received == [(True, ())]
    assert world.report.converged
    assert world.sleep() > 1e5


def test_each_repair_of_content_in_two_keys_counts_once(world: DaemonWorld) -> None:
    """If two keys have the same content, the report has two rows but counts one repair."""
    world.source.keys |= {"copy": "web:1"}
    world.run_pass()
    for _ in range(FIGHT_REPAIRS - 1):
        world.node.loaded["web"] = FOREIGN
        world.run_pass()
        assert world.node.loaded["web"] == b"compiled web:1"
    assert world.report.findings == ()
    assert [row.is_repair for row in world.report.profiles if row.name == "web"] == [True, False]


def test_repair_fights_about_many_profiles_are_counted_separately() -> None:
    """The agent counts the repairs of each profile separately, so that fights about many profiles
    are possible.
    """
    fights, now = RepairFights(), 1000.0
    rows = [
        row(name=f"p{number}", action="restore", reason="went missing") for number in range(1500)
    ]
    for _ in range(FIGHT_REPAIRS):
        fights.record(report(*rows), now)
    assert len(fights.findings(now)) == 1500
    assert fights.paused_until == now + 1.0
    assert fights.findings(now + FIGHT_SECONDS) == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "replace", "reason": "changed"},
        {"action": "install", "reason": "new"},
        {"action": "restore", "reason": "went missing", "state": "failed"},
        {"action": "hold", "reason": "drifted"},
        # Of two keys with the same content, only the first key counts.
        {"action": "restore", "reason": "same content"},
    ],
)
def test_updates_and_failures_do_not_count_as_repairs(fields: dict[str, str]) -> None:
    """Updates and failed installations do not count as repairs."""
    fights, now = RepairFights(), 1000.0
    for _ in range(2 * FIGHT_REPAIRS):
        fights.record(report(row(**fields)), now)
    assert fights.findings(now) == ()
