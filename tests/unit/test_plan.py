"""The decision table of agent.core.plan, a test or more for each row."""

from dataclasses import replace

import pytest

from agent.core import plan
from agent.core.actions import Adopt, Hold, Install, Keep, Release, Remove
from agent.core.desired import Desired
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    InUse,
    KeyId,
    LedgerEntry,
    Missing,
    Observation,
    ObservedProfile,
    Pending,
    Profile,
    Read,
    Rejection,
    Unchecked,
    UnknownUse,
    Unobservable,
    Unreadable,
    Unsupported,
    Unused,
    Version,
)
from agent.core.plan import PlanOptions
from tests.world import CAPABILITIES

ORIGIN = "configmap ns/web"
REFUSED = Finding(code="parser_rejected", location="web", message="refused")


def key(name="web.profile", *, kind="apparmor", origin=ORIGIN):
    return KeyId(kind=kind, profile_set=origin, key=name)


def version(content="v1", names=("web",), **more):
    more.setdefault("evidence", {name: frozenset({f"raw:{content}"}) for name in names})
    return Version(
        names=names, source_digest=f"source {content}", body_digest=f"body {content}", **more
    )


def profile(id_=None, content="v1", names=("web",), **more):
    return Profile(
        id=id_ or key(), version=version(content, names, **more), source=b"s", body_size=1
    )


def entry(id_=None, content="v1", names=("web",), how="installed", **more):
    return LedgerEntry(id=id_ or key(), provenance=how, installed=version(content, names), **more)


def fact(content="v1", mode="", **more):
    return ObservedProfile(evidence=frozenset({f"raw:{content}"}), mode=mode, **more)


def others(**loaded):
    """Return a node on which another program loaded this content."""
    return Observation(
        profiles={name: fact(content, is_agent_object=False) for name, content in loaded.items()}
    )


def has(**loaded):
    return Observation(profiles={name: fact(content) for name, content in loaded.items()})


def desired(*profiles, rejected=(), unchecked=(), pending=(), sets=None, same=None):
    sets = sets if sets is not None else [Read(profile_set=ORIGIN, revision="1", source_keys=())]
    return Desired(
        profiles={one.id: one for one in profiles},
        rejections={id_: Rejection(id=id_, findings=(REFUSED,)) for id_ in rejected},
        unchecked={id_: Unchecked(id=id_, finding=REFUSED) for id_ in unchecked},
        pending={id_: Pending(id=id_, source=b"profile new {}") for id_ in pending},
        duplicates=same or {},
        profile_sets={one.profile_set: one for one in sets},
    )


def decide(wanted, *entries, seen, kind="apparmor", **options):
    ids = {one.id: one for one in entries}
    return plan.plan(wanted, ids, {kind: seen}, PlanOptions(**options), CAPABILITIES)


def short(actions):
    """Return the type, the reason and the names of each action, which most rows specify."""
    return [(type(one), one.reason, one.names) for one in actions]


def test_a_new_profile_is_installed():
    """A desired profile that is neither on the node nor in the ledger is installed."""
    wanted = profile()
    put = Install(id=key(), reason="new", names=("web",), profile=wanted, replaceable=frozenset())
    assert decide(desired(wanted), seen=has()) == (put,)


def test_a_profile_of_the_same_content_is_adopted():
    """A desired profile that another program loaded with the same content is adopted."""
    wanted = profile()
    adopt = Adopt(
        id=key(),
        reason="same content",
        names=("web",),
        profile=wanted,
        evidence={"web": frozenset({"raw:v1"})},
    )
    assert decide(desired(wanted), seen=has(web="v1")) == (adopt,)


def test_a_profile_loaded_by_someone_else_is_held():
    """A foreign profile with other content is never replaced."""
    (hold,) = decide(desired(profile()), seen=has(web="theirs"))
    assert (Hold, "foreign", ["foreign_name"]) == (
        type(hold),
        hold.state,
        [one.code for one in hold.findings],
    )


def test_a_profile_of_the_same_content_in_another_mode_is_foreign():
    """Equal evidence in another mode does not prove equal content."""
    wanted = profile(modes={"web": "enforce"})
    (hold,) = decide(desired(wanted), seen=Observation(profiles={"web": fact(mode="complain")}))
    assert hold.state == "foreign"


def test_a_taken_over_name_is_replaced():
    """With --take-over, a foreign profile counts as agent-owned."""
    actions = decide(desired(profile()), seen=has(web="theirs"), take_over=frozenset({"web"}))
    assert [one.replaceable for one in actions] == [frozenset({"web"})]


def test_an_unchanged_profile_is_kept():
    """An installed profile that is desired and on the node needs no action."""
    actions = decide(desired(profile()), entry(), seen=has(web="v1"))
    assert short(actions) == [(Keep, "unchanged", ("web",))]


