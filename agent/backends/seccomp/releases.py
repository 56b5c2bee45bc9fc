"""The releases of libseccomp, runc and crun with which a profile must work.

A `RuntimeFloor` contains the oldest release of each program on any node of the cluster. The tables
contain only facts that depend on the release: which release first had each newer system call, and
which release first accepted each flag of a filter. The module `syscalls` lists the system calls
that every supported release knows.
"""

import re
from dataclasses import dataclass
from typing import Final

Version = tuple[int, ...]

_VERSION: Final = re.compile(r"\d{1,4}(?:\.\d{1,4}){1,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFloor:
    """The oldest release of each program on any node."""

    libseccomp: Version = (2, 5, 4)
    runc: Version = (1, 1)
    crun: Version = (1, 8)

    def __str__(self) -> str:
        """The value of `--runtime-floor` that defines these releases."""
        parts = (("libseccomp", self.libseccomp), ("runc", self.runc), ("crun", self.crun))
        return ",".join(f"{name}={shown(release)}" for name, release in parts)


LOWEST: Final = RuntimeFloor()


def shown(release: Version) -> str:
    """Return a release as text, for example 2.5.4."""
    return ".".join(map(str, release))


def version(text: str) -> Version | None:
    """Return the release in a text such as 1.2 or 2.5.5, or None for any other text."""
    return tuple(map(int, text.split("."))) if _VERSION.fullmatch(text) else None


def parse(text: str) -> RuntimeFloor:
    """Return the releases in a text such as `libseccomp=2.5.5,runc=1.2`.

    A program that the text does not contain keeps its default release.

    Raises:
        ValueError: the text is invalid.
    """
    stated: dict[str, Version] = {}
    lowest = {"libseccomp": LOWEST.libseccomp, "runc": LOWEST.runc, "crun": LOWEST.crun}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        release = version(number)
        if name not in lowest or release is None:
            raise ValueError(
                f'"{part}" must be libseccomp=VERSION, runc=VERSION or crun=VERSION, for example '
                "libseccomp=2.5.5"
            )
        if name in stated:
            raise ValueError(f"{name} is stated twice")
        if release < lowest[name]:
            raise ValueError(
                f"{name} {number} is not supported; the oldest supported release is "
                f"{shown(lowest[name])}"
            )
        stated[name] = release
    return RuntimeFloor(
        libseccomp=stated.get("libseccomp", LOWEST.libseccomp),
        runc=stated.get("runc", LOWEST.runc),
        crun=stated.get("crun", LOWEST.crun),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """The first releases of libseccomp and of Linux that have a system call."""

    libseccomp: Version
    linux: str


def _since(libseccomp: Version, linux: str, *names: str) -> dict[str, Introduction]:
    return dict.fromkeys(names, Introduction(libseccomp=libseccomp, linux=linux))


# The releases of libseccomp come from src/syscalls.csv in the tags v2.5.4 to v2.6.1. The releases
# of Linux come from syscalls(2), and from the release in which each call was added to the kernel's
# tables.
INTRODUCED: Final[dict[str, Introduction]] = {
    **_since((2, 5, 5), "6.5", "cachestat"),
    **_since((2, 5, 5), "6.6", "fchmodat2", "map_shadow_stack"),
    **_since((2, 5, 5), "6.7", "futex_requeue", "futex_wait", "futex_wake"),
    **_since((2, 5, 6), "6.4", "riscv_hwprobe"),
    **_since((2, 5, 6), "6.8", "listmount", "lsm_get_self_attr", "lsm_list_modules"),
    **_since((2, 5, 6), "6.8", "lsm_set_self_attr", "statmount"),
    **_since((2, 5, 6), "6.10", "mseal"),
    **_since((2, 5, 6), "6.11", "uretprobe"),
    **_since((2, 5, 6), "6.13", "getxattrat", "listxattrat", "removexattrat", "setxattrat"),
    **_since((2, 6, 0), "2.6.34", "atomic_barrier", "atomic_cmpxchg_32"),
    **_since((2, 6, 0), "2.0", "getpagesize"),
    **_since((2, 6, 1), "6.15", "open_tree_attr"),
    **_since((2, 6, 1), "6.17", "file_getattr", "file_setattr"),
    **_since((2, 6, 1), "6.18", "uprobe"),
    **_since((2, 6, 1), "6.19", "listns"),
    **_since((2, 6, 1), "7.0", "rseq_slice_yield"),
}

# For each flag, this is the first release of runc that accepts it
# (libcontainer/seccomp/seccomp_linux.go in runc's tags). Every supported release of crun accepts
# these flags.
RUNC_FLAGS: Final[dict[str, Version]] = dict.fromkeys(
    (f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW")), (1, 2)
)


def is_known(name: str, floor: RuntimeFloor) -> bool:
    """Return whether every libseccomp on the nodes knows a newer system call."""
    return name in INTRODUCED and INTRODUCED[name].libseccomp <= floor.libseccomp


def since(name: str) -> str:
    """Return a sentence about the first releases that have a newer system call, or "" for other
    names.
    """
    if name not in INTRODUCED:
        return ""
    introduced = INTRODUCED[name]
    return (
        f"{name} exists since Linux {introduced.linux} and is known since libseccomp "
        f"{shown(introduced.libseccomp)}."
    )


def floor_hint(name: str) -> str:
    """Return the option with which the agent accepts a newer system call."""
    return f"--runtime-floor libseccomp={shown(INTRODUCED[name].libseccomp)}"
