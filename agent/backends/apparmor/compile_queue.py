"""Decides which AppArmor profile text the parser compiles next, and for how long.

This module only schedules profile texts, and uses no thread, process or clock; compile_worker.py
runs the parser. A profile text starts on level 0 with a short time slice. After a run that exceeds
the slice, the profile text moves up one level, where the slice is longer, and waits until all texts
on lower levels have run. On each level, the texts of the profile set that has used the least parser
time have priority.

The run of a text that compiles slowly (an earlier run reached a limit) is cancelled when a text
that does not compile slowly arrives. A continuous stream of new texts must not prevent the slow
text from being compiled. If a slow text has been ready for MAX_WAIT_SECONDS, its next run is
therefore not cancelled in favour of other texts. Such runs are called reserved. They use at most a
quarter of the time, so that a new profile text waits for at most one reserved run.

A profile text is rejected only if the parser itself used too much CPU time or memory, or produced
too much output, in a run with the longest slice and with all of the memory that the parser may use.
If a run ended at its wall-clock limit, by a signal or because the container ran out of memory, the
run proves nothing about the profile text. Another process, such as the kernel's OOM killer, may
have ended the parser. After a run that proves nothing about the text, the daemon compiles the text
again later, and a command reports that the text has no result.
"""

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor.parser import ParserRun, RunFailure
from agent.backends.apparmor.policy_cache import ParserResult
from agent.backoff import delay_seconds

# The first time slice, in CPU seconds. The slowest of 1,000 public profiles needed 0.2 s
# (measured).
FIRST_SLICE_SECONDS: Final = 2.0
SLICE_FACTOR: Final = 4.0
# A text that compiles slowly pauses for this multiple of the duration of its last run. With the
# factor 3, all such texts together use at most a quarter of one core.
PAUSE_FACTOR: Final = 3.0
# If a text that compiles slowly has been ready for this time, its next run is not cancelled in
# favour of other texts.
MAX_WAIT_SECONDS: Final = 60.0
FIRST_RETRY_SECONDS: Final = 10.0
MAX_RETRY_SECONDS: Final = 600.0


@dataclass(slots=True, kw_only=True)
class CompileTask:
    """One profile text to compile, with the results of its previous runs."""

    key: str
    """Identifies the text and the features for which the text is compiled."""
    text: bytes
    features: tuple[str, ...]
    context: str
    origin: str
    """The profile set that contains the text."""
    number: int
    """The position of the text in the order in which texts were submitted."""
    level: int = 0
    is_quick: bool = True
    """Whether the parser omits the simplification of expressions in the next run."""
    retry_at: float = 0.0
    waiting_since: float = 0.0
    """The time at which the text became ready after its last run. A cancelled run does not
    change this time.
    """
    has_reserved_run: bool = False
    """Whether the current run must not be cancelled in favour of other texts."""
    inconclusive_runs: int = 0
    failure: ParserRun | None = None
    """The last run of the text, if it reached a limit or did not start."""

    @property
    def is_slow(self) -> bool:
        """Whether an earlier run of this profile text reached a limit."""
        return self.level > 0 or self.inconclusive_runs > 0


