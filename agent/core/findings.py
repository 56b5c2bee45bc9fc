"""Findings: the coded messages about keys, profiles, sources and the node.

The table CODES contains every code with its severity. Logs, metrics, Events and the runbook refer
to codes, so a released code never changes its meaning. A message states what happened, where, what
follows and what to do next. It never quotes the text of a profile or a secret.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


MAX_FINDINGS: Final = 50  # A malicious key could cause hundreds of thousands of findings.

CODES: Final[dict[str, Severity]] = {
    # sources
    "key_unsafe": Severity.ERROR,  # the path leaves the directory, or is not a valid file name
    "key_not_regular": Severity.ERROR,  # a device, FIFO, socket, or a link out of the directory
    "key_too_large": Severity.ERROR,
    "limit_exceeded": Severity.ERROR,  # the keys of all profile sets, or the ledger, exceed a limit
    "source_missing": Severity.ERROR,
    "source_unreadable": Severity.ERROR,
    "source_over_limit": Severity.ERROR,  # more bytes, keys or ConfigMaps than the agent reads
    "source_emptied": Severity.ERROR,
    # both kinds
    "not_utf8": Severity.ERROR,
    "name_conflict": Severity.ERROR,  # the same name in two keys with different content
    "foreign_name": Severity.ERROR,  # on the node, and not installed by this agent
    "kind_unsupported": Severity.ERROR,  # this node cannot have profiles of this kind
    "kind_unobservable": Severity.ERROR,  # the agent cannot observe profiles of this kind
    "write_failed": Severity.ERROR,
    "verify_failed": Severity.ERROR,  # written, but the node does not have the content
    "remove_failed": Severity.ERROR,
    "in_use": Severity.NOTICE,  # not removed: a process runs under the profile
    "use_unknown": Severity.NOTICE,  # not removed: no proof that the profile is unused
    # compiled policy
    "text_unsafe": Severity.ERROR,  # invisible characters: a NUL ends a word for the parser
    "parser_rejected": Severity.ERROR,  # the parser's own message
    "parser_killed": Severity.ERROR,  # CPU, memory, output or wall-clock limit
    "parser_not_sandboxed": Severity.NOTICE,  # the parser could open any file that a text includes
    "no_profile": Severity.ERROR,  # the text compiles, but declares no profile
    "name_denied": Severity.ERROR,
    "name_unsafe": Severity.ERROR,  # control characters, // without a parent, over 200 bytes
    "name_variable": Severity.ERROR,
    "namespace_refused": Severity.ERROR,
    "attachment_refused": Severity.ERROR,
    "include_refused": Severity.ERROR,
    "unconfined_refused": Severity.ERROR,  # flags=(unconfined) and default_allow
    "kernel_refused": Severity.ERROR,  # the kernel's errno for the load
    "kernel_jammed": Severity.ERROR,
    "policy_unreadable": Severity.ERROR,  # the layout of the compiled policy is not known
    "content_unverifiable": Severity.WARNING,  # the kernel shows neither hashes nor loaded policy
    "complain_mode": Severity.WARNING,
    "name_suspicious": Severity.WARNING,  # the name has the form of a list of flags
    "rule_not_enforced": Severity.WARNING,  # the kernel does not mediate some rules
    "unconfined_exec": Severity.WARNING,  # ux, Ux and similar modes
    "unconfined_transition": Severity.WARNING,  # change_profile -> unconfined
    # system call filters
    "not_json": Severity.ERROR,
    "not_a_profile": Severity.ERROR,  # another format, which may contain a profile
    "duplicate_key": Severity.ERROR,
    "unknown_field": Severity.ERROR,
    "bad_value": Severity.ERROR,
    "fails_open": Severity.ERROR,  # a runtime would start the container without this filter
    "runtime_hang": Severity.ERROR,
    "runtime_crash": Severity.ERROR,
    "not_portable": Severity.ERROR,  # only CRI-O understands the profile
    "notify_refused": Severity.ERROR,
    "unknown_syscall": Severity.ERROR,  # unknown system call; the default action allows
    "filter_too_large": Severity.ERROR,
    "path_unsafe": Severity.ERROR,  # a pod cannot reference a file with this path
    "name_rewritten": Severity.NOTICE,
    "expanded_for_arch": Severity.NOTICE,
    "expanded_for_kernel": Severity.NOTICE,
    "expanded_for_caps": Severity.NOTICE,
    "errno_rewritten": Severity.NOTICE,
    "comments_removed": Severity.NOTICE,
    "rule_added": Severity.NOTICE,
    "syscall_ignored": Severity.WARNING,  # unknown system call; the default action denies
    "start_impossible": Severity.WARNING,  # no runtime can start a container
    "start_limited": Severity.WARNING,  # one runtime cannot start a container
    "clone3_denied": Severity.WARNING,  # clone3 fails with an error other than ENOSYS
    "nothing_denied": Severity.WARNING,  # the architecture lacks all denied calls
    "not_enforcing": Severity.WARNING,  # the default action only logs
    "abi_missing": Severity.WARNING,
    "dangerous_syscalls": Severity.WARNING,
    "newer_call_allowed": Severity.WARNING,  # an older variant of an allowed call is denied
    "condition_surprising": Severity.WARNING,
    # as a daemon
    "drift_fought": Severity.ERROR,  # another program keeps changing a repaired profile
    "confinement_lost": Severity.ERROR,  # processes whose profile was removed run unconfined
    # in a cluster
    "node_unknown": Severity.ERROR,  # the Node is missing, or is another machine
    "node_unreachable": Severity.WARNING,  # the API server sends no response, or rejects requests
    "label_foreign": Severity.WARNING,  # another client set a label with the agent's prefix
    "label_fought": Severity.WARNING,  # another client keeps removing labels
    "label_refused": Severity.WARNING,  # the API server rejects some labels
    "label_collision": Severity.ERROR,  # two names have the same label key
    "label_limit": Severity.WARNING,  # more labels than --label-limit
    "label_pending": Severity.NOTICE,  # not removed: a label, or the grace time, remains
    # state
    "ledger_damaged": Severity.ERROR,
    "ledger_newer": Severity.ERROR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One coded message: an error, a warning or a notice."""

    code: str
    """A key of CODES."""

    location: str
    """The key, path or name, with the field or line number, for example `syscalls[4].action`."""

    message: str
    """The event and its consequence, in one or two sentences."""

    hint: str = ""
    """The next step for the reader of the message."""

    detail: str = ""
    """Names for the log and for reports of commands only, such as pods of other namespaces.

    More people can read the status page and the Events, so these outputs do not contain the detail.
    """

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown finding code: {self.code}")

    @property
    def severity(self) -> Severity:
        """Return the severity of the code."""
        return CODES[self.code]


def limit_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return at most MAX_FINDINGS findings about one key, and a note if there are more.

    If any finding is an error, at least one error is returned. The iteration stops early.
    """
    kept: list[Finding] = []
    has_error = has_more = False
    for finding in findings:
        if len(kept) < MAX_FINDINGS:
            kept.append(finding)
            has_error = has_error or finding.severity == Severity.ERROR
            continue
        has_more = True
        if not has_error and finding.severity == Severity.ERROR:
            kept[-1], has_error = finding, True
        if has_error:
            break
    return (*kept, _more_findings(kept[-1])) if has_more else tuple(kept)


def _more_findings(last: Finding) -> Finding:
    return Finding(
        code=last.code,
        location=last.location,
        message=f"More problems were found; only the first {MAX_FINDINGS} are shown.",
    )
