"""Properties of labels and selectors, for every name and every report."""

import hashlib
import re
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from agent.core import labels, selector
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.selector import Selector, Term
from agent.core.vocabulary import Reason

D = "example.org"
# kubernetes, apimachinery/pkg/util/validation/validation.go: qualifiedNameFmt, dns1123SubdomainFmt,
# labelValueFmt, and their lengths.
NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
STATES = (
    "installed", "outdated", "held", "rejected", "foreign", "failed", "unsupported",
    "unobservable", "removed", "released", "planned",
)  # fmt: skip
VERIFIED = {"installed", "outdated", "held"}
MODES = ("enforce", "complain", "kill", "unconfined")

texts = st.text(max_size=80) | st.text("aB0-_./", min_size=1, max_size=80)
hashes = st.builds(
    lambda text: f"{text}-{hashlib.sha256(text.encode()).hexdigest()[:20]}",
    st.text("aB0._", min_size=1, max_size=12),
)
names = texts | hashes | st.text("0123456789abcdef-", min_size=20, max_size=24)


@st.composite
def rows(draw):
    kind = draw(st.sampled_from(["apparmor", "seccomp"]))
    state = draw(st.sampled_from(STATES))
    # Only a rejected key can be without a name.
    name = draw(st.text("ab/_", min_size=0 if state == "rejected" else 1, max_size=3))
    return ProfileStatus(
        kind=kind,
        profile_set=draw(st.sampled_from(["configmap ns/web", "configmap ns/api", "dir /p"])),
        key=name,
        name=name,
        localhost_profile=name,
        state=state,
        action="keep",
        reason=draw(st.sampled_from(["", Reason.SOURCE_UNREADABLE])),
        source_digest=draw(st.sampled_from(["", "a" * 64, "b" * 64])),
        mode=draw(st.sampled_from(MODES)) if kind == "apparmor" else "",
        desired=draw(st.booleans()),
    )


@st.composite
def reports(draw):
    # Each name has a single content on a node.
    found = tuple(draw(st.lists(rows(), max_size=8, unique_by=lambda row: (row.kind, row.name))))
    states = st.sampled_from(["read", "missing", "unreadable", "emptied"])
    origins = sorted({row.profile_set for row in found})
    return Report(
        profiles=found,
        profile_sets=tuple(
            ProfileSetStatus(profile_set=one, state=draw(states)) for one in origins
        ),
        kind_support={"seccomp": KindSupport(state="enabled")},
    )


@st.composite
def cases(draw):
    """Return a report and labels of the agent that its Node may have."""
    found = draw(reports())
    keys = sorted(labels.labels_for(_verified(found), domain=D, digest=True, present={}).labels)
    some = draw(st.lists(st.sampled_from(keys), unique=True))
    return found, dict.fromkeys(some, "enforce")


def _verified(found):
    """Return the report in which everything was installed."""
    fine = (
        replace(row, state="installed", desired=True, reason="")
        for row in found.profiles
        if row.name
    )
    sets = (replace(one, state="read") for one in found.profile_sets)
    return replace(found, profiles=tuple(fine), profile_sets=tuple(sets))


def valid(key):
    prefix, slash, name = key.rpartition("/")
    return (
        len(name) <= 63
        and NAME.fullmatch(name) is not None
        and (not slash or (len(prefix) <= 253 and PREFIX.fullmatch(prefix) is not None))
    )


@given(names)
def test_every_name_gives_a_key_that_kubernetes_accepts(text):
    """A single unusual name must not make the API server reject all labels."""
    for kind in ("apparmor", "seccomp"):
        key = labels.label_key(kind, text, D)
        assert valid(key)
        assert labels.is_agent_label(key, D)


@given(names)
def test_the_same_name_always_has_the_same_recognizable_key(text):
    """The key contains the name with replaced slashes, or a shortened name with its hash."""
    found = labels.label_name(text)
    assert labels.label_name(text) == found
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    assert found.replace("__", "/") == text or found.endswith(f"-{digits}")


