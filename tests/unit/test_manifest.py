"""Tests of agent.sources.manifest."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Emptied, Missing, Read, Snapshot, SourceKey, Unreadable
from agent.sources import limits
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource
from agent.sources.source_spec import local_source, parse_source
from tests.narrowing import instance_of

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
def path(tmp_path: Path) -> Path:
    """The path of a manifest."""
    return tmp_path / "set.yaml"


def read(path: Path, text: str) -> Snapshot:
    path.write_text(text)
    (snapshot,) = ManifestSource(str(path)).read()
    return snapshot


ANNOTATED = (
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: "
    "{profile-loader.node-restriction.kubernetes.io/allow-empty: maybe}}"
)


def config_map(body: str, name: str = "web") -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n{body}\n"


def test_each_configmap_of_each_document_is_read(path: Path) -> None:
    """Each ConfigMap in each document or List is read, with data and binaryData. Resources of other
    kinds are skipped.
    """
    origin = f"manifest {path}"
    snapshot = instance_of(read(path, TWO), Read)
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
    assert (snapshot.profile_set, snapshot.source_keys) == (origin, blobs)
    assert [(item.reason, item.names) for item in snapshot.left_out] == [
        ("name", ("nodes/web/notes.txt",)),
        ("resource", ("DaemonSet passed-over",)),
    ]
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
def test_a_malformed_file_is_unreadable(path: Path, text: str) -> None:
    """A malformed manifest is unreadable, so no profile is removed."""
    assert isinstance(read(path, text), Unreadable)


def test_bytes_that_are_not_utf_8_are_unreadable(path: Path) -> None:
    """A manifest that is not UTF-8 is unreadable."""
    path.write_bytes(b"a: \xff")
    assert isinstance(ManifestSource(str(path)).read()[0], Unreadable)


def test_only_unsafe_and_large_keys_are_rejected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejected key does not affect the other keys."""
    monkeypatch.setattr(limits, "KEY_BYTES", 8)
    body = "data:\n  ../up.json: '{}'\n  a/b.json: '{}'\n  big.json: '123456789'\n  ok.json: '{}'"
    snapshot = instance_of(read(path, config_map(body)), Read)
    assert [(key, finding.code) for key, finding in snapshot.rejected_keys] == [
        ("default/web/../up.json", "key_unsafe"),
        ("default/web/a/b.json", "key_unsafe"),
        ("default/web/big.json", "key_too_large"),
    ]
    assert [blob.key for blob in snapshot.source_keys] == ["default/web/ok.json"]


def test_a_file_without_profiles_is_emptied_unless_an_annotation_allows_it(path: Path) -> None:
    """A manifest without profiles counts as emptied, unless one of its ConfigMaps has the
    annotation allow-empty.
    """
    assert isinstance(read(path, config_map("data: {notes.md: x}")), Emptied)
    assert isinstance(read(path, ""), Emptied)
    allowed = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  annotations:\n"
        "    profile-loader.node-restriction.kubernetes.io/allow-empty: 'true'\n"
    )
    assert isinstance(read(path, allowed), Read)


def test_missing_and_unreadable_files_differ(tmp_path: Path) -> None:
    """A missing file and an unreadable path, such as a directory, result in different snapshots."""
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(ManifestSource(str(tmp_path / "absent")).read()[0], Missing)
    assert isinstance(ManifestSource(str(tmp_path / "fifo")).read()[0], Unreadable)
    assert isinstance(ManifestSource(str(tmp_path)).read()[0], Unreadable)


def test_a_file_that_is_written_during_the_read_is_unreadable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that is written during the read is unreadable until the next pass."""
    path.write_text(config_map("data: {a.json: old}"))
    fstat, later = os.fstat, [config_map("data: {}")]

    def written(fd: int) -> os.stat_result:
        status = fstat(fd)
        for item in later:
            path.write_text(item)
        later.clear()
        return status

    monkeypatch.setattr(os, "fstat", written)
    (snapshot,) = ManifestSource(str(path)).read()
    assert snapshot.reason == f"{path}: it changed while it was read"


@given(text=st.text() | st.text(alphabet="{}[]:,&*!|>-'\" \nakindConfigMapdat"))
def test_reading_raises_no_exception_for_any_content(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Whatever a manifest contains, a read returns a snapshot and raises no exception."""
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert isinstance(ManifestSource(str(path)).read(), tuple)


def test_a_scheme_or_the_type_of_the_path_selects_the_source(tmp_path: Path) -> None:
    """A scheme selects the type of a source. Without a scheme, the type of an existing path or the
    file extension selects it.
    """
    (tmp_path / "f").write_text("")
    named = {
        f"dir:{tmp_path}": DirectorySource,
        f"manifest:{tmp_path}/f": ManifestSource,
        f"{tmp_path}": DirectorySource,
        f"{tmp_path}/f": ManifestSource,
        f"{tmp_path}/absent.yaml": ManifestSource,
        f"{tmp_path}/absent": DirectorySource,
    }
    assert {text: type(local_source(parse_source(text))) for text in named} == named


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "must not be empty"),
        ("dir:", 'must follow "dir:"'),
        ("manfest:x.yaml", 'did you mean "manifest:x.yaml"'),
        ("http:x", 'there is no source "http:"'),
    ],
)
def test_an_invalid_source_text_is_an_error(text: str, mistake: str) -> None:
    """The error about an invalid source text contains a valid example."""
    with pytest.raises(ValueError, match=mistake):
        parse_source(text)


def test_a_configmap_that_occurs_twice_makes_the_file_unreadable(path: Path) -> None:
    """A manifest in which a ConfigMap occurs twice is unreadable."""
    one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a.json: '{}'}\n"
    snapshot = read(path, f"{one}---\n{one}")
    assert isinstance(snapshot, Unreadable)
    assert "the ConfigMap default/a occurs twice" in snapshot.reason


def test_a_configmap_with_another_api_version_makes_the_file_unreadable(path: Path) -> None:
    """A manifest with a ConfigMap of an unknown API version is unreadable."""
    result = read(path, config_map("data: {}").replace("v1", "v2"))
    assert isinstance(result, Unreadable)
    assert "an apiVersion other than v1" in result.reason
