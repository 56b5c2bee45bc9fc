"""Specification of reading a file's content: whole, whatever its size was said to be."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.host import reading


@example(b"abc", 1, 2)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_the_whole_content_comes_whatever_the_size_is_said_to_be(written, size, limit):
    """A file that grew, shrank or is in /proc is read to its end, or one byte beyond the limit."""
    with tempfile.TemporaryFile() as file:
        file.write(written)
        file.seek(0)
        assert reading.read_all(file.fileno(), size, limit) == written[: limit + 1]


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_what_comes_piece_by_piece_is_read_to_its_end(size):
    """A file in /proc gives a part at a time, whatever its size is said to be."""
    with open("/proc/self/maps", "rb", buffering=0) as file:  # noqa: PTH123 - its descriptor
        found = reading.read_all(file.fileno(), size)
    assert found.count(b"[stack]") == 1
    assert len(found) > os.sysconf("SC_PAGE_SIZE")


def test_a_number_in_proc_sys_is_read_whole():
    """The kernel gives it to one read and nothing to the next, and says that it has no size."""
    with open("/proc/sys/kernel/pid_max", "rb", buffering=0) as file:  # noqa: PTH123 - its descriptor
        found = reading.read_all(file.fileno(), os.fstat(file.fileno()).st_size)
    assert found == Path("/proc/sys/kernel/pid_max").read_bytes()
