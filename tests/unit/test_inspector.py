"""Tests of agent.inspector, which inspects every key with its backend."""

from pathlib import Path

from agent.core.model import Profile, SourceKey
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from tests.unit.test_admission import OneSet, RecordingKind
from tests.world import build_reconciler


class DefectiveKind(RecordingKind):
    """A fake backend whose check of some texts raises an exception."""

    def inspect(self, source_key: SourceKey) -> Profile:
        if source_key.content == b"defect":
            raise KeyError("a:2")
        return super().inspect(source_key)


def test_a_defect_in_the_check_of_one_key_does_not_affect_other_keys(tmp_path: Path) -> None:
    """If the check of a key raises an unexpected exception, the key is rejected, and all other keys
    are checked. The finding contains no text of the key.
    """
    (tmp_path / "state").mkdir()
    kind, source = DefectiveKind(), OneSet()
    reconciler = build_reconciler([source], kind, FileLedger(Host(str(tmp_path)), "/state"))
    source.provide(a=b"a:1")
    reconciler.run()
    source.provide(a=b"defect", b=b"b:1")
    report = reconciler.run()
    assert [(row.key, row.name, row.state) for row in report.profiles] == [
        ("a.aa", "a", "outdated"),
        ("b.aa", "b", "installed"),
    ]
    (finding,) = report.profiles[0].findings
    assert (finding.code, finding.location) == ("check_failed", "a.aa")
    assert finding.message == (
        "The check of this key ended with an unexpected error (KeyError). The key is not "
        "installed. The last good version of the key stays, if there is one."
    )
    assert finding.detail.startswith("KeyError at inspector.py:")
