"""Evaluates the state machine that contains the rules of a compiled AppArmor profile.

This module performs no I/O, and works like the kernel's implementation (security/apparmor/match.c).
For every input, the module either returns a result or raises DfaError.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

START: Final = 1
"""The state in which every evaluation begins (DFA_START)."""

NO_MATCH: Final = 0
"""The state from which no rule can match (DFA_NOMATCH)."""

_MAGIC: Final = b"\x1b\x5e\x78\x3d"
_MAX_PADDING: Final = 8
_ACCEPT, _BASE, _CHECK, _DEFAULT, _CLASSES, _NEXT = 1, 2, 3, 4, 5, 8  # the kernel's YYTD_ID_*
_REQUIRED: Final = frozenset({_ACCEPT, _BASE, _CHECK, _DEFAULT, _NEXT})
_DIFFERENCE: Final = 1 << 31  # MATCH_FLAG_DIFF_ENCODE
_OFFSET: Final = 0xFFFFFF


class DfaError(Exception):
    """The bytes are not a state machine with a known layout."""


@dataclass(frozen=True, slots=True)
class _Table:
    """One of the arrays of numbers in the binary state machine."""

    offset: int
    width: int
    length: int


class PolicyDfa:
    """A state machine in a compiled policy."""

    def __init__(self, blob: bytes) -> None:
        """Read the tables. Raises DfaError."""
        # The parser aligns the tables in its output with zero bytes.
        begin = blob.find(_MAGIC, 0, _MAX_PADDING + len(_MAGIC))
        if begin < 0:
            raise DfaError("the state machine has no header")
        self._blob = blob[begin:]
        self._tables = _tables(self._blob)
        if not self._tables.keys() >= _REQUIRED:
            raise DfaError("a table is missing")

    def match(self, state: int, text: bytes) -> int:
        """Return the state that follows a state after the given bytes. Raises DfaError."""
        for character in text:
            state = self._next(state, character)
        return state

    def accept(self, state: int) -> int:
        """Return the permissions of a state, or their index in a separate table of permissions.
        Raises DfaError.
        """
        return self._read(_ACCEPT, state)

    def _next(self, state: int, character: int) -> int:
        if _CLASSES in self._tables:
            character = self._read(_CLASSES, character)
        # Without a loop in the tables, the search passes each state at most once.
        for _ in range(self._tables[_BASE].length):
            base = self._read(_BASE, state)
            position = (base & _OFFSET) + character
            if self._read(_CHECK, position) == state:
                return self._read(_NEXT, position)
            state = self._read(_DEFAULT, state)
            if not base & _DIFFERENCE:
                return state
        raise DfaError("the default states form a loop")

    def _read(self, table_id: int, index: int) -> int:
        table = self._tables[table_id]
        if index >= table.length:
            raise DfaError("an index is outside its table")
        position = table.offset + index * table.width
        return int.from_bytes(self._blob[position : position + table.width], "big")


def _tables(blob: bytes) -> Mapping[int, _Table]:
    """Return the tables of a binary state machine by their numbers."""
    try:
        header_size, size = struct.unpack_from(">II", blob, 4)
        tables: dict[int, _Table] = {}
        position = header_size
        while 0 < position < min(size, len(blob)):
            table_id, width, high, length = struct.unpack_from(">HHII", blob, position)
            end = position + 12 + width * length
            if width not in (1, 2, 4) or high or end > len(blob):
                raise DfaError("a table has an unknown layout")
            tables[table_id] = _Table(position + 12, width, length)
            position = (end + 7) & ~7
    except struct.error as error:
        raise DfaError("the state machine ends too early") from error
    return tables


def permissions(dfa: PolicyDfa, state: int, table: Sequence[int] | None) -> int:
    """Return the allowed permissions of a state. Raises DfaError.

    Args:
        dfa: the state machine.
        state: the state.
        table: the allowed permissions by index; None if the state machine itself contains the
            permissions.
    """
    accepted = dfa.accept(state)
    if table is None:
        return accepted
    if accepted >= len(table):
        raise DfaError("an index is outside the permissions")
    return table[accepted]
