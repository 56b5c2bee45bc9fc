"""Tests of agent.host.commands, which runs commands with limits."""

import dataclasses
import errno
import os
import select
from pathlib import Path
from typing import Any

import pytest

from agent.host import commands
from agent.host.commands import CommandLimits, Exited, Limit
from agent.host.filesystem import HostError

PYTHON = os.path.realpath("/proc/self/exe")
LIMITS = CommandLimits(seconds=20, memory_bytes=1 << 30, cpu_seconds=10, output_bytes=1 << 16)


def run(*argv: str, stdin: bytes = b"", **limits: Any) -> commands.Exited:
    """Run a command with the default limits, or with the given limits."""
    return commands.run(argv, stdin=stdin, limits=dataclasses.replace(LIMITS, **limits))


def test_a_command_reads_its_input_and_its_output_is_returned() -> None:
    """A command reads its input. The result contains both output streams and the exit status."""
    code = "import sys; d = sys.stdin.read(); print(d.upper()); sys.stderr.write('e'); sys.exit(3)"
    expected = Exited(status=3, stdout=b"ABC\n", stderr=b"e")
    assert expected == run(PYTHON, "-c", code, stdin=b"abc")


def test_a_command_that_hangs_is_killed_with_its_children() -> None:
    """A command that exceeds the wall-clock limit is killed with its whole process group."""
    exited = run(PYTHON, "-c", "import os, signal; os.fork(); signal.pause()", seconds=0.3)
    assert (exited.status, exited.limit) == (-9, Limit.WALL_CLOCK)


def test_a_command_with_too_much_output_is_ended() -> None:
    """A command that exceeds the output limit is stopped, and the result contains at most this
    number of bytes.
    """
    exited = run(PYTHON, "-c", "import os\nwhile True: os.write(1, b'x' * 4096)")
    assert (len(exited.stdout), exited.status != 0) == (1 << 16, True)


def test_the_cpu_time_of_a_command_is_limited() -> None:
    """A command in an endless loop is stopped at its CPU limit."""
    assert run(PYTHON, "-c", "while True: pass", cpu_seconds=1).limit is Limit.CPU_TIME


def test_a_missing_program_is_a_host_error() -> None:
    """If a program is missing, the error contains the errno of the failed start."""
    with pytest.raises(HostError) as error:
        run("/nowhere/parser")
    assert error.value.errno == errno.ENOENT


@pytest.mark.parametrize("number", range(20))
def test_a_process_that_the_command_starts_at_once_gets_the_same_limits(number: int) -> None:
    """The limits also apply to a child process that the command forks at once."""
    memory_kib = LIMITS.memory_bytes >> 10
    script = f"{{ until [ $(ulimit -v) = {memory_kib} ]; do :; done; echo {number}; }} & wait"
    exited = run("/bin/sh", "-c", script)
    assert (exited.status, exited.stdout) == (0, b"%d\n" % number)


def test_the_cpu_time_of_a_command_includes_its_children() -> None:
    """The result includes the CPU time of child processes."""
    exited = run("/bin/sh", "-c", 'sh -c "while :; do :; done"; exit 10', cpu_seconds=1)
    assert (exited.status, exited.limit) == (10, None)
    assert exited.cpu_seconds >= 0.5


def test_the_output_limit_of_a_process_that_the_command_starts_is_reported() -> None:
    """If a child process reaches the output limit, the result reports this limit."""
    exited = run("/bin/sh", "-c", "head -c 10000000 /dev/zero; exit 10", output_bytes=4096)
    assert (exited.status, exited.limit) == (10, Limit.OUTPUT)


def test_a_process_that_outlives_the_command_is_killed(tmp_path: Path) -> None:
    """After a command has exited, all of its child processes are killed."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    run("/bin/sh", "-c", f"exec 3>{path}; {{ while :; do :; done; }} & exit 0")
    # The pipe reports a hang-up when no process has its other end open any more.
    ready = select.poll()
    ready.register(reader, 0)
    assert ready.poll(60_000) == [(reader, select.POLLHUP)]
    os.close(reader)
