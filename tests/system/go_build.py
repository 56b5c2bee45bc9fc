"""Builds programs from Go modules, and caches them with their checksums.

Each Go module in this directory has a file go.sum with the hashes of its dependencies. The programs
are cached in ~/.cache/profile-loader/controlplane.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.system import kept, vm

CACHE = kept.CACHE / "controlplane"
# No Go module of the tests requires a newer version.
MODULE = Path(__file__).parent / "controlplane"
# The cache keeps this number of builds of each module, because another checkout may need a
# different build.
CACHED_BUILDS = 2


def go():
    """Return the go command of this machine if it is new enough. If the machine has no such
    command, return the go command of the virtual environment.
    """
    expected = next(
        line.split()[1] for line in (MODULE / "go.mod").read_text().splitlines() if "go 1" in line
    )
    # pip installs the go command of requirements-go.lock next to the Python interpreter.
    for path in (shutil.which("go"), str(Path(sys.executable).parent / "go")):
        if path is None or not Path(path).exists():
            continue
        output = subprocess.run(
            [path, "env", "GOVERSION"], capture_output=True, text=True, check=True
        )
        if _number(output.stdout.strip().removeprefix("go")) >= _number(expected):
            return path
    raise AssertionError(f"go {expected} or newer is needed to build the programs of the tests")


def _number(version):
    return tuple(int("0" + "".join(filter(str.isdigit, word))) for word in version.split(".")[:3])


@functools.cache
def program(module, name, package=".", *, flags="", usual="5 to 10 minutes"):
    """Return the path of a program.

    Build the program if it is missing or damaged. Args:
        module: The folder of the Go module.
        name: The file name of the program.
        package: The Go package of the program.
        flags: Further flags of the linker.
        usual: How long the build usually takes on two processors.
    """
    sources = [module / file for file in ("go.mod", "go.sum", "main.go")]
    parts = [path.read_bytes() for path in sources if path.exists()]
    parts += [flags.encode()] if flags else []
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = CACHE / module.name / key / name
    mark = path.with_suffix(".sha256")
    with kept.locked(CACHE):
        if not (path.exists() and mark.exists() and mark.read_text() == vm.sha256(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with kept.reporting_progress(name, f"{usual} on two processors", _progress(path)):
                _build(module, package, path, f"-s -w {flags}".strip())
            mark.write_text(vm.sha256(path))
        os.utime(path.parent)
        folders = (CACHE / module.name).iterdir()
        for old in sorted(folders, key=lambda item: -item.stat().st_mtime)[CACHED_BUILDS:]:
            shutil.rmtree(old)
    return path


def _progress(path):
    def progress():
        lines = path.with_suffix(".log").read_text().splitlines()
        compiled = sum(not line.startswith("go: ") for line in lines)
        return f"({compiled} packages compiled)"

    return progress


def _build(module, package, path, flags):
    """Build a program of a Go module."""
    log = path.with_suffix(".log")
    words = ["-v", "-trimpath", "-ldflags", flags, "-o", f"{path}.new", package]
    environ = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    with log.open("wb") as output:
        result = subprocess.run(
            [go(), "build", *words], cwd=module, env=environ, stderr=output, check=False
        )
    assert result.returncode == 0, f"go build: {log.read_text()[-3000:]}"
    Path(f"{path}.new").rename(path)
