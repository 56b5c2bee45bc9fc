"""Tests of agent.controller, which decides when passes run and who receives their reports."""

import pytest

from agent.controller import STARTUP_SECONDS, NoCluster
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
def world(tmp_path):
    """Return a daemon that has installed and labelled three profiles."""
    return converged_world(tmp_path)


# --- reasons for a pass ---------------------------------------------------------------------------


def test_a_change_of_the_nodes_other_labels_calls_for_a_pass(world):
    """Heartbeats of the Node and the agent's own labels do not cause a pass, but other labels
    do.
    """
    assert not world.calls_for_pass(WakeReason.NODE)
    world.cluster.labels = {"pool": "b"}
    assert world.calls_for_pass(WakeReason.NODE)
    world.controller.run_pass()
    assert not world.calls_for_pass(WakeReason.NODE)


def test_changed_pods_call_for_a_pass_only_while_a_removal_waits(world):
    """Changed pods cause a pass only while a removal is waiting."""
    assert not world.calls_for_pass(WakeReason.PODS)
    world.source.keys = Unreadable(profile_set=SET, reason="403")
    world.run_pass()
    world.queue.reasons.clear()
    assert not world.calls_for_pass(WakeReason.PODS)
    world.source.keys = {"web": "web:1"}
    world.run_pass()
    assert world.calls_for_pass(WakeReason.PODS)


@pytest.mark.parametrize("reason", [WakeReason.KERNEL, WakeReason.FILES])
def test_the_agents_own_writes_call_for_no_pass(world, reason):
    """A write of the agent itself does not cause a pass."""
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
def test_every_other_reason_calls_for_a_pass(world, reason):
    """Each other wake reason causes a pass."""
    assert world.calls_for_pass(reason)


def test_one_pass_answers_all_reasons_of_a_burst(world):
    """One pass is enough for a burst of wake reasons."""
    for reason in (WakeReason.NODE, WakeReason.FILES, WakeReason.SOURCE):
        world.queue.put(reason)
    assert world.calls_for_pass()
    assert (world.queue.bursts, world.queue.reasons) == (1, [])


def test_equal_reasons_cause_one_check_of_the_node(world):
    """Several equal wake reasons cause a single check of the node."""
    world.backend.checks = 0
    reasons = [WakeReason.FILES, WakeReason.KERNEL, *[WakeReason.FILES] * 30, WakeReason.SOURCE]
    assert world.calls_for_pass(*reasons)
    assert world.backend.checks == 2


def test_the_first_loss_of_policy_is_repaired_at_once(world):
    """The first loss of policy is repaired at once, because containers may wait for the profile."""
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
def test_a_change_that_may_be_one_of_many_waits_for_the_end_of_the_burst(world, seconds, reasons):
    """A change right after a pass, or one of many files, waits for the end of the burst."""
    world.run_pass()
    world.queue.reasons.clear()
    world.clock.now += seconds
    world.node.loaded.clear()
    assert world.calls_for_pass(*reasons)
    assert world.queue.bursts == 1


# --- deadlines ------------------------------------------------------------------------------------


def test_a_due_pass_runs_before_the_reasons_are_read(world):
    """A pass that is due runs before the wake reasons are read."""
    world.clock.now += RESYNC_SECONDS
    assert world.calls_for_pass(WakeReason.SOURCE)
    assert world.queue.reasons == [WakeReason.SOURCE]


def test_a_change_of_the_node_without_a_notification_is_found_within_ten_seconds(world):
    """If a notification gets lost, the change is still found within ten seconds."""
    del world.node.loaded["web"]
    assert world.sleep() == 10.0
    world.run_pass()
    assert "web" in world.loaded()
    assert world.sleep() > 10.0


def test_a_node_that_cannot_be_observed_is_retried_less_and_less_often(world):
    """An unobservable node never counts as unchanged, so only retries cause a pass."""
    finding = Finding(code=FindingCode.KIND_UNOBSERVABLE, location="/sys", message="no")
    world.backend.unobservable = Unobservable(finding=finding)
    waits = []
    for _ in range(4):
        world.run_pass()
        waits.append(world.sleep())
    assert waits == [2.0, 4.0, 8.0, 16.0]


def test_everything_is_read_again_at_each_resync(world):
    """Nodes resync at different times. Between two full resyncs, a pass trusts stat signatures."""
    reads = world.source.full_reads
    world.run_pass()
    assert world.source.full_reads == reads
    world.clock.now = 1000.0
    assert 0.9 * RESYNC_SECONDS <= world.sleep() <= RESYNC_SECONDS
    world.run_pass()
    assert world.source.full_reads == reads + 1
    assert 0.9 * RESYNC_SECONDS <= world.sleep() <= RESYNC_SECONDS


def test_a_requested_full_pass_runs_once_even_if_its_wake_reason_is_lost(world):
    """SIGHUP causes a full pass, and the next pass trusts signatures again."""
    reads = world.source.full_reads
    world.controller.request_full_pass()
    assert world.queue.reasons == [WakeReason.REQUEST]
    world.queue.reasons.clear()
    world.run_pass()
    world.run_pass()
    assert world.source.full_reads == reads + 1


