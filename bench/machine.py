"""What is loaded into a kernel with AppArmor: in the virtual machine, and in user-mode Linux.

Each measurement is one start of a machine; rows that share one share its samples. What is compared
is measured in the same start.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.measure import median
from bench.rows import Claim, Figure, Result

CACHE: Final = Path.home() / ".cache/profile-loader/bench"
LOADER: Final = "k8s.io/kubernetes/test/images/apparmor-loader"
MACHINES: Final = ("VM", "UML")
_TIMEOUT_SECONDS: Final = 3000
_THOUSAND_RUNS: Final = 6
_REPAIR_MS: Final = 50.0


@functools.cache
def guest(what: str, runs: int, where: str = "VM") -> Mapping[str, Sequence[float]]:
    """Return the samples of bench.guest in one of MACHINES."""
    from bench import uml
    from tests.system import vm

    files = {f"bench/{one.name}": one.read_bytes() for one in Path("bench").glob("*.py")}
    if what in ("cold", "poll"):
        files["apparmor-loader"] = apparmor_loader().read_bytes()
    command = "chmod -f +x apparmor-loader; busybox ip link set lo up; "
    many = os.environ.get("MANY", "1000")  # fewer to try it out
    command += f"MANY={many} python3 -m bench.guest {what} {runs}"
    run = {"VM": vm.run, "UML": uml.run}[where]
    done = run(files, command, timeout_seconds=_TIMEOUT_SECONDS)
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    if done.status != 0 or not lines:
        raise AssertionError(done.output[-6000:])
    found = json.loads(lines[-1])
    if not isinstance(found, dict):
        raise TypeError(found)
    return found


def apparmor_loader() -> Path:
    """Return the Kubernetes project's example loader, built with the test control plane."""
    from tests.system import cluster

    path = CACHE / "apparmor-loader"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [cluster.go(), "build", "-trimpath", "-o", str(path), LOADER]
        environ = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        subprocess.run(command, cwd=cluster.MODULE, env={**os.environ, **environ}, check=True)  # noqa: S603 - ours
    return path


def seconds(label: str, samples: Sequence[float]) -> Figure:
    """Return a figure in seconds."""
    return Figure(label=label, samples=tuple(samples), unit="s")


def milliseconds(label: str, samples: Sequence[float]) -> Figure:
    """Return a figure in milliseconds."""
    return Figure(label=label, samples=tuple(one * 1000 for one in samples), unit="ms")


def thousand(where: str) -> Mapping[str, Sequence[float]]:
    """Return what was measured with a thousand profiles, once for all rows."""
    return guest("thousand", _THOUSAND_RUNS, where)


def reboot(runs: int) -> Result:  # noqa: ARG001 - shared by three rows
    """All cached, none loaded."""
    figures, claims = [], []
    for where in MACHINES:
        found = thousand(where)
        figures += [
            seconds(f"{where}: start with 1,000 cached profiles, none loaded", found["reboot"]),
            seconds(f"{where}: writing the same policies to the kernel", found["writing"]),
            seconds(f"{where}: the least that a Python program can do", found["least"]),
            Figure(
                label=f"{where}: processes and threads begun by it",
                samples=tuple(found["reboot processes"]),
                unit="",
            ),
        ]
        writing = median(found["writing"])
        ratio, least = median(found["reboot"]) / writing, median(found["least"]) / writing
        figures.append(Figure(label=f"{where}: that least / writing", samples=(least,), unit="x"))
        begun = median(found["reboot processes"])
        claims += [
            Claim(label=f"{where}: start / writing", value=ratio, limit=2.0, unit="x"),
            Claim(
                label=f"{where}: processes begun, itself included", value=begun, limit=3.0, unit=""
            ),
        ]
    return Result(
        figures=tuple(figures),
        claims=tuple(claims),
        said=(
            (
                "The reboot is played by removing every profile from the kernel: what the agent "
                "finds is the same."
            ),
            (
                "The least that a Python program can do (`bench/least.py`) reads ledger and text, "
                "verifies the kept policy, loads it and verifies by content what is loaded: no "
                "judgement, no plan, no log, no report."
            ),
        ),
    )


def loaded(runs: int) -> Result:  # noqa: ARG001 - shared by three rows
    """All cached, all loaded."""
    figures, claims = [], []
    for where in MACHINES:
        found = thousand(where)
        figures += [
            seconds(f"{where}: start with 1,000 loaded profiles", found["loaded"]),
            seconds(f"{where}: CPU of it", found["loaded CPU"]),
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
    return Result(figures=tuple(figures), claims=tuple(claims))


def unchanged(runs: int) -> tuple[Figure, ...]:  # noqa: ARG001 - shared by three rows
    """Passes over what did not change."""
    figures = []
    for where in MACHINES:
        found = thousand(where)
        label = f"{where}, AppArmor, directory: CPU"
        figures += [
            milliseconds(label, found["unchanged"]),
            milliseconds(f"{label} of a pass that trusts no cheap sign", found["unchanged full"]),
        ]
    return tuple(figures)


def repair(runs: int) -> Result:
    """A removal behind the agent's back."""
    figures, claims = [], []
    for where in MACHINES:
        found = guest("repair", runs, where)
        over = (median(found["repair"]) - median(found["load"])) * 1000
        figures += [
            milliseconds(f"{where}: from the removal to the profile's return", found["repair"]),
            milliseconds(f"{where}: the load itself", found["load"]),
        ]
        claims.append(
            Claim(label=f"{where}: over the load itself", value=over, limit=_REPAIR_MS, unit="ms")
        )
    return Result(
        figures=tuple(figures),
        claims=tuple(claims),
        said=("50 small profiles from a directory; one is removed each time.",),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(guest(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])) + "\n")
