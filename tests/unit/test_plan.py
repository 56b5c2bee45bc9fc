"""Tests of the decision table of agent.core.plan, with at least one test for each row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent.core import plan
from agent.core.actions import Action, Adopt, Hold, Install, Keep, Release, Remove
from agent.core.desired import Desired
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    InUse,
    KeyId,
    LedgerEntry,
    Missing,
    Observation,
    Observed,
    ObservedProfile,
    Pending,
    Profile,
    ProfileKind,
    Read,
    Rejection,
    Snapshot,
    Unchecked,
    UnknownUse,
    Unobservable,
    Unreadable,
    Unsupported,
    Unused,
    Version,
)
from agent.core.plan import PlanOptions
from agent.core.vocabulary import ProfileState, Provenance, PruneMode, Reason
from tests.json_object import JsonObject
from tests.narrowing import not_none
from tests.world import CAPABILITIES

ORIGIN = "configmap ns/web"
REFUSED = Finding(code=FindingCode.PARSER_REJECTED, location="web", message="refused")


def key(
    name: str = "web.profile", *, kind: ProfileKind = "apparmor", origin: str = ORIGIN
) -> KeyId:
    return KeyId(kind=kind, profile_set=origin, key=name)


def version(content: str = "v1", names: tuple[str, ...] = ("web",), **more: Any) -> Version:
    more.setdefault("evidence", {name: frozenset({f"raw:{content}"}) for name in names})
    return Version(
        names=names, source_digest=f"source {content}", body_digest=f"body {content}", **more
    )


def profile(
    id_: KeyId | None = None,
    content: str = "v1",
    names: tuple[str, ...] = ("web",),
    **more: Any,
) -> Profile:
    return Profile(
        id=id_ or key(), version=version(content, names, **more), source=b"s", body_size=1
    )


def entry(
    id_: KeyId | None = None,
    content: str = "v1",
    names: tuple[str, ...] = ("web",),
    provenance: Provenance = Provenance.INSTALLED,
    **more: Any,
) -> LedgerEntry:
    return LedgerEntry(
        id=id_ or key(), provenance=provenance, installed=version(content, names), **more
    )


def fact(content: str = "v1", mode: str = "", **more: Any) -> ObservedProfile:
    return ObservedProfile(evidence=frozenset({f"raw:{content}"}), mode=mode, **more)


def node_with_foreign(**loaded: str) -> Observation:
    """Return a node on which another program loaded this content."""
    return Observation(
        profiles={name: fact(content, is_agent_object=False) for name, content in loaded.items()}
    )


def node_with(**loaded: str) -> Observation:
    return Observation(profiles={name: fact(content) for name, content in loaded.items()})


def desired(
    *profiles: Profile,
    rejected: Sequence[KeyId] = (),
    unchecked: Sequence[KeyId] = (),
    pending: Sequence[KeyId] = (),
    sets: Sequence[Snapshot] | None = None,
    same: Mapping[KeyId, KeyId] | None = None,
) -> Desired:
    sets = sets if sets is not None else [Read(profile_set=ORIGIN, revision="1", source_keys=())]
    return Desired(
        profiles={accepted.id: accepted for accepted in profiles},
        rejections={id_: Rejection(id=id_, findings=(REFUSED,)) for id_ in rejected},
        unchecked={id_: Unchecked(id=id_, finding=REFUSED) for id_ in unchecked},
        pending={id_: Pending(id=id_, source=b"profile new {}") for id_ in pending},
        duplicates=same or {},
        profile_sets={snapshot.profile_set: snapshot for snapshot in sets},
    )


def decide(
    desired_keys: Desired,
    *entries: LedgerEntry,
    observation: Observed,
    kind: ProfileKind = "apparmor",
    **options: Any,
) -> tuple[Action, ...]:
    by_key = {owner.id: owner for owner in entries}
    return plan.plan(
        desired_keys, by_key, {kind: observation}, PlanOptions(**options), CAPABILITIES
    )


def summary(
    actions: Iterable[Action],
) -> list[tuple[type[Action], Reason, tuple[str, ...]]]:
    """Return the type, the reason and the names of each action."""
    return [(type(action), action.reason, action.names) for action in actions]


def test_a_new_profile_is_installed() -> None:
    """A desired profile that is neither on the node nor in the ledger is installed."""
    desired_profile = profile()
    install = Install(
        id=key(),
        reason=Reason.NEW,
        names=("web",),
        profile=desired_profile,
        replaceable=frozenset(),
    )
    assert decide(desired(desired_profile), observation=node_with()) == (install,)


def test_a_foreign_profile_with_the_desired_content_is_adopted() -> None:
    """If another program loaded the desired content, the profile is adopted."""
    desired_profile = profile()
    adopt = Adopt(
        id=key(),
        reason=Reason.SAME_CONTENT,
        names=("web",),
        profile=desired_profile,
        evidence={"web": frozenset({"raw:v1"})},
    )
    assert decide(desired(desired_profile), observation=node_with(web="v1")) == (adopt,)


def test_a_foreign_profile_with_other_content_is_held() -> None:
    """If another program loaded other content, the agent installs nothing for the key and does not
    replace the foreign profile.
    """
    (hold,) = decide(desired(profile()), observation=node_with(web="foreign"))
    assert isinstance(hold, Hold)
    assert (Hold, "foreign", ["foreign_name"]) == (
        type(hold),
        hold.state,
        [finding.code for finding in hold.findings],
    )


def test_a_profile_with_the_desired_content_in_another_mode_is_foreign() -> None:
    """A foreign profile with the desired content in another mode is not adopted."""
    desired_profile = profile(modes={"web": "enforce"})
    (hold,) = decide(
        desired(desired_profile), observation=Observation(profiles={"web": fact(mode="complain")})
    )
    assert isinstance(hold, Hold)
    assert hold.state == "foreign"


def test_a_foreign_profile_that_is_taken_over_is_replaced() -> None:
    """If --take-over is set, a foreign profile counts as agent-owned."""
    actions = decide(
        desired(profile()), observation=node_with(web="foreign"), take_over=frozenset({"web"})
    )
    assert [action.replaceable for action in actions] == [frozenset({"web"})]


def test_an_unchanged_profile_is_kept() -> None:
    """An installed profile that is desired and unchanged on the node needs no action."""
    actions = decide(desired(profile()), entry(), observation=node_with(web="v1"))
    assert summary(actions) == [(Keep, "unchanged", ("web",))]


def test_a_drifted_profile_is_restored() -> None:
    """If the node has other content under an agent-owned name, the agent's version is restored."""
    actions = decide(desired(profile()), entry(), observation=node_with(web="other"))
    assert [(Install, "drifted", ("web",))] == summary(actions)
    assert actions[0].replaceable == frozenset({"web"})


