"""Creates temporary files, which get their final name in one step when they are complete.

A process locks each temporary file while it writes the file, so that other processes remove only
files that a crash has left behind. filesystem.py decides where files are written.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from typing import Final

PREFIX: Final = ".profile-loader."
SUFFIX: Final = ".tmp"


def create(directory: int) -> tuple[str, int]:
    """Create and lock a temporary file; return its name, which is unique among agents, and a
    descriptor.

    The lock shows that a process is writing the file. `sweep` removes all temporary files without a
    lock. If the file was removed before it was locked, another file is created.
    """
    while True:
        name = f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=directory)
        # On a file system without locks, `sweep` removes nothing.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return name, file
        os.close(file)


def sweep(directory: int) -> None:
    """Remove the temporary files in a directory that no process is writing. Raises OSError."""
    for name in os.listdir(directory):
        if name.startswith(PREFIX) and name.endswith(SUFFIX):
            with contextlib.suppress(OSError):
                _remove_if_stale(name, directory)


def _remove_if_stale(name: str, directory: int) -> None:
    """Remove a temporary file of this user, unless a process is writing the file. Raises
    OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(file)


def publish(temporary: str, name: str, directory: int, *, new: bool) -> None:
    """Move a complete temporary file to its final name. Raises OSError, with EEXIST if `new` is set
    and the name exists.
    """
    if new:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(temporary, dir_fd=directory)
    else:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
