"""Property tests of agent.host.reading: all content is read, even if fstat reports a wrong size."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.host import reading


@example(b"abc", 1, 2)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_the_whole_content_is_read_for_any_reported_size(written, size, limit) -> None:
    """A file of any reported size is read to its end, or to one byte above the limit."""
    with tempfile.TemporaryFile() as file:
        file.write(written)
        file.seek(0)
        assert reading.read_all(file.fileno(), size, limit) == written[: limit + 1]


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_file_that_is_returned_in_parts_is_read_to_its_end(size) -> None:
    """A file is read to its end, even if each read returns only a part of its content."""
    with open("/proc/self/maps", "rb", buffering=0) as file:
        content = reading.read_all(file.fileno(), size)
    assert content.count(b"[stack]") == 1
    assert len(content) > os.sysconf("SC_PAGE_SIZE")


def test_a_number_in_proc_sys_is_read_completely() -> None:
    """A number in /proc/sys is read completely, although fstat reports the size 0."""
    with open("/proc/sys/kernel/pid_max", "rb", buffering=0) as file:
        content = reading.read_all(file.fileno(), os.fstat(file.fileno()).st_size)
    assert content == Path("/proc/sys/kernel/pid_max").read_bytes()