def test_a_drifted_profile_is_restored():
    """Other content under an agent-owned name is replaced by the agent's version."""
    actions = decide(desired(profile()), entry(), seen=has(web="other"))
    assert [(Install, "drifted", ("web",))] == short(actions)
    assert actions[0].replaceable == frozenset({"web"})


def test_an_adopted_profile_that_changed_on_the_node_is_held():
    """An adopted profile belongs to another program, which may change it."""
    (hold,) = decide(desired(profile()), entry(how="adopted"), seen=has(web="other"))
    assert (hold.state, hold.names) == ("foreign", ("web",))


def test_the_same_content_of_another_program_serves_the_key():
    """The same content that another program loaded after a loss needs no replacement."""
    actions = decide(desired(profile()), entry(), seen=others(web="v1"))
    assert short(actions) == [(Keep, "unchanged", ("web",))]


def test_other_content_that_another_program_loaded_is_held():
    """Other content that another program loaded after a loss is foreign, not drift."""
    (hold,) = decide(desired(profile()), entry(), seen=others(web="other"))
    assert (type(hold), hold.state, hold.names) == (Hold, "foreign", ("web",))


def test_content_that_cannot_be_read_is_not_called_other_content():
    """On a kernel that shows no content, foreign means only that it is not the agent's."""
    seen = Observation(profiles={"web": fact("object", is_agent_object=False, is_readable=False)})
    (hold,) = decide(desired(profile()), entry(), seen=seen)
    assert "with content that cannot be verified" in hold.findings[0].message


def test_an_update_replaces_the_same_content_of_another_program():
    """An update replaces this content in the same way as an adopted profile (ADR 7)."""
    (put,) = decide(desired(profile(content="v2")), entry(), seen=others(web="v1"))
    assert (put.reason, put.replaceable, put.foreign) == (
        "changed",
        frozenset({"web"}),
        frozenset(),
    )


def test_a_missing_name_does_not_make_another_programs_object_the_agents():
    """Both profiles are loaded in one step, and the foreign profile stays foreign."""
    names = ("a", "b")
    (put,) = decide(desired(profile(names=names)), entry(names=names), seen=others(a="v1"))
    assert (put.reason, put.replaceable, put.foreign) == (
        "went missing",
        frozenset({"a"}),
        frozenset({"a"}),
    )
    (back,) = decide(desired(rejected=[key()]), entry(names=names), seen=others(a="v1"))
    assert (back.reason, back.replaceable, back.foreign) == (
        "went missing",
        frozenset({"a"}),
        frozenset({"a"}),
    )


@pytest.mark.parametrize("content", ["v1", "other"])
def test_a_name_that_is_handed_over_becomes_the_agents(content):
    """With --take-over, the profile is replaced, independent of its content."""
    actions = decide(
        desired(profile()), entry(), seen=others(web=content), take_over=frozenset({"web"})
    )
    assert short(actions) == [(Install, "taken over", ("web",))]
    assert (actions[0].replaceable, actions[0].foreign) == (frozenset({"web"}), frozenset())


def test_a_staged_version_that_another_program_loaded_is_adopted():
    """After a kill before the load, the agent does not own a profile that another program loads."""
    stored = LedgerEntry(id=key(), provenance="installed", staged=version("v1"))
    assert short(decide(desired(profile()), stored, seen=others(web="v1"))) == [
        (Adopt, "same content", ("web",))
    ]


def test_a_staged_version_that_this_agent_loaded_is_finished():
    """The record of loaded objects proves ownership even if the node shows no content."""
    stored = LedgerEntry(id=key(), provenance="installed", staged=version("v1"))
    seen = Observation(profiles={"web": fact("object", is_agent_object=True, is_readable=False)})
    assert short(decide(desired(profile()), stored, seen=seen)) == [
        (Install, "unfinished", ("web",))
    ]


def test_the_desired_content_of_another_program_is_adopted():
    """The other program has loaded the new version already, so no conflict exists."""
    stored = entry(how="adopted")
    assert short(decide(desired(profile(content="v2")), stored, seen=others(web="v2"))) == [
        (Adopt, "same content", ("web",))
    ]


def test_a_rejected_update_does_not_replace_a_profile_of_another_program():
    """The last good version does not replace a foreign profile."""
    (hold,) = decide(desired(rejected=[key()]), entry(), seen=others(web="other"))
    assert (hold.state, [one.code for one in hold.findings]) == (
        "foreign",
        ["parser_rejected", "foreign_name"],
    )


def test_an_absent_profile_is_installed_as_new():
    """A missing profile is restored without replacing a profile that was loaded since then."""
    (put,) = decide(desired(profile()), entry(), seen=has())
    assert (put.reason, put.replaceable) == ("went missing", frozenset())


