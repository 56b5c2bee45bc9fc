"""Warns about accepted profiles that allow risky system calls or prevent programs from running.

`meaning` determines which system calls a profile allows, and `start` lists the calls that a runtime
needs to start a container.
"""

from collections.abc import Iterator
from typing import Final

from agent.backends.seccomp import baseline, meaning, releases, resolve, start, syscalls
from agent.backends.seccomp.document import Document
from agent.backends.seccomp.fields import Options
from agent.backends.seccomp.meaning import Meaning
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

_ENOSYS: Final = 38
_CLONE3: Final = 435  # The number of the system call clone3 on every architecture.


def findings(document: Document, options: Options) -> Iterator[Finding]:
    """Return the warnings about a document in its canonical form."""
    profile = meaning.of(document, resolve.abis(options.machine))
    if document.default_action in ("SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        yield Finding(
            code=FindingCode.NOT_ENFORCING,
            location="defaultAction",
            message=f"The default action {document.default_action} denies no call.",
            hint="Use SCMP_ACT_ERRNO to deny the calls that no rule allows.",
        )
    if document.default.is_permissive:
        yield from _newer_variants(document, options.floor)
        yield from _missing_calls(document, profile, options.machine)
    yield from start.findings(profile, options.floor)
    yield from _clone3(document, profile)
    yield from _beyond_default(document, profile, options.machine)
    yield from _clone_of_s390x(document, options.machine)
    small = resolve.MACHINES[options.machine][2]
    if small and small not in document.architectures:
        yield Finding(
            code=FindingCode.ABI_MISSING,
            location="architectures",
            message=f"{small} is not listed, so the kernel kills 32-bit programs, whatever "
            "the default action is.",
            hint=f"Add {small} to architectures if containers run 32-bit programs.",
        )


def _clone3(document: Document, profile: Meaning) -> Iterator[Finding]:
    """Warn if clone3 fails with an error other than ENOSYS.

    Libraries fall back from clone3 to clone only if clone3 fails with ENOSYS. runc returns ENOSYS
    for system calls that are newer than the newest call in the profile; crun does not.
    """
    abi = profile.abis[0]
    if profile.call(abi, "clone").is_always_denied:
        return
    answers = profile.call(abi, "clone3").every_answer()
    if not any(answer.action != "SCMP_ACT_ERRNO" or answer.errno != _ENOSYS for answer in answers):
        return
    if any(answer.is_permissive for answer in answers):
        return
    newest = max(
        (syscalls.number(abi, name) for rule in document.rules for name in rule.names), default=0
    )
    denies_by_default = not document.default.is_permissive
    where = "With crun, " if denies_by_default and newest < _CLONE3 else ""
    yield Finding(
        code=FindingCode.CLONE3_DENIED,
        location="syscalls",
        message=f"{where}clone3 does not fail with ENOSYS. glibc 2.34 and newer then cannot "
        "start threads, because they use clone only after ENOSYS.",
        hint="Add a rule for clone3 with SCMP_ACT_ERRNO and errnoRet 38.",
    )


def _missing_calls(document: Document, profile: Meaning, machine: str) -> Iterator[Finding]:
    """Warn if the architecture has none of the system calls that a profile denies."""
    names = sorted(
        {
            name
            for rule in document.effective_rules
            if not rule.answer.is_permissive and rule.names != ("nfsservctl",)
            for name in rule.names
        }
    )
    known = [name for name in names if syscalls.known(name)]
    if not known or set(known) & profile.calls(profile.abis[0]):
        return
    yield Finding(
        code=FindingCode.NOTHING_DENIED,
        location="syscalls",
        message=f"{machine} has none of the denied calls ({syscalls.listed(known)}), so the "
        "profile denies nothing to native programs.",
        hint="Deny the calls that this architecture has instead, for example fchmodat for chmod, "
        "mkdirat for mkdir, unlinkat for unlink and openat for open.",
    )


def _newer_variants(document: Document, floor: releases.RuntimeFloor) -> Iterator[Finding]:
    """Warn about each allowed system call whose older variant is always denied."""
    named = {name for rule in document.rules for name in rule.names}
    denied = {
        name
        for rule in document.effective_rules
        if not rule.answer.is_permissive and not rule.args and not rule.depends_on_capabilities
        for name in rule.names
    }
    for newer, (release, older) in syscalls.NEWER_VARIANTS.items():
        if newer in named or not older & denied:
            continue
        message = (
            f"{' and '.join(sorted(older & denied))} is denied, but {newer} (Linux {release}) has "
            "the same effect and stays allowed."
        )
        hint = f"Add {newer} to the rule."
        if not syscalls.known(newer, floor):
            hint = (
                f"{releases.since(newer)} If no node has an older libseccomp, add {newer} to the "
                f"rule and pass {releases.floor_hint(newer)}. Otherwise, the call is denied on all "
                "nodes only if the default action denies it."
            )
        yield Finding(
            code=FindingCode.NEWER_CALL_ALLOWED, location="syscalls", message=message, hint=hint
        )


def _beyond_default(document: Document, profile: Meaning, machine: str) -> Iterator[Finding]:
    """Warn about system calls that the profile allows but containerd's default profile denies."""
    names = list(baseline.beyond(profile, "containerd", machine))
    if not names:
        return
    calls = "1 call" if len(names) == 1 else f"{len(names)} calls"
    yield Finding(
        code=FindingCode.DANGEROUS_SYSCALLS,
        location="defaultAction" if document.default.is_permissive else "syscalls",
        message=f"The profile allows {calls} that the default profile of containerd denies: "
        f"{syscalls.listed(names)}.",
        hint="Deny the calls that the containers do not need.",
    )


def _clone_of_s390x(document: Document, machine: str) -> Iterator[Finding]:
    """Warn if a condition compares the first argument of clone on s390x.

    On s390x the flags of clone are its second argument.
    """
    if machine != "s390x":
        return
    for rule in document.rules:
        if "clone" in rule.names and any(arg.index == 0 for arg in rule.args):
            yield Finding(
                code=FindingCode.CONDITION_SURPRISING,
                location=f"{rule.where}.args",
                message="On s390x the flags of clone are its second argument. This condition "
                "compares the first argument, which is the address of the stack.",
                hint="Add a separate rule for s390x with includes.arches and index 1.",
            )
