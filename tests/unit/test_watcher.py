"""Specification of agent.host.watcher: no change goes unheard, whatever is watched."""

import contextlib
import ctypes
import errno
import queue
import shutil
import threading
import time
from pathlib import Path

import pytest
import structlog
from watchdog import events
from watchdog.events import FileSystemEventHandler
from watchdog.observers import inotify_c
from watchdog.utils import BaseThread

from agent.host import watcher
from agent.host.watcher import WATCHES, FileWatcher
from agent.sources.manifest import ManifestSource

SECONDS = 10.0  # how long a word that has to come is waited for


class Told:
    """The words of some directories, as they come."""

    def __init__(self, words):
        self.queue = queue.SimpleQueue()
        self.files = FileWatcher(words, self.queue.put)
        self.files._schedule()

    def word(self):
        """Wait for a word; return it."""
        return self.queue.get(timeout=SECONDS)

    def words(self):
        """Return the words that are there already."""
        return [self.queue.get() for _ in range(self.queue.qsize())]

    def poll(self):
        """Poll, and return its words; those of late events may be among them."""
        self.words()
        self.files._poll()
        return set(self.words())


@pytest.fixture
def listen():
    """Give a way to listen to directories, and end all threads of it."""
    made = []

    def begin(words):
        made.append(Told(words))
        return made[-1]

    yield begin
    for one in made:
        if one.files._observer is not None:
            one.files._observer.stop()
            one.files._observer.join()
    # watchdog's reader is of the whole process: it would read on in tests of other file systems.
    shared = inotify_c.InotifyFD._instance
    if shared is not None:
        shared.stop()
        shared.join()
        inotify_c.InotifyFD._instance = None


def changed(told, file):
    """Change a file until inotify tells of it; raises queue.Empty if it never does."""
    told.words()
    file.write_text("changed")
    return told.word()


def test_a_change_below_a_directory_says_its_word(listen, tmp_path):
    """However deep it lies; the words of the other directories are not said."""
    for name in ("one/deep", "two"):
        (tmp_path / name).mkdir(parents=True)
    told = listen({tmp_path / "one": "source", tmp_path / "two": "files"})
    assert told.words() == ["source", "files"]
    assert changed(told, tmp_path / "one/deep/file") == "source"
    assert set(told.words()) <= {"source"}


def test_a_directory_made_anew_is_watched_anew(listen, tmp_path):
    """The old one lives on under another name, and so does its watch."""
    path = tmp_path / "profiles"
    path.mkdir()
    told = listen({path: "source"})
    path.rename(tmp_path / "old")
    path.mkdir()
    (path / "deep").mkdir()
    assert told.poll() == {"source"}
    assert changed(told, path / "deep/file") == "source"


def test_a_watched_link_is_heard_where_it_leads(listen, tmp_path):
    """An event tells the real path; the word is that of the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    told = listen({tmp_path / "link": "source"})
    assert told.words() == ["source"]
    assert changed(told, tmp_path / "real/file") == "source"


def test_a_link_that_leads_elsewhere_is_watched_there(listen, tmp_path):
    """With what came before the watch."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")
    told = listen({link: "source"})
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(link)
    assert told.poll() == {"source"}
    assert changed(told, tmp_path / "two/file") == "source"


