"""Wake-ups from the host: files and directories that changed.

Rule 1: a wake-up says "look again" and nothing else. Rule 2: inotify is quick and may fail without
a word (a directory made anew, no room for a watch, a queue that overflowed); a cheap poll is the
truth, and what has no watch is looked at each period. A thread of watchdog's that dies is told, and
watching begins anew. Rule 3: looking is no change: the kernel is not asked to tell of opening and
reading, so that no thread wakes for them. Rule 4: at most WATCHES directories are watched, since
all processes of root share one limit of the kernel; beyond that, everything is polled.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from watchdog import events
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import InotifyFD
from watchdog.utils import BaseThread

from agent.wake_queue import WakeReason

if TYPE_CHECKING:
    from watchdog.observers.inotify import InotifyWatchGroup
    from watchdog.observers.inotify_c import CallbackId, Mask, WatchCallback, WatchDescriptor

POLL_SECONDS: Final = 5.0
WATCHES: Final = 1000  # fs.inotify.max_user_watches may be 8,192 for the whole host
_MOST_LOST: Final = 10_000  # directories that watchdog lost count of: there is an end
_CHANGES: Final[list[type[FileSystemEvent]]] = [
    events.DirCreatedEvent,
    events.DirDeletedEvent,
    events.DirModifiedEvent,
    events.DirMovedEvent,
    events.FileClosedEvent,
    events.FileCreatedEvent,
    events.FileDeletedEvent,
    events.FileModifiedEvent,
    events.FileMovedEvent,
]
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The directory that a path leads to now: another one may come to have the same path."""

    path: Path  # without symbolic links: inotify is asked to follow none
    device: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """A watch, and the directory that it lives on."""

    place: _Place
    watch: ObservedWatch


