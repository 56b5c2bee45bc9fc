"""Label selectors of Kubernetes: parsing and matching.

The grammar is that of kubectl's --selector (kubernetes, apimachinery/pkg/labels/selector.go):
`a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a` and `!a`, joined by commas. All
conditions must be true.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?:[a-z0-9][-a-z0-9.]{{0,252}}/)?{_NAME}"
_VALUE = re.compile(rf"(?:{_NAME})?")
_TERM = re.compile(
    rf"\s*(?:(?P<no>!)\s*(?P<absent>{_KEY})"
    rf"|(?P<key>{_KEY})(?:\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
    rf"|\s*(?P<sign>!=|==|=)\s*(?P<value>[^,\s()=!]*))?)\s*"
)


class Relation(StrEnum):
    """How a term compares a label."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One condition. `exists` and `absent` have no values."""

    key: str
    relation: Relation
    values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Conditions that must all be true. A selector without conditions selects everything."""

    terms: tuple[Term, ...] = ()


def parse(text: str) -> Selector:
    """Parse a selector. Raises ValueError with the reason for a text that is not valid."""
    if not text.strip():
        return Selector()
    terms: list[Term] = []
    position = 0
    while True:
        found = _TERM.match(text, position)
        if found is None:
            raise ValueError(f'"{text}" is no label selector, from character {position + 1} on')
        terms.append(_term(found, text))
        position = found.end()
        if position == len(text):
            return Selector(terms=tuple(terms))
        if text[position] != ",":
            raise ValueError(f'"{text}" is no label selector, from character {position + 1} on')
        position += 1


def _term(found: re.Match[str], text: str) -> Term:
    if found["no"]:
        return Term(key=found["absent"], relation=Relation.ABSENT)
    if found["set"]:
        values = frozenset(one.strip() for one in found["values"].split(","))
        relation = Relation(found["set"])
    elif found["sign"]:
        values = frozenset([found["value"]])
        relation = Relation.NOT_IN if found["sign"] == "!=" else Relation.IN
    else:
        return Term(key=found["key"], relation=Relation.EXISTS)
    wrong = [one for one in sorted(values) if not _VALUE.fullmatch(one)]
    if wrong:
        raise ValueError(f'"{text}": "{wrong[0]}" can be no label\'s value')
    return Term(key=found["key"], relation=relation, values=values)


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Return whether labels fulfil every condition. `notin` is true if the label is absent."""
    return all(_holds(term, labels) for term in selector.terms)


def _holds(term: Term, labels: Mapping[str, str]) -> bool:
    match term.relation:
        case Relation.EXISTS:
            return term.key in labels
        case Relation.ABSENT:
            return term.key not in labels
        case Relation.IN:
            return labels.get(term.key) in term.values
        case Relation.NOT_IN:
            return labels.get(term.key) not in term.values
        case unreachable:
            assert_never(unreachable)
