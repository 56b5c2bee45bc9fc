"""Computes the labels of the agent's Node from a report.

A label states that a pass verified a profile. While the agent cannot observe the node or read a
source, it keeps the affected labels and adds none. A profile that is no longer desired gets no
label, even if it is in use. If two names would have the same label key, neither name gets a label.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import KINDS, SECURITY_MODULES, ProfileKind
from agent.core.report import ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import (
    ON_NODE,
    LeftOutReason,
    ModuleMode,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
)

DOMAIN: Final = "profile-loader.node-restriction.kubernetes.io"
DEFAULT_LIMIT: Final = 200
# An admission policy cannot check more labels in one request, because of its cost limit (measured).
MAX_LIMIT: Final = 800
DIGEST_DIGITS: Final = 12

# kubernetes, apimachinery/pkg/util/validation/validation.go: IsQualifiedName, IsValidLabelValue.
_ALLOWED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
# The suffix has 20 hex digits, which are 80 bits. To find another name with the same suffix, an
# attacker needs 2**80 hashes on average.
_SUFFIX_DIGITS: Final = 20
_LIKE_SUFFIX: Final = re.compile(rf"(.*-)?[0-9a-f]{{{_SUFFIX_DIGITS}}}")
_CUT: Final = 63 - 1 - _SUFFIX_DIGITS
_CONFIG_MAP: Final = "configmap "


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """All labels that the agent sets, and the findings about profile names without a label."""

    labels: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def label_name(text: str) -> str:
    """Return the last part of the label key for a profile or a ConfigMap.

    Most names stay unchanged, except that each `/` becomes `__`. A name that is ambiguous or not
    valid in a label key is shortened; it then ends with "-" and the first 20 hex digits of the
    sha256 of the whole name. The same name always has the same label key.
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
    """Return the label key of a profile."""
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
    return prefix.partition(".")[0] in _PREFIXES or (
        prefix != "" and text in (*KINDS, *SECURITY_MODULES)
    )


_PREFIXES: Final = (*KINDS, "set", *(f"{kind}-digest" for kind in KINDS))


def node_selector(row: ProfileStatus, domain: str) -> dict[str, str]:
    """Return the nodeSelector for nodes with this profile; empty if the profile has no label."""
    if not _is_labelled(row):
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
    """Return the labels that the Node should have after the pass of a report.

    Args:
        report: the report of a pass.
        domain: the domain of the label keys.
        digest: whether to add labels that contain the digest of the source.
        limit: the maximum number of labels.
        present: the agent's labels that are on the Node now; they have priority over new labels.
    """
    collisions = _collisions(report, domain)
    labels: dict[str, str] = {}
    for row in sorted(
        report.profiles, key=_is_observed
    ):  # The rows of observed profiles come last, so that their labels override kept labels.
        if label_key(row.kind, row.name, domain) not in collisions:
            labels.update(_of_row(row, domain, present, digest=digest))
    for status in report.profile_sets:
        label = _set_key(status.profile_set, domain)
        if label and label not in collisions and _is_ready(report, status, domain, present):
            labels[label] = "ready"
    for kind, support in report.kind_support.items():
        label = f"{domain}/{kind}"
        labels[label] = (
            present.get(label, support.state)
            if support.state == SupportState.UNKNOWN
            else support.state
        )
    for module, mode in report.security_modules.items():
        if mode != ModuleMode.UNKNOWN:
            labels[f"{domain}/{module}"] = mode
    kept, omitted = _limited(labels, _created_by_label(report, domain), domain, limit, present)
    findings = [_collision(label, sorted(names)) for label, names in sorted(collisions.items())]
    findings += [_too_many(omitted, limit)] if omitted else []
    return Labels(labels=kept, findings=tuple(findings))


def _collisions(report: Report, domain: str) -> dict[str, frozenset[str]]:
    """Return the label keys that belong to several desired profiles or ConfigMaps.

    The names of rejected profiles count as well, because a shared label would claim that the
    rejected profile is on the node. The names of some keys are unknown, so these keys are not
    considered.
    """
    names_by_label: dict[str, set[str]] = defaultdict(set)
    for kind, names in report.desired_names.items():
        for name in names:
            names_by_label[label_key(kind, name, domain)].add(name)
    for row in report.profiles:
        if row.desired and row.name:
            names_by_label[label_key(row.kind, row.name, domain)].add(row.name)
    for status in report.profile_sets:
        names_by_label[_set_key(status.profile_set, domain)].add(status.profile_set)
    names_by_label.pop("", None)  # This removes the profile sets that get no label.
    return {label: frozenset(texts) for label, texts in names_by_label.items() if len(texts) > 1}


def _is_labelled(row: ProfileStatus) -> bool:
    return row.desired and bool(row.name) and row.state in ON_NODE


def _is_observed(row: ProfileStatus) -> bool:
    return row.state != ProfileState.UNOBSERVABLE and not _may_be_undesired(row)


def _may_be_undesired(row: ProfileStatus) -> bool:
    """Return whether an unreadable source or a pending key may desire the name."""
    return row.reason == Reason.SOURCE_UNREADABLE or (
        row.state == ProfileState.HELD and row.reason == Reason.PENDING
    )


