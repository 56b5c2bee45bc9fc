"""Reading a directory: one generation, nothing outside, nothing that is no regular file."""

import os
import socket
import time

import pytest

from agent.core.model import Emptied, Missing, Read, SourceKey, Unreadable
from agent.host import reading
from agent.sources import limits
from agent.sources.directory import DirectorySource


@pytest.fixture
def top(tmp_path):
    """Give an empty directory."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def read(path, **more):
    (snapshot,) = DirectorySource(str(path), **more).read()
    return snapshot


def keys(snapshot):
    assert isinstance(snapshot, Read), snapshot
    return {blob.key: blob.content for blob in snapshot.source_keys}


def refused(snapshot):
    return [(key, finding.code) for key, finding in snapshot.refused]


def test_keys_are_paths_below_the_directory(top):
    """Relative paths are kept; what is no profile is left out."""
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
    snapshot = read(top)
    assert snapshot == Read(profile_set=origin, revision=snapshot.revision, source_keys=blobs)


def test_the_revision_follows_the_content(top):
    """The same content has the same revision, other content another."""
    (top / "a.json").write_bytes(b"{}")
    first = read(top).revision
    assert read(top).revision == first
    (top / "a.json").write_bytes(b"{ }")
    assert read(top).revision != first


def volume(top, generation, **files):
    """Put a generation of a ConfigMap volume in place, as the kubelet does."""
    (top / generation).mkdir()
    for name, content in files.items():
        (top / generation / f"{name}.json").write_bytes(content)
    (top / "..data_tmp").symlink_to(generation)
    (top / "..data_tmp").rename(top / "..data")
    for name in files:
        if not (top / f"{name}.json").is_symlink():
            (top / f"{name}.json").symlink_to(f"..data/{name}.json")


def test_a_mounted_volume_is_read_through_its_generation(top):
    """Keys of a ConfigMap volume are those of the generation that ..data names."""
    volume(top, "..1", a=b"{}", b=b"[]")
    assert keys(read(top)) == {"a.json": b"{}", "b.json": b"[]"}


def test_a_volume_that_is_swapped_during_the_read_is_read_again(top):
    """No read mixes two generations."""
    volume(top, "..1", a=b"old", b=b"old")
    generations = ["..2"]

    def swap():
        for generation in generations:
            volume(top, generation, a=b"new", b=b"new")
        generations.clear()

    assert keys(read(top, after_read=swap)) == {"a.json": b"new", "b.json": b"new"}


def test_a_volume_that_never_rests_is_unreadable(top):
    """Endless change is no answer about any key."""
    numbers = iter(range(100))
    volume(top, "..x", a=b"x")
    snapshot = read(top, after_read=lambda: volume(top, f"..{next(numbers)}", a=b"x"))
    assert isinstance(snapshot, Unreadable)


def test_a_generation_outside_the_volume_is_unreadable(top, tmp_path):
    """A ..data link that leads out is not followed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.json").write_bytes(b"{}")
    (top / "..data").symlink_to("../out")
    assert isinstance(read(top), Unreadable)


def test_a_link_inside_the_tree_is_its_target(top):
    """A link to a regular file of the same tree is read."""
    (top / "sub").mkdir()
    (top / "sub/a.json").write_bytes(b"{}")
    (top / "b.json").symlink_to("sub/a.json")
    assert keys(read(top)) == {"b.json": b"{}", "sub/a.json": b"{}"}


def test_what_is_no_regular_file_of_the_tree_is_refused_by_name(top, tmp_path):
    """Links out, dangling links, FIFOs and sockets are refused; none blocks the read."""
    (tmp_path / "secret.json").write_bytes(b"{}")
    (top / "good.json").write_bytes(b"{}")
    (top / "out.json").symlink_to("../secret.json")
    (top / "absolute.json").symlink_to(tmp_path / "secret.json")
    (top / "dangling.json").symlink_to("nowhere")
    os.mkfifo(top / "fifo.json")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(top / "socket.json"))
        snapshot = read(top)
    assert keys(snapshot) == {"good.json": b"{}"}
    assert refused(snapshot) == [
        ("absolute.json", "key_not_regular"),
        ("dangling.json", "key_not_regular"),
        ("fifo.json", "key_not_regular"),
        ("out.json", "key_not_regular"),
        ("socket.json", "key_not_regular"),
    ]