class _BoundedInotify(InotifyFD):
    """An inotify instance of at most WATCHES directories.

    watchdog ignores a directory that cannot be watched; `is_full` says that there was one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False

    def add_callback(
        self, path: bytes, mask: "Mask", callback: "WatchCallback", id_: "CallbackId"
    ) -> "WatchDescriptor":
        """Watch one directory. Raises OSError (ENOSPC) beyond the limit."""
        if len(self._watch_for_wd) >= WATCHES:
            self.is_full = True
            raise OSError(errno.ENOSPC, "too many directories to watch")
        return super().add_callback(path, mask, callback, id_)


class _Observer(BaseObserver):
    """The observer of watchdog, on a bounded inotify instance."""

    def __init__(self) -> None:
        self.inotify = _BoundedInotify()
        self.inotify.start()
        super().__init__(InotifyEmitter, inotify_fd=self.inotify)

    def on_thread_stop(self) -> None:
        """Stop the emitters and release all watches."""
        super().on_thread_stop()
        self.inotify.stop()
        self.inotify.join()


class FileWatcher(FileSystemEventHandler):
    """Wakes when something below one of the directories changes. words: what to say for each.

    A path that is a file, or nothing yet, is looked at every POLL_SECONDS instead: a watch of what
    it lies in would tell of everything else there.
    """

    def __init__(
        self, words: Mapping[Path, WakeReason], wake: Callable[[WakeReason], None]
    ) -> None:
        self.words = words
        self.wake = wake
        self._signatures = {path: signature(path) for path in words}
        self._observer: _Observer | None = None
        self._is_crowded = False  # there are more directories than may be watched
        self._watched: dict[Path, _Watched] = {}
        self._again = threading.Event()
        self._died: BaseThread | None = None

    def start(self) -> None:
        """Begin; returns at once. The threads end with the process."""
        self._outlive()
        self._schedule()
        threading.Thread(target=self._run, name="files", daemon=True).start()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Say the word of the directory that an event lies in."""
        told = Path(os.fsdecode(event.src_path))
        for path, watched in tuple(self._watched.items()):
            if told == watched.place.path or watched.place.path in told.parents:
                self.wake(self.words[path])

    def _run(self) -> None:
        while True:
            self._turn()

    def _turn(self) -> None:
        asked = self._again.wait(POLL_SECONDS)
        self._again.clear()
        self._poll()
        if not asked:  # words after each pass would make passes without end
            self._unwatched()
            self._count()

    def on_report(self, *_: object, **__: object) -> None:
        """Look at once: a pass has ended, and may have made a directory."""
        self._again.set()

    def _outlive(self) -> None:
        """Hear of each thread of watchdog's that dies; of any other the former hook does."""
        former = threading.excepthook

        def died(args: threading.ExceptHookArgs) -> None:
            if not isinstance(args.thread, BaseThread):
                former(args)
            elif args.thread.should_keep_running():  # else it was told to end, and did
                self._died = args.thread
                thread, error = type(args.thread).__name__, args.exc_value
                _log.warning("watch_broken", thread=thread, error=repr(error), exc_info=error)
                self._again.set()

        threading.excepthook = died

    def _part(self) -> None:
        """Give up an observer of which a thread died: the others live on, and may be deaf."""
        died, self._died = self._died, None
        observer, self._observer = self._observer, None
        self._watched = {}
        if died is not None and observer is not None:
            # In a thread of its own: what stumbled once may do so again, or wait without end.
            end = threading.Thread(target=_end, args=(died, observer), name="end", daemon=True)
            with contextlib.suppress(RuntimeError):  # no room for it
                end.start()

    def _poll(self) -> None:
        for path, word in self.words.items():
            now = signature(path)
            if now != self._signatures[path]:
                self._signatures[path] = now
                self.wake(word)
        self._schedule()

    def _unwatched(self) -> None:
        """Say the word of what is there and has no watch: a signature tells of its top alone."""
        for path, word in self.words.items():
            if (path not in self._watched or self._is_crowded) and _place(path) is not None:
                self.wake(word)

    def _count(self) -> None:
        """Note whether there are too many directories; watch again once there are few enough."""
        observer = self._observer
        is_full = observer is not None and observer.inotify.is_full
        if not self._is_crowded and not is_full:
            return
        if self._is_crowded and _has_few_directories(self.words):
            self._is_crowded = False
            _log.info("watch_complete")
            if is_full and observer is not None:
                self._died = observer  # as one that died: its watches are incomplete
        elif not self._is_crowded:
            self._crowd()

    def _crowd(self) -> None:
        if not self._is_crowded:
            _log.warning("watch_incomplete", directories_at_most=WATCHES)
        self._is_crowded = True

    def _schedule(self) -> None:
        """Watch what is there and is not watched; where inotify has no room the poll remains."""
        if self._died is not None:
            self._part()
        if self._observer is None:
            with contextlib.suppress(OSError, RuntimeError):  # no instance, no thread
                observer = _Observer()
                observer.daemon = True
                observer.start()
                self._observer = observer
        if self._observer is None:
            return
        places = {path: _place(path) for path in self.words}
        for path, place in places.items():
            self._drop(self._observer, path, place)
        new = {
            path: place
            for path, place in places.items()
            if place is not None and path not in self._watched
        }
        if new and not _has_few_directories(self.words):
            self._crowd()
            return
        for path, place in new.items():
            with contextlib.suppress(OSError, RuntimeError):
                watch = self._observer.schedule(
                    self, str(place.path), recursive=True, event_filter=_CHANGES
                )
                self._watched[path] = _Watched(place=place, watch=watch)
                self.wake(self.words[path])  # what came before the watch

    def _drop(self, observer: BaseObserver, path: Path, place: _Place | None) -> None:
        """End a watch that died, or that lives on another directory than the path's."""
        held = self._watched.get(path)
        alive = {one.watch for one in observer.emitters if one.is_alive()}
        if held is None or (held.place == place and held.watch in alive):
            return
        del self._watched[path]
        with contextlib.suppress(OSError, KeyError):  # two paths that lead to one share its watch
            observer.unschedule(held.watch)


def _has_few_directories(tops: Iterable[Path]) -> bool:
    """Return whether there are at most WATCHES directories below these paths, itself included."""
    left = [str(path) for path in tops]
    count = 0
    while left:
        count += 1
        if count + len(left) > WATCHES + 1:
            return False
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                    if count + len(left) > WATCHES:
                        return False
    return True


def _end(died: BaseThread, observer: BaseObserver) -> None:
    """End the threads of an observer of which one died, and give back its watches.

    Each directory that watchdog lost count of ends the attempt (KeyError), and is forgotten by it.
    """
    with contextlib.suppress(Exception):
        for emitter in tuple(observer.emitters):
            group = emitter._inotify if isinstance(emitter, InotifyEmitter) else None  # noqa: SLF001 - a test holds it
            if group is not None:
                _give_back(group)
    for one in (died, observer):
        with contextlib.suppress(Exception):
            one.stop()


def _give_back(group: "InotifyWatchGroup") -> None:
    for _ in range(_MOST_LOST):
        with contextlib.suppress(KeyError):
            group.deactivate()
            return


def _place(path: Path) -> _Place | None:
    """Return the directory that a path leads to; None if it leads to none."""
    try:
        real = Path(os.path.realpath(path, strict=True))
        status = real.stat()
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return None
    return _Place(path=real, device=status.st_dev, inode=status.st_ino)


def signature(path: Path) -> tuple[object, ...]:
    """Return what changes when a file, a directory, or the generation it links to, changes."""
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno,)
    link = ""
    with contextlib.suppress(OSError):
        link = str((path / "..data").readlink())  # kubelet: AtomicWriter
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return (status.st_dev, status.st_ino, status.st_mtime_ns, size, link)
