"""Tests of agent.core.labels."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from agent.core import labels, left_out
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import LeftOutReason, ModuleMode, ProfileSetState

D = "example.org"
SET = "configmap ns/web"
DIGITS = "0123456789abcdef0123"


def row(
    name: str = "a.json",
    state: str = "installed",
    kind: str = "seccomp",
    origin: str = SET,
    **more: bool | str,
) -> ProfileStatus:
    fields = {"key": name, "localhost_profile": name, "action": "keep", "reason": "", **more}
    return ProfileStatus(kind=kind, profile_set=origin, name=name, state=state, **fields)


READ = (ProfileSetStatus(profile_set=SET, state=ProfileSetState.READ, keys=1),)


def report(
    *rows: ProfileStatus, sets: tuple[ProfileSetStatus, ...] = READ, **supports: str
) -> Report:
    return Report(
        profiles=rows,
        profile_sets=sets,
        kind_support={kind: KindSupport(state=state) for kind, state in supports.items()},
    )


def labels_of(report: Report, present: dict[str, str] | None = None, **more: Any) -> labels.Labels:
    return labels.labels_for(report, domain=D, present=present or {}, **more)


def hashed(cut: str, text: str) -> str:
    return f"{cut}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", "web"),
        ("profiles/audit.json", "profiles__audit.json"),
        ("parent//child", "parent____child"),
        ("a" * 63, "a" * 63),
        ("/usr/bin/x", hashed("usr__bin__x", "/usr/bin/x")),
        ("a__b", hashed("a__b", "a__b")),
        ("a_/b", hashed("a___b", "a_/b")),
        ("a b", hashed("a.b", "a b")),
        ("-a-", hashed("a", "-a-")),
        ("a" * 64, hashed("a" * 42, "a" * 64)),
        ("a" * 41 + "." + "b" * 30, hashed("a" * 41, "a" * 41 + "." + "b" * 30)),
        ("web-0123abcd", "web-0123abcd"),
        (f"web-{DIGITS}", hashed(f"web-{DIGITS}", f"web-{DIGITS}")),
        (DIGITS, hashed(DIGITS, DIGITS)),
        ("ü", hashed("name", "ü")),
    ],
)
def test_a_name_that_is_not_valid_in_a_label_key_is_shortened_and_hashed(
    text: str, expected: str
) -> None:
    """A name that is not valid in a label key is shortened and gets a hash. The result depends only
    on the name.
    """
    assert labels.label_name(text) == expected


def test_verified_profiles_are_labelled() -> None:
    """Verified profiles, their profile set and the supported kinds have labels."""
    computed = labels_of(
        report(
            row(),
            row("web", kind="apparmor", mode="complain"),
            row("old.json", "outdated"),
            apparmor="enabled",
            seccomp="enabled",
        )
    )
    assert computed == labels.Labels(
        labels={
            f"{D}/apparmor": "enabled",
            f"{D}/seccomp": "enabled",
            f"seccomp.{D}/a.json": "installed",
            f"seccomp.{D}/old.json": "installed",
            f"apparmor.{D}/web": "complain",
            f"set.{D}/ns__web": "ready",
        }
    )


@pytest.mark.parametrize(
    "state", ["rejected", "foreign", "failed", "unsupported", "removed", "released", "planned"]
)
def test_an_unverified_profile_has_no_label_and_its_set_is_not_ready(state: str) -> None:
    """An unverified profile has no label, and its profile set has no label either."""
    assert labels_of(report(row(), row("b.json", state))).labels == {
        f"seccomp.{D}/a.json": "installed"
    }


def test_a_held_profile_that_is_not_desired_has_no_label() -> None:
    """A profile that is in no source any more and is kept only because it may be in use has no
    label, so that no new pods are scheduled for it.
    """
    computed = labels_of(report(row(), row("gone.json", "held", desired=False)))
    assert computed.labels == {f"seccomp.{D}/a.json": "installed", f"set.{D}/ns__web": "ready"}


@pytest.mark.parametrize("state", ["missing", "unreadable"])
def test_labels_stay_while_a_source_is_unavailable(state: str) -> None:
    """While a source is unavailable, the labels stay."""
    unavailable = report(row(state="held"), sets=(ProfileSetStatus(profile_set=SET, state=state),))
    own = {f"seccomp.{D}/a.json": "installed"}
    assert labels_of(unavailable).labels == own
    assert labels_of(unavailable, {f"set.{D}/ns__web": "ready"}).labels == {
        **own,
        f"set.{D}/ns__web": "ready",
    }


def test_labels_stay_while_a_kind_is_unobservable_and_none_is_added() -> None:
    """If a kind is unobservable, its labels stay and no label is added."""
    unobservable = report(
        row("seen", "unobservable", kind="apparmor"),
        row("new", "unobservable", kind="apparmor"),
        row("gone", "unobservable", kind="apparmor", desired=False),
        apparmor="unknown",
    )
    present = {f"apparmor.{D}/seen": "enforce", f"apparmor.{D}/gone": "enforce"}
    assert labels_of(unobservable, present).labels == {
        f"apparmor.{D}/seen": "enforce",
        f"{D}/apparmor": "unknown",
    }


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ((f"seccomp.{D}/a.json", f"set.{D}/ns__web"), True),
        ((f"seccomp.{D}/a.json",), False),
        ((f"set.{D}/ns__web",), False),
        ((), False),
    ],
)
def test_a_set_stays_ready_while_its_verified_profiles_are_unobservable(
    present: tuple[str, ...], expected: bool
) -> None:
    """A profile set stays ready while its verified profiles are unobservable. A profile set with a
    key that was never verified does not become ready.
    """
    unobservable = report(row(state="unobservable"), row("web", kind="apparmor", mode="enforce"))
    computed = labels_of(unobservable, dict.fromkeys(present, "x")).labels
    assert (f"set.{D}/ns__web" in computed) is expected


@pytest.mark.parametrize("state", ["failed", "foreign", "rejected"])
def test_a_set_with_a_profile_that_is_not_on_the_node_is_not_ready(state: str) -> None:
    """A profile set with a profile that is missing on the node is not ready."""
    present = dict.fromkeys((f"seccomp.{D}/a.json", f"set.{D}/ns__web"), "x")
    assert labels_of(report(row(state=state)), present).labels == {}


def test_an_unreadable_source_neither_removes_nor_adds_labels() -> None:
    """While a source is unreadable, the agent neither adds nor removes labels."""
    unknown = report(row(state="held", reason="a source is unreadable"), sets=())
    own = {f"seccomp.{D}/a.json": "installed"}
    assert (labels_of(unknown).labels, labels_of(unknown, own).labels) == ({}, own)


def test_a_profile_that_may_be_desired_keeps_the_value_of_its_label() -> None:
    """While it is unknown whether a profile is desired, its label keeps its value."""
    unknown = report(
        row("web", "held", kind="apparmor", reason="a source is unreadable"),
        row("other", kind="apparmor", mode="enforce"),
        sets=(ProfileSetStatus(profile_set=SET, state=ProfileSetState.READ),),
    )
    present = {f"apparmor.{D}/web": "complain"}
    assert labels_of(unknown, present).labels == {
        **present,
        f"apparmor.{D}/other": "enforce",
        f"set.{D}/ns__web": "ready",
    }


def test_a_set_without_current_profiles_is_not_ready() -> None:
    """A profile set without current profiles is not ready."""
    left = report(row(state="held", reason="a source is unreadable"))
    present = {f"seccomp.{D}/a.json": "installed", f"set.{D}/ns__web": "ready"}
    assert labels_of(left, present).labels == {f"seccomp.{D}/a.json": "installed"}


def test_a_set_with_keys_of_an_excluded_kind_is_not_ready() -> None:
    """If --kinds excludes some keys of a profile set, the set is not ready."""
    excluded = left_out.of(LeftOutReason.KIND, ["web.profile"])
    sets = (
        ProfileSetStatus(profile_set=SET, state=ProfileSetState.READ, keys=2, left_out=excluded),
    )
    assert labels_of(report(row(), sets=sets)).labels == {f"seccomp.{D}/a.json": "installed"}


def test_a_set_with_inputs_that_are_not_profiles_is_ready() -> None:
    """A profile set with inputs that are not profiles, for example a README, is ready."""
    skipped = left_out.of(LeftOutReason.NAME, ["README.md"])
    sets = (
        ProfileSetStatus(profile_set=SET, state=ProfileSetState.READ, keys=1, left_out=skipped),
    )
    assert f"set.{D}/ns__web" in labels_of(report(row(), sets=sets)).labels


def test_the_support_of_the_node_keeps_its_label_when_an_observation_fails() -> None:
    """If an observation fails, the labels for the supported kinds stay."""
    unobservable = report(apparmor="unknown", seccomp="unknown", sets=())
    computed = labels_of(unobservable, {f"{D}/apparmor": "enabled"}).labels
    assert computed == {f"{D}/apparmor": "enabled", f"{D}/seccomp": "unknown"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("enforcing", {f"{D}/selinux": "enforcing"}),
        ("permissive", {f"{D}/selinux": "permissive"}),
        ("disabled", {f"{D}/selinux": "disabled"}),
        ("unknown", {}),
    ],
)
def test_the_mode_of_a_security_module_is_a_label(mode, expected) -> None:
    """An unknown mode has no label, and does not keep the label of the previous mode."""
    observed = replace(report(sets=()), security_modules={"selinux": ModuleMode(mode)})
    assert labels_of(observed, {f"{D}/selinux": "enforcing"}).labels == expected


def test_labels_of_names_have_priority_over_labels_of_digests() -> None:
    """A digest label is set only if the label for the name of the profile is set."""
    rows = [row(name, source_digest="0123456789abcdef") for name in ("a", "b")]
    computed = labels_of(report(*rows, sets=()), digest=True, limit=3)
    assert list(computed.labels) == [
        f"seccomp.{D}/a",
        f"seccomp.{D}/b",
        f"seccomp-digest.{D}/a",
    ]


def test_a_row_without_a_name_has_no_label() -> None:
    """A row without a profile name causes no label."""
    assert labels_of(report(row("", "rejected"))).labels == {}


def test_the_label_of_a_digest_has_the_digest_of_the_source() -> None:
    """The optional digest label contains the first 12 digits of the source's digest, if the digest
    is known.
    """
    built = report(row(source_digest="0123456789abcdef"), row("b.json"))
    computed = labels_of(built, digest=True).labels
    assert {key: value for key, value in computed.items() if "digest" in key} == {
        f"seccomp-digest.{D}/a.json": "0123456789ab"
    }


@pytest.fixture
def equal_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all SHA-256 digests equal, as if an attacker had computed a collision."""
    monkeypatch.setattr(
        hashlib, "sha256", lambda _: type("Same", (), {"hexdigest": lambda _: "0" * 64})()
    )


