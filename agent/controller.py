"""When a pass runs: at the start, whenever anything may have changed, and every --resync.

Rule 1: level, not edge: a wake-up says "look again", and losing one costs a resync. Rule 2: the
main thread alone touches the node; other threads put a word into the queue. Rule 3: leaving
changes nothing: the end of the process, at any moment, leaves the node as it is.
"""

import queue
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from agent.core import labels
from agent.core.findings import Finding
from agent.core.model import ProfileKind
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileState, Reason, SupportState
from agent.reconciler import Reconciler, removed_names, tracked_names

QUIET_SECONDS: Final = 0.01  # a storm is over when nothing came for so long ...
STORM_SECONDS: Final = 0.25  # ... and is answered after so long at the latest
FIGHT_SECONDS: Final = 120.0  # so many repairs of one name in so many seconds are a fight
FIGHT_REPAIRS: Final = 10
LONGEST_SECONDS: Final = 60.0
_COUNTED: Final = 2 * FIGHT_REPAIRS  # repairs of one name: with more the wait is the longest
PATIENCE_SECONDS: Final = 3.0  # how long the first pass waits for the first answers
LOOK_SECONDS: Final = 10.0  # between two looks at what no word may have told
_PASSING: Final = frozenset({"ledger_damaged", "kind_unobservable", "source_unreadable"})


# Not SimpleQueue: in CPython 3.11 and 3.12 its get with a time-out waits for ever if the thread is
# held up for as long between two lines of _queuemodule.c, which a busy machine does.
WakeQueue = queue.Queue[str]
Users = Mapping[tuple[ProfileKind, str], tuple[str, ...]]


class StatusPublisher(Protocol):
    """Publishes labels and Events; fulfilled by agent.kube.publisher.Publisher."""

    findings: tuple[Finding, ...]

    def post(self, report: Report) -> None:
        """Take a report."""

    def labels_on_node(self) -> frozenset[str] | None:
        """Return the own labels that are or may be on the Node; None: not known."""


class ConfinementMonitor(Protocol):
    """Knows which threads were confined.

    Fulfilled by agent.backends.apparmor.confinement_tracker.ConfinementTracker.
    """

    def observe(self, names: Collection[str]) -> None:
        """Note every thread that one of the names confines now."""

    def names_in_use(self) -> frozenset[str]:
        """Return the names under which a thread ran at the last look."""

    def record_removals(self, names: Collection[str]) -> None:
        """Find the threads that lost one of these names, or one that was loaded again since."""

    def findings(self) -> tuple[Finding, ...]:
        """Return the problems of threads that lost their confinement."""


class ReportSink(Protocol):
    """Hears of reports."""

    def on_report(self, report: Report, at: float, *, passed: bool) -> None:
        """Take a report; at: Unix seconds. passed: a pass ended, or only its problems changed."""


