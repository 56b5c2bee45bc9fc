"""Compares a profile with another profile, for example with the default profile of a container
runtime.

The files in `defaults/` contain the default profiles with their source and version. The comparison
is exact: it searches for arguments with which one profile allows a system call and the other
profile denies it.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from agent.backends.seccomp import meaning, regions, resolve, syntax
from agent.backends.seccomp.document import Condition, Document
from agent.backends.seccomp.meaning import CallMeaning, Meaning

_FOLDER: Final = Path(__file__).parent / "defaults"
NAMES: Final = ("containerd", "cri-o")
# The capabilities that containerd and Docker give a container by default.
CAPABILITIES: Final = frozenset(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
        *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
)
# The conditions of the default profiles contain no kernel version except 4.8.
_RECENT_KERNEL: Final = (6, 0)


@functools.cache
def document(name: str) -> Document:
    """Return the default profile of a runtime, in which conditions on the node and the pod are
    unresolved.
    """
    read, findings = syntax.read((_FOLDER / f"{name}.json").read_bytes())
    if read is None:
        raise ValueError(f"The default profile of {name} is damaged: {findings}")
    return read


@functools.cache
def of(name: str, machine: str) -> Meaning:
    """Return the meaning of a runtime's default profile for the default capabilities."""
    node = resolve.Node(machine=machine, kernel=_RECENT_KERNEL, capabilities=CAPABILITIES)
    resolved = resolve.resolve(document(name), node).document
    return meaning.of(resolved, resolve.abis(machine))


def allows_more(profile: CallMeaning, other: CallMeaning) -> bool:
    """Return whether the profile allows a system call with arguments for which the other profile
    denies it.
    """
    if other.is_always_allowed or profile.is_always_denied:
        return False
    excluded = [rule.args for rule in other.cases if rule.answer.is_permissive]
    if other.otherwise.is_permissive:
        # The other profile denies the arguments that match one of its denying rules, and allows all
        # others.
        denied = [rule.args for rule in other.cases if not rule.answer.is_permissive]
    else:
        denied = [()]
    allowed: list[tuple[Sequence[Condition], list[Sequence[Condition]]]] = [
        (rule.args, []) for rule in profile.cases if rule.answer.is_permissive
    ]
    if profile.otherwise.is_permissive:
        allowed.append(((), [rule.args for rule in profile.cases]))
    return any(
        regions.outside((*mine, *theirs), [*others, *excluded], profile.largest)
        for mine, others in allowed
        for theirs in denied
    )


@functools.cache
def _restricted(name: str, machine: str) -> dict[str, CallMeaning]:
    """Return the system calls that a runtime's default profile denies, or allows with
    conditions.
    """
    default = of(name, machine)
    abi = default.abis[0]
    calls = {call: default.call(abi, call) for call in sorted(default.calls(abi))}
    return {name: call for name, call in calls.items() if not call.is_always_allowed}


def beyond(profile: Meaning, name: str, machine: str) -> Iterator[str]:
    """Return the system calls of the native ABI that a profile allows and a runtime's default
    profile denies.
    """
    abi = profile.abis[0]
    for call, default in _restricted(name, machine).items():
        if allows_more(profile.call(abi, call), default):
            yield call
