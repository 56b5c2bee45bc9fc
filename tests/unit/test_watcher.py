"""Tests of agent.host.watcher, which reports each change of a watched path."""

import _queue
import contextlib
import ctypes
import errno
import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from watchdog import events
from watchdog.events import FileSystemEventHandler
from watchdog.observers import inotify_c
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.utils import BaseThread

from agent.host import watcher
from agent.host.watcher import WATCH_LIMIT, FileWatcher
from agent.sources.manifest import ManifestSource
from tests.system.guest.pace import until

SECONDS = 10.0  # the longest wait for an expected wake-up


class Wakes:
    """A watcher and the wake reasons that it has sent."""

    def __init__(self, reasons: dict[Path, str]) -> None:
        self.queue: _queue.SimpleQueue = queue.SimpleQueue()
        self.watcher = FileWatcher(reasons, self.queue.put)
        self.watcher.update_watches()

    def next(self) -> str:
        """Wait for a wake reason."""
        return self.queue.get(timeout=SECONDS)

    def pending(self) -> list[str]:
        """Return the wake reasons that have arrived so far."""
        return [self.queue.get() for _ in range(self.queue.qsize())]

    def poll(self) -> set[str]:
        """Poll once, and return all wake reasons, including reasons from delayed events."""
        self.pending()
        self.watcher.poll()
        return set(self.pending())


def watchdog_threads() -> set[watcher._BoundedInotify | watcher._Observer | InotifyEmitter]:
    return {thread for thread in threading.enumerate() if isinstance(thread, BaseThread)}


def running(kind: type[BaseThread]) -> watcher._Observer | InotifyEmitter:
    """Return the only running watchdog thread of a class."""
    (thread,) = [thread for thread in watchdog_threads() if isinstance(thread, kind)]
    return thread


@pytest.fixture
def watch() -> Iterator[type[Wakes]]:
    """Create watchers, and stop all threads of watchdog after the test."""
    before = watchdog_threads()
    yield Wakes
    for thread in watchdog_threads() - before:
        # The thread failed because watchdog lost track of a directory.
        with contextlib.suppress(KeyError):
            thread.stop()
        thread.join()


def changed(wakes: Wakes, file: Path) -> str:
    """Change a file and return the reason of its event, or raise queue.Empty if there is none."""
    wakes.pending()
    file.write_text("changed")
    return wakes.next()


def test_a_change_in_a_subdirectory_wakes_the_agent(watch: type[Wakes], tmp_path: Path) -> None:
    """A change at any depth in a directory wakes the agent with the reason of only this
    directory.
    """
    for name in ("one/deep", "two"):
        (tmp_path / name).mkdir(parents=True)
    wakes = watch({tmp_path / "one": "source", tmp_path / "two": "files"})
    assert wakes.pending() == ["source", "files"]
    assert changed(wakes, tmp_path / "one/deep/file") == "source"
    assert set(wakes.pending()) <= {"source"}


def test_a_replaced_directory_is_watched(watch: type[Wakes], tmp_path: Path) -> None:
    """If a directory is replaced, the new directory is watched."""
    path = tmp_path / "profiles"
    path.mkdir()
    wakes = watch({path: "source"})
    path.rename(tmp_path / "old")
    path.mkdir()
    (path / "deep").mkdir()
    assert wakes.poll() == {"source"}
    assert changed(wakes, path / "deep/file") == "source"


def test_a_link_to_a_directory_is_watched(watch: type[Wakes], tmp_path: Path) -> None:
    """If a path is a link to a directory, the target is watched. The wake reason is the one
    registered for the link.
    """
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    wakes = watch({tmp_path / "link": "source"})
    assert wakes.pending() == ["source"]
    assert changed(wakes, tmp_path / "real/file") == "source"


