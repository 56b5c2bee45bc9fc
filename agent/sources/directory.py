"""Provides profiles from a directory, which may be a mounted ConfigMap volume.

All files are read through open directories, and files outside the directory are never read. The
kubelet replaces the `..data` link of a volume to switch to a new generation (kubernetes,
pkg/volume/util/atomic_writer.go). The source opens one generation and reads all keys from it, so
that the keys of one read always belong together. If a key cannot be read, the whole profile set is
unreadable, because the key may still be desired. A file is not read again while its stat signature
is unchanged.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from agent.core import classify
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.left_out import LeftOut
from agent.core.model import Missing, Snapshot, SourceKey, Unreadable
from agent.core.printable import printable
from agent.host import reading, stat_signature
from agent.host.stat_signature import Signature
from agent.sources import limits

_DATA: Final = "..data"
_ATTEMPTS: Final = 5
_DEPTH_LIMIT: Final = 16
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _ChangedError(Exception):
    """Raised if the directory changed during the read."""


class _TooLargeError(Exception):
    """Raised if the directory has more names or subdirectories than a source may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedFile:
    """A key that was read from a file, with the signature that the file had before and after the
    read.
    """

    signature: Signature
    source_key: SourceKey


@dataclass(slots=True)
class _Collected:
    """The keys that have been read so far."""

    source_keys: list[SourceKey] = field(default_factory=list)
    rejected: list[tuple[str, Finding]] = field(default_factory=list)
    files: dict[str, _CachedFile] = field(default_factory=dict)
    """Maps keys to the files that the next read need not read again."""
    skipped: list[str] = field(default_factory=list)
    """The files whose names are not valid profile names."""
    size: int = 0
    directories: int = 0
    names: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """The keys that were skipped because they cannot be read, each with the reason."""

    def add(self, source_key: SourceKey) -> None:
        self.source_keys.append(source_key)
        self.size += len(source_key.content)

    def reject(self, key: str, finding: Finding) -> None:
        self.rejected.append((key, finding))

    def is_over_limit(self) -> bool:
        """Return whether the profile set is so large that no further keys are read."""
        count = len(self.source_keys) + len(self.rejected)
        return count > limits.SET_KEYS or self.size > limits.SET_BYTES

    def count_directory(self) -> None:
        """Count a directory. Raises _TooLargeError."""
        self.directories += 1
        if self.directories > limits.SET_DIRECTORIES:
            raise _TooLargeError(
                f"too_many_directories: more than {limits.SET_DIRECTORIES} directories"
            )

    def count_names(self, number: int) -> None:
        """Count the names in a directory. Raises _TooLargeError."""
        self.names += number
        if self.names > limits.SET_NAMES:
            raise _TooLargeError(f"too_many_names: more than {limits.SET_NAMES} names")


_Inputs = tuple[list[SourceKey], list[tuple[str, Finding]], tuple[LeftOut, ...]]


