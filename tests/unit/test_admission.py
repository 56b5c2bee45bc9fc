"""Tests of agent.core.admission, which limits the keys of a node and defines their order."""

from dataclasses import replace
from pathlib import Path

from agent.core import admission
from agent.core.admission import LIMITS, AdmissionBudget, Size
from agent.core.desired import join
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    Inspected,
    KeyId,
    LedgerEntry,
    Pending,
    Profile,
    ProfileKind,
    Read,
    Rejection,
    Snapshot,
    SourceKey,
    Version,
)
from agent.core.vocabulary import Provenance
from agent.heartbeat import Heartbeat
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from agent.inspector import Inspector
from tests.narrowing import instance_of, not_none
from tests.world import MemoryKind, Node, Steps, build_reconciler

KINDS: frozenset[ProfileKind] = frozenset({"apparmor"})


def key(name: str, origin: str = "configmap a/web") -> KeyId:
    return KeyId(kind="apparmor", profile_set=origin, key=name)


def version(*names: str) -> Version:
    return Version(names=names, source_digest="s", body_digest="b")


def entry(
    name: str, *names: str, origin: str = "configmap a/web", installed: bool = True
) -> LedgerEntry:
    installed_version = version(*names) if installed else None
    return LedgerEntry(
        id=key(name, origin),
        provenance=Provenance.INSTALLED,
        installed=installed_version,
        staged=version(*names),
    )


def by_key(*entries: LedgerEntry) -> dict[KeyId, LedgerEntry]:
    return {entry.id: entry for entry in entries}


def profile(
    name: str,
    *names: str,
    size: int = 0,
    warnings: tuple[Finding, ...] = (),
    origin: str = "configmap a/web",
) -> Profile:
    return Profile(
        id=key(name, origin), version=version(*names), source=b"", body_size=size, findings=warnings
    )


def read(origin: str, *names: str, created: str = "") -> Read:
    source_keys = tuple(SourceKey(profile_set=origin, key=name, content=b"x") for name in names)
    return Read(profile_set=origin, revision="", source_keys=source_keys, created=created)


def findings(count: int, code: FindingCode = FindingCode.PARSER_REJECTED) -> tuple[Finding, ...]:
    return tuple(Finding(code=code, location=str(number), message="bad") for number in range(count))


def is_limited(inspected: Inspected) -> bool:
    return isinstance(inspected, Rejection) and inspected.findings[0].code == "limit_exceeded"


def test_keys_are_admitted_by_installation_then_age_then_name() -> None:
    """Installed keys are admitted first, then older keys, then keys in the order of their names. An
    entry without an installed version has no effect on the order.
    """
    snapshots: list[Snapshot] = [
        read("configmap a/new", "a.aa", "installed.aa", created="2026-02-01T00:00:00Z"),
        read("configmap a/old", "staged.aa", "b.aa", created="2026-01-01T00:00:00Z"),
        read("dir /etc/profiles", "z.aa", "README.md", "z.json"),
        Emptied(profile_set="configmap a/empty", revision=""),
    ]
    known = by_key(
        entry("installed.aa", "x", origin="configmap a/new"),
        entry("staged.aa", "y", origin="configmap a/old", installed=False),
    )
    candidates = admission.in_admission_order(snapshots, KINDS, known)
    assert [candidate.source_key.key for candidate in candidates] == [
        "installed.aa",
        "z.aa",
        "b.aa",
        "staged.aa",
        "a.aa",
    ]


def test_a_key_over_the_limit_is_rejected_without_an_inspection() -> None:
    """A key over the limit is rejected before an inspection. Without a ledger entry, such a key is
    only counted.
    """
    inspected: list[str] = []

    def inspect(_: str, source_key: SourceKey) -> Profile:
        inspected.append(source_key.key)
        return profile(source_key.key, source_key.key)

    known = by_key(entry("9.aa", "9"), entry("8.aa", "8", installed=False))
    budget = AdmissionBudget(limits=replace(LIMITS, keys=2, listed=1), entries=known)
    names = [f"{number}.aa" for number in range(10)]
    desired = join([read("configmap a/web", *names)], inspect, KINDS, budget)
    assert inspected == ["9.aa", "0.aa"]
    assert {id_.key for id_ in desired.rejections} == {"1.aa", "8.aa"}
    assert all(map(is_limited, desired.rejections.values()))
    assert desired.unlisted == {"configmap a/web": 6}


