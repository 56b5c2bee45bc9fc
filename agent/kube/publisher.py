"""Publishes reports to the API server in a separate thread: labels, startup taint and Events.

The main loop never waits for this thread. The thread takes the newest report from a mailbox with
room for one report. Labels are published before Events. The thread waits longer after each
consecutive failure. A new report does not shorten the wait, so that an overloaded API server
receives few requests.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.backoff import Backoff, RetryTimer
from agent.core.findings import Finding
from agent.core.report import Report
from agent.kube import node_findings
from agent.kube.errors import KubeError, StatusError
from agent.kube.event_sender import EventSender
from agent.kube.label_contention import LabelContention
from agent.kube.node_labels import NodeLabeler
from agent.kube.own_node import NodeMetadata, WrongNodeError
from agent.kube.reflector import Store

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
# The longest wait before the publisher sends rejected labels again.
REFUSED_LONGEST_SECONDS: Final = 600.0


@dataclass(slots=True)
class _Shared:
    """The state that the main thread and the publisher's thread share. The lock of the publisher
    protects this object.
    """

    report: Report | None = None
    report_number: int = 0
    """The number of reports that were posted."""
    pending_labels: frozenset[str] = frozenset()
    """The labels that result from a posted report, and that the Node may soon have."""
    node: NodeMetadata | None = None
    """The Node from the last response or from the last event of the watch, whichever is newer."""
    node_number: int = 0
    """The number of times that `node` has changed."""
    store_revision: int = -1
    """The revision of the store from which `node` was read."""
    has_work: bool = False


class Publisher:
    """Publishes reports for one Node.

    The main thread calls `post`, `notify`, `labels` and `labels_on_node`. The publisher's thread
    calls `step`.
    """

    def __init__(
        self,
        *,
        labeler: NodeLabeler,
        events: EventSender,
        store: Callable[[], Store[NodeMetadata]],
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """Create a publisher without starting its thread.

        Args:
            labeler: sets the labels.
            events: sends the Events.
            store: returns the store of the reflector of the Node.
            on_change: called after `findings` or the labels on the Node have changed.
            clock: returns the monotonic time in seconds.
        """
        self.labeler = labeler
        self.events = events
        self.store = store
        self.on_change = on_change
        self.findings: tuple[Finding, ...] = ()
        """The findings of the last attempt to publish labels."""
        self._contention = LabelContention(clock)
        self._retry = _retry_timer(LONGEST_SECONDS, clock)
        """The publisher sends no request before this time."""
        self._refused_retry = _retry_timer(REFUSED_LONGEST_SECONDS, clock)
        """The publisher does not send rejected labels again before this time."""
        self._lock = threading.Condition()
        self._shared = _Shared()

    # --- called by the agent's loop ---------------------------------------------------------------

    def post(self, report: Report) -> None:
        """Queue a report for publication, in place of a report that was not published yet."""
        with self._lock:
            self.events.add(report)
            shared = self._shared
            shared.report = report
            shared.report_number += 1
            desired = self.labeler.desired_labels(report, self._node())
            shared.pending_labels |= frozenset(desired.labels)
            shared.has_work = True
            self._lock.notify()

    def labels_on_node(self) -> frozenset[str] | None:
        """Return the labels with the agent's prefixes that are, or may soon be, on the Node.

        The result includes labels that other field managers own, because these labels also claim
        that a profile is installed. If the labels are unknown, the result is None.
        """
        with self._lock:
            node = self._node()
            if node is None or self.store().reason:
                return None
            return self.labeler.prefixed_labels(node) | self._shared.pending_labels

    def labels(self) -> Mapping[str, str]:
        """Return the agent's last known labels on the Node."""
        with self._lock:
            node = self._node()
            return self.labeler.own_labels(node) if node is not None else {}

    def notify(self) -> None:
        """Wake the thread after a change of the store."""
        with self._lock:
            self._shared.has_work = True
            self._lock.notify()

    def start(self) -> None:
        """Start the thread.

        When the process exits, the thread ends and leaves the labels unchanged.
        """
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while (seconds := self.seconds_until_due()) != 0:
                    self._lock.wait(seconds)
            self.step()

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `step` has something to do, or None if there is nothing to
        do.
        """
        if self._shared.has_work or self.events.has_events or self._retry.has_failed:
            return self._retry.seconds_left
        if not self.labeler.refused:
            return None
        return max(self._retry.seconds_left, self._refused_retry.seconds_left)

    def step(self) -> None:
        """Publish the labels, then remove the startup taint, and then send one Event."""
        findings: tuple[Finding, ...]
        before = (self.findings, self.labels_on_node())
        with self._lock:
            self._shared.has_work = False
        node_name = self.labeler.options.name
        try:
            findings = self._publish_labels()
        except WrongNodeError as error:
            findings = (node_findings.wrong_node(str(error), node_name),)
            self._retry.record_failure()
        except KubeError as error:
            findings = (node_findings.unreachable(error, node_name),)
            self._retry.record_failure(_retry_after(error))
            if self._is_about_labels_only(error):
                self._send_event()
        else:
            if self._send_event():
                self._retry.record_success()
        self.findings = findings
        if (self.findings, self.labels_on_node()) != before:
            self.on_change()

    def _is_about_labels_only(self, error: KubeError) -> bool:
        """Return whether the API server may accept an Event although it has rejected the labels."""
        return (
            isinstance(error, StatusError)
            and not error.is_temporary
            and self.labeler.identity.is_proven(self._shared.node)
        )

    def _publish_labels(self) -> tuple[Finding, ...]:
        with self._lock:
            shared = self._shared
            report, report_number = shared.report, shared.report_number
            node = self._node()
            node_number = shared.node_number
        if report is None:
            return self.findings
        if node is None:
            store = self.store()
            if store.objects is not None:
                raise WrongNodeError("there is no Node of this name")
            raise KubeError(store.reason or "the Node was not read yet")
        desired = self.labeler.desired_labels(report, node)
        contended = (node_findings.contended(self.labeler.options.name),)
        if self._must_wait(node, desired.labels):
            return (*desired.findings, *self.labeler.findings(), *contended)
        response = self._set_labels(node, desired.labels)
        with self._lock:
            if shared.node_number == node_number:  # The watch has not reported a newer Node yet.
                self._set_node(response)
            if shared.report_number == report_number:
                shared.pending_labels = frozenset(desired.labels)
        self.labeler.remove_startup_taint(response, report)
        return (
            *desired.findings,
            *self.labeler.findings(),
            *(contended if self._contention.is_contended else ()),
        )

    def _set_labels(self, node: NodeMetadata, desired: Mapping[str, str]) -> NodeMetadata:
        """Set the labels, and determine when to send rejected labels again."""
        if self._refused_retry.seconds_left == 0:
            self.labeler.retry_refused()
        refusals = self.labeler.refusals
        response = self.labeler.publish(node, desired)
        self._contention.record_applied(self.labeler.allowed_labels(response, desired))
        if not self.labeler.refused:
            self._refused_retry.record_success()
        elif self.labeler.refusals > refusals:
            self._refused_retry.record_failure()
        return response

    def _must_wait(self, node: NodeMetadata, desired: Mapping[str, str]) -> bool:
        """Return whether to delay the labels, because another client keeps removing them."""
        allowed = self.labeler.allowed_labels(node, desired)
        if not self._contention.must_wait(self.labeler.own_labels(node), allowed):
            return False
        with self._lock:
            self._shared.has_work = True
            self._retry.postpone(self._contention.next_restore_at)
        return True

    def _node(self) -> NodeMetadata | None:
        """Return the newest known Node. The caller must hold the lock."""
        store, shared = self.store(), self._shared
        if store.revision != shared.store_revision:
            shared.store_revision = store.revision
            self._set_node((store.objects or {}).get(self.labeler.options.name))
        return shared.node

    def _set_node(self, node: NodeMetadata | None) -> None:
        self._shared.node = node
        self._shared.node_number += 1

    def _send_event(self) -> bool:
        """Send the oldest Event, and return whether the next request may be sent without delay."""
        with self._lock:
            node = self._node()
        if node is None:
            return True
        try:
            self.events.send_oldest(self.labeler.options.name, node.uid)
        except KubeError as error:
            # A finding is not needed, because the labels are up to date.
            self._retry.record_failure(_retry_after(error))
            return False
        return True


def _retry_timer(longest_seconds: float, clock: Callable[[], float]) -> RetryTimer:
    backoff = Backoff(first_seconds=FIRST_SECONDS, longest_seconds=longest_seconds, jitter=0.5)
    return RetryTimer(backoff, clock)


def _retry_after(error: KubeError) -> float:
    """Return how many seconds the client must wait, according to the API server."""
    return error.retry_after if isinstance(error, StatusError) else 0.0