@pytest.mark.usefixtures("equal_digests")
@pytest.mark.parametrize("state", ["installed", "rejected", "foreign", "unobservable"])
def test_names_with_the_same_label_key_have_no_label(state: str) -> None:
    """If two names have the same label key, neither name has a label."""
    label = f"seccomp.{D}/web.server-{'0' * 20}"
    digest = f"seccomp-digest.{D}/web.server-{'0' * 20}"
    rows = (
        row("web server", source_digest="a" * 64),
        row("web?server", state, source_digest="b" * 64),
    )
    computed = labels_of(
        report(*rows, row(), sets=()), {label: "installed", digest: "x"}, digest=True
    )
    assert computed == labels.Labels(
        labels={f"seccomp.{D}/a.json": "installed"},
        findings=(
            Finding(
                code=FindingCode.LABEL_COLLISION,
                location=label,
                message='"web server" and "web?server" have the same label key. None of these '
                "names gets a label.",
                hint="Rename all but one of these profiles or ConfigMaps.",
            ),
        ),
    )


@pytest.mark.usefixtures("equal_digests")
def test_a_desired_name_without_a_row_can_collide() -> None:
    """A desired name can have the label key of another name even if no row of the report contains
    the desired name.
    """
    built = report(row("web server"), row("", "rejected"), sets=())
    rejected = replace(built, desired_names={"seccomp": frozenset(["web server", "web?server"])})
    assert list(labels_of(built).labels) == [f"seccomp.{D}/web.server-{'0' * 20}"]
    assert labels_of(rejected).labels == {}
    assert [finding.code for finding in labels_of(rejected).findings] == ["label_collision"]


