"""Builds programs from Go modules, and caches them with their checksums.

The file go.sum of each module in this directory contains the hashes of all modules that it needs.
The programs are in ~/.cache/profile-loader/controlplane.
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
# The newest version that any module of the tests requires.
MODULE = Path(__file__).parent / "controlplane"
# The number of cached builds of each module, since another checkout may use another build.
KEPT = 2


def go():
    """Return the machine's go command if it is new enough, or else the go command of the venv."""
    wanted = next(
        line.split()[1] for line in (MODULE / "go.mod").read_text().splitlines() if "go 1" in line
    )
    # The go command of requirements-go.lock is in the directory of this Python.
    for path in (shutil.which("go"), str(Path(sys.executable).parent / "go")):
        if path is None or not Path(path).exists():
            continue
        output = subprocess.run(
            [path, "env", "GOVERSION"], capture_output=True, text=True, check=True
        )
        if _number(output.stdout.strip().removeprefix("go")) >= _number(wanted):
            return path
    raise AssertionError(f"go {wanted} or newer is needed to build the programs of the tests")


def _number(version):
    return tuple(int("0" + "".join(filter(str.isdigit, word))) for word in version.split(".")[:3])


@functools.cache
def program(module, name, package=".", *, flags="", usual="5 to 10 minutes"):
    """Return the path of a program; build it if it is missing or damaged.

    Args:
        module: The folder of the Go module.
        name: The file name of the program.
        package: The package of the program.
        flags: Further flags of the linker.
        usual: The usual duration of the build on two processors.
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
            with kept.announced(name, f"{usual} on two processors", _progress(path)):
                _build(module, package, path, f"-s -w {flags}".strip())
            mark.write_text(vm.sha256(path))
        os.utime(path.parent)
        folders = (CACHE / module.name).iterdir()
        for old in sorted(folders, key=lambda item: -item.stat().st_mtime)[KEPT:]:
            shutil.rmtree(old)
    return path


def _progress(path):
    def progress():
        lines = path.with_suffix(".log").read_text().splitlines()
        compiled = sum(not line.startswith("go: ") for line in lines)
        return f"({compiled} packages compiled)"

    return progress


def _build(module, package, path, flags):
    """Build a program from the modules of a Go module."""
    log = path.with_suffix(".log")
    words = ["-v", "-trimpath", "-ldflags", flags, "-o", f"{path}.new", package]
    environ = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    with log.open("wb") as output:
        done = subprocess.run(
            [go(), "build", *words], cwd=module, env=environ, stderr=output, check=False
        )
    assert done.returncode == 0, f"go build: {log.read_text()[-3000:]}"
    Path(f"{path}.new").rename(path)