def test_names_and_policy_bytes_are_limited() -> None:
    """The number of names and the size of the policy are limited. A rejected key leaves room for a
    smaller key that follows.
    """
    budget = AdmissionBudget(limits=replace(LIMITS, names=3, policy_bytes=10))
    answers = [
        budget.admitted(profile("1", "a", "b", size=5)),
        budget.admitted(profile("2", "c", "d", size=1)),
        budget.admitted(profile("3", "e", size=6)),
        budget.admitted(profile("4", "e", size=5)),
    ]
    assert list(map(is_limited, answers)) == [False, True, True, False]
    assert is_limited(not_none(budget.rejection(key("5"))))
    assert not budget.fits(key("5"), Size(names=1, policy_bytes=1))


def test_no_key_is_inspected_after_a_limit_is_reached() -> None:
    """When a limit has been reached, the agent neither reads the cache nor starts the parser for
    any further key.
    """
    budget = AdmissionBudget(limits=replace(LIMITS, policy_bytes=5))
    assert budget.rejection(key("1")) is None
    budget.admitted(profile("1", "a", size=5))
    assert is_limited(not_none(budget.rejection(key("2"))))


def test_a_full_ledger_admits_no_new_key() -> None:
    """If the ledger is full, only keys that already have a ledger entry are admitted."""
    budget = AdmissionBudget(
        limits=replace(LIMITS, ledger_entries=2), entries=by_key(entry("old", "a"))
    )
    assert is_limited(budget.admitted(profile("old", "a"))) is False
    assert is_limited(budget.admitted(profile("1", "b"))) is False
    assert is_limited(budget.admitted(profile("2", "c")))
    assert is_limited(not_none(budget.rejection(key("3"))))
    assert budget.rejection(key("old")) is None


def test_a_full_ledger_admits_no_new_name() -> None:
    """If the ledger is full, a new version of an installed key may contain only names that its
    entry already has.
    """
    budget = AdmissionBudget(
        limits=replace(LIMITS, ledger_names=3), entries=by_key(entry("old", "a", "b"))
    )
    assert not is_limited(budget.admitted(profile("old", "a", "b")))
    assert not is_limited(budget.admitted(profile("1", "c")))
    assert is_limited(budget.admitted(profile("2", "d")))
    assert budget.size(profile("old", "b", "x")) == Size(names=2, policy_bytes=0, ledger_names=1)


def test_a_rejected_profile_still_claims_names_of_the_ledger() -> None:
    """If a profile is moved to a key that is rejected, the profile stays on the node."""
    budget = AdmissionBudget(limits=replace(LIMITS, names=1), entries=by_key(entry("old", "a")))
    assert instance_of(budget.admitted(profile("new", "a", "b")), Rejection).names == ("a",)


def test_findings_are_limited_and_an_error_remains() -> None:
    """If a report has too many findings, one finding of each key remains. An error has priority
    over a warning.
    """
    budget = AdmissionBudget(limits=replace(LIMITS, findings=1))
    first, second = (
        Rejection(id=key(str(n)), findings=findings(1, FindingCode.COMPLAIN_MODE) + findings(2))
        for n in range(2)
    )
    assert [
        finding.code for finding in instance_of(budget.admitted(first), Rejection).findings
    ] == ["parser_rejected"] * 2
    assert [
        finding.code for finding in instance_of(budget.admitted(second), Rejection).findings
    ] == ["parser_rejected"]
    warned = instance_of(
        budget.admitted(profile("3", "a", warnings=findings(2, FindingCode.COMPLAIN_MODE))),
        Profile,
    )
    assert len(warned.findings) == 1