def test_names_with_control_characters_are_refused(top):
    """A name that could forge a line of a report is told in escaped form."""
    (top / "a\nb.json").write_bytes(b"{}")
    assert refused(read(top)) == [("a\\nb.json", "key_unsafe")]


def test_names_that_are_no_text_are_refused(top):
    """A name of arbitrary bytes is told in escaped form."""
    (top / os.fsdecode(b"\xff.json")).write_bytes(b"{}")
    assert refused(read(top)) == [("\\udcff.json", "key_unsafe")]


def test_a_large_key_is_refused_and_the_others_are_read(top):
    """A limit on a key concerns that key only."""
    (top / "large.json").write_bytes(b" " * (limits.KEY_BYTES + 1))
    (top / "small.json").write_bytes(b"{}")
    snapshot = read(top)
    assert (keys(snapshot), refused(snapshot)) == (
        {"small.json": b"{}"},
        [("large.json", "key_too_large")],
    )


def test_too_many_keys_make_the_set_unreadable(top, monkeypatch):
    """Part of a set is not the set."""
    monkeypatch.setattr(limits, "SET_KEYS", 2)
    for name in "abc":
        (top / f"{name}.json").write_bytes(b"{}")
    assert isinstance(read(top), Unreadable)


def test_a_set_that_is_too_large_is_unreadable(top, monkeypatch):
    """Part of a set is not the set."""
    monkeypatch.setattr(limits, "SET_BYTES", 3)
    (top / "a.json").write_bytes(b"{  }")
    assert isinstance(read(top), Unreadable)


def test_a_tree_that_is_too_deep_is_refused_there(top):
    """Depth is bounded."""
    path = top
    for _ in range(18):
        path /= "d"
    path.mkdir(parents=True)
    (path / "a.json").write_bytes(b"{}")
    (key,) = read(top).refused
    assert key[1].code == "key_unsafe"


def test_empty_missing_and_unreadable_are_three_answers(top, tmp_path):
    """A directory without profiles, none, and something else instead of it differ."""
    (top / "README").write_bytes(b"x")
    assert isinstance(read(top), Emptied)
    assert isinstance(read(tmp_path / "absent"), Missing)
    (tmp_path / "file").write_bytes(b"x")
    assert isinstance(read(tmp_path / "file"), Unreadable)


def test_a_key_that_vanishes_during_the_read_is_read_again(top):
    """What was listed and is gone is a change, not an absence of everything."""
    (top / "a.json").write_bytes(b"{}")
    (top / "b.json").symlink_to("a.json")
    assert keys(read(top)) == {"a.json": b"{}", "b.json": b"{}"}


def test_a_file_that_is_written_during_the_read_is_read_again(top, monkeypatch):
    """The half of a text may be a text, and would take the other half's profiles away."""
    read_all, path = reading.read_all, top / "a.json"
    path.write_bytes(b"old")
    later = [b"newer"]

    def written(*asked):
        content = read_all(*asked)
        for one in later:
            path.write_bytes(one)
        later.clear()
        return content

    monkeypatch.setattr(reading, "read_all", written)
    assert keys(read(top)) == {"a.json": b"newer"}


def test_a_volume_below_the_directory_is_read_through_one_generation_too(top):
    """A ConfigMap mounted in a sub-directory is never a mix of two generations."""
    inner = top / "mounted"
    inner.mkdir()
    volume(inner, "..1", a=b"old", b=b"old")
    generations = ["..2"]

    def swap():
        for generation in generations:
            volume(inner, generation, a=b"new", b=b"new")
        generations.clear()

    assert keys(read(top, after_read=swap)) == {"mounted/a.json": b"new", "mounted/b.json": b"new"}


def test_a_directory_that_is_removed_during_the_read_is_not_empty(top):
    """What vanished in the middle says nothing about its keys."""
    (top / "a.json").write_bytes(b"{}")

    def remove():
        if top.exists():
            (top / "a.json").unlink()
            top.rmdir()

    assert isinstance(read(top, after_read=remove), Missing)


# --- what need not be read again ------------------------------------------------------------------

LATER_NS = 3_000_000_000


def later():
    """Tell the time of a look three seconds after everything was written."""
    return time.time_ns() + LATER_NS


def blobs(source):
    (snapshot,) = source.read()
    return {blob.key: blob for blob in snapshot.source_keys}