def test_a_changed_profile_is_installed():
    """A new version replaces the installed one."""
    (put,) = decide(desired(profile(content="v2")), entry(), seen=has(web="v1"))
    assert (put.reason, put.replaceable) == ("changed", frozenset({"web"}))


def test_the_same_text_compiled_again_is_installed_with_its_own_reason():
    """A new body from an unchanged source has the reason "recompiled", and is not drift."""
    wanted = profile(content="v1")
    old = Version(
        names=("web",),
        source_digest="source v1",
        body_digest="older body",
        evidence={"web": frozenset({"raw:old"})},
    )
    stored = LedgerEntry(id=key(), provenance="installed", installed=old)
    assert short(decide(desired(wanted), stored, seen=has(web="old"))) == [
        (Install, "recompiled", ("web",))
    ]


def test_a_staged_version_that_is_on_the_node_is_committed():
    """After a kill between load and commit, the content proves that the agent loaded it."""
    stored = LedgerEntry(id=key(), provenance="installed", staged=version("v1"))
    (put,) = decide(desired(profile(content="v2")), stored, seen=has(web="v1"))
    assert (put.reason, put.replaceable) == ("unfinished", frozenset({"web"}))


def test_a_staged_version_that_is_not_on_the_node_is_no_ownership():
    """A staged version that was never installed does not prove ownership of other content."""
    stored = LedgerEntry(id=key(), provenance="installed", staged=version("v1"))
    (hold,) = decide(desired(profile(content="v2")), stored, seen=has(web="theirs"))
    assert hold.state == "foreign"


def test_a_profile_with_one_foreign_name_is_held_completely():
    """All profiles of a key are installed together or not at all."""
    (hold,) = decide(desired(profile(names=("a", "b"))), seen=has(a="v1"))
    assert (hold.state, [one.location for one in hold.findings]) == ("foreign", ["a"])


def test_a_dropped_name_is_removed_after_the_installation():
    """A new version is installed before the profiles that it no longer contains are removed."""
    seen = Observation(profiles={"a": fact(), "b": fact()}, uses={"b": Unused()})
    actions = decide(
        desired(profile(content="v2", names=("a",))), entry(names=("a", "b")), seen=seen
    )
    assert short(actions) == [(Install, "changed", ("a",)), (Remove, "not desired", ("b",))]


def test_a_retired_name_is_removed():
    """A profile that only an earlier version contains is removed once it is unused."""
    stored = entry(retired={"web//hat": frozenset({"raw:hat"})})
    seen = Observation(
        profiles={"web": fact(), "web//hat": fact("hat")}, uses={"web//hat": Unused()}
    )
    assert short(decide(desired(profile()), stored, seen=seen)) == [
        (Keep, "unchanged", ("web",)),
        (Remove, "not desired", ("web//hat",)),
    ]


def test_a_rejected_update_holds_the_last_good_version():
    """The last good version of a rejected key stays installed."""
    (hold,) = decide(desired(rejected=[key()]), entry(), seen=has(web="v1"))
    expected = Hold(
        id=key(), reason="rejected", names=("web",), state="outdated", findings=(REFUSED,)
    )
    assert expected == hold


@pytest.mark.parametrize(
    ("seen", "why", "ours"),
    [(has(), "went missing", frozenset()), (has(web="other"), "drifted", frozenset({"web"}))],
)
def test_a_rejected_update_restores_the_last_good_version(seen, why, ours):
    """A missing or changed last good version is restored from the ledger."""
    (put,) = decide(desired(rejected=[key()]), entry(), seen=seen)
    expected = Install(
        id=key(), reason=why, names=("web",), profile=None, replaceable=ours, findings=(REFUSED,)
    )
    assert expected == put


def test_a_new_key_that_is_still_checked_is_held():
    """The names of a pending key are not known yet."""
    hold = Hold(id=key(), reason="pending", names=(), state="pending")
    assert decide(desired(pending=[key()]), seen=has()) == (hold,)


def test_an_update_that_is_still_checked_holds_the_last_good_version():
    """The installed version counts as outdated until the update is accepted."""
    hold = Hold(id=key(), reason="pending", names=("web",), state="outdated")
    assert decide(desired(pending=[key()]), entry(), seen=has(web="v1")) == (hold,)


@pytest.mark.parametrize(("seen", "why"), [(has(), "went missing"), (has(web="v0"), "drifted")])
def test_an_update_that_is_still_checked_restores_the_last_good_version(seen, why):
    """A profile that went missing does not wait for the check."""
    (put,) = decide(desired(pending=[key()]), entry(), seen=seen)
    assert (type(put), put.reason, put.profile) == (Install, why, None)


