"""Compiles AppArmor texts in the background, so that no pass waits for the parser.

The main thread submits texts and collects results; worker threads only run `apparmor_parser`. Two
parsers run at the same time only if the memory limit of the container leaves enough for both.
compile_queue.py decides which text is compiled next, and for how long.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.apparmor import memory_budget
from agent.backends.apparmor.compile_queue import CompileQueue, CompileTask
from agent.backends.apparmor.parser import Parser, ParserLimits, ParserRun, RunFailure
from agent.backends.apparmor.policy_cache import ParserResult

# At most this number of parsers run at the same time, if processors and memory allow.
MAX_PARSERS: Final = 2
# No parser starts while the uncollected results are larger than this limit.
MAX_UNCOLLECTED_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """The final result of one text, with the key and the context of its submission."""

    key: str
    context: str
    result: ParserResult


_NO_MEMORY: Final = ParserRun(
    outcome=RunFailure.NO_MEMORY,
    detail="the container of the agent has too little memory left",
)


class CompileWorker:
    """Runs the parser in its own threads, which start with the first text.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        parser: Parser,
        *,
        cpu_limit: float,
        pauses_slow_texts: bool,
        completed: Callable[[], None],
        free_memory: Callable[[], int],
    ) -> None:
        """Create a worker that has no texts yet.

        Args:
            parser: the parser to run.
            cpu_limit: how many CPU seconds the parser may use for one text.
            pauses_slow_texts: see the class CompileQueue.
            completed: called from a worker thread after each result, and after the first failed
                run of a text.
            free_memory: returns the memory that new parsers may use now, without the memory that
                running parsers already use.
        """
        self._parser = parser
        self._completed = completed
        self._free_memory = free_memory
        self._queue = CompileQueue(cpu_limit=cpu_limit, pauses_slow_texts=pauses_slow_texts)
        self._changed = threading.Condition()
        self._results: list[CompileResult] = []
        self._finished = 0
        self._has_new_outcome = False  # whether a run has ended since the last call of collect()
        # reserved bytes of memory, by the number of the running task
        self._reserved: dict[int, int] = {}
        # The free memory when a parser last started while no other parser was running.
        self._idle_memory = 0
        self._threads: list[threading.Thread] = []
        self._is_stopped = False
        self._is_registered = False

    def submit(
        self, *, key: str, text: bytes, features: tuple[str, ...], context: str, origin: str
    ) -> ParserRun | None:
        """Queue a text, unless it is already queued or its result has not been collected yet.

        Returns:
            Return the last run of the text if that run failed.
        """
        with self._changed:
            if any(uncollected.key == key for uncollected in self._results):
                return None
            self._queue.submit(
                key=key, text=text, features=features, context=context, origin=origin
            )
            try:
                self._start_threads()
            except RuntimeError as error:  # The system cannot start another thread.
                self._queue.forget(key)
                return ParserRun(outcome=RunFailure.NOT_STARTED, detail=str(error))
            self._changed.notify_all()
            task = self._queue.find(key)
            return task.failure if task is not None else None

    def retain(self, keys: Collection[str]) -> None:
        """Remove every queued text whose key is not among the given keys, even while it is
        compiled.
        """
        with self._changed:
            self._queue.retain(keys)

    def collect(self) -> list[CompileResult]:
        """Return all results since the previous call."""
        with self._changed:
            results, self._results = self._results, []
            self._has_new_outcome = False
            self._changed.notify_all()
            return results

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until every queued text has a result or must wait for a retry.

        Args:
            progress: called at least once a second with the number of finished texts and the number
                of all texts.

        Returns:
            Return whether a run has ended since the last call of collect().
        """
        while True:
            with self._changed:
                if self._queue.is_idle(time.monotonic()) or self._has_backlog():
                    return self._has_new_outcome
                self._changed.wait(1.0)
                finished, left = self._finished, len(self._queue)
            progress(finished, finished + left)

    def _start_threads(self) -> None:
        if self._threads:
            return
        if not self._is_registered:
            # A parser must not outlive this process.
            atexit.register(self._stop)
            self._is_registered = True
        for number in range(min(MAX_PARSERS, len(os.sched_getaffinity(0)))):
            thread = threading.Thread(target=self._run, name=f"compile-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                return
            self._threads.append(thread)

    def _stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._reserved, timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                task, memory = self._next()
            if task is None:
                return
            run = self._compile(task, memory)
            with self._changed:
                del self._reserved[task.number]
                has_failed_before = task.failure is not None
                compiled = self._queue.record_run(task, run, time.monotonic())
                if compiled is not None:
                    self._finished += 1
                    self._results.append(
                        CompileResult(key=task.key, context=task.context, result=compiled)
                    )
                has_failed_first = task.failure is not None and not has_failed_before
                self._has_new_outcome = True
                self._changed.notify_all()
            if compiled is not None or has_failed_first:
                self._completed()

    def _compile(self, task: CompileTask, memory: int) -> ParserRun:
        """Run the parser. If threads or memory are missing, return a run that did not start."""
        if memory < memory_budget.LEAST_PARSER_BYTES:
            return _NO_MEMORY
        try:
            run = self._parser.run(
                task.text,
                task.features,
                limits=ParserLimits(
                    cpu_seconds=self._queue.slice_seconds(task), memory_bytes=memory
                ),
                is_quick=task.is_quick,
                is_cancelled=lambda: self._is_cancelled(task) or not self._free_memory(),
            )
        # RuntimeError: the system cannot start another thread
        except (RuntimeError, MemoryError) as error:
            detail = f"the agent could not run the parser: {error!r}"
            return ParserRun(outcome=RunFailure.NOT_STARTED, detail=detail)
        is_short = memory < memory_budget.MIN_PARSER_BYTES and not task.is_quick
        if (run.outcome is RunFailure.MEMORY and is_short) or (
            run.outcome is RunFailure.CANCELLED and not self._is_cancelled(task)
        ):
            return replace(_NO_MEMORY, seconds=run.seconds)
        return run

    def _next(self) -> tuple[CompileTask | None, int]:
        """Wait for a text that may run now. Return the text with its memory limit, or None to
        stop.
        """
        while not self._is_stopped:
            memory = 0 if self._has_backlog() else self._memory_left()
            can_run = memory or not (self._reserved or self._has_backlog())
            task = self._queue.take(time.monotonic()) if can_run else None
            if task is not None:
                if task.is_quick:
                    memory = min(memory, memory_budget.MIN_PARSER_BYTES)
                elif (
                    not self._reserved
                    and memory >= 2 * memory_budget.MIN_PARSER_BYTES
                    and len(self._threads) > 1
                ):
                    memory -= (
                        memory_budget.MIN_PARSER_BYTES
                    )  # A second parser may start while this parser runs.
                self._reserved[task.number] = memory
                return task, memory
            retry = self._queue.next_retry()
            left = None if retry is None else max(0.01, retry - time.monotonic())
            self._changed.wait(left if can_run else None)
        return None, 0

    def _has_backlog(self) -> bool:
        """Return whether uncollected results use too much memory."""
        return sum(len(each.result.policy) for each in self._results) > MAX_UNCOLLECTED_BYTES

    def _memory_left(self) -> int:
        """Return how many bytes one more parser may use, or 0 if it must wait for a running parser.

        Each running parser may use all of the memory that is reserved for it. The current free
        memory already lacks the memory that running parsers use, so the reservations are subtracted
        from the free memory at the time when no parser ran. Only a parser that runs alone may use
        less than the minimum.
        """
        free = self._free_memory()
        if not self._reserved:
            self._idle_memory = free
            return free
        left = min(free, self._idle_memory - sum(self._reserved.values()))
        return left if left >= memory_budget.MIN_PARSER_BYTES else 0

    def _is_cancelled(self, task: CompileTask) -> bool:
        with self._changed:
            return self._is_stopped or self._queue.is_cancelled(task, time.monotonic())
