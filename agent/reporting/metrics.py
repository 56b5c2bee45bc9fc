"""Counts the events of one process, and renders all metrics for Prometheus.

Names and units follow the Prometheus conventions; docs/metrics.md lists every metric. Each scrape
shows one complete report, and never a mixture of two reports. The gauges are in
agent.reporting.report_metrics.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.core.report import ProfileStatus, Report, is_converged
from agent.core.vocabulary import INSTALLS, ActionName, ProfileState, Reason
from agent.reporting.report_metrics import ReportCollector

_PASS_SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
_PARSER_SECONDS: Final = (0.05, 0.25, 1, 5, 30)
_CAUSES: Final[Mapping[Reason, str]] = {
    Reason.WENT_MISSING: "missing",
    Reason.DRIFTED: "drifted",
}


class Metrics:
    """All metrics of one process. Any thread may call any method."""

    def __init__(
        self,
        version: str,
        *,
        allow_unsupported: bool = False,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        """Create all metrics.

        Args:
            version: the version of the agent.
            allow_unsupported: whether a node that does not support a kind can be converged.
            log_lines_dropped: returns how many log lines were dropped since the start.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no annotation
        self.registry = CollectorRegistry()
        self._allow_unsupported = allow_unsupported
        self._lock = threading.Lock()
        self._report = ReportCollector()
        self._passes = _PassCounters(self.registry)
        self._api = _ApiCounters(self.registry)
        self._parser = Histogram(
            "profile_loader_parser_duration_seconds",
            "Duration of one run of the parser.",
            registry=self.registry,
            buckets=_PARSER_SECONDS,
        )
        self._unconfined = Gauge(
            "profile_loader_confinement_lost_processes",
            "Processes with a thread that lost its confinement.",
            registry=self.registry,
        )
        build = Gauge(
            "profile_loader_build_info",
            "Version of the agent.",
            ["version"],
            registry=self.registry,
        )
        build.labels(version).set(1)
        self.registry.register(self._report)
        self.registry.register(_LogLines(log_lines_dropped))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def count_pass(self, report: Report, at: float) -> None:
        """Count a pass, and export its report. `at` is the Unix time in seconds at which the pass
        ended.
        """
        converged = is_converged(report, allow_unsupported=self._allow_unsupported)
        with self._lock:
            self._passes.count(report, is_converged=converged)
            self._report.show_pass(report, at, is_converged=converged)

    def show_report(self, report: Report) -> None:
        """Export a report whose findings have changed since the last pass, without counting another
        pass.
        """
        converged = is_converged(report, allow_unsupported=self._allow_unsupported)
        with self._lock:
            self._report.show(report, is_converged=converged)

    def request(self, verb: str, code: str, seconds: float) -> None:
        """Count a request to the API server."""
        self._api.requests.labels(verb, code).inc()
        if verb != "WATCH":
            self._api.request_seconds.labels(verb).observe(seconds)

    def parser_ran(self, seconds: float) -> None:
        """Count a run of the parser."""
        self._parser.observe(seconds)

    def watch_restarted(self, what: str) -> None:
        """Count a watch that failed or was replaced by a new list."""
        self._api.watch_restarts.labels(what).inc()

    def events_dropped(self, number: int) -> None:
        """Count Events that were discarded."""
        self._api.events_dropped.inc(number)

    def show_unconfined_processes(self, processes: int) -> None:
        """Export how many processes lost their confinement and still run without confinement."""
        self._unconfined.set(processes)

    def renderer(self, accept: str) -> tuple[str, Callable[[], bytes]]:
        """Return the content type for an Accept header, with a function that renders the
        metrics.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # The version in the Accept header is not a number.
            encode, content_type = choose_encoder("")

        def render() -> bytes:
            with self._lock:
                return encode(self.registry)

        return content_type, render


class _PassCounters:
    """Counts passes and their actions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._passes = _counter(registry, "passes", "Passes by result.", "result")
        self._actions = _counter(
            registry, "actions", "Actions on the node by kind.", "kind", "action"
        )
        self._repairs = _counter(registry, "drift_repairs", "Repairs by cause.", "kind", "cause")
        self._seconds = Histogram(
            "profile_loader_pass_duration_seconds",
            "Duration of passes that changed or compared profiles.",
            registry=registry,
            buckets=_PASS_SECONDS,
        )
        self._pass_number = 0  # The number of the last report that was counted.
        for result in ("converged", "not_converged"):
            self._passes.labels(result)

    def count(self, report: Report, *, is_converged: bool) -> None:
        """Count a pass. A pass that returned the report of the previous pass changed nothing."""
        self._passes.labels("converged" if is_converged else "not_converged").inc()
        for kind in report.kind_support:
            for cause in _CAUSES.values():
                # The counter has the value 0 before the first repair, instead of being absent.
                self._repairs.labels(kind, cause)
        if report.pass_number == self._pass_number:
            return
        self._pass_number = report.pass_number
        self._seconds.observe(sum(report.seconds.values()))
        for row in report.profiles:
            self._count_action(row)

    def _count_action(self, row: ProfileStatus) -> None:
        if row.state in (ProfileState.FAILED, ProfileState.PLANNED):
            return
        is_removed = row.action == ActionName.REMOVE and row.state == ProfileState.REMOVED
        if row.action not in INSTALLS and not is_removed:
            return
        self._actions.labels(row.kind, row.action).inc()
        if row.is_repair:
            self._repairs.labels(row.kind, _CAUSES[row.reason]).inc()


class _ApiCounters:
    """Counts the requests to the API server, and related events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = _counter(
            registry, "api_requests", "Requests to the API server.", "verb", "code"
        )
        self.request_seconds = Summary(
            "profile_loader_api_request_duration_seconds",
            "Duration of requests to the API server, without watches.",
            ["verb"],
            registry=registry,
        )
        self.watch_restarts = _counter(
            registry, "watch_restarts", "Watches that broke or were replaced by a list.", "what"
        )
        self.events_dropped = _counter(registry, "events_dropped", "Events that were not sent.")


class _LogLines(Collector):
    """Exports the number of dropped log lines, which the log writer counts."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "profile_loader_log_lines_dropped",
            "Log lines that were dropped because standard error was blocked.",
            value=self._dropped(),
        )


def _counter(registry: CollectorRegistry, name: str, help_: str, *labels: str) -> Counter:
    return Counter(f"profile_loader_{name}", help_, labels, registry=registry)
