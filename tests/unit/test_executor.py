"""Tests of the executor: the steps of each action, and the state after a failure."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest

from agent.core import model
from agent.core.actions import Action, Adopt, Hold, Install, Keep, Outcome, Release, Remove
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import InUse, KeyId, LedgerEntry, Pending, SourceKey, Unchecked, UnknownUse
from agent.core.ports import Failed, Installed, StillInUse
from agent.core.vocabulary import OutcomeResult, ProfileState, Provenance, Reason
from agent.executor import Executor
from tests.narrowing import instance_of, not_none
from tests.world import Killed, MemoryKind, MemoryLedger, Node, Steps, body, token

ORIGIN = "dir /p"
FAILURE = Finding(code=FindingCode.KERNEL_REFUSED, location="a", message="EPROTO")


def inspected(text: bytes = b"a:x", key: str = "one.profile") -> model.Profile:
    source_key = SourceKey(profile_set=ORIGIN, key=key, content=text)
    return instance_of(MemoryKind(Node(), Steps()).inspect(source_key), model.Profile)


class FailingKind(MemoryKind):
    """A fake backend whose kernel returns a fixed result."""

    result: Failed | StillInUse = Failed(finding=FAILURE)
    has_valid_context = True

    def install(
        self,
        profile: model.Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Failed | Installed:
        return instance_of(self.result, Failed)

    def remove(
        self,
        names: Collection[str],
        evidence: Mapping[str, model.Evidence],
        *,
        require_unused: bool,
    ) -> Failed | StillInUse:
        return self.result

    def accepts_context(self, context: str) -> bool:
        return self.has_valid_context

    def inspect(self, source_key: model.SourceKey) -> model.Inspected:
        return Unchecked(
            id=KeyId(kind=self.name, profile_set=source_key.profile_set, key=source_key.key),
            finding=FAILURE,
        )


class FailingLedger(MemoryLedger):
    """A fake ledger. After the first `successful_writes` writes, every write fails."""

    successful_writes = 0

    def _fails(self) -> Finding | None:
        self.successful_writes -= 1
        return (
            replace(FAILURE, code=FindingCode.WRITE_FAILED) if self.successful_writes < 0 else None
        )

    def write(self, entry: model.LedgerEntry) -> Finding | None:
        return self._fails() or super().write(entry)

    def store_content(self, content: bytes) -> Finding | None:
        return self._fails() or super().store_content(content)

    def delete(self, id_: model.KeyId) -> Finding | None:
        return self._fails() or super().delete(id_)


def act(
    node: Node,
    *actions: Action,
    kind: type[MemoryKind] = MemoryKind,
    ledger: type[MemoryLedger] = MemoryLedger,
    dry_run: bool = False,
) -> tuple[Outcome, ...]:
    runner = Executor(
        backends={"apparmor": kind(node, Steps())},
        ledger=ledger(node, Steps()),
        entries=node.entries,
        clock=lambda: 0.0,
    )
    return runner.execute(actions, dry_run=dry_run)


def installing(profile: model.Profile, **more: Any) -> Install:
    more = {"reason": "new", "replaceable": frozenset(), **more}
    return Install(id=profile.id, names=profile.version.names, profile=profile, **more)


def stored(profile: model.Profile, **more: Any) -> model.LedgerEntry:
    return LedgerEntry(
        id=profile.id, provenance=Provenance.INSTALLED, installed=profile.version, **more
    )


def keep_bodies(node: Node, profile: model.Profile) -> None:
    node.bodies |= {
        profile.version.source_digest: profile.source,
        profile.version.body_digest: body(profile),
    }


def test_an_installation_ends_with_the_verified_version_in_the_ledger() -> None:
    """After an installation, the ledger contains the observed version and no staged version."""
    node, profile = Node(), inspected()
    outcomes = act(node, installing(profile))
    assert outcomes == (
        Outcome(
            action=installing(profile),
            result=OutcomeResult.DONE,
            version=profile.version,
        ),
    )
    assert node.entries == {profile.id: stored(profile)}
    assert node.loaded == {"a": body(profile)}


def test_a_failed_installation_keeps_the_last_good_version() -> None:
    """If the kernel rejects a new version, the ledger still contains the last good version, and no
    version is staged.
    """
    node, old, new = Node(), inspected(), inspected(b"a:y")
    node.entries = {old.id: stored(old)}
    outcomes = act(
        node,
        installing(new, replaceable=frozenset({"a"})),
        kind=FailingKind,
    )
    assert [(outcome.result, outcome.findings) for outcome in outcomes] == [("failed", (FAILURE,))]
    assert node.entries == {old.id: stored(old)}


def test_a_failed_installation_of_a_missing_profile_restores_the_last_good_version() -> None:
    """If the kernel rejects a new version after a reboot, the executor loads the last good
    version.
    """
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:?")
    node.entries = {old.id: stored(old)}
    keep_bodies(node, old)
    fallback = Install(
        id=old.id,
        reason=Reason.WENT_MISSING,
        names=("a", "b"),
        profile=None,
        replaceable=frozenset(),
    )
    (outcome,) = act(node, installing(new, reason="changed", fallback=fallback))
    assert (outcome.result, [finding.code for finding in outcome.findings]) == (
        "failed",
        ["kernel_refused"],
    )
    assert (outcome.version, node.loaded) == (
        old.version,
        {"a": body(old), "b": body(old)},
    )
    assert node.entries == {old.id: stored(old)}


def test_a_failed_write_of_the_ledger_restores_the_last_good_version() -> None:
    """If the ledger cannot be written, the executor still restores the last good version."""
    node, old, new = Node(full=True), inspected(), inspected(b"a:y")
    node.entries = {old.id: stored(old)}
    keep_bodies(node, old)
    fallback = Install(
        id=old.id, reason=Reason.WENT_MISSING, names=("a",), profile=None, replaceable=frozenset()
    )
    (outcome,) = act(node, installing(new, reason="changed", fallback=fallback))
    assert (outcome.result, node.loaded) == ("failed", {"a": body(old)})


def test_a_failed_installation_leaves_names_with_their_previous_key() -> None:
    """If the installation of a renamed key fails, the installed version stays unchanged."""
    node, old, new = Node(), inspected(b"a,b:x", "old"), inspected(b"a:?", "new")
    node.entries, node.loaded = (
        {old.id: stored(old)},
        {"a": body(old), "b": body(old)},
    )
    rejected = installing(
        new,
        reason="changed",
        replaceable=frozenset({"a"}),
        previous_owners=frozenset({old.id}),
    )
    release = Release(id=old.id, reason=Reason.MOVED, names=("a",))
    remove = Remove(
        id=old.id,
        reason=Reason.NOT_DESIRED,
        names=("b",),
        evidence={"b": token(body(old))},
        require_unused=True,
    )
    assert [outcome.result for outcome in act(node, rejected, release, remove)] == [
        "failed",
        "held",
        "held",
    ]
    assert (node.entries, sorted(node.loaded)) == (
        {old.id: stored(old)},
        ["a", "b"],
    )


def test_names_that_a_failed_update_drops_are_not_removed() -> None:
    """If an update fails, the executor does not remove a name that only the last good version
    contains.
    """
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:?")
    node.entries, node.loaded = (
        {old.id: stored(old)},
        {"a": body(old), "b": body(old)},
    )
    remove = Remove(
        id=old.id,
        reason=Reason.NOT_DESIRED,
        names=("b",),
        evidence={"b": token(body(old))},
        require_unused=True,
    )
    outcomes = act(
        node,
        installing(new, reason="changed", replaceable=frozenset({"a"})),
        remove,
    )
    assert [outcome.result for outcome in outcomes] == ["failed", "held"]
    assert (node.entries, sorted(node.loaded)) == (
        {old.id: stored(old)},
        ["a", "b"],
    )


def test_a_retired_name_is_removed_even_if_an_update_failed() -> None:
    """The executor removes a retired name even if the update of its key failed."""
    node, old, new = Node(), inspected(), inspected(b"a:?")
    node.entries = {old.id: stored(old, retired={"b": token(b"older")})}
    node.install({"a": body(old), "b": b"older"})
    remove = Remove(
        id=old.id,
        reason=Reason.NOT_DESIRED,
        names=("b",),
        evidence={"b": token(b"older")},
        require_unused=True,
    )
    outcomes = act(
        node,
        installing(new, reason="changed", replaceable=frozenset({"a"})),
        remove,
    )
    assert [outcome.result for outcome in outcomes] == ["failed", "done"]
    assert (node.entries, sorted(node.loaded)) == (
        {old.id: stored(old)},
        ["a"],
    )


def test_a_name_moves_only_if_another_entry_owns_it() -> None:
    """A name moves to another entry only after the installation. If the installation fails, the
    previous entry keeps the name.
    """
    node, old = Node(), inspected()
    node.entries, node.loaded = (
        {old.id: stored(old)},
        {"a": body(old)},
    )
    release = Release(id=old.id, reason=Reason.MOVED, names=("a",))
    failed = installing(
        inspected(b"a:?", "new"),
        reason="changed",
        replaceable=frozenset({"a"}),
    )
    assert [outcome.result for outcome in act(node, failed, release)] == ["failed", "held"]
    assert node.entries == {old.id: stored(old)}
    new = inspected(b"a:y", "new")
    moved = installing(new, reason="changed", replaceable=frozenset({"a"}))
    assert [outcome.result for outcome in act(node, moved, release)] == ["done", "done"]
    assert node.entries == {new.id: stored(new)}


def test_a_failed_first_installation_leaves_no_entry() -> None:
    """If the first installation of a profile fails, the ledger contains no entry for the
    profile.
    """
    node = Node()
    act(node, installing(inspected()), kind=FailingKind)
    assert node.entries == {}


def test_an_installation_that_was_not_verified_stays_staged() -> None:
    """If an installation could not be verified, its version stays staged in the ledger."""
    kind = type(
        "Kind",
        (FailingKind,),
        {"result": Failed(finding=replace(FAILURE, code=FindingCode.VERIFY_FAILED))},
    )
    node, profile = Node(), inspected()
    act(node, installing(profile), kind=kind)
    assert node.entries == {
        profile.id: LedgerEntry(
            id=profile.id,
            provenance=Provenance.INSTALLED,
            staged=profile.version,
        )
    }


def test_each_failed_write_of_the_ledger_fails_the_installation() -> None:
    """An installation fails if any of its writes to the ledger fails."""
    results = []
    for successful_writes in range(4):
        node = Node()
        ledger = type("Ledger", (FailingLedger,), {"successful_writes": successful_writes})
        (outcome,) = act(node, installing(inspected()), ledger=ledger)
        results.append((outcome.result, sorted(node.loaded), len(node.entries)))
    assert results == [
        ("failed", [], 0),
        ("failed", [], 0),
        ("failed", [], 0),
        ("failed", ["a"], 1),
    ]


def test_names_that_a_version_drops_stay_agent_owned() -> None:
    """If a new version omits a child that stays loaded, the ledger records the name of the child as
    retired.
    """
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:y")
    node.loaded = {"a": body(old), "b": body(old)}
    node.entries = {old.id: stored(old)}
    act(node, installing(new, replaceable=frozenset({"a"})))
    assert node.entries == {
        new.id: stored(
            new,
            retired={"b": token(body(old))},
        )
    }


def test_dropped_names_of_an_adopted_version_stay_foreign() -> None:
    """If the executor replaces an adopted version, names that only the adopted version contains
    stay foreign.
    """
    node, old, new = Node(), inspected(b"a,b:x"), inspected(b"a:y")
    node.entries = {old.id: replace(stored(old), provenance=Provenance.ADOPTED)}
    act(node, installing(new, replaceable=frozenset({"a"})))
    assert node.entries == {new.id: stored(new)}


def restoring(profile: model.Profile) -> Install:
    return Install(
        id=profile.id,
        reason=Reason.WENT_MISSING,
        names=profile.version.names,
        profile=None,
        replaceable=frozenset(),
    )


def test_the_last_good_version_is_restored_from_the_ledger() -> None:
    """The executor restores the last good version from the ledger, without its source and without a
    compilation.
    """
    node, profile = Node(), inspected()
    keep_bodies(node, profile)
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, restoring(profile))
    assert (outcome.result, node.loaded) == (
        "done",
        {"a": body(profile)},
    )


def test_a_version_for_another_kernel_is_compiled_again() -> None:
    """If the kernel has changed, the executor compiles the source text in the ledger again."""
    kind = type("Kind", (MemoryKind,), {"accepts_context": lambda _, __: False})
    node, profile = Node(), inspected()
    keep_bodies(node, profile)
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, restoring(profile), kind=kind)
    assert (outcome.result, node.loaded) == (
        "done",
        {"a": body(profile)},
    )


def test_a_failed_restoration_has_a_finding() -> None:
    """Lost bytes, a rejected source text, a changed name or a missing parser each cause a failed
    restoration with a finding.
    """
    profile = inspected()
    bad = inspected(b"a:x")
    uninspectable = type("Kind", (FailingKind,), {"has_valid_context": False})
    invalid_context = type("Kind", (MemoryKind,), {"accepts_context": lambda _, __: False})
    cases = []
    for kind, bodies in (
        (MemoryKind, {}),
        (uninspectable, None),
        (invalid_context, {bad.version.source_digest: b"!"}),
        # The check returns another profile name, as for a different source text.
        (invalid_context, {bad.version.source_digest: b"b:x"}),
    ):
        node = Node(entries={profile.id: stored(profile)})
        keep_bodies(node, profile)
        if bodies is not None:
            node.bodies = bodies
        (outcome,) = act(node, restoring(profile), kind=kind)
        cases.append((outcome.result, outcome.findings[0].code))
    node = Node(entries={profile.id: LedgerEntry(id=profile.id, provenance=Provenance.INSTALLED)})
    (outcome,) = act(node, restoring(profile))
    cases.append((outcome.result, outcome.findings[0].code))
    assert cases == [
        ("failed", "ledger_damaged"),
        ("failed", "kernel_refused"),
        ("failed", "parser_rejected"),
        ("failed", "ledger_damaged"),
        ("failed", "ledger_damaged"),
    ]


class KindWithoutBody(MemoryKind):
    """A fake backend that has lost the body of a profile and must check the source text again."""

    result: model.Inspected | None = None
    """The result of the new inspection. The value None represents the profile with a new body."""

    has_body = False

    def body(self, profile: model.Profile) -> bytes | None:
        return super().body(profile) if self.has_body else None

    def inspect(self, source_key: model.SourceKey) -> model.Inspected:
        if self.result is not None:
            return self.result
        self.has_body = True
        return super().inspect(source_key)


def pending_kind(profile: model.Profile) -> type[KindWithoutBody]:
    """Return a backend that lost a body and compiles it again in the background."""
    result = Pending(id=profile.id, source=profile.source)
    return type("Kind", (KindWithoutBody,), {"result": result})


def test_a_lost_body_is_compiled_again() -> None:
    """If the cache loses a compiled policy between the check and the installation, the text is
    compiled again.
    """
    node, profile = Node(), inspected()
    (outcome,) = act(node, installing(profile), kind=KindWithoutBody)
    assert (outcome.result, node.loaded) == (
        "done",
        {"a": body(profile)},
    )


def test_a_profile_whose_body_is_compiled_again_is_pending() -> None:
    """While the body of a profile is compiled again, the profile is pending, and a missing last
    good version is restored.
    """
    node, old, new = Node(), inspected(), inspected(b"a:y")
    node.entries = {old.id: stored(old)}
    keep_bodies(node, old)
    action = installing(
        new,
        reason="changed",
        fallback=restoring(old),
    )
    (outcome,) = act(node, action, kind=pending_kind(new))
    assert (outcome.result, node.loaded) == (
        "pending",
        {"a": body(old)},
    )
    assert node.entries == {old.id: stored(old)}


def test_an_adopted_profile_whose_body_is_compiled_again_is_pending() -> None:
    """An adopted profile stays pending while its body is compiled again, because the ledger records
    it only with its body.
    """
    node, profile = Node(), inspected()
    node.loaded = {"a": body(profile)}
    (outcome,) = act(
        node,
        adopting(profile),
        kind=pending_kind(profile),
    )
    assert (outcome.result, node.entries) == ("pending", {})
    rejection = MemoryKind(node, Steps()).inspect(
        SourceKey(profile_set=ORIGIN, key="one.profile", content=b"!")
    )
    rejecting = type("Kind", (KindWithoutBody,), {"result": rejection})
    (outcome,) = act(node, adopting(profile), kind=rejecting)
    assert (outcome.result, outcome.findings[0].code) == ("failed", "parser_rejected")
    changed = type("Kind", (MemoryKind,), {"body": lambda *_: None})
    (outcome,) = act(node, adopting(profile), kind=changed)
    assert (outcome.result, outcome.findings[0].code) == ("failed", "ledger_damaged")


def test_different_bytes_of_a_new_check_are_not_recorded_for_the_planned_version() -> None:
    """If a new check returns different bytes, they are not recorded for the planned version. The
    next full pass uses them.
    """
    node, old, new = Node(), inspected(), inspected(b"a:y")
    node.loaded = {"a": body(old)}
    attributes = {
        "result": new,
        "body": lambda _, profile: body(new) if profile == new else None,
    }
    (outcome,) = act(
        node,
        adopting(old),
        kind=type("Kind", (KindWithoutBody,), attributes),
    )
    assert (outcome.result, node.entries) == ("pending", {})


def adopting(profile: model.Profile) -> Adopt:
    return Adopt(
        id=profile.id,
        reason=Reason.SAME_CONTENT,
        names=("a",),
        profile=profile,
        evidence={"a": token(body(profile))},
    )


def test_an_adoption_changes_only_the_ledger() -> None:
    """An adoption only records in the ledger that another program installed the profile."""
    node, profile = Node(), inspected()
    node.loaded = {"a": body(profile)}
    act(node, adopting(profile))
    assert node.entries == {profile.id: replace(stored(profile), provenance=Provenance.ADOPTED)}


def test_keeping_an_unchanged_profile_writes_nothing() -> None:
    """The action for an unchanged profile does not write to the ledger."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    keep_bodies(node, profile)
    keep = Keep(
        id=profile.id,
        reason=Reason.UNCHANGED,
        names=("a",),
        profile=profile,
        evidence={"a": token(body(profile))},
        provenance=Provenance.INSTALLED,
    )
    (outcome,) = act(node, keep, ledger=FailingLedger)
    assert (outcome.result, outcome.findings) == ("done", ())


