"""Stores the last report, and provides its content to the HTTP servers.

A page or a scrape is rendered on request, at most once per report, and is shared by all
connections. The server threads only read the last report, and never access the node.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agent.core.report import Report
from agent.core.vocabulary import SupportState
from agent.heartbeat import Heartbeat
from agent.reporting.metrics import Metrics
from agent.reporting.status_page import PassSummary, StatusView, page

METRICS_SECONDS: Final = 1.0  # the largest age at which rendered metrics are served again
# This is the number of formats whose rendered metrics are stored, because clients can request many
# formats.
FORMATS: Final = 4
LISTED_PASSES: Final = 20  # the number of recent passes on the status page


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """A rendered page."""

    report_number: int
    labels: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scrape:
    """Rendered metrics."""

    report_number: int
    at: float
    """When the metrics were rendered, in monotonic seconds."""
    content: bytes


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
    ) -> None:
        """Begin without a report.

        Args:
            metrics: the metrics of the process.
            version: the version of the agent.
            node: the name of the node, which is only shown to people.
            patience: after this number of seconds without a heartbeat, the agent is not alive.
            heartbeat: the heartbeat of the main loop.
            labels: returns the agent's labels that are or may be on the Node.
            unconfined_processes: returns how many processes lost their confinement.
        """
        self._metrics = metrics
        self._patience = patience
        self._labels = labels
        self._heartbeat = heartbeat
        self._unconfined_processes = unconfined_processes
        self._view = StatusView(version=version, node=node, report=None)
        self._report_number = 0  # the number of calls of on_report
        self._rendering = threading.Lock()
        self._page: _Page | None = None
        # the rendered metrics by content type, beginning with the oldest
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
        # The number changes last, so that a new number always belongs to a new view.
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
        """Return why the agent is not alive, or ""; the result depends only on the heartbeat."""
        silent = self._heartbeat.silent_seconds()
        return (
            f"no heartbeat from the main loop for {silent:.0f} s" if silent > self._patience else ""
        )

    def ready(self) -> str:
        """Return why the agent is not ready, or "" after a pass has observed the whole node.

        Readiness does not depend on convergence, so that an invalid key never blocks a rollout. If
        the node is not converged, a metric and an alert report this.
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

    def status(self) -> bytes:
        """Return the status page."""
        with self._rendering:
            number, labels = self._report_number, dict(self._labels())
            rendered = self._page
            if rendered is None or rendered.report_number != number or rendered.labels != labels:
                content = page(replace(self._view, labels=labels)).encode("utf-8", "replace")
                rendered = _Page(report_number=number, labels=labels, content=content)
                self._page = rendered
            return rendered.content
