"""Property tests of labels and selectors, for every name and every report."""

import hashlib
import re
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from agent.core import labels, selector
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.selector import Selector, Term
from agent.core.vocabulary import ActionName, Reason, SupportState

D = "example.org"
# These patterns and lengths come from kubernetes, apimachinery/pkg/util/validation/validation.go:
# qualifiedNameFmt, dns1123SubdomainFmt, labelValueFmt.
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
def rows(draw: st.DrawFn):
    kind = draw(st.sampled_from(["apparmor", "seccomp"]))
    state = draw(st.sampled_from(STATES))
    # Only a row about a rejected key may lack a profile name.
    name = draw(st.text("ab/_", min_size=0 if state == "rejected" else 1, max_size=3))
    return ProfileStatus(
        kind=kind,
        profile_set=draw(st.sampled_from(["configmap ns/web", "configmap ns/api", "dir /p"])),
        key=name,
        name=name,
        localhost_profile=name,
        state=state,
        action=ActionName.KEEP,
        reason=draw(st.sampled_from(["", Reason.SOURCE_UNREADABLE])),
        source_digest=draw(st.sampled_from(["", "a" * 64, "b" * 64])),
        mode=draw(st.sampled_from(MODES)) if kind == "apparmor" else "",
        desired=draw(st.booleans()),
    )


@st.composite
def reports(draw: st.DrawFn):
    # On a node, each profile name has exactly one content.
    built = tuple(draw(st.lists(rows(), max_size=8, unique_by=lambda row: (row.kind, row.name))))
    states = st.sampled_from(["read", "missing", "unreadable", "emptied"])
    origins = sorted({row.profile_set for row in built})
    return Report(
        profiles=built,
        profile_sets=tuple(
            ProfileSetStatus(profile_set=origin, state=draw(states)) for origin in origins
        ),
        kind_support={"seccomp": KindSupport(state=SupportState.ENABLED)},
    )


@st.composite
def cases(draw: st.DrawFn):
    """Return a report, and agent labels that the Node may have before the report."""
    built = draw(reports())
    keys = sorted(labels.labels_for(_verified(built), domain=D, digest=True, present={}).labels)
    some = draw(st.lists(st.sampled_from(keys), unique=True))
    return built, dict.fromkeys(some, "enforce")


def _verified(built):
    """Return the report with every profile installed."""
    installed_rows = (
        replace(row, state="installed", desired=True, reason="")
        for row in built.profiles
        if row.name
    )
    sets = (replace(status, state="read") for status in built.profile_sets)
    return replace(built, profiles=tuple(installed_rows), profile_sets=tuple(sets))


def valid(key):
    prefix, slash, name = key.rpartition("/")
    return (
        len(name) <= 63
        and NAME.fullmatch(name) is not None
        and (not slash or (len(prefix) <= 253 and PREFIX.fullmatch(prefix) is not None))
    )


@given(names)
def test_every_name_has_a_valid_label_key(text) -> None:
    """An unusual profile name results in a valid label key, because the API server would otherwise
    reject all labels.
    """
    for kind in ("apparmor", "seccomp"):
        key = labels.label_key(kind, text, D)
        assert valid(key)
        assert labels.is_agent_label(key, D)


@given(names)
def test_a_name_always_has_the_same_recognizable_label_key(text) -> None:
    """A label key contains either the profile name with replaced slashes, or a shortened name with
    a hash.
    """
    name = labels.label_name(text)
    assert labels.label_name(text) == name
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    assert name.replace("__", "/") == text or name.endswith(f"-{digits}")


@given(names, names)
def test_two_names_with_the_same_label_key_have_the_same_hash(first, second) -> None:
    """Two profile names have the same label key only if their hashes are equal."""
    if first != second and labels.label_name(first) == labels.label_name(second):
        hashes = {hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
                for text in (first, second)}  # fmt: skip
        assert len(hashes) == 1


@given(names)
def test_a_name_that_imitates_a_label_key_has_a_different_label_key(text) -> None:
    """A profile whose name imitates the label key of another profile has a label key of its own."""
    name = labels.label_name(text)
    assert name == text or labels.label_name(name) != name or name.replace("__", "/") == text


@given(cases(), st.integers(0, 12), st.booleans())
def test_labels_are_added_for_verified_profiles_only(case, limit, digest) -> None:
    """Profiles that cannot be observed keep their labels, and profiles that are in no source have
    no label.
    """
    built, present = case
    computed = labels.labels_for(
        built, domain=D, digest=digest, limit=limit, present=present
    ).labels
    # the label keys that may be added, and the label keys that may only stay
    addable, keepable = set(), set()
    for row in built.profiles:
        both = {labels.label_key(row.kind, row.name, D), _digest_key(row)}
        if (
            row.name
            and row.desired
            and row.state in VERIFIED
            and row.reason != Reason.SOURCE_UNREADABLE
        ):
            addable |= both
        elif row.name and row.desired and row.state in {*VERIFIED, "unobservable"}:
            keepable |= both
    for set_ in built.profile_sets:
        own_rows = [
            row
            for row in built.profiles
            if row.profile_set == set_.profile_set
            and row.desired
            and row.reason != Reason.SOURCE_UNREADABLE
        ]
        key = f"set.{D}/{labels.label_name(set_.profile_set.removeprefix('configmap '))}"
        if own_rows and all(row.state in VERIFIED for row in own_rows) and set_.state == "read":
            addable.add(key)
        elif own_rows and all(row.state in {*VERIFIED, "unobservable"} for row in own_rows):
            keepable.add(key)
    assert computed.keys() <= {f"{D}/seccomp"} | addable | (keepable & present.keys())


