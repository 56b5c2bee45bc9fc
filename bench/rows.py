"""Declares the rows of docs/performance.md, in the order of that page.

One function measures each row and returns every sample. The programs with which a figure is
compared run alternately in the same run of the benchmark. Elapsed times are valid only on an idle
machine, but CPU times are valid on any machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured value: samples of one unit (`ms`, `s`, `MiB`, `%`, `x`, `a second`)."""

    label: str
    samples: tuple[float, ...]
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A measured value and its limit."""

    label: str
    value: float
    limit: float
    unit: str

    @property
    def reached(self) -> bool:
        """Return whether the value is within the limit."""
        return self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a row.

    said: remarks for the page. versions: the versions of programs that this machine does not have.
    svg: the drawing of the row.
    """

    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    said: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    svg: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, with its name, its subject, its limit, and the place of its function.

    minutes: the duration on two idle cores, with the default number of runs.
    """

    name: str
    what: str
    reach: str
    place: str
    runs: int
    minutes: float

    def measure(self, runs: int) -> Result:
        """Measure the row."""
        module, _, function = self.place.partition(":")
        measure: Callable[[int], Result] = getattr(import_module(f"bench.{module}"), function)
        return measure(runs)


ROWS: Final = (
    Row(
        name="cold",
        what="compiling new AppArmor profiles: 1 and 100 in the VM, 1,000 on the host",
        reach="at most 1.1 x the time of one parser run on one core; at most 0.6 x on two cores",
        place="cold:measure",
        runs=3,
        minutes=11,
    ),
    Row(
        name="reboot",
        what="a start after a reboot with 1,000 cached profiles, in the VM",
        reach="no parser run; at most 2 x the time of writing the same policies to the kernel",
        place="machine:reboot",
        runs=3,
        minutes=11,
    ),
    Row(
        name="loaded",
        what="a start with 1,000 profiles already loaded, in the VM",
        reach="at most 2.5 s; nothing is loaded or written",
        place="machine:loaded",
        runs=3,
        minutes=11,
    ),
    Row(
        name="unchanged",
        what="a pass over an unchanged node with 1,000 profiles",
        reach="at most 20 ms of CPU time on the host",
        place="passes:unchanged",
        runs=30,
        minutes=12,
    ),
    Row(
        name="seccomp",
        what="1,000 seccomp profiles with 400 system calls each",
        reach="at most 2.5 x the time of parsing and writing the files; unchanged at most 20 ms",
        place="passes:seccomp",
        runs=7,
        minutes=2,
    ),
    Row(
        name="label",
        what="from a ConfigMap change to the label, with a real API server (seccomp)",
        reach="median at most 100 ms",
        place="api:label",
        runs=50,
        minutes=2,
    ),
    Row(
        name="verified",
        what="from a ConfigMap change to the verified AppArmor profile and its label",
        reach="median at most 300 ms longer than the compile time",
        place="api:verified",
        runs=20,
        minutes=6,
    ),
    Row(
        name="repair",
        what="restoring a profile that another program removed, in the VM",
        reach="median at most 50 ms longer than the load itself",
        place="machine:repair",
        runs=50,
        minutes=2,
    ),
    Row(
        name="memory",
        what="memory of the daemon that reads ConfigMaps, with 20 profiles",
        reach="at most 60 MiB, peak at most 72 MiB; no growth; at most 20 MiB more for 1,000 "
        "profiles",
        place="api:memory",
        runs=3,
        minutes=10,
    ),
    Row(
        name="idle",
        what="CPU time and wake-ups of an idle daemon",
        reach="below 0.1 % of a core and below 2 wake-ups a second",
        place="api:idle",
        runs=1,
        minutes=11,
    ),
    Row(
        name="start",
        what="from the start to the end of the first pass, 20 seccomp profiles",
        reach="at most 0.4 s for `--oneshot`; at most 1.0 s with ConfigMaps",
        place="api:start",
        runs=15,
        minutes=1,
    ),
    Row(
        name="growth",
        what="time and memory for 10, 100, 1,000 and 3,000 profiles",
        reach="linear or better",
        place="passes:growth",
        runs=3,
        minutes=3,
    ),
)
BY_NAME: Final = {row.name: row for row in ROWS}
