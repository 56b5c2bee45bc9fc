"""Specification of the executor: the steps of each action, and the state after a failure."""

import contextlib
from dataclasses import replace

import pytest

from agent.core import model
from agent.core.actions import Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.findings import Finding
from agent.core.model import InUse, KeyId, LedgerEntry, Pending, SourceKey, Unchecked, UnknownUse
from agent.core.ports import Failed, StillInUse
from agent.core.vocabulary import Reason
from agent.executor import Executor
from tests.world import Killed, MemoryKind, MemoryLedger, Node, Steps, body, token

ORIGIN = "dir /p"
REFUSED = Finding(code="kernel_refused", location="a", message="EPROTO")


def inspected(text=b"a:x", key="one.profile"):
    return MemoryKind(Node(), Steps()).inspect(SourceKey(profile_set=ORIGIN, key=key, content=text))


class FailingKind(MemoryKind):
    """A backend whose kernel returns a fixed result."""

    answer = Failed(finding=REFUSED)
    fitting = True

    def install(self, profile, body, *, replaceable, foreign=()):
        return self.answer

    def remove(self, names, evidence, *, require_unused):
        return self.answer

    def accepts_context(self, context):
        return self.fitting

    def inspect(self, blob):
        return Unchecked(
            id=KeyId(kind=self.name, profile_set=blob.profile_set, key=blob.key), finding=REFUSED
        )


class FailingLedger(MemoryLedger):
    """A ledger whose writes fail after the first `works` writes."""

    works = 0

    def _fails(self):
        self.works -= 1
        return replace(REFUSED, code="write_failed") if self.works < 0 else None

    def write(self, entry):
        return self._fails() or super().write(entry)

    def store_content(self, content):
        return self._fails() or super().store_content(content)

    def delete(self, id_):
        return self._fails() or super().drop(id_)


def act(node, *actions, kind=MemoryKind, ledger=MemoryLedger, dry_run=False):
    runner = Executor(
        backends={"apparmor": kind(node, Steps())},
        ledger=ledger(node, Steps()),
        entries=node.entries,
        clock=lambda: 0.0,
    )
    return runner.execute(actions, dry_run=dry_run)


def put(profile, **more):
    more = {"reason": "new", "replaceable": frozenset(), **more}
    return Install(id=profile.id, names=profile.version.names, profile=profile, **more)


def stored(profile, **more):
    return LedgerEntry(id=profile.id, provenance="installed", installed=profile.version, **more)


def keep_bodies(node, profile):
    node.bodies |= {
        profile.version.source_digest: profile.source,
        profile.version.body_digest: body(profile),
    }


def test_an_installation_ends_with_the_verified_version():
    """After an installation, the ledger has the observed version and no staged version."""
    node, profile = Node(), inspected()
    outcomes = act(node, put(profile))
    assert outcomes == (Outcome(action=put(profile), result="done", version=profile.version),)
    assert node.entries == {profile.id: stored(profile)}
    assert node.loaded == {"a": body(profile)}


def test_a_failed_installation_never_loses_the_last_good_version():
    """After a rejection by the kernel, the entry is unchanged and no version is staged."""
    node, old, new = Node(), inspected(), inspected(b"a:y")
    node.entries = {old.id: stored(old)}
    outcomes = act(node, put(new, replaceable=frozenset({"a"})), kind=FailingKind)
    assert [(one.result, one.findings) for one in outcomes] == [("failed", (REFUSED,))]
    assert node.entries == {old.id: stored(old)}


def test_a_failed_installation_of_a_missing_profile_restores_the_last_good_version():
    """The kernel rejects the newer version after a reboot."""
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:?")
    node.entries = {old.id: stored(old)}
    keep_bodies(node, old)
    back = Install(
        id=old.id, reason="went missing", names=("a", "b"), profile=None, replaceable=frozenset()
    )
    (outcome,) = act(node, put(new, reason="changed", fallback=back))
    assert (outcome.result, [one.code for one in outcome.findings]) == (
        "failed",
        ["kernel_refused"],
    )
    assert (outcome.version, node.loaded) == (old.version, {"a": body(old), "b": body(old)})
    assert node.entries == {old.id: stored(old)}


