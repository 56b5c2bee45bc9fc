"""Limits the memory that the parser may use, so that enough memory always remains for the agent.

With memory.oom.group, which the kubelet has set since 1.28 under cgroup v2, the kernel ends the
whole container when one process exceeds the limit. Without memory.oom.group, the kernel ends the
largest process, which may be the agent. The parser's own limit is therefore lower than the memory
that the container has left, and no parser runs if less than LEAST_PARSER_BYTES are left.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# A profile text is rejected for its memory use only after a parser run with at least this much
# memory.
MIN_PARSER_BYTES: Final = 64 << 20
# This much memory is enough to compile most public profiles.
LEAST_PARSER_BYTES: Final = 16 << 20
MAX_PARSER_BYTES: Final = 1 << 30
# This memory is reserved for the agent and for the output of a running parser.
_RESERVE_BYTES: Final = 16 << 20
# If no limit is set, cgroup version 1 shows LONG_MAX, rounded down to a multiple of the page size
# (page_counter.h).
_UNLIMITED_V1: Final = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The files in one memory cgroup."""

    limit: Path
    usage: Path
    statistics: Path
    page_cache: tuple[str, ...]
    """The kernel can reclaim the memory that these statistics count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCgroup:
    """The memory cgroup of this process, whose files are read at each call."""

    own: Path
    """The file that lists the cgroups of this process (cgroups(7))."""

    root: Path
    """The directory in which the cgroup file systems are mounted."""

    def limit_bytes(self) -> int | None:
        """Return the memory limit of the cgroup, or None if it is not set or unknown."""
        try:
            limit = int(_files(self.own, self.root).limit.read_text())
        except (OSError, ValueError):  # If no limit is set, cgroup version 2 shows "max".
            return None
        return limit if limit < _UNLIMITED_V1 else None

    def available_bytes(self) -> int:
        """Return the memory that new parsers may use together now, at most MAX_PARSER_BYTES.

        The memory of running parsers counts as used. The page cache does not count as used, because
        the kernel reclaims the page cache (cgroup-v2.rst). If the memory usage is unknown, the
        result is MIN_PARSER_BYTES.
        """
        limit = self.limit_bytes()
        if limit is None:
            return MAX_PARSER_BYTES
        try:
            files = _files(self.own, self.root)
            used = int(files.usage.read_text())
            fields = dict(line.split() for line in files.statistics.read_text().splitlines())
            used -= sum(int(fields[field]) for field in files.page_cache)
        except (OSError, ValueError, KeyError):
            return MIN_PARSER_BYTES
        return max(0, min(MAX_PARSER_BYTES, limit - used - _RESERVE_BYTES))


OWN_CGROUP: Final = MemoryCgroup(own=Path("/proc/self/cgroup"), root=Path("/sys/fs/cgroup"))
"""The memory cgroup at the usual paths (cgroups(7))."""


def _files(own: Path, root: Path) -> _Files:
    """Return the files of this process's memory cgroup. Raises OSError and ValueError.

    The memory controller belongs either to a version 1 hierarchy or to the version 2 hierarchy. In
    a container, the path in a version 1 hierarchy may be a path on the host. If that path does not
    exist, the function uses the files at the mount point.
    """
    paths = {}
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    mount = root / "memory"
    if "memory" in paths and mount.is_dir():
        directory = mount / paths["memory"].lstrip("/")
        directory = directory if directory.is_dir() else mount
        return _Files(
            limit=directory / "memory.limit_in_bytes",
            usage=directory / "memory.usage_in_bytes",
            statistics=directory / "memory.stat",
            page_cache=("total_inactive_file", "total_active_file"),
        )
    if "" not in paths:
        raise ValueError("this process has no memory cgroup")
    directory = root / paths[""].lstrip("/")
    return _Files(
        limit=directory / "memory.max",
        usage=directory / "memory.current",
        statistics=directory / "memory.stat",
        page_cache=("inactive_file", "active_file"),
    )