def test_the_new_target_of_a_link_is_watched(watch: type[Wakes], tmp_path: Path) -> None:
    """If the target of a link changes, the new target is watched."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")
    wakes = watch({link: "source"})
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(link)
    assert wakes.poll() == {"source"}
    assert changed(wakes, tmp_path / "two/file") == "source"


def test_two_paths_to_one_directory_are_both_watched(watch: type[Wakes], tmp_path: Path) -> None:
    """If two paths lead to one directory, the paths share a watch until one of the paths
    changes.
    """
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "a").symlink_to("one")
    wakes = watch({tmp_path / "a": "source", tmp_path / "one": "files"})
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("two")
    wakes.poll()
    assert changed(wakes, tmp_path / "two/file") == "source"
    (tmp_path / "one/file").write_text("changed")
    while wakes.next() != "files":  # Wake-ups for the other path may arrive first.
        pass


def test_a_directory_that_is_created_later_is_watched(watch: type[Wakes], tmp_path: Path) -> None:
    """If a directory is created later, the next poll adds a watch."""
    wakes = watch({tmp_path / "late": "files"})
    assert wakes.pending() == []
    (tmp_path / "late").mkdir()
    assert wakes.poll() == {"files"}
    assert changed(wakes, tmp_path / "late/file") == "files"


def test_reading_a_file_does_not_wake_the_agent(
    watch: type[Wakes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a file does not wake the agent, because each pass would otherwise cause
    another pass.
    """
    masks = []
    add = inotify_c.inotify_add_watch
    monkeypatch.setattr(
        inotify_c,
        "inotify_add_watch",
        lambda *arguments: masks.append(arguments[2]) or add(*arguments),
    )
    wakes = watch({tmp_path: "source"})
    assert changed(wakes, tmp_path / "file") == "source"
    names = ("IN_ACCESS", "IN_OPEN", "IN_CLOSE_NOWRITE")
    looks = [int(getattr(inotify_c.InotifyConstants, name)) for name in names]
    assert [mask & look for mask in masks for look in looks] == [0, 0, 0]


def test_a_watch_whose_emitter_ended_is_replaced(watch: type[Wakes], tmp_path: Path) -> None:
    """If an emitter stops without an error, the next poll replaces its watch."""
    wakes = watch({tmp_path: "source"})
    emitter = running(InotifyEmitter)
    emitter.stop()
    emitter.join()
    assert wakes.poll() == {"source"}
    assert changed(wakes, tmp_path / "file") == "source"


class RecordedEvents(FileSystemEventHandler):
    """Records the events of a watch in the order of their arrival."""

    def __init__(self) -> None:
        self.events: _queue.SimpleQueue = queue.SimpleQueue()

    def on_any_event(
        self, event: events.DirCreatedEvent | events.DirDeletedEvent | events.DirModifiedEvent
    ) -> None:
        self.events.put((type(event), event.src_path))


