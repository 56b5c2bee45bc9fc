"""Decides exactly whether conditions on arguments can be true together, and whether some conditions
imply others.

A filter compares unsigned 64-bit words, and each condition compares one argument. Together, the
conditions on one argument select an interval, fix some bits, and exclude single values. The module
computes the smallest word of the selected set directly, without approximation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp.document import Condition

BITS: Final = 64
LARGEST: Final = (1 << BITS) - 1
SHORT: Final = (1 << 32) - 1
_MOST_STEPS: Final = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A set of argument values: an interval in which some bits are fixed, minus a set of excluded
    values.
    """

    lowest: int = 0
    highest: int = LARGEST
    mask: int = 0  # The mask of the fixed bits.
    value: int = 0  # The values of the fixed bits.
    excluded: frozenset[int] = frozenset()

    def __and__(self, other: "Words") -> "Words":
        """Return the values that are in both sets."""
        if (self.value ^ other.value) & self.mask & other.mask:
            return NONE
        return Words(
            lowest=max(self.lowest, other.lowest),
            highest=min(self.highest, other.highest),
            mask=self.mask | other.mask,
            value=self.value | other.value,
            excluded=self.excluded | other.excluded,
        )

    def __contains__(self, word: int) -> bool:
        """Return whether a word is in the set."""
        return (
            self.lowest <= word <= self.highest
            and word & self.mask == self.value
            and word not in self.excluded
        )

    def smallest(self) -> int | None:
        """Return the smallest word of the set, or None if the set is empty."""
        word = self._next(self.lowest)
        while word is not None and word in self.excluded:
            word = self._next(word + 1)
        return word

    def _next(self, start: int) -> int | None:
        """Return the smallest word that has the fixed bits and is not less than `start`, or
        None.
        """
        if start > self.highest:
            return None
        word = start
        if start & self.mask != self.value:
            # The result keeps the upper bits of `start`, replaces the next 0 bit with 1, and has
            # the smallest possible lower bits. If the replaced bit is as low as possible, the word
            # is the smallest one.
            for place in range(BITS):
                bit = 1 << place
                above = start & ~((bit << 1) - 1)
                word = above | bit | self.value & (bit - 1)
                if not start & bit and word & self.mask == self.value:
                    break
            else:
                return None
        return word if word <= self.highest else None


ALL: Final = Words()
NONE: Final = Words(lowest=1, highest=0)


def words(condition: Condition) -> Words:
    """Return the values of the argument for which a condition is true."""
    value = condition.value
    if condition.op == "SCMP_CMP_MASKED_EQ":
        if condition.value_two & ~value:
            return NONE
        return Words(mask=value, value=condition.value_two)
    simple = {
        "SCMP_CMP_EQ": Words(lowest=value, highest=value),
        "SCMP_CMP_NE": Words(excluded=frozenset({value})),
        # If the value is 0, no word is less, so the set is empty.
        "SCMP_CMP_LT": Words(highest=value - 1),
        "SCMP_CMP_LE": Words(highest=value),
        "SCMP_CMP_GT": Words(lowest=value + 1),
        "SCMP_CMP_GE": Words(lowest=value),
    }
    return simple.get(condition.op, ALL)  # `fields` has already rejected unknown operators.


_OPPOSITES: Final = {
    "SCMP_CMP_EQ": "SCMP_CMP_NE",
    "SCMP_CMP_NE": "SCMP_CMP_EQ",
    "SCMP_CMP_LT": "SCMP_CMP_GE",
    "SCMP_CMP_GE": "SCMP_CMP_LT",
    "SCMP_CMP_GT": "SCMP_CMP_LE",
    "SCMP_CMP_LE": "SCMP_CMP_GT",
}


def complement(condition: Condition) -> Iterator[Words]:
    """Return sets whose union contains all values for which a condition is false."""
    if condition.op in _OPPOSITES:
        yield words(replace(condition, op=_OPPOSITES[condition.op]))
    elif condition.op == "SCMP_CMP_MASKED_EQ":
        if condition.value_two & ~condition.value:
            yield ALL
        for place in range(BITS):
            bit = 1 << place
            if condition.value & bit:
                yield Words(mask=bit, value=bit & ~condition.value_two)


def by_argument(conditions: Iterable[Condition], largest: int = LARGEST) -> dict[int, Words]:
    """Return the values of each argument for which all conditions are true.

    largest: the largest value of an argument, which is `SHORT` for an ABI with 32-bit arguments.
    """
    found: dict[int, Words] = {}
    for condition in conditions:
        before = found.get(condition.index, replace(ALL, highest=largest))
        found[condition.index] = before & words(condition)
    return found


def example(conditions: Iterable[Condition], largest: int = LARGEST) -> dict[int, int] | None:
    """Return arguments for which all conditions are true, or None if no such arguments exist."""
    found = {}
    for index, values in by_argument(conditions, largest).items():
        smallest = values.smallest()
        if smallest is None:
            return None
        found[index] = smallest
    return found


def can_hold_together(first: Iterable[Condition], second: Iterable[Condition]) -> bool:
    """Return whether some arguments meet the conditions of both rules."""
    return example((*first, *second)) is not None


def implies(
    first: Iterable[Condition], second: Iterable[Condition], largest: int = LARGEST
) -> bool:
    """Return whether all arguments that meet the first conditions also meet the second
    conditions.
    """
    values = by_argument(first, largest)
    if any(one.smallest() is None for one in values.values()):
        return True
    return all(
        (values.get(condition.index, replace(ALL, highest=largest)) & rest).smallest() is None
        for condition in second
        for rest in complement(condition)
    )


def outside(
    conditions: Iterable[Condition],
    others: Sequence[Iterable[Condition]],
    largest: int = LARGEST,
) -> bool:
    """Return whether some arguments meet all of the conditions, but not all conditions of any other
    list.

    The search can take exponential time. After `_MOST_STEPS` steps, the search stops and returns
    True.
    """
    search = _Search(others=[tuple(one) for one in others], largest=largest)
    return search.finds(by_argument(conditions, largest), 0)


@dataclass(slots=True, kw_only=True)
class _Search:
    """Searches for arguments that match none of several rules."""

    others: Sequence[tuple[Condition, ...]]
    largest: int
    steps: int = 0

    def finds(self, values: Mapping[int, Words], position: int) -> bool:
        """Return whether some of the values match neither the rule at this position nor any later
        rule.
        """
        self.steps += 1
        if self.steps > _MOST_STEPS:
            return True
        if any(one.smallest() is None for one in values.values()):
            return False
        if position == len(self.others):
            return True
        before = replace(ALL, highest=self.largest)
        return any(
            self.finds(
                {**values, condition.index: values.get(condition.index, before) & rest},
                position + 1,
            )
            for condition in self.others[position]
            for rest in complement(condition)
        )
