"""What every ledger keeps: the file ledger, and the one in memory that stands for it."""

import json
import os

import pytest

from agent.core import model
from agent.core.findings import Finding
from agent.core.model import KeyId, LedgerEntry, Version
from agent.host.filesystem import Host
from agent.host.ledger import READ_BYTES, READ_ENTRIES, FileLedger
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
    provenance="adopted",
    installed=VERSION,
    staged=VERSION,
    retired={"web//old": frozenset({"raw:0"})},
    prefix="profiles/",
)


@pytest.fixture(params=["file", "memory"])
def ledger(request, tmp_path):
    """Give a fresh ledger."""
    if request.param == "memory":
        return MemoryLedger(Node(), Steps())
    return FileLedger(Host(tmp_path), "/state")


def test_an_entry_is_read_back_as_it_was_written(ledger):
    """Every field survives; a second write replaces the first."""
    assert ledger.entries() == {}
    assert ledger.write(LedgerEntry(id=ID, provenance="installed")) is None
    assert ledger.write(FULL) is None
    assert ledger.entries() == {ID: FULL}


def test_entries_of_other_keys_are_kept_apart(ledger):
    """Kind, origin and key together name an entry."""
    other = LedgerEntry(
        id=KeyId(kind="seccomp", profile_set=ID.profile_set, key=ID.key), provenance="installed"
    )
    ledger.write(FULL)
    ledger.write(other)
    assert ledger.entries() == {ID: FULL, other.id: other}
    assert ledger.delete(ID) is None
    assert ledger.delete(ID) is None
    assert ledger.entries() == {other.id: other}


def test_bodies_are_kept_under_their_digest(ledger):
    """Bytes come back by their sha256; unknown ones are None."""
    digests = [model.digest(b"policy"), model.digest(b"other")]
    assert [ledger.has_content(one) for one in digests] == [False, False]
    assert ledger.store_content(b"policy") is None
    assert ledger.store_content(b"policy") is None
    assert [ledger.has_content(one) for one in digests] == [True, False]
    assert [ledger.content(one) for one in digests] == [b"policy", None]


@pytest.fixture
def files(tmp_path):
    """Give a file ledger that holds one entry, and the path of that entry's file."""
    ledger = FileLedger(Host(tmp_path), "/state")
    ledger.write(FULL)
    (path,) = (tmp_path / "state/entries").iterdir()
    return ledger, path


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_damaged_entry_counts_as_absent_and_is_reported(files, cut):
    """A file that was cut short says nothing, and says so."""
    ledger, path = files
    path.write_bytes(path.read_bytes()[:cut])
    assert ledger.entries() == {}
    assert [one.code for one in ledger.findings] == ["ledger_damaged"]


def test_a_bad_byte_anywhere_in_an_entry_is_damage(files):
    """Also one that is no text at all: no entry may end the agent."""
    ledger, path = files
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        ledger.invalidate()
        found = ledger.entries(), [one.code for one in ledger.findings]
        assert found == ({}, ["ledger_damaged"]), at


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"schema": 1, "x": ' + b"[" * 100_000, "ledger_damaged"),
        (b"[" * 100_000, "ledger_damaged"),
        (b'{"schema": 2, "origin": "\xff"}', "ledger_newer"),
    ],
)
def test_what_no_version_would_write_is_damage_or_newer(files, content, code):
    """Nesting without end is no entry; of a newer one the schema alone is understood."""
    ledger, path = files
    path.write_bytes(content)
    found = ledger.entries()
    codes = [found.code] if isinstance(found, Finding) else [one.code for one in ledger.findings]
    assert codes == [code]


@pytest.mark.parametrize("change", ["in place", "removed", "added", "replaced"])
def test_what_others_do_to_entries_is_noticed_and_read(files, change):
    """An entry changed in place leaves its directory as it was, and is noticed all the same."""
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


def test_own_writes_leave_the_ledger_untouched_and_those_of_others_do_not(files):
    """A change of somebody else's is not taken for a part of one's own."""
    ledger, path = files
    other = LedgerEntry(
        id=KeyId(kind="seccomp", profile_set=ID.profile_set, key=ID.key), provenance="installed"
    )
    ledger.entries()
    ledger.write(other)
    assert ledger.is_unchanged() is True
    ledger.delete(other.id)
    assert ledger.is_unchanged() is True
    path.write_bytes(b"{}")
    ledger.write(other)
    assert ledger.is_unchanged() is False


def test_an_entry_in_another_entrys_file_is_damaged(files):
    """The file's name is the digest of what it is about."""
    ledger, path = files
    path.rename(path.with_name("0" * 64 + ".json"))
    assert (ledger.entries(), [one.code for one in ledger.findings]) == ({}, ["ledger_damaged"])


def test_an_entry_of_a_newer_schema_stops_everything(files):
    """A ledger that a newer version wrote is not understood, which is not damage."""
    ledger, path = files
    newer = json.loads(path.read_text()) | {"schema": 2, "unheard": "of"}
    path.write_text(json.dumps(newer))
    found = ledger.entries()
    assert isinstance(found, Finding)
    assert (found.code, ledger.findings) == ("ledger_newer", [])