def test_two_paths_to_one_directory_are_both_heard_and_part(listen, tmp_path):
    """They share a watch until one of them leads elsewhere."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "a").symlink_to("one")
    told = listen({tmp_path / "a": "source", tmp_path / "one": "files"})
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("two")
    told.poll()
    assert changed(told, tmp_path / "two/file") == "source"
    (tmp_path / "one/file").write_text("changed")
    while told.word() != "files":  # until it comes; those of the other may still
        pass


def test_a_directory_that_comes_late_is_watched(listen, tmp_path):
    """From the poll on that sees it."""
    told = listen({tmp_path / "late": "files"})
    assert told.words() == []
    (tmp_path / "late").mkdir()
    assert told.poll() == {"files"}
    assert changed(told, tmp_path / "late/file") == "files"


def test_looking_wakes_no_thread(listen, tmp_path, monkeypatch):
    """The kernel tells of changes alone: each look of the agent would wake it."""
    masks = []
    add = inotify_c.inotify_add_watch
    monkeypatch.setattr(
        inotify_c, "inotify_add_watch", lambda *words: masks.append(words[2]) or add(*words)
    )
    told = listen({tmp_path: "source"})
    assert changed(told, tmp_path / "file") == "source"
    names = ("IN_ACCESS", "IN_OPEN", "IN_CLOSE_NOWRITE")
    looks = [int(getattr(inotify_c.InotifyConstants, name)) for name in names]
    assert [mask & look for mask in masks for look in looks] == [0, 0, 0]


def test_a_watch_whose_emitter_died_is_made_anew(listen, tmp_path):
    """It dies without a word; the poll sees that it is gone."""
    told = listen({tmp_path: "source"})
    (emitter,) = told.files._observer.emitters
    emitter.stop()
    emitter.join()
    assert told.poll() == {"source"}
    assert changed(told, tmp_path / "file") == "source"


class Heard(FileSystemEventHandler):
    """The events of a watch, as they come."""

    def __init__(self):
        self.events = queue.SimpleQueue()

    def on_any_event(self, event):
        self.events.put((type(event), event.src_path))


def inotifies():
    """Return how many inotify instances this process has."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the directory itself
            found += "inotify" in str(one.readlink())
    return found


@pytest.mark.parametrize("moved", [1, 4])
def test_a_thread_of_watchdog_that_dies_is_told_and_watching_begins_anew(
    listen, tmp_path, monkeypatch, moved
):
    """Directories moved out of the tree, another in their place that goes, then the first one goes.

    watchdog 7.1.0 looks for the path of each (KeyError), and for the others' when it is to end; its
    other threads live on and are deaf. None stays behind, and no descriptor.
    """
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    top, sub, away = tmp_path / "top", tmp_path / "top/sub", tmp_path / "away"
    sub.mkdir(parents=True)
    away.mkdir()
    before = set(threading.enumerate())
    told, heard = listen({top: "source"}), Heard()
    told.files._outlive()
    former = told.files._observer
    threads = set(threading.enumerate()) - before
    former.schedule(heard, str(top), recursive=True, event_filter=watcher._CHANGES)
    for number in range(moved):
        sub.rename(away / str(number))
        sub.mkdir()
        while heard.events.get(timeout=SECONDS) != (events.DirCreatedEvent, str(sub)):
            pass
    sub.rmdir()
    while heard.events.get(timeout=SECONDS) != (events.DirDeletedEvent, str(sub)):
        pass
    with structlog.testing.capture_logs() as logs:
        (away / "0").rmdir()
        assert told.files._again.wait(SECONDS)
    assert [(one["log_level"], one["event"], one["thread"]) for one in logs] == [
        ("warning", "watch_broken", "_BoundedInotify")
    ]
    assert told.poll() == {"source"}
    assert changed(told, top / "file") == "source"
    for one in threads:
        one.join(SECONDS)
    assert ([one for one in threads if one.is_alive()], inotifies()) == ([], 1)


