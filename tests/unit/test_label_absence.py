"""Tests of agent.control.label_absence in a daemon: each removal waits until its label is
absent.
"""

from pathlib import Path

import pytest

from agent.core.model import Missing, Snapshot, Unreadable
from agent.sources import limits
from agent.wake_queue import WakeReason
from tests.daemon_world import GRACE_SECONDS, UNREACHABLE, DaemonWorld, converged_world
from tests.reports import SET, D

ALL = {"web", "old", "third"}


@pytest.fixture
def world(tmp_path: Path) -> DaemonWorld:
    """Return a daemon that has installed and labelled three profiles."""
    return converged_world(tmp_path)


def test_a_profile_is_removed_a_grace_period_after_its_label(world: DaemonWorld) -> None:
    """The agent removes the label first, and removes the profile after the grace period."""
    del world.source.keys["old"]
    world.controller.run_pass()
    assert (world.labels(), world.loaded(), world.reason()) == (ALL, ALL, "label_pending")
    world.publish()
    assert world.labels() == {"web", "third"}
    assert world.calls_for_pass()
    world.run_pass()
    assert (world.reason(), world.loaded()) == ("label_pending", ALL)
    assert world.sleep() == GRACE_SECONDS
    world.run_pass()
    assert world.loaded() == {"web", "third"}
    assert world.node.removed == ["old"]


def test_a_due_removal_is_not_delayed_by_rounding(tmp_path: Path) -> None:
    """Rounding does not delay a removal, although (start + grace) - start may be less than the
    grace period.
    """
    world = converged_world(tmp_path, resync_seconds=1e9)
    del world.source.keys["old"]
    world.clock.now = 1000.004
    assert (world.clock.now + GRACE_SECONDS) - world.clock.now < GRACE_SECONDS
    world.run_pass()
    world.run_pass()
    world.sleep()
    world.run_pass()
    assert world.loaded() == {"web", "third"}


def test_no_profile_is_removed_while_its_label_cannot_be_removed(world: DaemonWorld) -> None:
    """While a label may still exist, its profile stays, even in a long outage of the API server."""
    del world.source.keys["old"]
    for _ in range(5):
        world.server.errors = [UNREACHABLE]
        world.run_pass()
        world.clock.now += 10 * GRACE_SECONDS
    assert (world.labels(), world.loaded()) == (ALL, ALL)


def test_a_lost_response_does_not_prove_that_a_label_is_absent(world: DaemonWorld) -> None:
    """If the response to a request was lost, the label may be set, so it does not count as
    absent.
    """
    world.source.keys["new"] = "new:1"
    world.controller.run_pass()
    world.server.lost = [UNREACHABLE]
    world.publisher.step()
    assert "new" in world.labels()
    del world.source.keys["new"]
    for _ in range(3):
        world.server.errors = [UNREACHABLE]
        world.controller.run_pass()
        world.publisher.step()
        world.clock.now += 10 * GRACE_SECONDS
    assert "new" in world.loaded() & world.labels()


def test_an_absent_label_stays_absent_during_an_outage(world: DaemonWorld) -> None:
    """A label that was absent before an outage stays absent during the outage, so the profile is
    removed.
    """
    del world.source.keys["old"]
    world.run_pass()
    world.controller.run_pass()
    world.watch.fail()
    world.clock.now += GRACE_SECONDS
    world.controller.run_pass()
    assert (world.publisher.labels_on_node(), world.loaded()) == (None, {"web", "third"})


def test_a_label_of_unknown_state_counts_as_present_during_an_outage(
    world: DaemonWorld,
) -> None:
    """During an outage, a label of unknown state counts as present, so the profile stays."""
    world.watch.fail()
    del world.source.keys["old"]
    for _ in range(4):
        world.controller.run_pass()
        world.clock.now += 10 * GRACE_SECONDS
    assert world.loaded() == ALL


def test_a_label_that_returns_starts_the_grace_period_again(world: DaemonWorld) -> None:
    """If another client sets a removed label, the grace period starts again after the next
    removal.
    """
    del world.source.keys["old"]
    world.run_pass()
    world.controller.run_pass()
    world.clock.now += GRACE_SECONDS - 1.0
    world.server.set_label(f"apparmor.{D}/old", "enforce", "profile-loader")
    world.watch.deliver()
    assert world.calls_for_pass(WakeReason.LABELS)
    world.controller.run_pass()
    world.publish()
    world.controller.run_pass()
    world.clock.now += 2.0
    world.run_pass()
    assert (world.labels(), world.loaded()) == ({"web", "third"}, ALL)
    world.clock.now += GRACE_SECONDS
    world.run_pass()
    assert world.loaded() == {"web", "third"}


def test_a_profile_that_is_desired_again_gets_its_label_back(world: DaemonWorld) -> None:
    """If a source contains a removed profile again, the agent sets its label again. A later grace
    period starts from the beginning.
    """
    del world.source.keys["old"]
    world.run_pass()
    world.controller.run_pass()
    world.source.keys["old"] = "old:1"
    world.run_pass()
    assert "old" in world.labels()
    world.clock.now += GRACE_SECONDS
    del world.source.keys["old"]
    world.controller.run_pass()
    assert world.reason() == "label_pending"
    world.publish()
    world.controller.run_pass()
    assert world.loaded() == ALL


