"""Findings: the coded messages about keys, profiles, sources and the node.

The table CODES contains every code with its severity. Logs, metrics, Events and the runbook refer
to codes, so a released code never changes its meaning. A message states what happened, where, what
follows and what to do next. A message never contains a secret or the text of a profile.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


MAX_FINDINGS: Final = 50  # A malicious key could cause hundreds of thousands of findings.

CODES: Final[dict[str, Severity]] = {
    # sources
    "key_unsafe": Severity.ERROR,  # The key is not a valid path, or leaves the directory.
    # The key is a device, FIFO or socket, or a link out of the directory.
    "key_not_regular": Severity.ERROR,
    "key_too_large": Severity.ERROR,
    # The keys of all profile sets, or the ledger, exceed a limit.
    "limit_exceeded": Severity.ERROR,
    "source_missing": Severity.ERROR,
    "source_unreadable": Severity.ERROR,
    # The source has more bytes, keys or ConfigMaps than allowed.
    "source_over_limit": Severity.ERROR,
    "source_emptied": Severity.ERROR,
    # both kinds
    "not_utf8": Severity.ERROR,
    "name_conflict": Severity.ERROR,  # Two keys provide the same name with different content.
    "foreign_name": Severity.ERROR,  # Another program installed a profile with this name.
    "kind_unsupported": Severity.ERROR,  # The node does not support profiles of this kind.
    "kind_unobservable": Severity.ERROR,  # The agent cannot observe profiles of this kind.
    "write_failed": Severity.ERROR,
    "verify_failed": Severity.ERROR,  # The write succeeded, but the node does not have the content.
    "remove_failed": Severity.ERROR,
    "in_use": Severity.NOTICE,  # The profile stays because a process runs under the profile.
    "use_unknown": Severity.NOTICE,  # The profile stays because a process may use the profile.
    # compiled policy
    # The text has invisible characters such as NUL, which ends a word for the parser.
    "text_unsafe": Severity.ERROR,
    "parser_rejected": Severity.ERROR,  # The finding contains the parser's own message.
    # The parser exceeded a CPU, memory, output or wall-clock limit.
    "parser_killed": Severity.ERROR,
    "parser_not_sandboxed": Severity.NOTICE,  # The parser can open any file that a text includes.
    "no_profile": Severity.ERROR,  # The text compiles, but it declares no profile.
    "name_denied": Severity.ERROR,
    # The name has control characters, has // without a parent, or is longer than 200 bytes.
    "name_unsafe": Severity.ERROR,
    "name_variable": Severity.ERROR,
    "namespace_refused": Severity.ERROR,
    "attachment_refused": Severity.ERROR,
    "include_refused": Severity.ERROR,
    # The profile has flags=(unconfined) or flags=(default_allow).
    "unconfined_refused": Severity.ERROR,
    "kernel_refused": Severity.ERROR,  # The finding contains the kernel's errno for the load.
    "kernel_jammed": Severity.ERROR,
    "policy_unreadable": Severity.ERROR,  # The layout of the compiled policy is unknown.
    # The kernel shows neither hashes of policy nor the policy itself.
    "content_unverifiable": Severity.WARNING,
    "complain_mode": Severity.WARNING,
    "name_suspicious": Severity.WARNING,  # The name looks like a list of flags.
    "rule_not_enforced": Severity.WARNING,  # The kernel does not mediate some rules.
    "unconfined_exec": Severity.WARNING,  # A rule has an unconfined mode such as ux or Ux.
    "unconfined_transition": Severity.WARNING,  # A rule permits change_profile -> unconfined.
    # system call filters
    "not_json": Severity.ERROR,
    "not_a_profile": Severity.ERROR,  # The file has another format, which may contain a profile.
    "duplicate_key": Severity.ERROR,
    "unknown_field": Severity.ERROR,
    "bad_value": Severity.ERROR,
    "fails_open": Severity.ERROR,  # A runtime would start the container without this filter.
    "runtime_hang": Severity.ERROR,
    "runtime_crash": Severity.ERROR,
    "not_portable": Severity.ERROR,  # Only CRI-O understands the profile.
    "notify_refused": Severity.ERROR,
    # A system call is unknown, and the default action allows calls.
    "unknown_syscall": Severity.ERROR,
    "filter_too_large": Severity.ERROR,
    "path_unsafe": Severity.ERROR,  # A pod cannot reference a file with this path.
    "name_rewritten": Severity.NOTICE,
    "expanded_for_arch": Severity.NOTICE,
    "expanded_for_kernel": Severity.NOTICE,
    "expanded_for_caps": Severity.NOTICE,
    "errno_rewritten": Severity.NOTICE,
    "comments_removed": Severity.NOTICE,
    "rule_added": Severity.NOTICE,
    # A system call is unknown, and the default action denies calls.
    "syscall_ignored": Severity.WARNING,
    "start_impossible": Severity.WARNING,  # No runtime can start a container with this profile.
    "start_limited": Severity.WARNING,  # One runtime cannot start a container with this profile.
    "clone3_denied": Severity.WARNING,  # clone3 fails with an error other than ENOSYS.
    "nothing_denied": Severity.WARNING,  # The architecture has none of the denied calls.
    "not_enforcing": Severity.WARNING,  # The default action only logs calls.
    "abi_missing": Severity.WARNING,
    "dangerous_syscalls": Severity.WARNING,
    # The profile denies a call but allows its newer variant.
    "newer_call_allowed": Severity.WARNING,
    "condition_surprising": Severity.WARNING,
    # as a daemon
    "drift_fought": Severity.ERROR,  # Another program keeps changing a repaired profile.
    "confinement_lost": Severity.ERROR,  # Processes whose profile was removed run unconfined.
    # in a cluster
    "node_unknown": Severity.ERROR,  # The Node is missing, or belongs to another machine.
    "node_unreachable": Severity.WARNING,  # The API server does not respond, or rejects requests.
    "label_foreign": Severity.WARNING,  # Another client set a label with the agent's prefix.
    "label_fought": Severity.WARNING,  # Another client keeps removing labels.
    "label_refused": Severity.WARNING,  # The API server rejects some labels.
    "label_collision": Severity.ERROR,  # Two names have the same label key.
    "label_limit": Severity.WARNING,  # The Node would have more labels than --label-limit.
    # The profile stays until its label has been removed and the grace time has passed.
    "label_pending": Severity.NOTICE,
    # state
    "ledger_damaged": Severity.ERROR,
    "ledger_newer": Severity.ERROR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A coded message: an error, a warning or a notice."""

    code: str
    """A key of CODES."""

    location: str
    """The key, path or name, with the field or line number, for example `syscalls[4].action`."""

    message: str
    """The event and its consequence, in one or two sentences."""

    hint: str = ""
    """The next step for the reader of the message."""

    detail: str = ""
    """Names for the log and the reports of commands, such as pods of other namespaces.

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
    """Return at most MAX_FINDINGS findings about one key; if more exist, add a note about them.

    If any of the findings is an error, the result contains at least one error. The function does
    not read all findings if there are too many.
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
