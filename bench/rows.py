"""What is measured: the rows of docs/performance.md, in their order.

Rule 1: a row is measured by one function, which returns every sample that it took; nothing is left
out. Rule 2: what a figure is compared with is measured in the same run, turn by turn. Rule 3: a
time of the clock is of an idle machine only; a time of the CPU is of any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing measured: samples of one unit (`ms`, `s`, `MiB`, `%`, `x`, `a second`)."""

    label: str
    samples: tuple[float, ...]
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A number beside what it should be at most."""

    label: str
    value: float
    limit: float
    unit: str

    @property
    def reached(self) -> bool:
        """Return whether it is as it should be."""
        return self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a row gave. said: sentences about what was found on the way.

    versions: those of what was used beside this machine's programs. svg: the row's drawing.
    """

    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    said: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    svg: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: its name, what it measures, what is to be reached, and the function's place.

    minutes: how long it takes on two idle cores, with as many runs as it wants by itself.
    """

    name: str
    what: str
    reach: str
    place: str
    runs: int
    minutes: float

    def measure(self, runs: int) -> Result:
        """Measure it."""
        module, _, function = self.place.partition(":")
        measure: Callable[[int], Result] = getattr(import_module(f"bench.{module}"), function)
        return measure(runs)


ROWS: Final = (
    Row(
        name="cold",
        what="cold, realistic AppArmor profiles (tunables/global, abstractions/base, 16 rules): "
        "1 and 100 in the VM, 1,000 on the host without loading",
        reach="at most 1.1 x one bare `apparmor_parser` run over the same files on one core, and "
        "near 0.6 x on two; parser optimisation flags only where they do not change the policy's "
        "meaning (show it)",
        place="cold:measure",
        runs=3,
        minutes=11,
    ),
    Row(
        name="reboot",
        what="start after a reboot, 1,000 unchanged cached profiles, VM",
        reach="no parser run; at most 2 x the time of writing the same cached policies to the "
        "kernel",
        place="machine:reboot",
        runs=3,
        minutes=11,
    ),
    Row(
        name="loaded",
        what="start, all still in the kernel, 1,000, VM",
        reach="at most 2.5 s; nothing loaded, nothing written",
        place="machine:loaded",
        runs=3,
        minutes=11,
    ),
    Row(
        name="unchanged",
        what="a pass over an unchanged node and source, 1,000 profiles",
        reach="at most 20 ms of CPU (host; in the VM measured too)",
        place="passes:unchanged",
        runs=30,
        minutes=12,
    ),
    Row(
        name="seccomp",
        what="1,000 seccomp profiles of 400 syscalls: first install; unchanged pass",
        reach="at most 2.5 x the time of parsing the same JSON and writing the files with the same "
        "fsyncs; unchanged at most 20 ms",
        place="passes:seccomp",
        runs=7,
        minutes=2,
    ),
    Row(
        name="label",
        what="ConfigMap change -> on the label, real API server, host only (seccomp)",
        reach="median at most 100 ms",
        place="api:label",
        runs=50,
        minutes=2,
    ),
    Row(
        name="verified",
        what="ConfigMap change -> verified in the kernel and on the label, API server on the host, "
        "agent in the VM over user-mode networking",
        reach="median at most 300 ms over the compile time there; beside it a 30 s poll and a "
        "mounted volume",
        place="api:verified",
        runs=20,
        minutes=6,
    ),
    Row(
        name="repair",
        what="repair after outside removal, VM",
        reach="median at most 50 ms over the load itself",
        place="machine:repair",
        runs=50,
        minutes=2,
    ),
    Row(
        name="memory",
        what="memory of the daemon, API source, 20 profiles",
        reach="at most 60 MiB RSS steady, peak at most 72 MiB; no growth in 10,000 passes; "
        "1,000 profiles at most 20 MiB more",
        place="api:memory",
        runs=3,
        minutes=10,
    ),
    Row(
        name="idle",
        what="idle",
        reach="below 0.1 % of a core over 10 minutes; below 2 wake-ups a second",
        place="api:idle",
        runs=1,
        minutes=11,
    ),
    Row(
        name="start",
        what="start to first pass done, 20 seccomp profiles, host",
        reach="at most 0.4 s for `--oneshot` from a directory; at most 1.0 s with the API source",
        place="api:start",
        runs=15,
        minutes=1,
    ),
    Row(
        name="growth",
        what="growth",
        reach="time and memory at 10, 100, 1,000, 3,000 profiles; linear or better, shown as a "
        "plot in docs/",
        place="passes:growth",
        runs=3,
        minutes=3,
    ),
)
BY_NAME: Final = {row.name: row for row in ROWS}
