"""Which labels the own Node is to have: a pure function of a report.

Rule 1: a label says what was verified in this pass; where the agent could not look, at the node or
at what is desired, what is there stays and nothing is added. Rule 2: a name that nobody desires any
more has no label, used or not. Rule 3: two names that meet in one label get none.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.core.model import KindName
from agent.core.problems import Problem
from agent.core.report import UNKNOWN_WISH, Report, Row

DOMAIN: Final = "profile-loader.node-restriction.kubernetes.io"
LIMIT: Final = 200
DIGEST_DIGITS: Final = 12

# kubernetes, apimachinery/pkg/util/validation/validation.go: IsQualifiedName, IsValidLabelValue.
_ALLOWED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LIKE_HASH: Final = re.compile(r"(.*-)?[0-9a-f]{8}")
_CUT: Final = 63 - 1 - 8
_CONFIG_MAP: Final = "configmap "
_VERIFIED: Final = frozenset({"installed", "outdated", "held"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The whole set of own labels, and what could not be told."""

    labels: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def name(text: str) -> str:
    """Return the last part of a label's key for a profile or ConfigMap, the same every time.

    The text itself where a label allows it, with `__` for each `/`; any other, and any that could
    be mistaken for another, is cut and followed by "-" and 8 hex digits of its sha256.
    """
    plain = text.replace("/", "__")
    if (
        _ALLOWED.fullmatch(plain)
        and plain.replace("__", "/") == text
        and not _LIKE_HASH.fullmatch(plain)
    ):
        return plain
    cut = re.sub(r"[^-A-Za-z0-9_.]", ".", plain).strip("-_.")[:_CUT].rstrip("-_.")
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{cut or 'name'}-{digits}"


def key(kind: KindName, text: str, domain: str) -> str:
    """Return the key of the label of a profile."""
    return f"{kind}.{domain}/{name(text)}"


def is_own(label: str, domain: str) -> bool:
    """Return whether a label's key lies below one of the agent's prefixes."""
    prefix, _, _ = label.rpartition("/")
    return prefix == domain or (
        prefix.endswith(f".{domain}") and prefix.removesuffix(f".{domain}") in _PREFIXES
    )


_PREFIXES: Final = ("apparmor", "seccomp", "set", "apparmor-digest", "seccomp-digest")


def selector(row: Row, domain: str) -> dict[str, str]:
    """Return the nodeSelector that finds nodes with this row's profile; empty: there is none."""
    if not _labelled(row):
        return {}
    return {key(row.kind, row.name, domain): _value(row)}


def of(
    report: Report,
    *,
    domain: str = DOMAIN,
    digest: bool = False,
    limit: int = LIMIT,
    present: Mapping[str, str],
) -> Labels:
    """Return the labels that a report earns.

    present: the own labels that the Node has now; they keep their place when there are more than
    limit.
    """
    told: dict[str, set[tuple[str, str]]] = defaultdict(set)  # key -> (what it is of, value)
    for row in report.rows:
        for label, value in _of_row(row, domain, present, digest=digest):
            told[label].add((row.name, value))
    for set_ in report.sets:
        if set_.origin.startswith(_CONFIG_MAP) and _ready(report, set_.origin, domain, present):
            told[_set_key(set_.origin, domain)].add((set_.origin, "ready"))
    labels, problems = {}, []
    for label, meanings in told.items():
        if len({of_what for of_what, _ in meanings}) > 1:
            problems.append(_collision(label, sorted(of_what for of_what, _ in meanings)))
        else:
            labels[label] = min(meanings)[1]
    for kind, support in report.supports.items():
        label = f"{domain}/{kind}"
        known = present.get(label, support.state) if support.state == "unknown" else support.state
        labels[label] = known
    kept, left = _limited(labels, domain, limit, present)
    problems += [_too_many(left, limit)] if left else []
    return Labels(labels=kept, problems=tuple(problems))


def _labelled(row: Row) -> bool:
    return row.desired and bool(row.name) and row.state in _VERIFIED


def _value(row: Row) -> str:
    return row.mode if row.kind == "apparmor" else "installed"


def _of_row(
    row: Row, domain: str, present: Mapping[str, str], *, digest: bool
) -> Iterable[tuple[str, str]]:
    if not row.name:
        return
    label = key(row.kind, row.name, domain)
    digest_label = f"{row.kind}-digest.{domain}/{name(row.name)}"
    if row.state == "unobservable" and row.desired:
        for one in (label, digest_label):
            if one in present:
                yield one, present[one]
    if not _labelled(row):
        return
    earned = [(label, _value(row))]
    if digest and row.source:
        earned.append((digest_label, row.source[:DIGEST_DIGITS]))
    for one, value in earned:
        if row.why != UNKNOWN_WISH:
            yield one, value
        elif one in present:
            yield one, present[one]  # whether it is desired is not known: nothing changes


def _set_key(origin: str, domain: str) -> str:
    config_map = origin.removeprefix(_CONFIG_MAP).partition("/")[2]
    return f"set.{domain}/{name(config_map)}"


def _ready(report: Report, origin: str, domain: str, present: Mapping[str, str]) -> bool:
    """Return whether every key of a ConfigMap has a verified version in place.

    What was ready stays so while the ConfigMap, or a profile that has its label, cannot be seen.
    """
    rows = [
        row
        for row in report.rows
        if row.origin == origin and row.desired and row.why != UNKNOWN_WISH
    ]
    unseen = [row for row in rows if row.state not in _VERIFIED]
    if not rows or not all(_unseen(row, domain, present) for row in unseen):
        return False
    set_ = next(one for one in report.sets if one.origin == origin)
    if set_.left_out:
        return False
    return (set_.state == "read" and not unseen) or _set_key(origin, domain) in present


def _unseen(row: Row, domain: str, present: Mapping[str, str]) -> bool:
    """Return whether a profile was verified before, and cannot be looked at now."""
    return row.state == "unobservable" and key(row.kind, row.name, domain) in present


def _limited(
    labels: Mapping[str, str], domain: str, limit: int, present: Mapping[str, str]
) -> tuple[dict[str, str], int]:
    """Return at most limit labels, and how many were left out."""

    def rank(label: str) -> tuple[bool, bool, bool, bool, str]:
        prefix = label.partition("/")[0]
        return (
            prefix != domain,  # what this node can do at all comes first
            prefix.endswith(f"-digest.{domain}"),  # a digest without its name is of no use
            label not in present,
            prefix != f"set.{domain}",
            label,
        )

    order = sorted(labels, key=rank)
    return {label: labels[label] for label in order[:limit]}, max(0, len(order) - limit)


def _collision(label: str, names: list[str]) -> Problem:
    return Problem(
        code="label_collision",
        where=label,
        what="One label would stand for " + " and ".join(f'"{one}"' for one in names) + ". "
        "None of them is labelled.",
        hint="Give one of them another name.",
    )


def _too_many(left: int, limit: int) -> Problem:
    return Problem(
        code="label_limit",
        where="node labels",
        what=f"{left} labels more than --label-limit {limit} were left out.",
        hint="Select by the ConfigMap's own label set.DOMAIN/NAME, or raise --label-limit.",
    )