@pytest.mark.parametrize("how", ["installed", "adopted"])
def test_nothing_is_removed_or_released_while_a_key_is_checked(how):
    """The key may provide the same profile under a new name, so the label stays too."""
    hold = Hold(id=key(), reason="pending", names=("web",), state="held")
    new = key("new.profile")
    actions = decide(
        desired(pending=[new]),
        entry(how=how),
        seen=Observation(profiles={"web": fact()}, uses={"web": Unused()}),
    )
    assert actions == (Hold(id=new, reason="pending", names=(), state="pending"), hold)


def test_a_check_of_another_kind_holds_up_no_removal():
    """A seccomp file does not wait for AppArmor texts."""
    stored = entry(key(kind="seccomp"))
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    wanted = desired(pending=[key("new.profile")])
    assert short(decide(wanted, stored, seen=seen, kind="seccomp")) == [
        (Remove, "not desired", ("web",))
    ]


def test_a_new_name_waits_for_a_key_that_may_declare_it():
    """Two keys that declare one name are both rejected, whichever is checked first."""
    new, other = profile(key("a.profile"), names=("new",)), profile(key("b.profile"))
    actions = decide(desired(new, other, pending=[key("c.profile")]), seen=has())
    assert [(one.id.key, type(one), one.reason) for one in actions] == [
        ("a.profile", Hold, "pending"),
        ("b.profile", Install, "new"),
        ("c.profile", Hold, "pending"),
    ]


def test_a_name_of_a_key_that_is_checked_waits_for_it():
    """The new version of the key may no longer contain the profile."""
    actions = decide(
        desired(profile(key("a.profile"), "v2"), pending=[key()]), entry(), seen=has(web="v1")
    )
    assert [(one.id.key, type(one), one.reason) for one in actions] == [
        ("a.profile", Hold, "pending"),
        ("web.profile", Hold, "pending"),
    ]


def test_an_installed_name_waits_for_no_other_key():
    """An update of a profile is installed though another key is still being checked."""
    wanted = profile(content="v2", names=("new",))
    stored = LedgerEntry(id=key(), provenance="installed", installed=version("v1", ("new",)))
    (put, _) = decide(desired(wanted, pending=[key("c.profile")]), stored, seen=has(new="v1"))
    assert (type(put), put.reason) == (Install, "changed")


def test_a_rejected_update_does_not_replace_a_changed_adopted_profile():
    """The last good version does not replace an adopted profile that its owner changed."""
    (hold,) = decide(desired(rejected=[key()]), entry(how="adopted"), seen=has(web="other"))
    assert (hold.state, [one.code for one in hold.findings]) == (
        "foreign",
        ["parser_rejected", "foreign_name"],
    )


def test_a_rejected_new_key_is_only_reported():
    """A key that was never accepted has no last good version."""
    assert decide(desired(rejected=[key()]), seen=has()) == (
        Hold(id=key(), reason="rejected", names=(), state="rejected", findings=(REFUSED,)),
    )


def test_a_key_that_cannot_be_checked_keeps_its_last_good_version():
    """If the node cannot check the key, its installed profiles stay."""
    (hold,) = decide(desired(unchecked=[key()]), entry(), seen=has(web="v1"))
    assert (hold.reason, hold.state) == ("unchecked", "outdated")


def test_a_profile_no_longer_desired_is_removed():
    """An agent-owned profile that is neither desired nor in use is removed after a new check."""
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    assert decide(desired(), entry(), seen=seen) == (
        Remove(
            id=key(),
            reason="not desired",
            names=("web",),
            evidence={"web": frozenset({"raw:v1"})},
            require_unused=True,
        ),
    )


@pytest.mark.parametrize(
    ("use", "why"),
    [(InUse(pids=(1, 2)), "in_use"), (UnknownUse(reason="no /proc"), "use_unknown")],
)
def test_a_profile_in_use_is_held(use, why):
    """A removal would unconfine the processes permanently, so the profile is held."""
    seen = Observation(profiles={"web": fact()}, uses={"web": use})
    assert short(decide(desired(), entry(), seen=seen)) == [(Hold, why, ("web",))]


def test_hats_and_children_stay_with_a_profile_in_use():
    """Processes may enter hats and children at any time; a hat of an older version is removable."""
    names = ("web", "web//HAT", "web//kid", "web//kid//grandkid")
    uses = {name: Unused() for name in names} | {"web": InUse(pids=(1,))}
    seen = Observation(profiles={name: fact() for name in names}, uses=uses)
    actions = decide(desired(), entry(names=names), seen=seen)
    assert short(actions) == [(Hold, "in_use", (name,)) for name in names]
    assert [len(one.findings) for one in actions] == [1, 0, 0, 0]
    kept = decide(desired(profile()), entry(names=names), seen=seen)
    assert sorted(name for one in kept if isinstance(one, Remove) for name in one.names) == [
        *names[1:]
    ]