@pytest.mark.usefixtures("equal_digests")
@pytest.mark.parametrize("state", ["read", "missing", "unreadable", "emptied"])
def test_configmaps_with_the_same_label_key_have_no_label(state: str) -> None:
    """If the label keys of two ConfigMaps collide, neither of them has a label."""
    long = "a" * 60
    first, other = f"configmap {long}/web", f"configmap {long}/api"
    sets = (
        ProfileSetStatus(profile_set=first, state=ProfileSetState.READ),
        ProfileSetStatus(profile_set=other, state=state),
    )
    computed = labels_of(report(row(origin=first), sets=sets))
    assert computed.labels == {f"seccomp.{D}/a.json": "installed"}
    assert [finding.code for finding in computed.findings] == ["label_collision"]


def test_configmaps_of_two_namespaces_have_different_labels() -> None:
    """Two ConfigMaps with the same name in different namespaces have different labels."""
    other = "configmap other/web"
    computed = labels_of(
        report(
            row(),
            row("b.json", "rejected", origin=other),
            sets=(
                ProfileSetStatus(profile_set=SET, state=ProfileSetState.READ),
                ProfileSetStatus(profile_set=other, state=ProfileSetState.READ),
            ),
        )
    )
    assert (computed.labels, computed.findings) == (
        {f"seccomp.{D}/a.json": "installed", f"set.{D}/ns__web": "ready"},
        (),
    )


