"""Tests of agent.controller, which decides when passes run and who receives their reports."""

from pathlib import Path

import pytest

from agent.controller import STARTUP_SECONDS, ClusterView, NoCluster
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import Missing, Unobservable, Unreadable
from agent.core.ports import Failed
from agent.wake_queue import BURST_SECONDS, WakeReason
from tests.daemon_world import RESYNC_SECONDS, DaemonWorld, converged_world
from tests.reports import SET

UNREACHABLE_NODE = (Finding(code=FindingCode.NODE_UNREACHABLE, location="n", message="x"),)
WRITE_FAILED = Failed(finding=Finding(code=FindingCode.WRITE_FAILED, location="new", message="no"))


@pytest.fixture
def world(tmp_path: Path) -> DaemonWorld:
    """Return a daemon that has installed and labelled three profiles."""
    return converged_world(tmp_path)


# --- reasons for a pass ---------------------------------------------------------------------------


def test_a_change_of_other_node_labels_causes_a_pass(world: DaemonWorld) -> None:
    """A change of other labels of the Node causes a pass. Heartbeats and the agent's labels cause
    no pass.
    """
    assert not world.calls_for_pass(WakeReason.NODE)
    world.cluster.labels = {"pool": "b"}
    assert world.calls_for_pass(WakeReason.NODE)
    world.controller.run_pass()
    assert not world.calls_for_pass(WakeReason.NODE)


def test_changed_pods_cause_a_pass_only_while_a_removal_waits(world: DaemonWorld) -> None:
    """Changed pods cause a pass only while a removal is waiting."""
    assert not world.calls_for_pass(WakeReason.PODS)
    world.source.snapshot = Unreadable(profile_set=SET, reason="403")
    world.run_pass()
    world.queue.reasons.clear()
    assert not world.calls_for_pass(WakeReason.PODS)
    world.source.snapshot = None
    world.source.keys = {"web": "web:1"}
    world.run_pass()
    assert world.calls_for_pass(WakeReason.PODS)


@pytest.mark.parametrize("reason", [WakeReason.KERNEL, WakeReason.FILES])
def test_writes_by_the_agent_cause_no_pass(world: DaemonWorld, reason: WakeReason) -> None:
    """The daemon ignores notifications about its own writes."""
    assert not world.calls_for_pass(reason)
    del world.node.loaded["web"]
    assert world.calls_for_pass(reason)
    world.run_pass()
    world.queue.reasons.clear()
    assert "web" in world.loaded()
    assert not world.calls_for_pass(reason)


@pytest.mark.parametrize(
    "reason", [WakeReason.SOURCE, WakeReason.COMPILED, WakeReason.REQUEST, WakeReason.SIGNAL]
)
def test_every_other_reason_causes_a_pass(world: DaemonWorld, reason: WakeReason) -> None:
    """Each of the other wake reasons causes a pass."""
    assert world.calls_for_pass(reason)


def test_a_burst_of_reasons_causes_one_pass(world: DaemonWorld) -> None:
    """One pass is enough for a burst of wake reasons."""
    for reason in (WakeReason.NODE, WakeReason.FILES, WakeReason.SOURCE):
        world.queue.put(reason)
    assert world.calls_for_pass()
    assert (world.queue.bursts, world.queue.reasons) == (1, [])


def test_equal_reasons_cause_one_check_of_the_node(world: DaemonWorld) -> None:
    """Several equal wake reasons cause a single check of the node."""
    world.backend.checks = 0
    reasons = [WakeReason.FILES, WakeReason.KERNEL, *[WakeReason.FILES] * 30, WakeReason.SOURCE]
    assert world.calls_for_pass(*reasons)
    assert world.backend.checks == 2


def test_the_first_loss_of_policy_is_repaired_at_once(world: DaemonWorld) -> None:
    """The first time that a profile disappears, the daemon restores it immediately, because
    containers may need it.
    """
    world.run_pass()
    world.queue.reasons.clear()
    world.clock.now += BURST_SECONDS
    world.node.loaded.clear()
    assert world.calls_for_pass(WakeReason.KERNEL)
    assert world.queue.bursts == 0


@pytest.mark.parametrize(
    ("seconds", "reasons"),
    [(0.1, [WakeReason.KERNEL]), (1.0, [WakeReason.SOURCE, WakeReason.KERNEL])],
)
def test_a_change_in_a_burst_waits_for_the_end_of_the_burst(
    world: DaemonWorld, seconds: float, reasons: list[WakeReason]
) -> None:
    """A change right after a pass, or a change of many files, waits for the end of the burst."""
    world.run_pass()
    world.queue.reasons.clear()
    world.clock.now += seconds
    world.node.loaded.clear()
    assert world.calls_for_pass(*reasons)
    assert world.queue.bursts == 1


