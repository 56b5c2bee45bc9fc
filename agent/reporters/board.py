"""What the daemon's HTTP server shows: the last report, as metrics, probes and a page.

Rule: pages are made from the last report alone; the threads that serve them touch nothing else.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping

from agent.core.report import Report
from agent.reporters.metrics import Metrics
from agent.reporters.page import Passed, View, page


class Board:
    """Fulfils agent.reporters.http.Pages.

    beat: when the loop last turned (monotonic seconds). patience: how many seconds it may take
    for one turn. labels: those that are or may be on the Node.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        version: str,
        node: str,
        patience: float,
        labels: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.shown = metrics
        self.version = version
        self.node = node
        self.patience = patience
        self.labels = labels
        self.beat: Callable[[], float] = time.monotonic
        self.lost: Callable[[], int] = lambda: 0  # processes without the confinement they had
        self.report: Report | None = None
        self.at = 0.0  # when the last pass ended
        self.passes: deque[Passed] = deque(maxlen=20)

    def told(self, report: Report, at: float, *, passed: bool) -> None:
        """Take a report: of a pass, or the same one with other problems of the API."""
        before, self.report = self.report, report
        self.shown.confinement_lost(self.lost())
        if not passed:
            self.shown.shown(report)
            return
        self.at = at
        self.shown.passed(report, at)
        if before is not None and report.seconds is before.seconds:
            return  # nothing had changed: not worth a line among the last passes
        seconds = sum(report.seconds.values())
        self.passes.append(Passed(at=at, seconds=seconds, converged=report.converged))

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body of a scrape."""
        return self.shown.expose(accept)

    def health(self) -> str:
        """Return why the agent does not live: its loop has not turned for too long."""
        silent = time.monotonic() - self.beat()
        return f"the loop has not turned for {silent:.0f} s" if silent > self.patience else ""

    def ready(self) -> str:
        """Return why it is not ready: no complete look and pass since its start.

        Convergence is a metric and an alert: one bad key never blocks a rollout.
        """
        if self.report is None:
            return "no pass has ended yet"
        unseen = [kind for kind, one in self.report.supports.items() if one.state == "unknown"]
        return f"cannot look at {' and '.join(unseen)} on this node" if unseen else ""

    def status(self) -> str:
        """Return the page."""
        return page(
            View(
                version=self.version,
                node=self.node,
                report=self.report,
                labels=self.labels(),
                passes=tuple(self.passes),
                at=self.at,
            )
        )
