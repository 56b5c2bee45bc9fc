"""Computes the gauges for the last report whenever the metrics are scraped.

A series exists as long as the last report contains its profile or profile set. The number of series
is limited, independently of the names and the number of profiles. The counters are in
agent.reporting.metrics.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.core.finding_codes import FindingCode
from agent.core.report import ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import (
    ON_NODE,
    ModuleMode,
    ProfileSetState,
    ProfileState,
    SupportState,
)

NAMES: Final = 100  # The largest number of profiles with a series of their own.
SETS: Final = 50  # The largest number of profile sets with a series of their own.
# Profiles in one of these states are on the node, or should be on the node. Each state has a
# series, even if no profile has this state.
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
_Samples = Mapping[tuple[str, ...], float]


class ReportCollector(Collector):
    """Computes the gauges of the last report. The caller must hold a lock during each call."""

    def __init__(self) -> None:
        self._report: Report | None = None
        self._is_converged = False
        self._pass_ended = 0.0  # The time in Unix seconds.
        self._converged_pass_ended = 0.0  # The time in Unix seconds.
        self._last_read: dict[str, float] = {}  # Unix times in seconds, by profile set
        self._codes: set[FindingCode] = set()  # The codes of all findings since the start.

    def show(self, report: Report, *, is_converged: bool) -> None:
        """Export a report that does not come from a new pass."""
        self._report = report
        self._is_converged = is_converged
        self._codes.update(finding_counts(report))
        listed = {one.profile_set for one in _listed_sets(report)}
        self._last_read = {name: at for name, at in self._last_read.items() if name in listed}

    def show_pass(self, report: Report, at: float, *, is_converged: bool) -> None:
        """Export the report of a pass, with the Unix time in seconds at which the pass ended."""
        self.show(report, is_converged=is_converged)
        self._pass_ended = at
        if is_converged:
            self._converged_pass_ended = at
        read = (one.profile_set for one in _listed_sets(report) if _is_read(one))
        self._last_read |= dict.fromkeys(read, at)

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge."""
        yield _gauge("last_pass_timestamp_seconds", "When the last pass ended.", self._pass_ended)
        yield _gauge(
            "converged", "1: every accepted profile is installed and verified.", self._is_converged
        )
        yield _gauge(
            "last_converged_timestamp_seconds",
            "When the last converged pass ended.",
            self._converged_pass_ended,
        )
        yield from self._of_profiles()
        yield from self._of_sources()
        yield from self._of_kinds()
        yield self._of_modules()
        counts = finding_counts(self._report) if self._report is not None else Counter()
        yield _family(
            "problems",
            "Findings of the last pass by code.",
            ("code",),
            {(code,): counts[code] for code in sorted(self._codes)},
        )

    def _of_profiles(self) -> Iterator[Metric]:
        rows = self._report.profiles if self._report is not None else ()
        kinds = self._report.kind_support if self._report is not None else ()
        counts = Counter((row.kind, row.state) for row in rows)
        yield _family(
            "profiles",
            "Profiles by kind and state.",
            ("kind", "state"),
            {(kind, state): counts[kind, state] for kind in kinds for state in _STATES},
        )
        yield _family(
            "profile_available",
            f"1: verified on the node. The first {NAMES} names have a series.",
            ("kind", "name", "mode"),
            {
                (row.kind, row.name, row.mode): row.state in ON_NODE
                for row in _named_profiles(rows)[:NAMES]
            },
        )

    def _of_sources(self) -> Iterator[Metric]:
        sets = _listed_sets(self._report) if self._report is not None else []
        yield _family(
            "source_up",
            f"1: the profile set was read in the last pass. At most {SETS} sets have a series; "
            "sets that were not read come first.",
            ("origin",),
            {(one.profile_set,): _is_read(one) for one in sets},
        )
        yield _family(
            "source_last_read_timestamp_seconds",
            "When the profile set was last read.",
            ("origin",),
            {(name,): at for name, at in self._last_read.items()},
        )

    def _of_kinds(self) -> Iterator[Metric]:
        supports = self._report.kind_support if self._report is not None else {}
        yield _family(
            "kind_supported",
            "1: this node supports profiles of the kind.",
            ("kind",),
            {(kind,): one.state == SupportState.ENABLED for kind, one in supports.items()},
        )
        yield _family(
            "parser_sandboxed",
            "1: the parser can open only its include files and its configuration.",
            ("kind",),
            {(kind,): one.sandboxed for kind, one in supports.items() if one.sandboxed is not None},
        )

    def _of_modules(self) -> Metric:
        modules = self._report.security_modules if self._report is not None else {}
        return _family(
            "security_module_mode",
            "1: the security module of the node has this mode.",
            ("module", "mode"),
            {(name, mode): mode == now for name, now in modules.items() for mode in ModuleMode},
        )


def finding_counts(report: Report) -> Counter[FindingCode]:
    """Return the number of findings for each code. A finding about a whole profile kind counts only
    once.
    """
    of_kinds = [one.finding for one in report.kind_support.values() if one.finding is not None]
    of_profiles = [
        finding for row in report.profiles for finding in row.findings if finding not in of_kinds
    ]
    return Counter(finding.code for finding in (*of_kinds, *of_profiles, *report.findings))


def _named_profiles(rows: Iterable[ProfileStatus]) -> list[ProfileStatus]:
    """Return one row for each desired profile name, preferably a row whose profile is on the
    node.
    """
    best: dict[tuple[str, str], ProfileStatus] = {}
    for row in rows:
        known = best.get((row.kind, row.name))
        is_better = known is None or (row.state in ON_NODE and known.state not in ON_NODE)
        if row.name and row.desired and is_better:
            best[row.kind, row.name] = row
    return list(best.values())


def _listed_sets(report: Report) -> list[ProfileSetStatus]:
    """Return the profile sets that get a series. Sets that were not read come first."""
    return sorted(report.profile_sets, key=_is_read)[:SETS]


def _is_read(profile_set: ProfileSetStatus) -> bool:
    """Return whether a profile set was read. An emptied profile set counts as read, because a
    separate finding reports it.
    """
    return profile_set.state in (ProfileSetState.READ, ProfileSetState.EMPTIED)


def _gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"profile_loader_{name}", help_, value=value)


def _family(name: str, help_: str, labels: tuple[str, ...], samples: _Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"profile_loader_{name}", help_, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family
