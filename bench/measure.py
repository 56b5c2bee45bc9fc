"""Runs programs in separate processes, and measures them.

The kernel counts the CPU time of a child process and of all its descendants (wait4(2)), so these
figures are also correct on a busy machine.
"""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The elapsed and CPU seconds of a child process, its exit status and its output."""

    wall: float
    cpu: float
    status: int
    stdout: bytes = b""


def child(
    argv: Sequence[str | Path],
    *,
    cores: int = 0,
    fine: Sequence[int] = (0,),
) -> Spent:
    """Run a command until it exits.

    Args:
        argv: the command.
        cores: the number of cores that the command may use; 0 means all cores.
        fine: the exit statuses that are not errors.
    """

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    # The output is written to files, because a program with much output would block on a pipe that
    # no process reads.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - a list of our own
            [str(one) for one in argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=pin,  # noqa: PLW1509 - this process has one thread
        )
        _, code, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        process.returncode = status = os.waitstatus_to_exitcode(code)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    if status not in fine:
        raise AssertionError(f"{argv}: {status}\n{stdout[-2000:]!r}\n{stderr[-2000:]!r}")
    return Spent(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        status=status,
        stdout=stdout,
    )


def turns(runs: int, contenders: Mapping[str, Callable[[], Spent]]) -> dict[str, tuple[Spent, ...]]:
    """Run each program several times, alternating between the programs, so that all of them run
    under the same load.
    """
    found: dict[str, list[Spent]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, run in contenders.items():
            found[name].append(run())
    return {name: tuple(one) for name, one in found.items()}


def median(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Return the ratio between two programs for each round."""
    return tuple(one / other for one, other in zip(ours, theirs, strict=True))


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a running process (proc(5): stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[float, float]:
    """Return the resident memory of a running process and its peak, in MiB."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024


def wakeups(pid: int) -> int:
    """Return how often the threads of a running process woke up after sleeping."""
    total = 0
    for path in Path(f"/proc/{pid}/task").iterdir():
        for line in (path / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total
