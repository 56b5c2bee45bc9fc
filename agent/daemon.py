"""When a pass runs: at the start, whenever anything may have changed, and every --resync.

Rule 1: level, not edge: a wake-up says "look again", and losing one costs a resync. Rule 2: the
main thread alone touches the node; other threads put a word into the queue. Rule 3: leaving
changes nothing: the end of the process, at any moment, leaves the node as it is.
"""

import queue
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from agent.core import labels
from agent.core.model import KindName
from agent.core.problems import Problem
from agent.core.report import Report
from agent.oneshot import Pass

QUIET_SECONDS: Final = 0.01  # a storm is over when nothing came for so long ...
STORM_SECONDS: Final = 0.25  # ... and is answered after so long at the latest
PATIENCE_SECONDS: Final = 3.0  # how long the first pass waits for the first answers


class Teller(Protocol):
    """Publishes labels and Events; fulfilled by agent.reporters.publisher.Publisher."""

    problems: tuple[Problem, ...]

    def post(self, report: Report) -> None:
        """Take a report."""

    def on(self) -> frozenset[str] | None:
        """Return the own labels that are or may be on the Node; None: not known."""


class Audience(Protocol):
    """Hears of reports."""

    def told(self, report: Report, at: float, *, passed: bool) -> None:
        """Take a report; at: Unix seconds. passed: a pass ended, or only its problems changed."""


class Daemon:
    """Runs passes until its process ends.

    wake: words from other threads. ready: whether the sources have answered, or failed to. nodes:
    the Node's labels that are not ours, None where unknown. audience: is told every report.
    """

    def __init__(  # noqa: PLR0913 - the parts of a daemon
        self,
        one: Pass,
        *,
        wake: "queue.SimpleQueue[str]",
        resync: float,
        teller: Teller | None = None,
        domain: str = labels.DOMAIN,
        ready: Callable[[], bool] = lambda: True,
        nodes: Callable[[], Mapping[str, str] | None] = lambda: None,
        audience: Sequence[Audience] = (),
    ) -> None:
        self.one = one
        self.wake = wake
        self.resync = resync
        self.teller = teller
        self.domain = domain
        self.ready = ready
        self.nodes = nodes
        self.audience = audience
        one.pulse = self._pulse
        self.beat = time.monotonic()  # when the loop last turned
        self.report: Report | None = None
        self._since: dict[tuple[KindName, str], float] = {}  # label known to be off since
        self._nodes: Mapping[str, str] | None = None
        self._due = 0.0

    def run(self) -> None:
        """Run passes for ever; ends by an exception (SystemExit of a signal handler)."""
        self._first()
        while True:
            self.step()
            self._wait()

    def step(self) -> Report:
        """Make one pass and tell it."""
        self._nodes = self.nodes()
        now = time.monotonic()
        self.beat = now
        if self.teller is not None:
            self.one.options = replace(self.one.options, gone=self._gone(now))
        report = self.one.run()
        if self.teller is not None:
            self.teller.post(report)
            report = replace(report, problems=report.problems + self.teller.problems)
        self.report = report
        self.beat = time.monotonic()
        self._gone(self.beat)
        self._due = self._next(self.beat)
        self._tell(passed=True)
        return report

    def _tell(self, *, passed: bool) -> None:
        for one in self.audience:
            if self.report is not None:
                one.told(self.report, time.time(), passed=passed)

    def _pulse(self) -> None:
        self.beat = time.monotonic()

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
            left = self._due - time.monotonic()
            self.beat = time.monotonic()
            if left <= 0:
                return
            try:
                word = self.wake.get(timeout=min(left, 30.0))
            except queue.Empty:
                continue
            if self._concerns(word):
                self._settle()
                return

    def _concerns(self, word: str) -> bool:
        """Return whether a word calls for a pass."""
        match word:
            case "node":
                return self.nodes() != self._nodes
            case "labels":
                self._news()
                waiting = len(self._since)
                return len(self._gone(time.monotonic())) != waiting
            case _:
                return True

    def _news(self) -> None:
        """Tell the report again if the teller's problems changed."""
        if self.teller is None or self.report is None:
            return
        kept = tuple(one for one in self.report.problems if one.code not in _TELLERS)
        if self.report.problems != kept + self.teller.problems:
            self.report = replace(self.report, problems=kept + self.teller.problems)
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

    def _leaving(self) -> list[tuple[KindName, str]]:
        """Return the names that are on the node and that nobody desires any more."""
        rows = self.report.rows if self.report is not None else ()
        return [(row.kind, row.name) for row in rows if row.state == "held" and not row.desired]

    def _gone(self, now: float) -> dict[tuple[KindName, str], float]:
        """Return for how many seconds the label of each name is known to be off the Node.

        What was confirmed once stays so while the API server is away.
        """
        on = self.teller.on() if self.teller is not None else None
        self._since = {
            (kind, name): self._since.get((kind, name), now)
            for kind, name in self._leaving()
            if (
                labels.key(kind, name, self.domain) not in on
                if on is not None
                else (kind, name) in self._since
            )
        }
        return {name: now - since for name, since in self._since.items()}

    def _next(self, now: float) -> float:
        """Return when the next pass is due, in monotonic seconds."""
        due = now + self.resync * random.uniform(0.9, 1.0)  # noqa: S311 - spreads load
        ends = [since + self.one.options.grace for since in self._since.values()]
        return min([due, *(end for end in ends if end > now)])


_TELLERS: Final = frozenset(
    {"node_unknown", "node_unreachable", "label_foreign", "label_collision", "label_limit"}
)