# --- deadlines ------------------------------------------------------------------------------------


def test_a_due_pass_runs_before_the_reasons_are_read(world: DaemonWorld) -> None:
    """A pass that is due runs before the wake reasons are read."""
    world.clock.now += RESYNC_SECONDS
    assert world.calls_for_pass(WakeReason.SOURCE)
    assert world.queue.reasons == [WakeReason.SOURCE]


def test_a_change_without_a_notification_is_noticed_within_ten_seconds(
    world: DaemonWorld,
) -> None:
    """If a notification is lost, the daemon still notices the change within ten seconds."""
    del world.node.loaded["web"]
    assert world.sleep() == 10.0
    world.run_pass()
    assert "web" in world.loaded()
    assert world.sleep() > 10.0


def test_an_unobservable_node_is_observed_again_with_growing_delays(world: DaemonWorld) -> None:
    """The daemon retries an unobservable node with growing delays. Such a node never counts as
    unchanged.
    """
    finding = Finding(code=FindingCode.KIND_UNOBSERVABLE, location="/sys", message="no")
    world.backend.unobservable = Unobservable(finding=finding)
    waits = []
    for _ in range(4):
        world.run_pass()
        waits.append(world.sleep())
    assert waits == [2.0, 4.0, 8.0, 16.0]


def test_all_files_are_read_again_at_each_resync(world: DaemonWorld) -> None:
    """At each resync, a pass reads all files again. Between resyncs, passes trust stat signatures.
    Nodes resync at different times.
    """
    reads = world.source.full_reads
    world.run_pass()
    assert world.source.full_reads == reads
    world.clock.now = 1000.0
    assert 0.9 * RESYNC_SECONDS <= world.sleep() <= RESYNC_SECONDS
    world.run_pass()
    assert world.source.full_reads == reads + 1
    assert 0.9 * RESYNC_SECONDS <= world.sleep() <= RESYNC_SECONDS


def test_a_requested_full_pass_runs_once_even_if_its_wake_reason_is_lost(
    world: DaemonWorld,
) -> None:
    """SIGHUP requests one full pass, which runs even if its wake reason is lost. Later passes trust
    signatures again.
    """
    reads = world.source.full_reads
    world.controller.request_full_pass()
    assert world.queue.reasons == [WakeReason.REQUEST]
    world.queue.reasons.clear()
    world.run_pass()
    world.run_pass()
    assert world.source.full_reads == reads + 1


def test_a_failure_is_retried_with_growing_delays(world: DaemonWorld) -> None:
    """The delays between retries of a failure grow. After a success, the retry delay is reset to
    its initial value.
    """
    world.backend.failure = WRITE_FAILED
    world.source.keys["new"] = "new:1"
    waits = []
    for _ in range(4):
        world.controller.run_pass()
        waits.append(world.sleep())
    assert waits == [2.0, 4.0, 8.0, 16.0]
    world.backend.failure = None
    world.run_pass()
    assert "new" in world.loaded()
    world.backend.failure = WRITE_FAILED
    world.source.keys["newer"] = "newer:1"
    world.controller.run_pass()
    assert world.sleep() == 2.0


def test_a_new_failure_is_retried_soon_despite_an_old_failure(tmp_path: Path) -> None:
    """The daemon retries a new failure soon, even if another failure has persisted for a
    long time.
    """
    world = converged_world(tmp_path, resync_seconds=100.0)
    world.other_source.snapshot = Unreadable(profile_set="dir /p", reason="no")
    for _ in range(9):
        world.controller.run_pass()
    assert world.sleep() >= 90.0
    world.backend.failure = WRITE_FAILED
    world.source.keys["new"] = "new:1"
    world.controller.run_pass()
    assert world.sleep() == 2.0


def test_an_unreadable_ledger_is_retried_soon(world: DaemonWorld) -> None:
    """The daemon soon reads an unreadable ledger again, because no notification reports its
    recovery.
    """
    world.ledger.failure = Finding(
        code=FindingCode.KIND_UNOBSERVABLE, location="/state", message="no"
    )
    for source in (world.source, world.other_source):
        source.snapshot = Missing(profile_set=source.profile_set, reason="no")
    assert world.controller.run_pass().profiles == ()
    assert world.sleep() == 2.0


def test_a_damaged_ledger_entry_is_reported_until_the_next_pass(world: DaemonWorld) -> None:
    """The first pass reports a damaged ledger entry, and a second pass follows."""
    damaged = min((world.path / "state/entries").iterdir())
    damaged.write_bytes(b"{")
    report = world.controller.run_pass()
    assert [finding.code for finding in report.findings] == ["ledger_damaged"]
    assert world.sleep() == 2.0
    assert world.controller.run_pass().findings == ()
    assert world.loaded() == {"web", "old", "third"}
    assert world.sleep() > 2.0


