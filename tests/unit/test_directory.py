"""Tests of agent.sources.directory."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.model import Emptied, Missing, Read, Snapshot, SourceKey, Unreadable
from agent.host import reading
from agent.sources import limits
from agent.sources.directory import DirectorySource
from tests.narrowing import instance_of


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """An empty directory."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def read(path: Path, *, clock_ns: Callable[[], int] = time.time_ns) -> Snapshot:
    (snapshot,) = DirectorySource(str(path), clock_ns=clock_ns).read()
    return snapshot


def during(action: Callable[[], None]) -> Callable[[], int]:
    """Return a clock that calls the given action each time it is read. A source reads the clock
    before it reads a file.
    """

    def clock() -> int:
        action()
        return time.time_ns()

    return clock


def keys(snapshot: Read) -> dict[str, bytes]:
    assert isinstance(snapshot, Read), snapshot
    return {source_key.key: source_key.content for source_key in snapshot.source_keys}


def refused(snapshot: Read) -> list[tuple[str, FindingCode]]:
    return [(key, finding.code) for key, finding in snapshot.rejected_keys]


def test_keys_are_paths_relative_to_the_directory(top: Path) -> None:
    """Keys are paths relative to the directory. Files that are not profiles are omitted, and hidden
    files are not reported.
    """
    (top / "profiles").mkdir()
    (top / "profiles/audit.json").write_bytes(b"{}")
    (top / "web.profile").write_bytes(b"profile web {}")
    (top / "README.md").write_bytes(b"text")
    (top / ".git").mkdir()
    (top / ".git/config").write_bytes(b"x")
    origin = f"dir {top}"
    blobs = (
        SourceKey(profile_set=origin, key="profiles/audit.json", content=b"{}"),
        SourceKey(profile_set=origin, key="web.profile", content=b"profile web {}"),
    )
    snapshot = instance_of(read(top), Read)
    assert (snapshot.profile_set, snapshot.source_keys) == (origin, blobs)
    assert [(item.reason, item.names) for item in snapshot.left_out] == [("name", ("README.md",))]


def test_the_revision_follows_the_content(top: Path) -> None:
    """Equal content results in an equal revision, and different content results in a different
    revision.
    """
    (top / "a.json").write_bytes(b"{}")
    first = instance_of(read(top), Read).revision
    assert instance_of(read(top), Read).revision == first
    (top / "a.json").write_bytes(b"{ }")
    assert instance_of(read(top), Read).revision != first


def volume(top: Path, generation: str, **files: bytes) -> None:
    """Create a generation of a ConfigMap volume, and switch to it as the kubelet does."""
    (top / generation).mkdir()
    for name, content in files.items():
        (top / generation / f"{name}.json").write_bytes(content)
    (top / "..data_tmp").symlink_to(generation)
    (top / "..data_tmp").rename(top / "..data")
    for name in files:
        if not (top / f"{name}.json").is_symlink():
            (top / f"{name}.json").symlink_to(f"..data/{name}.json")


def test_a_mounted_volume_is_read_from_its_current_generation(top: Path) -> None:
    """The keys come from the directory that the link `..data` points to."""
    volume(top, "..1", a=b"{}", b=b"[]")
    assert keys(instance_of(read(top), Read)) == {"a.json": b"{}", "b.json": b"[]"}


def test_a_volume_with_a_new_generation_during_the_read_is_read_again(top: Path) -> None:
    """If the generation changes during a read, the volume is read again, so that no read mixes two
    generations.
    """
    volume(top, "..1", a=b"old", b=b"old")
    generations = ["..2"]

    def swap() -> None:
        for generation in generations:
            volume(top, generation, a=b"new", b=b"new")
        generations.clear()

    assert keys(instance_of(read(top, clock_ns=during(swap)), Read)) == {
        "a.json": b"new",
        "b.json": b"new",
    }