def test_an_adopted_version_is_recorded_with_its_own_mode() -> None:
    """An adopted version is recorded with its own mode, and not with the mode of the previous
    version.
    """
    node, old, new = Node(), inspected(), inspected(b"a:y")
    old = instance_of(
        replace(old, version=replace(old.version, modes={"a": "complain"})), model.Profile
    )
    new = instance_of(
        replace(new, version=replace(new.version, modes={"a": "enforce"})), model.Profile
    )
    node.loaded = {"a": body(new)}
    node.entries = {old.id: stored(old)}
    adopt = Adopt(
        id=new.id,
        reason=Reason.SAME_CONTENT,
        names=("a",),
        profile=new,
        evidence={"a": token(body(new))},
    )
    act(node, adopt)
    assert node.entries == {
        new.id: LedgerEntry(id=new.id, provenance=Provenance.ADOPTED, installed=new.version)
    }


def test_an_adoption_retires_the_installed_version_of_its_key() -> None:
    """An adoption retires the installed version of its key, so the ledger keeps the names of this
    version.
    """
    node, old, new = Node(), inspected(), inspected(b"b:x")
    node.entries = {old.id: stored(old)}
    evidence = {"b": token(body(new))}
    adopt = Adopt(
        id=new.id,
        reason=Reason.SAME_CONTENT,
        names=("b",),
        profile=new,
        evidence=evidence,
    )
    assert [outcome.result for outcome in act(node, adopt)] == ["done"]
    assert node.entries == {
        new.id: LedgerEntry(
            id=new.id,
            provenance=Provenance.ADOPTED,
            installed=new.version,
            retired={"a": token(body(old))},
        )
    }