def test_an_installation_that_the_ledger_cannot_record_restores_the_last_good_version():
    """The restoration needs no write to the ledger."""
    node, old, new = Node(full=True), inspected(), inspected(b"a:y")
    node.entries = {old.id: stored(old)}
    keep_bodies(node, old)
    back = Install(
        id=old.id, reason="went missing", names=("a",), profile=None, replaceable=frozenset()
    )
    (outcome,) = act(node, put(new, reason="changed", fallback=back))
    assert (outcome.result, node.loaded) == ("failed", {"a": body(old)})


def test_names_that_a_failed_installation_would_have_moved_stay_with_their_key():
    """A rejected key under a new name does not change the installed version."""
    node, old, new = Node(), inspected(b"a,b:x", "old"), inspected(b"a:?", "new")
    node.entries, node.loaded = {old.id: stored(old)}, {"a": body(old), "b": body(old)}
    refused = put(
        new, reason="changed", replaceable=frozenset({"a"}), previous_owners=frozenset({old.id})
    )
    release = Release(id=old.id, reason=Reason.MOVED, names=("a",))
    remove = Remove(
        id=old.id,
        reason="not desired",
        names=("b",),
        evidence={"b": token(body(old))},
        require_unused=True,
    )
    assert [one.result for one in act(node, refused, release, remove)] == [
        "failed",
        "held",
        "held",
    ]
    assert (node.entries, sorted(node.loaded)) == ({old.id: stored(old)}, ["a", "b"])


def test_names_that_a_failed_installation_would_have_dropped_stay():
    """The profile is a part of the last good version."""
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:?")
    node.entries, node.loaded = {old.id: stored(old)}, {"a": body(old), "b": body(old)}
    remove = Remove(
        id=old.id,
        reason="not desired",
        names=("b",),
        evidence={"b": token(body(old))},
        require_unused=True,
    )
    outcomes = act(node, put(new, reason="changed", replaceable=frozenset({"a"})), remove)
    assert [one.result for one in outcomes] == ["failed", "held"]
    assert (node.entries, sorted(node.loaded)) == ({old.id: stored(old)}, ["a", "b"])


def test_names_of_an_older_version_are_removed_although_an_installation_failed():
    """The last good version does not contain the profile."""
    node, old, new = Node(), inspected(), inspected(b"a:?")
    node.entries = {old.id: stored(old, retired={"b": token(b"older")})}
    node.install({"a": body(old), "b": b"older"})
    remove = Remove(
        id=old.id,
        reason="not desired",
        names=("b",),
        evidence={"b": token(b"older")},
        require_unused=True,
    )
    outcomes = act(node, put(new, reason="changed", replaceable=frozenset({"a"})), remove)
    assert [one.result for one in outcomes] == ["failed", "done"]
    assert (node.entries, sorted(node.loaded)) == ({old.id: stored(old)}, ["a"])


def test_a_name_moves_only_once_another_entry_has_it():
    """If the installation fails, the previous entry still owns the profile."""
    node, old = Node(), inspected()
    node.entries, node.loaded = {old.id: stored(old)}, {"a": body(old)}
    release = Release(id=old.id, reason=Reason.MOVED, names=("a",))
    failed = put(inspected(b"a:?", "new"), reason="changed", replaceable=frozenset({"a"}))
    assert [one.result for one in act(node, failed, release)] == ["failed", "held"]
    assert node.entries == {old.id: stored(old)}
    new = inspected(b"a:y", "new")
    moved = put(new, reason="changed", replaceable=frozenset({"a"}))
    assert [one.result for one in act(node, moved, release)] == ["done", "done"]
    assert node.entries == {new.id: stored(new)}


def test_a_failed_first_installation_leaves_no_entry():
    """A profile that was never on the node is not in the ledger."""
    node = Node()
    act(node, put(inspected()), kind=FailingKind)
    assert node.entries == {}


def test_an_unverified_installation_stays_staged():
    """The ledger records a version that may be on the node, so that it can be replaced later."""
    kind = type(
        "Kind", (FailingKind,), {"answer": Failed(finding=replace(REFUSED, code="verify_failed"))}
    )
    node, profile = Node(), inspected()
    act(node, put(profile), kind=kind)
    assert node.entries == {
        profile.id: LedgerEntry(id=profile.id, provenance="installed", staged=profile.version)
    }