@given(names, names)
def test_two_names_meet_only_in_their_hash(one, other):
    """A label that contains the complete name belongs to no other name."""
    if one != other and labels.label_name(one) == labels.label_name(other):
        both = {hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
                for text in (one, other)}  # fmt: skip
        assert len(both) == 1


@given(names)
def test_a_name_that_imitates_a_label_has_a_different_label(text):
    """A profile cannot take the label of another profile by imitating the label."""
    made = labels.label_name(text)
    assert made == text or labels.label_name(made) != made or made.replace("__", "/") == text


@given(cases(), st.integers(0, 12), st.booleans())
def test_only_verified_profiles_and_existing_unobservable_ones_have_labels(case, limit, digest):
    """Every label is true, and a profile that is not desired has no label."""
    found, present = case
    made = labels.labels_for(found, domain=D, digest=digest, limit=limit, present=present).labels
    sure, stays = set(), set()  # keys that may be added; keys that may only stay
    for row in found.profiles:
        both = {labels.label_key(row.kind, row.name, D), _digest_key(row)}
        if (
            row.name
            and row.desired
            and row.state in VERIFIED
            and row.reason != Reason.SOURCE_UNREADABLE
        ):
            sure |= both
        elif row.name and row.desired and row.state in {*VERIFIED, "unobservable"}:
            stays |= both
    for set_ in found.profile_sets:
        mine = [
            row
            for row in found.profiles
            if row.profile_set == set_.profile_set
            and row.desired
            and row.reason != Reason.SOURCE_UNREADABLE
        ]
        key = f"set.{D}/{labels.label_name(set_.profile_set.removeprefix('configmap '))}"
        if mine and all(row.state in VERIFIED for row in mine) and set_.state == "read":
            sure.add(key)
        elif mine and all(row.state in {*VERIFIED, "unobservable"} for row in mine):
            stays.add(key)
    assert made.keys() <= {f"{D}/seccomp"} | sure | (stays & present.keys())


def _digest_key(row):
    return f"{row.kind}-digest.{D}/{labels.label_name(row.name)}"


@given(cases(), st.integers(0, 12))
def test_the_limit_holds_and_existing_labels_have_precedence(case, limit):
    """Only the labels of the node's support may replace an existing label.

    Labels of names precede labels of digests, because a digest without its name is useless.
    """
    found, present = case
    every = labels.labels_for(found, domain=D, limit=1000, present=present)
    some = labels.labels_for(found, domain=D, limit=limit, present=present)
    assert len(some.labels) == min(limit, len(every.labels))
    assert some.labels.items() <= every.labels.items()
    left = every.labels.keys() - some.labels.keys()
    fresh = some.labels.keys() - present.keys() - {f"{D}/seccomp"}
    on = {key for key in left & present.keys() if f"-digest.{D}/" not in key}
    assert not (on and fresh)
    told = "label_limit" in [one.code for one in some.findings]
    assert told is (len(every.labels) > limit)


@given(cases(), st.integers(1, 12))
def test_labels_that_were_published_stay(case, limit):
    """The same report on a Node with these labels results in the same labels."""
    found, present = case
    # A lower limit may remove the label of an unobservable profile, and then of its profile set.
    assume(limit > len(present) or all(row.state != "unobservable" for row in found.profiles))
    once = labels.labels_for(found, domain=D, digest=True, limit=limit, present=present).labels
    assert labels.labels_for(found, domain=D, digest=True, limit=limit, present=once).labels == once


@given(reports())
def test_blindness_takes_no_label_off(found):
    """Everything was installed; now the node is unobservable, and no source is readable."""
    before = labels.labels_for(_verified(found), domain=D, digest=True, present={}).labels
    blind = replace(
        _verified(found),
        profiles=tuple(replace(row, state="unobservable") for row in _verified(found).profiles),
        profile_sets=tuple(replace(one, state="unreadable") for one in found.profile_sets),
    )
    assert labels.labels_for(blind, domain=D, digest=True, present=before).labels == before


