"""Runs a pass at the start, after each possible change, and at each resync.

The controller is level-triggered: a wake reason only states that a pass may be needed. If a wake
reason is lost, the pass is delayed by at most one resync interval. Only the main thread changes the
node; other threads only add wake reasons to the wake queue. The process can exit at any moment
without affecting the node. The objects of the package agent.control manage the deadlines, the
repair fights, the absence of labels and the reports.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from agent.control.clock import Clock
from agent.control.confinement_checks import ConfinementChecks
from agent.control.label_absence import LabelAbsence, ProfileName, undesired
from agent.control.pass_schedule import NODE_CHECK_SECONDS, PassSchedule
from agent.control.repair_fights import RepairFights
from agent.control.report_delivery import ReportDelivery, ReportSink, StatusPublisher
from agent.core.findings import Finding
from agent.core.report import Report
from agent.heartbeat import Heartbeat
from agent.reconciler import Reconciler, RemovalConditions
from agent.wake_queue import WakeQueue, WakeReason

STARTUP_SECONDS: Final = 3.0
"""How long the first pass waits for the first responses of the API server, in seconds."""


class ClusterView(Protocol):
    """The last known state of the API server. No method waits for a response of the API server."""

    def has_answered(self) -> bool:
        """Return whether the first request of each reflector has succeeded or failed."""

    def node_labels(self) -> Mapping[str, str] | None:
        """Return the Node's labels that the agent does not own, or None if they are unknown."""

    def pods_by_profile(self) -> Mapping[ProfileName, tuple[str, ...]] | None:
        """Return the pods of this node that reference each profile, or None if the pods are
        unknown.
        """


class NoCluster:
    """The state that an agent without a connection to an API server knows."""

    def has_answered(self) -> bool:
        """Return True, because the agent sends no requests."""
        return True

    def node_labels(self) -> None:
        """Return None, because the labels are unknown."""

    def pods_by_profile(self) -> None:
        """Return None, because the pods are unknown."""