def test_each_failed_write_of_the_ledger_fails_the_installation():
    """An installation is complete only with its entry, and starts only with a staged version."""
    results = []
    for works in range(4):
        node = Node()
        ledger = type("Ledger", (FailingLedger,), {"works": works})
        (outcome,) = act(node, put(inspected()), ledger=ledger)
        results.append((outcome.result, sorted(node.loaded), len(node.entries)))
    assert results == [
        ("failed", [], 0),
        ("failed", [], 0),
        ("failed", [], 0),
        ("failed", ["a"], 1),
    ]


def test_names_that_a_version_drops_stay_agent_owned():
    """The kernel keeps a dropped child loaded, so the ledger remembers it."""
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:y")
    node.loaded = {"a": body(old), "b": body(old)}
    node.entries = {old.id: stored(old)}
    act(node, put(new, replaceable=frozenset({"a"})))
    assert node.entries == {new.id: stored(new, retired={"b": token(body(old))})}


def test_names_that_were_only_adopted_are_not_agent_owned():
    """After the replacement of an adopted profile, the agent owns only the new profiles."""
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:y")
    node.entries = {old.id: replace(stored(old), provenance="adopted")}
    act(node, put(new, replaceable=frozenset({"a"})))
    assert node.entries == {new.id: stored(new)}


def restoring(profile):
    return Install(
        id=profile.id,
        reason="went missing",
        names=profile.version.names,
        profile=None,
        replaceable=frozenset(),
    )


def test_the_last_good_version_is_restored_from_the_ledger_alone():
    """Restoring needs neither the source nor a compilation."""
    node, profile = Node(), inspected()
    keep_bodies(node, profile)
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, restoring(profile))
    assert (outcome.result, node.loaded) == ("done", {"a": body(profile)})


def test_a_version_for_another_kernel_is_checked_again():
    """A body for another kernel is compiled again from the source in the ledger."""
    kind = type("Kind", (MemoryKind,), {"accepts_context": lambda _, __: False})
    node, profile = Node(), inspected()
    keep_bodies(node, profile)
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, restoring(profile), kind=kind)
    assert (outcome.result, node.loaded) == ("done", {"a": body(profile)})


def test_a_failed_restoration_has_a_reason():
    """Lost bytes, a rejected text, another name and a missing parser each cause a finding."""
    profile = inspected()
    bad = inspected(b"a:x")
    never = type("Kind", (FailingKind,), {"fitting": False})
    misfit = type("Kind", (MemoryKind,), {"accepts_context": lambda _, __: False})
    cases = []
    for kind, bodies in (
        (MemoryKind, {}),
        (never, None),
        (misfit, {bad.version.source_digest: b"!"}),
        (misfit, {bad.version.source_digest: b"b:x"}),  # like a renamed source
    ):
        node = Node(entries={profile.id: stored(profile)})
        keep_bodies(node, profile)
        if bodies is not None:
            node.bodies = bodies
        (outcome,) = act(node, restoring(profile), kind=kind)
        cases.append((outcome.result, outcome.findings[0].code))
    node = Node(entries={profile.id: LedgerEntry(id=profile.id, provenance="installed")})
    (outcome,) = act(node, restoring(profile))
    cases.append((outcome.result, outcome.findings[0].code))
    assert cases == [
        ("failed", "ledger_damaged"),
        ("failed", "kernel_refused"),
        ("failed", "parser_rejected"),
        ("failed", "ledger_damaged"),
        ("failed", "ledger_damaged"),
    ]


class ForgetfulKind(MemoryKind):
    """A backend that lost the body of a profile and must check its source again."""

    answer = None
    """The result of the new inspection; None: the profile with a new body."""

    has_body = False

    def body(self, profile):
        return super().body(profile) if self.has_body else None

    def inspect(self, blob):
        if self.answer is not None:
            return self.answer
        self.has_body = True
        return super().inspect(blob)


def waits(profile):
    """Return a backend that lost a body, and compiles it again in the background."""
    answer = Pending(id=profile.id, source=profile.source)
    return type("Kind", (ForgetfulKind,), {"answer": answer})