def test_the_label_of_an_observed_profile_has_the_observed_mode() -> None:
    """The label of an observed profile contains the observed mode."""
    rows = [
        row("web", kind="apparmor", mode="enforce"),
        row(
            "web", "held", kind="apparmor", reason="a source is unreadable", origin="configmap b/c"
        ),
    ]
    for order in (rows, rows[::-1]):
        computed = labels_of(report(*order, sets=()), {f"apparmor.{D}/web": "complain"})
        assert computed.labels == {f"apparmor.{D}/web": "enforce"}


def test_only_configmaps_have_labels_of_profile_sets() -> None:
    """Only ConfigMaps have labels for profile sets. Directories and manifests have no such
    label.
    """
    computed = labels_of(
        report(
            row(origin="dir /p"),
            sets=(ProfileSetStatus(profile_set="dir /p", state=ProfileSetState.READ),),
        )
    )
    assert computed.labels == {f"seccomp.{D}/a.json": "installed"}


def test_existing_labels_have_precedence_over_new_labels() -> None:
    """Labels for the supported kinds have the highest priority, followed by existing labels,
    profile sets and profiles.
    """
    built = report(row("a"), row("b"), row("c"), seccomp="enabled")
    computed = labels_of(built, {f"seccomp.{D}/c": "installed"}, limit=3)
    assert list(computed.labels) == [f"{D}/seccomp", f"seccomp.{D}/c", f"set.{D}/ns__web"]
    assert [(finding.code, finding.severity) for finding in computed.findings] == [
        ("label_limit", "warning")
    ]
    assert computed.findings[0].message.startswith("The Node has no labels for 2 names")


def test_new_labels_of_older_configmaps_have_priority() -> None:
    """At the limit, new labels of older ConfigMaps have priority, whatever the names of newer
    profiles are.
    """
    ages = {"dir /p": "", SET: "2026-01-02T00:00:00Z", "configmap ns/old": "2026-01-01T00:00:00Z"}
    sets = tuple(
        ProfileSetStatus(profile_set=name, state=ProfileSetState.READ, created=created)
        for name, created in ages.items()
    )
    rows = [row("a"), row("y", origin="configmap ns/old"), row("z", origin="dir /p")]
    computed = labels_of(report(*rows, sets=sets), limit=4)
    assert list(computed.labels) == [
        f"seccomp.{D}/z",
        f"set.{D}/ns__old",
        f"seccomp.{D}/y",
        f"set.{D}/ns__web",
    ]
    existing = labels_of(report(*rows, sets=sets), {f"seccomp.{D}/a": "installed"}, limit=1)
    assert list(existing.labels) == [f"seccomp.{D}/a"]


def test_a_name_in_two_configmaps_has_the_rank_of_the_older_configmap() -> None:
    """A name that two ConfigMaps provide has the rank of the older ConfigMap."""
    ages = {SET: "2026-01-03", "configmap ns/old": "2026-01-01", "configmap ns/b": "2026-01-02"}
    sets = tuple(
        ProfileSetStatus(profile_set=name, state=ProfileSetState.UNREADABLE, created=created)
        for name, created in ages.items()
    )
    rows = [row("a", origin="configmap ns/b"), row("x"), row("x", origin="configmap ns/old")]
    assert list(labels_of(report(*rows, sets=sets), limit=1).labels) == [f"seccomp.{D}/x"]


def test_a_labelled_profile_has_a_node_selector() -> None:
    """A labelled profile has a nodeSelector. Without a label, the nodeSelector is empty."""
    rows = [row("web", kind="apparmor", mode="enforce"), row(), row(state="failed")]
    assert [labels.node_selector(profile, D) for profile in rows] == [
        {f"apparmor.{D}/web": "enforce"},
        {f"seccomp.{D}/a.json": "installed"},
        {},
    ]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("previous.example/seccomp", True),
        ("previous.example/selinux", True),
        ("set.previous.example/x", True),
        (f"seccomp-digest.{D}/x", True),
        ("seccomp", False),
        ("settings.example/x", False),
        ("kubernetes.io/os", False),
    ],
)
def test_labels_of_a_previous_domain_are_recognized(label: str, expected: bool) -> None:
    """Labels with the agent's previous domain are recognized, so that an update removes them."""
    assert labels.has_agent_label_form(label) is expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (f"{D}/seccomp", True),
        (f"apparmor.{D}/x", True),
        (f"seccomp.{D}/x", True),
        (f"set.{D}/x", True),
        (f"apparmor-digest.{D}/x", True),
        (f"seccomp-digest.{D}/x", True),
        (f"other.{D}/x", False),
        (f"x{D}/x", False),
        (f"apparmor.{D}", False),
        ("kubernetes.io/os", False),
    ],
)
def test_only_labels_with_a_prefix_of_the_agent_are_agent_owned(label: str, expected: bool) -> None:
    """A label without a prefix of the agent is foreign."""
    assert labels.is_agent_label(label, D) is expected
