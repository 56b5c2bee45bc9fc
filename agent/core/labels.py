"""The labels that the agent's Node should have: a pure function of a report.

A label states what the pass verified. If the agent could not observe the node or read a source,
existing labels stay and no label is added. A name that is no longer desired has no label, even if
it is in use. If two names have the same label key, neither gets a label.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.core.findings import Finding
from agent.core.model import KINDS, ProfileKind
from agent.core.report import ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ON_NODE, ProfileSetState, ProfileState, Reason, SupportState

DOMAIN: Final = "profile-loader.node-restriction.kubernetes.io"
DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 800  # the admission policy's cost limit allows no more in one request (measured)
DIGEST_DIGITS: Final = 12

# kubernetes, apimachinery/pkg/util/validation/validation.go: IsQualifiedName, IsValidLabelValue.
_ALLOWED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
# 80 bits: finding a name with the suffix of a given other name takes 2**80 hashes on average.
_SUFFIX_DIGITS: Final = 20
_LIKE_SUFFIX: Final = re.compile(rf"(.*-)?[0-9a-f]{{{_SUFFIX_DIGITS}}}")
_CUT: Final = 63 - 1 - _SUFFIX_DIGITS
_CONFIG_MAP: Final = "configmap "


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """All labels of the agent, and the findings about names without a label."""

    labels: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def label_name(text: str) -> str:
    """Return the last part of the label key of a profile or ConfigMap. It is always the same.

    A label key allows most texts as they are, with `__` for each `/`. A text that it does not
    allow, or that could be mistaken for another one, is shortened: the suffix is "-" and the first
    20 hex digits of the sha256 of the whole text.
    """
    plain = text.replace("/", "__")
    if (
        _ALLOWED.fullmatch(plain)
        and plain.replace("__", "/") == text
        and not _LIKE_SUFFIX.fullmatch(plain)
    ):
        return plain
    cut = re.sub(r"[^-A-Za-z0-9_.]", ".", plain).strip("-_.")[:_CUT].rstrip("-_.")
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{cut or 'name'}-{digits[:_SUFFIX_DIGITS]}"


def label_key(kind: ProfileKind, text: str, domain: str) -> str:
    """Return the key of the label of a profile."""
    return f"{kind}.{domain}/{label_name(text)}"


def is_agent_label(label: str, domain: str) -> bool:
    """Return whether a label key has one of the agent's prefixes."""
    prefix, _, _ = label.rpartition("/")
    return prefix == domain or (
        prefix.endswith(f".{domain}") and prefix.removesuffix(f".{domain}") in _PREFIXES
    )


def has_agent_label_form(label: str) -> bool:
    """Return whether a label key has the form of the agent's label keys, in any domain."""
    prefix, _, text = label.rpartition("/")
    return prefix.partition(".")[0] in _PREFIXES or (prefix != "" and text in KINDS)


_PREFIXES: Final = (*KINDS, "set", *(f"{kind}-digest" for kind in KINDS))


def node_selector(row: ProfileStatus, domain: str) -> dict[str, str]:
    """Return the nodeSelector that selects nodes with this profile; empty if it has no label."""
    if not _labelled(row):
        return {}
    return {label_key(row.kind, row.name, domain): _value(row)}


def labels_for(
    report: Report,
    *,
    domain: str = DOMAIN,
    digest: bool = False,
    limit: int = DEFAULT_LIMIT,
    present: Mapping[str, str],
) -> Labels:
    """Return the labels that follow from a report.

    Args:
        report: the report of a pass.
        domain: the domain of the label keys.
        digest: whether to add labels with the digest of the source.
        limit: the largest number of labels.
        present: the agent's labels that the Node has now. They have priority over new labels.
    """
    collisions = _collisions(report, domain)
    labels: dict[str, str] = {}
    for row in sorted(
        report.profiles, key=_is_observed
    ):  # Observed rows come last, so that their labels replace the labels that were kept.
        if label_key(row.kind, row.name, domain) not in collisions:
            labels.update(_of_row(row, domain, present, digest=digest))
    for status in report.profile_sets:
        label = _set_key(status.profile_set, domain)
        if label and label not in collisions and _is_ready(report, status, domain, present):
            labels[label] = "ready"
    for kind, support in report.kind_support.items():
        label = f"{domain}/{kind}"
        known = (
            present.get(label, support.state)
            if support.state == SupportState.UNKNOWN
            else support.state
        )
        labels[label] = known
    kept, left = _limited(labels, domain, limit, present)
    findings = [_collision(label, sorted(names)) for label, names in sorted(collisions.items())]
    findings += [_too_many(left, limit)] if left else []
    return Labels(labels=kept, findings=tuple(findings))