def test_a_lost_body_is_made_again_from_its_source():
    """The cache of compiled policies may lose an entry between a check and the installation."""
    node, profile = Node(), inspected()
    (outcome,) = act(node, put(profile), kind=ForgetfulKind)
    assert (outcome.result, node.loaded) == ("done", {"a": body(profile)})


def test_a_profile_whose_body_is_compiled_again_is_pending():
    """The last good version is restored at once if the node lacks it."""
    node, old, new = Node(), inspected(), inspected(b"a:y")
    node.entries = {old.id: stored(old)}
    keep_bodies(node, old)
    action = put(new, reason="changed", fallback=restoring(old))
    (outcome,) = act(node, action, kind=waits(new))
    assert (outcome.result, node.loaded) == ("pending", {"a": body(old)})
    assert node.entries == {old.id: stored(old)}


def test_an_adopted_profile_whose_body_is_compiled_again_is_pending():
    """The ledger records a profile only with its body."""
    node, profile = Node(), inspected()
    node.loaded = {"a": body(profile)}
    (outcome,) = act(node, adopting(profile), kind=waits(profile))
    assert (outcome.result, node.entries) == ("pending", {})
    refuses = type("Kind", (ForgetfulKind,), {"answer": inspected(b"!")})
    (outcome,) = act(node, adopting(profile), kind=refuses)
    assert (outcome.result, outcome.findings[0].code) == ("failed", "parser_rejected")
    changed = type("Kind", (MemoryKind,), {"body": lambda *_: None})
    (outcome,) = act(node, adopting(profile), kind=changed)
    assert (outcome.result, outcome.findings[0].code) == ("failed", "ledger_damaged")


def test_other_bytes_from_a_new_check_are_not_recorded_for_the_old_version():
    """The next full pass decides about the version that the new check made."""
    node, old, new = Node(), inspected(), inspected(b"a:y")
    node.loaded = {"a": body(old)}
    answers = {"answer": new, "body": lambda _, profile: body(new) if profile == new else None}
    (outcome,) = act(node, adopting(old), kind=type("Kind", (ForgetfulKind,), answers))
    assert (outcome.result, node.entries) == ("pending", {})


def adopting(profile):
    return Adopt(
        id=profile.id,
        reason="same content",
        names=("a",),
        profile=profile,
        evidence={"a": token(body(profile))},
    )


def test_adopting_only_writes_the_ledger():
    """The ledger records that an adopted profile is foreign."""
    node, profile = Node(), inspected()
    node.loaded = {"a": body(profile)}
    act(node, adopting(profile))
    assert node.entries == {profile.id: replace(stored(profile), provenance="adopted")}


def test_keeping_an_unchanged_profile_writes_nothing():
    """A pass over an unchanged node needs no write."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    keep_bodies(node, profile)
    keep = Keep(
        id=profile.id,
        reason="unchanged",
        names=("a",),
        profile=profile,
        evidence={"a": token(body(profile))},
        provenance="installed",
    )
    (outcome,) = act(node, keep, ledger=FailingLedger)
    assert (outcome.result, outcome.findings) == ("done", ())


def test_adopting_another_version_takes_its_mode():
    """The ledger records the mode of the recorded version."""
    node, old, new = Node(), inspected(), inspected(b"a:y")
    old = replace(old, version=replace(old.version, modes={"a": "complain"}))
    new = replace(new, version=replace(new.version, modes={"a": "enforce"}))
    node.loaded = {"a": body(new)}
    node.entries = {old.id: stored(old)}
    adopt = Adopt(
        id=new.id, reason="same", names=("a",), profile=new, evidence={"a": token(body(new))}
    )
    act(node, adopt)
    assert node.entries == {
        new.id: LedgerEntry(id=new.id, provenance="adopted", installed=new.version)
    }


def test_an_adoption_keeps_the_version_that_was_installed_before():
    """The ledger keeps the earlier version, which stays installed while processes use it."""
    node, old, new = Node(), inspected(), inspected(b"b:x")
    node.entries = {old.id: stored(old)}
    evidence = {"b": token(body(new))}
    adopt = Adopt(id=new.id, reason="same", names=("b",), profile=new, evidence=evidence)
    assert [one.result for one in act(node, adopt)] == ["done"]
    assert node.entries == {
        new.id: LedgerEntry(
            id=new.id, provenance="adopted", installed=new.version, retired={"a": token(body(old))}
        )
    }


def removing(profile):
    return Remove(
        id=profile.id,
        reason="not desired",
        names=profile.version.names,
        evidence=profile.version.evidence,
        require_unused=True,
    )


def test_a_removed_profile_leaves_node_and_ledger():
    """After a removal, neither the node nor the ledger has the profile."""
    node, profile = Node(), inspected()
    node.install({"a": body(profile)})
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, removing(profile))
    assert (outcome.result, node.loaded, node.entries) == ("done", {}, {})


@pytest.mark.parametrize(
    ("use", "code"),
    [(InUse(pids=(7,)), "in_use"), (UnknownUse(reason="a new process"), "use_unknown")],
)
def test_a_profile_that_the_backend_finds_in_use_is_held(use, code):
    """The backend checks the use once more right before the removal."""
    answer = StillInUse(uses={"a": use})
    kind = type("Kind", (FailingKind,), {"answer": answer})
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, removing(profile), kind=kind)
    assert (outcome.result, [one.code for one in outcome.findings]) == ("held", [code])
    assert node.entries == {profile.id: stored(profile)}


def test_a_failed_removal_stays_on_record():
    """A later pass repeats the removal."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, removing(profile), kind=FailingKind)
    assert (outcome.result, node.entries) == ("failed", {profile.id: stored(profile)})


