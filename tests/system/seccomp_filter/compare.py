"""Compares the results of a built filter with the reference for the same system calls."""

import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.system.seccomp_filter.bpf import Program
from tests.system.seccomp_filter.reference import (
    BAD_ARCHITECTURE,
    MULTIPLEXED,
    Reference,
    numbers,
    numbers_by_name,
)
from tests.system.seccomp_filter.runtimes import KERNEL_NUMBERS, X32_BIT, Profile

_LARGEST = 2**64 - 1
_MOST_COMBINATIONS = 200
# The rank of each action, which is in the upper 16 bits of a result (SECCOMP_RET_ACTION_FULL in
# linux/seccomp.h). An action with a higher rank denies more.
_STRICTNESS = {0x7FFF: 0, 0x7FFC: 1, 0x7FF0: 2, 0x0005: 3, 0x0003: 4, 0x0000: 5, 0x8000: 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A system call for which the filter and the rules return different results."""

    architecture: str
    number: int
    name: str
    arguments: tuple[int, ...]
    expected: Collection[int]
    actual: int

    @property
    def fails_open(self) -> bool:
        """Whether the filter is more permissive than every permitted result."""
        return strictness(self.actual) < min(map(strictness, self.expected))

    def __str__(self) -> str:
        expected = "|".join(f"{item:#x}" for item in sorted(self.expected))
        arguments = ",".join(f"{item:#x}" for item in self.arguments)
        architecture = self.architecture.removeprefix("SCMP_ARCH_")
        return f"{architecture} {self.name}({arguments}) -> {self.actual:#x}, not {expected}"


def strictness(answer: int) -> int:
    """Return the rank of a result. A result with a higher rank denies more."""
    return _STRICTNESS[answer >> 16]


def boundary_values(condition: Mapping[str, Any]) -> Iterator[int]:
    """Return values around the point at which a condition changes from false to true."""
    value = condition["value"]
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        mask, expected = value, condition.get("valueTwo", 0)
        lowest = mask & -mask
        highest = 1 << mask.bit_length() >> 1
        yield from (expected, expected | (_LARGEST & ~mask), expected ^ lowest, expected ^ highest)
        yield from (expected ^ 1 << 32, expected ^ 1 << 31)
        return
    low = value & 0xFFFFFFFF
    for near in (value - 1, value, value + 1, value - 2**32, value + 2**32, low, value ^ 1 << 63):
        if 0 <= near <= _LARGEST:
            yield near
    yield from (value & ~0xFFFFFFFF, value | 0xFFFFFFFF)


def argument_vectors(
    conditions: Iterable[Mapping[str, Any]], draw: random.Random
) -> list[tuple[int, ...]]:
    """Return combinations of argument values at the boundaries of all conditions."""
    candidates: dict[int, set[int]] = {}
    for item in conditions:
        candidates.setdefault(item["index"], {0, _LARGEST}).update(boundary_values(item))
    choices = [sorted(candidates.get(index, {0})) for index in range(6)]
    count = 1
    for values in choices:
        count *= len(values)
    if count <= _MOST_COMBINATIONS:
        return list(itertools.product(*choices))
    return [tuple(draw.choice(values) for values in choices) for _ in range(_MOST_COMBINATIONS)]


class Questions:
    """The system calls for which the filters of a profile are evaluated."""

    def __init__(self, profile: Profile, draw: random.Random) -> None:
        self.names = {name for rule in profile["syscalls"] for name in rule["names"]}
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for rule in profile["syscalls"]:
            for name in rule["names"]:
                by_name.setdefault(name, []).extend(rule.get("args") or [])
        self.vectors = {
            name: argument_vectors(conditions, draw) for name, conditions in by_name.items()
        }
        self.others = sorted(draw.sample(range(460), 6))

    def calls(
        self, reference: Reference, architecture: str
    ) -> Iterator[tuple[int, str, Sequence[tuple[int, ...]]]]:
        """Return the number, the name and the arguments of the calls for one architecture."""
        table = numbers_by_name(reference.library, architecture)
        asked = set()
        for name, vectors in self.vectors.items():
            if name in table:
                asked.add(table[name])
                yield table[name], name, vectors
        bit = X32_BIT if architecture == "SCMP_ARCH_X32" else 0
        names = numbers(reference.library, architecture)
        for number in (*(item | bit for item in self.others), *(item + 1 for item in tuple(asked))):
            if number not in asked and not (bit == 0 and number >= X32_BIT):
                yield number, names.get(number, "?"), _ANY
        for name, operations in MULTIPLEXED.items():
            if name in table and table[name] not in asked:
                yield table[name], name, [(item, 0, 0, 0, 0, 0) for item in (0, *operations)]


_ANY = [(0,) * 6, (_LARGEST,) * 6]


def differences(
    program: Program, reference: Reference, questions: Questions, most_arguments: int | None = None
) -> Iterator[Difference]:
    """Return every call for which the filter and the reference differ.

    `most_arguments` limits the number of argument vectors for each call. By default, all argument
    vectors are used.
    """
    for architecture in reference.architectures:
        kernel_number = KERNEL_NUMBERS[architecture]
        for number, name, vectors in questions.calls(reference, architecture):
            for arguments in vectors[:most_arguments]:
                actual = program.evaluate(kernel_number, number, arguments)
                expected = reference.answers(architecture, number, arguments)
                if actual not in expected:
                    yield Difference(
                        architecture=architecture,
                        number=number,
                        name=name,
                        arguments=tuple(arguments),
                        expected=tuple(expected),
                        actual=actual,
                    )
    yield from _foreign(program, reference)


def _foreign(program: Program, reference: Reference) -> Iterator[Difference]:
    """Return calls of other architectures that the filter does not kill."""
    handled = {KERNEL_NUMBERS[item] for item in reference.architectures}
    for architecture, kernel_number in KERNEL_NUMBERS.items():
        number = 1
        if architecture == "SCMP_ARCH_X32":
            if architecture in reference.architectures or kernel_number not in handled:
                continue
            number |= X32_BIT
        elif kernel_number in handled:
            continue
        actual = program.evaluate(kernel_number, number, (0,) * 6)
        if actual != BAD_ARCHITECTURE:
            yield Difference(
                architecture=architecture,
                number=number,
                name="?",
                arguments=(0,) * 6,
                expected=(BAD_ARCHITECTURE,),
                actual=actual,
            )