def test_a_pending_key_does_not_count_for_the_limits() -> None:
    """A pending key does not count for the limits, because its names and its policy are still
    unknown.
    """
    pending = Pending(id=key("1"), source=b"")
    assert AdmissionBudget(limits=replace(LIMITS, names=0)).admitted(pending) is pending


def test_unlisted_keys_are_reported_for_their_set() -> None:
    """For each profile set, one finding contains the number of keys that the report does
    not list.
    """
    finding = admission.unlisted_keys("configmap a/web", 7)
    assert (finding.code, finding.location) == ("limit_exceeded", "configmap a/web")
    assert finding.message.startswith("7 more keys")


class RecordingKind(MemoryKind):
    """A fake backend that records which keys were inspected and discarded."""

    def __init__(self) -> None:
        super().__init__(Node(), Steps())
        self.inspected: list[str] = []
        self.discarded: list[str] = []

    def inspect(self, source_key: SourceKey) -> Profile:
        self.inspected.append(source_key.key)
        return instance_of(super().inspect(source_key), Profile)

    def discard(self, profile: Profile) -> None:
        self.discarded.append(profile.id.key)

    def invalidate(self) -> None:
        pass

    def is_unchanged(self) -> bool:
        return True


class OneSet:
    """A fake source with one profile set."""

    watched_path = None

    def __init__(self) -> None:
        self.source_keys: tuple[SourceKey, ...] = ()

    def provide(self, **texts: bytes) -> None:
        self.source_keys = tuple(
            SourceKey(profile_set="dir /p", key=f"{name}.aa", content=text)
            for name, text in texts.items()
        )

    def read(self) -> tuple[Read]:
        revision = str(hash(self.source_keys))
        return (Read(profile_set="dir /p", revision=revision, source_keys=self.source_keys),)

    def explain_absence(self, set_: str) -> Snapshot | None:
        return None

    def invalidate(self) -> None:
        pass


def test_a_rejected_profile_is_inspected_again_when_the_limits_permit_it(tmp_path: Path) -> None:
    """A key over the limit is inspected again when the limits permit it. Until the limits permit
    the key, the last good version of the key stays.
    """
    (tmp_path / "state").mkdir()
    kind, source = RecordingKind(), OneSet()
    reconciler = build_reconciler([source], kind, FileLedger(Host(str(tmp_path)), "/state"))
    half = b"x" * (admission.LIMITS.policy_bytes // 2 + 1)
    source.provide(a=b"a:" + half, b=b"b:1")
    assert {row.state for row in reconciler.run().profiles} == {"installed"}
    source.provide(a=b"a:" + half, b=b"b:" + half, c=b"c:1")
    report = reconciler.run(full=False)
    states = {row.key: row.state for row in report.profiles}
    assert states == {"a.aa": "installed", "b.aa": "outdated", "c.aa": "installed"}
    assert kind.node.loaded["b"] == b"compiled b:1"
    assert kind.discarded == ["b.aa"]
    kind.inspected.clear()
    source.provide(a=b"a:" + half, b=b"b:" + half, c=b"c:2")
    reconciler.run(full=False)
    assert kind.inspected == ["c.aa"]
    source.provide(a=b"a:1", b=b"b:" + half, c=b"c:2")
    states = {row.key: row.state for row in reconciler.run(full=False).profiles}
    assert set(states.values()) == {"installed"}
    assert kind.inspected == ["c.aa", "a.aa", "b.aa"]


def test_a_key_is_admitted_when_the_ledger_has_room_again() -> None:
    """If a removal makes room in the ledger, the next pass admits the key, although the sources are
    unchanged.
    """
    inspector = Inspector({"apparmor": RecordingKind()}, Heartbeat(lambda: 0.0))
    full = by_key(
        *(entry(f"k{number}", f"n{number}") for number in range(admission.LIMITS.ledger_entries))
    )
    source = OneSet()
    source.provide(new=b"new:1")
    (rejected,) = inspector.desired(source.read(), full).rejections.values()
    assert [finding.code for finding in rejected.findings] == ["limit_exceeded"]
    assert inspector.desired(source.read(), full).profiles == {}
    assert list(inspector.desired(source.read(), {}).profiles) == [key("new.aa", "dir /p")]
