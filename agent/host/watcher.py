"""Wakes the agent after changes of files and directories.

A wake-up only states that a file or directory may have changed. inotify reports changes quickly.
However, it can fail without an error if a directory is replaced, if the kernel has no free watch,
or if the event queue overflows. The watcher therefore also compares stat signatures in a poll, and
wakes the agent in each period for every path that has no watch. At most WATCH_LIMIT directories are
watched, because the kernel's limit applies to all root processes together. The module requests no
events for opening and reading files, so that the agent's own reads do not wake a thread.
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

from agent.host import stat_signature
from agent.host.stat_signature import Signature
from agent.wake_queue import WakeReason

if TYPE_CHECKING:
    from watchdog.observers.inotify import InotifyWatchGroup
    from watchdog.observers.inotify_c import CallbackId, Mask, WatchCallback, WatchDescriptor

POLL_SECONDS: Final = 5.0
WATCH_LIMIT: Final = 1000  # The limit fs.inotify.max_user_watches can be 8,192 for the whole host.
# When watches are released, at most this number of attempts is made.
_LOST_LIMIT: Final = 10_000
CHANGE_EVENTS: Final[list[type[FileSystemEvent]]] = [
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
class _Target:
    """The directory that a path currently leads to. The path may lead to another directory
    later.
    """

    path: Path
    """The path without symbolic links, because watches do not follow links."""
    device: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActiveWatch:
    """A watch with its directory."""

    target: _Target
    watch: ObservedWatch


class _BoundedInotify(InotifyFD):
    """An inotify instance that watches at most WATCH_LIMIT directories.

    watchdog ignores a directory that cannot be watched, and reports no error. `is_full` shows
    whether a directory was ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False

    def add_callback(
        self, path: bytes, mask: "Mask", callback: "WatchCallback", id_: "CallbackId"
    ) -> "WatchDescriptor":
        """Watch one directory. Raises OSError (ENOSPC) above the limit."""
        if len(self._watch_for_wd) >= WATCH_LIMIT:
            self.is_full = True
            raise OSError(errno.ENOSPC, "too many directories to watch")
        return super().add_callback(path, mask, callback, id_)


class _Observer(BaseObserver):
    """A watchdog `Observer` that uses an inotify instance with a limited number of watches."""

    def __init__(self) -> None:
        self.inotify = _BoundedInotify()
        self.inotify.start()
        super().__init__(InotifyEmitter, inotify_fd=self.inotify)

    def on_thread_stop(self) -> None:
        """Stop all threads of the observer, and release its watches."""
        super().on_thread_stop()
        self.inotify.stop()
        self.inotify.join()


