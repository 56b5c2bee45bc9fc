"""The content that the daemon's HTTP servers serve: the last report as metrics, probes and a page.

Each rendering is made on request, at most once per report, and shared by all connections. The
threads of the servers read nothing but the last report, and never touch the node.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agent.core.report import Report
from agent.core.vocabulary import SupportState
from agent.heartbeat import Heartbeat
from agent.reporting.metrics import Metrics
from agent.reporting.status_page import PassSummary, StatusView, page

METRICS_SECONDS: Final = 1.0  # the age up to which a rendering of the metrics is served
FORMATS: Final = 4  # renderings of the metrics that are kept: clients choose among many formats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """A rendered page, and what it was rendered from."""

    number: int
    labels: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scrape:
    """Rendered metrics, and what they were rendered from."""

    number: int
    at: float  # monotonic seconds
    content: bytes


class StatusStore:
    """Fulfils agent.reporting.http_server.Pages.

    `told` is called by the main thread; everything else by the threads of the servers.
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
        """Show no report yet.

        Args:
            metrics: the counters and gauges of the process.
            version: of the agent.
            node: the name of the node, for people.
            patience: seconds that one turn of the daemon's loop may take.
            heartbeat: the sign of life of the daemon's loop.
            labels: the agent's labels that are or may be on the Node.
            unconfined_processes: returns how many processes lost their confinement.
        """
        self.shown = metrics
        self.patience = patience
        self.labels = labels
        self.heartbeat = heartbeat
        self.unconfined_processes = unconfined_processes
        self._view = StatusView(version=version, node=node, report=None)
        self._number = 0  # of reports that were told
        self._passes: deque[PassSummary] = deque(maxlen=20)
        self._rendering = threading.Lock()
        self._page: _Page | None = None
        self._scrapes: dict[str, _Scrape] = {}  # by content type, the oldest first

    def on_report(self, report: Report, at: float, *, passed: bool) -> None:
        """Take a report: of a pass, or the same one with other problems of the API."""
        before = self._view.report
        self.shown.confinement_lost(self.unconfined_processes())
        if passed:
            self.shown.passed(report, at)
            if before is None or report.pass_number != before.pass_number:
                seconds = sum(report.seconds.values())
                self._passes.append(PassSummary(at=at, seconds=seconds, converged=report.converged))
        else:
            self.shown.shown(report)
        at = at if passed else self._view.at
        self._view = replace(self._view, report=report, passes=tuple(self._passes), at=at)
        self._number += 1  # last: what is rendered from now on shows the new report

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body of a scrape."""
        content_type, render = self.shown.renderer(accept)
        with self._rendering:
            number, now = self._number, time.monotonic()
            known = self._scrapes.get(content_type)
            if known is None or known.number != number or now - known.at >= METRICS_SECONDS:
                self._scrapes.pop(content_type, None)
                for oldest in list(self._scrapes)[: len(self._scrapes) + 1 - FORMATS]:
                    del self._scrapes[oldest]
                known = _Scrape(number=number, at=now, content=render())
                self._scrapes[content_type] = known
            return content_type, known.content

    def health(self) -> str:
        """Return why the agent is not alive: its loop has not turned for too long."""
        silent = self.heartbeat.silent_seconds()
        return f"the loop has not turned for {silent:.0f} s" if silent > self.patience else ""

    def ready(self) -> str:
        """Return why the agent is not ready: no complete observation and pass since its start.

        Convergence is a metric and an alert: one bad key never blocks a rollout.
        """
        report = self._view.report
        if report is None:
            return "no pass has ended yet"
        unseen = [
            kind for kind, one in report.kind_support.items() if one.state == SupportState.UNKNOWN
        ]
        return f"cannot look at {' and '.join(unseen)} on this node" if unseen else ""

    def status(self) -> bytes:
        """Return the status page."""
        with self._rendering:
            number, labels = self._number, dict(self.labels())
            known = self._page
            if known is None or known.number != number or known.labels != labels:
                content = page(replace(self._view, labels=labels)).encode("utf-8", "replace")
                known = self._page = _Page(number=number, labels=labels, content=content)
            return known.content
