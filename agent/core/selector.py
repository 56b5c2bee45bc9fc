"""Parses Kubernetes label selectors, and matches labels against selectors.

The grammar is that of kubectl's --selector (kubernetes, apimachinery/pkg/labels/selector.go):
`a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a` and `!a`, joined by commas. A set of
labels matches a selector if it meets all conditions.
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
    """The operator of a condition on a label."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A condition on one label. The operators `exists` and `absent` have no values."""

    key: str
    relation: Relation
    values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A set of conditions that must all be true. A selector without conditions matches
    everything.
    """

    terms: tuple[Term, ...] = ()


def parse(text: str) -> Selector:
    """Parse a selector.

    Raises:
        ValueError: the text is not a valid selector; the message explains why.
    """
    if not text.strip():
        return Selector()
    terms: list[Term] = []
    position = 0
    while True:
        match = _TERM.match(text, position)
        if match is None:
            raise ValueError(_syntax_error(text, position))
        terms.append(_term(match, text))
        position = match.end()
        if position == len(text):
            return Selector(terms=tuple(terms))
        if text[position] != ",":
            raise ValueError(_syntax_error(text, position))
        position += 1


def _syntax_error(text: str, position: int) -> str:
    return f'"{text}" is not a valid label selector (error at character {position + 1})'


def _term(match: re.Match[str], text: str) -> Term:
    if match["no"]:
        return Term(key=match["absent"], relation=Relation.ABSENT)
    if match["set"]:
        values = frozenset(value.strip() for value in match["values"].split(","))
        relation = Relation(match["set"])
    elif match["sign"]:
        values = frozenset([match["value"]])
        relation = Relation.NOT_IN if match["sign"] == "!=" else Relation.IN
    else:
        return Term(key=match["key"], relation=Relation.EXISTS)
    invalid = [value for value in sorted(values) if not _VALUE.fullmatch(value)]
    if invalid:
        raise ValueError(f'"{text}": "{invalid[0]}" is not a valid label value')
    return Term(key=match["key"], relation=relation, values=values)


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Return whether labels meet every condition; a missing label meets `notin`."""
    return all(_is_fulfilled(term, labels) for term in selector.terms)


def _is_fulfilled(term: Term, labels: Mapping[str, str]) -> bool:
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
