"""Tests of agent.control.confinement_checks in a daemon."""

from pathlib import Path

import pytest

from agent.control.repair_fights import FIGHT_REPAIRS
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.wake_queue import WakeReason
from tests.daemon_world import (
    GRACE_SECONDS,
    RESYNC_SECONDS,
    DaemonWorld,
    RecordingTracker,
    converged_world,
)

LOST = (Finding(code=FindingCode.CONFINEMENT_LOST, location="web", message="x"),)
OBSERVE_ALL = ("observe", ("old", "third", "web"))


@pytest.fixture
def tracker() -> RecordingTracker:
    """Return a fake tracker that records its calls."""
    return RecordingTracker()


@pytest.fixture
def world(tmp_path: Path, tracker: RecordingTracker) -> DaemonWorld:
    """Return a daemon that has a tracker and has installed and labelled three profiles."""
    world = converged_world(tmp_path, trackers={"apparmor": tracker})
    tracker.calls.clear()
    return world


def withdraw_a_used_profile(world: DaemonWorld) -> None:
    """Remove the key of a profile that is in use, and wait until the grace period has passed."""
    del world.source.keys["old"]
    world.node.used.add("old")
    world.run_pass()
    world.run_pass()
    world.clock.now += GRACE_SECONDS
    world.run_pass()


def test_removed_profiles_are_checked_before_the_processes_are_observed_again(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """A pass checks removed profiles before it observes processes again. The observation includes
    profiles that are in no source and are kept only because they may be in use.
    """
    tracker.problems = LOST
    del world.node.loaded["web"]
    del world.source.keys["old"]
    world.run_pass()
    assert tracker.calls == [("removed", ("web",)), OBSERVE_ALL]
    assert [finding.code for finding in world.report.findings] == ["confinement_lost"]


def test_lost_confinement_causes_an_event(world: DaemonWorld, tracker: RecordingTracker) -> None:
    """The publisher creates Events from the findings that the tracker adds to a report."""
    tracker.problems = LOST
    del world.node.loaded["web"]
    for _ in range(3):
        world.run_pass()
    assert "ConfinementLost" in [event["reason"] for event in world.server.events]


def test_on_an_unchanged_node_passes_observe_processes_only_at_each_resync(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """On an unchanged node, passes observe processes only at each resync, because an observation
    reads every process.
    """
    world.run_pass()
    assert tracker.calls == []
    world.clock.now += RESYNC_SECONDS
    world.run_pass()
    assert tracker.calls == [("removed", ()), OBSERVE_ALL]


def test_while_the_controller_waits_processes_are_observed_every_ten_seconds(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """While the controller waits, processes are observed every ten seconds, and new findings are
    delivered.
    """
    tracker.problems = LOST
    world.clock.now += RESYNC_SECONDS
    world.run_pass()
    tracker.calls.clear()
    world.queue.reasons.clear()
    world.sink.received.clear()
    world.queue.later, world.queue.later_seconds = [WakeReason.PODS] * 17, 2.0
    tracker.problems = ()
    assert not world.calls_for_pass()
    assert tracker.calls == [OBSERVE_ALL] * 3
    assert world.sink.received == [(False, ())]


def test_a_profile_is_removed_soon_after_its_last_process_ended(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """When the last process under a profile that is in no source exits, exactly one pass runs, even
    if it cannot remove the profile.
    """
    tracker.in_use = frozenset({"old"})
    withdraw_a_used_profile(world)
    assert world.reason() == "in_use"
    assert world.sleep() > 60.0
    world.run_pass()
    tracker.in_use = frozenset()
    assert world.sleep() == 10.0
    assert world.sleep() > 60.0
    world.node.used.clear()
    world.run_pass()
    assert world.loaded() == {"web", "third"}


def test_processes_are_not_observed_between_a_change_and_its_delayed_repair(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """Between a change of the node and its delayed repair, the daemon does not observe
    processes.
    """
    for _ in range(FIGHT_REPAIRS + 5):
        world.node.loaded["web"] = b"written by another program"
        if not world.calls_for_pass(WakeReason.KERNEL):
            world.sleep()
        world.run_pass()
    del world.node.loaded["web"]
    tracker.calls.clear()
    assert not world.calls_for_pass(WakeReason.KERNEL)
    assert world.sleep() > 10.0
    assert tracker.calls == []


def test_processes_of_an_undesired_profile_are_checked_if_another_program_removes_it(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """If another program removes a profile that is in no source, the daemon checks the processes
    that ran under this profile.
    """
    tracker.in_use = frozenset({"old"})
    withdraw_a_used_profile(world)
    assert (world.reason(), tracker.calls[-1]) == ("in_use", OBSERVE_ALL)
    tracker.calls.clear()
    del world.node.loaded["old"]
    world.run_pass()
    assert tracker.calls == [("removed", ("old",)), ("observe", ("third", "web"))]


def test_processes_are_checked_after_the_agent_itself_removed_a_profile(
    world: DaemonWorld, tracker: RecordingTracker
) -> None:
    """After the agent has removed a profile, the daemon checks its processes, because the
    conclusion that the profile was unused may be wrong.
    """
    del world.source.keys["old"]
    world.run_pass()
    world.run_pass()
    world.clock.now += GRACE_SECONDS
    tracker.calls.clear()
    world.run_pass()
    assert "old" not in world.node.loaded
    assert tracker.calls == [("removed", ("old",)), ("observe", ("third", "web"))]