def test_any_other_thread_that_dies_is_the_former_hooks(monkeypatch):
    """Files alone decides about watchdog's."""
    died = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", died.put)
    FileWatcher({}, died.put)._outlive()
    threading.Thread(target=lambda: 1 // 0).start()
    assert died.get(timeout=SECONDS).exc_type is ZeroDivisionError


def test_the_threads_of_watchdog_are_known_by_their_class(listen, tmp_path):
    """All of them: whichever dies, it is heard of."""
    before = set(threading.enumerate())
    listen({tmp_path: "source"})
    made = {type(one).__name__: one for one in set(threading.enumerate()) - before}
    assert sorted(made) == ["InotifyEmitter", "_BoundedInotify", "_Observer"]
    assert all(isinstance(one, BaseThread) and one.should_keep_running() for one in made.values())


def test_without_a_watch_the_word_comes_every_period(tmp_path, monkeypatch):
    """Where inotify has no room a signature tells of the top directory alone; what is absent rests.

    A pass that ended asks for a poll too, which says nothing: its word would be a pass without end.
    """

    def full():
        ctypes.set_errno(errno.EMFILE)  # it returns the former errno
        return -1

    monkeypatch.setattr(inotify_c, "inotify_init", full)
    monkeypatch.setattr(inotify_c.InotifyFD, "_instance", None)
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.01)
    (tmp_path / "there").mkdir()
    told = Told({tmp_path / "there": "source", tmp_path / "absent": "files"})
    assert told.words() == []
    told.files.on_report()
    told.files._turn()
    assert told.words() == []
    for _ in range(3):
        told.files._turn()
        assert told.words() == ["source"]


def test_of_a_file_nothing_else_beside_it_is_told(tmp_path):
    """A manifest may lie in a directory that the agent itself, or a whole host, writes to."""
    (tmp_path / "below").mkdir()
    told = Told({ManifestSource(str(tmp_path / "some.yaml")).watched_path: "source"})
    words = []
    for name in ("below/other", "some.yaml", "beside", "some.yaml"):
        (tmp_path / name).write_text(name * (1 + len(words)))
        words.append(told.poll())
    told.files._unwatched()
    assert (words, told.words()) == ([set(), {"source"}, set(), {"source"}], [])
    assert told.files._watched == {}


def test_what_is_watched_needs_no_word_each_period(listen, tmp_path):
    """A pass every five seconds would be for nothing."""
    told = listen({tmp_path: "source"})
    told.words()
    told.files._unwatched()
    assert told.words() == []


def watches(process="self"):
    """Return how many inotify watches a process has (proc(5), fdinfo)."""
    count = 0
    for one in Path(f"/proc/{process}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that lists them
            count += one.read_text().count("inotify wd:")
    return count


def tree(top, number):
    """Make so many directories, a hundred in each."""
    for one in range(number // 100):
        for two in range(100):
            (top / str(one) / str(two)).mkdir(parents=True)


def test_a_tree_with_too_many_directories_is_polled_and_not_watched(listen, tmp_path):
    """All processes of root share the watches of the kernel; polling needs none."""
    before = watches()
    tree(tmp_path / "big", 2 * WATCHES)
    with structlog.testing.capture_logs() as logged:
        told = listen({tmp_path / "big": "source"})
        assert watches() == before
        for _ in range(2):
            told.files._poll()
            told.files._unwatched()
            assert "source" in told.words()
        shutil.rmtree(tmp_path / "big/0")
        for one in range(WATCHES // 100 + 2):
            shutil.rmtree(tmp_path / "big" / str(one), ignore_errors=True)
        told.files._count()
        told.files._schedule()
    assert [one["event"] for one in logged] == ["watch_incomplete", "watch_complete"]
    assert changed(told, tmp_path / "big/file") == "source"


def test_a_tree_that_is_moved_in_takes_no_more_watches_than_allowed(listen, tmp_path):
    """It was made elsewhere, so that no count of new directories could be in time."""
    before = watches()
    tree(tmp_path / "big", 2 * WATCHES)
    (tmp_path / "top").mkdir()
    told = listen({tmp_path / "top": "source"})
    (tmp_path / "big").rename(tmp_path / "top/big")
    end = time.monotonic() + 60
    while not told.files._observer.inotify.is_full:
        assert time.monotonic() < end
    assert watches() - before <= WATCHES
    told.files._count()
    told.words()
    told.files._unwatched()
    assert "source" in told.words()
    shutil.rmtree(tmp_path / "top/big")
    told.files._count()
    told.files._schedule()
    assert changed(told, tmp_path / "top/file") == "source"