class Controller:
    """Runs passes until its process ends.

    wake: words from other threads. ready: whether the sources have answered, or failed to. nodes:
    the Node's labels that are not ours, None where unknown. pods: which pods name a profile,
    None where that is not known. audience: is told every report.
    """

    def __init__(  # noqa: PLR0913 - the parts of a daemon
        self,
        one: Reconciler,
        *,
        wake: "WakeQueue",
        resync: float,
        teller: StatusPublisher | None = None,
        domain: str = labels.DOMAIN,
        ready: Callable[[], bool] = lambda: True,
        nodes: Callable[[], Mapping[str, str] | None] = lambda: None,
        pods: Callable[[], Users | None] = lambda: None,
        lost: ConfinementMonitor | None = None,
        audience: Sequence[ReportSink] = (),
    ) -> None:
        self.reconciler = one
        self.wake = wake
        self.resync = resync
        self.publisher = teller
        self.domain = domain
        self.ready = ready
        self.node_labels = nodes
        self.pods_by_profile = pods
        self.confinement = lost
        self.sinks = audience
        one.pulse = self._pulse
        self.last_heartbeat = time.monotonic()  # when the loop last turned
        self.report: Report | None = None
        self._pass_report: Report | None = None  # as the pass gave it
        self._label_absent_since: dict[
            tuple[ProfileKind, str], float
        ] = {}  # label known to be off since
        self._nodes: Mapping[str, str] | None = None
        self._next_pass = 0.0
        self._next_full_resync = 0.0  # when everything is to be looked at anew
        self._full_passes_requested = 0
        self._full_passes_served = 0
        self._failing: frozenset[tuple[str, ...]] = frozenset()
        self._failures = 0  # how often in a row the same failed
        self._repairs: dict[str, deque[float]] = {}  # name: when it was repaired, of late
        self._tracked_names: list[str] = []  # of which is known whom they confine
        self._unused_names: set[str] = set()  # stay for processes, of which the last look saw none
        self._next_check = 0.0  # when that is to be looked at again
        self._storm_until = 0.0  # until then a change of policy may be one of a storm
        self._repairs_paused_until = (
            0.0  # until then the node's changes call for no pass: somebody fights
        )

    def run(self) -> None:
        """Run passes for ever; ends by an exception (SystemExit of a signal handler)."""
        self._first()
        while True:
            self.step()
            self._wait()

    def request_full_pass(self) -> None:
        """Let the next pass trust no signature and read everything; any thread may call this."""
        self._full_passes_requested += 1
        self.wake.put("full pass")

    def step(self) -> Report:
        """Make one pass and tell it."""
        self._nodes = self.node_labels()
        self.last_heartbeat = began = time.monotonic()
        self._ask()
        requested = self._full_passes_requested
        full = began >= self._next_full_resync or requested != self._full_passes_served
        self._full_passes_served = requested
        found = self.reconciler.run(full=full)
        if full:
            self._next_full_resync = began + self.resync * random.uniform(0.9, 1.0)  # noqa: S311 - spreads load
        failing = _failing(found)
        again = self._failures + 1 if failing == self._failing else 1
        self._failing, self._failures = failing, again if failing else 0
        report = self._take(found, full=full)
        self._next_pass = self._next(began)
        self._tell(passed=True)
        self._storm_until = time.monotonic() + STORM_SECONDS
        return report

    def _ask(self) -> None:
        """Ask anew what a removal waits for."""
        gone = self._gone(time.monotonic())
        self.reconciler.options = replace(
            self.reconciler.options,
            label_absent_seconds=gone,
            pods_by_profile=self.pods_by_profile(),
        )

    def _take(self, raw: Report, *, full: bool) -> Report:
        """Draw the conclusions from what a pass found, and have it published."""
        self._confinement(raw, full=full)
        self._fought(raw)
        self.report = self._whole(raw)
        if self.publisher is not None and self._is_new(raw):
            self.publisher.post(self.report)
            self.report = self._whole(raw)
        self._pass_report = raw
        self.last_heartbeat = time.monotonic()
        self._gone(self.last_heartbeat)
        return self.report

    def _is_new(self, raw: Report) -> bool:
        """Return whether a pass found anything changed since the one before."""
        return self._pass_report is None or raw.pass_number != self._pass_report.pass_number

    def _whole(self, raw: Report) -> Report:
        """Add what the API and the watch over the node have to say."""
        more = self.publisher.findings if self.publisher is not None else ()
        lost = self.confinement.findings() if self.confinement is not None else ()
        return replace(raw, findings=(*raw.findings, *more, *self._fights(), *lost))

    def _confinement(self, raw: Report, *, full: bool) -> None:
        """Find the threads whose profile this pass found missing, or removed itself.

        Then look at the threads that are confined now.
        """
        if self.confinement is None or (not full and not self._is_new(raw)):
            return
        self.confinement.record_removals(removed_names(raw.profiles))
        self._tracked_names = tracked_names(raw.profiles)
        self._next_check = time.monotonic() + LOOK_SECONDS
        self.confinement.observe(self._tracked_names)

    def _glance(self) -> bool:
        """Look often at what tells nobody; return whether it calls for a pass.

        A wake-up may get lost, and a removal tells nobody whom it unconfined. Nobody is looked at
        after a change of the node that no pass has seen: the last look is needed for it.
        """
        now = time.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + LOOK_SECONDS
        if not self._is_node_unchanged():
            return now >= self._repairs_paused_until and not self._blind()
        if self.confinement is not None:
            self.confinement.observe(self._tracked_names)
            self._news()
            return self._freed(self.confinement.names_in_use())
        return False

    def _freed(self, confining: Collection[str]) -> bool:
        """Return whether what stayed for its processes confines nobody any more, since lately."""
        rows = self.report.profiles if self.report is not None else ()
        stayed = {
            row.name for row in rows if row.kind == "apparmor" and row.reason == Reason.IN_USE
        }
        before, self._unused_names = self._unused_names, stayed.difference(confining)
        return not self._unused_names <= before

    def _blind(self) -> bool:
        """Return whether the last pass could not look: the next is due by its failures alone."""
        supports = self._pass_report.kind_support.values() if self._pass_report is not None else ()
        return any(one.state == SupportState.UNKNOWN for one in supports)

    def _tell(self, *, passed: bool) -> None:
        for one in self.sinks:
            if self.report is not None:
                one.on_report(self.report, time.time(), passed=passed)

    def _pulse(self) -> None:
        self.last_heartbeat = time.monotonic()

    def _first(self) -> None:
        """Give the sources a moment, so that the first pass knows what they say."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.ready() and time.monotonic() < end:
            try:
                self.wake.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return

    def _wait(self) -> None:
        """Return when a pass is to run: something may have changed, or it is time."""
        while True:
            if self._glance():
                return
            left = self._next_pass - time.monotonic()
            self.last_heartbeat = time.monotonic()
            if left <= 0:
                return
            try:
                words = self._words(min(left, LOOK_SECONDS))
            except queue.Empty:
                continue
            calling = {word for word in words if self._concerns(word)}
            if calling:
                # No container that names a profile starts until it is back: the first loss of
                # policy is not waited for, the next ones are a storm.
                if calling != {"kernel"} or time.monotonic() < self._storm_until:
                    self._settle()
                return

    def _words(self, timeout: float) -> Collection[str]:
        """Return the words that wait, each once: one look is newer than all of them.

        A pass leaves a word for each file that it wrote, in front of the next change. Raises
        queue.Empty if none comes in time.
        """
        words = dict.fromkeys([self.wake.get(timeout=timeout)])
        words |= dict.fromkeys(self.wake.get() for _ in range(self.wake.qsize()))
        return words.keys()

    def _concerns(self, word: str) -> bool:
        """Return whether a word calls for a pass."""
        match word:
            case "node":  # a copy of the Node that is confirmed again may confirm a removal too
                return self.node_labels() != self._nodes or self._confirmed()
            case "pods":
                return bool(self._leaving())
            case "kernel" | "files":
                return (
                    time.monotonic() >= self._repairs_paused_until and not self._is_node_unchanged()
                )
            case "labels":
                self._news()
                return self._confirmed()
            case _:
                return True

    def _confirmed(self) -> bool:
        """Return whether the labels of other names than before are known to be off the Node."""
        before = self._label_absent_since.keys()
        return self._gone(time.monotonic()).keys() != before

    def _news(self) -> None:
        """Tell the report again if the teller's problems changed."""
        if self._pass_report is None or self.report is None:
            return
        whole = self._whole(self._pass_report)
        if whole.findings != self.report.findings:
            self.report = whole
            self._tell(passed=False)

    def _settle(self) -> None:
        """Let a storm pass: more words at once are one reason to look."""
        end = time.monotonic() + STORM_SECONDS
        while time.monotonic() < end:
            try:
                self.wake.get(timeout=QUIET_SECONDS)
            except queue.Empty:
                return

    # --- removals that wait for their label -------------------------------------------------------

    def _leaving(self) -> list[tuple[ProfileKind, str]]:
        """Return the names that are on the node and that nobody desires any more."""
        rows = self.report.profiles if self.report is not None else ()
        return [
            (row.kind, row.name)
            for row in rows
            if row.state == ProfileState.HELD and not row.desired
        ]

    def _gone(self, now: float) -> dict[tuple[ProfileKind, str], float]:
        """Return for how many seconds the label of each name is known to be off the Node.

        What was confirmed once stays so while the API server is away. Where nobody publishes
        labels, none is on.
        """
        on = self.publisher.labels_on_node() if self.publisher is not None else frozenset()
        self._label_absent_since = {
            (kind, name): self._label_absent_since.get((kind, name), now)
            for kind, name in self._leaving()
            if (
                labels.key(kind, name, self.domain) not in on
                if on is not None
                else (kind, name) in self._label_absent_since
            )
        }
        # Rounded: since + grace - since may be less than the grace.
        return {name: round(now - since, 6) for name, since in self._label_absent_since.items()}

    def _next(self, began: float) -> float:
        """Return when the next pass is due, in monotonic seconds; began: when the last one did."""
        now = self.last_heartbeat
        removals = [
            since + self.reconciler.options.grace_seconds
            for since in self._label_absent_since.values()
        ]
        ends = self._ends()
        if self._failures:  # what failed is tried again, less and less often
            ends.append(now + min(self.resync, 2.0 ** min(self._failures, 12)))
        # A removal that fell due while the pass ran is still to be done.
        return min(
            [
                self._next_full_resync,
                *(end for end in removals if end > began),
                *(end for end in (*ends, self._repairs_paused_until) if end > now),
            ]
        )

    # --- somebody else who changes the same profiles ----------------------------------------------

    def _is_node_unchanged(self) -> bool:
        """Return whether the node is as the last pass saw or left it."""
        return self.reconciler.is_unchanged()

    def _fought(self, raw: Report) -> None:
        """Note repairs; after too many of one name, let changes of the node wait."""
        now = time.monotonic()
        repaired = [row.name for row in raw.profiles if _repaired(row)]
        for name in repaired:
            self._repairs.setdefault(name, deque(maxlen=_COUNTED)).append(now)
        counted = self._fresh(now)
        worst = max((counted[name] for name in repaired), default=0)
        if worst >= FIGHT_REPAIRS and now >= self._repairs_paused_until:
            self._repairs_paused_until = now + min(LONGEST_SECONDS, 2.0 ** (worst - FIGHT_REPAIRS))

    def _fresh(self, now: float) -> dict[str, int]:
        """Return how often each name was repaired lately; forget what is longer ago."""
        for times in self._repairs.values():
            while times and times[0] + FIGHT_SECONDS <= now:
                times.popleft()
        self._repairs = {name: times for name, times in self._repairs.items() if times}
        return {name: len(times) for name, times in self._repairs.items()}

    def _ends(self) -> list[float]:
        """Return when each fight is over, if nothing is repaired any more."""
        return [
            one[-FIGHT_REPAIRS] + FIGHT_SECONDS
            for one in self._repairs.values()
            if len(one) >= FIGHT_REPAIRS
        ]

    def _fights(self) -> tuple[Finding, ...]:
        counted = self._fresh(time.monotonic())
        return tuple(
            Finding(
                code="drift_fought",
                location=name,
                message=f'"{name}" was changed behind the agent\'s back and repaired {times} times '
                f"in the last {FIGHT_SECONDS:g} s: somebody else writes it too. Repairs wait now.",
                hint="Find who loads or writes it (auditd, another agent), or take it out of here.",
            )
            for name, times in sorted(counted.items())
            if times >= FIGHT_REPAIRS
        )


def _place(row: ProfileStatus) -> tuple[str, ...]:
    return (row.kind, row.profile_set, row.key, row.name)


def _repaired(row: ProfileStatus) -> bool:
    return row.action == ActionName.RESTORE and row.state != ProfileState.FAILED


def _failing(report: Report) -> frozenset[tuple[str, ...]]:
    """Return what another look alone may find better, though nothing says that it changed."""
    rows = [
        row
        for row in report.profiles
        if row.state in (ProfileState.FAILED, ProfileState.UNOBSERVABLE)
    ]
    findings = [one for one in report.findings if one.code in _PASSING]
    return frozenset((row.kind, row.name, row.key) for row in rows) | frozenset(
        (one.code, one.location) for one in findings
    )
