"""What apparmor_parser may open, and whether it can be held to that.

The parser runs as root and opens every file that a text includes. So it runs in a thread that
Landlock restricts to: the include directories, the parser with its libraries and configuration,
and the kernel's AppArmor features. It may write nothing and execute nothing but itself. Which
files the parser opens was recorded with strace for the versions 3.0.8, 4.1.0 and 5.0.2.
"""

import errno
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.host import commands, landlock
from agent.host.commands import CommandLimits
from agent.host.filesystem import HostError

LIBRARY_CACHE = "/etc/ld.so.cache"
# Where `abi <kernel>` reads (libapparmor, features.c: aa_features_new_from_kernel).
KERNEL_FEATURES = "/sys/kernel/security/apparmor/features"
_LISTED = re.compile(r"(?:^|\s)(/\S+) \(0x[0-9a-f]+\)\s*$", re.MULTILINE)
_SECONDS = 10.0
_BYTES = 1 << 20
_MEMORY = 256 << 20
_PT_INTERP = 3  # elf(5)


class NotElfError(Exception):
    """The file is not an ELF program: a script, whose interpreter could be anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncludeTree:
    """The files that an include can reach, and the links among them."""

    roots: tuple[str, ...]
    files: tuple[str, ...]
    links: tuple[str, ...]


def unavailable_reason(parser: str) -> str:
    """Return why this parser cannot be sandboxed here, or nothing. Raises OSError."""
    why = landlock.missing()
    if why:
        return why
    try:
        interpreter(parser)
    except NotElfError:
        return f"{parser} is not an ELF program"
    return ""


def interpreter(program: str) -> str:
    """Return the path of the dynamic loader that an ELF program names, or nothing if static.

    Raises NotElfError and OSError.
    """
    with Path(program).open("rb") as file:
        head = file.read(64)
        if len(head) < 52 or head[:4] != b"\x7fELF":  # noqa: PLR2004 - a 32-bit header
            raise NotElfError
        order = "<" if head[5] == 1 else ">"
        wide = head[4] == 2  # noqa: PLR2004 - ELFCLASS64
        offset, size, number = _table(head, order, wide=wide)
        for index in range(number):
            file.seek(offset + index * size)
            entry = file.read(size)
            if struct.unpack_from(f"{order}I", entry)[0] == _PT_INTERP:
                layout = (8, 32, "Q") if wide else (4, 16, "I")
                begin, length = (
                    struct.unpack_from(f"{order}{layout[2]}", entry, place)[0]
                    for place in layout[:2]
                )
                file.seek(begin)
                return os.fsdecode(file.read(length).rstrip(b"\0"))
    return ""


def _table(head: bytes, order: str, *, wide: bool) -> tuple[int, int, int]:
    """Return offset, entry size and length of the program header table."""
    if wide:
        (offset,) = struct.unpack_from(f"{order}Q", head, 32)
        size, number = struct.unpack_from(f"{order}HH", head, 54)
    else:
        (offset,) = struct.unpack_from(f"{order}I", head, 28)
        size, number = struct.unpack_from(f"{order}HH", head, 42)
    return offset, size, number


def libraries(program: str, loader: str) -> tuple[str, ...]:
    """Return the libraries that the dynamic loader would load for a program.

    glibc and musl both know `--list` (ld.so(8)). Raises HostError.
    """
    limits = CommandLimits(
        seconds=_SECONDS,
        memory_bytes=_MEMORY,
        cpu_seconds=int(_SECONDS),
        output_bytes=_BYTES,
    )
    done = commands.run([loader, "--list", program], stdin=b"", limits=limits)
    if done.status != 0:
        raise HostError(loader, OSError(errno.EIO, f"--list ended with status {done.status}"))
    return tuple(_LISTED.findall(os.fsdecode(done.stdout)))


def include_tree(roots: Iterable[str]) -> IncludeTree:
    """Return every file below the roots, through linked directories too."""
    visited: set[tuple[int, int]] = set()
    files: list[str] = []
    links: list[str] = []
    todo = [*roots]
    roots = tuple(todo)
    while todo:
        directory = todo.pop()
        for entry in _entries(directory, visited):
            if entry.is_symlink():
                links.append(entry.path)
            if os.path.isdir(entry.path):  # noqa: PTH112 - False, not an error, for a looping link
                todo.append(entry.path)
            else:
                files.append(entry.path)
    return IncludeTree(
        roots=roots, files=tuple(sorted(files, key=_order)), links=tuple(sorted(links))
    )


def _entries(directory: str, visited: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Yield what a directory contains; nothing if it was visited or cannot be read."""
    try:
        status = os.stat(directory)  # noqa: PTH116 - quicker, called for each directory
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(directory) as entries:
            yield from entries
    except OSError:
        return


def _order(path: str) -> list[str]:
    return path.split("/")


def allowed_access(
    parser: str, needed: Sequence[str], included: IncludeTree, others: Iterable[str]
) -> landlock.Access:
    """Return what the parser may open.

    Args:
        parser: its path.
        needed: the dynamic loader, if there is one, and the libraries.
        included: the include directories. The administrator of the host made their links, so the
            parser may follow them; a link to a directory above them would allow much more than
            includes, and is not followed.
        others: configuration and features files.
    """
    roots = [f"{os.path.realpath(root)}/" for root in included.roots]
    targets = dict.fromkeys(f"{os.path.realpath(link)}/" for link in included.links)
    linked = [
        one.rstrip("/")
        for one in targets
        if not any(one.startswith(root) or root.startswith(one) for root in roots)
    ]
    return landlock.Access(
        execute=(parser, *needed[:1]),
        read=(*included.roots, *linked, *needed[1:], LIBRARY_CACHE, KERNEL_FEATURES, *others),
    )