class DirectorySource:
    """The profiles in a directory on this machine. Implements agent.core.ports.Source."""

    def __init__(
        self,
        path: str,
        *,
        clock_ns: Callable[[], int],
        skips_unreadable: bool = False,
    ) -> None:
        """Create a source without reading the directory.

        Args:
            path: the directory.
            clock_ns: returns the Unix time in nanoseconds, like the times of files.
            skips_unreadable: whether a read skips the keys that cannot be read, and records them in
                `unreadable_keys`. If a key is not skipped, the whole profile set is unreadable, so
                that no profile is removed.
        """
        self.path = path
        self.unreadable_keys: list[tuple[str, str]] = []
        self._skips_unreadable = skips_unreadable
        self.profile_set = f"dir {Path(path).absolute()}"
        self.watched_path = Path(path).absolute()
        self._clock_ns = clock_ns
        self._files: dict[str, _CachedFile] = {}
        self._last: tuple[_Inputs, Snapshot] | None = None

    def invalidate(self) -> None:
        """Make the next read process every file."""
        self._files = {}
        self._last = None

    def explain_absence(self, _profile_set: str, /) -> Snapshot | None:
        """Return None, because `read` always returns the only profile set of this source."""
        return None

    def read(self) -> tuple[Snapshot, ...]:
        """Read the profile set once. If the profile set changes during the read, the source reads
        it again a few times.
        """
        for _ in range(_ATTEMPTS):
            try:
                return (self._read(),)
            except FileNotFoundError:
                reason = f"{self.path} does not exist"
                return (Missing(profile_set=self.profile_set, reason=reason),)
            except OSError as error:
                return (self._unreadable(f"{error.filename or self.path}: {error.strerror}"),)
            except _TooLargeError as error:
                return (self._unreadable(str(error)),)
            except _ChangedError:
                continue
        return (self._unreadable(f"{self.path} keeps changing while it is read"),)

    def _unreadable(self, reason: str) -> Unreadable:
        return Unreadable(profile_set=self.profile_set, reason=reason)

    def _read(self) -> Snapshot:
        top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, top)
            walk = _Walk(
                profile_set=self.profile_set,
                top=top,
                stack=stack,
                cached=self._files,
                clock_ns=self._clock_ns,
                skips_unreadable=self._skips_unreadable,
            )
            walk.read_directory(top, "")
            walk.require_unchanged()
        self.unreadable_keys = walk.collected.unreadable
        self._files = walk.collected.files
        return self._snapshot(walk.collected)

    def _snapshot(self, collected: _Collected) -> Snapshot:
        """If no key has changed, return the last snapshot, so that no hash has to be computed."""
        keys, rejected = collected.source_keys, collected.rejected
        inputs = (keys, rejected, limits.skipped_by_name(collected.skipped))
        if self._last is None or self._last[0] != inputs:
            snapshot = limits.snapshot(self.profile_set, keys, rejected)
            self._last = (inputs, limits.with_left_out(snapshot, inputs[2]))
        return self._last[1]