def test_an_adopted_profile_that_changed_on_the_node_is_held() -> None:
    """If an adopted profile has changed on the node, the agent neither replaces nor removes it."""
    (hold,) = decide(
        desired(profile()), entry(provenance=Provenance.ADOPTED), observation=node_with(web="other")
    )
    assert isinstance(hold, Hold)
    assert (hold.state, hold.names) == ("foreign", ("web",))


def test_an_equal_profile_of_another_program_is_kept() -> None:
    """If another program removes a profile and loads the same content, the profile is kept."""
    actions = decide(desired(profile()), entry(), observation=node_with_foreign(web="v1"))
    assert summary(actions) == [(Keep, "unchanged", ("web",))]


def test_other_content_of_another_program_is_held() -> None:
    """If another program removes a profile and loads other content, the agent installs nothing for
    the key, because the profile is foreign.
    """
    (hold,) = decide(desired(profile()), entry(), observation=node_with_foreign(web="other"))
    assert isinstance(hold, Hold)
    assert (type(hold), hold.state, hold.names) == (Hold, "foreign", ("web",))


def test_a_message_does_not_claim_that_unreadable_content_differs() -> None:
    """If the kernel shows no content, the message only states that another program created the
    profile.
    """
    observation = Observation(
        profiles={"web": fact("object", is_agent_object=False, is_readable=False)}
    )
    (hold,) = decide(desired(profile()), entry(), observation=observation)
    assert isinstance(hold, Hold)
    assert "with content that cannot be verified" in hold.findings[0].message


def test_an_update_replaces_an_equal_profile_of_another_program() -> None:
    """An update replaces an equal profile of another program, as it replaces an adopted profile
    (ADR 7).
    """
    (action,) = decide(
        desired(profile(content="v2")), entry(), observation=node_with_foreign(web="v1")
    )
    assert isinstance(action, Install)
    assert (action.reason, action.replaceable, action.foreign) == (
        "changed",
        frozenset({"web"}),
        frozenset(),
    )


def test_a_foreign_profile_stays_foreign_while_another_name_of_its_key_is_restored() -> None:
    """A key with a foreign name and an agent-owned name is restored, and the foreign name stays
    foreign.
    """
    names = ("a", "b")
    (action,) = decide(
        desired(profile(names=names)), entry(names=names), observation=node_with_foreign(a="v1")
    )
    assert isinstance(action, Install)
    assert (action.reason, action.replaceable, action.foreign) == (
        "went missing",
        frozenset({"a"}),
        frozenset({"a"}),
    )
    (restore,) = decide(
        desired(rejected=[key()]), entry(names=names), observation=node_with_foreign(a="v1")
    )
    assert isinstance(restore, Install)
    assert (restore.reason, restore.replaceable, restore.foreign) == (
        "went missing",
        frozenset({"a"}),
        frozenset({"a"}),
    )


@pytest.mark.parametrize("content", ["v1", "other"])
def test_a_profile_that_is_taken_over_becomes_agent_owned(content: str) -> None:
    """If --take-over is set, a foreign profile is replaced even if it has the desired content, so
    that it becomes agent-owned.
    """
    actions = decide(
        desired(profile()),
        entry(),
        observation=node_with_foreign(web=content),
        take_over=frozenset({"web"}),
    )
    assert summary(actions) == [(Install, "taken over", ("web",))]
    assert (actions[0].replaceable, actions[0].foreign) == (frozenset({"web"}), frozenset())


def test_a_staged_version_that_another_program_loaded_is_adopted() -> None:
    """If the agent was killed before a load and another program then loaded the staged version, the
    profile is adopted.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    assert summary(decide(desired(profile()), stored, observation=node_with_foreign(web="v1"))) == [
        (Adopt, "same content", ("web",))
    ]


def test_a_staged_version_that_this_agent_loaded_is_finished() -> None:
    """An unfinished installation is completed if the record of loaded objects proves that the agent
    loaded the staged version.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(
        profiles={"web": fact("object", is_agent_object=True, is_readable=False)}
    )
    assert summary(decide(desired(profile()), stored, observation=observation)) == [
        (Install, "unfinished", ("web",))
    ]


def test_an_update_that_another_program_has_loaded_is_adopted() -> None:
    """If another program has already loaded the new version, the agent adopts it."""
    stored = entry(provenance=Provenance.ADOPTED)
    assert summary(
        decide(desired(profile(content="v2")), stored, observation=node_with_foreign(web="v2"))
    ) == [(Adopt, "same content", ("web",))]


def test_a_rejected_update_does_not_replace_a_foreign_profile() -> None:
    """The last good version of a rejected update does not replace a foreign profile."""
    (hold,) = decide(desired(rejected=[key()]), entry(), observation=node_with_foreign(web="other"))
    assert isinstance(hold, Hold)
    assert (hold.state, [finding.code for finding in hold.findings]) == (
        "foreign",
        ["parser_rejected", "foreign_name"],
    )


def test_a_missing_profile_is_restored() -> None:
    """A missing profile is restored, unless another program loads a profile with this name
    first.
    """
    (action,) = decide(desired(profile()), entry(), observation=node_with())
    assert isinstance(action, Install)
    assert (action.reason, action.replaceable) == ("went missing", frozenset())


def test_a_changed_profile_is_replaced() -> None:
    """A new version replaces the installed version."""
    (action,) = decide(desired(profile(content="v2")), entry(), observation=node_with(web="v1"))
    assert isinstance(action, Install)
    assert (action.reason, action.replaceable) == ("changed", frozenset({"web"}))


def test_a_new_compilation_of_the_same_source_is_installed() -> None:
    """If the same source text compiles to another body, the new body is installed with the reason
    "recompiled".
    """
    desired_profile = profile(content="v1")
    old = Version(
        names=("web",),
        source_digest="source v1",
        body_digest="older body",
        evidence={"web": frozenset({"raw:old"})},
    )
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, installed=old)
    assert summary(decide(desired(desired_profile), stored, observation=node_with(web="old"))) == [
        (Install, "recompiled", ("web",))
    ]


def test_an_unfinished_installation_is_repeated() -> None:
    """After an interruption between load and commit, the agent recognizes its profile by the
    content, and repeats the installation.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    (action,) = decide(desired(profile(content="v2")), stored, observation=node_with(web="v1"))
    assert isinstance(action, Install)
    assert (action.reason, action.replaceable) == ("unfinished", frozenset({"web"}))


def test_a_staged_version_does_not_prove_ownership_of_other_content() -> None:
    """A staged version that was never loaded does not own a profile with other content."""
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    (hold,) = decide(desired(profile(content="v2")), stored, observation=node_with(web="foreign"))
    assert isinstance(hold, Hold)
    assert hold.state == "foreign"


def test_a_key_with_one_foreign_name_is_held_completely() -> None:
    """If one name of a key is foreign, the agent changes none of the key's profiles."""
    (hold,) = decide(desired(profile(names=("a", "b"))), observation=node_with(a="v1"))
    assert isinstance(hold, Hold)
    assert (hold.state, [finding.location for finding in hold.findings]) == ("foreign", ["a"])