def test_an_unreadable_ledger_is_not_an_empty_one(files):
    """Something that is no file among the entries makes the whole ledger untrustworthy."""
    ledger, path = files
    path.unlink()
    path.mkdir()
    found = ledger.entries()
    assert isinstance(found, Finding)
    assert found.code == "kind_unobservable"


@pytest.mark.parametrize("folder", ["state", "state/entries"])
def test_a_ledger_of_another_user_proves_nothing(files, tmp_path, folder):
    """A forged entry would make the agent remove a foreign file; so nothing is concluded."""
    ledger, _ = files
    os.chown(tmp_path / folder, 1234, -1)
    found = FileLedger(ledger.host, ledger.directory).entries()
    assert isinstance(found, Finding)
    assert (found.code, found.location) == ("kind_unobservable", f"/{folder}")


def test_a_ledger_that_others_may_write_is_made_private(files, tmp_path):
    """An emptyDir volume has mode 0777; whole entries in it stay, and it stays private."""
    ledger, _ = files
    for folder in ("state", "state/entries"):
        (tmp_path / folder).chmod(0o777)
    assert ledger.make_private() == ("/state", "/state/entries")
    modes = [(tmp_path / one).stat().st_mode & 0o777 for one in ("state", "state/entries")]
    assert (modes, ledger.make_private(), set(ledger.entries())) == ([0o755] * 2, (), {ID})


@pytest.mark.parametrize("change", ["mode", "owner"])
def test_an_entry_that_others_may_write_is_damaged(files, change):
    """An entry that was forged while the directory was writable by others stays untrusted."""
    ledger, path = files
    assert set(ledger.entries()) == {ID}
    if change == "mode":
        path.chmod(0o666)
    else:
        os.chown(path, 1234, -1)
    assert (ledger.entries(), [one.code for one in ledger.findings]) == ({}, ["ledger_damaged"])


def test_a_link_to_the_state_directory_is_followed(files, tmp_path):
    """The mode of a symbolic link says nothing; that of its target counts."""
    (tmp_path / "link").symlink_to("state")
    assert set(FileLedger(Host(tmp_path), "/link").entries()) == {ID}


def test_left_over_temporary_files_are_no_entries(files):
    """What a kill left behind is passed over."""
    ledger, path = files
    path.with_name(".profile-loader.00.tmp").write_bytes(b"{")
    assert (set(ledger.entries()), ledger.findings) == ({ID}, [])


def test_a_damaged_body_is_absent(files, tmp_path):
    """Bytes whose digest is not their name are not believed, and are written anew."""
    ledger, _ = files
    ledger.store_content(b"policy")
    digest = model.digest(b"policy")
    (tmp_path / "state/bodies" / digest).write_bytes(b"policz")
    assert ledger.content(digest) is None
    assert ledger.store_content(b"policy") is None
    assert ledger.content(digest) == b"policy"


def test_bodies_that_no_entry_needs_are_swept(files):
    """Bytes of former versions do not pile up."""
    ledger, _ = files
    ledger.store_content(b"old")
    ledger.store_content(b"new")
    version = Version(
        names=("x",), source_digest=model.digest(b"new"), body_digest=model.digest(b"new")
    )
    ledger.sweep({ID: LedgerEntry(id=ID, provenance="installed", installed=version)})
    assert (ledger.content(model.digest(b"old")), ledger.content(model.digest(b"new"))) == (
        None,
        b"new",
    )


def test_a_state_directory_that_is_a_file_fails_each_write(tmp_path):
    """A write that fails is a problem with its path, not an exception."""
    (tmp_path / "state").write_bytes(b"")
    ledger = FileLedger(Host(tmp_path), "/state")
    findings = [ledger.write(FULL), ledger.store_content(b"x")]
    assert [one.code for one in findings] == ["write_failed", "write_failed"]


def test_a_ledger_of_too_many_entries_is_not_read(tmp_path):
    """Entries of an earlier version, or of an attack on it, do not end the agent at its start."""
    ledger = FileLedger(Host(tmp_path), "/state")
    folder = tmp_path / "state/entries"
    folder.mkdir(parents=True)
    for number in range(READ_ENTRIES + 1):
        (folder / f"{number}.json").touch()
    found = ledger.entries()
    assert isinstance(found, Finding)
    assert (found.code, found.location) == ("limit_exceeded", "/state/entries")


def test_a_ledger_of_too_many_bytes_is_not_read(tmp_path):
    """A few huge entries count like many small ones."""
    ledger = FileLedger(Host(tmp_path), "/state")
    (tmp_path / "state/entries").mkdir(parents=True)
    with (tmp_path / "state/entries/a.json").open("wb") as file:
        file.truncate(READ_BYTES + 1)
    found = ledger.entries()
    assert isinstance(found, Finding)
    assert found.code == "limit_exceeded"
