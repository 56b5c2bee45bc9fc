"""Prometheus metrics, from reports and counters: the only importer of prometheus_client.

Rule 1: names and units follow the Prometheus conventions; every metric stands in docs/metrics.md.
Rule 2: the number of series is bounded, whatever the profiles are called or how many there are.
Rule 3: a scrape sees one report as a whole, never half of the next one.
"""

import threading
from collections import Counter as Count
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

from agent.core.report import ProfileSetStatus, ProfileStatus, Report, is_converged
from agent.core.vocabulary import (
    INSTALLS,
    ON_NODE,
    ActionName,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
)

NAMES: Final = 100  # profiles that have a series of their own
SETS: Final = 50  # sets that have series of their own
_SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
_PARSER_SECONDS: Final = (0.05, 0.25, 1, 5, 30)
_CAUSES: Final[Mapping[Reason, str]] = {
    Reason.WENT_MISSING: "missing",
    Reason.DRIFTED: "drifted",
}
# Labels must be known beforehand, so that a state that ends is 0 and does not stay.
_STATES: Final = (
    ProfileState.INSTALLED,
    ProfileState.OUTDATED,
    ProfileState.HELD,
    ProfileState.PENDING,
    ProfileState.REJECTED,
    ProfileState.FOREIGN,
    ProfileState.FAILED,
    ProfileState.UNSUPPORTED,
    ProfileState.UNOBSERVABLE,
)