def test_a_dropped_name_is_removed_after_the_installation() -> None:
    """Names that a new version no longer contains are removed after the installation of the new
    version.
    """
    observation = Observation(profiles={"a": fact(), "b": fact()}, uses={"b": Unused()})
    actions = decide(
        desired(profile(content="v2", names=("a",))),
        entry(names=("a", "b")),
        observation=observation,
    )
    assert summary(actions) == [(Install, "changed", ("a",)), (Remove, "not desired", ("b",))]


def test_a_retired_name_is_removed() -> None:
    """A retired name, which only a previous version contains, is removed when no process
    uses it.
    """
    stored = entry(retired={"web//hat": frozenset({"raw:hat"})})
    observation = Observation(
        profiles={"web": fact(), "web//hat": fact("hat")}, uses={"web//hat": Unused()}
    )
    assert summary(decide(desired(profile()), stored, observation=observation)) == [
        (Keep, "unchanged", ("web",)),
        (Remove, "not desired", ("web//hat",)),
    ]


def test_a_rejected_update_holds_the_last_good_version() -> None:
    """The last good version of a rejected key stays installed."""
    (hold,) = decide(desired(rejected=[key()]), entry(), observation=node_with(web="v1"))
    expected = Hold(
        id=key(),
        reason=Reason.REJECTED,
        names=("web",),
        state=ProfileState.OUTDATED,
        findings=(REFUSED,),
    )
    assert expected == hold


@pytest.mark.parametrize(
    ("observation", "reason", "replaceable"),
    [
        (node_with(), "went missing", frozenset()),
        (node_with(web="other"), "drifted", frozenset({"web"})),
    ],
)
def test_a_rejected_update_restores_the_last_good_version(
    observation: Observation, reason: str, replaceable: frozenset[str]
) -> None:
    """A missing or changed last good version is restored from the ledger."""
    (action,) = decide(desired(rejected=[key()]), entry(), observation=observation)
    expected = Install(
        id=key(),
        reason=reason,
        names=("web",),
        profile=None,
        replaceable=replaceable,
        findings=(REFUSED,),
    )
    assert expected == action


def test_a_new_pending_key_is_held() -> None:
    """The agent takes no action on a new pending key, because its names are still unknown."""
    hold = Hold(id=key(), reason=Reason.PENDING, names=(), state=ProfileState.PENDING)
    assert decide(desired(pending=[key()]), observation=node_with()) == (hold,)


def test_a_pending_update_holds_the_last_good_version() -> None:
    """While an update is pending, the installed version is kept and counts as outdated."""
    hold = Hold(id=key(), reason=Reason.PENDING, names=("web",), state=ProfileState.OUTDATED)
    assert decide(desired(pending=[key()]), entry(), observation=node_with(web="v1")) == (hold,)


@pytest.mark.parametrize(
    ("observation", "reason"), [(node_with(), "went missing"), (node_with(web="v0"), "drifted")]
)
def test_a_pending_update_restores_the_last_good_version(
    observation: Observation, reason: str
) -> None:
    """While an update is pending, a missing profile is restored."""
    (action,) = decide(desired(pending=[key()]), entry(), observation=observation)
    assert (type(action), action.reason, action.profile) == (Install, reason, None)


@pytest.mark.parametrize("provenance", ["installed", "adopted"])
def test_nothing_is_removed_or_released_while_a_key_is_pending(provenance: str) -> None:
    """While a key is pending, no profile and no label of its kind is removed."""
    hold = Hold(id=key(), reason=Reason.PENDING, names=("web",), state=ProfileState.HELD)
    new = key("new.profile")
    actions = decide(
        desired(pending=[new]),
        entry(provenance=provenance),
        observation=Observation(profiles={"web": fact()}, uses={"web": Unused()}),
    )
    assert actions == (
        Hold(id=new, reason=Reason.PENDING, names=(), state=ProfileState.PENDING),
        hold,
    )


def test_a_changed_profile_is_not_released_while_a_key_is_pending() -> None:
    """While a renamed key is pending, its changed profile is not released, because the key may
    repair it. The label is removed at once.
    """
    new = key("new.profile")
    observation = Observation(profiles={"web": fact("changed")}, uses={"web": Unused()})
    pending = decide(desired(pending=[new]), entry(), observation=observation)
    assert pending == (
        Hold(id=new, reason=Reason.PENDING, names=(), state=ProfileState.PENDING),
        Hold(
            id=key(), reason=Reason.PENDING, names=("web",), state=ProfileState.HELD, desired=False
        ),
    )
    accepted = decide(desired(profile(new)), entry(), observation=observation)
    assert summary(accepted) == [(Install, "drifted", ("web",)), (Release, "moved", ("web",))]


def test_a_pending_key_of_another_kind_does_not_delay_a_removal() -> None:
    """A pending AppArmor key does not delay the removal of a seccomp file."""
    stored = entry(key(kind="seccomp"))
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    desired_keys = desired(pending=[key("new.profile")])
    assert summary(decide(desired_keys, stored, observation=observation, kind="seccomp")) == [
        (Remove, "not desired", ("web",))
    ]


def test_a_new_name_waits_for_a_pending_key_that_may_declare_it() -> None:
    """A new name waits for a pending key that may declare the same name, because both keys would
    then be rejected.
    """
    new, other = profile(key("a.profile"), names=("new",)), profile(key("b.profile"))
    actions = decide(desired(new, other, pending=[key("c.profile")]), observation=node_with())
    assert [(action.id.key, type(action), action.reason) for action in actions] == [
        ("a.profile", Hold, "pending"),
        ("b.profile", Install, "new"),
        ("c.profile", Hold, "pending"),
    ]


def test_a_name_of_a_pending_key_cannot_move_yet() -> None:
    """A profile name in a pending key cannot move to another key before the check is complete."""
    actions = decide(
        desired(profile(key("a.profile"), "v2"), pending=[key()]),
        entry(),
        observation=node_with(web="v1"),
    )
    assert [(action.id.key, type(action), action.reason) for action in actions] == [
        ("a.profile", Hold, "pending"),
        ("web.profile", Hold, "pending"),
    ]


def test_an_update_of_installed_names_does_not_wait_for_pending_keys() -> None:
    """An update of installed names does not wait for pending keys."""
    desired_profile = profile(content="v2", names=("new",))
    stored = LedgerEntry(
        id=key(), provenance=Provenance.INSTALLED, installed=version("v1", ("new",))
    )
    (action, _) = decide(
        desired(desired_profile, pending=[key("c.profile")]),
        stored,
        observation=node_with(new="v1"),
    )
    assert (type(action), action.reason) == (Install, "changed")


