"""How much memory the parser may take, so that it never takes the agent's.

Rule: with memory.oom.group (kubelet since 1.28, cgroup v2) one process over the limit ends all of
the container, so the parser's own limit stays below what the container has left. A cgroup of
version 1 ends the largest process alone, and counts as without a limit here.
"""

from pathlib import Path
from typing import Final

MIN_PARSER_BYTES: Final = 64 << 20
MAX_PARSER_BYTES: Final = 1 << 30
_RESERVE: Final = 16 << 20  # for what the agent itself takes meanwhile, the output among it


def limit_bytes(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the memory limit of this process's cgroup; None where there is none or it is unknown.

    own: lists the cgroups as cgroups(7) says, `0::PATH` is the one of version 2.
    """
    try:
        return int((_directory(own, root) / "memory.max").read_text())
    except (OSError, ValueError):  # "max" is no number either
        return None


def available_bytes(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how many bytes the parser may take, between LEAST and MOST.

    The page cache on the lists of memory.stat makes room by itself (cgroup-v2.rst).
    """
    most = limit_bytes(own, root)
    try:
        directory = _directory(own, root)
        used = int((directory / "memory.current").read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        used -= int(stat["inactive_file"]) + int(stat["active_file"])
    except (OSError, ValueError, KeyError):
        used = 0 if most is None else most
    return (
        MAX_PARSER_BYTES
        if most is None
        else max(MIN_PARSER_BYTES, min(MAX_PARSER_BYTES, most - used - _RESERVE))
    )


def _directory(own: Path, root: Path) -> Path:
    """Return the directory of this process's cgroup. Raises OSError, ValueError."""
    (path,) = (line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    return root / path.lstrip("/")
