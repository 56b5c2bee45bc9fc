"""Tests of the behaviour that the file ledger and the ledger in memory have in common."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core import model
from agent.core.findings import Finding
from agent.core.model import KeyId, LedgerEntry, Version
from agent.core.vocabulary import Provenance
from agent.host.filesystem import Host
from agent.host.ledger import READ_BYTES, READ_ENTRIES, FileLedger
from tests.narrowing import not_none
from tests.world import MemoryLedger, Node, Steps

ID = KeyId(kind="apparmor", profile_set="configmap ns/web", key="web.profile")
VERSION = Version(
    names=("web", "web//hat"),
    source_digest="1" * 64,
    body_digest="2" * 64,
    context="features",
    modes={"web": "enforce", "web//hat": "complain"},
    evidence={"web": frozenset({"raw:1", "own:2"}), "web//hat": frozenset()},
)
FULL = LedgerEntry(
    id=ID,
    provenance=Provenance.ADOPTED,
    installed=VERSION,
    staged=VERSION,
    retired={"web//old": frozenset({"raw:0"})},
    prefix="profiles/",
)


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> FileLedger | MemoryLedger:
    """Return an empty ledger."""
    if request.param == "memory":
        return MemoryLedger(Node(), Steps())
    return FileLedger(Host(tmp_path), "/state")


def test_an_entry_is_read_back_unchanged(ledger: FileLedger | MemoryLedger) -> None:
    """Every field of an entry is stored, and a second write replaces the first write."""
    assert ledger.entries() == {}
    assert ledger.write(LedgerEntry(id=ID, provenance=Provenance.INSTALLED)) is None
    assert ledger.write(FULL) is None
    assert ledger.entries() == {ID: FULL}


def test_entries_of_different_keys_are_separate(ledger: FileLedger | MemoryLedger) -> None:
    """Two entries are different if their kind, their profile set or their key differs."""
    other = LedgerEntry(
        id=KeyId(kind="seccomp", profile_set=ID.profile_set, key=ID.key),
        provenance=Provenance.INSTALLED,
    )
    ledger.write(FULL)
    ledger.write(other)
    assert ledger.entries() == {ID: FULL, other.id: other}
    assert ledger.delete(ID) is None
    assert ledger.delete(ID) is None
    assert ledger.entries() == {other.id: other}


def test_content_is_stored_under_its_digest(ledger: FileLedger | MemoryLedger) -> None:
    """Stored content can be read by its SHA-256 digest. For an unknown digest, the result
    is None.
    """
    digests = [model.digest(b"policy"), model.digest(b"other")]
    assert [ledger.has_content(item) for item in digests] == [False, False]
    assert ledger.store_content(b"policy") is None
    assert ledger.store_content(b"policy") is None
    assert [ledger.has_content(entry) for entry in digests] == [True, False]
    assert [ledger.content(value) for value in digests] == [b"policy", None]


@pytest.fixture
def files(tmp_path: Path) -> tuple[FileLedger, Path]:
    """Return a file ledger with one entry, and the path of the entry's file."""
    ledger = FileLedger(Host(tmp_path), "/state")
    ledger.write(FULL)
    (path,) = (tmp_path / "state/entries").iterdir()
    return ledger, path


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_damaged_entry_counts_as_absent_and_is_reported(
    files: tuple[FileLedger, Path], cut: int
) -> None:
    """If the file of an entry was truncated, the entry counts as absent, and a finding reports the
    damage.
    """
    ledger, path = files
    path.write_bytes(path.read_bytes()[:cut])
    assert ledger.entries() == {}
    assert [finding.code for finding in ledger.findings] == ["ledger_damaged"]


def test_an_invalid_byte_anywhere_in_an_entry_is_damage(files: tuple[FileLedger, Path]) -> None:
    """An entry with invalid bytes anywhere counts as damaged, and does not crash the agent."""
    ledger, path = files
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        ledger.invalidate()
        result = ledger.entries(), [finding.code for finding in ledger.findings]
        assert result == ({}, ["ledger_damaged"]), at


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"schema": 1, "x": ' + b"[" * 100_000, "ledger_damaged"),
        (b"[" * 100_000, "ledger_damaged"),
        (b'{"schema": 2, "origin": "\xff"}', "ledger_newer"),
    ],
)
def test_a_malformed_entry_is_damaged_or_newer(
    files: tuple[FileLedger, Path], content: bytes, code: str
) -> None:
    """A deeply nested entry counts as damaged. From an entry of a newer schema, only the schema
    version is read.
    """
    ledger, path = files
    path.write_bytes(content)
    result = ledger.entries()
    codes = (
        [result.code]
        if isinstance(result, Finding)
        else [finding.code for finding in ledger.findings]
    )
    assert codes == [code]