# --- reports --------------------------------------------------------------------------------------


def test_new_findings_of_the_publisher_are_delivered_once_without_a_pass(
    world: DaemonWorld,
) -> None:
    """The start and the end of a problem are each reported once, without a pass."""
    world.controller.run_pass()
    world.sink.received.clear()
    world.publisher.findings = UNREACHABLE_NODE
    assert not any(world.calls_for_pass(WakeReason.LABELS) for _ in range(3))
    assert world.sink.received == [(False, ("node_unreachable",))]
    assert world.report.findings == UNREACHABLE_NODE
    world.publisher.findings = ()
    assert not world.calls_for_pass(WakeReason.LABELS)
    assert world.sink.received[1:] == [(False, ())]
    world.controller.run_pass()
    assert world.sink.received[2:] == [(True, ())]


def test_nothing_is_delivered_before_the_first_pass(tmp_path: Path) -> None:
    """The daemon delivers the publisher's findings only after the first pass."""
    world = DaemonWorld(tmp_path)
    world.publisher.findings = UNREACHABLE_NODE
    world.controller.reports.refresh()
    world.controller.reports.deliver()
    assert world.sink.received == []


def test_passes_over_an_unchanged_node_send_no_request(world: DaemonWorld) -> None:
    """A pass over an unchanged node returns the previous report, and the publisher sends no
    request.
    """
    first = world.run_pass()
    world.server.requests()
    again = [world.run_pass() for _ in range(3)]
    assert {report.pass_number for report in again} == {first.pass_number}
    assert world.server.requests() == []


def test_a_pass_over_an_unchanged_node_inspects_nothing(world: DaemonWorld) -> None:
    """If signatures and revisions are unchanged, a pass inspects nothing."""
    inspections, steps = world.backend.inspections, world.backend.steps.count
    world.run_pass()
    assert (world.backend.inspections, world.backend.steps.count) == (inspections, steps)


def test_the_report_of_an_unchanged_pass_is_delivered_too(world: DaemonWorld) -> None:
    """The report of an unchanged pass is also delivered, because the metrics count every pass."""
    world.controller.run_pass()
    assert [passed for passed, _ in world.sink.received] == [True]


# --- the loop -------------------------------------------------------------------------------------


def test_the_first_pass_waits_for_the_first_responses_of_the_api_server(world: DaemonWorld) -> None:
    """The first pass waits until the API server has responded to the first request of each type."""
    world.cluster.answers = [False, False, True]
    world.queue.later = [WakeReason.SOURCE] * 3
    world.controller.wait_for_sources()
    assert (world.cluster.answers, len(world.queue.later)) == ([], 1)


def test_the_first_pass_does_not_wait_long_for_a_silent_api_server(world: DaemonWorld) -> None:
    """The first pass does not wait long for an unresponsive API server, because the pass may have
    to restore missing profiles.
    """
    begin = world.clock.now
    world.cluster.answers = [False] * 100
    world.controller.wait_for_sources()
    assert world.clock.now == begin + STARTUP_SECONDS


def test_without_a_cluster_the_first_pass_does_not_wait() -> None:
    """If no API server is configured, the first pass does not wait."""
    view: ClusterView = NoCluster()
    assert view.has_answered()
    assert (view.node_labels(), view.pods_by_profile()) == (None, None)


def test_the_heartbeat_continues_during_a_long_pass(world: DaemonWorld) -> None:
    """The heartbeat continues during a long pass, so that the loop does not look stuck."""
    silent = []

    def take_50_seconds() -> None:
        silent.append(world.heartbeat.silent_seconds())
        world.clock.now += 50.0

    world.backend.during_inspect = take_50_seconds
    world.controller.request_full_pass()
    world.controller.run_pass()
    assert silent == [0.0] * 3


def test_the_heartbeat_continues_during_a_long_wait(world: DaemonWorld) -> None:
    """The heartbeat continues during a long wait, so liveness does not depend on events on the
    node.
    """
    world.sleep()
    assert max(world.queue.waits) == 10.0
    assert world.heartbeat.silent_seconds() == 0.0


def test_the_loop_runs_until_an_exception_ends_the_process(world: DaemonWorld) -> None:
    """The loop runs until an exception stops the process, for example from a signal handler."""

    class EndedError(BaseException):
        pass

    def end_after_three_passes() -> None:
        if len(world.sink.received) == 3:
            raise EndedError
        world.queue.put(WakeReason.SOURCE)

    world.sink.on_each = end_after_three_passes
    with pytest.raises(EndedError):
        world.controller.run()
    assert [passed for passed, _ in world.sink.received] == [True] * 3
