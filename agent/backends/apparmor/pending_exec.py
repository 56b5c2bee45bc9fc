"""Determines whether this kernel shows which profile another thread enters at its next execve(2).

A container runtime writes `exec PROFILE` to its own attr/exec before it starts the program of the
container. On Linux 6.1, each reader of attr/exec sees its own state (apparmor_getprocattr used the
context of `current`). On Linux 6.12, the file shows the state of the thread that owns it.
Distributions backport this fix, so the kernel version does not show whether the kernel contains the
fix. The module `processes` uses the result.
"""

import threading
from typing import Final

from agent.host.filesystem import Host, HostError

_FILES: Final = ("attr/apparmor/exec", "attr/exec")
_PROFILE: Final = "unconfined"  # The kernel always has this profile, even if no policy is loaded.


def is_shown(host: Host) -> bool:
    """Return whether another thread can read the pending exec of a thread.

    For the check, a new thread sets a pending exec, which disappears when the thread ends.
    Processes that other threads start do not inherit this pending exec. If the thread cannot set a
    pending exec, the result is False.
    """
    is_set, is_read = threading.Event(), threading.Event()
    files: list[str] = []

    def set_and_wait() -> None:
        files.extend(_set(host))
        is_set.set()
        is_read.wait()

    thread = threading.Thread(target=set_and_wait, name="pending-exec", daemon=True)
    thread.start()
    is_set.wait()
    try:
        return any(_shows_profile(host, file) for file in files)
    finally:
        is_read.set()
        thread.join()


def _set(host: Host) -> list[str]:
    """Set a pending exec for the calling thread, and return the path of the file that accepted the
    write.
    """
    for name in _FILES:
        try:
            file = f"/proc/{host.link('/proc/thread-self')}/{name}"
            host.write_kernel(file, f"exec {_PROFILE}".encode())
        except HostError:
            continue
        return [file]
    return []


def _shows_profile(host: Host, file: str) -> bool:
    try:
        return host.read(file, limit=4096).strip(b"\n\0") == _PROFILE.encode()
    except HostError:
        return False