def test_a_part_that_stays_is_still_agent_owned():
    """If only some profiles of a key can be removed, the ledger keeps the others."""
    node, profile = Node(), inspected(b"a,b:x")
    node.install({"a": body(profile), "b": body(profile)})
    node.entries = {profile.id: stored(profile)}
    action = replace(removing(profile), names=("a",))
    act(node, action)
    expected = LedgerEntry(
        id=profile.id, provenance="installed", retired={"b": token(body(profile))}
    )
    assert node.entries == {profile.id: expected}


def test_a_release_drops_only_the_given_names():
    """A released name leaves the ledger; the installed version stays."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile, retired={"b": token(b"b")})}
    release = Release(id=profile.id, reason="absent", names=("b",))
    act(node, release)
    assert node.entries == {profile.id: stored(profile)}
    assert [one.result for one in act(Node(), release)] == ["done"]


def test_a_failed_release_is_reported():
    """A ledger that cannot be written fails the action, not the pass."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    release = Release(id=profile.id, reason="absent", names=("a",))
    (outcome,) = act(node, release, ledger=FailingLedger)
    assert (outcome.result, [one.code for one in outcome.findings]) == ("failed", ["write_failed"])


def test_a_dry_run_only_reports_a_preview():
    """Every action has a preview, and no action is carried out."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    hold = Hold(id=profile.id, reason="rejected", names=("a",), state="outdated")
    other = KeyId(kind="apparmor", profile_set=ORIGIN, key="other")
    keep = Keep(
        id=profile.id,
        reason="unchanged",
        names=("a",),
        profile=profile,
        evidence={},
        provenance="installed",
    )
    actions = (put(profile), keep, hold, replace(hold, id=other), removing(profile))
    outcomes = act(node, *actions, dry_run=True, kind=FailingKind, ledger=FailingLedger)
    assert [(one.result, one.version) for one in outcomes] == [
        ("planned", profile.version),
        ("done", profile.version),
        ("held", profile.version),
        ("held", None),
        ("planned", profile.version),
    ]
    release = Release(id=other, reason="absent", names=("a",))
    assert [one.version for one in act(node, release, dry_run=True)] == [None]


def test_held_profiles_are_reported_with_their_version():
    """A hold changes nothing and reports the installed version."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    hold = Hold(id=profile.id, reason="rejected", names=("a",), state="outdated")
    assert act(node, hold) == (Outcome(action=hold, result="held", version=profile.version),)


def test_the_digest_of_a_body_is_its_sha256():
    """The name of a body depends only on its content."""
    assert model.digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# --- missing profiles -----------------------------------------------------------------------------


class NoWrites(MemoryLedger):
    """A ledger that rejects writes."""

    def write(self, entry):
        raise AssertionError(f"written: {entry}")


def put_back(node, profile, ledger):
    return act(node, put(profile, reason="went missing"), ledger=ledger)