class Controller:
    """Runs passes until the process ends. Any thread may call `request_full_pass`; only the main
    thread may call the other methods.
    """

    def __init__(  # noqa: PLR0913 - the parts of a daemon
        self,
        *,
        reconciler: Reconciler,
        wake_queue: WakeQueue,
        cluster: ClusterView,
        publisher: StatusPublisher | None,
        confinement: ConfinementChecks,
        sinks: Sequence[ReportSink],
        resync_seconds: float,
        label_domain: str,
        heartbeat: Heartbeat,
        clock: Clock,
    ) -> None:
        """Build a controller that has not run a pass yet.

        Args:
            reconciler: runs one pass.
            wake_queue: the wake reasons from other threads.
            cluster: the last known state of the API server.
            publisher: publishes reports to the API server; None if no labels are published.
            confinement: reports processes that have lost their confinement.
            sinks: receive each report.
            resync_seconds: the interval after which a pass reads everything again.
            label_domain: the domain of the agent's labels.
            heartbeat: beats while the loop runs.
            clock: the clock of the process.
        """
        self.reconciler = reconciler
        self.wake_queue = wake_queue
        self.cluster = cluster
        self.confinement = confinement
        self.heartbeat = heartbeat
        self.schedule = PassSchedule(resync_seconds=resync_seconds)
        self.fights = RepairFights()
        self.label_absence = LabelAbsence(
            domain=label_domain,
            labels_on_node=publisher.labels_on_node if publisher is not None else frozenset,
        )
        self.reports = ReportDelivery(
            publisher=publisher, sinks=sinks, findings=self._findings, clock=clock
        )
        # The labels at the start of the last pass.
        self._node_labels: Mapping[str, str] | None = None

    def run(self) -> None:
        """Run passes until an exception ends the process, for example in a signal handler."""
        self.wait_for_sources()
        while True:
            self.run_pass()
            self.wait()

    def request_full_pass(self) -> None:
        """Make the next pass read everything, without trusting signatures.

        Any thread may call this method.
        """
        self.schedule.request_full_pass()
        self.wake_queue.put(WakeReason.REQUEST)

    def wait_for_sources(self) -> None:
        """Wait a short time for the sources, so that the first pass can read their profiles."""
        end = self.heartbeat.beat() + STARTUP_SECONDS
        while not self.cluster.has_answered() and self.heartbeat.beat() < end:
            self.wake_queue.wait(end - self.heartbeat.beat())

    def run_pass(self) -> Report:
        """Run one pass, deliver its report, and compute when the next pass is due."""
        began = self.heartbeat.beat()
        self._node_labels = self.cluster.node_labels()
        self.label_absence.update(self.reports.report, began)
        is_full = self.schedule.begin_pass(began)
        pass_report = self.reconciler.run(full=is_full, conditions=self._conditions(began))
        if is_full or self.reports.is_new(pass_report):
            self.confinement.end_pass(pass_report)
            self.schedule.record_node_check(self.heartbeat.beat())
        self.fights.record(pass_report, self.heartbeat.beat())
        report = self.reports.accept(pass_report)
        now = self.heartbeat.beat()
        self.label_absence.update(report, now)
        self.schedule.end_pass(pass_report, now, self._deadlines(began, now))
        self.reports.deliver()
        self.schedule.begin_burst(self.heartbeat.beat())
        return report

    def wait(self) -> None:
        """Wait until a pass is due or something may have changed."""
        while not self._has_unreported_change():
            seconds_left = self.schedule.next_pass - self.heartbeat.beat()
            if seconds_left <= 0:
                return
            reasons = self.wake_queue.wait(min(seconds_left, NODE_CHECK_SECONDS))
            calling = {reason for reason in reasons if self._calls_for_pass(reason)}
            if not calling:
                continue
            # A container that references a missing profile cannot start until the agent restores
            # the profile. Therefore, the agent repairs a single change of the kernel's policy at
            # once, and treats further changes right after a pass as a burst.
            is_single = calling == {WakeReason.KERNEL}
            if not is_single or self.schedule.is_in_burst(self.heartbeat.beat()):
                self.wake_queue.discard_burst()
            return

    def _calls_for_pass(self, reason: WakeReason) -> bool:
        """Return whether a pass is needed after a possible change."""
        now = self.heartbeat.beat()
        match reason:
            # A change of the Node may also show that a label is absent.
            case WakeReason.NODE:
                is_changed = self.cluster.node_labels() != self._node_labels
                return self.label_absence.update(self.reports.report, now) or is_changed
            case WakeReason.PODS:
                return bool(undesired(self.reports.report))
            case WakeReason.KERNEL | WakeReason.FILES:
                return now >= self.fights.paused_until and not self.reconciler.is_unchanged()
            case WakeReason.LABELS:
                self.reports.refresh()
                return self.label_absence.update(self.reports.report, now)
            case _:
                return True

    def _has_unreported_change(self) -> bool:
        """Return whether the node has changed, even if no wake reason reported a change.

        Notifications can get lost, and the kernel does not report the end of a process or the loss
        of its confinement. This method observes processes only while the node is unchanged. If a
        profile was removed since the last pass, the previous observation must be kept, because it
        shows which processes ran under the profile.
        """
        now = self.heartbeat.beat()
        if not self.schedule.is_node_check_due(now):
            return False
        self.schedule.record_node_check(now)
        if not self.reconciler.is_unchanged():
            # If the last pass could not observe the node, the next pass is the retry of that
            # failure.
            return now >= self.fights.paused_until and self.reports.is_observed()
        self.confinement.observe()
        self.reports.refresh()
        return self.confinement.has_newly_unused(self.reports.report)

    def _conditions(self, now: float) -> RemovalConditions:
        return RemovalConditions(
            label_absent_seconds=self.label_absence.seconds(now),
            pods_by_profile=self.cluster.pods_by_profile(),
        )

    def _deadlines(self, began: float, now: float) -> list[float]:
        """Return the times at which a pass is needed for a removal or for the end of a repair
        fight.

        If a removal became due during the pass, its time in the result has already passed, so that
        another pass follows immediately.
        """
        removals = self.label_absence.removal_times(self.reconciler.options.grace_seconds)
        return [
            *(time for time in removals if time > began),
            *(time for time in self.fights.deadlines() if time > now),
        ]

    def _findings(self) -> tuple[Finding, ...]:
        """Return the findings that do not belong to a pass."""
        now = self.heartbeat.beat()
        return (*self.fights.findings(now), *self.confinement.findings())