def test_the_installed_keys_of_each_profile_set_are_measured(tmp_path: Path) -> None:
    """The reported sizes are correct after each write and each deletion, and in a new ledger
    object.
    """
    ledger = FileLedger(Host(tmp_path), "/state")
    reader = FileLedger(ledger.host, ledger.directory)
    other = KeyId(kind="apparmor", profile_set=ID.profile_set, key="other.profile")
    ledger.store_content(b"content")
    stored = replace(VERSION, source_digest=model.digest(b"content"))

    def size() -> tuple[int, int]:
        """Return the size that both the existing ledger object and a new ledger object report."""
        ledgers = [ledger, reader, FileLedger(ledger.host, ledger.directory)]
        for other_ledger in ledgers[1:]:
            other_ledger.entries()
        (only,) = {every.installed_keys.size(ID.profile_set) for every in ledgers}
        return (only.key_count, only.content_bytes)

    assert size() == (0, 0)
    ledger.write(FULL)
    ledger.write(FULL)
    ledger.write(LedgerEntry(id=other, provenance=Provenance.INSTALLED, staged=stored))
    assert size() == (1, len(ID.key))
    ledger.write(LedgerEntry(id=other, provenance=Provenance.INSTALLED, installed=stored))
    assert size() == (2, len(ID.key) + len(other.key) + len(b"content"))
    ledger.write(LedgerEntry(id=ID, provenance=Provenance.INSTALLED, staged=VERSION))
    assert size() == (1, len(other.key) + len(b"content"))
    ledger.delete(other)
    ledger.delete(other)
    assert size() == (0, 0)


@pytest.mark.parametrize("change", ["in place", "removed", "added", "replaced"])
def test_changes_of_other_processes_are_noticed(
    files: tuple[FileLedger, Path], change: str
) -> None:
    """The ledger notices a change of a file's content, although this change does not affect the
    directory.
    """
    ledger, path = files
    kept = ledger.entries()
    assert (ledger.is_unchanged(), ledger.entries() is kept) == (True, True)
    match change:
        case "in place":
            path.write_bytes(path.read_bytes()[:-1])
        case "removed":
            path.unlink()
        case "added":
            path.with_name("0.json").write_bytes(b"{}")
        case "replaced":
            path.with_name(".new").write_bytes(b"{}")
            path.with_name(".new").rename(path)
    assert ledger.is_unchanged() is False
    assert ledger.entries() is not kept


def test_own_writes_are_not_changes_and_those_of_other_processes_are(
    files: tuple[FileLedger, Path],
) -> None:
    """The ledger notices a write by another process even while it writes itself."""
    ledger, path = files
    other = LedgerEntry(
        id=KeyId(kind="seccomp", profile_set=ID.profile_set, key=ID.key),
        provenance=Provenance.INSTALLED,
    )
    ledger.entries()
    ledger.write(other)
    assert ledger.is_unchanged() is True
    ledger.delete(other.id)
    assert ledger.is_unchanged() is True
    path.write_bytes(b"{}")
    ledger.write(other)
    assert ledger.is_unchanged() is False


def test_an_entry_in_the_file_of_another_entry_is_damaged(files: tuple[FileLedger, Path]) -> None:
    """The file name of an entry is the digest of the entry's ID."""
    ledger, path = files
    path.rename(path.with_name("0" * 64 + ".json"))
    assert (ledger.entries(), [finding.code for finding in ledger.findings]) == (
        {},
        ["ledger_damaged"],
    )


def test_an_entry_of_a_newer_schema_stops_all_changes(files: tuple[FileLedger, Path]) -> None:
    """A ledger from a newer version cannot be read, but does not count as damaged."""
    ledger, path = files
    newer = json.loads(path.read_text()) | {"schema": 2, "unheard": "of"}
    path.write_text(json.dumps(newer))
    result = ledger.entries()
    assert isinstance(result, Finding)
    assert (result.code, ledger.findings) == ("ledger_newer", [])


def test_an_unreadable_ledger_is_not_empty(files: tuple[FileLedger, Path]) -> None:
    """If a directory exists at the path of an entry, the whole ledger is unreadable."""
    ledger, path = files
    path.unlink()
    path.mkdir()
    result = ledger.entries()
    assert isinstance(result, Finding)
    assert result.code == "kind_unobservable"


@pytest.mark.parametrize("folder", ["state", "state/entries"])
def test_a_ledger_of_another_user_is_not_read(
    files: tuple[FileLedger, Path], tmp_path: Path, folder: str
) -> None:
    """A ledger that belongs to another user is not read, because a forged entry could remove a
    foreign file.
    """
    ledger, _ = files
    os.chown(tmp_path / folder, 1234, -1)
    result = FileLedger(ledger.host, ledger.directory).entries()
    assert isinstance(result, Finding)
    assert (result.code, result.location) == ("kind_unobservable", f"/{folder}")