class Metrics:
    """Every metric of one process.

    allow_unsupported: a kind that the node cannot have leaves it converged (--allow-unsupported).
    """

    def __init__(
        self,
        version: str,
        *,
        allow_unsupported: bool = False,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.allow_unsupported = allow_unsupported
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library's own
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_LogLines(log_lines_dropped))
        self._lock = threading.Lock()
        self._timed: Mapping[str, float] | None = None
        self._info = self._gauge("build_info", "Version of the agent.", "version")
        self._info.labels(version).set(1)
        self._profiles = self._gauge("profiles", "Profiles by kind and state.", "kind", "state")
        self._available = self._gauge(
            "profile_available",
            f"1: verified on the node. Of the first {NAMES} names.",
            "kind",
            "name",
            "mode",
        )
        self._actions = self._counter("actions", "What was done on the node.", "kind", "action")
        self._passes = self._counter("passes", "Passes by result.", "result")
        self._seconds = Histogram(
            "profile_loader_pass_duration_seconds",
            "Duration of a pass that found something to do or to compare.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._problems = self._gauge("problems", "Problems of the last pass by code.", "code")
        self._last = self._gauge("last_pass_timestamp_seconds", "When the last pass ended.")
        self._converged = self._gauge("converged", "1: all that is desired is in place.")
        self._last_converged = self._gauge(
            "last_converged_timestamp_seconds", "When a pass last ended with everything in place."
        )
        self._sources = self._gauge(
            "source_up",
            f"1: the set was read in the last pass. At most {SETS}, first those that were not.",
            "origin",
        )
        self._read = self._gauge(
            "source_last_read_timestamp_seconds", "When the set was last read.", "origin"
        )
        self._supported = self._gauge("kind_supported", "1: this node can have the kind.", "kind")
        self._sandboxed = self._gauge(
            "parser_sandboxed",
            "1: apparmor_parser can open only its includes and its configuration.",
            "kind",
        )
        self._drift = self._counter("drift_repairs", "Repairs by cause.", "kind", "cause")
        self._requests = self._counter("api_requests", "Requests to the API.", "verb", "code")
        self._asked = Summary(
            "profile_loader_api_request_duration_seconds",
            "Duration of requests to the API, watches excepted.",
            ["verb"],
            registry=self.registry,
        )
        self._parser = Histogram(
            "profile_loader_parser_duration_seconds",
            "Duration of a run of apparmor_parser.",
            registry=self.registry,
            buckets=_PARSER_SECONDS,
        )
        self._restarts = self._counter("watch_restarts", "Watches that began anew.", "what")
        self._dropped = self._counter("events_dropped", "Events that were not sent.")
        self._lost = self._gauge(
            "confinement_lost_processes", "Processes that lost the confinement they had."
        )
        for cause in _CAUSES.values():
            for kind in ("apparmor", "seccomp"):
                self._drift.labels(kind, cause)
        for result in ("converged", "not_converged"):
            self._passes.labels(result)
        self._seen: set[str] = set()
        self._origins: dict[str, bool] = {}  # and whether it was ever read

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(f"profile_loader_{name}", help_, labels, registry=self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"profile_loader_{name}", help_, labels, registry=self.registry)

    # --- what is told -----------------------------------------------------------------------------

    def passed(self, report: Report, at: float) -> None:
        """Take the report of a pass that ended at `at` (Unix seconds)."""
        with self._lock:
            self._count(report)
            self._show(report)
            self._last.set(at)
            if self._is_converged(report):
                self._last_converged.set(at)
            for one in report.profile_sets:
                if one.profile_set in self._origins and _healthy(one):
                    self._origins[one.profile_set] = True
                    self._read.labels(one.profile_set).set(at)

    def shown(self, report: Report) -> None:
        """Show the state that a report tells: nothing was read or looked at, no pass is counted."""
        with self._lock:
            self._show(report)

    def _is_converged(self, report: Report) -> bool:
        return is_converged(report, allow_unsupported=self.allow_unsupported)

    def _count(self, report: Report) -> None:
        self._passes.labels("converged" if self._is_converged(report) else "not_converged").inc()
        if report.seconds is self._timed:
            return  # nothing had changed: the very report of the pass before
        self._timed = report.seconds
        self._seconds.observe(sum(report.seconds.values()))
        for row in report.profiles:
            self._acted(row)

    def _acted(self, row: ProfileStatus) -> None:
        if row.state in (ProfileState.FAILED, ProfileState.PLANNED):
            return
        is_removed = row.action == ActionName.REMOVE and row.state == ProfileState.REMOVED
        if row.action not in INSTALLS and not is_removed:
            return
        self._actions.labels(row.kind, row.action).inc()
        if row.action == ActionName.RESTORE:
            self._drift.labels(row.kind, _CAUSES[row.reason]).inc()

    def _show(self, report: Report) -> None:
        self._converged.set(self._is_converged(report))
        states = Count((row.kind, row.state) for row in report.profiles)
        for kind in report.kind_support:
            for state in _STATES:
                self._profiles.labels(kind, state).set(states[kind, state])
            self._supported.labels(kind).set(
                report.kind_support[kind].state == SupportState.ENABLED
            )
            sandboxed = report.kind_support[kind].sandboxed
            if sandboxed is not None:
                self._sandboxed.labels(kind).set(sandboxed)
        self._available.clear()
        best: dict[tuple[str, str], ProfileStatus] = {}  # the same name may stand in two keys
        for row in report.profiles:
            if row.name and row.desired and _better(row, best.get((row.kind, row.name))):
                best[row.kind, row.name] = row
        for row in [*best.values()][:NAMES]:
            self._available.labels(row.kind, row.name, row.mode).set(row.state in ON_NODE)
        found = _problems(report)
        for code in self._seen | set(found):
            self._problems.labels(code).set(found[code])
        self._seen |= set(found)
        self._sets(report)

    def _sets(self, report: Report) -> None:
        told = sorted(report.profile_sets, key=_healthy)[:SETS]
        for gone in self._origins.keys() - {one.profile_set for one in told}:
            self._sources.remove(gone)
            if self._origins[gone]:
                self._read.remove(gone)
            del self._origins[gone]
        for one in told:
            self._sources.labels(one.profile_set).set(_healthy(one))
            self._origins.setdefault(one.profile_set, False)

    def request(self, verb: str, code: str, seconds: float) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, code).inc()
        if verb != "WATCH":
            self._asked.labels(verb).observe(seconds)

    def parser_ran(self, seconds: float) -> None:
        """Count a run of apparmor_parser."""
        self._parser.observe(seconds)

    def watch_restarted(self, what: str) -> None:
        """Count a watch that began anew."""
        self._restarts.labels(what).inc()

    def events_dropped(self, number: int) -> None:
        """Count Events that were not sent."""
        self._dropped.inc(number)

    def confinement_lost(self, processes: int) -> None:
        """Show how many processes run without the confinement that they had."""
        self._lost.set(processes)

    # --- what is scraped --------------------------------------------------------------------------

    def expose(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body of a scrape, in the format that an Accept header chooses."""
        content_type, render = self.renderer(accept)
        return content_type, render()

    def renderer(self, accept: str) -> tuple[str, Callable[[], bytes]]:
        """Return the content type for an Accept header, and a function that renders the metrics."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the version in the header is not a number
            encode, content_type = choose_encoder("")

        def render() -> bytes:
            with self._lock:
                return encode(self.registry)

        return content_type, render

    def names(self) -> Mapping[str, tuple[str, str]]:
        """Return type and help of every metric of the agent by its name."""
        return {
            one.name: (one.type, one.documentation)
            for one in self.registry.collect()
            if one.name.startswith("profile_loader_")
        }


class _LogLines(Collector):
    """The counter of log lines that were dropped, which another thread keeps."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "profile_loader_log_lines_dropped",
            "Log lines that were dropped because nobody read standard error.",
            value=self._dropped(),
        )


def _problems(report: Report) -> Count[str]:
    """Return how many problems there are of each code; what a whole kind has counts once."""
    kinds = [one.finding for one in report.kind_support.values() if one.finding is not None]
    rows = [one for row in report.profiles for one in row.findings if one not in kinds]
    return Count(one.code for one in (*kinds, *rows, *report.findings))


def _better(row: ProfileStatus, than: ProfileStatus | None) -> bool:
    return than is None or (row.state in ON_NODE and than.state not in ON_NODE)


def _healthy(one: ProfileSetStatus) -> bool:
    """Return whether a set was read; an emptied one was, and is told by its problem."""
    return one.state in (ProfileSetState.READ, ProfileSetState.EMPTIED)
