"""Every problem the agent can report, in one table.

Rule 1: a code, once released, never changes its meaning: logs, metrics, Events and the
runbook are keyed by it.
Rule 2: a problem says what, where, what follows and what to do next, and never quotes a
profile body or a secret.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning", "notice"]
MAX_FINDINGS: Final = 50  # problems of one key: a hostile one could make hundreds of thousands

CODES: Final[dict[str, Severity]] = {
    # sources
    "key_unsafe": "error",  # the key's name leads out of the tree or cannot be a file name
    "key_not_regular": "error",  # a device, FIFO, socket or a link out of the tree
    "key_too_large": "error",
    "limit_exceeded": "error",  # all profile sets together, or the ledger, exceed a total
    "source_missing": "error",
    "source_unreadable": "error",
    "source_over_limit": "error",  # more bytes, keys or ConfigMaps than are read
    "source_emptied": "error",
    # both kinds
    "not_utf8": "error",
    "name_conflict": "error",  # the same name in two keys with different content
    "foreign_name": "error",  # on the node, and not put there by this agent
    "kind_unsupported": "error",  # this node cannot have profiles of this kind
    "kind_unobservable": "error",  # it may have them, but the agent cannot look
    "write_failed": "error",
    "verify_failed": "error",  # written, but the node does not show it
    "remove_failed": "error",
    "in_use": "notice",  # removal held: a process is confined by it
    "use_unknown": "notice",  # removal held: cannot prove that nobody uses it
    # AppArmor
    "text_unsafe": "error",  # invisible characters in the text: a NUL ends a word for the parser
    "parser_rejected": "error",  # apparmor_parser's own message
    "parser_killed": "error",  # CPU, memory, output or wall-clock limit
    "parser_not_sandboxed": "notice",  # the parser could open any file that a text includes
    "no_profile": "error",  # compiles, declares nothing
    "name_denied": "error",
    "name_unsafe": "error",  # control characters, // without a parent, over 200 bytes
    "name_variable": "error",
    "namespace_refused": "error",
    "attachment_refused": "error",
    "include_refused": "error",
    "unconfined_refused": "error",  # flags=(unconfined) and default_allow
    "kernel_refused": "error",  # the kernel's errno for the load
    "kernel_jammed": "error",
    "policy_unreadable": "error",  # compiled policy of a layout this agent does not know
    "content_unverifiable": "warning",  # the kernel shows neither hashes nor loaded policy
    "complain_mode": "warning",
    "rule_not_enforced": "warning",  # the parser left out rules that this kernel does not mediate
    "unconfined_exec": "warning",  # ux, Ux and friends
    "unconfined_transition": "warning",  # change_profile -> unconfined
    # seccomp
    "not_json": "error",
    "duplicate_key": "error",
    "unknown_field": "error",
    "bad_value": "error",
    "fails_open": "error",  # some runtime would run the container without the filter meant
    "runtime_hang": "error",
    "runtime_crash": "error",
    "not_portable": "error",  # only CRI-O understands it: --seccomp-format docker
    "notify_refused": "error",
    "unknown_syscall": "error",  # under an allow default
    "filter_too_large": "error",
    "path_unsafe": "error",  # the path a pod would have to name is not allowed
    "name_rewritten": "notice",
    "expanded_for_arch": "notice",
    "rule_added": "notice",
    "syscall_ignored": "warning",  # unknown name under a deny default
    "start_impossible": "warning",  # no execve or exit_group in an allow list
    "not_enforcing": "warning",  # LOG default
    "abi_missing": "warning",
    "dangerous_syscalls": "warning",
    "newer_call_allowed": "warning",  # an older variant of an allowed call is denied
    "condition_surprising": "warning",
    # as a daemon
    "drift_fought": "error",  # repaired again and again: somebody else writes it too
    "confinement_lost": "error",  # processes run unconfined since their profile was removed
    # in a cluster
    "node_unknown": "error",  # no Node of this name, or it is not this machine
    "node_unreachable": "warning",  # the API server does not answer, or refuses the labels
    "label_foreign": "warning",  # somebody else's label below the agent's prefix
    "label_fought": "warning",  # somebody else takes the labels off, again and again
    "label_refused": "warning",  # the API server refuses some of the labels
    "label_collision": "error",  # two names would have the same label
    "label_limit": "warning",  # more labels than --label-limit
    "label_pending": "notice",  # removal held: its label is not gone, or not for long enough
    # state
    "ledger_damaged": "error",
    "ledger_newer": "error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    code: a key of CODES. where: the key, path or name it concerns, with the field or line where
    there is one (`syscalls[4].action`, `line 7`). what: one or two sentences. hint: what to do
    next, or empty. detail: names that the log and the reports of commands contain, but not the
    status page and the Events, which more people can read: pods of other namespaces; or empty.
    """

    code: str
    location: str
    message: str
    hint: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"no such problem code: {self.code}")

    @property
    def severity(self) -> Severity:
        """Return error, warning or notice: the code decides."""
        return CODES[self.code]


def limited(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return at most MOST of the problems of one key, and one more that says that there are more.

    An error is among them if there is one. Nothing more is asked for once that is sure.
    """
    kept: list[Finding] = []
    refused = more = False
    for one in found:
        if len(kept) < MAX_FINDINGS:
            kept.append(one)
            refused = refused or one.severity == "error"
            continue
        more = True
        if not refused and one.severity == "error":
            kept[-1], refused = one, True
        if refused:
            break
    return (*kept, _more(kept[-1])) if more else tuple(kept)


def _more(last: Finding) -> Finding:
    return Finding(
        code=last.code, location=last.location, message="There is more, which is not told."
    )