def test_a_profile_in_use_loses_its_label_and_stays_loaded(world: DaemonWorld) -> None:
    """If a profile that is in use disappears from its source, the agent removes the label. The
    profile itself stays loaded for running pods.
    """
    world.node.used = {"old"}
    del world.source.keys["old"]
    for _ in range(3):
        world.run_pass()
        world.clock.now += GRACE_SECONDS
    assert (world.labels(), world.loaded()) == ({"web", "third"}, ALL)
    world.node.used = set()
    world.run_pass()
    assert world.loaded() == {"web", "third"}


def test_an_unreadable_source_does_not_bring_a_removed_label_back(world: DaemonWorld) -> None:
    """If a source becomes unavailable, the agent does not set a removed label again."""
    world.node.used = {"old"}
    del world.source.keys["old"]
    world.run_pass()
    world.run_pass()
    world.other_source.snapshot = Unreadable(profile_set="dir /p", reason="no permission")
    world.clock.now += GRACE_SECONDS
    world.run_pass()
    world.node.used = set()
    world.clock.now += GRACE_SECONDS
    world.run_pass()
    assert (world.labels(), world.loaded()) == ({"web", "third"}, ALL)


def test_a_label_stays_if_a_source_becomes_unreadable_before_it_was_removed(
    world: DaemonWorld,
) -> None:
    """If a source becomes unreadable before a label was removed, the label stays, because the
    source may contain the profile.
    """
    del world.source.keys["old"]
    world.controller.run_pass()
    world.other_source.snapshot = Unreadable(profile_set="dir /p", reason="no permission")
    world.run_pass()
    assert world.labels() == ALL


@pytest.mark.parametrize(
    "snapshot",
    [
        Missing(profile_set=SET, reason="gone"),
        Unreadable(profile_set=SET, reason="403"),
        limits.snapshot(SET, [], []),
    ],
)
def test_an_unavailable_source_removes_no_label_and_no_profile(
    world: DaemonWorld, snapshot: Snapshot
) -> None:
    """If a profile set is missing, unreadable or emptied, its profiles and labels stay."""
    world.source.snapshot = snapshot
    world.server.requests()
    for _ in range(3):
        world.run_pass()
        world.clock.now += GRACE_SECONDS
    assert world.labels() == world.loaded() == ALL
    assert world.server.requests() == []


def test_without_labels_a_removal_waits_for_the_grace_period_alone(tmp_path: Path) -> None:
    """Even if the agent sets no labels, a removal still waits for the grace period."""
    world = DaemonWorld(tmp_path, is_published=False)
    world.controller.run_pass()
    del world.source.keys["old"]
    world.controller.run_pass()
    assert (world.reason(), world.loaded()) == ("label_pending", ALL)
    assert world.sleep() == GRACE_SECONDS
    world.controller.run_pass()
    assert world.loaded() == {"web", "third"}


def test_a_profile_that_a_pod_references_stays(world: DaemonWorld) -> None:
    """A profile stays installed while a pod in the current list references it."""
    world.cluster.pods = {("apparmor", "old"): ("ns/pod",)}
    del world.source.keys["old"]
    for _ in range(3):
        world.run_pass()
        world.clock.now += GRACE_SECONDS
    assert "old" in world.loaded()
    world.cluster.pods = {}
    world.run_pass()
    assert "old" not in world.loaded()


def test_a_removal_that_becomes_due_during_a_pass_happens_in_the_next_pass(tmp_path: Path) -> None:
    """If a removal becomes due during a pass, the next pass runs at once and removes the
    profile.
    """
    world = converged_world(tmp_path, resync_seconds=1e9)
    del world.source.keys["old"]
    world.run_pass()
    world.run_pass()
    world.clock.now += GRACE_SECONDS - 1.0
    world.source.keys["web"] = "web:2"

    def take_30_seconds() -> None:
        world.clock.now += 30.0

    world.backend.during_install = take_30_seconds
    world.run_pass()
    assert world.sleep() == 0.0
    world.run_pass()
    assert world.loaded() == {"web", "third"}


def test_a_change_in_the_set_of_absent_labels_causes_a_pass(world: DaemonWorld) -> None:
    """A pass also runs if one label appears while another label disappears."""
    world.node.used = {"web"}
    world.source.keys = {"stays": "stays:1"}
    world.run_pass()
    world.controller.run_pass()
    assert not world.calls_for_pass(WakeReason.LABELS)
    old = f"apparmor.{D}/old"
    world.server.set_label(old, "enforce", "profile-loader")
    world.watch.deliver()
    assert world.calls_for_pass(WakeReason.LABELS)
    world.server.drop_label(old)
    world.server.set_label(f"apparmor.{D}/web", "enforce", "profile-loader")
    world.watch.deliver()
    assert world.calls_for_pass(WakeReason.LABELS)


def test_a_label_that_disappeared_during_an_outage_counts_once_the_node_is_readable(
    world: DaemonWorld,
) -> None:
    """A label that disappeared during an outage counts as absent when the Node is readable
    again.
    """
    world.watch.fail()
    del world.source.keys["old"]
    world.controller.run_pass()
    world.publisher.step()
    assert (world.labels(), world.publisher.labels_on_node()) == ({"web", "third"}, None)
    assert not world.calls_for_pass()
    world.watch.deliver()
    assert world.calls_for_pass(WakeReason.NODE)
    assert not world.calls_for_pass(WakeReason.NODE)
    world.controller.run_pass()
    assert world.sleep() == GRACE_SECONDS
