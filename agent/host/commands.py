"""Starts programs on this machine with limits, and reads their output up to a limit.

No other module of the agent starts a process. A command is a list of arguments that begins with an
absolute path. Each command has a time limit and resource limits. A command never outlives the block
that started it. landlock.py restricts the files that a command can open.
"""

import contextlib
import enum
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Final

from agent.host import landlock
from agent.host.filesystem import translated_errors

# The interval at which a running command is checked for cancellation.
CANCEL_CHECK_SECONDS: Final = 0.1
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Limit(enum.Enum):
    """The type of limit that a command exceeded."""

    WALL_CLOCK = "wall_clock"
    CPU_TIME = "cpu_time"
    OUTPUT = "output"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLimits:
    """The limits that apply to one command."""

    seconds: float
    """The wall-clock time after which the command is killed."""
    memory_bytes: int
    """The address space of each process of the command."""
    cpu_seconds: int
    """The CPU time of each process of the command."""
    output_bytes: int
    """The size of each file that the command writes, and of each of its output streams."""

    def resource_limits(self) -> dict[int, tuple[int, int]]:
        """Return the soft and the hard limit for each resource (getrlimit(2))."""
        return {
            resource.RLIMIT_AS: (self.memory_bytes, self.memory_bytes),
            resource.RLIMIT_CPU: (self.cpu_seconds, self.cpu_seconds + 1),
            resource.RLIMIT_FSIZE: (self.output_bytes, self.output_bytes),
            resource.RLIMIT_CORE: (0, 0),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The result of a command that has ended."""

    status: int
    """The exit status, or -N after signal N."""
    stdout: bytes
    stderr: bytes
    limit: Limit | None = None
    """The limit that ended the command, or None if the command ended by itself."""
    seconds: float = field(default=0.0, compare=False)
    """The wall-clock time that the command took."""
    cpu_seconds: float = field(default=0.0, compare=False)
    """The CPU time of the command and of the children that it waited for."""


def run(argv: Sequence[str], *, stdin: bytes, limits: CommandLimits) -> Exited:
    """Run a command until it ends or is killed because it exceeds a limit. Raises HostError if the
    start fails.
    """
    with started(argv, stdin=stdin, limits=limits) as running:
        return running.result()


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    *,
    stdin: bytes,
    limits: CommandLimits,
    sandbox: landlock.Access | None = None,
) -> Iterator["Running"]:
    """Start a command, and yield it. The command is killed when the block ends.

    Args:
        argv: the arguments; the first argument is an absolute path on this machine.
        stdin: the content of the standard input.
        limits: the limits, which also apply to each process that the command starts.
        sandbox: the only files that the command can open in addition to its standard input; None
            means that it can open all files.

    Raises:
        HostError: the command could not be started.
    """
    with (
        translated_errors(argv[0]),
        tempfile.TemporaryFile() as standard_input,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        standard_input.write(stdin)
        standard_input.seek(0)
        children = _Children()
        start = partial(children.start, argv, standard_input, out, err)
        try:
            if sandbox is None:
                start()
            else:
                # The child process inherits the Landlock restrictions of the thread that starts it.
                # The command may open its standard input by name (/proc/self/fd/0).
                readable = (*sandbox.read, f"/proc/self/fd/{standard_input.fileno()}")
                landlock.run(start, replace(sandbox, read=readable))
            # Code between fork and exec could deadlock, because another thread may have held a lock
            # during the fork. Therefore, the agent sets the limits of the child from its own
            # process.
            yield Running(children[0], (out, err), limits)
        finally:
            children.end()


class _Children:
    """Tracks the processes that were started. A process that another thread starts after the call
    to `end` is killed immediately.

    A signal handler may raise an exception in this thread while another thread is still starting
    the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._has_ended = False

    def __getitem__(self, index: int) -> "subprocess.Popen[bytes]":
        return self._processes[index]

    def start(
        self, argv: Sequence[str], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]
    ) -> None:
        """Start a process in a new session."""
        process = subprocess.Popen(  # noqa: S603 - an absolute path and a list, no shell
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        with self._lock:
            self._processes.append(process)
            if self._has_ended:
                _kill(process)

    def end(self) -> None:
        with self._lock:
            self._has_ended = True
            for process in self._processes:
                _kill(process)


class Running:
    """A running command."""

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        output: tuple[IO[bytes], IO[bytes]],
        limits: CommandLimits,
    ) -> None:
        self._child = child
        self._resource_limits = limits.resource_limits()
        _set_limits(child.pid, self._resource_limits)
        self._limits = limits
        self._output = output
        self._begin = self._end = time.monotonic()
        self._cpu_seconds = 0.0
        # Only `result` may reap the process, because its PID must stay valid until then.
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        self._end = time.monotonic()
        self._cpu_seconds = _cpu_seconds(self._child.pid)

    def result(self, is_cancelled: Callable[[], bool] = lambda: False) -> Exited:
        """Wait until the command ends, and return its result.

        The command is killed at its time limit, or when `is_cancelled` returns True. The result
        also reports the output limit if a child process of the command reached it.
        """
        limit = None
        deadline = self._begin + self._limits.seconds
        while self._waiter.is_alive():
            # The limits are set a second time, because the command may have forked processes while
            # the limits were set for the first time.
            _set_limits(self._child.pid, self._resource_limits)
            remaining = deadline - time.monotonic()
            if remaining <= 0 or is_cancelled():
                limit = Limit.WALL_CLOCK if remaining <= 0 else Limit.CANCELLED
                _kill(self._child)
                break
            # This wait is faster than Popen.wait, which returns up to 50 ms after the end of the
            # process.
            self._waiter.join(min(remaining, CANCEL_CHECK_SECONDS))
        _kill(self._child)  # Other processes that the command started may still run.
        outputs = []
        for file in self._output:
            file.seek(0)
            outputs.append(file.read(self._limits.output_bytes))
        self._waiter.join()
        if self._child.returncode != 0:
            limit = self._reached_limit(max(map(len, outputs))) or limit
        return Exited(
            status=self._child.returncode,
            stdout=outputs[0],
            stderr=outputs[1],
            limit=limit,
            seconds=self._end - self._begin,
            cpu_seconds=self._cpu_seconds,
        )

    def _reached_limit(self, written_bytes: int) -> Limit | None:
        """Return the limit that a failed command exceeded."""
        if self._child.returncode == -signal.SIGXFSZ:
            return Limit.OUTPUT
        if self._child.returncode == -signal.SIGXCPU:
            return Limit.CPU_TIME
        if written_bytes >= self._limits.output_bytes:
            return Limit.OUTPUT
        return None


def _set_limits(process: int, limits: Mapping[int, tuple[int, int]]) -> None:
    """Set the resource limits of a process and of all its descendants. Raises OSError.

    Processes that are forked later inherit the limits. The function finds earlier descendants in
    /proc, because a process inherits limits only when it is forked.
    """
    processes = [process]
    while processes:
        pid = processes.pop()
        with contextlib.suppress(ProcessLookupError):
            for which, values in limits.items():
                resource.prlimit(pid, which, values)
        # The kernel may have been built without this file (CONFIG_PROC_CHILDREN).
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
            processes += map(int, children.split())


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of an ended process and of the children that the process waited for.

    The result is 0 if /proc does not show the process (proc(5): stat, fields 14 to 17).
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        ticks = sum(map(int, fields.split()[11:15]))
    except (OSError, ValueError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill a process and its process group, and reap the process.

    The group is killed before the process is reaped, because the kernel can reuse the ID of the
    group afterwards.
    """
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