def test_a_profile_whose_use_was_not_observed_is_not_unused():
    """A profile whose use is unknown stays installed."""
    assert short(decide(desired(), entry(), seen=has(web="v1"))) == [
        (Hold, "use_unknown", ("web",))
    ]


def test_prune_never_holds():
    """--prune=never removes nothing at all."""
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    assert short(decide(desired(), entry(), seen=seen, prune="never")) == [
        (Hold, "prune=never", ("web",))
    ]


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        (None, Remove),  # labels are not published
        ({}, Hold),  # not confirmed to be absent
        ({("apparmor", "web"): 59.9}, Hold),
        ({("seccomp", "web"): 99.0}, Hold),  # another kind's
        ({("apparmor", "web"): 60.0}, Remove),
    ],
)
def test_a_removal_waits_for_its_label_and_the_grace_time(gone, expected):
    """A profile is removed when its label is confirmed absent and the grace time has passed."""
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (action,) = decide(desired(), entry(), seen=seen, label_absent_seconds=gone, grace_seconds=60.0)
    assert type(action) is expected
    if isinstance(action, Hold):
        assert (action.reason, action.desired) == ("label_pending", False)
        assert [one.code for one in action.findings] == ["label_pending"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (desired(), False),
        (desired(sets=[Unreadable(profile_set=ORIGIN, reason="away")]), True),
        (desired(rejected=[key()]), True),
    ],
)
def test_a_hold_always_records_whether_the_name_is_desired(wanted, expected):
    """While the node is unobservable, this information decides which labels stay."""
    blind = Unobservable(finding=REFUSED)
    (action,) = decide(wanted, entry(), seen=blind)
    assert (action.names, action.state, action.desired) == (("web",), "unobservable", expected)


def test_a_name_that_an_unreadable_source_may_desire_keeps_its_label():
    """The profile may have moved to the unreadable source."""
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="other", reason="away"),
    ]
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (action,) = decide(desired(sets=sets), entry(), seen=seen)
    assert (type(action), action.reason, action.desired) == (Hold, "a source is unreadable", True)


def test_pods_prove_the_use_of_files_and_only_add_to_that_of_policy():
    """A pod's reference holds both kinds; only files are unused when no pod references them."""
    seen = Observation(profiles={"web": fact()}, uses={"web": UnknownUse(reason="a file")})
    seccomp = entry(key(kind="seccomp"))
    (held,) = decide(
        desired(), seccomp, seen=seen, kind="seccomp", pods_by_profile={("seccomp", "web"): ("a",)}
    )
    assert (type(held), held.reason) == (Hold, "in_use")
    (free,) = decide(desired(), seccomp, seen=seen, kind="seccomp", pods_by_profile={})
    assert (type(free), free.require_unused) == (Remove, False)
    (policy,) = decide(desired(), entry(), seen=seen, pods_by_profile={})
    assert (type(policy), policy.reason) == (Hold, "use_unknown")
    unused = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (named,) = decide(
        desired(), entry(), seen=unused, pods_by_profile={("apparmor", "web"): ("a",)}
    )
    assert (type(named), named.reason) == (Hold, "in_use")


def test_while_the_pods_are_not_known_nothing_is_removed():
    """With --pod-aware, a failed or late list of pods does not count as an empty list."""
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (held,) = decide(desired(), entry(), seen=seen, pod_aware=True, prune="always")
    assert (type(held), held.reason) == (Hold, "use_unknown")
    (gone,) = decide(desired(), entry(), seen=seen, pod_aware=True, pods_by_profile={})
    assert type(gone) is Remove


def test_prune_always_needs_no_proof_for_seccomp_files_only():
    """--prune=always skips the in-use proof for files, never for loaded AppArmor profiles."""
    seen = Observation(profiles={"web": fact()}, uses={"web": UnknownUse(reason="a file")})
    seccomp = entry(key(kind="seccomp"))
    actions = decide(desired(), seccomp, seen=seen, kind="seccomp", prune="always")
    assert [(Remove, False)] == [(type(one), one.require_unused) for one in actions]
    assert short(decide(desired(), entry(), seen=seen, prune="always")) == [
        (Hold, "use_unknown", ("web",))
    ]


@pytest.mark.parametrize(
    ("stored", "seen", "why"),
    [
        (entry(how="adopted"), has(web="v1"), "adopted"),
        (entry(), has(), "absent"),
        (entry(), has(web="theirs"), "foreign"),
        (entry(), others(web="v1"), "foreign"),
        (entry(retired={"web": frozenset({"raw:v1"})}), others(web="v1"), "foreign"),
    ],
)
def test_a_profile_that_is_not_agent_owned_is_released(stored, seen, why):
    """Adopted, absent and replaced profiles leave the ledger, and the node does not change."""
    assert short(decide(desired(), stored, seen=seen)) == [(Release, why, ("web",))]


