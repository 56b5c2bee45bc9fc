"""Decides from a compiled profile whether a container runtime may stop processes under that
profile.

This module performs no I/O. The kernel denies a signal if the profile of the receiver has no rule
that allows it, even if the sender is root and unconfined (security/apparmor/ipc.c: aa_may_signal).
"""

from collections.abc import Sequence
from typing import Final

from agent.backends.apparmor import policy_dfa
from agent.backends.apparmor.policy_dfa import DfaError, PolicyDfa

# A container runtime is unconfined, or runs under one of these profiles, which some distributions
# load.
_RUNTIMES: Final = (b"unconfined", b"runc", b"crun")
_SIGNALS: Final = bytes([9, 15])  # KILL and TERM, with which the kubelet stops a container.
_SIGNAL_CLASS: Final = 10  # AA_CLASS_SIGNAL
_RECEIVE: Final = 4  # MAY_READ


def are_allowed(dfa: bytes, table: Sequence[int] | None) -> bool:
    """Return whether the profile receives TERM and KILL from at least one runtime.

    A profile that does not mediate signals receives all signals. The result is also True if the
    compiled profile cannot be read.

    Args:
        dfa: the state machine of all rules except file rules.
        table: the allowed permissions by index; None if the state machine contains the permissions.
    """
    try:
        machine = PolicyDfa(dfa)
        signals = machine.match(policy_dfa.START, bytes([_SIGNAL_CLASS]))
        return signals == policy_dfa.NO_MATCH or any(
            all(
                policy_dfa.permissions(
                    machine, machine.match(signals, bytes([signal]) + runtime), table
                )
                & _RECEIVE
                for signal in _SIGNALS
            )
            for runtime in _RUNTIMES
        )
    except DfaError:
        return True
