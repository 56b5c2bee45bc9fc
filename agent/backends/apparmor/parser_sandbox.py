"""Lists the files that apparmor_parser may open in its sandbox.

The parser runs as root and opens every file that a profile text includes. Therefore, Landlock
restricts the parser to the include directories, to its own program, libraries and configuration,
and to the kernel's AppArmor features. In the sandbox, the parser can neither write to a file nor
execute another program. strace records of the versions 3.0.8, 4.1.0 and 5.0.2 are the basis of this
list. host/landlock.py applies the restriction.
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
# These files contain the features for `abi <kernel>` (libapparmor, features.c:
# aa_features_new_from_kernel).
KERNEL_FEATURES = "/sys/kernel/security/apparmor/features"
_LISTED = re.compile(r"(?:^|\s)(/\S+) \(0x[0-9a-f]+\)\s*$", re.MULTILINE)
_LIST_SECONDS = 10.0
_LIST_OUTPUT_BYTES = 1 << 20
_LIST_MEMORY_BYTES = 256 << 20
# These constants are defined in elf(5).
_PT_INTERP = 3
_ELFCLASS64 = 2
_ELF32_HEADER_BYTES = 52


class NotElfError(Exception):
    """Raised if the file is not an ELF program, for example a script with an unknown
    interpreter.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class IncludeTree:
    """The files that an include rule can reach."""

    roots: tuple[str, ...]
    """The include directories."""
    files: tuple[str, ...]
    links: tuple[str, ...]
    """Symbolic links in the include directories."""


def unavailable_reason(parser: str) -> str:
    """Return the reason why the parser cannot run in a sandbox, or "" if it can. Raises OSError."""
    reason = landlock.missing()
    if reason:
        return reason
    try:
        interpreter(parser)
    except NotElfError:
        return f"{parser} is not an ELF program"
    return ""


def interpreter(program: str) -> str:
    """Return the path of the dynamic loader of an ELF program, or "" for a static program.

    Raises NotElfError and OSError.
    """
    with Path(program).open("rb") as file:
        head = file.read(64)
        if len(head) < _ELF32_HEADER_BYTES or head[:4] != b"\x7fELF":
            raise NotElfError
        order = "<" if head[5] == 1 else ">"
        is_64_bit = head[4] == _ELFCLASS64
        offset, size, count = _program_headers(head, order, is_64_bit=is_64_bit)
        for index in range(count):
            file.seek(offset + index * size)
            entry = file.read(size)
            if struct.unpack_from(f"{order}I", entry)[0] == _PT_INTERP:
                layout = (8, 32, "Q") if is_64_bit else (4, 16, "I")
                begin, length = (
                    struct.unpack_from(f"{order}{layout[2]}", entry, position)[0]
                    for position in layout[:2]
                )
                file.seek(begin)
                return os.fsdecode(file.read(length).rstrip(b"\0"))
    return ""


def _program_headers(head: bytes, order: str, *, is_64_bit: bool) -> tuple[int, int, int]:
    """Return the offset, the entry size and the length of the program header table (elf(5))."""
    if is_64_bit:
        (offset,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
    else:
        (offset,) = struct.unpack_from(f"{order}I", head, 28)
        size, count = struct.unpack_from(f"{order}HH", head, 42)
    return offset, size, count


def libraries(program: str, loader: str) -> tuple[str, ...]:
    """Return the libraries that the dynamic loader would load for a program.

    Both glibc and musl have the option `--list` (ld.so(8)). Raises HostError.
    """
    limits = CommandLimits(
        seconds=_LIST_SECONDS,
        memory_bytes=_LIST_MEMORY_BYTES,
        cpu_seconds=int(_LIST_SECONDS),
        output_bytes=_LIST_OUTPUT_BYTES,
    )
    done = commands.run([loader, "--list", program], stdin=b"", limits=limits)
    if done.status != 0:
        raise HostError(loader, OSError(errno.EIO, f"--list ended with status {done.status}"))
    return tuple(_LISTED.findall(os.fsdecode(done.stdout)))


def include_tree(roots: Iterable[str]) -> IncludeTree:
    """Return every file in the include directories, including the files in linked directories."""
    visited: set[tuple[int, int]] = set()
    files: list[str] = []
    links: list[str] = []
    directories = [*roots]
    roots = tuple(directories)
    while directories:
        directory = directories.pop()
        for entry in _entries(directory, visited):
            if entry.is_symlink():
                links.append(entry.path)
            if os.path.isdir(entry.path):  # The result is False for a link that leads to itself.
                directories.append(entry.path)
            else:
                files.append(entry.path)
    return IncludeTree(
        roots=roots, files=tuple(sorted(files, key=_order)), links=tuple(sorted(links))
    )


def _entries(directory: str, visited: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory, unless it was visited before or cannot be read."""
    try:
        status = os.stat(directory)  # os.stat is faster than pathlib.
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
    parser: str, library_files: Sequence[str], included: IncludeTree, others: Iterable[str]
) -> landlock.Access:
    """Return the files that the parser may open in its sandbox.

    Args:
        parser: the path of the parser.
        library_files: the dynamic loader, if the parser has one, and then the libraries.
        included: the include directories. Only the host's administrator can create links in these
            directories, so the parser may follow them. A link to a parent of an include directory
            is an exception, because the parent contains many other files.
        others: the configuration files and the features files.
    """
    roots = [f"{os.path.realpath(root)}/" for root in included.roots]
    targets = dict.fromkeys(f"{os.path.realpath(link)}/" for link in included.links)
    linked = [
        target.rstrip("/")
        for target in targets
        if not any(target.startswith(root) or root.startswith(target) for root in roots)
    ]
    return landlock.Access(
        execute=(parser, *library_files[:1]),
        read=(
            *included.roots,
            *linked,
            *library_files[1:],
            LIBRARY_CACHE,
            KERNEL_FEATURES,
            *others,
        ),
    )