def removing(profile: model.Profile) -> Remove:
    return Remove(
        id=profile.id,
        reason=Reason.NOT_DESIRED,
        names=profile.version.names,
        evidence=profile.version.evidence,
        require_unused=True,
    )


def test_a_removal_deletes_the_profile_from_the_node_and_the_ledger() -> None:
    """After a removal, neither the node nor the ledger contains the profile."""
    node, profile = Node(), inspected()
    node.install({"a": body(profile)})
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, removing(profile))
    assert (outcome.result, node.loaded, node.entries) == ("done", {}, {})


@pytest.mark.parametrize(
    ("use", "code"),
    [(InUse(pids=(7,)), "in_use"), (UnknownUse(reason="a new process"), "use_unknown")],
)
def test_a_profile_that_the_backend_finds_in_use_is_held(
    use: model.InUse | model.UnknownUse, code: str
) -> None:
    """If the backend finds right before a removal that the profile is in use, the agent keeps the
    profile.
    """
    result = StillInUse(uses={"a": use})
    kind = type("Kind", (FailingKind,), {"result": result})
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, removing(profile), kind=kind)
    assert (outcome.result, [finding.code for finding in outcome.findings]) == ("held", [code])
    assert node.entries == {profile.id: stored(profile)}


def test_removals_that_remove_nothing_have_a_time_limit() -> None:
    """Removals without a result have a common time limit per pass, so that repairs do not wait."""
    seconds = [0.0]

    class KindWithSlowProofs(MemoryKind):
        attempts = 0

        def remove(
            self,
            names: Collection[str],
            evidence: Mapping[str, model.Evidence],
            *,
            require_unused: bool,
        ) -> StillInUse:
            KindWithSlowProofs.attempts += 1
            seconds[0] += 4.0
            return StillInUse(uses=dict.fromkeys(names, UnknownUse(reason="a zombie")))

    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    runner = Executor(
        backends={"apparmor": KindWithSlowProofs(node, Steps())},
        ledger=MemoryLedger(node, Steps()),
        entries=node.entries,
        clock=lambda: seconds[0],
    )
    outcomes = runner.execute([removing(profile)] * 5)
    assert KindWithSlowProofs.attempts == 3
    assert {outcome.result for outcome in outcomes} == {"held"}
    codes = {finding.code for outcome in outcomes for finding in outcome.findings}
    assert codes == {"use_unknown"}
    assert node.entries == {profile.id: stored(profile)}


