"""Detects changes of the AppArmor policy in the kernel.

The watcher only reports that the policy has changed; a pass determines the changes. The watcher
waits in poll(2), and uses no CPU time while the policy is unchanged.
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

ABSENT_SECONDS: Final = 30.0
"""The pause before the revision file is opened again, if the file is missing or reading has reached
its end.
"""

_REVISION_BYTES: Final = 64


class PolicyRevisionWatcher:
    """Calls a function when the revision of the kernel's policy changes.

    The revision file becomes readable when the current revision differs from the last revision that
    was read from it (Linux, security/apparmor/apparmorfs.c: ns_revision_poll).
    """

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self.path = path
        self.changed = changed

    def start(self) -> None:
        """Start the thread, which ends with the process, and return immediately."""
        threading.Thread(target=self._run, name="revision", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with contextlib.suppress(OSError):
                self._follow()
            # The file is missing on a kernel without AppArmor, and until securityfs is mounted.
            pause.wait(ABSENT_SECONDS)

    def _follow(self) -> None:
        """Wait for changes until the file can no longer be read."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            self._read(fd)
            self.changed()  # The policy may have changed before this thread opened the file.
            while True:
                for _, events in poll.poll():
                    if not events & select.POLLIN:
                        return
                    self._read(fd)
                    self.changed()
        finally:
            os.close(fd)

    @staticmethod
    def _read(fd: int) -> None:
        """Read the current revision, so that the next poll waits for a newer revision."""
        with contextlib.suppress(BlockingIOError):
            os.read(fd, _REVISION_BYTES)