class CompileQueue:
    """Contains the profile texts that wait for the parser or that are being compiled. All times are
    monotonic seconds.
    """

    def __init__(self, *, cpu_limit: float, pauses_slow_texts: bool) -> None:
        """Create an empty queue.

        Args:
            cpu_limit: the length of the longest time slice in CPU seconds.
            pauses_slow_texts: whether texts that compile slowly pause between their runs. The
                daemon uses pauses. A command uses no pauses, because its user waits for the result.
        """
        self.cpu_limit = cpu_limit
        self.pauses_slow_texts = pauses_slow_texts
        self.submitted = 0
        self._waiting: dict[str, CompileTask] = {}
        self._running: dict[str, CompileTask] = {}
        # The parser seconds that each profile set has used.
        self._used_seconds: defaultdict[str, float] = defaultdict(float)
        self._next_reserved_run = 0.0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def find(self, key: str) -> CompileTask | None:
        """Return the task with this key."""
        return self._waiting.get(key) or self._running.get(key)

    def submit(
        self, *, key: str, text: bytes, features: tuple[str, ...], context: str, origin: str
    ) -> None:
        """Add a profile text, unless it is already in the queue."""
        if self.find(key) is not None:
            return
        self.submitted += 1
        self._waiting[key] = CompileTask(
            key=key,
            text=text,
            features=features,
            context=context,
            origin=origin,
            number=self.submitted,
        )

    def retain(self, keys: Collection[str]) -> None:
        """Remove every profile text whose key is not among the given keys."""
        self._waiting = {key: task for key, task in self._waiting.items() if key in keys}
        self._running = {key: task for key, task in self._running.items() if key in keys}
        origins = {task.origin for task in (*self._waiting.values(), *self._running.values())}
        for origin in self._used_seconds.keys() - origins:
            del self._used_seconds[origin]

    def forget(self, key: str) -> None:
        """Remove a waiting profile text."""
        self._waiting.pop(key, None)

    def take(self, now: float) -> CompileTask | None:
        """Return the next profile text and count it as running, or return None if no text may run
        now.

        Only one full run may be active at a time, because it may use all of the memory. A full run
        includes the simplification of regular expressions. Only one reserved run may be active at a
        time.
        """
        only_quick = any(not task.is_quick for task in self._running.values())
        ready = [
            task
            for task in self._waiting.values()
            if task.retry_at <= now and (task.is_quick or not only_quick)
        ]
        if not ready:
            return None
        overdue = self._overdue(ready, now)
        task = min(overdue, key=lambda task: (task.waiting_since, task.number), default=None)
        if task is not None:
            task.has_reserved_run = True
        else:
            task = min(ready, key=self._rank)
        self._running[task.key] = self._waiting.pop(task.key)
        return task

    def _overdue(self, ready: list[CompileTask], now: float) -> list[CompileTask]:
        """Return the texts whose next run must not be cancelled in favour of other texts."""
        has_reserved_run = any(task.has_reserved_run for task in self._running.values())
        if has_reserved_run or now < self._next_reserved_run:
            return []
        return [
            task
            for task in ready
            if task.is_slow and now - max(task.waiting_since, task.retry_at) >= MAX_WAIT_SECONDS
        ]

    def _rank(self, task: CompileTask) -> tuple[bool, int, float, int]:
        return (task.is_slow, task.level, self._used_seconds[task.origin], task.number)

    def next_retry(self) -> float | None:
        """Return when the first waiting profile text may run, or None if no text waits for a
        retry.
        """
        retry = min((task.retry_at for task in self._waiting.values()), default=math.inf)
        return retry if math.isfinite(retry) else None

    def is_idle(self, now: float) -> bool:
        """Return whether no profile text is running and no text may run now."""
        return not self._running and all(task.retry_at > now for task in self._waiting.values())

    def is_cancelled(self, task: CompileTask, now: float) -> bool:
        """Return whether the current run of a profile text must be ended.

        A run is ended if its profile text was removed. The run of a text that compiles slowly is
        also ended while a text that does not compile slowly is ready, unless the run is reserved.
        """
        if not self._is_running(task):
            return True
        return (task.is_slow and not task.has_reserved_run) and any(
            not other.is_slow and other.retry_at <= now for other in self._waiting.values()
        )

    def _is_running(self, task: CompileTask) -> bool:
        """Return whether a text is still in the queue and is being compiled.

        If a text was removed during its run and then submitted again, the new task has another
        number.
        """
        running = self._running.get(task.key)
        return running is not None and running.number == task.number

    def slice_seconds(self, task: CompileTask) -> float:
        """Return how many CPU seconds the next run of the task may use."""
        return min(self.cpu_limit, FIRST_SLICE_SECONDS * SLICE_FACTOR**task.level)

    def record_run(self, task: CompileTask, run: ParserRun, now: float) -> ParserResult | None:
        """Record the end of a run.

        Returns:
            The final result for the text; None if the text waits for another run, or if it was
            removed during the run.
        """
        if not self._is_running(task):
            return None
        self._end_run(task, run, now)
        match run.outcome:
            case ParserResult() if not (run.outcome.error and task.is_quick):
                return run.outcome
            case ParserResult():
                # Only a run with the simplification of expressions can prove that a profile text
                # contains an error.
                task.is_quick = False
            case RunFailure.CANCELLED:
                pass
            case RunFailure.SIGNAL if task.is_quick:
                task.is_quick = False
                task.level += 1
            case (
                RunFailure.WALL_CLOCK
                | RunFailure.NOT_STARTED
                | RunFailure.NO_MEMORY
                | RunFailure.SIGNAL
            ):
                self._postpone(task, run, now)
            case RunFailure.CPU_TIME | RunFailure.MEMORY | RunFailure.OUTPUT:
                if not task.is_quick and self.slice_seconds(task) >= self.cpu_limit:
                    return ParserResult(
                        exceeded_limit=run.detail,
                        is_memory_exceeded=run.outcome is RunFailure.MEMORY,
                    )
                if self.pauses_slow_texts and not task.is_quick:
                    task.retry_at = now + PAUSE_FACTOR * run.seconds
                task.is_quick = False
                task.level += 1
                task.failure = run
        self._waiting[task.key] = task
        return None

    def _end_run(self, task: CompileTask, run: ParserRun, now: float) -> None:
        """Update the times that determine later runs."""
        del self._running[task.key]
        self._used_seconds[task.origin] += run.seconds
        if task.has_reserved_run:
            task.has_reserved_run = False
            self._next_reserved_run = now + PAUSE_FACTOR * run.seconds
        if run.outcome is not RunFailure.CANCELLED:
            task.waiting_since = now

    def _postpone(self, task: CompileTask, run: ParserRun, now: float) -> None:
        """Schedule another run of a profile text after a run without a result."""
        task.inconclusive_runs += 1
        delay = delay_seconds(
            task.inconclusive_runs,
            first_seconds=FIRST_RETRY_SECONDS,
            longest_seconds=MAX_RETRY_SECONDS,
        )
        # A command does not retry, because the retries of many profile texts would never end.
        task.retry_at = now + delay if self.pauses_slow_texts else math.inf
        task.failure = run
        if run.outcome not in (RunFailure.NOT_STARTED, RunFailure.NO_MEMORY):
            # The parser may have hung because it had too little memory, so the next run gets more
            # memory.
            task.is_quick = False
        if run.outcome is RunFailure.SIGNAL and self.slice_seconds(task) < self.cpu_limit:
            task.level += 1  # The CPU limit may have caused the signal that ended the parser.
