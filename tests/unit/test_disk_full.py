"""A disk that fills up at any moment, on a file system in memory."""

import errno

import pytest

from agent.core.model import KeyId, LedgerEntry
from agent.host.filesystem import Host, HostError
from agent.host.ledger import FileLedger

ID = KeyId(kind="seccomp", profile_set="dir /p", key="audit.json")


def test_a_write_that_does_not_fit_leaves_the_old_file_and_nothing_else(fs):
    """ENOSPC is told with its path; the old content is whole, no temporary file stays."""
    host = Host("/")
    host.write_file("/d", "a", b"old")
    fs.set_disk_usage(fs.get_disk_usage().used + 10)
    with pytest.raises(HostError) as caught:
        host.write_file("/d", "a", b"x" * 100)
    assert (caught.value.errno, caught.value.path) == (errno.ENOSPC, "/d/a")
    assert host.read_regular("/d", "a", limit=9) == b"old"
    assert host.names("/d") == ["a"]


def test_a_ledger_on_a_full_disk_keeps_its_entries(fs):
    """An entry that cannot be replaced stays what it was, and the hint says what to do."""
    ledger = FileLedger(Host("/"), "/state")
    assert ledger.write(LedgerEntry(id=ID, provenance="installed")) is None
    fs.set_disk_usage(fs.get_disk_usage().used + 10)
    finding = ledger.write(LedgerEntry(id=ID, provenance="adopted", prefix="x" * 500))
    assert finding is not None
    assert (finding.code, finding.hint) == ("write_failed", "Free disk space.")
    assert ledger.entries() == {ID: LedgerEntry(id=ID, provenance="installed")}
