"""Stores the last report, and provides its content to the HTTP servers.

A page or a scrape is rendered on request, at most once per report, and is shared by all
connections. The server threads only read the last report, and never access the node.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agent.core.report import Report, exit_status
from agent.core.vocabulary import SupportState
from agent.heartbeat import Heartbeat
from agent.reporting.json_report import public_document
from agent.reporting.metrics import Metrics
from agent.reporting.status_page import Page, PassSummary, StatusView, page

# Rendered metrics are served again until they have this age in seconds.
METRICS_SECONDS: Final = 1.0
# Rendered metrics are stored for at most this number of formats, because clients can request many
# formats.
FORMATS: Final = 4
LISTED_PASSES: Final = 20  # The number of recent passes on the status page.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """A rendered page."""

    report_number: int
    labels: Mapping[str, str]
    page: Page
    """The page without its last part."""
    ending: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scrape:
    """Rendered metrics."""

    report_number: int
    at: float
    """When the metrics were rendered, in monotonic seconds."""
    content: bytes


class _Documents:
    """The newest status page and the newest JSON report. Each of them is rendered only once per
    report.
    """

    def __init__(self, *, allow_unsupported: bool) -> None:
        self._allow_unsupported = allow_unsupported
        self._page: _Page | None = None
        self._json: tuple[int, bytes] | None = None

    def page(self, view: StatusView, number: int) -> _Page:
        """Return the page about the report with this number, and about the labels of the view."""
        current = self._page
        if current is None or (current.report_number, current.labels) != (number, view.labels):
            new = page(view)
            ending = new.ending.encode("utf-8", "replace")
            current = _Page(
                report_number=number,
                labels=view.labels,
                page=replace(new, ending=""),
                ending=ending,
            )
            self._page = current
        return current

    def json(self, view: StatusView, number: int) -> bytes:
        """Return the JSON of the report with this number; empty without a report."""
        if view.report is None:
            return b""
        if self._json is None or self._json[0] != number:
            status = exit_status(view.report, allow_unsupported=self._allow_unsupported)
            content = public_document(view.report, exit_status=status, domain=view.domain)
            self._json = (number, content)
        return self._json[1]


class StatusStore:
    """Provides the pages that agent.reporting.http_server serves.

    The main thread calls `on_report`. The server threads call all other methods.
    """

    def __init__(  # noqa: PLR0913 - what the pages show
        self,
        metrics: Metrics,
        *,
        version: str,
        node: str,
        patience: float,
        heartbeat: Heartbeat,
        labels: Callable[[], Mapping[str, str]],
        unconfined_processes: Callable[[], int],
        domain: str,
        runbook_url: str,
        allow_unsupported: bool,
    ) -> None:
        """Create a store that has no report yet.

        Args:
            metrics: the metrics of the process.
            version: the version of the agent.
            node: the name of the node, which is only shown to people.
            patience: after this number of seconds without a heartbeat, the agent is not alive.
            heartbeat: the heartbeat of the main loop.
            labels: returns the agent's labels that are or may be on the Node.
            unconfined_processes: returns how many processes lost their confinement.
            domain: the domain of the Node's labels.
            runbook_url: the address of docs/runbook.md; empty if no address is known.
            allow_unsupported: whether a node that does not support a kind can be converged.
        """
        self._metrics = metrics
        self._patience = patience
        self._labels = labels
        self._heartbeat = heartbeat
        self._unconfined_processes = unconfined_processes
        self._view = StatusView(
            version=version, node=node, report=None, domain=domain, runbook_url=runbook_url
        )
        self._documents = _Documents(allow_unsupported=allow_unsupported)
        self._report_number = 0  # The number of calls to on_report.
        self._rendering = threading.Lock()
        # Maps content types to rendered metrics; the oldest metrics come first.
        self._scrapes: dict[str, _Scrape] = {}

    def on_report(self, report: Report, at: float, *, passed: bool) -> None:
        """Replace the last report.

        Args:
            report: the new report.
            at: when the pass ended, in Unix seconds.
            passed: whether a new pass made the report; False if only the findings have changed.
        """
        view = self._view
        self._metrics.show_unconfined_processes(self._unconfined_processes())
        if passed:
            self._metrics.count_pass(report, at)
            is_new = view.report is None or report.pass_number != view.report.pass_number
            seconds = sum(report.seconds.values())
            summary = PassSummary(at=at, seconds=seconds, converged=report.converged)
            passes = (*view.passes, summary)[-LISTED_PASSES:] if is_new else view.passes
            self._view = replace(view, report=report, at=at, passes=passes)
        else:
            self._metrics.show_report(report)
            self._view = replace(view, report=report)
        # The number is changed last, so that no reader combines a new number with an old view.
        self._report_number += 1

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return the content type and the body for a scrape."""
        content_type, render = self._metrics.renderer(accept)
        with self._rendering:
            number, now = self._report_number, time.monotonic()
            scrape = self._scrapes.get(content_type)
            is_fresh = scrape is not None and now - scrape.at < METRICS_SECONDS
            if scrape is None or scrape.report_number != number or not is_fresh:
                self._scrapes.pop(content_type, None)
                for oldest in list(self._scrapes)[: len(self._scrapes) + 1 - FORMATS]:
                    del self._scrapes[oldest]
                scrape = _Scrape(report_number=number, at=now, content=render())
                self._scrapes[content_type] = scrape
            return content_type, scrape.content

    def health(self) -> str:
        """Return the reason why the agent is not alive, or "". The result depends only on the
        heartbeat.
        """
        silent = self._heartbeat.silent_seconds()
        return (
            f"no heartbeat from the main loop for {silent:.0f} s" if silent > self._patience else ""
        )

    def ready(self) -> str:
        """Return the reason why the agent is not ready, or "" after a pass has observed the whole
        node.

        Readiness does not depend on convergence, so that an invalid key never blocks a rollout. A
        metric and an alert report a node that is not converged.
        """
        report = self._view.report
        if report is None:
            return "no pass has ended yet"
        unobservable = [
            kind
            for kind, support in report.kind_support.items()
            if support.state == SupportState.UNKNOWN
        ]
        return f"cannot observe {' and '.join(unobservable)} on this node" if unobservable else ""

    def status(self) -> tuple[bytes, bytes]:
        """Return the beginning of the status page, which contains the age of the report, and the
        rest of the page.

        All connections share the rest, which is rendered once per report.
        """
        with self._rendering:
            number = self._report_number
            view = replace(self._view, labels=dict(self._labels()))
            current = self._documents.page(view, number)
        return current.page.opening(time.time()).encode("utf-8", "replace"), current.ending

    def json(self) -> bytes:
        """Return the JSON report of the last pass; empty before the first pass has ended."""
        with self._rendering:
            number = self._report_number
            return self._documents.json(self._view, number)
