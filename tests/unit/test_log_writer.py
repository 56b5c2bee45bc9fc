"""Tests of agent.reporting.log_writer with real pipes."""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest
import structlog

from agent.reporting import logs
from agent.reporting.log_writer import LIMIT_BYTES, LogWriter
from agent.reporting.metrics import Metrics
from tests.reports import scrape

LINE = "x" * 99


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe. After the test, both ends are closed and logging is restored."""
    handlers = list(logging.getLogger().handlers)
    reader, writer = os.pipe()
    yield reader, writer
    logging.getLogger().handlers[:] = handlers
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def filled(descriptor):
    """Fill a pipe, so that the next write blocks. Return the number of written bytes."""
    count = 0
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            count += os.write(descriptor, b"x" * 4096)
    os.set_blocking(descriptor, True)
    return count


def read(reader, count):
    """Read an exact number of bytes."""
    content = b""
    while len(content) < count:
        content += os.read(reader, count - len(content))
    return content


def read_until(reader: int, last: bytes) -> list[str]:
    """Read a pipe until a line contains a text, and return all lines."""
    content = b""
    while last not in content:
        content += os.read(reader, 1 << 16)
    return content.decode().splitlines()


def test_a_blocked_log_does_not_block_callers(pipe: tuple[int, int]) -> None:
    """A blocked log does not block callers. Lines above the limit are dropped and counted. The
    other lines arrive in order when the log is read again.
    """
    reader, descriptor = pipe
    filler = filled(descriptor)
    writer = LogWriter(descriptor, limit_bytes=10_000)
    logs.configure("json", "info", writer)
    for number in range(300):
        writer.write(f"{number:099}")
    dropped = writer.dropped()
    assert dropped == 200
    assert read(reader, filler) == b"x" * filler
    text = read_until(reader, b"log_lines_dropped")
    assert [int(line) for line in text[:-1]] == [*range(100)]
    assert json.loads(text[-1])["lines"] == dropped
    metrics = scrape(Metrics("1", log_lines_dropped=writer.dropped))[1].decode()
    assert f"profile_loader_log_lines_dropped_total {float(dropped)}" in metrics


def test_a_broken_pipe_only_drops_lines(pipe: tuple[int, int]) -> None:
    """If the pipe is broken, the writer tries to write each line once, drops it and counts it."""
    reader, descriptor = pipe
    os.close(reader)
    writer = LogWriter(descriptor, limit_bytes=LIMIT_BYTES)
    writer.write("a")
    writer.write("b")
    writer.flush(60)
    assert writer.dropped() == 2


def test_the_writer_waits_for_a_full_pipe_that_does_not_block(pipe: tuple[int, int]) -> None:
    """The writer also waits for a full pipe if its creator made it non-blocking."""
    reader, descriptor = pipe
    os.set_blocking(descriptor, False)
    writer = LogWriter(descriptor, limit_bytes=LIMIT_BYTES)
    for _ in range(2000):
        writer.write(LINE)
    writer.write("end")
    assert read_until(reader, b"end") == [LINE] * 2000 + ["end"]
    assert writer.dropped() == 0


def test_the_process_waits_for_the_log_before_it_ends(pipe: tuple[int, int]) -> None:
    """Before the process exits, it waits until its last lines are written."""
    reader, descriptor = pipe
    writer = LogWriter(descriptor, limit_bytes=LIMIT_BYTES)
    logs.configure("json", "info", writer)
    structlog.stdlib.get_logger("agent").info("last")
    for handler in logging.getLogger().handlers:
        handler.flush()
    assert b"last" in os.read(reader, 1 << 16)


def test_every_thread_may_log(pipe: tuple[int, int]) -> None:
    """If several threads log at the same time, their lines are never mixed."""
    reader, descriptor = pipe
    writer = LogWriter(descriptor, limit_bytes=LIMIT_BYTES)
    threads = [
        threading.Thread(target=lambda: [writer.write(LINE) for _ in range(500)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    lines = read_until(reader, (LINE + "\n").encode())
    while len(lines) < 2000:
        lines += os.read(reader, 100).decode().splitlines()
    for thread in threads:
        thread.join()
    assert set(lines) == {LINE}
