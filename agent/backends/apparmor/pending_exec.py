"""Whether this kernel shows which profile another thread takes at its next execve(2).

A container runtime writes `exec PROFILE` to its own attr/exec some time before the container's
program starts. Linux 6.1 shows every reader of attr/exec the reader's own state instead
(apparmor_getprocattr used the context of `current`); Linux 6.12 shows the state of the thread that
the file belongs to. Distributions backport the fix, so the version number of a kernel says nothing.
"""

import threading
from typing import Final

from agent.host.filesystem import Host, HostError

_FILES: Final = ("attr/apparmor/exec", "attr/exec")
_TARGET: Final = "unconfined"  # exists without any loaded profile


def is_shown(host: Host) -> bool:
    """Return whether a pending exec that one thread sets is visible to another thread.

    The pending exec belongs to the new thread alone and ends with it: no process that another
    thread starts inherits it. False where the thread cannot set it.
    """
    is_set, is_read = threading.Event(), threading.Event()
    places: list[str] = []

    def set_and_wait() -> None:
        places.extend(_set(host))
        is_set.set()
        is_read.wait()

    thread = threading.Thread(target=set_and_wait, name="pending-exec", daemon=True)
    thread.start()
    is_set.wait()
    try:
        return any(_shows(host, place) for place in places)
    finally:
        is_read.set()
        thread.join()


def _set(host: Host) -> list[str]:
    """Set a pending exec for the calling thread; return the file that accepted it, if any."""
    for file in _FILES:
        try:
            place = f"/proc/{host.link('/proc/thread-self')}/{file}"
            host.write_kernel(place, f"exec {_TARGET}".encode())
        except HostError:
            continue
        return [place]
    return []


def _shows(host: Host, place: str) -> bool:
    try:
        return host.read(place, limit=4096).strip(b"\n\0") == _TARGET.encode()
    except HostError:
        return False