def test_a_rejected_update_does_not_replace_a_changed_adopted_profile() -> None:
    """The last good version does not replace an adopted profile that another program changed."""
    (hold,) = decide(
        desired(rejected=[key()]),
        entry(provenance=Provenance.ADOPTED),
        observation=node_with(web="other"),
    )
    assert isinstance(hold, Hold)
    assert (hold.state, [finding.code for finding in hold.findings]) == (
        "foreign",
        ["parser_rejected", "foreign_name"],
    )


def test_a_rejected_new_key_is_only_reported() -> None:
    """A rejected key that was never accepted is only reported."""
    assert decide(desired(rejected=[key()]), observation=node_with()) == (
        Hold(
            id=key(),
            reason=Reason.REJECTED,
            names=(),
            state=ProfileState.REJECTED,
            findings=(REFUSED,),
        ),
    )


def test_an_unchecked_key_keeps_its_last_good_version() -> None:
    """If a key cannot be checked on this node, its installed profile stays."""
    (hold,) = decide(desired(unchecked=[key()]), entry(), observation=node_with(web="v1"))
    assert isinstance(hold, Hold)
    assert (hold.reason, hold.state) == ("unchecked", "outdated")


def test_an_undesired_unused_profile_is_removed() -> None:
    """A profile that is no longer desired is removed if no process uses it. The removal requires
    another check of the use.
    """
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    assert decide(desired(), entry(), observation=observation) == (
        Remove(
            id=key(),
            reason=Reason.NOT_DESIRED,
            names=("web",),
            evidence={"web": frozenset({"raw:v1"})},
            require_unused=True,
        ),
    )


@pytest.mark.parametrize(
    ("use", "reason"),
    [(InUse(pids=(1, 2)), "in_use"), (UnknownUse(reason="no /proc"), "use_unknown")],
)
def test_an_undesired_profile_is_held_while_it_may_be_in_use(
    use: InUse | UnknownUse, reason: str
) -> None:
    """A profile that is no longer desired is kept while it may be in use."""
    observation = Observation(profiles={"web": fact()}, uses={"web": use})
    assert summary(decide(desired(), entry(), observation=observation)) == [
        (Hold, reason, ("web",))
    ]


def test_hats_and_children_stay_with_a_profile_in_use() -> None:
    """Hats and children stay while their profile is in use, unless the current version of the
    profile omits them.
    """
    names = ("web", "web//HAT", "web//kid", "web//kid//grandkid")
    uses = {name: Unused() for name in names} | {"web": InUse(pids=(1,))}
    observation = Observation(profiles={name: fact() for name in names}, uses=uses)
    actions = decide(desired(), entry(names=names), observation=observation)
    assert summary(actions) == [(Hold, "in_use", (name,)) for name in names]
    assert [len(action.findings) for action in actions] == [1, 0, 0, 0]
    kept = decide(desired(profile()), entry(names=names), observation=observation)
    assert sorted(
        name for action in kept if isinstance(action, Remove) for name in action.names
    ) == [*names[1:]]


def test_a_profile_whose_use_was_not_checked_is_held() -> None:
    """If the agent has not checked whether a profile is in use, the profile is kept."""
    assert summary(decide(desired(), entry(), observation=node_with(web="v1"))) == [
        (Hold, "use_unknown", ("web",))
    ]


def test_prune_never_holds_undesired_profiles() -> None:
    """If --prune=never is set, all profiles that are no longer desired are kept."""
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    assert summary(decide(desired(), entry(), observation=observation, prune="never")) == [
        (Hold, "prune=never", ("web",))
    ]


@pytest.mark.parametrize(
    ("absent_seconds", "expected"),
    [
        (None, Remove),  # The agent does not publish labels.
        ({}, Hold),  # The label is not confirmed as absent.
        ({("apparmor", "web"): 59.9}, Hold),
        ({("seccomp", "web"): 99.0}, Hold),  # The absent label belongs to another profile kind.
        ({("apparmor", "web"): 60.0}, Remove),
    ],
)
def test_a_removal_waits_for_the_label_and_the_grace_period(
    absent_seconds: dict[tuple[str, str], float] | None, expected: type[object]
) -> None:
    """A profile is removed only after its label is known to be absent and the grace period has
    passed.
    """
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (action,) = decide(
        desired(),
        entry(),
        observation=observation,
        label_absent_seconds=absent_seconds,
        grace_seconds=60.0,
    )
    assert type(action) is expected
    if isinstance(action, Hold):
        assert (action.reason, action.desired) == ("label_pending", False)
        assert [finding.code for finding in action.findings] == ["label_pending"]


@pytest.mark.parametrize(
    ("desired_keys", "expected"),
    [
        (desired(), False),
        (desired(sets=[Unreadable(profile_set=ORIGIN, reason="away")]), True),
        (desired(rejected=[key()]), True),
    ],
)
def test_a_hold_of_an_unobservable_profile_shows_whether_it_is_desired(
    desired_keys: Desired, expected: bool
) -> None:
    """The hold of an unobservable profile contains whether the profile is desired, because only
    desired profiles keep their labels.
    """
    blind = Unobservable(finding=REFUSED)
    (action,) = decide(desired_keys, entry(), observation=blind)
    assert isinstance(action, Hold)
    assert (action.names, action.state, action.desired) == (("web",), "unobservable", expected)


def test_a_name_that_an_unreadable_source_may_desire_keeps_its_label() -> None:
    """A name keeps its label while an unreadable source may contain it."""
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="other", reason="away"),
    ]
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (action,) = decide(desired(sets=sets), entry(), observation=observation)
    assert isinstance(action, Hold)
    assert (type(action), action.reason, action.desired) == (Hold, "a source is unreadable", True)


def test_unreferenced_files_are_unused_and_unreferenced_policy_may_be_in_use() -> None:
    """A profile of either kind is kept while a pod references it. Without a reference, only a
    seccomp file is known to be unused.
    """
    observation = Observation(profiles={"web": fact()}, uses={"web": UnknownUse(reason="a file")})
    seccomp = entry(key(kind="seccomp"))
    (held,) = decide(
        desired(),
        seccomp,
        observation=observation,
        kind="seccomp",
        pods_by_profile={("seccomp", "web"): ("a",)},
    )
    assert (type(held), held.reason) == (Hold, "in_use")
    (free,) = decide(
        desired(), seccomp, observation=observation, kind="seccomp", pods_by_profile={}
    )
    assert isinstance(free, Remove)
    assert (type(free), free.require_unused) == (Remove, False)
    (policy,) = decide(desired(), entry(), observation=observation, pods_by_profile={})
    assert (type(policy), policy.reason) == (Hold, "use_unknown")
    unused = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (named,) = decide(
        desired(), entry(), observation=unused, pods_by_profile={("apparmor", "web"): ("a",)}
    )
    assert (type(named), named.reason) == (Hold, "in_use")


