"""Measures the rows with passes on this machine: unchanged passes, a first installation, growth."""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import made, plot
from bench.inside import YOUNG_SECONDS
from bench.measure import Spent, child, median, ratios, turns
from bench.rows import Claim, Figure, Result

MANY: Final = 1000
# For each profile, an installation writes the source, the canonical form and the profile once, and
# the ledger entry (1 KiB) twice.
WHOLE: Final = 3
SMALL: Final = 2
_UNCHANGED_MS: Final = 20.0
_SIZES: Final = (10, 100, 1000, 3000)


@contextmanager
def scratch() -> Iterator[Path]:
    """Provide a directory that is deleted at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="bench-") as path:
        yield Path(path)


def inside(what: str, *arguments: str | Path | int) -> dict[str, object]:
    """Run bench.inside in a separate process, and return its output."""
    done = child([sys.executable, "-m", "bench.inside", what, *map(str, arguments)])
    found = json.loads(done.stdout)
    if not isinstance(found, dict):
        raise TypeError(found)
    return found


def install(source: Path, root: Path, *more: str, kinds: str = "seccomp", cores: int = 0) -> Spent:
    """Run the agent once over a directory, with an empty host root."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    argv = [sys.executable, "-m", "agent", "--oneshot", f"--source=dir:{source}"]
    return child([*argv, f"--host-root={root}", f"--kinds={kinds}", *more], cores=cores)


def _milliseconds(pairs: object, part: int) -> tuple[float, ...]:
    if not isinstance(pairs, list):
        raise TypeError(pairs)
    return tuple(float(one[part]) * 1000 for one in pairs)


def unchanged(runs: int) -> Result:
    """Measure unchanged passes: seccomp files from both types of sources, and AppArmor in the
    VM.
    """
    from bench import machine

    figures: list[Figure] = []
    claims: list[Claim] = []
    with scratch() as top:
        source = made.fill_seccomp(top / "source", MANY)
        time.sleep(YOUNG_SECONDS)
        for name, text in (("directory", f"dir:{source}"), ("ConfigMaps", f"api:{source}")):
            found = inside("passes", text, top / name, "seccomp", runs)
            if found["states"] != {"installed": MANY}:
                raise AssertionError(found["states"])
            cpu = _milliseconds(found["more"], 1)
            figures.append(Figure(label=f"host, seccomp, {name}: CPU", samples=cpu, unit="ms"))
            figures.append(
                Figure(
                    label=f"host, seccomp, {name}: CPU of a full pass",
                    samples=_milliseconds([found["full"]], 1),
                    unit="ms",
                )
            )
            claims.append(
                Claim(label=f"host, {name}: CPU", value=median(cpu), limit=_UNCHANGED_MS, unit="ms")
            )
    figures += machine.unchanged(max(1, runs // 10))
    return Result(
        figures=tuple(figures), claims=tuple(claims), versions=machine.versions(*machine.MACHINES)
    )


def seccomp(runs: int) -> Result:
    """Compare a first installation with a program that parses the same JSON and writes the same
    number of files.
    """
    with scratch() as top:
        source = made.fill_seccomp(top / "source", MANY)
        out, root = top / "out", top / "root"

        def floor(whole: int, small: int) -> Spent:
            shutil.rmtree(out, ignore_errors=True)
            argv = [sys.executable, "-m", "bench.inside", "floor", source, out]
            return child([*argv, str(whole), str(small)])

        found = turns(
            runs,
            {
                "agent": lambda: install(source, root),
                "floor": lambda: floor(WHOLE, SMALL),
                "profiles": lambda: floor(1, 0),
            },
        )
        again = inside("passes", f"dir:{source}", root, "seccomp", 30)
    walls = {name: tuple(one.wall for one in all_) for name, all_ in found.items()}
    cpus = {name: tuple(one.cpu for one in all_) for name, all_ in found.items()}
    over = ratios(walls["agent"], walls["floor"])
    more = _milliseconds(again["more"], 1)
    labels = {
        "agent": "first install",
        "floor": f"parse, and write the same {WHOLE + SMALL} files a profile with the same fsyncs",
        "profiles": "parse, and write the profiles alone",
    }
    figures = [
        Figure(label=f"{label}: {what}", samples=samples[name], unit="s")
        for name, label in labels.items()
        for what, samples in (("time", walls), ("CPU", cpus))
    ]
    figures += [
        Figure(label="first install / the same files: time", samples=over, unit="x"),
        Figure(
            label="first install / the profiles alone: time",
            samples=ratios(walls["agent"], walls["profiles"]),
            unit="x",
        ),
        Figure(label="unchanged pass: CPU", samples=more, unit="ms"),
    ]
    claims = (
        Claim(label="first install / the same files", value=median(over), limit=2.5, unit="x"),
        Claim(label="unchanged: CPU", value=median(more), limit=_UNCHANGED_MS, unit="ms"),
    )
    return Result(
        figures=tuple(figures),
        claims=claims,
        said=(
            (
                "The same files are the text, the canonical form, the profile, and the entry of "
                f"the ledger (1 KiB), {SMALL} times."
            ),
        ),
    )


def growth(runs: int) -> Result:
    """Measure the time and the memory for growing numbers of profiles."""
    first: dict[int, list[float]] = {size: [] for size in _SIZES}
    later: dict[int, list[float]] = {size: [] for size in _SIZES}
    memory: dict[int, list[float]] = {size: [] for size in _SIZES}
    with scratch() as top:
        for size in _SIZES:
            made.fill_seccomp(top / f"source{size}", size, syscalls=100)
        time.sleep(YOUNG_SECONDS)
        for turn in range(runs):
            for size in _SIZES:
                root = top / f"root{size}-{turn}"
                found = inside("passes", f"dir:{top}/source{size}", root, "seccomp", 10)
                first[size] += _milliseconds([found["first"]], 1)
                later[size].append(median(_milliseconds(found["more"], 1)))
                memory[size].append(float(str(found["memory"])))
                shutil.rmtree(root)
    lines = {
        "CPU of the first pass, ms": first,
        "CPU of an unchanged pass, ms": later,
        "memory, MiB": memory,
    }
    drawn = plot.draw(
        {name: {n: median(v) for n, v in line.items()} for name, line in lines.items()}
    )
    figures = tuple(
        Figure(
            label=f"{size:,} profiles: {name.rpartition(',')[0]}",
            samples=tuple(samples),
            unit=name.rpartition(" ")[2],
        )
        for name, line in lines.items()
        for size, samples in line.items()
    )
    _, few, _, many = _SIZES
    claims = tuple(
        Claim(
            label=f"{name.rpartition(',')[0]}: exponent of its growth, {few} to {many:,} profiles",
            value=math.log(median(line[many]) / median(line[few])) / math.log(many / few),
            limit=1.1,
            unit="",
        )
        for name, line in lines.items()
    )
    return Result(
        figures=figures,
        claims=claims,
        said=(
            "An exponent of 1 is linear growth, and 2 is quadratic. n log n would have 1.16 here.",
            "The cost of 10 profiles is mostly a fixed cost.",
        ),
        svg=drawn,
    )