def inotify_instances() -> int:
    """Return the number of inotify instances of this process."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the entry for the descriptor of this listing
            count += "inotify" in str(descriptor.readlink())
    return count


@pytest.mark.parametrize("moved", [1, 4])
def test_a_failed_thread_of_watchdog_is_logged_and_replaced(
    watch: type[Wakes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """If a thread of watchdog fails, the watcher logs this and replaces the watch. The test moves
    directories out of the tree, and then removes other directories.

    watchdog 7.1.0 raises KeyError for the path of each moved directory, even while it stops. The
    other threads of watchdog continue without reporting events. After a watch is replaced, none of
    its threads and descriptors may remain.
    """
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    top, sub, away = tmp_path / "top", tmp_path / "top/sub", tmp_path / "away"
    sub.mkdir(parents=True)
    away.mkdir()
    before = set(threading.enumerate())
    wakes, recorded = watch({top: "source"}), RecordedEvents()
    wakes.watcher.install_excepthook()
    observer = running(BaseObserver)
    threads = set(threading.enumerate()) - before
    observer.schedule(recorded, str(top), recursive=True, event_filter=watcher.CHANGE_EVENTS)
    for number in range(moved):
        sub.rename(away / str(number))
        sub.mkdir()
        while recorded.events.get(timeout=SECONDS) != (events.DirCreatedEvent, str(sub)):
            pass
    sub.rmdir()
    while recorded.events.get(timeout=SECONDS) != (events.DirDeletedEvent, str(sub)):
        pass
    with structlog.testing.capture_logs() as logs:
        (away / "0").rmdir()
        until(lambda: logs, "a log line", SECONDS)
    assert [(line["log_level"], line["event"], line["thread"]) for line in logs] == [
        ("warning", "watch_broken", "_BoundedInotify")
    ]
    assert wakes.poll() == {"source"}
    assert changed(wakes, top / "file") == "source"
    for thread in threads:
        thread.join(SECONDS)
    assert [thread for thread in threads if thread.is_alive()] == []
    assert inotify_instances() == 1


def test_the_previous_hook_handles_other_failed_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher handles only failed threads of watchdog. The previous hook handles all other
    threads.
    """
    died = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", died.put)
    FileWatcher({}, died.put).install_excepthook()
    threading.Thread(target=lambda: 1 // 0).start()
    assert died.get(timeout=SECONDS).exc_type is ZeroDivisionError


def test_each_thread_of_the_watcher_has_a_class_of_watchdog(
    watch: type[Wakes], tmp_path: Path
) -> None:
    """The hook recognizes the threads of watchdog by their class."""
    before = set(threading.enumerate())
    watch({tmp_path: "source"})
    started = {type(thread).__name__: thread for thread in set(threading.enumerate()) - before}
    assert sorted(started) == ["InotifyEmitter", "_BoundedInotify", "_Observer"]
    assert all(
        isinstance(thread, BaseThread) and thread.should_keep_running()
        for thread in started.values()
    )


def test_without_watches_each_period_wakes_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without watches, the end of each period wakes the agent, because the signature of a directory
    does not cover its subdirectories.

    A missing path does not wake the agent. A poll after a pass does not wake the agent either,
    because passes would then never end.
    """

    def full() -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(inotify_c, "inotify_init", full)
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.01)
    (tmp_path / "there").mkdir()
    wakes = Wakes({tmp_path / "there": "source", tmp_path / "absent": "files"})
    assert wakes.pending() == []
    wakes.watcher.on_report()
    wakes.watcher.run_period()
    assert wakes.pending() == []
    for _ in range(3):
        wakes.watcher.run_period()
        assert wakes.pending() == ["source"]


def test_other_files_in_the_directory_of_a_manifest_do_not_wake_the_agent(
    watch: type[Wakes], tmp_path: Path
) -> None:
    """Other files in the directory of a manifest do not wake the agent."""
    before = inotify_watches()
    (tmp_path / "below").mkdir()
    wakes = watch({ManifestSource(str(tmp_path / "some.yaml")).watched_path: "source"})
    reasons = []
    for name in ("below/other", "some.yaml", "beside", "some.yaml"):
        (tmp_path / name).write_text(name * (1 + len(reasons)))
        reasons.append(wakes.poll())
    wakes.watcher.wake_for_unwatched()
    assert (reasons, wakes.pending()) == ([set(), {"source"}, set(), {"source"}], [])
    assert inotify_watches() == before


def test_a_watched_directory_does_not_wake_the_agent_in_a_period(
    watch: type[Wakes], tmp_path: Path
) -> None:
    """While a directory is watched, the end of a period does not wake the agent."""
    wakes = watch({tmp_path: "source"})
    wakes.pending()
    wakes.watcher.wake_for_unwatched()
    assert wakes.pending() == []


def inotify_watches() -> int:
    """Return the number of inotify watches of this process (proc(5), fdinfo)."""
    count = 0
    for information in Path("/proc/self/fdinfo").iterdir():
        # One descriptor belongs to this directory listing.
        with contextlib.suppress(FileNotFoundError):
            count += information.read_text().count("inotify wd:")
    return count


def tree(top: Path, number: int) -> None:
    """Create a number of directories, a hundred in each parent directory."""
    for outer in range(number // 100):
        for inner in range(100):
            (top / str(outer) / str(inner)).mkdir(parents=True)


def test_too_many_directories_are_polled_and_not_watched(
    watch: type[Wakes], tmp_path: Path
) -> None:
    """If there are too many directories, they are polled and not watched."""
    before = inotify_watches()
    tree(tmp_path / "big", 2 * WATCH_LIMIT)
    with structlog.testing.capture_logs() as logged:
        wakes = watch({tmp_path / "big": "source"})
        assert inotify_watches() == before
        for _ in range(2):
            wakes.watcher.poll()
            wakes.watcher.wake_for_unwatched()
            assert "source" in wakes.pending()
        shutil.rmtree(tmp_path / "big/0")
        for number in range(WATCH_LIMIT // 100 + 2):
            shutil.rmtree(tmp_path / "big" / str(number), ignore_errors=True)
        wakes.watcher.check_limit()
        wakes.watcher.update_watches()
    assert [line["event"] for line in logged] == ["watch_incomplete", "watch_complete"]
    assert changed(wakes, tmp_path / "big/file") == "source"


def test_a_moved_tree_uses_no_more_watches_than_allowed(watch: type[Wakes], tmp_path: Path) -> None:
    """If a large tree is moved into a directory, the number of watches stays within the limit."""
    before = inotify_watches()
    tree(tmp_path / "big", 2 * WATCH_LIMIT)
    (tmp_path / "top").mkdir()
    wakes = watch({tmp_path / "top": "source"})
    (tmp_path / "big").rename(tmp_path / "top/big")
    until(lambda: running(BaseObserver).inotify.is_full, "the limit", 60)
    assert inotify_watches() - before <= WATCH_LIMIT
    wakes.watcher.check_limit()
    wakes.pending()
    wakes.watcher.wake_for_unwatched()
    assert "source" in wakes.pending()
    shutil.rmtree(tmp_path / "top/big")
    wakes.watcher.check_limit()
    wakes.watcher.update_watches()
    assert changed(wakes, tmp_path / "top/file") == "source"
