"""Applies the memory limit in the manifest to test processes."""

import contextlib
import os
import re
from pathlib import Path

MIB = 1 << 20


def manifest_limit():
    """Return the memory limit of the DaemonSet's container in bytes."""
    manifest = Path("manifests/base/daemonset.yaml").read_text()
    return int(re.search(r"limits: {memory: (\d+)Mi}", manifest)[1]) * MIB


@contextlib.contextmanager
def memory_group(limit):
    """Yield a control group (v1 or v2) with a limit in bytes, or None if this machine cannot create
    a control group.
    """
    name = f"profile-loader-{os.getpid()}"
    for base, file in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = base / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / file).write_text(str(limit))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield folder
        finally:
            folder.rmdir()
        return
    yield None


def joining(group):
    """Return the command prefix that runs a command in a control group."""
    return ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group)] if group else []
