"""Tests of the behaviour that all sources have in common."""

import json
import os
import time
from pathlib import Path

import pytest

from agent.core.model import Emptied, Missing, Read, Snapshot, Unreadable
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource

HEAD = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}}


class Tree:
    """Provides profiles in the files of a directory."""

    def __init__(self, top: Path) -> None:
        self.path = top / "set"

    def fill(self, **keys: str) -> None:
        self.path.mkdir(exist_ok=True)
        for name in os.listdir(self.path):
            (self.path / name).unlink()
        for key, text in keys.items():
            (self.path / key).write_text(text)

    def make_unreadable(self) -> None:
        self.path.write_text("not a directory")

    def source(self) -> DirectorySource:
        return self.source_at(str(self.path))

    def source_at(self, path):
        return DirectorySource(path, clock_ns=time.time_ns)


class Volume(Tree):
    """Provides profiles in a ConfigMap volume of the kubelet."""

    def fill(self, **keys: str) -> None:
        self.path.mkdir(exist_ok=True)
        generation = f"..{len(os.listdir(self.path))}"
        (self.path / generation).mkdir()
        for key, text in keys.items():
            (self.path / generation / key).write_text(text)
            if not (self.path / key).is_symlink():
                (self.path / key).symlink_to(f"..data/{key}")
        (self.path / "..data_tmp").symlink_to(generation)
        (self.path / "..data_tmp").rename(self.path / "..data")


class File(Tree):
    """Provides profiles in a file with a ConfigMap manifest. The file is JSON, which is also valid
    YAML.
    """

    def fill(self, **keys: str) -> None:
        self.path.write_text(json.dumps({**HEAD, "data": keys}))

    def make_unreadable(self) -> None:
        self.path.write_text("{")

    def source_at(self, path: str) -> ManifestSource:
        return ManifestSource(path)


@pytest.fixture(params=[Tree, Volume, File], ids=lambda kind: kind.__name__.lower())
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    """Return an empty source of each type."""
    return request.param(tmp_path)


def read(place: Tree) -> Snapshot:
    (snapshot,) = place.source().read()
    return snapshot


def test_a_snapshot_contains_the_unchanged_content_of_each_profile(place: Tree) -> None:
    """A snapshot contains the unchanged content of each profile. A source ignores files that are
    not profiles.
    """
    place.fill(**{"a.json": '{"é": 1}\n', "mute": "[", "README.md": "x", "b.txt": "x"})
    snapshot = read(place)
    assert isinstance(snapshot, Read)
    assert snapshot.rejected_keys == ()
    assert {(key.profile_set, key.path, key.content) for key in snapshot.source_keys} == {
        (snapshot.profile_set, "a.json", '{"é": 1}\n'.encode()),
        (snapshot.profile_set, "mute", b"["),
    }


def test_empty_missing_and_unreadable_differ_and_have_the_same_profile_set(place: Tree) -> None:
    """The type of a snapshot shows why a profile set contains no profiles."""
    snapshots = [read(place)]
    place.fill(**{"README.md": "x"})
    snapshots.append(read(place))
    if place.path.is_dir():
        place.path.rename(place.path.with_name("old"))
    place.make_unreadable()
    snapshots.append(read(place))
    assert [type(snapshot) for snapshot in snapshots] == [Missing, Emptied, Unreadable]
    assert len({snapshot.profile_set for snapshot in snapshots}) == 1


def test_the_revision_follows_names_and_content_only(place: Tree) -> None:
    """Equal keys have the same revision. Different content or a different name results in another
    revision.
    """
    revisions = []
    for keys in ({"a.json": "1"}, {"a.json": "1"}, {"a.json": "2"}, {"b.json": "2"}):
        place.fill(**keys)
        revisions.append(read(place).revision)
    assert revisions[0] == revisions[1]
    assert len(set(revisions)) == 3


def test_each_read_returns_the_current_profiles(place: Tree) -> None:
    """If the profiles of a source change between two passes, each pass reads the current
    profiles.
    """
    source = place.source()
    place.fill(**{"a.json": "1"})
    first = source.read()
    place.fill(**{"a.json": "1", "b.json": "2"})
    (second,) = source.read()
    assert isinstance(second, Read)
    assert source.read() != first
    assert [key.path for key in second.source_keys] == ["a.json", "b.json"]


def test_the_profile_set_does_not_depend_on_the_working_directory(
    place: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path and an absolute path of a source result in the same profile set."""
    place.fill(**{"a.json": "1"})
    monkeypatch.chdir(place.path.parent)
    (absolute,) = place.source().read()
    (relative,) = place.source_at("set").read()
    assert relative.profile_set == absolute.profile_set