def _value(row: ProfileStatus) -> str:
    """Return the mode of a profile; `installed` for a kind without modes.

    The mode of a labelled profile is always known, because its version is known and contains the
    mode of each name.
    """
    return row.mode or "installed"


def _of_row(
    row: ProfileStatus, domain: str, present: Mapping[str, str], *, digest: bool
) -> Iterable[tuple[str, str]]:
    if not row.name:
        return
    label = label_key(row.kind, row.name, domain)
    digest_label = _digest_key(row, domain)
    if row.state == ProfileState.UNOBSERVABLE and row.desired:
        for kept_label in (label, digest_label):
            if kept_label in present:
                yield kept_label, present[kept_label]
    if not _is_labelled(row):
        return
    labels = [(label, _value(row))]
    if digest and row.source_digest:
        labels.append((digest_label, row.source_digest[:DIGEST_DIGITS]))
    for row_label, value in labels:
        if not _may_be_undesired(row):
            yield row_label, value
        elif row_label in present:
            # The agent keeps an existing label, because it does not know whether the profile is
            # desired.
            yield row_label, present[row_label]


def _set_key(origin: str, domain: str) -> str:
    """Return the label key of a profile set, or an empty string if the set has no label.

    Only the name of a ConfigMap has the same meaning on every node. A directory or a manifest is a
    path on one host, so it gets no label of its own.
    """
    if not origin.startswith(_CONFIG_MAP):
        return ""
    return f"set.{domain}/{label_name(origin.removeprefix(_CONFIG_MAP))}"


def _is_ready(
    report: Report, status: ProfileSetStatus, domain: str, present: Mapping[str, str]
) -> bool:
    """Return whether every key of a ConfigMap has a verified version on the node.

    A ConfigMap that was ready stays ready while it cannot be read, and while its labelled profiles
    cannot be observed.
    """
    rows = [
        row
        for row in report.profiles
        if row.profile_set == status.profile_set and row.desired and not _may_be_undesired(row)
    ]
    unverified = [row for row in rows if row.state not in ON_NODE]
    if not rows or not all(_keeps_label(row, domain, present) for row in unverified):
        return False
    excludes_keys = any(item.reason == LeftOutReason.KIND for item in status.left_out)
    if excludes_keys or status.unlisted:
        return False
    return (status.state == ProfileSetState.READ and not unverified) or _set_key(
        status.profile_set, domain
    ) in present


def _keeps_label(row: ProfileStatus, domain: str, present: Mapping[str, str]) -> bool:
    """Return whether a profile keeps its existing label because it cannot be observed now."""
    return (
        row.state == ProfileState.UNOBSERVABLE and label_key(row.kind, row.name, domain) in present
    )


def _created_by_label(report: Report, domain: str) -> dict[str, str]:
    """Return for each label when the oldest ConfigMap with that name was created.

    The creation time of files is empty, so that files precede all ConfigMaps. Profile sets that
    were not read are omitted, because they only keep existing labels.
    """
    created = {
        status.profile_set: status.created
        for status in report.profile_sets
        if status.created is not None
    }
    by_label: dict[str, str] = {}
    for row in report.profiles:
        time = created.get(row.profile_set)
        if time is None:
            continue
        for label in (
            _set_key(row.profile_set, domain),
            label_key(row.kind, row.name, domain),
            _digest_key(row, domain),
        ):
            by_label[label] = min(time, by_label.get(label, time))
    return by_label


def _digest_key(row: ProfileStatus, domain: str) -> str:
    return f"{row.kind}-digest.{domain}/{label_name(row.name)}"


def _limited(
    labels: Mapping[str, str],
    created_by_label: Mapping[str, str],
    domain: str,
    limit: int,
    present: Mapping[str, str],
) -> tuple[dict[str, str], int]:
    """Return at most `limit` labels, and the number of omitted labels."""

    def rank(label: str) -> tuple[bool, bool, bool, bool, str, bool, str]:
        prefix = label.partition("/")[0]
        return (
            prefix != domain,  # The labels of kinds and modules come first.
            prefix.endswith(
                f"-digest.{domain}"
            ),  # The label with the digest is useless without the label of the profile name.
            label not in present,
            label not in created_by_label,
            created_by_label.get(label, ""),
            prefix != f"set.{domain}",
            label,
        )

    order = sorted(labels, key=rank)
    return {label: labels[label] for label in order[:limit]}, max(0, len(order) - limit)


def _collision(label: str, names: list[str]) -> Finding:
    return Finding(
        code=FindingCode.LABEL_COLLISION,
        location=label,
        message=" and ".join(f'"{text}"' for text in names) + " have the same label key. "
        "None of these names gets a label.",
        hint="Rename all but one of these profiles or ConfigMaps.",
    )


def _too_many(omitted: int, limit: int) -> Finding:
    return Finding(
        code=FindingCode.LABEL_LIMIT,
        location="node labels",
        message=f"The Node has no labels for {omitted} names, because --label-limit is {limit}.",
        hint="Existing labels come first, then those of older ConfigMaps. Use the label of the "
        "ConfigMap (set.DOMAIN/NAMESPACE__NAME) instead of those of its profiles, or increase "
        "--label-limit.",
    )
