"""What every source keeps: the same answers, whatever profiles come from."""

import json
import os

import pytest

from agent.core.model import Emptied, Missing, Read, Unreadable
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource

HEAD = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}}


class Tree:
    """Profiles as files below a directory."""

    def __init__(self, top):
        self.path = top / "set"

    def fill(self, **keys):
        self.path.mkdir(exist_ok=True)
        for name in os.listdir(self.path):
            (self.path / name).unlink()
        for key, text in keys.items():
            (self.path / key).write_text(text)

    def spoil(self):
        self.path.write_text("not a directory")

    def source(self):
        return DirectorySource(str(self.path))


class Volume(Tree):
    """Profiles as the kubelet mounts a ConfigMap."""

    def fill(self, **keys):
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
    """Profiles as a ConfigMap in a file; JSON is YAML."""

    def fill(self, **keys):
        self.path.write_text(json.dumps({**HEAD, "data": keys}))

    def spoil(self):
        self.path.write_text("{")

    def source(self):
        return ManifestSource(str(self.path))


@pytest.fixture(params=[Tree, Volume, File], ids=lambda one: one.__name__.lower())
def place(request, tmp_path):
    """Give each place that profiles come from, not there yet."""
    return request.param(tmp_path)


def read(place):
    (snapshot,) = place.source().read()
    return snapshot


def test_a_set_that_is_read_holds_its_profiles_byte_for_byte(place):
    """Profiles become blobs of the set's origin; what is no profile does not."""
    place.fill(**{"a.json": '{"é": 1}\n', "mute": "[", "README.md": "x", "b.txt": "x"})
    snapshot = read(place)
    assert isinstance(snapshot, Read)
    assert snapshot.refused == ()
    assert {(one.profile_set, one.path, one.content) for one in snapshot.source_keys} == {
        (snapshot.profile_set, "a.json", '{"é": 1}\n'.encode()),
        (snapshot.profile_set, "mute", b"["),
    }


def test_empty_missing_and_unreadable_are_three_answers_of_one_origin(place):
    """Nobody has to guess why there is nothing."""
    answers = [read(place)]
    place.fill(**{"README.md": "x"})
    answers.append(read(place))
    if place.path.is_dir():
        place.path.rename(place.path.with_name("old"))
    place.spoil()
    answers.append(read(place))
    assert [type(one) for one in answers] == [Missing, Emptied, Unreadable]
    assert len({one.profile_set for one in answers}) == 1


def test_the_revision_follows_names_and_content_only(place):
    """The same keys give the same revision; another byte or another name gives another one."""
    revisions = []
    for keys in ({"a.json": "1"}, {"a.json": "1"}, {"a.json": "2"}, {"b.json": "2"}):
        place.fill(**keys)
        revisions.append(read(place).revision)
    assert revisions[0] == revisions[1]
    assert len(set(revisions)) == 3


def test_a_source_reads_anew_each_time(place):
    """One source serves many passes."""
    source = place.source()
    place.fill(**{"a.json": "1"})
    first = source.read()
    place.fill(**{"a.json": "1", "b.json": "2"})
    (second,) = source.read()
    assert isinstance(second, Read)
    assert source.read() != first
    assert [one.path for one in second.source_keys] == ["a.json", "b.json"]


def test_an_origin_does_not_depend_on_where_the_agent_runs(place, monkeypatch):
    """A relative and an absolute path name the same set."""
    place.fill(**{"a.json": "1"})
    monkeypatch.chdir(place.path.parent)
    (absolute,) = place.source().read()
    (relative,) = type(place.source())("set").read()
    assert relative.profile_set == absolute.profile_set