def test_a_volume_that_keeps_changing_is_unreadable(top: Path) -> None:
    """If a volume changes during every read, the profile set is unreadable."""
    numbers = iter(range(100))
    volume(top, "..x", a=b"x")
    snapshot = read(top, clock_ns=during(lambda: volume(top, f"..{next(numbers)}", a=b"x")))
    assert isinstance(snapshot, Unreadable)


def test_a_generation_outside_the_volume_is_unreadable(top: Path, tmp_path: Path) -> None:
    """If the link `..data` points outside the volume, it is not followed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.json").write_bytes(b"{}")
    (top / "..data").symlink_to("../out")
    assert isinstance(read(top), Unreadable)


def test_a_link_to_a_file_in_the_directory_is_read(top: Path) -> None:
    """If a file in the directory is a link to another file in the directory, the key has the
    content of the target.
    """
    (top / "sub").mkdir()
    (top / "sub/a.json").write_bytes(b"{}")
    (top / "b.json").symlink_to("sub/a.json")
    assert keys(instance_of(read(top), Read)) == {"b.json": b"{}", "sub/a.json": b"{}"}


def test_keys_that_are_not_regular_files_are_rejected(top: Path, tmp_path: Path) -> None:
    """Keys that are not regular files are rejected. Links to other directories, dangling links,
    FIFOs and sockets do not block the read.
    """
    (tmp_path / "secret.json").write_bytes(b"{}")
    (top / "good.json").write_bytes(b"{}")
    (top / "out.json").symlink_to("../secret.json")
    (top / "absolute.json").symlink_to(tmp_path / "secret.json")
    (top / "dangling.json").symlink_to("nowhere")
    os.mkfifo(top / "fifo.json")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(top / "socket.json"))
        snapshot = instance_of(read(top), Read)
    assert keys(snapshot) == {"good.json": b"{}"}
    assert refused(snapshot) == [
        ("absolute.json", "key_not_regular"),
        ("dangling.json", "key_not_regular"),
        ("fifo.json", "key_not_regular"),
        ("out.json", "key_not_regular"),
        ("socket.json", "key_not_regular"),
    ]


def test_names_with_control_characters_are_rejected(top: Path) -> None:
    """A name with control characters is rejected, and the report escapes it."""
    (top / "a\nb.json").write_bytes(b"{}")
    assert refused(instance_of(read(top), Read)) == [("a\\nb.json", "key_unsafe")]


def test_names_that_are_not_unicode_are_rejected(top: Path) -> None:
    """A name that is not Unicode is rejected, and the report escapes it."""
    (top / os.fsdecode(b"\xff.json")).write_bytes(b"{}")
    assert refused(instance_of(read(top), Read)) == [("\\udcff.json", "key_unsafe")]


def test_a_large_key_is_rejected_and_the_others_are_read(top: Path) -> None:
    """A key that is too large is rejected, and the other keys are read."""
    (top / "large.json").write_bytes(b" " * (limits.KEY_BYTES + 1))
    (top / "small.json").write_bytes(b"{}")
    snapshot = instance_of(read(top), Read)
    assert (keys(snapshot), refused(snapshot)) == (
        {"small.json": b"{}"},
        [("large.json", "key_too_large")],
    )


def test_too_many_keys_make_the_set_unreadable(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a directory contains too many keys, the whole profile set is unreadable."""
    monkeypatch.setattr(limits, "SET_KEYS", 2)
    for name in "abc":
        (top / f"{name}.json").write_bytes(b"{}")
    assert isinstance(read(top), Unreadable)


