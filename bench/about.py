"""Describes the machine and the versions of a measurement, without names of machines or persons."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

QUIET_LOAD = 1.5  # A running row of the benchmark causes less load than this.
_LIBRARIES = ("kubernetes", "msgspec", "prometheus-client", "structlog", "watchdog")


def sentence(load: float, more: Sequence[str]) -> str:
    """Return one sentence about the machine and one sentence about the versions.

    Args:
        load: the load of the machine before the measurement.
        more: the versions of programs that this machine does not have.
    """
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    versions = ", ".join([*(f"{name} {metadata.version(name)}" for name in _LIBRARIES), *more])
    return (
        f"Machine: {cores} cores of {_model()}, {memory:.0f} GiB, Linux {_linux()}; "
        f"the virtual machine (VM) is emulated (QEMU {_qemu()}, TCG) and has one core; user-mode "
        "Linux (UML) is not emulated and has one core. Versions: CPython "
        f"{platform.python_version()}, {_parser()}, {versions}. {time.strftime('%Y-%m-%d')}."
        + (f" The machine was busy (load {load:.1f})." if load > QUIET_LOAD else "")
    )


def busy() -> float:
    """Return the average number of runnable processes during the last minute."""
    return os.getloadavg()[0]


def api_server() -> str:
    """Return the version of the tests' API server, from its go.mod."""
    from tests.system import cluster

    found = re.search(r"k8s\.io/kubernetes (v[\d.]+)", (cluster.MODULE / "go.mod").read_text())
    return f"kube-apiserver {found[1] if found else 'unknown'}"


def _linux() -> str:
    return ".".join(platform.release().split(".")[:2])


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _qemu() -> str:
    found = re.search(r"version ([\d.]+)", _said("qemu-system-x86_64", "--version"))
    return found[1] if found else "absent"


def _parser() -> str:
    found = re.search(r"version ([\d.]+)", _said("apparmor_parser", "--version"))
    return f"apparmor_parser {found[1] if found else 'absent'}"


def _said(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    except OSError:
        return ""
    return done.stdout + done.stderr