def _digest_key(row):
    return f"{row.kind}-digest.{D}/{labels.label_name(row.name)}"


@given(cases(), st.integers(0, 12))
def test_the_limit_holds_and_existing_labels_have_precedence(case, limit) -> None:
    """At the limit, only the labels for supported kinds may replace existing labels.

    Name labels have priority over digest labels, because a digest is useless without the name.
    """
    built, present = case
    unlimited = labels.labels_for(built, domain=D, limit=1000, present=present)
    limited = labels.labels_for(built, domain=D, limit=limit, present=present)
    assert len(limited.labels) == min(limit, len(unlimited.labels))
    assert limited.labels.items() <= unlimited.labels.items()
    left = unlimited.labels.keys() - limited.labels.keys()
    fresh = limited.labels.keys() - present.keys() - {f"{D}/seccomp"}
    on = {key for key in left & present.keys() if f"-digest.{D}/" not in key}
    assert not (on and fresh)
    is_reported = "label_limit" in [finding.code for finding in limited.findings]
    assert is_reported is (len(unlimited.labels) > limit)


@given(cases(), st.integers(1, 12))
def test_labels_that_were_published_stay(case, limit) -> None:
    """If a Node already has the labels of a report, the same report does not change them."""
    built, present = case
    # A lower limit may remove the label of an unobservable profile, and then also the label of its
    # profile set.
    assume(limit > len(present) or all(row.state != "unobservable" for row in built.profiles))
    once = labels.labels_for(built, domain=D, digest=True, limit=limit, present=present).labels
    assert labels.labels_for(built, domain=D, digest=True, limit=limit, present=once).labels == once


@given(reports())
def test_labels_stay_while_nothing_can_be_observed(built) -> None:
    """While neither the node nor any source can be read, the labels of installed profiles stay."""
    before = labels.labels_for(_verified(built), domain=D, digest=True, present={}).labels
    unobservable = replace(
        _verified(built),
        profiles=tuple(replace(row, state="unobservable") for row in _verified(built).profiles),
        profile_sets=tuple(replace(status, state="unreadable") for status in built.profile_sets),
    )
    assert labels.labels_for(unobservable, domain=D, digest=True, present=before).labels == before


@given(cases())
def test_every_label_is_valid_and_has_a_prefix_of_the_agent(case) -> None:
    """Every label of a report is valid, because one invalid label would make the whole request
    fail.
    """
    built, present = case
    for key, value in labels.labels_for(
        built, domain=D, digest=True, present=present
    ).labels.items():
        assert valid(key)
        assert labels.is_agent_label(key, D)
        assert NAME.fullmatch(value)


@given(reports())
def test_a_node_selector_selects_a_node_with_the_profile(built) -> None:
    """The printed nodeSelector matches the label on the Node."""
    computed = labels.labels_for(built, domain=D, limit=1000, present={})
    collided = {
        finding.location for finding in computed.findings if finding.code == "label_collision"
    }
    for row in built.profiles:
        for key, value in labels.node_selector(row, D).items():
            if key not in collided and row.reason != Reason.SOURCE_UNREADABLE:
                assert computed.labels[key] == value


@given(st.text("aD0-./", max_size=12), names)
def test_a_label_without_a_prefix_of_the_agent_is_foreign(prefix, name) -> None:
    """A label key with a similar domain, or without a name after the slash, is foreign."""
    own = {D, *(f"{part}.{D}" for part in
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
def written(draw: st.DrawFn, term):
    """Write a term in one of its equivalent notations."""
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
def test_a_selector_is_parsed_to_its_terms(data, chosen) -> None:
    """Every notation of a list of terms is parsed into the same terms in the same order."""
    text = ",".join(data.draw(written(term)) for term in chosen)
    assert selector.parse(text) == Selector(terms=tuple(chosen))


@given(st.lists(terms, max_size=4), st.dictionaries(keys, values, max_size=4))
def test_a_selector_selects_objects_that_match_all_terms(chosen, present) -> None:
    """A selector matches only if all of its terms match; an `in` term does not match a missing
    label.
    """
    expected = all(
        {
            "exists": term.key in present,
            "absent": term.key not in present,
            "in": term.key in present and present[term.key] in term.values,
            "notin": term.key not in present or present[term.key] not in term.values,
        }[term.relation]
        for term in chosen
    )
    assert selector.matches(Selector(terms=tuple(chosen)), present) is expected


@given(st.text("ab=!,()- in/", max_size=16) | st.text(max_size=16))
def test_a_text_is_a_selector_or_is_rejected(text) -> None:
    """A text either is a valid selector or is rejected, and only a blank selector matches all
    objects.
    """
    try:
        parsed = selector.parse(text)
    except ValueError:
        return
    assert bool(parsed.terms) is bool(text.strip())