def test_a_set_that_is_too_large_is_unreadable(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the keys of a directory are too large together, the whole profile set is unreadable."""
    monkeypatch.setattr(limits, "SET_BYTES", 3)
    (top / "a.json").write_bytes(b"{  }")
    assert isinstance(read(top), Unreadable)


def test_a_directory_that_is_too_deep_is_rejected(top: Path) -> None:
    """If a directory is nested too deeply, only the keys in it are rejected."""
    path = top
    for _ in range(18):
        path /= "d"
    path.mkdir(parents=True)
    (path / "a.json").write_bytes(b"{}")
    (key,) = instance_of(read(top), Read).rejected_keys
    assert key[1].code == "key_unsafe"


def test_empty_missing_and_unreadable_differ(top: Path, tmp_path: Path) -> None:
    """An empty directory, a missing directory and a file result in different snapshots."""
    (top / "README").write_bytes(b"x")
    assert isinstance(read(top), Emptied)
    assert isinstance(read(tmp_path / "absent"), Missing)
    (tmp_path / "file").write_bytes(b"x")
    assert isinstance(read(tmp_path / "file"), Unreadable)


def test_a_directory_whose_file_is_removed_during_the_read_is_read_again(top: Path) -> None:
    """If a file is removed between the listing and the read, the directory is read again."""
    (top / "a.json").write_bytes(b"{}")
    (top / "b.json").symlink_to("a.json")
    assert keys(instance_of(read(top), Read)) == {"a.json": b"{}", "b.json": b"{}"}


def test_a_file_that_is_written_during_the_read_is_read_again(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file is written during the read, it is read again, because a partial file may be a valid
    profile.
    """
    read_all, path = reading.read_all, top / "a.json"
    path.write_bytes(b"old")
    later = [b"newer"]

    def written(*asked: int) -> bytes:
        content = read_all(*asked)
        for item in later:
            path.write_bytes(item)
        later.clear()
        return content

    monkeypatch.setattr(reading, "read_all", written)
    assert keys(instance_of(read(top), Read)) == {"a.json": b"newer"}


def test_a_volume_in_a_subdirectory_is_read_from_one_generation(top: Path) -> None:
    """The keys of a mounted subdirectory also belong to a single generation."""
    inner = top / "mounted"
    inner.mkdir()
    volume(inner, "..1", a=b"old", b=b"old")
    generations = ["..2"]

    def swap() -> None:
        for generation in generations:
            volume(inner, generation, a=b"new", b=b"new")
        generations.clear()

    assert keys(instance_of(read(top, clock_ns=during(swap)), Read)) == {
        "mounted/a.json": b"new",
        "mounted/b.json": b"new",
    }


def test_a_directory_that_is_removed_during_the_read_is_missing(top: Path) -> None:
    """If a directory is removed during the read, it does not count as empty."""
    (top / "a.json").write_bytes(b"{}")

    def remove() -> None:
        if top.exists():
            (top / "a.json").unlink()
            top.rmdir()

    assert isinstance(read(top, clock_ns=during(remove)), Missing)


# --- unchanged files ------------------------------------------------------------------------------

LATER_NS = 3_000_000_000


class Clock:
    """A clock whose offset a test can set.

    A source reads the clock once for each file that it reads, so the clock counts these files. With
    the default offset, all files are three seconds old.
    """

    def __init__(self, offset_ns: int = LATER_NS) -> None:
        self.offset_ns = offset_ns
        self.files_read = 0

    def __call__(self) -> int:
        self.files_read += 1
        return time.time_ns() + self.offset_ns


def contents(source: DirectorySource) -> dict[str, bytes]:
    """Read a source and return the content of each key."""
    (snapshot,) = source.read()
    return {
        source_key.key: source_key.content for source_key in instance_of(snapshot, Read).source_keys
    }


def test_an_unchanged_file_is_not_read_again(top: Path) -> None:
    """An unchanged directory has the same snapshot object. After a change, only the changed files
    are read.
    """
    (top / "a.json").write_bytes(b"{}")
    (top / "b.json").write_bytes(b"{}")
    clock = Clock()
    source = DirectorySource(str(top), clock_ns=clock)
    first, second = source.read(), source.read()
    assert first[0] is second[0]
    assert clock.files_read == 2
    (top / "b.json").write_bytes(b"[]")
    assert contents(source) == {"a.json": b"{}", "b.json": b"[]"}
    assert clock.files_read == 3


@pytest.mark.parametrize("offset_ns", [0, -LATER_NS], ids=["now", "clock set back"])
def test_a_file_that_changed_a_moment_ago_is_read_again(top: Path, offset_ns: int) -> None:
    """A file that changed a moment ago is read again, because a second change may not change its
    signature.
    """
    (top / "a.json").write_bytes(b"{}")
    clock = Clock(offset_ns)
    source = DirectorySource(str(top), clock_ns=clock)
    assert contents(source) == contents(source)
    assert clock.files_read == 2


def test_a_change_with_the_same_size_and_modification_time_is_noticed(top: Path) -> None:
    """A change is noticed even if the size and the modification time stay the same."""
    file = top / "a.json"
    file.write_bytes(b"{}")
    source = DirectorySource(str(top), clock_ns=Clock())
    source.read()
    status = file.stat()
    file.write_bytes(b"[]")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert contents(source)["a.json"] == b"[]"


def test_a_replaced_file_is_noticed(top: Path) -> None:
    """A file is read again if another file was renamed to its name."""
    (top / "a.json").write_bytes(b"{}")
    (top / "new").write_bytes(b"[]")
    source = DirectorySource(str(top), clock_ns=Clock())
    source.read()
    (top / "new").rename(top / "a.json")
    assert contents(source)["a.json"] == b"[]"


def test_a_file_that_became_a_link_is_rejected(top: Path) -> None:
    """If a symbolic link replaces a file, the key is rejected, and the cached content is
    not used.
    """
    (top / "a.json").write_bytes(b"{}")
    source = DirectorySource(str(top), clock_ns=Clock())
    source.read()
    (top / "a.json").rename(top.parent / "a.json")
    (top / "a.json").symlink_to("../a.json")
    assert refused(instance_of(source.read()[0], Read)) == [("a.json", "key_not_regular")]


def test_a_new_generation_of_a_volume_is_read(top: Path) -> None:
    """When the generation of a volume has changed, the keys come from the new generation."""
    volume(top, "..1", a=b"old")
    source = DirectorySource(str(top), clock_ns=Clock())
    assert contents(source)["a.json"] == b"old"
    volume(top, "..2", a=b"new")
    assert contents(source)["a.json"] == b"new"


def test_every_file_is_read_again_after_invalidate(top: Path) -> None:
    """A full resync reads every file again."""
    (top / "a.json").write_bytes(b"{}")
    clock = Clock()
    source = DirectorySource(str(top), clock_ns=clock)
    source.read()
    source.invalidate()
    source.read()
    assert clock.files_read == 2


def test_a_removed_file_leaves_no_key(top: Path) -> None:
    """If a file is removed and created again, its cached content is not used."""
    (top / "a.json").write_bytes(b"{}")
    (top / "b.json").write_bytes(b"{}")
    clock = Clock()
    source = DirectorySource(str(top), clock_ns=clock)
    source.read()
    (top / "a.json").rename(top.parent / "a.json")
    assert contents(source) == {"b.json": b"{}"}
    (top.parent / "a.json").rename(top / "a.json")
    assert contents(source) == {"a.json": b"{}", "b.json": b"{}"}
    assert clock.files_read == 3


def test_too_many_empty_directories_are_unreadable(tmp_path: Path) -> None:
    """Too many empty directories make the profile set unreadable, so no profile is removed."""
    for outer in range(51):
        for inner in range(100):
            (tmp_path / str(outer) / str(inner)).mkdir(parents=True)
    (snapshot,) = DirectorySource(str(tmp_path), clock_ns=time.time_ns).read()
    assert isinstance(snapshot, Unreadable)
    assert snapshot.reason == "too_many_directories: more than 5000 directories"


def test_a_directory_with_too_many_names_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many file names make the profile set unreadable, even if the files are not profiles."""
    monkeypatch.setattr(limits, "SET_NAMES", 100)
    for number in range(101):
        (tmp_path / f"{number}.txt").touch()
    (snapshot,) = DirectorySource(str(tmp_path), clock_ns=time.time_ns).read()
    assert isinstance(snapshot, Unreadable)
    assert snapshot.reason == "too_many_names: more than 100 names"