def test_a_failed_removal_keeps_the_ledger_entry() -> None:
    """If a removal fails, the ledger entry stays, and a later pass tries again."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    (outcome,) = act(node, removing(profile), kind=FailingKind)
    assert (outcome.result, node.entries) == (
        "failed",
        {profile.id: stored(profile)},
    )


def test_the_rest_of_a_partly_removed_key_stays_agent_owned() -> None:
    """If only some names of a key are removed, the ledger keeps the other names."""
    node, profile = Node(), inspected(b"a,b:x")
    node.install({"a": body(profile), "b": body(profile)})
    node.entries = {profile.id: stored(profile)}
    action = replace(removing(profile), names=("a",))
    act(node, action)
    expected = LedgerEntry(
        id=profile.id,
        provenance=Provenance.INSTALLED,
        retired={"b": token(body(profile))},
    )
    assert node.entries == {profile.id: expected}


def test_a_release_deletes_only_its_own_names_from_the_entry() -> None:
    """A release deletes only its own names from the entry, and the installed version stays."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile, retired={"b": token(b"b")})}
    release = Release(id=profile.id, reason=Reason.ABSENT, names=("b",))
    act(node, release)
    assert node.entries == {profile.id: stored(profile)}
    assert [outcome.result for outcome in act(Node(), release)] == ["done"]