class _Walk:
    """Reads the keys in one directory and its subdirectories."""

    def __init__(  # noqa: PLR0913 - the parts of a read
        self,
        *,
        profile_set: str,
        top: int,
        stack: contextlib.ExitStack,
        cached: Mapping[str, _CachedFile],
        clock_ns: Callable[[], int],
        skips_unreadable: bool,
    ) -> None:
        self._profile_set = profile_set
        self._top = top
        self._stack = stack  # The stack closes all descriptors at the end of the read.
        self._cached = cached
        self._clock_ns = clock_ns
        self._skips_unreadable = skips_unreadable
        # The descriptor and the generation of each mounted volume.
        self._volumes: list[tuple[int, str]] = []
        self.collected = _Collected()

    def read_directory(self, fd: int, parent: str) -> None:
        """Read the keys of a directory, or of the current generation of a mounted volume.

        Args:
            fd: the directory.
            parent: the part of the keys before the file name; it is empty or ends with a slash.
        """
        self.collected.count_directory()
        generation = _generation(fd)
        if generation is None:
            self._read_entries(fd, parent)
            return
        volume = os.dup(fd)
        self._stack.callback(os.close, volume)
        self._volumes.append((volume, generation))
        inner = _open(generation, _DIRECTORY, fd)
        try:
            self._read_entries(inner, parent)
        finally:
            os.close(inner)

    def require_unchanged(self) -> None:
        """Raise _ChangedError if a volume has a new generation or if the directory was removed."""
        is_replaced = any(_generation(fd) != generation for fd, generation in self._volumes)
        if is_replaced or os.fstat(self._top).st_nlink == 0:
            raise _ChangedError

    def _read_entries(self, fd: int, parent: str) -> None:
        for name in self._sorted_names(fd):
            if name.startswith("."):
                continue
            if self.collected.is_over_limit():
                return
            try:
                self._read_entry(fd, name, parent + name)
            except PermissionError as error:
                if not self._skips_unreadable:
                    raise
                self.collected.unreadable.append((parent + name, str(error.strerror)))

    def _sorted_names(self, fd: int) -> list[str]:
        """Return the names in a directory. Raises _TooLargeError if the directory is too large."""
        with os.scandir(fd) as entries:
            names = [entry.name for entry in itertools.islice(entries, limits.SET_NAMES + 1)]
        self.collected.count_names(len(names))
        return sorted(names)

    def _read_entry(self, fd: int, name: str, key: str) -> None:
        status = _stat(name, fd)
        mode = status.st_mode
        if self._add_cached(key, status):
            return
        if classify.classify(key, b"") is None and not stat.S_ISDIR(mode):
            self.collected.skipped.append(key)
            return
        if not name.isprintable():
            shown = printable(key)
            self.collected.reject(shown, limits.unsafe(shown, "contains unprintable characters"))
        elif stat.S_ISDIR(mode):
            self._read_subdirectory(fd, name, key)
        elif stat.S_ISREG(mode):
            self._read_file(fd, name, key)
        elif stat.S_ISLNK(mode):
            self._read_link(fd, name, key)
        else:
            self.collected.reject(key, _not_regular(key, "is not a regular file"))

    def _read_subdirectory(self, fd: int, name: str, key: str) -> None:
        if key.count("/") >= _DEPTH_LIMIT:
            reason = f"is more than {_DEPTH_LIMIT} levels deep"
            self.collected.reject(key, limits.too_deep(key, reason))
            return
        below = _open(name, _DIRECTORY, fd)
        try:
            self.read_directory(below, f"{key}/")
        finally:
            os.close(below)

    def _add_cached(self, key: str, status: os.stat_result) -> bool:
        """Add a key from an earlier read, if the signature of its file is unchanged."""
        cached = self._cached.get(key)
        if cached is None or cached.signature != stat_signature.of(status):
            return False
        self.collected.add(cached.source_key)
        self.collected.files[key] = cached
        return True

    def _read_file(self, fd: int, name: str, key: str) -> None:
        now = self._clock_ns()
        file = _open(name, _FILE, fd)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise _ChangedError
            if status.st_size > limits.KEY_BYTES:
                self.collected.reject(key, limits.too_large(key))
                return
            content = reading.read_all(file, status.st_size, limits.KEY_BYTES)
            signature = stat_signature.of(os.fstat(file))
        finally:
            os.close(file)
        if signature != stat_signature.of(status):
            raise _ChangedError  # The content that was read may be a mixture of two versions.
        if len(content) > limits.KEY_BYTES:
            self.collected.reject(key, limits.too_large(key))
            return
        source_key = SourceKey(profile_set=self._profile_set, key=key, content=content)
        self.collected.add(source_key)
        if stat_signature.is_settled(signature, now):
            self.collected.files[key] = _CachedFile(signature=signature, source_key=source_key)

    def _read_link(self, fd: int, name: str, key: str) -> None:
        """Read a link that leads to a regular file in this directory, and reject every other
        link.
        """
        top = os.path.realpath(f"/proc/self/fd/{self._top}")
        target = os.path.realpath(f"/proc/self/fd/{fd}/{name}")
        reason = ""
        if not os.path.lexists(target):
            shown = printable(os.readlink(name, dir_fd=fd))
            reason = f'is a link, and its target "{shown}" does not exist'
        elif os.path.commonpath([top, target]) != top:
            reason = "is a link that leads out of the source"
        elif not Path(target).is_file():
            reason = "is a link, and its target is not a regular file"
        if reason:
            self.collected.reject(key, _not_regular(key, reason))
            return
        parts = PurePosixPath(os.path.relpath(target, top)).parts
        directory = os.dup(self._top)
        try:
            for part in parts[:-1]:
                below = _open(part, _DIRECTORY, directory)
                os.close(directory)
                directory = below
            if not self._add_cached(key, _stat(parts[-1], directory)):
                self._read_file(directory, parts[-1], key)
        finally:
            os.close(directory)


def _generation(fd: int) -> str | None:
    """Return the current generation of a mounted volume, or None for any other directory.

    Raises OSError.
    """
    try:
        target = os.readlink(_DATA, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    if "/" in target or target in ("", ".", ".."):
        raise OSError(
            errno.EINVAL, f"its symbolic link points outside the volume, to {target!r}", _DATA
        )
    return target


def _stat(name: str, fd: int) -> os.stat_result:
    """Return the file status of a name in the directory listing. Raises _ChangedError and
    OSError.
    """
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError as error:
        raise _ChangedError from error


def _open(name: str, flags: int, fd: int) -> int:
    """Open the file with this name in the directory listing. Raises OSError. Raises _ChangedError
    if the file was replaced.
    """
    try:
        return os.open(name, flags, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise _ChangedError from error
        raise


def _not_regular(key: str, reason: str) -> Finding:
    return Finding(
        code=FindingCode.KEY_NOT_REGULAR,
        location=key,
        message=f'"{key}" {reason}. It is not read.',
        hint="Replace it with a regular file that contains the profile.",
    )
