"""Creates the canonical form of a profile, which every runtime reads in the same way.

The agent writes profiles only in this form. The canonical forms of equal documents have equal
bytes. The canonical form contains only fields from runtime-spec's LinuxSeccomp. With
`--seccomp-format docker`, it also contains includes.caps and excludes.caps, which CRI-O compares
with the bounding set. The rules stay in their original order. The canonical form of a profile that
is already canonical has the same bytes as the profile.
"""

import json
from dataclasses import dataclass, replace
from typing import Final

from agent.backends.seccomp import anchor, multiplex, resolve
from agent.backends.seccomp.document import Document, Only, Rule
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

MACHINES: Final = resolve.MACHINES
abis = resolve.abis

# The agent adds a rule for this system call to every profile that has no rules. The number of this
# system call is 449 on every architecture. The number must be high, because runc returns ENOSYS for
# all system calls with higher numbers than the calls in the profile.
FILLER: Final = "futex_waitv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The canonical form of a profile for a node, with notices about the changes."""

    document: Document
    notices: tuple[Finding, ...]
    depends_on_kernel: bool


def expand(document: Document, node: resolve.Node) -> Written:
    """Return the canonical form of a document for a node."""
    resolved = resolve.resolve(document, node)
    filled, filler = _filled(resolved.document)
    abis = resolve.abis(node.machine)
    closed, denied = multiplex.closed(filled, abis[0])
    anchored, added = anchor.anchored(closed, abis)
    return Written(
        document=anchored,
        notices=(*resolved.notices, *filler, *denied, *added),
        depends_on_kernel=resolved.depends_on_kernel,
    )


def _filled(document: Document) -> tuple[Document, tuple[Finding, ...]]:
    """Add a rule to a document without rules, because cri-dockerd ignores a document without
    rules.
    """
    if document.rules:
        return document, ()
    rule = Rule(
        where="syscalls[0]",
        names=(FILLER,),
        action=document.default_action,
        errno_ret=document.default_errno_ret,
    )
    message = (
        "The profile has no rules, and cri-dockerd ignores such a profile. A rule for "
        f"{FILLER} was added. Its action is the default action."
    )
    notice = Finding(code=FindingCode.RULE_ADDED, location="syscalls", message=message)
    return replace(document, rules=(rule,)), (notice,)


def encode(document: Document) -> bytes:
    """Return a document as JSON; its conditions on the node must have been resolved."""
    tree: dict[str, object] = {"defaultAction": document.default_action}
    if document.default_errno_ret is not None:
        tree["defaultErrnoRet"] = document.default_errno_ret
    if document.architectures:
        tree["architectures"] = list(document.architectures)
    if document.flags:
        tree["flags"] = list(document.flags)
    tree["syscalls"] = [_rule(rule) for rule in document.rules]
    return json.dumps(tree, indent=1).encode() + b"\n"


def _rule(rule: Rule) -> dict[str, object]:
    tree: dict[str, object] = {"names": list(rule.names), "action": rule.action}
    if rule.errno_ret is not None:
        tree["errnoRet"] = rule.errno_ret
    if rule.args:
        tree["args"] = [
            {"index": arg.index, "value": arg.value, "op": arg.op}
            | ({"valueTwo": arg.value_two} if arg.value_two else {})
            for arg in rule.args
        ]
    sides: tuple[tuple[str, Only], ...] = (("includes", rule.includes), ("excludes", rule.excludes))
    for key, only in sides:
        if only.caps:
            tree[key] = {"caps": list(only.caps)}
    return tree
