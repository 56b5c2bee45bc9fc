"""Which keys have room: totals over all profile sets, and the order in which room is given."""

from agent.core import admission
from agent.core.admission import AdmissionBudget, Limits, Size
from agent.core.desired import join
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    KeyId,
    LedgerEntry,
    Pending,
    Profile,
    Read,
    Rejection,
    SourceKey,
    Version,
)
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from tests.world import MemoryKind, Node, Steps, build_reconciler

KINDS = frozenset({"apparmor"})


def key(name, origin="configmap a/web"):
    return KeyId(kind="apparmor", profile_set=origin, key=name)


def version(*names):
    return Version(names=names, source_digest="s", body_digest="b")


def entry(name, *names, origin="configmap a/web", installed=True):
    mine = version(*names) if installed else None
    return LedgerEntry(
        id=key(name, origin), provenance="installed", installed=mine, staged=version(*names)
    )


def entries(*found):
    return {one.id: one for one in found}


def profile(name, *names, size=0, remarks=(), origin="configmap a/web"):
    return Profile(
        id=key(name, origin), version=version(*names), source=b"", body_size=size, findings=remarks
    )


def read(origin, *names, created=""):
    blobs = tuple(SourceKey(profile_set=origin, key=name, content=b"x") for name in names)
    return Read(profile_set=origin, revision="", source_keys=blobs, created=created)


def findings(count, code="parser_rejected"):
    return tuple(Finding(code=code, location=str(one), message="bad") for one in range(count))


def is_limited(inspected):
    return isinstance(inspected, Rejection) and inspected.findings[0].code == "limit_exceeded"


def test_installed_keys_come_first_then_older_sets_then_names():
    """An entry without an installed version gives no precedence."""
    snapshots = [
        read("configmap a/new", "a.aa", "installed.aa", created="2026-02-01T00:00:00Z"),
        read("configmap a/old", "staged.aa", "b.aa", created="2026-01-01T00:00:00Z"),
        read("dir /etc/profiles", "z.aa", "README.md", "z.json"),
        Emptied(profile_set="configmap a/empty", revision=""),
    ]
    known = entries(
        entry("installed.aa", "x", origin="configmap a/new"),
        entry("staged.aa", "y", origin="configmap a/old", installed=False),
    )
    found = admission.in_admission_order(snapshots, KINDS, known)
    assert [one.source_key.key for one in found] == [
        "installed.aa",
        "z.aa",
        "b.aa",
        "staged.aa",
        "a.aa",
    ]


def test_a_key_beyond_the_total_is_rejected_before_it_is_inspected():
    """Keys beyond the limit are only counted, unless they have a ledger entry."""
    inspected = []

    def inspect(_, blob):
        inspected.append(blob.key)
        return profile(blob.key, blob.key)

    known = entries(entry("9.aa", "9"), entry("8.aa", "8", installed=False))
    room = AdmissionBudget(limits=Limits(keys=2, listed=1), entries=known)
    names = [f"{number}.aa" for number in range(10)]
    desired = join([read("configmap a/web", *names)], inspect, KINDS, room)
    assert inspected == ["9.aa", "0.aa"]
    assert {id_.key for id_ in desired.rejections} == {"1.aa", "8.aa"}
    assert all(map(is_limited, desired.rejections.values()))
    assert desired.unlisted == {"configmap a/web": 6}


def test_names_and_policy_bytes_have_totals():
    """A profile that does not fit takes no room from a smaller one behind it."""
    room = AdmissionBudget(limits=Limits(names=3, policy_bytes=10))
    answers = [
        room.admitted(profile("1", "a", "b", size=5)),
        room.admitted(profile("2", "c", "d", size=1)),
        room.admitted(profile("3", "e", size=6)),
        room.admitted(profile("4", "e", size=5)),
    ]
    assert list(map(is_limited, answers)) == [False, True, True, False]
    assert is_limited(room.rejection(key("5")))
    assert not room.fits(key("5"), Size(names=1, policy_bytes=1))


def test_no_key_is_inspected_once_a_total_is_used_up():
    """Neither the cache is read nor the parser started for such a key."""
    room = AdmissionBudget(limits=Limits(policy_bytes=5))
    assert room.rejection(key("1")) is None
    room.admitted(profile("1", "a", size=5))
    assert is_limited(room.rejection(key("2")))


def test_new_keys_need_room_in_the_ledger():
    """A key that has an entry is admitted however full the ledger is."""
    room = AdmissionBudget(limits=Limits(ledger_entries=2), entries=entries(entry("old", "a")))
    assert is_limited(room.admitted(profile("old", "a"))) is False
    assert is_limited(room.admitted(profile("1", "b"))) is False
    assert is_limited(room.admitted(profile("2", "c")))
    assert is_limited(room.rejection(key("3")))
    assert room.rejection(key("old")) is None


