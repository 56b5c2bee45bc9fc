"""Compiles AppArmor profile texts in the background, so that no pass waits for the parser.

The main thread submits profile texts and collects results; worker threads only run
`apparmor_parser`. Two parsers run at the same time only if the memory limit of the container leaves
enough for both. compile_queue.py decides which profile text is compiled next, and for how long.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from agent.backends.apparmor.compile_outcomes import CompileOutcomes, CompileResult
from agent.backends.apparmor.compile_queue import CompileQueue, CompileTask
from agent.backends.apparmor.memory_budget import LEAST_PARSER_BYTES, MIN_PARSER_BYTES
from agent.backends.apparmor.parser import Parser, ParserLimits, ParserRun, RunFailure
from agent.backends.apparmor.parser_memory import ParserMemory

# At most this number of parsers run at the same time, if processors and memory allow.
MAX_PARSERS: Final = 2


_NO_MEMORY: Final = ParserRun(
    outcome=RunFailure.NO_MEMORY,
    detail="the container of the agent has too little memory left",
)


class CompileWorker:
    """Runs the parser in separate threads, which are started when the first profile text arrives.

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
        """Create a worker that has no profile texts yet.

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
        self._memory = ParserMemory(free_memory)
        self._queue = CompileQueue(cpu_limit=cpu_limit, pauses_slow_texts=pauses_slow_texts)
        self._changed = threading.Condition()
        self._outcomes = CompileOutcomes()
        self._threads: list[threading.Thread] = []
        self._is_stopped = False
        self._is_registered = False

    def submit(
        self, *, key: str, text: bytes, features: tuple[str, ...], context: str, origin: str
    ) -> ParserRun | None:
        """Queue a profile text, unless it is already queued or its result has not been collected
        yet.

        Returns:
            The last run of the text if that run failed, otherwise None.
        """
        with self._changed:
            if self._outcomes.contains(key):
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
        """Remove every profile text whose key is not among the given keys, even if it is being
        compiled now.
        """
        with self._changed:
            self._queue.retain(keys)

    def collect(self) -> list[CompileResult]:
        """Return all results since the previous call."""
        with self._changed:
            results = self._outcomes.collect()
            self._changed.notify_all()
            return results

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until every queued profile text has a result or must wait for a retry.

        Args:
            progress: called at least once a second with the number of finished texts and the number
                of all texts.

        Returns:
            Whether a parser run has ended since the last call to collect().
        """
        while True:
            with self._changed:
                if self._queue.is_idle(time.monotonic()) or self._outcomes.are_too_large:
                    return self._outcomes.are_new
                self._changed.wait(1.0)
                finished, left = self._outcomes.finished, len(self._queue)
            progress(finished, finished + left)

    def _start_threads(self) -> None:
        if self._threads:
            return
        if not self._is_registered:
            # The parser is ended here, because it must not outlive this process.
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
            self._changed.wait_for(lambda: self._memory.is_free, timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                task, memory = self._next()
            if task is None:
                return
            run = self._compile(task, memory)
            with self._changed:
                self._memory.release(task.number)
                has_failed_before = task.failure is not None
                compiled = self._queue.record_run(task, run, time.monotonic())
                self._outcomes.record_run(task, compiled)
                has_failed_first = task.failure is not None and not has_failed_before
                self._changed.notify_all()
            if compiled is not None or has_failed_first:
                self._completed()

    def _compile(self, task: CompileTask, memory: int) -> ParserRun:
        """Run the parser. If the system has too few threads or too little memory, return a run that
        did not start.
        """
        if memory < LEAST_PARSER_BYTES:
            return _NO_MEMORY
        try:
            run = self._parser.run(
                task.text,
                task.features,
                limits=ParserLimits(
                    cpu_seconds=self._queue.slice_seconds(task), memory_bytes=memory
                ),
                is_quick=task.is_quick,
                is_cancelled=lambda: self._is_cancelled(task) or self._memory.is_exhausted(),
            )
        # RuntimeError: the system cannot start another thread
        except (RuntimeError, MemoryError) as error:
            detail = f"the agent could not run the parser: {error!r}"
            return ParserRun(outcome=RunFailure.NOT_STARTED, detail=detail)
        is_short = memory < MIN_PARSER_BYTES and not task.is_quick
        if (run.outcome is RunFailure.MEMORY and is_short) or (
            run.outcome is RunFailure.CANCELLED and not self._is_cancelled(task)
        ):
            return replace(_NO_MEMORY, seconds=run.seconds)
        return run

    def _next(self) -> tuple[CompileTask | None, int]:
        """Wait for a profile text that may run now. Return the profile text with its memory limit,
        or None if the thread must stop.
        """
        while not self._is_stopped:
            is_blocked = self._outcomes.are_too_large
            memory = 0 if is_blocked else self._memory.left()
            can_run = memory or (self._memory.is_free and not is_blocked)
            task = self._queue.take(time.monotonic()) if can_run else None
            if task is not None:
                may_share = len(self._threads) > 1 and not task.is_quick
                memory = min(memory, MIN_PARSER_BYTES) if task.is_quick else memory
                return task, self._memory.reserve(task.number, memory, may_share=may_share)
            retry = self._queue.next_retry()
            left = None if retry is None else max(0.01, retry - time.monotonic())
            self._changed.wait(left if can_run else None)
        return None, 0

    def _is_cancelled(self, task: CompileTask) -> bool:
        with self._changed:
            return self._is_stopped or self._queue.is_cancelled(task, time.monotonic())