def test_an_entry_that_never_got_anywhere_is_dropped():
    """An entry without installed profiles is deleted from the ledger."""
    stored = LedgerEntry(id=key(), provenance="installed", staged=version())
    assert short(decide(desired(), stored, seen=has())) == [(Release, "never installed", ())]


@pytest.mark.parametrize(
    "unread",
    [
        Emptied(profile_set=ORIGIN, revision=""),
        Missing(profile_set=ORIGIN, reason="not found"),
        Unreadable(profile_set=ORIGIN, reason="EACCES"),
    ],
)
def test_a_staged_version_stays_recorded_while_its_set_is_unread(unread):
    """The staged version may be on the node, and without its entry it would look foreign."""
    stored = LedgerEntry(id=key(), provenance="installed", staged=version())
    assert decide(desired(sets=[unread]), stored, seen=has(web="v1")) == ()


def test_a_renamed_key_keeps_its_profile():
    """The ledger entry gets the new key, and the node does not change."""
    actions = decide(desired(profile(key("new"))), entry(key("old")), seen=has(web="v1"))
    assert short(actions) == [(Keep, "renamed", ("web",)), (Release, "moved", ("web",))]


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (has(web="v1"), (Hold, "still needed", ("web",))),
        (has(), (Install, "went missing", ("web",))),
    ],
)
def test_a_name_that_a_rejected_key_claims_stays(seen, action):
    """A key is renamed and rejected in one change; the version of the previous key stays."""
    refused = Rejection(id=key("new"), findings=(REFUSED,), names=("web",))
    wanted = replace(desired(), rejections={key("new"): refused})
    assert short(decide(wanted, entry(key("old")), seen=seen, label_absent_seconds={})) == [
        (Hold, "rejected", ()),
        action,
    ]


def test_a_name_that_a_foreign_one_keeps_from_its_key_stays():
    """A foreign profile blocks the new key, so the previous key keeps all its profiles."""
    wanted = desired(profile(key("new"), "v2", ("helper", "web")))
    actions = decide(wanted, entry(key("old")), seen=has(web="v1", helper="theirs"))
    assert short(actions) == [
        (Hold, "foreign", ("helper", "web")),
        (Hold, "still needed", ("web",)),
    ]
    actions = decide(wanted, entry(key("old")), seen=has(helper="theirs"))
    assert short(actions)[1:] == [(Install, "went missing", ("web",))]


def test_the_remaining_names_of_a_version_that_lost_a_name_stay():
    """One profile has moved; the other is held for a rejected key, and is not restored."""
    refused = Rejection(id=key("new"), findings=(REFUSED,), names=("web",))
    wanted = desired(profile(key("api"), "v2", ("api",)))
    wanted = replace(wanted, rejections={key("new"): refused})
    stored = entry(key("old"), names=("api", "web"))
    assert short(decide(wanted, stored, seen=has(api="v1", web="v1"))) == [
        (Install, "changed", ("api",)),
        (Hold, "rejected", ()),
        (Hold, "still needed", ("web",)),
        (Release, "moved", ("api",)),
    ]
    assert short(decide(wanted, stored, seen=has(api="v1")))[2:] == [
        (Release, "moved", ("api",)),
        (Release, "absent", ("web",)),
    ]


def test_a_name_moves_out_of_a_set_that_this_pass_does_not_read():
    """An entry of another source loses only the profile that a key of this pass provides."""
    other = entry(key("old", origin="dir /elsewhere"), names=("web", "more"))
    actions = decide(desired(profile(content="v2")), other, seen=has(web="v1", more="v1"))
    assert short(actions) == [(Install, "changed", ("web",)), (Release, "moved", ("web",))]


def test_entries_of_other_origins_are_not_mentioned():
    """A pass removes only profiles that came from its own sources."""
    other = entry(key("old", origin="dir /elsewhere"))
    assert decide(desired(), other, seen=has(web="v1")) == ()


@pytest.mark.parametrize("refused", ["rejected", "unchecked"])
def test_a_name_of_a_rejected_key_cannot_move(refused):
    """Other keys cannot claim the profiles of a rejected key's last good version."""
    wanted = desired(profile(key("new"), "v2"), **{refused: [key("old")]})
    new, old = decide(wanted, entry(key("old")), seen=has(web="v1"))
    assert (new.state, [one.code for one in new.findings]) == ("rejected", ["name_conflict"])
    assert (type(old), old.names, old.state) == (Hold, ("web",), "outdated")