def test_nothing_is_removed_while_the_pods_are_unknown() -> None:
    """If --pod-aware is set, a list of pods that failed or is delayed does not count as empty."""
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (held,) = decide(desired(), entry(), observation=observation, pod_aware=True, prune="always")
    assert (type(held), held.reason) == (Hold, "use_unknown")
    (removal,) = decide(
        desired(), entry(), observation=observation, pod_aware=True, pods_by_profile={}
    )
    assert type(removal) is Remove


def test_prune_always_skips_the_proof_of_disuse_for_files_only() -> None:
    """--prune=always removes files even if the agent cannot prove that they are unused, but removes
    no loaded AppArmor profiles in this case.
    """
    observation = Observation(profiles={"web": fact()}, uses={"web": UnknownUse(reason="a file")})
    seccomp = entry(key(kind="seccomp"))
    actions = decide(desired(), seccomp, observation=observation, kind="seccomp", prune="always")
    assert [(Remove, False)] == [(type(action), action.require_unused) for action in actions]
    assert summary(decide(desired(), entry(), observation=observation, prune="always")) == [
        (Hold, "use_unknown", ("web",))
    ]


@pytest.mark.parametrize(
    ("stored", "observation", "reason"),
    [
        (entry(provenance=Provenance.ADOPTED), node_with(web="v1"), "adopted"),
        (entry(), node_with(), "absent"),
        (entry(), node_with(web="foreign"), "foreign"),
        (entry(), node_with_foreign(web="v1"), "foreign"),
        (entry(retired={"web": frozenset({"raw:v1"})}), node_with_foreign(web="v1"), "foreign"),
    ],
)
def test_profiles_that_the_agent_must_not_remove_are_released(
    stored: LedgerEntry, observation: Observation, reason: str
) -> None:
    """Adopted profiles, absent profiles and profiles that another program replaced are removed from
    the ledger only.
    """
    assert summary(decide(desired(), stored, observation=observation)) == [
        (Release, reason, ("web",))
    ]


def test_an_entry_without_an_installed_version_is_released() -> None:
    """An entry that owns no name is deleted from the ledger."""
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version())
    assert summary(decide(desired(), stored, observation=node_with())) == [
        (Release, "never installed", ("web",))
    ]
    nothing = LedgerEntry(id=key(), provenance=Provenance.INSTALLED)
    assert summary(decide(desired(), nothing, observation=node_with())) == [
        (Release, "never installed", ())
    ]


@pytest.mark.parametrize(
    "unread",
    [
        Emptied(profile_set=ORIGIN, revision=""),
        Missing(profile_set=ORIGIN, reason="not found"),
        Unreadable(profile_set=ORIGIN, reason="EACCES"),
    ],
)
def test_an_entry_with_a_staged_version_stays_while_its_set_is_not_read(unread: Snapshot) -> None:
    """An entry with a staged version stays, because this version may be on the node.

    Without the entry, the staged version would look foreign.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version())
    (hold,) = decide(desired(sets=[unread]), stored, observation=node_with(web="v1"))
    assert hold == Hold(
        id=key(),
        reason=Reason.SOURCE_UNAVAILABLE,
        names=("web",),
        state=ProfileState.HELD,
        desired=False,
    )


# --- staged versions that are no longer desired ---------------------------------------------------

OWN_HIDDEN = fact("object", is_agent_object=True, is_readable=False)


@pytest.mark.parametrize(
    ("observed", "evidence"),
    [
        (fact("v1", is_agent_object=True), {"raw:v1"}),
        (fact("v1"), {"raw:v1"}),
        (OWN_HIDDEN, {"raw:v1", "raw:object"}),
    ],
)
def test_an_undesired_staged_version_is_removed(
    observed: ObservedProfile, evidence: set[str]
) -> None:
    """If the agent was killed between load and commit, and the key was deleted, the staged version
    is removed.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(profiles={"web": observed}, uses={"web": Unused()})
    assert decide(desired(), stored, observation=observation) == (
        Remove(
            id=key(),
            reason=Reason.NOT_DESIRED,
            names=("web",),
            evidence={"web": frozenset(evidence)},
            require_unused=True,
        ),
    )


@pytest.mark.parametrize(
    ("use", "options", "reason"),
    [
        (InUse(pids=(7,)), {}, "in_use"),
        (UnknownUse(reason="hidden"), {}, "use_unknown"),
        (Unused(), {"prune": "never"}, "prune=never"),
        (Unused(), {"label_absent_seconds": {}}, "label_pending"),
    ],
)
def test_an_undesired_staged_version_is_held_like_an_installed_version(
    use: InUse | UnknownUse | Unused, options: JsonObject, reason: str
) -> None:
    """A staged version is removed only if it is proved unused, as an installed version is."""
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(profiles={"web": fact("v1", is_agent_object=True)}, uses={"web": use})
    (hold,) = decide(desired(), stored, observation=observation, **options)
    assert isinstance(hold, Hold)
    assert (type(hold), hold.reason, hold.names, hold.desired) == (Hold, reason, ("web",), False)


