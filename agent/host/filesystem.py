"""The host: files and commands, every path below one root. The only module that writes.

Rule 1: a path is resolved below the root through directory descriptors; no link in it is ever
followed out of the root, and a last component that is a link is never followed on writing.
Rule 2: a file is either its old content or its new content, at every moment and after a crash.
Rule 3: OSError stops here: it becomes HostError, or one of the answers documented per method.
"""

import contextlib
import enum
import errno
import fcntl
import os
import resource
import secrets
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from agent.host import landlock, reading, stat_signature
from agent.host.stat_signature import Signature

TEMPORARY_PREFIX = ".profile-loader."
TEMPORARY_SUFFIX = ".tmp"
CANCEL_CHECK_SECONDS = 0.1  # how often a running command is checked for cancellation
_MOST_LINKS = 40  # as the kernel: path_resolution(7)
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class HostError(Exception):
    """The host refused an operation: the path (or command), the errno and its text."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"{path}: {error.strerror or error}")
        self.path = path
        self.errno = error.errno or 0


class Limit(enum.Enum):
    """The limit that ended a command."""

    WALL_CLOCK = "wall_clock"
    CPU_TIME = "cpu_time"
    OUTPUT = "output"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """A command that ended. status: exit status, or -N for signal N. The rest is bounded."""

    status: int
    stdout: bytes
    stderr: bytes
    limit: Limit | None = None  # why it was ended, where it did not end by itself
    seconds: float = field(default=0.0, compare=False)  # from its start to its own end
    cpu_seconds: float = field(default=0.0, compare=False)  # with the children it waited for


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(path, error) from error


class Host:
    """A host whose paths all lie below root (`/` on a node; any directory for a trial)."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)
        self._here = self.root == Path("/")
        self._swept: set[tuple[int, int]] = set()  # directories, by device and inode

    def path(self, path: str | PurePosixPath) -> Path:
        """Return where an absolute host path lies on this machine.

        Links on the way are read as the host itself would read them: an absolute target starts
        again at the root, and `..` does not lead out of it. The last component is not looked at.
        Raises OSError (ELOOP).
        """
        if self._here:
            return Path(path)
        todo = [part for part in reversed(PurePosixPath(path).parts) if part != "/"]
        done: list[str] = []
        links = 0
        while len(todo) > 1:
            part = todo.pop()
            if part == "..":
                done = done[:-1]
                continue
            try:
                target = self.root.joinpath(*done, part).readlink()
            except OSError:  # no link, or nothing there: the caller's open will tell
                done.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if target.is_absolute():
                done = []
            todo += [step for step in reversed(target.parts) if step != "/"]
        return self.root.joinpath(*done, *todo)

    def _at(self, path: str) -> str:
        """Return what `path` returns, without the detour where the root is this machine's."""
        return path if self._here else str(self.path(path))

    def _directory(self, base: str) -> str:
        return base if self._here else str(self.path(f"{base}/-").parent)

    # --- looking ---------------------------------------------------------------------------------

    def read(self, path: str, *, limit: int = 64 << 20) -> bytes:
        """Return the whole content, following links (for system files). Raises HostError."""
        try:
            fd = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC)
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
        """Return what one read(2) gives, or None if nothing is there yet; never wait.

        For kernel files that never end (AppArmor's revision). Raises HostError.
        """
        with _translated(path):
            fd = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.read(fd, size)
            except BlockingIOError:
                return None
            finally:
                os.close(fd)

    def link(self, path: str) -> str:
        """Return where a symbolic link points, as it is written. Raises HostError."""
        try:
            return os.readlink(self._at(path))  # noqa: PTH115 - quicker, asked of each profile
        except OSError as error:
            raise HostError(path, error) from error

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a directory. Raises HostError."""
        with _translated(path):
            return sorted(os.listdir(self._at(path)))

    def newest(self, path: str) -> Iterator[str]:
        """Give the names in a directory as they come: in securityfs, the newest first.

        (Linux, fs/libfs.c: dcache_readdir.) Raises HostError.
        """
        with _translated(path), os.scandir(self._at(path)) as entries:
            for entry in entries:
                yield entry.name

    def exists(self, path: str) -> bool:
        """Return whether something (a dangling link too) has that path. Raises HostError."""
        try:
            os.lstat(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise HostError(path, error) from error
        return True

    def signature(self, path: str) -> Signature | None:
        """Return what changes whenever a file's content does; None where nothing can be said."""
        try:
            return stat_signature.of(os.lstat(self._at(path)))
        except OSError:
            return None

    def is_loose(self, path: str) -> bool:
        """Return whether others than root and this agent may change a file, as far as is known."""
        try:
            status = os.lstat(self._at(path))
        except OSError:
            return False
        return _is_writable_by_others(status)

    def is_owned_by_others(self, base: str) -> bool:
        """Return whether a directory belongs to another user than root and this agent."""
        try:
            status = Path(self._directory(base)).stat()
        except OSError:
            return False  # nothing is there, or reading it reports why not
        return status.st_uid not in (0, os.geteuid())

    def make_private(self, base: str) -> bool:
        """Remove group's and others' write permission from a directory; return whether it changed.

        Only a directory of this agent's user is changed. Raises HostError.
        """
        with _translated(base):
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
        """Return the signature of each of names (relative, descending) below base, by name.

        None for names: of everything in base, which itself is under "". What is not there, or
        cannot be looked at, is left out; None if base is that.
        """
        found: dict[str, Signature] = {}
        try:
            fd = os.open(self._directory(base), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if names is None:
                found[""] = stat_signature.of(os.fstat(fd))
                names = os.listdir(fd)
            for name in names:
                with contextlib.suppress(OSError, ValueError):
                    found[name] = stat_signature.of(os.stat(name, dir_fd=fd, follow_symlinks=False))
        except OSError:
            return None
        finally:
            os.close(fd)
        return found

    def read_regular(
        self, base: str, name: str, *, limit: int, private: bool = False
    ) -> bytes | None:
        """Return the content of the regular file name (relative, descending) below base.

        None if there is nothing of that name. No component below base may be a link; anything
        but a regular file of at most limit bytes raises HostError (ELOOP, EFBIG, EINVAL).
        private: a file that others than root and this agent may write raises HostError (EPERM).
        """
        with _translated(f"{base}/{name}"):
            try:
                file = self._open_regular(base, name)
            except FileNotFoundError:
                return None
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                if private and _is_writable_by_others(status):
                    raise OSError(errno.EPERM, "others may write it")
                if status.st_size > limit:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                return reading.whole(file, status.st_size, limit)
            finally:
                os.close(file)

    def _open_regular(self, base: str, name: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if "/" not in name and name not in ("", ".", ".."):
            return os.open(f"{self._directory(base)}/{name}", flags)
        with self._parent(base, name, make=False) as (fd, last):
            return os.open(last, flags, dir_fd=fd)

    # --- writing ---------------------------------------------------------------------------------

    def write_file(  # noqa: PLR0913 - how, beside what and where
        self,
        base: str,
        name: str,
        content: bytes,
        *,
        new: bool = False,
        mode: int = 0o644,
        durable: bool = True,
    ) -> None:
        """Write a regular file below base (made if missing, 0755), atomically and durably.

        durable: where it is false, a crash of the machine may leave anything under the name.
        new: fail with EEXIST (in HostError) if anything has that name; link(2) decides, so no
        race can replace what somebody else wrote. Otherwise rename(2) replaces it.
        """
        with _translated(f"{base}/{name}"), self._parent(base, name, make=True) as (fd, last):
            self._sweep_once(fd)
            temporary, file = _temporary(fd)
            try:
                with open(file, "wb") as stream:  # noqa: PTH123 - a descriptor, not a path
                    stream.write(content)
                    stream.flush()
                    os.fchmod(file, mode)
                    if durable:
                        os.fsync(file)
                    _publish(temporary, last, fd, new=new)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=fd)
                raise
            if durable:
                os.fsync(fd)

    def _sweep_once(self, fd: int) -> None:
        """Remove the temporary files that a crash left in a directory, once per process."""
        status = os.fstat(fd)
        directory = (status.st_dev, status.st_ino)
        if directory in self._swept:
            return
        for name in os.listdir(fd):
            if name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    _remove_if_stale(name, fd)
        self._swept.add(directory)

    def append_file(self, base: str, name: str, content: bytes) -> None:
        """Append to a regular file below base in one write(2), not durably. Raises HostError.

        O_NONBLOCK: opening a FIFO that nothing reads fails instead of waiting for a reader.
        """
        with _translated(f"{base}/{name}"), self._parent(base, name, make=False) as (fd, last):
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
        """Remove a file below base, durably; absent is fine. Raises HostError."""
        with _translated(f"{base}/{name}"):
            try:
                with self._parent(base, name, make=False) as (fd, last):
                    os.unlink(last, dir_fd=fd)
                    os.fsync(fd)
            except FileNotFoundError:
                return

    def write_kernel(self, path: str, content: bytes) -> None:
        """Write content to a kernel interface file in one write(2). Raises HostError."""
        with _translated(path):
            fd = os.open(self._at(path), os.O_WRONLY | os.O_CLOEXEC)
            try:
                if os.write(fd, content) != len(content):
                    raise OSError(errno.EIO, "the kernel took only a part")
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def lock(self, base: str, name: str) -> Iterator[bool]:
        """Hold an exclusive lock on a file below base; give whether it could be had at once.

        The kernel gives it up when the process ends, however it ends (flock(2)). Raises HostError.
        """
        with _translated(f"{base}/{name}"), self._parent(base, name, make=True) as (fd, last):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(last, flags, 0o600, dir_fd=fd)
        try:
            mine = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
            yield mine
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _parent(self, base: str, name: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """Give a descriptor of name's directory, reached without following a link below base."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part in ("..", ".") for part in parts):
            raise OSError(errno.EINVAL, "not a descending relative path")
        top = self._directory(base)
        if make and not os.path.isdir(top):  # noqa: PTH112 - quicker, and asked for each write
            Path(top).mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, _DIR, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, parts[-1]
        finally:
            os.close(fd)

    # --- commands --------------------------------------------------------------------------------

    def run(  # noqa: PLR0913 - each limit is a fact of its own
        self,
        argv: Sequence[str],
        *,
        stdin: bytes,
        timeout_seconds: float,
        memory_bytes: int,
        cpu_seconds: int,
        output_bytes: int,
    ) -> Exited:
        """Run a command with a time-out and resource limits; output goes to files, bounded.

        argv[0] is an absolute path on this machine, not below root. Raises HostError if it
        cannot be started.
        """
        with self.started(
            argv,
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            memory_bytes=memory_bytes,
            cpu_seconds=cpu_seconds,
            output_bytes=output_bytes,
        ) as running:
            return running.result()

    @contextlib.contextmanager
    def started(  # noqa: PLR0913 - each limit is a fact of its own
        self,
        argv: Sequence[str],
        *,
        stdin: bytes,
        timeout_seconds: float,
        memory_bytes: int,
        cpu_seconds: int,
        output_bytes: int,
        sandbox: landlock.Access | None = None,
    ) -> Iterator["Running"]:
        """Start a command as `run` does. Whatever happens, it does not outlive the block.

        With a sandbox, the command can open only the files that the sandbox lists. Each process
        that the command starts gets the same limits.
        """
        limits = {
            resource.RLIMIT_AS: (memory_bytes, memory_bytes),
            resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
            resource.RLIMIT_FSIZE: (output_bytes, output_bytes),
            resource.RLIMIT_CORE: (0, 0),
        }
        with (
            _translated(argv[0]),
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin)
            given.seek(0)
            children = _Children()

            def start() -> None:
                child = subprocess.Popen(  # noqa: S603 - an absolute path and a list, no shell
                    list(argv),
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    start_new_session=True,
                )
                children.add(child)

            try:
                # The child inherits the restrictions of the thread that starts it.
                start() if sandbox is None else landlock.run(start, sandbox)
                # From outside: code between fork and exec could wait for another thread's lock.
                yield Running(children[0], (out, err), timeout_seconds, limits)
            finally:
                children.end()


class _Children:
    """Started processes. A process that another thread adds after `end` is ended at once.

    A signal handler may raise in this thread while the other one still starts the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = False

    def __getitem__(self, index: int) -> "subprocess.Popen[bytes]":
        return self._processes[index]

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            self._processes.append(process)
            if self._over:
                _end(process)

    def end(self) -> None:
        with self._lock:
            self._over = True
            for process in self._processes:
                _end(process)


def _is_writable_by_others(status: os.stat_result) -> bool:
    return bool(status.st_mode & 0o022) or status.st_uid not in (0, os.geteuid())


def _temporary(directory: int) -> tuple[str, int]:
    """Create and lock a temporary file; return its name, unique among all agents, and descriptor.

    The lock says that a process is writing the file: `_remove_if_stale` removes the others. A file
    that was removed between its creation and its lock is replaced by another one.
    """
    while True:
        name = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=directory)
        with contextlib.suppress(OSError):  # a file system without locks has no sweep either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return name, file
        os.close(file)


def _remove_if_stale(name: str, directory: int) -> None:
    """Remove a temporary file of this user unless a process is writing it. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(file)


def _publish(temporary: str, name: str, directory: int, *, new: bool) -> None:
    """Give a complete temporary file its name. Raises OSError (EEXIST with new)."""
    if new:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(temporary, dir_fd=directory)
    else:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


class Running:
    """A command that was started."""

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        output: tuple[IO[bytes], IO[bytes]],
        timeout_seconds: float,
        limits: Mapping[int, tuple[int, int]],
    ) -> None:
        self._child = child
        self._limits = limits
        _set_limits(child.pid, limits)
        self._output = output
        self._begin = self._ended = time.monotonic()
        self._end = self._begin + timeout_seconds
        self._cpu_seconds = 0.0
        # Waiting for the end must not reap the process: its id stays valid until `result` does.
        self._watch = threading.Thread(target=self._watched, daemon=True)
        self._watch.start()

    def _watched(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        self._ended = time.monotonic()
        self._cpu_seconds = _cpu_seconds(self._child.pid)

    def result(self, is_cancelled: Callable[[], bool] = lambda: False) -> Exited:
        """Wait until the command ends; end it when its time is over or `is_cancelled` says so.

        The output limit is also reported if a process that the command started reached it.
        """
        limit = None
        while self._watch.is_alive():
            # A process that was being forked when the limits were set has them from now on.
            _set_limits(self._child.pid, self._limits)
            left = self._end - time.monotonic()
            if left <= 0 or is_cancelled():
                limit = Limit.WALL_CLOCK if left <= 0 else Limit.CANCELLED
                _end(self._child)
                break
            # Popen.wait would sleep beyond the end.
            self._watch.join(min(left, CANCEL_CHECK_SECONDS))
        _end(self._child)  # a process that the command started may still run
        parts = []
        output_bytes, _ = self._limits[resource.RLIMIT_FSIZE]
        for file in self._output:
            file.seek(0)
            parts.append(file.read(output_bytes))
        self._watch.join()
        if self._child.returncode != 0:
            limit = self._reached(max(map(len, parts))) or limit
        return Exited(
            status=self._child.returncode,
            stdout=parts[0],
            stderr=parts[1],
            limit=limit,
            seconds=self._ended - self._begin,
            cpu_seconds=self._cpu_seconds,
        )

    def _reached(self, written_bytes: int) -> Limit | None:
        """Return the limit that a failed command reached."""
        if self._child.returncode == -signal.SIGXFSZ:
            return Limit.OUTPUT
        if self._child.returncode == -signal.SIGXCPU:
            return Limit.CPU_TIME
        if written_bytes >= self._limits[resource.RLIMIT_FSIZE][0]:
            return Limit.OUTPUT
        return None


def _set_limits(process: int, limits: Mapping[int, tuple[int, int]]) -> None:
    """Set the resource limits of a process and of all its descendants. Raises OSError.

    A process inherits the limits of its parent when it is forked; processes that were forked
    before are found in /proc.
    """
    processes = [process]
    while processes:
        number = processes.pop()
        with contextlib.suppress(ProcessLookupError):
            for which, values in limits.items():
                resource.prlimit(number, which, values)
        # The kernel may have been built without this file (CONFIG_PROC_CHILDREN).
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{number}/task/{number}/children").read_text("ascii")
            processes += map(int, children.split())


def _cpu_seconds(process: int) -> float:
    """Return the CPU seconds of an ended process and of the children that it waited for.

    Returns 0 where /proc does not show the process (proc(5): stat, fields 14 to 17).
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        ticks = sum(map(int, fields.split()[11:15]))
    except (OSError, ValueError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a process with its process group, and reap it.

    The group is ended before the process is reaped: its id cannot be that of another group yet.
    """
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
