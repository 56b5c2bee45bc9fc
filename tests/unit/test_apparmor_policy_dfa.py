"""Tests of agent.backends.apparmor.policy_dfa and stop_signals."""

import struct

import pytest

from agent.backends.apparmor import policy_dfa, stop_signals
from agent.backends.apparmor.policy_dfa import DfaError, PolicyDfa

MAGIC = 0x1B5E783D
DIFFERENCE = 1 << 31


def table(number: int, width: int, values: tuple[int, ...] | list[int]) -> bytes:
    """Return the bytes of one table of a state machine."""
    data = b"".join(value.to_bytes(width, "big") for value in values)
    content = struct.pack(">HHII", number, width, 0, len(values)) + data
    return content + b"\0" * (-len(content) % 8)


def blob(tables: list[bytes]) -> bytes:
    """Return the bytes of a state machine."""
    body = b"".join(tables)
    header = struct.pack(">IIIH", MAGIC, 24, 24 + len(body), 0) + b"notflex\0\0\0"
    return header + body


def machine(
    *, base: tuple[int, int, int] = (0, 0, 0), default: tuple[int, int, int] = (0, 0, 0)
) -> list[bytes]:
    """Return a state machine that changes from state 1 to state 2 at the letter `b`.

    The class of this letter is 1, and the class of all other characters is 0.
    """
    classes = [0] * 256
    classes[ord("b")] = 1
    return [
        table(1, 4, (0, 0, 4)),
        table(2, 4, base),
        table(4, 2, default),
        table(5, 1, classes),
        table(8, 2, (0, 2)),
        table(3, 2, (0, 1)),
    ]


def test_each_character_leads_to_its_state() -> None:
    """Each character leads to the state of its transition, or to the default state if it has no
    transition.
    """
    dfa = PolicyDfa(b"\0\0\0" + blob(machine()))
    assert dfa.match(policy_dfa.START, b"b") == 2
    assert dfa.match(policy_dfa.START, b"a") == policy_dfa.NO_MATCH
    assert dfa.match(policy_dfa.START, b"bb") == policy_dfa.NO_MATCH
    assert policy_dfa.permissions(dfa, 2, None) == 4
    assert policy_dfa.permissions(dfa, 1, [7]) == 7


def test_a_state_can_be_stored_as_the_difference_to_another_state() -> None:
    """If a state has no transition for a character, the transition of its referenced state
    applies.
    """
    dfa = PolicyDfa(blob(machine(base=(0, 0, DIFFERENCE), default=(0, 0, 1))))
    assert dfa.match(2, b"b") == 2


BROKEN = {
    "no bytes": b"",
    "only a header": struct.pack(">II", MAGIC, 24),
    "a missing table": blob(machine()[:-1]),
    "a width of 3 bytes": blob([table(1, 3, (0,))]),
    "a table beyond the end": blob(machine())[:-8],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_unknown_layout_is_an_error(content: bytes) -> None:
    """A state machine with an unknown layout is an error. The agent does not evaluate such a
    machine, so it causes no warning.
    """
    with pytest.raises(DfaError):
        PolicyDfa(content)
    assert stop_signals.are_allowed(content, None)


def test_a_loop_and_an_index_outside_of_a_table_are_errors() -> None:
    """A loop, or an index outside of a table, is an error, so the evaluation of a state machine
    always ends.
    """
    loop = PolicyDfa(blob(machine(base=(0, 0, DIFFERENCE), default=(0, 0, 2))))
    with pytest.raises(DfaError, match="loop"):
        loop.match(2, b"b")
    far = PolicyDfa(blob(machine(base=(0, 99, 0))))
    with pytest.raises(DfaError, match="outside its table"):
        far.match(1, b"b")
    with pytest.raises(DfaError, match="outside the permissions"):
        policy_dfa.permissions(PolicyDfa(blob(machine())), 2, [0])


def test_a_profile_that_mediates_no_signals_receives_them() -> None:
    """A profile without rules for the class of signals receives all signals, because the kernel
    then denies no signal.
    """
    assert stop_signals.are_allowed(blob(machine()), None)
