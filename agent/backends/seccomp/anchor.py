"""Handles profiles whose filter, as libseccomp builds it, does not load the system call number.

For each ABI, libseccomp sorts the system calls that have rules by the number of comparisons, and
then by call number. The filter loads the call number in the instructions for the first system call,
but libseccomp writes no instructions for a call that the ABI lacks. If the ABI lacks the first call
in the list, the filter never loads the call number, and no rule for the ABI applies
(_gen_bpf_syscalls in gen_bpf.c, in every version up to 2.6.1). x86_64 and x32 share one list if a
profile lists both ABIs. If a profile lists only one of x86_64 and x32, other instructions of the
filter load the call number.

If the ABI has a system call with a rule without conditions, such a call is first in the list. The
function `anchored` adds a rule without conditions for a call that every ABI has, if this rule does
not change the meaning of the profile. The function `findings` rejects an affected profile to which
no such rule can be added.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp import multiplex, syscalls
from agent.backends.seccomp.document import Document, Rule
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

# No kernel since Linux 3.1 has the system call nfsservctl, so the call fails with ENOSYS even
# without a filter. Every version of libseccomp knows the name of the system call on every ABI
# except x32.
ANCHOR: Final = "nfsservctl"
_ENOSYS: Final = 38
_X86_64: Final = "SCMP_ARCH_X86_64"
_X32: Final = "SCMP_ARCH_X32"


@dataclass(slots=True)
class _Calls:
    """The properties of an ABI's list of system calls that determine whether the filter loads the
    call number.
    """

    # A rule that names a system call which the ABI lacks, if there is such a rule.
    missing: Rule | None = None
    has_comparisons: bool = False  # Whether a system call of the ABI has a rule with conditions.
    is_anchored: bool = False  # Whether a system call of the ABI has a rule without conditions.


def anchored(document: Document, abis: Collection[str]) -> tuple[Document, tuple[Finding, ...]]:
    """Add a rule for the anchor call to the document, if this rule is necessary and harmless.
    Return a notice about the added rule.

    Args:
        document: the profile.
        abis: the ABIs of the node's kernel, with the native ABI first.
    """
    if not _unanchored(document, abis) or not _may_add(document):
        return document, ()
    rule = Rule(
        where=f"syscalls[{len(document.rules)}]",
        names=(ANCHOR,),
        action="SCMP_ACT_ERRNO",
        errno_ret=_ENOSYS,
    )
    message = (
        f"A rule for {ANCHOR}, a call that fails with ENOSYS on every kernel, was added. Without "
        "an unconditional rule, libseccomp would drop the conditional rules of an architecture."
    )
    notice = Finding(code=FindingCode.RULE_ADDED, location="syscalls", message=message)
    return replace(document, rules=(*document.rules, rule)), (notice,)


def findings(document: Document, abis: Collection[str]) -> Iterator[Finding]:
    """Return an error for each ABI on which libseccomp would drop rules of the document."""
    for abi, rule in _unanchored(document, abis).items():
        yield Finding(
            code=FindingCode.FAILS_OPEN,
            location=rule.where,
            message=f"On {abi} libseccomp would drop every conditional rule. This rule names a "
            f"call that {abi} lacks, and no rule without conditions names a call that {abi} has.",
            hint="Add a rule without conditions for a call that every architecture has, for "
            f"example getpid, or remove {abi} from the architectures.",
        )


def _may_add(document: Document) -> bool:
    """Return whether a rule for the anchor call would leave the meaning of the profile
    unchanged.
    """
    is_named = any(ANCHOR in rule.names for rule in document.rules)
    return document.default.is_permissive and not is_named


def _unanchored(document: Document, abis: Collection[str]) -> dict[str, Rule]:
    """Return each ABI whose filter does not load the call number, with the rule that causes the
    problem.
    """
    listed = {*document.architectures, *itertools.islice(abis, 1)}
    unanchored = {}
    for abi in abis:
        if abi not in listed or abi == _X32 or (abi == _X86_64 and _X32 not in listed):
            continue
        calls = _calls(document, abi)
        if abi == _X86_64:
            other = _calls(document, _X32)
            calls.missing = calls.missing or other.missing
            calls.has_comparisons |= other.has_comparisons
        if calls.missing and calls.has_comparisons and not calls.is_anchored:
            unanchored[_X32 if abi == _X86_64 else abi] = calls.missing
    return unanchored


def _calls(document: Document, abi: str) -> _Calls:
    calls = _Calls()
    names = syscalls.of(abi) | ({ANCHOR} if abi != _X32 else set())
    for rule in document.effective_rules:
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
