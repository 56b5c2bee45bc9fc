"""Tests of agent.core.selector."""

import pytest

from agent.core import selector
from agent.core.selector import Relation, Selector, Term

LABELS = {"pool": "a", "kubernetes.io/os": "linux", "empty": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  ", True),
        ("pool=a", True),
        ("pool==a", True),
        ("pool=b", False),
        ("pool!=b", True),
        ("pool!=a", False),
        ("absent!=a", True),
        ("pool in (a,b)", True),
        ("pool in ( b , c )", False),
        ("pool notin (b)", True),
        ("pool notin (a)", False),
        ("absent notin (a)", True),
        ("pool", True),
        ("absent", False),
        ("!absent", True),
        ("! pool", False),
        ("empty=", True),
        ("empty in (,x)", True),
        ("pool=a,kubernetes.io/os=linux", True),
        ("pool=a , kubernetes.io/os=windows", False),
    ],
)
def test_a_selector_matches_like_kubectl(text: str, expected: bool) -> None:
    """A selector matches the same labels as in kubectl. The cases contain every operator, and
    several conditions together.
    """
    assert selector.matches(selector.parse(text), LABELS) is expected


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "a=b=c",
        "a in b",
        "a in (b",
        "a,,b",
        "a,",
        "-a",
        "a=-b",
        "a in (b c)",
        "a;b",
        "!",
        "a=!",
    ],
)
def test_an_invalid_selector_is_an_error(text: str) -> None:
    """An invalid selector is an error, and never selects all objects."""
    with pytest.raises(ValueError, match=r"\"") as error:
        selector.parse(text)
    assert text in str(error.value)


def test_a_selector_has_one_term_per_condition() -> None:
    """Each condition of a selector is parsed into one term."""
    assert selector.parse("a=b,c notin (d,e),!f,g") == Selector(
        terms=(
            Term(key="a", relation=Relation.IN, values=frozenset({"b"})),
            Term(key="c", relation=Relation.NOT_IN, values=frozenset({"d", "e"})),
            Term(key="f", relation=Relation.ABSENT),
            Term(key="g", relation=Relation.EXISTS),
        )
    )
