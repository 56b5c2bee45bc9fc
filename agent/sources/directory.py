"""A directory of profiles, read once through descriptors; a mounted ConfigMap volume included.

The kubelet swaps a volume's `..data` link to a new generation (kubernetes:
pkg/volume/util/atomic_writer.go): one generation is opened once and everything is read through
it, so the keys of one read always belong together.

Rule 1: nothing outside the tree is read, and nothing that is not a regular file.
Rule 2: a key that cannot be read makes the set unreadable: it may still be desired.
Rule 3: between two `forget`s a file is not read again while its signature stands, once its last
change is so long ago that another one must have another time (git: racy-git.txt).
"""

import contextlib
import errno
import itertools
import operator
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.core import classify
from agent.core.findings import Finding
from agent.core.model import Missing, Snapshot, SourceKey, Unreadable
from agent.host import reading, stat_signature
from agent.host.stat_signature import Signature
from agent.sources import limits

_DATA = "..data"
_TRIES = 5
_DEPTH = 16
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _ChangedError(Exception):
    """The directory changed while it was read."""


class _TooLargeError(Exception):
    """The directory has more names or directories than a source may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What was read of one file, and the signature it had before and after."""

    signature: Signature
    blob: SourceKey


class DirectorySource:
    """Profiles below a directory of this machine. Fulfils agent.core.ports.Source.

    clock: nanoseconds since 1970, as file times count them.
    """

    def __init__(
        self,
        path: str,
        after_read: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self.origin = f"dir {Path(path).absolute()}"
        self.watched_path = Path(path).absolute()
        self._after_read = after_read  # called once per try, before the look whether it changed
        self._clock = clock
        self._files: dict[str, _File] = {}  # by key
        self._last: tuple[list[SourceKey], list[tuple[str, Finding]], Snapshot] | None = None

    def invalidate(self) -> None:
        """Read every file again at the next read."""
        self._files = {}
        self._last = None

    def explain_absence(self, set_: str) -> Snapshot | None:  # noqa: ARG002 - the port's
        """Return None: this source has one set, and always answers for it."""
        return None

    def read(self) -> tuple[Snapshot, ...]:
        """Read the set once; a set that changes meanwhile is read again, a few times."""
        for _ in range(_TRIES):
            try:
                return (self._read(),)
            except FileNotFoundError:
                return (Missing(profile_set=self.origin, reason=f"{self.path} does not exist"),)
            except OSError as error:
                why = f"{error.filename or self.path}: {error.strerror}"
                return (Unreadable(profile_set=self.origin, reason=why),)
            except _TooLargeError as error:
                return (Unreadable(profile_set=self.origin, reason=str(error)),)
            except _ChangedError:
                continue
        return (
            Unreadable(
                profile_set=self.origin, reason=f"{self.path} keeps changing while it is read"
            ),
        )

    def _read(self) -> Snapshot:
        top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, top)
            walk = _Walk(self.origin, top, stack, self._files, self._clock)
            walk.directory(top, "")
            self._after_read()
            walk.verify()
        self._files = walk.files
        return self._snapshot(walk.blobs, walk.refused)

    def _snapshot(self, blobs: list[SourceKey], refused: list[tuple[str, Finding]]) -> Snapshot:
        """Return the very snapshot of the last read if nothing was read anew."""
        last = self._last
        if last is None or not _same(last[0], blobs) or last[1] != refused:
            self._last = last = (blobs, refused, limits.snapshot(self.origin, blobs, refused))
        return last[2]


