"""Measures the rows that load policy into a kernel, in the virtual machine and in user-mode Linux.

Each measurement starts a machine once, and rows of the same start share its samples. Programs that
are compared run during the same start.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.measure import median, ratios
from bench.rows import Claim, Figure, Result

CACHE: Final = Path.home() / ".cache/profile-loader/bench"
LOADER: Final = "k8s.io/kubernetes/test/images/apparmor-loader"
MACHINES: Final = ("VM", "UML")
_TIMEOUT_SECONDS: Final = 3000
_REPAIR_MS: Final = 50.0
# The versions of programs, from the last start of each machine.
_VERSIONS: Final[dict[str, str]] = {}


@functools.cache
def guest(what: str, runs: int, where: str = "VM") -> Mapping[str, Sequence[float]]:
    """Return the samples of bench.guest in one of the machines."""
    from bench import uml
    from tests.system import vm

    files = {f"bench/{one.name}": one.read_bytes() for one in Path("bench").glob("*.py")}
    if what in ("cold", "poll"):
        files["apparmor-loader"] = apparmor_loader().read_bytes()
    command = "chmod -f +x apparmor-loader; busybox ip link set lo up; "
    many = os.environ.get("MANY", "1000")  # To try the benchmark, set a smaller number of profiles.
    command += f"MANY={many} python3 -m bench.guest {what} {runs}"
    run = {"VM": vm.run, "UML": uml.run}[where]
    done = run(files, command, timeout_seconds=_TIMEOUT_SECONDS)
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    if done.status != 0 or not lines:
        raise AssertionError(done.output[-6000:])
    found = json.loads(lines[-1])
    if not isinstance(found, dict):
        raise TypeError(found)
    _VERSIONS[where] = found.pop("versions")
    return found


def versions(*machines: str) -> tuple[str, ...]:
    """Return the versions in machines that have run before."""
    return tuple(f"{where} with {_VERSIONS[where]}" for where in machines)


def apparmor_loader() -> Path:
    """Return the example loader of the Kubernetes project, built with the control plane of the
    tests.
    """
    from tests.system import go_build

    digest = hashlib.sha256((go_build.MODULE / "go.sum").read_bytes()).hexdigest()[:12]
    path = CACHE / f"apparmor-loader-{digest}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [go_build.go(), "build", "-trimpath", "-o", str(path), LOADER]
        environ = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        subprocess.run(command, cwd=go_build.MODULE, env={**os.environ, **environ}, check=True)  # noqa: S603 - ours
    return path


def seconds(label: str, samples: Sequence[float]) -> Figure:
    """Return a figure in seconds."""
    return Figure(label=label, samples=tuple(samples), unit="s")


def milliseconds(label: str, samples: Sequence[float]) -> Figure:
    """Return a figure in milliseconds."""
    return Figure(label=label, samples=tuple(one * 1000 for one in samples), unit="ms")


def thousand(where: str, runs: int) -> Mapping[str, Sequence[float]]:
    """Return the samples with a thousand profiles, which rows with the same number of runs
    share.
    """
    return guest("thousand", runs, where)


def reboot(runs: int) -> Result:
    """Measure a start with all profiles in the cache and none of them loaded."""
    figures, claims = [], []
    for where in MACHINES:
        found = thousand(where, runs)
        over = ratios(found["reboot"], found["writing"])
        figures += [
            seconds(f"{where}: start with 1,000 cached profiles, none loaded", found["reboot"]),
            seconds(f"{where}: writing the same policies to the kernel", found["writing"]),
            seconds(f"{where}: a plain Python loop of the same steps", found["least"]),
            seconds(f"{where}: Python's start and the agent's imports alone", found["imports"]),
            Figure(label=f"{where}: start / writing", samples=over, unit="x"),
            Figure(
                label=f"{where}: a plain Python loop / writing",
                samples=ratios(found["least"], found["writing"]),
                unit="x",
            ),
            Figure(
                label=f"{where}: processes and threads that it starts",
                samples=tuple(found["reboot processes"]),
                unit="",
            ),
        ]
        begun = median(found["reboot processes"])
        claims += [
            Claim(label=f"{where}: start / writing", value=median(over), limit=2.0, unit="x"),
            Claim(
                label=f"{where}: started processes, including itself",
                value=begun,
                limit=1.0,
                unit="",
            ),
        ]
    return Result(
        figures=tuple(figures),
        claims=tuple(claims),
        said=(
            (
                "The row removes every profile from the kernel instead of a reboot. The agent sees "
                "the same state, but the page cache is warm."
            ),
            (
                "The plain Python loop (`bench/least.py`) reads ledger and text, verifies the "
                "cached policy, loads it and verifies the loaded content. It does not check texts, "
                "plan, log or report."
            ),
        ),
        versions=versions(*MACHINES),
    )


def loaded(runs: int) -> Result:
    """Measure a start with all profiles in the cache and loaded."""
    figures, claims = [], []
    for where in MACHINES:
        found = thousand(where, runs)
        figures += [
            seconds(f"{where}: start with 1,000 loaded profiles", found["loaded"]),
            seconds(f"{where}: CPU", found["loaded CPU"]),
            seconds(
                f"{where}: for comparison: the first start, which compiles them", found["cold"]
            ),
        ]
        claims += [
            Claim(label=f"{where}: start", value=median(found["loaded"]), limit=2.5, unit="s"),
            Claim(
                label=f"{where}: starts that loaded or wrote something",
                value=sum(found["loaded changes"]),
                limit=0.0,
                unit="",
            ),
        ]
    return Result(figures=tuple(figures), claims=tuple(claims), versions=versions(*MACHINES))


def unchanged(runs: int) -> tuple[Figure, ...]:
    """Measure ten unchanged passes for each run."""
    figures = []
    for where in MACHINES:
        found = thousand(where, runs)
        label = f"{where}, AppArmor, directory: CPU"
        figures += [
            milliseconds(label, found["unchanged"]),
            milliseconds(f"{label} of a full pass", found["unchanged full"]),
        ]
    return tuple(figures)


def repair(runs: int) -> Result:
    """Measure the repair of a profile that another program removed."""
    figures, claims = [], []
    for where in MACHINES:
        found = guest("repair", runs, where)
        over = (median(found["repair"]) - median(found["load"])) * 1000
        figures += [
            milliseconds(
                f"{where}: from the removal until the profile is restored", found["repair"]
            ),
            milliseconds(f"{where}: the load itself", found["load"]),
        ]
        claims.append(
            Claim(
                label=f"{where}: minus the time of the load itself",
                value=over,
                limit=_REPAIR_MS,
                unit="ms",
            )
        )
    return Result(
        figures=tuple(figures),
        claims=tuple(claims),
        said=(
            "50 small profiles come from a directory. One is removed every second.",
            "After a removal less than 0.25 s after a pass, the agent waits for more changes.",
        ),
        versions=versions(*MACHINES),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(guest(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])) + "\n")