@pytest.mark.parametrize(
    "observed",
    [
        fact("other"),
        fact("other", is_agent_object=True),
        fact("v1", is_agent_object=False),
        fact("object", is_agent_object=False, is_readable=False),
        fact("other", equivalent_evidence=frozenset({"raw:v1"})),
    ],
)
def test_a_staged_version_that_is_not_proven_to_be_agent_owned_is_released(
    observed: ObservedProfile,
) -> None:
    """A staged version is released if neither its content nor its object proves that the agent
    loaded it.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(profiles={"web": observed}, uses={"web": Unused()})
    assert summary(decide(desired(), stored, observation=observation)) == [
        (Release, "foreign", ("web",))
    ]


def test_an_update_that_was_not_recorded_is_removed_with_its_key() -> None:
    """If an update was loaded but not committed, and its key was deleted, the loaded version is
    removed.
    """
    stored = entry(content="v1", staged=version("v2", ("web", "web2")))
    observation = Observation(
        profiles={name: fact("v2") for name in ("web", "web2")},
        uses={"web": Unused(), "web2": Unused()},
    )
    (remove,) = decide(desired(), stored, observation=observation)
    assert isinstance(remove, Remove)
    assert (type(remove), remove.names) == (Remove, ("web", "web2"))
    assert remove.evidence == {
        "web": frozenset({"raw:v1", "raw:v2"}),
        "web2": frozenset({"raw:v2"}),
    }


@pytest.mark.parametrize(
    ("content", "action"),
    [("v1", (Release, "adopted", ("web",))), ("v2", (Remove, "not desired", ("web",)))],
)
def test_an_adopted_profile_is_removed_only_if_the_agent_replaced_it(
    content: str, action: tuple[type[object], str, tuple[str]]
) -> None:
    """An adopted profile is removed only if the staged version on the node shows that the agent
    replaced the profile.
    """
    stored = entry(content="v1", provenance=Provenance.ADOPTED, staged=version("v2"))
    observation = Observation(profiles={"web": fact(content)}, uses={"web": Unused()})
    (decided,) = decide(desired(), stored, observation=observation)
    assert summary([decided]) == [action]
    if isinstance(decided, Remove):
        assert decided.evidence == {"web": frozenset({"raw:v2"})}


def test_a_name_that_only_an_unfinished_update_added_is_removed() -> None:
    """If only an unfinished update contains a name, and the key defines its installed version
    again, the name is removed.
    """
    stored = entry(content="v1", staged=version("v2", ("web", "web2")))
    observation = Observation(
        profiles={"web": fact("v1"), "web2": fact("v2")}, uses={"web2": Unused()}
    )
    assert summary(decide(desired(profile()), stored, observation=observation)) == [
        (Keep, "unchanged", ("web",)),
        (Remove, "not desired", ("web2",)),
    ]


@pytest.mark.parametrize("content", ["v1", "v2"])
def test_an_unfinished_installation_of_another_key_is_repeated(content: str) -> None:
    """If a key is renamed after an unfinished installation, the new key repeats the installation.
    The profile is not foreign.
    """
    stored = LedgerEntry(id=key("old"), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(profiles={"web": fact("v1", is_agent_object=True)})
    new = profile(key("new"), content=content)
    assert summary(decide(desired(new), stored, observation=observation)) == [
        (Install, "unfinished", ("web",)),
        (Release, "moved", ("web",)),
    ]


def test_a_staged_name_of_an_unrelated_set_can_move() -> None:
    """A key may provide a staged name of another profile set if no source provides that profile
    set.
    """
    stored = LedgerEntry(
        id=key(origin="configmap ns/old"), provenance=Provenance.INSTALLED, staged=version("v1")
    )
    observation = Observation(profiles={"web": fact("v1", is_agent_object=True)})
    assert summary(decide(desired(profile()), stored, observation=observation)) == [
        (Install, "unfinished", ("web",)),
        (Release, "moved", ("web",)),
    ]


def test_a_staged_name_that_another_entry_owns_is_removed_by_that_entry() -> None:
    """If one entry staged a name that another entry owns, only the owner removes the profile."""
    owner = entry(key("owner"), content="v2")
    stored = LedgerEntry(id=key("staged"), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(profiles={"web": fact("v2")}, uses={"web": Unused()})
    assert summary(decide(desired(), owner, stored, observation=observation)) == [
        (Release, "moved", ("web",)),
        (Remove, "not desired", ("web",)),
    ]


def test_a_staged_profile_is_removed_if_its_owner_does_not_match_the_node() -> None:
    """The owner releases the name, because the agent replaced its profile before the kill."""
    owner = entry(key("owner"), content="v1")
    stored = LedgerEntry(id=key("staged"), provenance=Provenance.INSTALLED, staged=version("v2"))
    observation = Observation(profiles={"web": fact("v2")}, uses={"web": Unused()})
    assert summary(decide(desired(), owner, stored, observation=observation)) == [
        (Release, "foreign", ("web",)),
        (Remove, "not desired", ("web",)),
    ]


def test_a_staged_profile_stays_if_its_owner_stays() -> None:
    """The source of the owner cannot be read, so the owner restores its last good version."""
    owner = entry(key("owner", origin="configmap ns/unread"), content="v1")
    stored = LedgerEntry(id=key("staged"), provenance=Provenance.INSTALLED, staged=version("v2"))
    observation = Observation(profiles={"web": fact("v2")}, uses={"web": Unused()})
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="configmap ns/unread", reason="EIO"),
    ]
    actions = decide(desired(sets=sets), owner, stored, observation=observation)
    assert (Release, "moved", ("web",)) in summary(actions)
    assert not [action for action in actions if isinstance(action, Remove)]


def test_two_entries_own_a_name_that_a_third_entry_staged() -> None:
    """If a third entry staged a name that two entries own, the releases of the name require no
    installed version.
    """
    first, second = entry(key("a"), content="v1"), entry(key("b"), content="v1")
    third = LedgerEntry(id=key("c"), provenance=Provenance.INSTALLED, staged=version("v2"))
    actions = decide(
        desired(profile(key("new"), content="v1")),
        first,
        second,
        third,
        observation=node_with(web="v1"),
    )
    released = {action.id.key for action in actions if isinstance(action, Release)}
    assert released == {"a", "b", "c"}


@pytest.mark.parametrize(("state", "reason"), [("rejected", "rejected"), ("pending", "pending")])
def test_a_staged_version_stays_while_its_key_is_not_accepted(state: str, reason: str) -> None:
    """The staged version of a rejected or pending key stays until a new version of the key is
    accepted.
    """
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(profiles={"web": fact("v1")}, uses={"web": Unused()})
    assert summary(decide(desired(**{state: [key()]}), stored, observation=observation)) == [
        (Hold, reason, ())
    ]


def test_a_staged_version_stays_while_its_key_is_blocked() -> None:
    """If a foreign profile blocks a key without an installed version, the staged version stays."""
    stored = LedgerEntry(id=key(), provenance=Provenance.INSTALLED, staged=version("v1"))
    observation = Observation(
        profiles={"web": fact("v1", is_agent_object=True), "new": fact(is_agent_object=False)},
        uses={"web": Unused()},
    )
    new = profile(content="v2", names=("new",))
    assert summary(decide(desired(new), stored, observation=observation)) == [
        (Hold, "foreign", ("new",))
    ]


def test_a_rejected_key_keeps_a_staged_version_that_it_needs() -> None:
    """If a key is renamed after an unfinished installation and then rejected, its staged profile
    stays on the node.
    """
    refused = Rejection(id=key("new"), findings=(REFUSED,), names=("web",))
    stored = LedgerEntry(id=key("old"), provenance=Provenance.INSTALLED, staged=version("v1"))
    needed = replace(desired(), rejections={refused.id: refused})
    observation = Observation(profiles={"web": fact("v1")}, uses={"web": Unused()})
    assert summary(decide(needed, stored, observation=observation)) == [
        (Hold, "rejected", ()),
        (Hold, "still needed", ("web",)),
    ]


def test_a_renamed_key_keeps_its_profile() -> None:
    """If a key is renamed, the ownership moves to the new key, and the node does not change."""
    actions = decide(
        desired(profile(key("new"))), entry(key("old")), observation=node_with(web="v1")
    )
    assert summary(actions) == [(Keep, "renamed", ("web",)), (Release, "moved", ("web",))]


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (node_with(web="v1"), (Hold, "still needed", ("web",))),
        (node_with(), (Install, "went missing", ("web",))),
    ],
)
def test_a_name_that_a_rejected_key_needs_stays(
    observation: Observation, action: tuple[type[object], str, tuple[str]]
) -> None:
    """If a key is renamed and rejected at the same time, the version of the previous key stays."""
    refused = Rejection(id=key("new"), findings=(REFUSED,), names=("web",))
    desired_keys = replace(desired(), rejections={key("new"): refused})
    assert summary(
        decide(desired_keys, entry(key("old")), observation=observation, label_absent_seconds={})
    ) == [
        (Hold, "rejected", ()),
        action,
    ]


def test_a_name_that_a_key_with_a_foreign_name_needs_stays() -> None:
    """If a foreign profile blocks a renamed key, all names of the previous key stay."""
    desired_keys = desired(profile(key("new"), "v2", ("helper", "web")))
    actions = decide(
        desired_keys, entry(key("old")), observation=node_with(web="v1", helper="foreign")
    )
    assert summary(actions) == [
        (Hold, "foreign", ("helper", "web")),
        (Hold, "still needed", ("web",)),
    ]
    actions = decide(desired_keys, entry(key("old")), observation=node_with(helper="foreign"))
    assert summary(actions)[1:] == [(Install, "went missing", ("web",))]


def test_an_incomplete_version_is_held_but_not_restored() -> None:
    """If one name of a rejected key has moved to another key, the version is incomplete. The
    profile under the other name is kept but not restored.
    """
    refused = Rejection(id=key("new"), findings=(REFUSED,), names=("web",))
    desired_keys = desired(profile(key("api"), "v2", ("api",)))
    desired_keys = replace(desired_keys, rejections={key("new"): refused})
    stored = entry(key("old"), names=("api", "web"))
    assert summary(decide(desired_keys, stored, observation=node_with(api="v1", web="v1"))) == [
        (Install, "changed", ("api",)),
        (Hold, "rejected", ()),
        (Hold, "still needed", ("web",)),
        (Release, "moved", ("api",)),
    ]
    assert summary(decide(desired_keys, stored, observation=node_with(api="v1")))[2:] == [
        (Release, "moved", ("api",)),
        (Release, "absent", ("web",)),
    ]


def test_a_name_of_an_unrelated_set_can_move() -> None:
    """If a current key provides a name of an unrelated profile set, the entry of that set releases
    only this name.
    """
    other = entry(key("old", origin="dir /elsewhere"), names=("web", "more"))
    actions = decide(
        desired(profile(content="v2")), other, observation=node_with(web="v1", more="v1")
    )
    assert summary(actions) == [(Install, "changed", ("web",)), (Release, "moved", ("web",))]


def test_entries_of_unrelated_sets_have_no_action() -> None:
    """Ledger entries of unrelated profile sets cause no action, because the sources of this pass do
    not provide these sets.
    """
    other = entry(key("old", origin="dir /elsewhere"))
    assert decide(desired(), other, observation=node_with(web="v1")) == ()


@pytest.mark.parametrize("refused", ["rejected", "unchecked"])
def test_a_name_of_a_rejected_key_cannot_move(refused: str) -> None:
    """A name in the last good version of a rejected key cannot move to another key."""
    desired_keys = desired(profile(key("new"), "v2"), **{refused: [key("old")]})
    new, old = decide(desired_keys, entry(key("old")), observation=node_with(web="v1"))
    assert isinstance(old, Hold)
    assert isinstance(new, Hold)
    assert (new.state, [finding.code for finding in new.findings]) == (
        "rejected",
        ["name_conflict"],
    )
    assert (type(old), old.names, old.state) == (Hold, ("web",), "outdated")


def test_a_name_of_an_unreadable_set_cannot_move() -> None:
    """A name of an unreadable profile set cannot move, because the profile set may still provide
    it.
    """
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="dir /x", reason="EIO"),
    ]
    desired_keys = desired(profile(content="v2"), sets=sets)
    stored = entry(key("old", origin="dir /x"))
    new, old = decide(desired_keys, stored, observation=node_with(web="v1"))
    assert isinstance(old, Hold)
    assert isinstance(new, Hold)
    assert (new.state, old.reason, old.state) == ("rejected", "source unavailable", "held")


def test_an_unreadable_set_blocks_every_removal() -> None:
    """An unreadable profile set blocks every removal, because a key may have moved to this set."""
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="dir /x", reason="EIO"),
    ]
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    assert summary(decide(desired(sets=sets), entry(), observation=observation)) == [
        (Hold, "a source is unreadable", ("web",))
    ]


@pytest.mark.parametrize(
    "unread",
    [
        Emptied(profile_set=ORIGIN, revision=""),
        Missing(profile_set=ORIGIN, reason="not found"),
        Unreadable(profile_set=ORIGIN, reason="EACCES"),
    ],
)
def test_profiles_of_a_set_that_was_not_read_are_kept_and_restored(unread: Snapshot) -> None:
    """Profiles of an emptied, missing or unreadable set are never removed."""
    desired_keys = desired(sets=[unread])
    assert summary(decide(desired_keys, entry(), observation=node_with(web="v1"))) == [
        (Hold, "source unavailable", ("web",))
    ]
    assert summary(decide(desired_keys, entry(), observation=node_with())) == [
        (Install, "went missing", ("web",))
    ]


@pytest.mark.parametrize(
    "unread",
    [Emptied(profile_set="dir /x", revision=""), Missing(profile_set="dir /x", reason="not found")],
)
def test_names_of_a_missing_or_empty_set_can_move_together(unread: Snapshot) -> None:
    """If a ConfigMap is created again under another name, all of its profile names can move to the
    new profile set together.
    """
    sets = [Read(profile_set=ORIGIN, revision="1", source_keys=()), unread]
    desired_keys = desired(profile(content="v2"), sets=sets)
    old = entry(key("old", origin="dir /x"))
    assert summary(decide(desired_keys, old, observation=node_with(web="v1"))) == [
        (Install, "changed", ("web",)),
        (Release, "moved", ("web",)),
    ]
    # If the new profile set lacks one of the names, the old profile set stays complete and blocks
    # the new key.
    both = entry(key("old", origin="dir /x"), names=("also", "web"))
    assert summary(decide(desired_keys, both, observation=node_with(web="v1", also="v1"))) == [
        (Hold, "conflict", ("web",)),
        (Hold, "source unavailable", ("also", "web")),
    ]


def test_a_duplicate_key_releases_its_names_to_the_first_key() -> None:
    """If two keys have the same content, only the first key owns the profiles."""
    desired_keys = desired(profile(key("a")), same={key("b"): key("a")})
    actions = decide(desired_keys, entry(key("b")), observation=node_with(web="v1"))
    assert summary(actions) == [(Keep, "renamed", ("web",)), (Release, "moved", ("web",))]


@pytest.mark.parametrize(
    ("observed", "state"),
    [
        (Unobservable(finding=REFUSED), "unobservable"),
        (Unsupported(finding=REFUSED), "unsupported"),
    ],
)
def test_an_unobservable_or_unsupported_kind_is_held(observed: Observed, state: str) -> None:
    """If a kind is unobservable or unsupported, the agent takes no action on its keys and ledger
    entries. Rejected keys stay rejected.
    """
    desired_keys = desired(profile(), rejected=[key("bad")], unchecked=[key("later")])
    far = entry(key("far", origin="dir /elsewhere"))
    actions = decide(desired_keys, entry(key("deleted")), far, observation=observed)
    assert [(action.id.key, action.state) for action in actions] == [
        ("bad", "rejected"),
        ("later", state),
        ("web.profile", state),
        ("deleted", state),
    ]


def test_a_version_that_was_installed_before_an_adoption_is_removed() -> None:
    """If a key adopts a foreign profile, the version that the agent installed before is removed."""
    stored = entry(provenance=Provenance.ADOPTED, retired={"left": frozenset({"raw:v0"})})
    observation = Observation(profiles={"web": fact(), "left": fact("v0")}, uses={"left": Unused()})
    assert summary(decide(desired(profile()), stored, observation=observation)) == [
        (Keep, "unchanged", ("web",)),
        (Remove, "not desired", ("left",)),
    ]


V1 = entry(names=("a", "b"))  # This version is installed under the key of `profile`.


@pytest.mark.parametrize(
    ("stored", "new", "observation", "replaceable"),
    [
        (V1, ("a",), node_with(), frozenset()),
        (V1, ("a",), node_with(b="v1"), frozenset({"b"})),
        (V1, ("a",), node_with(a="foreign"), frozenset({"a"})),
        (V1, ("a",), node_with(a="v1", b="v1"), None),
        (V1, ("a",), node_with(b="foreign"), None),
        (V1, ("c",), node_with(), frozenset()),
        (entry(key("previous"), names=("a", "b")), ("a",), node_with(), frozenset()),
    ],
    ids=[
        "all names are missing",
        "one name is missing",
        "one name has drifted",
        "all names are present",
        "a dropped profile is foreign",
        "no name in common",
        "version of the previous key",
    ],
)
def test_an_installation_has_a_fallback_if_the_last_good_version_is_missing(
    stored: LedgerEntry,
    new: tuple[str],
    observation: Observation,
    replaceable: frozenset[str] | None,
) -> None:
    """If the last good version is not on the node, an installation has this version as its
    fallback. The fallback replaces no foreign profile.
    """
    (action, *_) = decide(
        desired(profile(content="v2", names=new)), stored, observation=observation
    )
    assert isinstance(action, Install)
    assert action.previous_owners == {stored.id}
    if replaceable is None:
        assert action.fallback is None
    else:
        assert action.fallback == Install(
            id=stored.id,
            reason=not_none(action.fallback).reason,
            names=("a", "b"),
            profile=None,
            replaceable=replaceable,
        )


def test_a_fallback_contains_no_name_of_another_key() -> None:
    """A version is not used as a fallback if another key provides or owns one of its names."""
    other = profile(key("other"), "v3", ("b",))
    desired_keys = desired(profile(content="v2", names=("a",)), other)
    (_, action, *_) = decide(desired_keys, V1, observation=node_with())
    assert isinstance(action, Install)
    assert (action.names, action.fallback) == (("a",), None)
    owner = entry(key("owner", origin="dir /elsewhere"), "v3", ("b",))
    (action, *_) = decide(
        desired(profile(content="v2", names=("a",))), V1, owner, observation=node_with()
    )
    assert isinstance(action, Install)
    assert action.fallback is None


def test_an_update_with_a_foreign_name_is_held_completely() -> None:
    """If one name of an update is foreign, the update is not installed under any name."""
    desired_profile = profile(content="v2", names=("web", "extra"))
    (hold,) = decide(
        desired(desired_profile), entry(), observation=node_with(web="v1", extra="foreign")
    )
    assert isinstance(hold, Hold)
    assert (hold.reason, hold.names, hold.state) == ("foreign", ("web",), "outdated")


def test_removal_candidates_are_agent_owned_names_without_a_key() -> None:
    """Only agent-owned names without a key are removal candidates, so the agent observes the use of
    these names only.
    """
    desired_keys = desired(profile())
    stored = {
        owner.id: owner
        for owner in (
            entry(),
            entry(key("old"), names=("old",)),
            entry(
                key("foreign"),
                names=("foreign",),
                provenance=Provenance.ADOPTED,
                retired={"left": frozenset({"raw:v0"})},
            ),
            entry(key("far", origin="dir /far"), names=("far",)),
        )
    }
    assert plan.removal_candidates(desired_keys, stored, PlanOptions()) == frozenset(
        {"left", "old"}
    )
    assert (
        plan.removal_candidates(desired_keys, stored, PlanOptions(prune=PruneMode.NEVER))
        == frozenset()
    )


def test_a_name_of_a_blocked_key_cannot_move() -> None:
    """A name of a key that a foreign profile blocks cannot move to another key."""
    first, second = profile(key("one"), "v2", ("b", "c")), profile(key("two"), "v2", ("a",))
    stored = entry(key("one"), names=("a",)), entry(key("three"), names=("b",))
    desired_keys = desired(first, second, rejected=[key("three")])
    actions = decide(desired_keys, *stored, observation=node_with(a="v1", b="v1"))
    assert [(action.id.key, action.state) for action in actions] == [
        ("one", "outdated"),
        ("two", "rejected"),
        ("three", "outdated"),
    ]


def test_a_key_that_looks_like_another_kind_keeps_its_last_good_version() -> None:
    """If a partially written key looks like a profile of another kind, its last good version stays
    installed.
    """
    desired_keys = Desired(
        rejections={key(): Rejection(id=key(), findings=(REFUSED,))},
        keys=frozenset({(ORIGIN, "web.profile")}),
        profile_sets={ORIGIN: Read(profile_set=ORIGIN, revision="1", source_keys=())},
    )
    seccomp = entry(key(kind="seccomp"))
    (held,) = decide(
        desired_keys, seccomp, observation=node_with(web="v1"), kind="seccomp", prune="always"
    )
    assert isinstance(held, Hold)
    assert (type(held), held.reason, held.desired) == (Hold, "source unavailable", True)


def test_keys_in_a_rejected_directory_keep_their_last_good_version() -> None:
    """If a link or a FIFO replaced a directory, its keys are rejected and keep their last good
    version.
    """
    desired_keys = desired(rejected=[key("sub")])
    stored = entry(key("sub/deep/web.profile"))
    actions = decide(desired_keys, stored, observation=node_with(web="v1"))
    assert (Hold, "source unavailable", ("web",)) in summary(actions)


def test_a_key_that_is_accepted_as_another_kind_replaces_its_previous_profile() -> None:
    """If a key is accepted as another kind, its previous profile is removed."""
    other = Profile(id=key(kind="seccomp"), version=version(), source=b"s", body_size=1)
    desired_keys = Desired(
        profiles={other.id: other},
        keys=frozenset({(ORIGIN, "web.profile")}),
        profile_sets={ORIGIN: Read(profile_set=ORIGIN, revision="1", source_keys=())},
    )
    observation = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (removed,) = decide(desired_keys, entry(), observation=observation)
    assert type(removed) is Remove
