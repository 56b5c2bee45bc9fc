"""Reading ConfigMaps from a YAML file."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Emptied, Missing, Read, SourceKey, Unreadable
from agent.sources import limits
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource
from agent.sources.source_spec import open_source

TWO = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: web
  namespace: nodes
  annotations:
    profile-loader.node-restriction.kubernetes.io/seccomp-prefix: profiles/
data:
  audit.json: '{"defaultAction": "SCMP_ACT_LOG"}'
  notes.txt: not a profile
binaryData:
  web.profile: cHJvZmlsZSB3ZWIge30=
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: passed-over}
---
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: more}
  data: {x.json: "{}"}
"""


@pytest.fixture
def path(tmp_path):
    """Give the path of a manifest."""
    return tmp_path / "set.yaml"


def read(path, text):
    path.write_text(text)
    (snapshot,) = ManifestSource(str(path)).read()
    return snapshot


ANNOTATED = (
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: "
    "{profile-loader.node-restriction.kubernetes.io/allow-empty: maybe}}"
)


def config_map(body, name="web"):
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n{body}\n"


def test_every_config_map_of_every_document_is_read(path):
    """data, binaryData, several documents and Lists are read; other kinds are passed over."""
    origin = f"manifest {path}"
    snapshot = read(path, TWO)
    blobs = (
        SourceKey(
            profile_set=origin,
            key="nodes/web/audit.json",
            content=b'{"defaultAction": "SCMP_ACT_LOG"}',
            prefix="profiles/",
            name="audit.json",
        ),
        SourceKey(
            profile_set=origin,
            key="nodes/web/web.profile",
            content=b"profile web {}",
            prefix="profiles/",
            name="web.profile",
        ),
        SourceKey(profile_set=origin, key="default/more/x.json", content=b"{}", name="x.json"),
    )
    assert snapshot == Read(profile_set=origin, revision=snapshot.revision, source_keys=blobs)
    assert [blob.path for blob in blobs] == [
        "profiles/audit.json",
        "profiles/web.profile",
        "x.json",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: 1\na: 2",
        "just text",
        "kind: List\napiVersion: v1",
        "apiVersion: v1\nkind: ConfigMap\n",
        config_map("data: [a]"),
        config_map("data: {1: x}"),
        config_map("data: {a.json: 1}"),
        config_map("binaryData: {a.json: '***'}"),
        config_map("data: {a.json: x}\nbinaryData: {a.json: eA==}"),
        config_map("data: {a.json: x, a.json: y}"),
        ANNOTATED,
        "? [a, b]\n: c",
        "!!python/object/apply:os.system ['true']",
        "[" * 3000,
    ],
)
def test_what_is_not_well_formed_is_unreadable(path, text):
    """A file that cannot be understood removes nothing."""
    assert isinstance(read(path, text), Unreadable)


def test_bytes_that_are_no_text_are_unreadable(path):
    """YAML is UTF-8."""
    path.write_bytes(b"a: \xff")
    assert isinstance(ManifestSource(str(path)).read()[0], Unreadable)


def test_unsafe_and_large_keys_are_refused_by_name(path, monkeypatch):
    """A key that is no ConfigMap key, or too large, does not stop the others."""
    monkeypatch.setattr(limits, "KEY_BYTES", 8)
    body = "data:\n  ../up.json: '{}'\n  a/b.json: '{}'\n  big.json: '123456789'\n  ok.json: '{}'"
    snapshot = read(path, config_map(body))
    assert [(key, finding.code) for key, finding in snapshot.refused] == [
        ("default/web/../up.json", "key_unsafe"),
        ("default/web/a/b.json", "key_unsafe"),
        ("default/web/big.json", "key_too_large"),
    ]
    assert [blob.key for blob in snapshot.source_keys] == ["default/web/ok.json"]


def test_an_empty_file_is_emptied_unless_it_may_be(path):
    """A ConfigMap without profiles is emptied; its annotation allows that."""
    assert isinstance(read(path, config_map("data: {notes.md: x}")), Emptied)
    assert isinstance(read(path, ""), Emptied)
    allowed = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  annotations:\n"
        "    profile-loader.node-restriction.kubernetes.io/allow-empty: 'true'\n"
    )
    assert isinstance(read(path, allowed), Read)


def test_missing_and_unreadable_files_differ(tmp_path):
    """No file, and something that is no file, are two answers."""
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(ManifestSource(str(tmp_path / "absent")).read()[0], Missing)
    assert isinstance(ManifestSource(str(tmp_path / "fifo")).read()[0], Unreadable)
    assert isinstance(ManifestSource(str(tmp_path)).read()[0], Unreadable)


def test_a_file_that_is_written_during_the_read_is_unreadable(path, monkeypatch):
    """The half of a text may be a text; the next pass reads it again."""
    path.write_text(config_map("data: {a.json: old}"))
    fstat, later = os.fstat, [config_map("data: {}")]

    def written(fd):
        status = fstat(fd)
        for one in later:
            path.write_text(one)
        later.clear()
        return status

    monkeypatch.setattr(os, "fstat", written)
    (snapshot,) = ManifestSource(str(path)).read()
    assert snapshot.reason == f"{path}: it changed while it was read"


@given(text=st.text() | st.text(alphabet="{}[]:,&*!|>-'\" \nakindConfigMapdat"))
def test_any_text_gives_an_answer(tmp_path_factory, text):
    """Reading never raises, whatever the file holds."""
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert isinstance(ManifestSource(str(path)).read(), tuple)


def test_a_source_is_named_by_its_scheme_or_by_what_is_there(tmp_path):
    """dir: and manifest: decide; a bare path is what fits, a missing one too."""
    (tmp_path / "f").write_text("")
    named = {
        f"dir:{tmp_path}": DirectorySource,
        f"manifest:{tmp_path}/f": ManifestSource,
        f"{tmp_path}": DirectorySource,
        f"{tmp_path}/f": ManifestSource,
        f"{tmp_path}/absent.yaml": ManifestSource,
        f"{tmp_path}/absent": DirectorySource,
    }
    assert {text: type(open_source(text)) for text in named} == named


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "must not be empty"),
        ("dir:", 'must follow "dir:"'),
        ("manfest:x.yaml", 'did you mean "manifest:x.yaml"'),
        ("http:x", 'there is no source "http:"'),
    ],
)
def test_a_text_that_names_no_source_is_a_mistake(text, mistake):
    """What is wrong is said together with what is right."""
    with pytest.raises(ValueError, match=mistake):
        open_source(text)


def test_a_configmap_that_is_in_it_twice_makes_the_file_unreadable(path):
    """Neither of the two silently wins."""
    one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a.json: '{}'}\n"
    snapshot = read(path, f"{one}---\n{one}")
    assert isinstance(snapshot, Unreadable)
    assert "ConfigMap default/a is in it twice" in snapshot.reason


def test_a_config_map_of_another_version_makes_the_file_unreadable(path):
    """Its keys may still be desired, so passing over it would remove them."""
    found = read(path, config_map("data: {}").replace("v1", "v2"))
    assert isinstance(found, Unreadable)
    assert "another apiVersion" in found.reason
