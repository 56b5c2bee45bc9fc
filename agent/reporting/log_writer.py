"""Queues log lines up to a limit, and writes them in a separate thread.

A write to a full pipe blocks until another process reads the pipe. Because a separate thread writes
the lines, a blocked log never blocks the work on the node. While the queue is full, new lines are
dropped and counted. The next written line reports how many lines were dropped.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from typing import Final

import structlog

LIMIT_BYTES: Final = 1 << 20  # The largest total size of the queued lines.
FLUSH_SECONDS: Final = 0.4  # The longest wait for the queue at the end of the process.


class LogWriter:
    """Writes lines to a file descriptor without blocking the caller.

    Any thread may use this object. The lines are written in their original order. Each line is
    either written completely, or dropped and counted.
    """

    def __init__(self, descriptor: int, *, limit_bytes: int) -> None:
        """Start the thread, which ends with the process.

        Args:
            descriptor: the file descriptor to write to.
            limit_bytes: the largest total size of the queued lines.
        """
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._lines: deque[bytes] = deque()
        # The size of the queued lines and of the line that is being written.
        self._waiting_bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Queue a line, or drop the line if the queue is full."""
        content = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._waiting_bytes + len(content) > self._limit_bytes:
                self._dropped += 1
                return
            self._lines.append(content)
            self._waiting_bytes += len(content)
            self._changed.notify_all()

    def dropped(self) -> int:
        """Return how many lines were dropped since the start."""
        return self._dropped

    def flush(self, seconds: float) -> None:
        """Wait until every queued line is written, but at most the given number of seconds."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._waiting_bytes and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        reported = 0
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                line = self._lines.popleft()
            is_written = self._write(line)
            with self._changed:
                self._waiting_bytes -= len(line)
                self._dropped += not is_written
                missing = self._dropped - reported if is_written and not self._lines else 0
                self._changed.notify_all()
            if missing:
                reported += missing
                structlog.stdlib.get_logger("agent").warning("log_lines_dropped", lines=missing)

    def _write(self, line: bytes) -> bool:
        """Write a line, wait as long as necessary, and return whether the line was written."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:  # The pipe has no reader, or the disk is full.
                return False
        return True


class QueueHandler(logging.Handler):
    """A logging handler that writes through a LogWriter."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Format a log record, and queue the resulting line."""
        self._writer.write(self.format(record))

    def flush(self) -> None:
        """Wait a short time until the queue is empty. The module logging calls this method at the
        end of the process.
        """
        self._writer.flush(FLUSH_SECONDS)