def test_a_missing_profile_is_restored_without_a_write():
    """The ledger has the same version already, with the evidence that the node showed."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    (outcome,) = put_back(node, profile, NoWrites)
    assert (outcome.result, node.loaded) == ("done", {"a": body(profile)})


def test_a_version_of_which_too_little_is_known_is_staged_first():
    """The expected evidence is recorded before the installation, so that it proves ownership."""
    node, profile = Node(), inspected()
    less = replace(profile, version=replace(profile.version, evidence={}))
    node.entries = {profile.id: stored(less)}
    steps = Steps(fatal=3)  # both bodies are stored, the entry is staged, then the process ends
    runner = Executor(
        backends={"apparmor": MemoryKind(node, steps)},
        ledger=MemoryLedger(node, steps),
        entries=node.entries,
        clock=lambda: 0.0,
    )
    with contextlib.suppress(Killed):
        runner.execute([put(profile, reason="went missing")])
    assert node.entries[profile.id].staged == profile.version


def test_an_entry_that_differs_in_anything_is_written():
    """The installation also clears retired and staged versions of the entry."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile, retired={"b": token(b"x")}, staged=profile.version)}
    put_back(node, profile, MemoryLedger)
    assert node.entries == {profile.id: stored(profile, retired={"b": token(b"x")})}


def test_installations_come_before_actions_that_only_write_the_ledger():
    """Installations come first, and the other actions keep their order."""
    node, profile = Node(), inspected()
    hold = Hold(id=profile.id, reason="rejected", names=("a",), state="outdated")
    actions = (hold, removing(profile), put(profile), replace(hold, reason="other"))
    outcomes = act(node, *actions, dry_run=True)
    expected = [actions[2], actions[0], actions[1], actions[3]]
    assert [one.action for one in outcomes] == expected


def test_another_text_of_the_same_policy_is_staged_first():
    """Only the recorded version is restored without a write to the ledger."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    other = replace(profile, version=replace(profile.version, source_digest="other"))
    steps = Steps(fatal=3)
    runner = Executor(
        backends={"apparmor": MemoryKind(node, steps)},
        ledger=MemoryLedger(node, steps),
        entries=node.entries,
        clock=lambda: 0.0,
    )
    with contextlib.suppress(Killed):
        runner.execute([put(other, reason="changed")])
    assert node.entries[profile.id].staged == other.version


class SlowKind(FailingKind):
    """A backend whose checks have not finished yet."""

    fitting = False

    def inspect(self, blob):
        id_ = KeyId(kind=self.name, profile_set=blob.profile_set, key=blob.key)
        return model.Pending(id=id_, source=blob.content, findings=(REFUSED,))


def test_a_last_good_version_that_must_be_compiled_again_is_pending():
    """After a change of the kernel, the source is compiled first, and the report has no error."""
    node = Node()
    good = inspected()
    act(
        node, Install(id=good.id, reason="new", names=("a",), profile=good, replaceable=frozenset())
    )
    restore = Install(
        id=good.id, reason="went missing", names=("a",), profile=None, replaceable=frozenset()
    )
    release = Release(id=good.id, reason="absent", names=("a",))
    outcomes = act(node, restore, release, kind=SlowKind)
    assert [(one.result, one.findings) for one in outcomes] == [
        ("pending", (REFUSED,)),
        ("held", ()),
    ]


def test_a_replacement_updates_the_entries_of_the_same_version():
    """A failed write of an entry is reported, and the next pass repeats it."""
    node = Node(readable=False)
    first, second = inspected(key="a.profile"), inspected(key="b.profile")
    act(
        node,
        Install(id=first.id, reason="new", names=("a",), profile=first, replaceable=frozenset()),
    )
    put = Install(
        id=second.id, reason="new", names=("a",), profile=second, replaceable=frozenset({"a"})
    )

    class FullAtLast(FailingLedger):
        works = 4  # source, body, staged version, installed version

    (failed,) = act(node, put, ledger=FullAtLast)
    assert (failed.result, [one.code for one in failed.findings]) == ("failed", ["write_failed"])
    act(node, replace(put, reason="drifted"))
    evidence = [entry.installed.evidence for entry in node.entries.values()]
    assert evidence[0] == evidence[1]
