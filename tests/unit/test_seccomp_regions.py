"""Tests of the exact analysis of argument conditions. The tests compare the results with an
evaluation of single argument values.
"""

import itertools
import random

import pytest

from agent.backends.seccomp import regions
from agent.backends.seccomp.document import Condition

OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
SMALL = 16  # the values of the exhaustive tests


def condition(op: str, value: int, value_two: int = 0, index: int = 0) -> Condition:
    return Condition(index=index, op=f"SCMP_CMP_{op}", value=value, value_two=value_two)


def are_met(one: Condition, word: int) -> bool:
    return {
        "SCMP_CMP_NE": word != one.value,
        "SCMP_CMP_LT": word < one.value,
        "SCMP_CMP_LE": word <= one.value,
        "SCMP_CMP_EQ": word == one.value,
        "SCMP_CMP_GE": word >= one.value,
        "SCMP_CMP_GT": word > one.value,
        "SCMP_CMP_MASKED_EQ": word & one.value == one.value_two,
    }[one.op]


def random_conditions(draw: random.Random, count: int) -> list[Condition]:
    result = []
    for _ in range(count):
        op = draw.choice(OPERATORS)
        value = draw.randrange(SMALL)
        value_two = draw.randrange(SMALL)
        if op == "MASKED_EQ" and draw.random() < 0.8:
            value_two &= value
        result.append(condition(op, value, value_two, draw.choice((0, 0, 1))))
    return result


def fulfilling(conditions: list[Condition]) -> set[tuple[int, int]]:
    """Return all pairs of small arguments that meet the conditions."""
    return {
        pair
        for pair in itertools.product(range(SMALL), range(SMALL))
        if all(are_met(item, pair[item.index]) for item in conditions)
    }


@pytest.mark.parametrize("seed", range(300))
def test_conditions_are_compatible_exactly_if_some_arguments_meet_them(seed: int) -> None:
    """The search finds the smallest arguments that meet all conditions, or reports that no such
    arguments exist.
    """
    draw = random.Random(seed)  # noqa: S311 - the same every time
    conditions = random_conditions(draw, draw.randint(1, 5))
    result = regions.example(conditions, SMALL - 1)
    expected = fulfilling(conditions)
    assert (result is not None) == bool(expected)
    if result is not None:
        assert (result.get(0, 0), result.get(1, 0)) in expected


@pytest.mark.parametrize("seed", range(300))
def test_implication_is_inclusion(seed: int) -> None:
    """Condition A implies condition B exactly if all arguments that meet A also meet B."""
    draw = random.Random(f"implies/{seed}")  # noqa: S311 - the same every time
    first, second = (
        random_conditions(draw, draw.randint(0, 3)),
        random_conditions(draw, draw.randint(0, 2)),
    )
    assert regions.implies(first, second, SMALL - 1) == (fulfilling(first) <= fulfilling(second))


@pytest.mark.parametrize("seed", range(300))
def test_outside_is_difference(seed: int) -> None:
    """The search finds arguments that match none of several rules exactly if such arguments
    exist.
    """
    draw = random.Random(f"outside/{seed}")  # noqa: S311 - the same every time
    first = random_conditions(draw, draw.randint(0, 2))
    others = [random_conditions(draw, draw.randint(1, 2)) for _ in range(draw.randint(0, 4))]
    expected = fulfilling(first).difference(*map(fulfilling, others))
    assert regions.outside(first, others, SMALL - 1) == bool(expected)


LARGEST = 2**64 - 1


@pytest.mark.parametrize(
    ("conditions", "smallest"),
    [
        ([condition("GT", LARGEST)], None),
        ([condition("LT", 0)], None),
        ([condition("GE", LARGEST)], LARGEST),
        ([condition("MASKED_EQ", 0xFFFFFFFF, 5), condition("GE", 2**32)], 2**32 + 5),
        ([condition("MASKED_EQ", 1 << 63, 1 << 63), condition("LT", 1 << 63)], None),
        ([condition("MASKED_EQ", 0xF0, 0x10), condition("MASKED_EQ", 0x18, 0x08)], None),
        ([condition("MASKED_EQ", LARGEST, 7), condition("NE", 7)], None),
        ([condition("MASKED_EQ", LARGEST - 1, 6), condition("NE", 6)], 7),
        ([condition("GE", 5), condition("LE", 7), *(condition("NE", n) for n in (5, 6))], 7),
        ([condition("GE", 5), condition("LE", 6), *(condition("NE", n) for n in (5, 6))], None),
    ],
)
def test_the_smallest_word_of_64_bits(conditions: list[Condition], smallest: int | None) -> None:
    """Intervals, fixed bits and excluded words are combined correctly at the ends of the range."""
    expected = None if smallest is None else {0: smallest}
    assert regions.example(conditions) == expected


def test_a_search_that_would_take_too_long_reports_arguments() -> None:
    """A search that reaches its limit stops, and reports that matching arguments may exist."""
    others = [
        [condition("MASKED_EQ", LARGEST >> shift, 1 << shift % 7)] for shift in range(1, 60)
    ] + [[condition("GE", 0)]]
    assert regions.outside([], others)