def test_new_names_need_room_in_the_ledger():
    """The next version of an installed key may have the names that its entry owns."""
    room = AdmissionBudget(limits=Limits(ledger_names=3), entries=entries(entry("old", "a", "b")))
    assert not is_limited(room.admitted(profile("old", "a", "b")))
    assert not is_limited(room.admitted(profile("1", "c")))
    assert is_limited(room.admitted(profile("2", "d")))
    assert room.size(profile("old", "b", "x")) == Size(names=2, policy_bytes=0, ledger_names=1)


def test_names_of_ledger_entries_stay_claimed_by_a_profile_without_room():
    """A profile that moved to a key without room is not removed from the node."""
    room = AdmissionBudget(limits=Limits(names=1), entries=entries(entry("old", "a")))
    assert room.admitted(profile("new", "a", "b")).names == ("a",)


def test_findings_have_a_total_and_an_error_remains():
    """Above the total limit, one finding for each key remains, and errors take precedence."""
    room = AdmissionBudget(limits=Limits(findings=1))
    one, two = (
        Rejection(id=key(str(n)), findings=findings(1, "complain_mode") + findings(2))
        for n in range(2)
    )
    assert [one.code for one in room.admitted(one).findings] == ["parser_rejected"] * 2
    assert [one.code for one in room.admitted(two).findings] == ["parser_rejected"]
    warned = room.admitted(profile("3", "a", remarks=findings(2, "complain_mode")))
    assert len(warned.findings) == 1


def test_a_pending_key_takes_no_room():
    """The names and the policy of a pending key are not known yet."""
    pending = Pending(id=key("1"), source=b"")
    assert AdmissionBudget(limits=Limits(names=0)).admitted(pending) is pending


def test_keys_that_are_not_listed_are_reported_for_their_set():
    """The finding has the number of keys and the code."""
    finding = admission.unlisted_keys("configmap a/web", 7)
    assert (finding.code, finding.location) == ("limit_exceeded", "configmap a/web")
    assert finding.message.startswith("7 more keys")


class RecordingKind(MemoryKind):
    """A kind that records which keys were inspected and discarded."""

    def __init__(self):
        super().__init__(Node(), Steps())
        self.inspected, self.discarded = [], []

    def inspect(self, blob):
        self.inspected.append(blob.key)
        return super().inspect(blob)

    def discard(self, profile):
        self.discarded.append(profile.id.key)

    def invalidate(self):
        pass

    def is_unchanged(self):
        return True


class OneSet:
    """A source of one profile set."""

    watched_path = None

    def __init__(self):
        self.source_keys = ()

    def provide(self, **texts):
        self.source_keys = tuple(
            SourceKey(profile_set="dir /p", key=f"{name}.aa", content=text)
            for name, text in texts.items()
        )

    def read(self):
        revision = str(hash(self.source_keys))
        return (Read(profile_set="dir /p", revision=revision, source_keys=self.source_keys),)

    def explain_absence(self, set_):
        return None

    def invalidate(self):
        pass


def test_a_pass_drops_what_has_no_room_and_inspects_it_again_once_there_is_room(tmp_path):
    """A profile without room is inspected once per full pass, and its last version stays."""
    (tmp_path / "state").mkdir()
    kind, source = RecordingKind(), OneSet()
    one = build_reconciler([source], kind, FileLedger(Host(str(tmp_path)), "/state"))
    half = b"x" * (admission.LIMITS.policy_bytes // 2 + 1)
    source.provide(a=b"a:" + half, b=b"b:1")
    assert {row.state for row in one.run().profiles} == {"installed"}
    source.provide(a=b"a:" + half, b=b"b:" + half, c=b"c:1")
    report = one.run(full=False)
    states = {row.key: row.state for row in report.profiles}
    assert states == {"a.aa": "installed", "b.aa": "outdated", "c.aa": "installed"}
    assert kind.node.loaded["b"] == b"compiled b:1"
    assert kind.discarded == ["b.aa"]
    kind.inspected.clear()
    source.provide(a=b"a:" + half, b=b"b:" + half, c=b"c:2")
    one.run(full=False)
    assert kind.inspected == ["c.aa"]
    source.provide(a=b"a:1", b=b"b:" + half, c=b"c:2")
    states = {row.key: row.state for row in one.run(full=False).profiles}
    assert set(states.values()) == {"installed"}
    assert kind.inspected == ["c.aa", "a.aa", "b.aa"]