class FileWatcher(FileSystemEventHandler):
    """Wakes the agent when a file under one of the paths changes.

    If a path is a file or is missing, it is polled every POLL_SECONDS instead, because a watch of
    its parent directory would report changes of all other files in that directory.
    """

    def __init__(
        self, reasons: Mapping[Path, WakeReason], wake: Callable[[WakeReason], None]
    ) -> None:
        self.reasons = reasons
        """The wake reason of each path."""
        self.wake = wake
        self._signatures = {path: signature(path) for path in reasons}
        self._observer: _Observer | None = None
        self._is_over_limit = False
        self._watches: dict[Path, _ActiveWatch] = {}
        self._poll_request = threading.Event()
        self._failed_thread: BaseThread | None = None

    def start(self) -> None:
        """Start the threads, which end with the process."""
        self.install_excepthook()
        self.update_watches()
        threading.Thread(target=self._run, name="files", daemon=True).start()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Wake the agent for each path whose directory contains the changed file."""
        changed = Path(os.fsdecode(event.src_path))
        for path, active in tuple(self._watches.items()):
            if changed == active.target.path or active.target.path in changed.parents:
                self.wake(self.reasons[path])

    def _run(self) -> None:
        while True:
            self.run_period()

    def run_period(self) -> None:
        """Wait for one period, or until `on_report` is called, and then poll."""
        is_requested = self._poll_request.wait(POLL_SECONDS)
        self._poll_request.clear()
        self.poll()
        # Without this condition, each pass would wake the agent, which would run another pass.
        if not is_requested:
            self.wake_for_unwatched()
            self.check_limit()

    def on_report(self, *_: object, **__: object) -> None:
        """Poll immediately, because a pass has ended and may have created a directory."""
        self._poll_request.set()

    def install_excepthook(self) -> None:
        """Record the failed threads of watchdog. The previous hook handles all other threads."""
        previous_hook = threading.excepthook

        def hook(args: threading.ExceptHookArgs) -> None:
            if not isinstance(args.thread, BaseThread):
                previous_hook(args)
            # Errors in a thread that was being stopped are ignored.
            elif args.thread.should_keep_running():
                self._failed_thread = args.thread
                thread, error = type(args.thread).__name__, args.exc_value
                _log.warning("watch_broken", thread=thread, error=repr(error), exc_info=error)
                self._poll_request.set()

        threading.excepthook = hook

    def _discard_observer(self) -> None:
        """Discard an observer whose thread has failed. The remaining threads of that observer may
        no longer report events.
        """
        failed, self._failed_thread = self._failed_thread, None
        observer, self._observer = self._observer, None
        self._watches = {}
        if failed is not None and observer is not None:
            # A separate thread stops the observer, because stopping it can fail or block.
            stop = threading.Thread(target=_stop, args=(failed, observer), name="end", daemon=True)
            with contextlib.suppress(RuntimeError):  # The system cannot start another thread.
                stop.start()

    def poll(self) -> None:
        """Wake the agent for each path whose signature has changed, and update the watches."""
        for path, reason in self.reasons.items():
            now = signature(path)
            if now != self._signatures[path]:
                self._signatures[path] = now
                self.wake(reason)
        self.update_watches()

    def wake_for_unwatched(self) -> None:
        """Wake the agent for each directory that is not completely watched.

        The agent is woken because a change in a subdirectory does not change the signature of the
        directory.
        """
        for path, reason in self.reasons.items():
            if (path not in self._watches or self._is_over_limit) and _target(path) is not None:
                self.wake(reason)

    def check_limit(self) -> None:
        """Watch directories again once their number is within the limit."""
        observer = self._observer
        is_full = observer is not None and observer.inotify.is_full
        if not self._is_over_limit and not is_full:
            return
        if self._is_over_limit and _is_within_limit(self.reasons):
            self._is_over_limit = False
            _log.info("watch_complete")
            if is_full and observer is not None:
                # A new observer replaces this observer, whose watches are incomplete.
                self._failed_thread = observer
        elif not self._is_over_limit:
            self._set_over_limit()

    def _set_over_limit(self) -> None:
        if not self._is_over_limit:
            _log.warning("watch_incomplete", directories_at_most=WATCH_LIMIT)
        self._is_over_limit = True

    def update_watches(self) -> None:
        """Watch each existing directory that has no watch. Without inotify, changes are found only
        by the poll.
        """
        if self._failed_thread is not None:
            self._discard_observer()
        if self._observer is None:
            # The system can create no more inotify instances or threads.
            with contextlib.suppress(OSError, RuntimeError):
                observer = _Observer()
                observer.daemon = True
                observer.start()
                self._observer = observer
        if self._observer is None:
            return
        targets = {path: _target(path) for path in self.reasons}
        for path, target in targets.items():
            self._remove_stale_watch(self._observer, path, target)
        unwatched = {
            path: target
            for path, target in targets.items()
            if target is not None and path not in self._watches
        }
        if unwatched and not _is_within_limit(self.reasons):
            self._set_over_limit()
            return
        for path, target in unwatched.items():
            with contextlib.suppress(OSError, RuntimeError):
                watch = self._observer.schedule(
                    self, str(target.path), recursive=True, event_filter=CHANGE_EVENTS
                )
                self._watches[path] = _ActiveWatch(target=target, watch=watch)
                # The agent is woken because files may have changed before the watch was added.
                self.wake(self.reasons[path])

    def _remove_stale_watch(
        self, observer: BaseObserver, path: Path, target: _Target | None
    ) -> None:
        """Remove a watch if its thread has ended or if it belongs to another directory."""
        active = self._watches.get(path)
        live = {emitter.watch for emitter in observer.emitters if emitter.is_alive()}
        if active is None or (active.target == target and active.watch in live):
            return
        del self._watches[path]
        # Paths that lead to the same directory share one watch.
        with contextlib.suppress(OSError, KeyError):
            observer.unschedule(active.watch)


def _is_within_limit(paths: Iterable[Path]) -> bool:
    """Return whether these paths have at most WATCH_LIMIT directories, including subdirectories."""
    remaining = [str(path) for path in paths]
    count = 0
    while remaining:
        count += 1
        if count + len(remaining) > WATCH_LIMIT + 1:
            return False
        with contextlib.suppress(OSError), os.scandir(remaining.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remaining.append(entry.path)
                    if count + len(remaining) > WATCH_LIMIT:
                        return False
    return True


def _stop(failed: BaseThread, observer: BaseObserver) -> None:
    """Stop the threads of an observer whose thread has failed, and release its watches."""
    with contextlib.suppress(Exception):
        for emitter in tuple(observer.emitters):
            group = emitter._inotify if isinstance(emitter, InotifyEmitter) else None  # noqa: SLF001 - watchdog has no public access
            if group is not None:
                _release(group)
    for thread in (failed, observer):
        with contextlib.suppress(Exception):
            thread.stop()


def _release(group: "InotifyWatchGroup") -> None:
    """Release all inotify watches of a watch group.

    Each attempt may fail with a KeyError for a directory that no longer exists. watchdog then
    forgets this directory, and the next attempt continues.
    """
    for _ in range(_LOST_LIMIT):
        with contextlib.suppress(KeyError):
            group.deactivate()
            return


def _target(path: Path) -> _Target | None:
    """Return the directory that a path leads to, or None if it leads to no directory."""
    try:
        resolved = Path(os.path.realpath(path, strict=True))
        status = resolved.stat()
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return None
    return _Target(path=resolved, device=status.st_dev, inode=status.st_ino)


def signature(path: Path) -> tuple[Signature, str] | int | None:
    """Return a value that changes with a file, a directory or the generation of a mounted volume.

    If the path cannot be read, the result is the errno.
    """
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    generation = ""
    with contextlib.suppress(OSError):
        # The kubelet's AtomicWriter replaces this link.
        generation = str((path / "..data").readlink())
    return (stat_signature.of(status), generation)