def test_a_name_of_an_unreadable_set_cannot_move():
    """An unreadable profile set may still provide its profiles."""
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="dir /x", reason="EIO"),
    ]
    wanted = desired(profile(content="v2"), sets=sets)
    stored = entry(key("old", origin="dir /x"))
    new, old = decide(wanted, stored, seen=has(web="v1"))
    assert (new.state, old.reason, old.state) == ("rejected", "source unavailable", "held")


def test_an_unreadable_set_blocks_every_removal():
    """A missing key may have moved into the unreadable profile set."""
    sets = [
        Read(profile_set=ORIGIN, revision="1", source_keys=()),
        Unreadable(profile_set="dir /x", reason="EIO"),
    ]
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    assert short(decide(desired(sets=sets), entry(), seen=seen)) == [
        (Hold, "a source is unreadable", ("web",))
    ]


@pytest.mark.parametrize(
    "gone",
    [
        Emptied(profile_set=ORIGIN, revision=""),
        Missing(profile_set=ORIGIN, reason="not found"),
        Unreadable(profile_set=ORIGIN, reason="EACCES"),
    ],
)
def test_a_set_that_is_gone_keeps_and_restores_its_profiles(gone):
    """Profiles of an emptied, missing or unreadable profile set are never removed."""
    wanted = desired(sets=[gone])
    assert short(decide(wanted, entry(), seen=has(web="v1"))) == [
        (Hold, "source unavailable", ("web",))
    ]
    assert short(decide(wanted, entry(), seen=has())) == [(Install, "went missing", ("web",))]


@pytest.mark.parametrize(
    "gone",
    [Emptied(profile_set="dir /x", revision=""), Missing(profile_set="dir /x", reason="not found")],
)
def test_a_missing_set_yields_its_names_to_the_key_that_replaces_it(gone):
    """A ConfigMap that was created again under another name becomes the owner permanently."""
    sets = [Read(profile_set=ORIGIN, revision="1", source_keys=()), gone]
    wanted = desired(profile(content="v2"), sets=sets)
    old = entry(key("old", origin="dir /x"))
    assert short(decide(wanted, old, seen=has(web="v1"))) == [
        (Install, "changed", ("web",)),
        (Release, "moved", ("web",)),
    ]
    # With a name that nothing else provides it stays whole, and bars the other key.
    both = entry(key("old", origin="dir /x"), names=("also", "web"))
    assert short(decide(wanted, both, seen=has(web="v1", also="v1"))) == [
        (Hold, "conflict", ("web",)),
        (Hold, "source unavailable", ("also", "web")),
    ]


def test_a_duplicate_key_releases_its_names_to_the_first():
    """If two keys have the same content, only the first owns the profiles."""
    wanted = desired(profile(key("a")), same={key("b"): key("a")})
    actions = decide(wanted, entry(key("b")), seen=has(web="v1"))
    assert short(actions) == [(Keep, "renamed", ("web",)), (Release, "moved", ("web",))]


@pytest.mark.parametrize(
    ("observed", "state"),
    [
        (Unobservable(finding=REFUSED), "unobservable"),
        (Unsupported(finding=REFUSED), "unsupported"),
    ],
)
def test_a_kind_that_cannot_be_seen_is_held(observed, state):
    """If the node is unobservable, every key and entry is held, and rejected keys stay rejected."""
    wanted = desired(profile(), rejected=[key("bad")], unchecked=[key("later")])
    far = entry(key("far", origin="dir /elsewhere"))
    actions = decide(wanted, entry(key("gone")), far, seen=observed)
    assert [(one.id.key, one.state) for one in actions] == [
        ("bad", "rejected"),
        ("later", state),
        ("web.profile", state),
        ("gone", state),
    ]


def test_a_version_that_was_installed_before_an_adoption_is_removed():
    """The adopted version stays; the version that the agent had installed before is removed."""
    stored = entry(how="adopted", retired={"left": frozenset({"raw:v0"})})
    seen = Observation(profiles={"web": fact(), "left": fact("v0")}, uses={"left": Unused()})
    assert short(decide(desired(profile()), stored, seen=seen)) == [
        (Keep, "unchanged", ("web",)),
        (Remove, "not desired", ("left",)),
    ]


V1 = entry(names=("a", "b"))  # under the key of `profile`


