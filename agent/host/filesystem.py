"""Reads and writes files on the host under one root directory.

The module resolves all paths under this root. No symbolic link in a path points outside the root,
and a write never follows a link in the last component. Even after a crash, a file has either its
old content or its new content. This module converts each OSError into a HostError. commands.py
starts programs.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from agent.host import reading, stat_signature, temporary_files
from agent.host.file_role import FileRole
from agent.host.stat_signature import Signature

_LINK_LIMIT: Final = 40  # The kernel's limit of symbolic links in one path: path_resolution(7).
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class HostError(Exception):
    """An operation on a file or a command failed. The error has the path and the errno."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"{path}: {error.strerror or error}")
        self.path = path
        self.errno = error.errno or 0


@contextlib.contextmanager
def translated_errors(path: str) -> Iterator[None]:
    """Convert each OSError in the block into a HostError for a path or a command."""
    try:
        yield
    except OSError as error:
        raise HostError(path, error) from error


class Host:
    """The files under a root directory, which is `/` on a node and another directory in a test."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)
        self._is_system_root = self.root == Path("/")
        self._swept: set[tuple[int, int]] = set()  # The device and inode of each swept directory.

    def path(self, path: str | PurePosixPath) -> Path:
        """Return the path on this machine for an absolute path on the host.

        Links are resolved as on the host itself. An absolute target begins again at the root, and
        `..` does not lead outside the root. A link in the last component is not resolved. Raises
        OSError (ELOOP).
        """
        if self._is_system_root:
            return Path(path)
        remaining = [part for part in reversed(PurePosixPath(path).parts) if part != "/"]
        resolved: list[str] = []
        links = 0
        while len(remaining) > 1:
            part = remaining.pop()
            if part == "..":
                resolved = resolved[:-1]
                continue
            try:
                target = self.root.joinpath(*resolved, part).readlink()
            except OSError:  # The next operation on the path reports the error.
                resolved.append(part)
                continue
            links += 1
            if links > _LINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if target.is_absolute():
                resolved = []
            remaining += [step for step in reversed(target.parts) if step != "/"]
        return self.root.joinpath(*resolved, *remaining)

    def _resolve(self, path: str) -> str:
        """Return a path below the root as a string; a path is unchanged if the root is `/`."""
        return path if self._is_system_root else str(self.path(path))

    def _directory(self, base: str) -> str:
        return base if self._is_system_root else str(self.path(f"{base}/-").parent)

    def read(self, path: str, *, limit: int = 64 << 20) -> bytes:
        """Return the content of a system file, and follow links. Raises HostError."""
        try:
            fd = os.open(self._resolve(path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                parts: list[bytes] = []
                size = 0
                while chunk := os.read(fd, 65536):
                    size += len(chunk)
                    if size > limit:
                        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                    parts.append(chunk)
                return b"".join(parts)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(path, error) from error

    def read_once(self, path: str, *, size: int = 64) -> bytes | None:
        """Return the result of one read(2) that does not wait, or None if no data is available yet.

        The method is for files of the kernel that never end, such as the policy revision. Raises
        HostError.
        """
        with translated_errors(path):
            fd = os.open(self._resolve(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.read(fd, size)
            except BlockingIOError:
                return None
            finally:
                os.close(fd)

    def link(self, path: str) -> str:
        """Return the target of a symbolic link without resolving it. Raises HostError."""
        try:
            return os.readlink(self._resolve(path))  # os.readlink is faster than pathlib.
        except OSError as error:
            raise HostError(path, error) from error

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a directory. Raises HostError."""
        with translated_errors(path):
            return sorted(os.listdir(self._resolve(path)))

    def newest(self, path: str) -> Iterator[str]:
        """Yield the names in a directory in the kernel's order (newest first in securityfs).

        Linux defines this order in fs/libfs.c: dcache_readdir. Raises HostError.
        """
        with translated_errors(path), os.scandir(self._resolve(path)) as entries:
            for entry in entries:
                yield entry.name

    def exists(self, path: str) -> bool:
        """Return whether a path exists; a dangling link counts as existing. Raises HostError."""
        try:
            os.lstat(self._resolve(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise HostError(path, error) from error
        return True

    def signature(self, path: str) -> Signature | None:
        """Return the stat signature of a file, or None if its status cannot be read."""
        try:
            return stat_signature.of(os.lstat(self._resolve(path)))
        except OSError:
            return None

    def is_loose(self, path: str) -> bool:
        """Return whether a user other than root and the agent's own user can write to a file.

        If the mode of the file cannot be read, the result is False.
        """
        try:
            status = os.lstat(self._resolve(path))
        except OSError:
            return False
        return _is_writable_by_others(status)

    def is_owned_by_others(self, base: str) -> bool:
        """Return whether the owner of a directory is neither root nor the agent's own user."""
        try:
            status = Path(self._directory(base)).stat()
        except OSError:
            return False  # A later read reports that the directory cannot be read.
        return status.st_uid not in (0, os.geteuid())

    def make_private(self, base: str) -> bool:
        """Remove write permission for the group and for others from a directory; return whether the
        mode changed.

        The directory is changed only if the agent's own user owns it. Raises HostError.
        """
        with translated_errors(base):
            path = Path(self._directory(base))
            try:
                status = path.stat()
            except FileNotFoundError:
                return False
            if not status.st_mode & 0o022 or status.st_uid != os.geteuid():
                return False
            path.chmod(stat.S_IMODE(status.st_mode) & ~0o022)
            return True

    def signatures(
        self, base: str, names: Iterable[str] | None = None
    ) -> dict[str, Signature] | None:
        """Return stat signatures of files under a directory by name, or None if it cannot be read.

        Args:
            base: the directory.
            names: relative paths without `..`. If `names` is None, the result contains all names in
                the directory, and the directory itself under the name "". If the signature of a
                name cannot be read, the name is omitted.
        """
        signatures: dict[str, Signature] = {}
        try:
            fd = os.open(self._directory(base), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if names is None:
                signatures[""] = stat_signature.of(os.fstat(fd))
                names = os.listdir(fd)
            for name in names:
                with contextlib.suppress(OSError, ValueError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    signatures[name] = stat_signature.of(status)
        except OSError:
            return None
        finally:
            os.close(fd)
        return signatures

    def read_regular(
        self, base: str, name: str, *, limit: int, private: bool = False
    ) -> bytes | None:
        """Return the content of a regular file under a directory, or None if the file is missing.

        Args:
            base: the directory.
            name: a relative path without `..`; no part of the path may be a link.
            limit: the largest allowed size in bytes.
            private: whether to reject a file that other users can write to (see `is_loose`).

        Raises:
            HostError: the errno is ELOOP for a link, EINVAL for another type of file, EFBIG for a
                file over the limit, or EPERM for a file that is not private.
        """
        with translated_errors(f"{base}/{name}"):
            try:
                file = self._open_regular(base, name)
            except FileNotFoundError:
                return None
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                if private and _is_writable_by_others(status):
                    raise OSError(errno.EPERM, "other users can write to it")
                if status.st_size > limit:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                return reading.read_all(file, status.st_size, limit)
            finally:
                os.close(file)

    def _open_regular(self, base: str, name: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if "/" not in name and name not in ("", ".", ".."):
            return os.open(f"{self._directory(base)}/{name}", flags)
        with self._parent(base, name, create=False) as (fd, last):
            return os.open(last, flags, dir_fd=fd)

    def write_file(
        self,
        base: str,
        name: str,
        content: bytes,
        *,
        new: bool = False,
        role: FileRole = FileRole.PROFILE,
    ) -> None:
        """Write a regular file under a directory atomically.

        Args:
            base: the directory; if it is missing, it is created with mode 0755.
            name: a relative path without `..`.
            content: the new content.
            new: whether to fail with EEXIST if the name exists. link(2) makes this check, so that a
                file that another program creates at the same time is never replaced. Without `new`,
                rename(2) replaces the file.
            role: determines the permissions of the file, and whether the write waits for the disk.

        Raises:
            HostError: the file was not written.
        """
        with translated_errors(f"{base}/{name}"), self._parent(base, name, create=True) as parent:
            fd, last = parent
            self._sweep_once(fd)
            temporary, file = temporary_files.create(fd)
            try:
                with open(file, "wb") as stream:  # `file` is a descriptor.
                    stream.write(content)
                    stream.flush()
                    os.fchmod(file, role.mode)
                    if role.is_durable:
                        os.fsync(file)
                    temporary_files.publish(temporary, last, fd, new=new)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=fd)
                raise
            if role.is_durable:
                os.fsync(fd)

    def _sweep_once(self, fd: int) -> None:
        """Remove temporary files that an earlier crash left in a directory, once per process."""
        status = os.fstat(fd)
        directory = (status.st_dev, status.st_ino)
        if directory not in self._swept:
            temporary_files.sweep(fd)
            self._swept.add(directory)

    def append_file(self, base: str, name: str, content: bytes) -> None:
        """Append to a regular file under a directory in one write(2), without waiting for the disk.

        Raises HostError. With O_NONBLOCK, opening a FIFO that has no reader fails immediately.
        """
        with translated_errors(f"{base}/{name}"), self._parent(base, name, create=False) as parent:
            fd, last = parent
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(last, flags, dir_fd=fd)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                if os.write(file, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)

    def remove_file(self, base: str, name: str) -> None:
        """Remove a file durably. A missing file is not an error. Raises HostError."""
        with translated_errors(f"{base}/{name}"):
            try:
                with self._parent(base, name, create=False) as (fd, last):
                    os.unlink(last, dir_fd=fd)
                    os.fsync(fd)
            except FileNotFoundError:
                return

    def write_kernel(self, path: str, content: bytes) -> None:
        """Write to an interface file of the kernel in one write(2). Raises HostError."""
        with translated_errors(path):
            fd = os.open(self._resolve(path), os.O_WRONLY | os.O_CLOEXEC)
            try:
                if os.write(fd, content) != len(content):
                    raise OSError(errno.EIO, "the kernel accepted only a part of the data")
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def lock(self, base: str, name: str) -> Iterator[bool]:
        """Lock a file under a directory until the block ends, and yield whether the lock was taken.

        The kernel releases the lock when the process ends (flock(2)). Raises HostError.
        """
        with translated_errors(f"{base}/{name}"), self._parent(base, name, create=True) as parent:
            fd, last = parent
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(last, flags, 0o600, dir_fd=fd)
        try:
            is_locked = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_locked = False
            yield is_locked
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _parent(self, base: str, name: str, *, create: bool) -> Iterator[tuple[int, str]]:
        """Yield a descriptor for the parent directory of a name, with the last part of the name.

        The method follows no symbolic link under `base`. Raises OSError.
        """
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part in ("..", ".") for part in parts):
            raise OSError(errno.EINVAL, "not a relative path without '..'")
        top = self._directory(base)
        if create and not os.path.isdir(top):  # os.path.isdir is faster than pathlib.
            Path(top).mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, parts[-1]
        finally:
            os.close(fd)


def _is_writable_by_others(status: os.stat_result) -> bool:
    return bool(status.st_mode & 0o022) or status.st_uid not in (0, os.geteuid())