def test_a_ledger_that_others_can_write_is_made_private(
    files: tuple[FileLedger, Path], tmp_path: Path
) -> None:
    """An emptyDir volume has mode 0777. The ledger makes the directory private, and keeps its
    undamaged entries.
    """
    ledger, _ = files
    for folder in ("state", "state/entries"):
        (tmp_path / folder).chmod(0o777)
    assert ledger.make_private() == ("/state", "/state/entries")
    modes = [(tmp_path / item).stat().st_mode & 0o777 for item in ("state", "state/entries")]
    assert (modes, ledger.make_private(), set(ledger.entries())) == ([0o755] * 2, (), {ID})


@pytest.mark.parametrize("change", ["mode", "owner"])
def test_an_entry_that_others_can_write_is_damaged(
    files: tuple[FileLedger, Path], change: str
) -> None:
    """The ledger does not trust an entry that other users could write before the directory was
    private.
    """
    ledger, path = files
    assert set(ledger.entries()) == {ID}
    if change == "mode":
        path.chmod(0o666)
    else:
        os.chown(path, 1234, -1)
    assert (ledger.entries(), [finding.code for finding in ledger.findings]) == (
        {},
        ["ledger_damaged"],
    )


def test_a_link_to_the_state_directory_is_followed(
    files: tuple[FileLedger, Path], tmp_path: Path
) -> None:
    """If the state directory is a symbolic link, the agent checks the mode of the link's target."""
    (tmp_path / "link").symlink_to("state")
    assert set(FileLedger(Host(tmp_path), "/link").entries()) == {ID}


def test_temporary_files_are_not_entries(files: tuple[FileLedger, Path]) -> None:
    """Temporary files of a killed process do not count as entries."""
    ledger, path = files
    path.with_name(".profile-loader.00.tmp").write_bytes(b"{")
    assert (set(ledger.entries()), ledger.findings) == ({ID}, [])


def test_damaged_content_is_missing(files: tuple[FileLedger, Path], tmp_path: Path) -> None:
    """If a content file does not match its digest, the content counts as missing and can be stored
    again.
    """
    ledger, _ = files
    ledger.store_content(b"policy")
    digest = model.digest(b"policy")
    (tmp_path / "state/bodies" / digest).write_bytes(b"policz")
    assert ledger.content(digest) is None
    assert ledger.store_content(b"policy") is None
    assert ledger.content(digest) == b"policy"


def test_content_that_no_entry_needs_is_removed(files: tuple[FileLedger, Path]) -> None:
    """The ledger removes content that no current version needs."""
    ledger, _ = files
    ledger.store_content(b"old")
    ledger.store_content(b"new")
    version = Version(
        names=("x",), source_digest=model.digest(b"new"), body_digest=model.digest(b"new")
    )
    ledger.sweep({ID: LedgerEntry(id=ID, provenance=Provenance.INSTALLED, installed=version)})
    assert (ledger.content(model.digest(b"old")), ledger.content(model.digest(b"new"))) == (
        None,
        b"new",
    )


def test_a_state_directory_that_is_a_file_fails_each_write(tmp_path: Path) -> None:
    """A failed write causes a finding with the path, and does not raise an exception."""
    (tmp_path / "state").write_bytes(b"")
    ledger = FileLedger(Host(tmp_path), "/state")
    findings = [ledger.write(FULL), ledger.store_content(b"x")]
    assert [not_none(finding).code for finding in findings] == ["write_failed", "write_failed"]


def test_a_ledger_with_too_many_entries_is_not_read(tmp_path: Path) -> None:
    """A very large number of entries does not crash the agent."""
    ledger = FileLedger(Host(tmp_path), "/state")
    folder = tmp_path / "state/entries"
    folder.mkdir(parents=True)
    for number in range(READ_ENTRIES + 1):
        (folder / f"{number}.json").touch()
    result = ledger.entries()
    assert isinstance(result, Finding)
    assert (result.code, result.location) == ("limit_exceeded", "/state/entries")


def test_a_ledger_with_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    """The limit for the total size also applies to a few huge entries."""
    ledger = FileLedger(Host(tmp_path), "/state")
    (tmp_path / "state/entries").mkdir(parents=True)
    with (tmp_path / "state/entries/a.json").open("wb") as file:
        file.truncate(READ_BYTES + 1)
    result = ledger.entries()
    assert isinstance(result, Finding)
    assert result.code == "limit_exceeded"
