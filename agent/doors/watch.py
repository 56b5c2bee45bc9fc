"""Wake-ups from the host: AppArmor's policy revision, and files.

Rule 1: a wake-up says "look again" and nothing else. Rule 2: inotify is quick and may fail without
a word (a directory made anew, no instances left, a queue that overflowed); a cheap poll is the
truth. Rule 3: looking is no change: events of opening and reading wake nobody.
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

POLL_SECONDS: Final = 5.0
ABSENT_SECONDS: Final = 30.0
_CHANGES: Final = frozenset({"created", "modified", "moved", "deleted", "closed"})


class Revision:
    """Wakes when the kernel's AppArmor policy changes; it costs nothing while it does not.

    The file is readable whenever the revision is another than the one read last
    (Linux, security/apparmor/apparmorfs.c: ns_revision_poll).
    """

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self.path = path
        self.changed = changed

    def start(self) -> None:
        """Begin; returns at once. The thread ends with the process."""
        threading.Thread(target=self._run, name="revision", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with contextlib.suppress(OSError):
                self._follow()
            # No such file (no AppArmor, not mounted yet), or one that ended.
            pause.wait(ABSENT_SECONDS)

    def _follow(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 64)
            while True:
                for _, events in poll.poll():
                    if not events & select.POLLIN:
                        return
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 64)
                    self.changed()
        finally:
            os.close(fd)


class Files(FileSystemEventHandler):
    """Wakes when something below one of the directories changes. words: what to say for each."""

    def __init__(self, words: Mapping[Path, str], wake: Callable[[str], None]) -> None:
        self.words = words
        self.wake = wake
        self._signatures = {path: signature(path) for path in words}
        self._observer: BaseObserver | None = None
        self._watches: dict[Path, ObservedWatch] = {}
        self._again = threading.Event()

    def start(self) -> None:
        """Begin; returns at once. The threads end with the process."""
        self._schedule()
        threading.Thread(target=self._run, name="files", daemon=True).start()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Say the word of the directory that an event lies in."""
        if event.event_type not in _CHANGES:
            return
        told = Path(os.fsdecode(event.src_path))
        for path, word in self.words.items():
            if told == path or path in told.parents:
                self.wake(word)

    def _run(self) -> None:
        while True:
            self._again.wait(POLL_SECONDS)
            self._again.clear()
            self._poll()

    def told(self, *_: object, **__: object) -> None:
        """Look at once: a pass has ended, and may have made a directory."""
        self._again.set()

    def _poll(self) -> None:
        for path, word in self.words.items():
            now = signature(path)
            if now != self._signatures[path]:
                self._signatures[path] = now
                self.wake(word)
        self._schedule()

    def _schedule(self) -> None:
        """Watch what is there and is not watched; where inotify has no room the poll remains."""
        with contextlib.suppress(OSError):
            if self._observer is None:
                observer = Observer()
                observer.daemon = True
                observer.start()
                self._observer = observer
            alive = {one.watch for one in self._observer.emitters if one.is_alive()}
            for path in self.words:
                watch = self._watches.get(path)
                if watch is not None and watch in alive:
                    continue
                if watch is not None:
                    self._observer.unschedule(watch)
                    del self._watches[path]
                if path.is_dir():
                    made = self._observer.schedule(self, str(path), recursive=True)
                    self._watches[path] = made
                    self.wake(self.words[path])  # what came before the watch


def signature(path: Path) -> tuple[object, ...]:
    """Return what changes when a directory, or the generation it links to, changes."""
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno,)
    link = ""
    with contextlib.suppress(OSError):
        link = str((path / "..data").readlink())  # kubelet: AtomicWriter
    return (status.st_dev, status.st_ino, status.st_mtime_ns, link)