def test_what_did_not_change_is_not_read_again(top):
    """An unchanged directory gives the very snapshot of the last read; other files stay."""
    (top / "a.json").write_bytes(b"{}")
    (top / "b.json").write_bytes(b"{}")
    source = DirectorySource(str(top), clock=later)
    first, second = source.read(), source.read()
    assert first[0] is second[0]
    before = blobs(source)
    (top / "b.json").write_bytes(b"[]")
    after = blobs(source)
    assert after["a.json"] is before["a.json"]
    assert after["b.json"].content == b"[]"


def test_what_changed_a_moment_ago_is_read_again(top):
    """Within a tick of the clock two changes have one time: what is that young is not trusted."""
    (top / "a.json").write_bytes(b"{}")
    source = DirectorySource(str(top))
    assert blobs(source)["a.json"] is not blobs(source)["a.json"]


def test_a_time_of_the_future_is_not_trusted(top):
    """Where the clock was set back, files are read every time."""
    (top / "a.json").write_bytes(b"{}")
    source = DirectorySource(str(top), clock=lambda: time.time_ns() - LATER_NS)
    assert blobs(source)["a.json"] is not blobs(source)["a.json"]


def test_a_change_that_hides_its_time_and_size_is_seen(top):
    """Neither the size nor the time of modification, which anybody can set, is the sign."""
    file = top / "a.json"
    file.write_bytes(b"{}")
    source = DirectorySource(str(top), clock=later)
    source.read()
    status = file.stat()
    file.write_bytes(b"[]")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert blobs(source)["a.json"].content == b"[]"


def test_a_file_that_another_one_replaced_is_seen(top):
    """A rename brings another file under the name."""
    (top / "a.json").write_bytes(b"{}")
    (top / "new").write_bytes(b"[]")
    source = DirectorySource(str(top), clock=later)
    source.read()
    (top / "new").rename(top / "a.json")
    assert blobs(source)["a.json"].content == b"[]"


def test_a_file_that_became_a_link_is_refused(top):
    """What was read before answers for no link."""
    (top / "a.json").write_bytes(b"{}")
    source = DirectorySource(str(top), clock=later)
    source.read()
    (top / "a.json").rename(top.parent / "a.json")
    (top / "a.json").symlink_to("../a.json")
    assert refused(source.read()[0]) == [("a.json", "key_not_regular")]


def test_a_new_generation_of_a_volume_is_read(top):
    """The keys of a mounted volume are those of its current generation."""
    volume(top, "..1", a=b"old")
    source = DirectorySource(str(top), clock=later)
    assert blobs(source)["a.json"] is blobs(source)["a.json"]
    volume(top, "..2", a=b"new")
    assert blobs(source)["a.json"].content == b"new"


def test_after_forgetting_everything_is_read_again(top):
    """A resync trusts no signature."""
    (top / "a.json").write_bytes(b"{}")
    source = DirectorySource(str(top), clock=later)
    before = blobs(source)["a.json"]
    source.invalidate()
    assert blobs(source)["a.json"] is not before


def test_a_file_that_is_gone_is_forgotten(top):
    """A removed key leaves nothing behind."""
    (top / "a.json").write_bytes(b"{}")
    (top / "b.json").write_bytes(b"{}")
    source = DirectorySource(str(top), clock=later)
    source.read()
    (top / "a.json").unlink()
    assert list(blobs(source)) == list(source._files) == ["b.json"]


def test_a_tree_of_too_many_empty_directories_is_unreadable(tmp_path):
    """Empty directories have no key and still cost time; nothing is removed for such a source."""
    for one in range(51):
        for two in range(100):
            (tmp_path / str(one) / str(two)).mkdir(parents=True)
    (snapshot,) = DirectorySource(str(tmp_path)).read()
    assert isinstance(snapshot, Unreadable)
    assert snapshot.reason == "too_many_directories: more than 5000 directories"


def test_a_directory_of_too_many_names_is_unreadable(tmp_path, monkeypatch):
    """Names that are no profiles take memory too."""
    monkeypatch.setattr(limits, "SET_NAMES", 100)
    for number in range(101):
        (tmp_path / f"{number}.txt").touch()
    (snapshot,) = DirectorySource(str(tmp_path)).read()
    assert isinstance(snapshot, Unreadable)
    assert snapshot.reason == "too_many_names: more than 100 names"
