"""Tests of writes to a full disk, on a file system in memory."""

import errno

import pyfakefs.fake_filesystem
import pytest

from agent.core.model import KeyId, LedgerEntry
from agent.core.vocabulary import Provenance
from agent.host.filesystem import Host, HostError
from agent.host.ledger import FileLedger

ID = KeyId(kind="seccomp", profile_set="dir /p", key="audit.json")


def test_a_write_to_a_full_disk_keeps_only_the_old_file(
    fs: pyfakefs.fake_filesystem.FakeFilesystem,
) -> None:
    """If the disk is full, a write raises ENOSPC. The old file stays, and no temporary file
    remains.
    """
    host = Host("/")
    host.write_file("/d", "a", b"old")
    fs.set_disk_usage(fs.get_disk_usage()[1] + 10)
    with pytest.raises(HostError) as error:
        host.write_file("/d", "a", b"x" * 100)
    assert (error.value.errno, error.value.path) == (errno.ENOSPC, "/d/a")
    assert host.read_regular("/d", "a", limit=9) == b"old"
    assert host.names("/d") == ["a"]


def test_a_ledger_on_a_full_disk_keeps_its_entries(
    fs: pyfakefs.fake_filesystem.FakeFilesystem,
) -> None:
    """If the disk is full, the previous ledger entry stays, and the finding contains a hint."""
    ledger = FileLedger(Host("/"), "/state")
    assert ledger.write(LedgerEntry(id=ID, provenance=Provenance.INSTALLED)) is None
    fs.set_disk_usage(fs.get_disk_usage()[1] + 10)
    finding = ledger.write(LedgerEntry(id=ID, provenance=Provenance.ADOPTED, prefix="x" * 500))
    assert finding is not None
    assert (finding.code, finding.hint) == (
        "write_failed",
        "Free up space on the file system, and check its permissions.",
    )
    assert ledger.entries() == {ID: LedgerEntry(id=ID, provenance=Provenance.INSTALLED)}