def test_a_failure_is_retried_less_and_less_often(world):
    """Retries of a failure become less frequent, and begin again after a success."""
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


def test_a_new_failure_is_retried_soon_however_long_another_one_has_lasted(tmp_path):
    """A new failure is retried soon, even if another failure has persisted for a long time."""
    world = converged_world(tmp_path, resync_seconds=100.0)
    world.other_source.keys = Unreadable(profile_set="dir /p", reason="no")
    for _ in range(9):
        world.controller.run_pass()
    assert world.sleep() >= 90.0
    world.backend.failure = WRITE_FAILED
    world.source.keys["new"] = "new:1"
    world.controller.run_pass()
    assert world.sleep() == 2.0


def test_an_unreadable_ledger_is_retried_soon(world):
    """An unreadable ledger is retried soon, because no notification reports its recovery."""
    world.ledger.failure = Finding(
        code=FindingCode.KIND_UNOBSERVABLE, location="/state", message="no"
    )
    for source in (world.source, world.other_source):
        source.keys = Missing(profile_set=source.profile_set, reason="no")
    assert world.controller.run_pass().profiles == ()
    assert world.sleep() == 2.0


def test_a_damaged_ledger_entry_is_reported_until_the_next_pass(world):
    """If a ledger entry is damaged, the first pass reports it, and a second pass follows."""
    damaged = min((world.path / "state/entries").iterdir())
    damaged.write_bytes(b"{")
    report = world.controller.run_pass()
    assert [finding.code for finding in report.findings] == ["ledger_damaged"]
    assert world.sleep() == 2.0
    assert world.controller.run_pass().findings == ()
    assert world.loaded() == {"web", "old", "third"}
    assert world.sleep() > 2.0


# --- reports --------------------------------------------------------------------------------------


def test_new_findings_of_the_publisher_are_delivered_once_without_a_pass(world):
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


def test_nothing_is_delivered_before_the_first_pass(tmp_path):
    """The publisher's findings are delivered only after the first pass."""
    world = DaemonWorld(tmp_path)
    world.publisher.findings = UNREACHABLE_NODE
    world.controller.reports.refresh()
    world.controller.reports.deliver()
    assert world.sink.received == []


def test_passes_over_an_unchanged_node_send_no_request(world):
    """A pass over an unchanged node returns the previous report, which is not published again."""
    first = world.run_pass()
    world.server.requests()
    again = [world.run_pass() for _ in range(3)]
    assert {report.pass_number for report in again} == {first.pass_number}
    assert world.server.requests() == []


def test_a_pass_over_an_unchanged_node_inspects_nothing(world):
    """If signatures and revisions are unchanged, a pass inspects nothing."""
    inspections, steps = world.backend.inspections, world.backend.steps.count
    world.run_pass()
    assert (world.backend.inspections, world.backend.steps.count) == (inspections, steps)


def test_the_report_of_an_unchanged_pass_is_delivered_too(world):
    """The metrics count every pass."""
    world.controller.run_pass()
    assert [passed for passed, _ in world.sink.received] == [True]


# --- the loop -------------------------------------------------------------------------------------


def test_the_first_pass_waits_for_the_first_answers_of_the_api_server(world):
    """The first pass waits until all first responses of the API server have arrived."""
    world.cluster.answers = [False, False, True]
    world.queue.later = [WakeReason.SOURCE] * 3
    world.controller.wait_for_sources()
    assert (world.cluster.answers, len(world.queue.later)) == ([], 1)


def test_the_first_pass_does_not_wait_long_for_a_silent_api_server(world):
    """The first pass does not wait long for the API server, because it may restore lost
    profiles.
    """
    begin = world.clock.now
    world.cluster.answers = [False] * 100
    world.controller.wait_for_sources()
    assert world.clock.now == begin + STARTUP_SECONDS


def test_without_a_cluster_the_first_pass_waits_for_nothing():
    """Without an API server, the first pass does not wait."""
    cluster = NoCluster()
    assert cluster.has_answered()
    assert (cluster.node_labels(), cluster.pods_by_profile()) == (None, None)


def test_the_heartbeat_goes_on_during_a_long_pass(world):
    """The heartbeat continues during a long pass, so that the loop does not look stuck."""
    silent = []

    def take_50_seconds():
        silent.append(world.heartbeat.silent_seconds())
        world.clock.now += 50.0

    world.backend.during_inspect = take_50_seconds
    world.controller.request_full_pass()
    world.controller.run_pass()
    assert silent == [0.0] * 3


def test_the_heartbeat_goes_on_during_a_long_wait(world):
    """The liveness of the loop does not depend on any event on the node."""
    world.sleep()
    assert max(world.queue.waits) == 10.0
    assert world.heartbeat.silent_seconds() == 0.0


def test_the_loop_runs_until_an_exception_ends_the_process(world):
    """The loop runs until an exception ends the process, for example from a signal handler."""

    class EndedError(BaseException):
        pass

    def end_after_three_passes():
        if len(world.sink.received) == 3:
            raise EndedError
        world.queue.put(WakeReason.SOURCE)

    world.sink.on_each = end_after_three_passes
    with pytest.raises(EndedError):
        world.controller.run()
    assert [passed for passed, _ in world.sink.received] == [True] * 3