def test_a_failed_release_is_reported() -> None:
    """If a write of the ledger fails, the release fails, but the pass does not."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    release = Release(id=profile.id, reason=Reason.ABSENT, names=("a",))
    (outcome,) = act(node, release, ledger=FailingLedger)
    assert (outcome.result, [finding.code for finding in outcome.findings]) == (
        "failed",
        ["write_failed"],
    )


def test_a_dry_run_returns_the_expected_outcomes_without_changes() -> None:
    """A dry run returns the expected outcomes and performs no action."""
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    hold = Hold(id=profile.id, reason=Reason.REJECTED, names=("a",), state=ProfileState.OUTDATED)
    other = KeyId(kind="apparmor", profile_set=ORIGIN, key="other")
    keep = Keep(
        id=profile.id,
        reason=Reason.UNCHANGED,
        names=("a",),
        profile=profile,
        evidence={},
        provenance=Provenance.INSTALLED,
    )
    actions = (
        installing(profile),
        keep,
        hold,
        replace(hold, id=other),
        removing(profile),
    )
    outcomes = act(node, *actions, dry_run=True, kind=FailingKind, ledger=FailingLedger)
    assert [(outcome.result, outcome.version) for outcome in outcomes] == [
        ("planned", profile.version),
        ("done", profile.version),
        ("held", profile.version),
        ("held", None),
        ("planned", profile.version),
    ]
    release = Release(id=other, reason=Reason.ABSENT, names=("a",))
    assert [outcome.version for outcome in act(node, release, dry_run=True)] == [None]


def test_the_outcome_of_a_hold_has_the_installed_version() -> None:
    """The outcome of a hold contains the installed version. Neither the node nor the ledger
    changes.
    """
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    hold = Hold(id=profile.id, reason=Reason.REJECTED, names=("a",), state=ProfileState.OUTDATED)
    assert act(node, hold) == (
        Outcome(
            action=hold,
            result=OutcomeResult.HELD,
            version=profile.version,
        ),
    )


def test_the_digest_of_a_body_is_its_sha256() -> None:
    """The digest of a body is the SHA-256 digest of its content."""
    assert model.digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# --- missing profiles -----------------------------------------------------------------------------


class NoWrites(MemoryLedger):
    """A fake ledger that rejects writes."""

    def write(self, entry: LedgerEntry) -> Finding | None:
        raise AssertionError(f"written: {entry}")


def restore_missing(
    node: Node, profile: model.Profile, ledger: type[MemoryLedger]
) -> tuple[Outcome, ...]:
    return act(node, installing(profile, reason="went missing"), ledger=ledger)


def test_a_missing_profile_is_restored_without_a_write() -> None:
    """The executor restores a missing profile without a write, because the ledger already contains
    the profile.
    """
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    (outcome,) = restore_missing(node, profile, NoWrites)
    assert (outcome.result, node.loaded) == (
        "done",
        {"a": body(profile)},
    )


def test_a_version_with_new_expected_evidence_is_staged_first() -> None:
    """The evidence that the installation is expected to leave is recorded beforehand, so that it
    can later prove ownership.
    """
    node, profile = Node(), inspected()
    less = instance_of(
        replace(profile, version=replace(profile.version, evidence={})),
        model.Profile,
    )
    node.entries = {profile.id: stored(less)}
    steps = Steps(fatal=3)  # The agent exits after it has stored both bodies and staged the entry.
    runner = Executor(
        backends={"apparmor": MemoryKind(node, steps)},
        ledger=MemoryLedger(node, steps),
        entries=node.entries,
        clock=lambda: 0.0,
    )
    with contextlib.suppress(Killed):
        runner.execute([installing(profile, reason="went missing")])
    assert node.entries[profile.id].staged == profile.version


def test_an_entry_with_any_difference_is_written() -> None:
    """A missing profile is restored without a write only if its entry is unchanged. Any difference
    in the entry causes a write.
    """
    node, profile = Node(), inspected()
    node.entries = {
        profile.id: stored(
            profile,
            retired={"b": token(b"x")},
            staged=profile.version,
        )
    }
    restore_missing(node, profile, MemoryLedger)
    assert node.entries == {profile.id: stored(profile, retired={"b": token(b"x")})}


def test_installations_precede_all_other_actions() -> None:
    """Installations precede all other actions. The other actions stay in order."""
    node, profile = Node(), inspected()
    hold = Hold(id=profile.id, reason=Reason.REJECTED, names=("a",), state=ProfileState.OUTDATED)
    actions = (
        hold,
        removing(profile),
        installing(profile),
        replace(hold, reason=Reason.UNCHANGED),
    )
    outcomes = act(node, *actions, dry_run=True)
    expected = [actions[2], actions[0], actions[1], actions[3]]
    assert [outcome.action for outcome in outcomes] == expected


def test_another_source_of_the_same_policy_is_staged_first() -> None:
    """A version with the same policy but another source text is staged first, because only the
    recorded version is restored without a write.
    """
    node, profile = Node(), inspected()
    node.entries = {profile.id: stored(profile)}
    other = instance_of(
        replace(
            profile,
            version=replace(profile.version, source_digest="other"),
        ),
        model.Profile,
    )
    steps = Steps(fatal=3)
    runner = Executor(
        backends={"apparmor": MemoryKind(node, steps)},
        ledger=MemoryLedger(node, steps),
        entries=node.entries,
        clock=lambda: 0.0,
    )
    with contextlib.suppress(Killed):
        runner.execute([installing(other, reason="changed")])
    assert node.entries[profile.id].staged == other.version


class SlowKind(FailingKind):
    """A fake backend whose checks have not finished yet."""

    has_valid_context = False

    def inspect(self, source_key: model.SourceKey) -> model.Pending:
        id_ = KeyId(kind=self.name, profile_set=source_key.profile_set, key=source_key.key)
        return model.Pending(id=id_, source=source_key.content, findings=(FAILURE,))


def test_a_last_good_version_that_must_be_compiled_again_is_pending() -> None:
    """If a last good version must be compiled again after a change of the kernel, it is pending and
    not failed.
    """
    node = Node()
    good = inspected()
    act(
        node,
        Install(id=good.id, reason=Reason.NEW, names=("a",), profile=good, replaceable=frozenset()),
    )
    restore = Install(
        id=good.id, reason=Reason.WENT_MISSING, names=("a",), profile=None, replaceable=frozenset()
    )
    release = Release(id=good.id, reason=Reason.ABSENT, names=("a",))
    outcomes = act(node, restore, release, kind=SlowKind)
    assert [(outcome.result, outcome.findings) for outcome in outcomes] == [
        ("pending", (FAILURE,)),
        ("held", ()),
    ]


def test_a_replacement_updates_the_entries_of_the_same_version() -> None:
    """A replacement updates all entries that record the same version. If an entry cannot be
    written, the next pass writes it.
    """
    node = Node(readable=False)
    first, second = inspected(key="a.profile"), inspected(key="b.profile")
    act(
        node,
        Install(
            id=first.id, reason=Reason.NEW, names=("a",), profile=first, replaceable=frozenset()
        ),
    )
    replacement = Install(
        id=second.id, reason=Reason.NEW, names=("a",), profile=second, replaceable=frozenset({"a"})
    )

    class LedgerThatBecomesFull(FailingLedger):
        # An installation writes the source text, the body, the staged version and the installed
        # version.
        successful_writes = 4

    (failed,) = act(node, replacement, ledger=LedgerThatBecomesFull)
    assert (failed.result, [finding.code for finding in failed.findings]) == (
        "failed",
        ["write_failed"],
    )
    act(node, replace(replacement, reason=Reason.DRIFTED))
    evidence = [not_none(entry.installed).evidence for entry in node.entries.values()]
    assert evidence[0] == evidence[1]