@pytest.mark.parametrize(
    ("stored", "new", "seen", "back"),
    [
        (V1, ("a",), has(), frozenset()),
        (V1, ("a",), has(b="v1"), frozenset({"b"})),
        (V1, ("a",), has(a="theirs"), frozenset({"a"})),
        (V1, ("a",), has(a="v1", b="v1"), None),
        (V1, ("a",), has(b="theirs"), None),
        (V1, ("c",), has(), frozenset()),
        (entry(key("former"), names=("a", "b")), ("a",), has(), frozenset()),
    ],
    ids=[
        "all are gone",
        "one is gone",
        "one has drifted",
        "all are there",
        "a dropped profile is foreign",
        "no name is common",
        "of the former key",
    ],
)
def test_an_installation_has_the_version_to_restore_after_a_failure(stored, new, seen, back):
    """The agent restores only agent-owned profiles that are missing on the node."""
    (put, *_) = decide(desired(profile(content="v2", names=new)), stored, seen=seen)
    assert put.previous_owners == {stored.id}
    if back is None:
        assert put.fallback is None
    else:
        assert put.fallback == Install(
            id=stored.id,
            reason=put.fallback.reason,
            names=("a", "b"),
            profile=None,
            replaceable=back,
        )


def test_a_name_that_another_key_provides_is_not_restored():
    """Profiles that another key provides or another entry owns are not restored."""
    other = profile(key("other"), "v3", ("b",))
    wanted = desired(profile(content="v2", names=("a",)), other)
    (_, put, *_) = decide(wanted, V1, seen=has())
    assert (put.names, put.fallback) == (("a",), None)
    owner = entry(key("owner", origin="dir /elsewhere"), "v3", ("b",))
    (put, *_) = decide(desired(profile(content="v2", names=("a",))), V1, owner, seen=has())
    assert put.fallback is None


def test_a_foreign_name_holds_the_whole_update():
    """An update that claims a foreign name is held; the last good version stays complete."""
    wanted = profile(content="v2", names=("web", "extra"))
    (hold,) = decide(desired(wanted), entry(), seen=has(web="v1", extra="theirs"))
    assert (hold.reason, hold.names, hold.state) == ("foreign", ("web",), "outdated")


def test_only_names_that_may_go_are_suspects():
    """The agent checks the use only of agent-owned profiles that no key provides."""
    wanted = desired(profile())
    stored = {
        one.id: one
        for one in (
            entry(),
            entry(key("old"), names=("old",)),
            entry(
                key("theirs"),
                names=("theirs",),
                how="adopted",
                retired={"left": frozenset({"raw:v0"})},
            ),
            entry(key("far", origin="dir /far"), names=("far",)),
        )
    }
    assert plan.removal_candidates(wanted, stored, PlanOptions()) == frozenset({"left", "old"})
    assert plan.removal_candidates(wanted, stored, PlanOptions(prune="never")) == frozenset()


def test_a_name_that_a_barred_key_still_needs_cannot_move():
    """A key that cannot be updated keeps its profiles, or two keys would alternate forever."""
    one, two = profile(key("one"), "v2", ("b", "c")), profile(key("two"), "v2", ("a",))
    stored = entry(key("one"), names=("a",)), entry(key("three"), names=("b",))
    wanted = desired(one, two, rejected=[key("three")])
    actions = decide(wanted, *stored, seen=has(a="v1", b="v1"))
    assert [(one.id.key, one.state) for one in actions] == [
        ("one", "outdated"),
        ("two", "rejected"),
        ("three", "outdated"),
    ]


def test_a_key_that_looks_like_another_kind_now_keeps_its_last_good_version():
    """A partial write of a key without a suffix does not remove the previous profile."""
    wanted = Desired(
        rejections={key(): Rejection(id=key(), findings=(REFUSED,))},
        keys=frozenset({(ORIGIN, "web.profile")}),
        profile_sets={ORIGIN: Read(profile_set=ORIGIN, revision="1", source_keys=())},
    )
    seccomp = entry(key(kind="seccomp"))
    (held,) = decide(wanted, seccomp, seen=has(web="v1"), kind="seccomp", prune="always")
    assert (type(held), held.reason, held.desired) == (Hold, "source unavailable", True)


def test_keys_in_a_rejected_directory_keep_their_last_good_version():
    """A directory that became a link or a FIFO is unreadable, and not empty."""
    wanted = desired(rejected=[key("sub")])
    stored = entry(key("sub/deep/web.profile"))
    actions = decide(wanted, stored, seen=has(web="v1"))
    assert (Hold, "source unavailable", ("web",)) in short(actions)


def test_an_accepted_key_of_another_kind_replaces_the_previous_profile():
    """If the kind of a key changes, its profile of the previous kind is removed."""
    other = Profile(id=key(kind="seccomp"), version=version(), source=b"s", body_size=1)
    wanted = Desired(
        profiles={other.id: other},
        keys=frozenset({(ORIGIN, "web.profile")}),
        profile_sets={ORIGIN: Read(profile_set=ORIGIN, revision="1", source_keys=())},
    )
    seen = Observation(profiles={"web": fact()}, uses={"web": Unused()})
    (removed,) = decide(wanted, entry(), seen=seen)
    assert type(removed) is Remove
