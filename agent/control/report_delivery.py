"""Completes the report of each pass, and delivers it to the publisher and the report sinks.

Some findings begin and end between passes, for example when a request to the API server fails. This
module adds these findings to the report of the last pass, and delivers the report again when they
change. The publisher receives a report only after a pass that found a change, so that the agent
sends no requests while the node is unchanged.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from agent.control.clock import Clock
from agent.core.findings import Finding
from agent.core.report import Report
from agent.core.vocabulary import SupportState


class StatusPublisher(Protocol):
    """Publishes labels and Events; agent.kube.publisher.Publisher implements this protocol."""

    findings: tuple[Finding, ...]
    """The findings about failures of the publisher itself."""

    def post(self, report: Report) -> None:
        """Queue a report for publication, and return immediately."""

    def labels_on_node(self) -> frozenset[str] | None:
        """Return the agent's labels that are or may be on the Node, or None if they are unknown."""


class ReportSink(Protocol):
    """Receives reports on the main thread."""

    def on_report(self, report: Report, at: float, /, *, passed: bool) -> None:
        """Process a report.

        Args:
            report: the complete report.
            at: the Unix time in seconds.
            passed: whether a pass has ended; False if only the findings have changed.
        """


class ReportDelivery:
    """Stores the last report, and delivers reports to their receivers. Only the main thread uses
    this class.
    """

    def __init__(
        self,
        *,
        publisher: StatusPublisher | None,
        sinks: Sequence[ReportSink],
        findings: Callable[[], tuple[Finding, ...]],
        clock: Clock,
    ) -> None:
        """Create an object that has no report yet.

        Args:
            publisher: receives each new report; None if no labels are published.
            sinks: receive each report, and receive it again when its findings change.
            findings: returns the current findings that do not belong to a pass.
            clock: the clock of the process.
        """
        self.publisher = publisher
        self.sinks = sinks
        self.findings = findings
        self.clock = clock
        self.report: Report | None = None
        """The complete report of the last pass."""

        # The report of the last pass, without the added findings.
        self._pass_report: Report | None = None

    def is_new(self, report: Report) -> bool:
        """Return whether a pass found any change since the previous pass."""
        return self._pass_report is None or report.pass_number != self._pass_report.pass_number

    def is_observed(self) -> bool:
        """Return whether the last pass could observe the node."""
        supports = self._pass_report.kind_support.values() if self._pass_report is not None else ()
        return all(support.state != SupportState.UNKNOWN for support in supports)

    def accept(self, report: Report) -> Report:
        """Complete the report of a pass, and queue it for publication if it is new."""
        complete = self._completed(report)
        if self.publisher is not None and self.is_new(report):
            self.publisher.post(complete)
            complete = self._completed(report)
        self._pass_report, self.report = report, complete
        return complete

    def deliver(self, *, passed: bool = True) -> None:
        """Deliver the last report to all sinks."""
        if self.report is not None:
            for sink in self.sinks:
                sink.on_report(self.report, self.clock.time(), passed=passed)

    def refresh(self) -> None:
        """Deliver the last report again if its findings have changed since the last delivery."""
        if self._pass_report is None or self.report is None:
            return
        complete = self._completed(self._pass_report)
        if complete.findings != self.report.findings:
            self.report = complete
            self.deliver(passed=False)

    def _completed(self, report: Report) -> Report:
        published = self.publisher.findings if self.publisher is not None else ()
        return replace(report, findings=(*report.findings, *published, *self.findings()))
