"""Interprets classic BPF, the language of seccomp filters (linux/filter.h).

A filter reads struct seccomp_data in units of 32 bits: nr, arch, instruction_pointer, args[6].
"""

import operator
from collections.abc import Sequence

from tests.system.seccomp_filter.runtimes import (
    AND,
    IF_EQUAL,
    IF_GREATER,
    IF_GREATER_EQUAL,
    IF_SET,
    JUMP,
    LOAD,
    RETURN,
    Instruction,
)

_TESTS = {
    IF_EQUAL: operator.eq,
    IF_GREATER: operator.gt,
    IF_GREATER_EQUAL: operator.ge,
    IF_SET: operator.and_,
}


class Program:
    """A filter that can be evaluated for many system calls.

    Instructions that depend only on the architecture and the number of a call are evaluated once
    per architecture and number.
    """

    def __init__(self, instructions: Sequence[Instruction], *, is_big_endian: bool = False) -> None:
        self.instructions = tuple(instructions)
        self.is_big_endian = is_big_endian
        self._starts: dict[tuple[int, int], tuple[int, int]] = {}

    def evaluate(self, architecture: int, number: int, arguments: Sequence[int]) -> int:
        """Return the filter's result for one system call."""
        key = (architecture, number)
        start = self._starts.get(key)
        if start is None:
            start = self._starts[key] = self._run(0, 0, [number & 0xFFFFFFFF, architecture])
        position, accumulator = start
        if position < 0:
            return accumulator
        words = [number & 0xFFFFFFFF, architecture, 0, 0]
        for argument in arguments:
            words += (argument & 0xFFFFFFFF, argument >> 32)
        return self._run(position, accumulator, words)[1]

    def depends_on_arguments(self, architecture: int, number: int) -> bool:
        """Return whether the filter reads the arguments of a call."""
        self.evaluate(architecture, number, (0,) * 6)
        return self._starts[architecture, number][0] >= 0

    def _run(self, position: int, accumulator: int, words: Sequence[int]) -> tuple[int, int]:
        """Run the program until it returns (position -1), or until it loads a word that is not
        available.
        """
        instructions = self.instructions
        while True:
            code, if_true, if_false, operand = instructions[position]
            position += 1
            if code in _TESTS:
                position += if_true if _TESTS[code](accumulator, operand) else if_false
            elif code == LOAD:
                if operand >= 4 * len(words):
                    return position - 1, accumulator
                accumulator = words[operand >> 2]
            elif code == RETURN:
                return -1, operand
            elif code == JUMP:
                position += operand
            elif code == AND:
                accumulator &= operand
            else:
                raise ValueError(f"The interpreter does not know instruction {code:#x}.")
