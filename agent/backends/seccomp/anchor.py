"""Profiles in whose filter libseccomp forgets to load the system call number.

For each ABI libseccomp sorts the calls that have rules: fewest comparisons first, then by number.
The program of the first call loads the number. A call that the ABI lacks has no program, and if
such a call is first, the number is never loaded: no rule of that ABI applies any more
(_gen_bpf_syscalls in gen_bpf.c, in every version up to 2.6.1). x86_64 and x32 are one such list
if both are there; either alone loads the number elsewhere.

A rule without conditions for a call that the ABI has always comes first. `anchored` adds one where
that changes nothing; `problems` rejects what remains. The search in
tests/system/seccomp_filter found no other way to reach this fault.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp import multiplex, syscalls
from agent.backends.seccomp.syntax import Document, Rule, answer
from agent.core.findings import Finding

# No kernel since Linux 3.1 has this call, so that it answers ENOSYS without any filter. Every
# libseccomp knows it on every ABI but x32.
ANCHOR: Final = "nfsservctl"
_ENOSYS: Final = 38
_PERMISSIVE: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"})
_X86_64: Final = "SCMP_ARCH_X86_64"
_X32: Final = "SCMP_ARCH_X32"


@dataclass(slots=True)
class _Calls:
    """What one ABI's list of calls holds, as far as it decides which call is first."""

    missing: Rule | None = None  # a rule for a call that the ABI lacks
    has_comparisons: bool = False  # a call that the ABI has, and that has conditions
    is_anchored: bool = False  # a call that the ABI has, and that has none


def anchored(document: Document, abis: Collection[str]) -> tuple[Document, tuple[Finding, ...]]:
    """Return the document with a rule added if one is needed and harmless, and a notice.

    abis: those that the node's kernel runs, the native one first.
    """
    if not _unanchored(document, abis) or not _may_add(document):
        return document, ()
    rule = Rule(
        where=f"syscalls[{len(document.rules)}]",
        names=(ANCHOR,),
        action="SCMP_ACT_ERRNO",
        errno_ret=_ENOSYS,
    )
    what = (
        f"A rule for {ANCHOR} was added; kernels answer it with ENOSYS anyway. Without a rule that "
        "has no conditions libseccomp would drop the conditional rules of an architecture."
    )
    notice = Finding(code="rule_added", location="syscalls", message=what)
    return replace(document, rules=(*document.rules, rule)), (notice,)


def findings(document: Document, abis: Collection[str]) -> Iterator[Finding]:
    """Return the ABIs on which libseccomp would drop rules of the document."""
    for abi, rule in _unanchored(document, abis).items():
        yield Finding(
            code="fails_open",
            location=rule.where,
            message=f"On {abi} libseccomp would drop every conditional rule: this rule names a "
            "call "
            f"that {abi} lacks, and no rule without conditions names a call that it has.",
            hint="Add a rule without conditions for a call that every architecture has, for "
            f"example getpid, or leave {abi} out of architectures.",
        )


def _may_add(document: Document) -> bool:
    """Return whether a rule for the anchor changes nothing that the profile says."""
    named = any(ANCHOR in rule.names for rule in document.rules)
    return document.default_action in _PERMISSIVE and not named


def _unanchored(document: Document, abis: Collection[str]) -> dict[str, Rule]:
    """Return the ABIs whose number is not loaded, each with a rule that is the reason."""
    listed = {*document.architectures, *itertools.islice(abis, 1)}
    found = {}
    for abi in abis:
        if abi not in listed or abi == _X32 or (abi == _X86_64 and _X32 not in listed):
            continue
        calls = _calls(document, abi)
        if abi == _X86_64:
            other = _calls(document, _X32)
            calls.missing = calls.missing or other.missing
            calls.has_comparisons |= other.has_comparisons
        if calls.missing and calls.has_comparisons and not calls.is_anchored:
            found[_X32 if abi == _X86_64 else abi] = calls.missing
    return found


def _calls(document: Document, abi: str) -> _Calls:
    calls = _Calls()
    default = answer(document.default_action, document.default_errno_ret)
    names = syscalls.of(abi) | ({ANCHOR} if abi != _X32 else set())
    for rule in document.rules:
        if answer(rule.action, rule.errno_ret) == default:
            continue  # runtimes leave such a rule out
        for name in rule.names:
            if name not in names:
                calls.missing = calls.missing or rule
            elif rule.args:
                calls.has_comparisons = True
            elif not rule.depends_on_capabilities and name not in syscalls.RECENT:
                calls.is_anchored = True
            if abi in multiplex.ABIS and name in multiplex.NAMES:
                calls.has_comparisons = True
    return calls
