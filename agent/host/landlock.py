"""Runs a function in a thread that has permanently given up access to files (Landlock).

A restricted thread, and every program that it starts, can open only the listed files. Other threads
of the agent are not affected, and the restriction needs no capability. The implementation follows
the kernel's Documentation/userspace-api/landlock.rst and landlock(7). Landlock restricts opening,
reading, writing, creating, removing and executing files, and in newer ABI versions the network and
signals. Landlock does not restrict stat(2), chmod(2), chown(2) or access(2).
"""

import ctypes
import errno
import functools
import os
import stat
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

# The numbers of these system calls are the same on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
# constants from linux/landlock.h
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_LOG_SAME_EXEC_OFF: Final = 1
EXECUTE: Final = 1 << 0
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
# constants from linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38
# A path that cannot be opened because of one of these errors gets no rule, so that it stays
# inaccessible.
_UNREACHABLE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.EBADFD}
)
_REASONS: Final = {
    errno.ENOSYS: "the kernel has no Landlock, or a system call filter hides it",
    errno.EOPNOTSUPP: "Landlock is not among the active modules of the kernel (lsm=)",
    errno.EPERM: "a system call filter denies the system calls of Landlock",
    errno.EACCES: "a system call filter denies the system calls of Landlock",
}

_Result = TypeVar("_Result")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The files that a restricted thread can open.

    All other files, and all writes, are denied. Missing paths are omitted. A symbolic link gives
    access to its target.
    """

    read: Sequence[str]
    """The readable files and directories (including the content of the directories)."""
    execute: Sequence[str] = ()
    """The program files that can be read and executed."""


class Handled(NamedTuple):
    """The bit masks (linux/landlock.h) of the access that a ruleset denies by default."""

    files: int
    network: int
    scoped: int


_ABI_1_FILES: Final = (1 << 13) - 1
_LATER_RIGHTS: Final[Mapping[int, Handled]] = {
    2: Handled(files=1 << 13, network=0, scoped=0),  # REFER: link or rename between directories.
    3: Handled(files=1 << 14, network=0, scoped=0),  # TRUNCATE: change the size of a file.
    4: Handled(files=0, network=0b11, scoped=0),  # Bind and connect of TCP sockets.
    5: Handled(files=1 << 15, network=0, scoped=0),  # IOCTL_DEV: ioctl(2) on devices.
    6: Handled(files=0, network=0, scoped=0b11),  # Abstract UNIX sockets and signals.
}
"""Maps each ABI version to the access that this version can deny, but earlier versions cannot."""
_AUDIT_ABI: Final = 7
"""The first ABI version that records denials in the audit log."""


def handled(version: int) -> Handled:
    """Return all access that a version of the Landlock ABI can deny, up to version 6."""
    files, network, scoped = _ABI_1_FILES, 0, 0
    for since, rights in _LATER_RIGHTS.items():
        if version >= since:
            files |= rights.files
            network |= rights.network
            scoped |= rights.scoped
    return Handled(files, network, scoped)


def run(function: Callable[[], _Result], access: Access) -> _Result:
    """Call a function in a new restricted thread and return its result.

    If the thread cannot be restricted, the function is not called, and OSError is raised. If a
    signal handler raises an exception in the calling thread, the function may continue to run.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def restricted() -> None:
        try:
            _restrict(access)
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread
            errors.append(error)

    handled = sys.exception()
    thread = threading.Thread(target=restricted, daemon=True)
    try:
        thread.start()
    except (RuntimeError, KeyError) as error:
        raised = error.__context__
        if raised is not None and raised != handled:
            # A signal handler raised an exception in Thread.start. Condition.wait could then not
            # release its lock (RuntimeError), or the thread had already removed itself from the
            # list of starting threads (KeyError).
            raise raised from None
        # The system cannot start another thread.
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@functools.cache
def missing() -> str:
    """Return the reason why threads of this process cannot be restricted, or "" if Landlock works.

    For this check, a thread restricts itself and then tries to open a directory. Raises OSError if
    the attempt fails for a reason other than the kernel's support, for example because no memory or
    no descriptor is left.
    """
    try:
        effective = run(_is_denied, Access(read=()))
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        return _REASONS[error.errno]
    return "" if effective else "Landlock has no effect in this kernel"


def _is_denied() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return True
    return False


def _restrict(access: Access) -> None:
    """Restrict the calling thread. Raises OSError."""
    version = _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    denied = handled(version)
    attributes = struct.pack("=3Q", *denied)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in access.read:
            _allow(ruleset, path, READ_FILE | READ_DIR)
        for path in access.execute:
            _allow(ruleset, path, READ_FILE | EXECUTE)
        # Without CAP_SYS_ADMIN, the kernel requires no_new_privs for Landlock. This setting does
        # not affect other threads.
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise _error()
        # The agent disables the audit records of denials, because it reports denials itself.
        flags = _LOG_SAME_EXEC_OFF if version >= _AUDIT_ABI else 0
        _call(_RESTRICT_SELF, ruleset, flags)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _UNREACHABLE:
            return
        raise
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= ~READ_DIR
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    except OSError as error:
        if error.errno not in _UNREACHABLE:
            raise
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call. Raises OSError."""
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
