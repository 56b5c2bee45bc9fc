"""Finds the versions of libseccomp that the tests compare.

The installed version is always available. All other versions come from packages of other Debian
releases, which are unpacked into the cache. Later runs verify the checksums of these libraries, and
download the packages again if a library is damaged.
"""

import ctypes
import functools
import hashlib
import shutil
from dataclasses import dataclass

from tests.system import kept, releases

FOLDER = kept.CACHE / "libseccomp"
RELEASES = ("trixie", "sid")  # libseccomp 2.6.0, and the newest version (2.6.1 in November 2026).
# If this list changes, the libraries are downloaded again.
CHECKSUMS = FOLDER / f"checksums-{hashlib.sha256(repr(RELEASES).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One loaded libseccomp."""

    version: str
    handle: ctypes.CDLL

    def __hash__(self) -> int:
        return hash(self.version)

    def token(self, architecture: str) -> int:
        """Return libseccomp's number for an architecture with a name such as SCMP_ARCH_X86_64."""
        name = architecture.removeprefix("SCMP_ARCH_").lower().encode()
        return int(self.handle.seccomp_arch_resolve_name(name))

    def name(self, number: int, token: int) -> str:
        """Return the name of a system call on an architecture, or "" if the call is unknown."""
        address = self.handle.seccomp_syscall_resolve_num_arch(token, number)
        if not address:
            return ""
        try:
            return ctypes.string_at(address).decode()
        finally:
            _C.free(address)

    def resolves(self, name: str) -> int:
        """Return the native number or the pseudo number of a system call name, or -1."""
        return int(self.handle.seccomp_syscall_resolve_name(name.encode()))

    def number(self, name: str, architecture: str) -> int:
        """Return the number or the pseudo number of a system call on one architecture."""
        return int(
            self.handle.seccomp_syscall_resolve_name_arch(self.token(architecture), name.encode())
        )


_C = ctypes.CDLL(None)
_C.free.argtypes = [ctypes.c_void_p]
_C.free.restype = None


class _Version(ctypes.Structure):
    """The struct scmp_version of seccomp.h."""

    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def load(path: str) -> Library:
    """Load one shared library. Several versions can be loaded at the same time."""
    handle = ctypes.CDLL(path)
    handle.seccomp_version.restype = ctypes.POINTER(_Version)
    version = handle.seccomp_version().contents
    handle.seccomp_init.restype = ctypes.c_void_p
    handle.seccomp_init.argtypes = [ctypes.c_uint32]
    handle.seccomp_release.argtypes = [ctypes.c_void_p]
    handle.seccomp_release.restype = None
    handle.seccomp_arch_native.restype = ctypes.c_uint32
    handle.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    handle.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    handle.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    handle.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    handle.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    handle.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    handle.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    handle.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    ]
    handle.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return Library(
        version=f"{version.major}.{version.minor}.{version.micro}",
        handle=handle,
    )


def installed() -> Library:
    """Return the libseccomp on this machine."""
    return load("libseccomp.so.2")


@functools.cache
def every() -> tuple[Library, ...]:
    """Return the installed libseccomp and all other versions that could be downloaded."""
    result = {library.version: library for library in (installed(), *map(load, _fetched()))}
    return tuple(result[version] for version in sorted(result, key=_sort_key))


def _sort_key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _fetched() -> list[str]:
    with kept.locked(FOLDER):
        if not _is_whole():
            _fetch()
        return [str(FOLDER / path) for _, path in _checksums()]


def _checksums() -> list[list[str]]:
    return [line.split() for line in CHECKSUMS.read_text().splitlines()]


def _is_whole() -> bool:
    """Return whether the cache contains every library with the recorded checksum."""
    return CHECKSUMS.exists() and all(
        (FOLDER / path).exists()
        and hashlib.sha256((FOLDER / path).read_bytes()).hexdigest() == expected
        for expected, path in _checksums()
    )


def _fetch() -> None:
    """Unpack libseccomp2 of every release, and record the checksums of the libraries."""
    print(f"libseccomp: fetching packages of {', '.join(RELEASES)} (usually 10 s)", flush=True)
    shutil.rmtree(FOLDER / "releases", ignore_errors=True)
    lines = []
    for suite in RELEASES:
        folder = FOLDER / "releases" / suite
        releases.unpack(("libseccomp2",), suite, folder)
        (path,) = (file for file in folder.rglob("libseccomp.so.*") if not file.is_symlink())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest} {path.relative_to(FOLDER)}\n")
    temporary = FOLDER / "checksums.new"
    temporary.write_text("".join(lines))
    temporary.replace(CHECKSUMS)