@given(cases())
def test_every_key_and_value_is_one_that_kubernetes_accepts_and_own(case):
    """One request contains all labels."""
    found, present = case
    for key, value in labels.labels_for(
        found, domain=D, digest=True, present=present
    ).labels.items():
        assert valid(key)
        assert labels.is_agent_label(key, D)
        assert NAME.fullmatch(value)


@given(reports())
def test_the_selector_of_a_row_selects_the_node_that_has_it(found):
    """The printed nodeSelector is equal to the label on the Node."""
    made = labels.labels_for(found, domain=D, limit=1000, present={})
    collided = {one.location for one in made.findings if one.code == "label_collision"}
    for row in found.profiles:
        for key, value in labels.node_selector(row, D).items():
            if key not in collided and row.reason != Reason.SOURCE_UNREADABLE:
                assert made.labels[key] == value


@given(st.text("aD0-./", max_size=12), names)
def test_a_label_outside_the_own_prefixes_is_not_own(prefix, name):
    """A similar domain, or the agent's domain without a name, is foreign."""
    own = {D, *(f"{one}.{D}" for one in
                ("apparmor", "seccomp", "set", "apparmor-digest", "seccomp-digest"))}  # fmt: skip
    last = labels.label_name(name)
    for key in (f"{prefix}{D}/{last}", f"{D}{prefix}/{last}", prefix, D):
        assert labels.is_agent_label(key, D) is (key.rpartition("/")[0] in own)


# --- selectors ------------------------------------------------------------------------------------

parts = st.from_regex(r"\A[A-Za-z0-9]([-A-Za-z0-9_.]{0,8}[A-Za-z0-9])?\Z")
keys = parts | st.builds(lambda prefix, name: f"{prefix}/{name}", st.just("a.example.org"), parts)
values = parts | st.just("")
terms = st.builds(Term, key=keys, relation=st.sampled_from(["exists", "absent"])) | st.builds(
    Term,
    key=keys,
    relation=st.sampled_from(["in", "notin"]),
    values=st.frozensets(values, min_size=1, max_size=3),
)


@st.composite
def written(draw, term):
    """Write a term in a random notation with the same meaning."""
    space = draw(st.sampled_from(["", " ", "  "]))
    if term.relation == "exists":
        return f"{space}{term.key}{space}"
    if term.relation == "absent":
        return f"{space}!{space}{term.key}"
    single = min(term.values)
    if len(term.values) == 1 and draw(st.booleans()):
        sign = draw(st.sampled_from(["=", "=="])) if term.relation == "in" else "!="
        return f"{term.key}{space}{sign}{space}{single}"
    inner = f"{space},{space}".join(sorted(term.values))
    return f"{term.key} {term.relation}{space}({space}{inner}{space})"


@given(st.data(), st.lists(terms, min_size=1, max_size=4))
def test_a_selector_means_what_was_written(data, chosen):
    """Every notation of the terms is parsed to these terms, in their order."""
    text = ",".join(data.draw(written(term)) for term in chosen)
    assert selector.parse(text) == Selector(terms=tuple(chosen))


@given(st.lists(terms, max_size=4), st.dictionaries(keys, values, max_size=4))
def test_a_selector_selects_objects_that_match_all_terms(chosen, told):
    """All terms must match, and a missing value is in no set."""
    expected = all(
        {
            "exists": term.key in told,
            "absent": term.key not in told,
            "in": term.key in told and told[term.key] in term.values,
            "notin": term.key not in told or told[term.key] not in term.values,
        }[term.relation]
        for term in chosen
    )
    assert selector.matches(Selector(terms=tuple(chosen)), told) is expected


@given(st.text("ab=!,()- in/", max_size=16) | st.text(max_size=16))
def test_a_text_is_a_selector_or_is_rejected(text):
    """Only a blank selector selects everything."""
    try:
        found = selector.parse(text)
    except ValueError:
        return
    assert bool(found.terms) is bool(text.strip())