class _Walk:
    """Collects the keys below one directory."""

    def __init__(
        self,
        origin: str,
        top: int,
        stack: contextlib.ExitStack,
        known: Mapping[str, _File],
        clock: Callable[[], int],
    ) -> None:
        self.origin = origin
        self.top = top
        self.known = known  # what earlier reads may still answer for
        self.clock = clock
        self.files: dict[str, _File] = {}  # what the next read may answer for
        self.stack = stack  # closes what must stay open until the end
        self.volumes: list[tuple[int, str]] = []
        self.blobs: list[SourceKey] = []
        self.refused: list[tuple[str, Finding]] = []
        self.size = 0
        self.directories = 0
        self.names = 0

    def directory(self, fd: int, above: str) -> None:
        """Collect a directory's keys; those of a mounted volume through its generation.

        above: what comes before a name in its key, with a slash at the end.
        """
        self.directories += 1
        if self.directories > limits.SET_DIRECTORIES:
            most = limits.SET_DIRECTORIES
            raise _TooLargeError(f"too_many_directories: more than {most} directories")
        generation = _generation(fd)
        if generation is None:
            self.entries(fd, above)
            return
        held = os.dup(fd)
        self.stack.callback(os.close, held)
        self.volumes.append((held, generation))
        inner = _open(generation, _DIR, fd)
        try:
            self.entries(inner, above)
        finally:
            os.close(inner)

    def verify(self) -> None:
        """Raise _ChangedError if a volume was swapped, or the directory removed, meanwhile."""
        swapped = any(_generation(fd) != generation for fd, generation in self.volumes)
        if swapped or os.fstat(self.top).st_nlink == 0:
            raise _ChangedError

    def entries(self, fd: int, above: str) -> None:
        for name in self.sorted_names(fd):
            if name.startswith("."):
                continue
            if len(self.blobs) + len(self.refused) > limits.SET_KEYS:
                return
            if self.size > limits.SET_BYTES:  # enough to refuse the set; keep no more of it
                return
            self.entry(fd, name, above + name)

    def sorted_names(self, fd: int) -> list[str]:
        """Return the names in a directory. Raises _TooLargeError before they take much memory."""
        with os.scandir(fd) as found:
            names = [one.name for one in itertools.islice(found, limits.SET_NAMES + 1)]
        self.names += len(names)
        if self.names > limits.SET_NAMES:
            raise _TooLargeError(f"too_many_names: more than {limits.SET_NAMES} names")
        return sorted(names)

    def entry(self, fd: int, name: str, key: str) -> None:
        status = _stat(name, fd)
        mode = status.st_mode
        if self.still(key, status):
            return
        if classify.classify(key, b"") is None and not stat.S_ISDIR(mode):
            return
        if not name.isprintable():
            shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in key)
            self.refused.append(
                (shown, limits.unsafe(shown, "holds characters that cannot be printed"))
            )
        elif stat.S_ISDIR(mode):
            if key.count("/") >= _DEPTH:
                self.refused.append((key, limits.unsafe(key, f"is over {_DEPTH} levels deep")))
                return
            below = _open(name, _DIR, fd)
            try:
                self.directory(below, f"{key}/")
            finally:
                os.close(below)
        elif stat.S_ISREG(mode):
            self.file(fd, name, key)
        elif stat.S_ISLNK(mode):
            self.link(fd, name, key)
        else:
            self.refused.append((key, _not_regular(key, "is no regular file")))

    def still(self, key: str, status: os.stat_result) -> bool:
        """Take a key from an earlier read, if its file's signature stands."""
        known = self.known.get(key)
        if known is None or known.signature != stat_signature.of(status):
            return False
        self.take(known.blob)
        self.files[key] = known
        return True

    def file(self, fd: int, name: str, key: str) -> None:
        now = self.clock()
        file = _open(name, _FILE, fd)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise _ChangedError
            if status.st_size > limits.KEY_BYTES:
                self.refused.append((key, limits.too_large(key)))
                return
            content = reading.read_all(file, status.st_size, limits.KEY_BYTES)
            after = stat_signature.of(os.fstat(file))
        finally:
            os.close(file)
        if after != stat_signature.of(status):
            raise _ChangedError  # the half of two texts may be a text
        if len(content) > limits.KEY_BYTES:
            self.refused.append((key, limits.too_large(key)))
            return
        blob = SourceKey(profile_set=self.origin, key=key, content=content)
        self.take(blob)
        if stat_signature.is_settled(after, now):
            self.files[key] = _File(signature=after, blob=blob)

    def take(self, blob: SourceKey) -> None:
        self.blobs.append(blob)
        self.size += len(blob.content)

    def link(self, fd: int, name: str, key: str) -> None:
        """Read a link whose target is a regular file of this tree; refuse every other."""
        top = os.path.realpath(f"/proc/self/fd/{self.top}")
        real = os.path.realpath(f"/proc/self/fd/{fd}/{name}")
        if os.path.commonpath([top, real]) != top:
            self.refused.append((key, _not_regular(key, "is a link that leads out of the source")))
            return
        if not Path(real).is_file():
            self.refused.append((key, _not_regular(key, "is a link to no regular file")))
            return
        parts = PurePosixPath(os.path.relpath(real, top)).parts
        here = os.dup(self.top)
        try:
            for part in parts[:-1]:
                below = _open(part, _DIR, here)
                os.close(here)
                here = below
            if not self.still(key, _stat(parts[-1], here)):
                self.file(here, parts[-1], key)
        finally:
            os.close(here)


def _same(one: list[SourceKey], other: list[SourceKey]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _generation(top: int) -> str | None:
    """Return the name of the current generation of a mounted volume, or None for a directory."""
    try:
        target = os.readlink(_DATA, dir_fd=top)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    if "/" in target or target in ("", ".", ".."):
        raise OSError(errno.EINVAL, f"its link leads out of the volume, to {target!r}", _DATA)
    return target


def _stat(name: str, fd: int) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError as error:
        raise _ChangedError from error


def _open(name: str, flags: int, fd: int) -> int:
    """Open below a directory; what was there a moment ago and is gone, or a link now, changed."""
    try:
        return os.open(name, flags, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise _ChangedError from error
        raise


def _not_regular(key: str, why: str) -> Finding:
    return Finding(
        code="key_not_regular",
        location=key,
        message=f'"{key}" {why}. It is not read.',
        hint="Put the profile itself there, as a regular file.",
    )