def _collisions(report: Report, domain: str) -> dict[str, frozenset[str]]:
    """Return the label keys that belong to more than one desired name or ConfigMap.

    Names without a label count as well, because a shared label would claim that a rejected profile
    is on the node. Keys whose names are not known cannot count.
    """
    meanings: dict[str, set[str]] = defaultdict(set)
    for kind, names in report.desired_names.items():
        for text in names:
            meanings[label_key(kind, text, domain)].add(text)
    for row in report.profiles:
        if row.desired and row.name:
            meanings[label_key(row.kind, row.name, domain)].add(row.name)
    for status in report.profile_sets:
        meanings[_set_key(status.profile_set, domain)].add(status.profile_set)
    meanings.pop("", None)  # profile sets without a label
    return {label: frozenset(texts) for label, texts in meanings.items() if len(texts) > 1}


def _labelled(row: ProfileStatus) -> bool:
    return row.desired and bool(row.name) and row.state in ON_NODE


def _is_observed(row: ProfileStatus) -> bool:
    return row.state != ProfileState.UNOBSERVABLE and not _may_be_undesired(row)


def _may_be_undesired(row: ProfileStatus) -> bool:
    """Return whether an unreadable source or a pending key may desire the name."""
    return row.reason == Reason.SOURCE_UNREADABLE or (
        row.state == ProfileState.HELD and row.reason == Reason.PENDING
    )


def _value(row: ProfileStatus) -> str:
    return row.mode or "installed"


def _of_row(
    row: ProfileStatus, domain: str, present: Mapping[str, str], *, digest: bool
) -> Iterable[tuple[str, str]]:
    if not row.name:
        return
    label = label_key(row.kind, row.name, domain)
    digest_label = f"{row.kind}-digest.{domain}/{label_name(row.name)}"
    if row.state == ProfileState.UNOBSERVABLE and row.desired:
        for one in (label, digest_label):
            if one in present:
                yield one, present[one]
    if not _labelled(row):
        return
    earned = [(label, _value(row))]
    if digest and row.source_digest:
        earned.append((digest_label, row.source_digest[:DIGEST_DIGITS]))
    for one, value in earned:
        if not _may_be_undesired(row):
            yield one, value
        elif one in present:
            yield one, present[one]  # Unknown whether it is desired, so the label stays.


def _set_key(origin: str, domain: str) -> str:
    """Return the label key of a profile set, or an empty string if the set has no label.

    Only the name of a ConfigMap means the same on every node. A directory or a manifest is a path
    of one host, so its profiles have labels and the profile set has no label.
    """
    if not origin.startswith(_CONFIG_MAP):
        return ""
    return f"set.{domain}/{label_name(origin.removeprefix(_CONFIG_MAP))}"


def _is_ready(
    report: Report, status: ProfileSetStatus, domain: str, present: Mapping[str, str]
) -> bool:
    """Return whether every key of a ConfigMap has a verified version on the node.

    A ConfigMap that was ready stays ready while it cannot be read, or while its labelled profiles
    cannot be observed.
    """
    rows = [
        row
        for row in report.profiles
        if row.profile_set == status.profile_set and row.desired and not _may_be_undesired(row)
    ]
    unseen = [row for row in rows if row.state not in ON_NODE]
    if not rows or not all(_unseen(row, domain, present) for row in unseen):
        return False
    if status.left_out or status.unlisted:
        return False
    return (status.state == ProfileSetState.READ and not unseen) or _set_key(
        status.profile_set, domain
    ) in present


def _unseen(row: ProfileStatus, domain: str, present: Mapping[str, str]) -> bool:
    """Return whether a profile has a label and cannot be observed now."""
    return (
        row.state == ProfileState.UNOBSERVABLE and label_key(row.kind, row.name, domain) in present
    )


def _limited(
    labels: Mapping[str, str], domain: str, limit: int, present: Mapping[str, str]
) -> tuple[dict[str, str], int]:
    """Return at most `limit` labels, and the number of labels that were left out."""

    def rank(label: str) -> tuple[bool, bool, bool, bool, str]:
        prefix = label.partition("/")[0]
        return (
            prefix != domain,  # The labels of supported kinds come first.
            prefix.endswith(
                f"-digest.{domain}"
            ),  # The label of a digest is useless without the label of its name.
            label not in present,
            prefix != f"set.{domain}",
            label,
        )

    order = sorted(labels, key=rank)
    return {label: labels[label] for label in order[:limit]}, max(0, len(order) - limit)


def _collision(label: str, names: list[str]) -> Finding:
    return Finding(
        code="label_collision",
        location=label,
        message=" and ".join(f'"{text}"' for text in names) + " have the same label key. "
        "None of them gets a label.",
        hint="Rename one of them.",
    )


def _too_many(left: int, limit: int) -> Finding:
    return Finding(
        code="label_limit",
        location="node labels",
        message=f"The Node has no labels for {left} names, because --label-limit is {limit}.",
        hint="Use the label of the ConfigMap (set.DOMAIN/NAMESPACE__NAME), or increase "
        "--label-limit.",
    )
