"""The virtual machine's share: what is loaded into a kernel with AppArmor.

Each measurement is one start of the machine; rows that share one share its samples.
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
_TIMEOUT_SECONDS: Final = 3000
_THOUSAND_RUNS: Final = 6
_REPAIR_MS: Final = 50.0


@functools.cache
def guest(what: str, runs: int) -> Mapping[str, Sequence[float]]:
    """Return the samples of bench.guest."""
    from tests.system import vm

    files = {f"bench/{one.name}": one.read_bytes() for one in Path("bench").glob("*.py")}
    if what in ("cold", "poll"):
        files["apparmor-loader"] = apparmor_loader().read_bytes()
    command = "chmod -f +x apparmor-loader; busybox ip link set lo up; "
    many = os.environ.get("MANY", "1000")  # fewer to try it out
    command += f"MANY={many} python3 -m bench.guest {what} {runs}"
    done = vm.run(files, command, timeout_seconds=_TIMEOUT_SECONDS)
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
        command = [cluster._go(), "build", "-trimpath", "-o", str(path), LOADER]  # noqa: SLF001 - our own tests'
        environ = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        subprocess.run(command, cwd=cluster.MODULE, env={**os.environ, **environ}, check=True)  # noqa: S603 - ours
    return path


def seconds(label: str, samples: Sequence[float]) -> Figure:
    """Return a figure in seconds."""
    return Figure(label=label, samples=tuple(samples), unit="s")


def milliseconds(label: str, samples: Sequence[float]) -> Figure:
    """Return a figure in milliseconds."""
    return Figure(label=label, samples=tuple(one * 1000 for one in samples), unit="ms")


def thousand() -> Mapping[str, Sequence[float]]:
    """Return what was measured with a thousand profiles, once for all rows."""
    return guest("thousand", _THOUSAND_RUNS)


def reboot(runs: int) -> Result:  # noqa: ARG001 - shared by three rows
    """All cached, none loaded."""
    found = thousand()
    ratio = median(found["reboot"]) / median(found["writing"])
    begun = median(found["reboot processes"])
    return Result(
        figures=(
            seconds("start with 1,000 cached profiles, none loaded", found["reboot"]),
            seconds("writing the same policies to the kernel", found["writing"]),
            Figure(
                label="processes and threads begun by it",
                samples=tuple(found["reboot processes"]),
                unit="",
            ),
        ),
        claims=(
            Claim(label="start / writing", value=ratio, limit=2.0, unit="x"),
            Claim(label="processes begun, itself included", value=begun, limit=3.0, unit=""),
        ),
        said=(
            (
                "The reboot is played by removing every profile from the kernel: what the agent "
                "finds is the same."
            ),
        ),
    )


def loaded(runs: int) -> Result:  # noqa: ARG001 - shared by three rows
    """All cached, all loaded."""
    found = thousand()
    return Result(
        figures=(
            seconds("start with 1,000 loaded profiles", found["loaded"]),
            seconds("CPU of it", found["loaded CPU"]),
            seconds("for comparison: the first start, which compiles them", found["cold"]),
        ),
        claims=(
            Claim(label="start", value=median(found["loaded"]), limit=2.5, unit="s"),
            Claim(
                label="starts that loaded or wrote something",
                value=sum(found["loaded changes"]),
                limit=0.0,
                unit="",
            ),
        ),
    )


def unchanged(runs: int) -> tuple[Figure, ...]:  # noqa: ARG001 - shared by three rows
    """Passes over what did not change."""
    found = thousand()
    return (
        milliseconds("VM, AppArmor, directory: CPU", found["unchanged"]),
        milliseconds(
            "VM, AppArmor, directory: CPU of a pass that trusts no cheap sign",
            found["unchanged full"],
        ),
    )


def repair(runs: int) -> Result:
    """A removal behind the agent's back."""
    found = guest("repair", runs)
    over = (median(found["repair"]) - median(found["load"])) * 1000
    return Result(
        figures=(
            milliseconds("from the removal to the profile's return", found["repair"]),
            milliseconds("the load itself", found["load"]),
        ),
        claims=(Claim(label="over the load itself", value=over, limit=_REPAIR_MS, unit="ms"),),
        said=("50 small profiles from a directory; one is removed each time.",),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(guest(sys.argv[1], int(sys.argv[2]))) + "\n")
