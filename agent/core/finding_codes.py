"""Declares the codes of findings.

Logs, metrics, Events and the runbook use these codes, so a released code never changes its meaning.
agent.core.findings defines findings, and agent.core.diagnostics builds many of them.
"""

from enum import StrEnum
from typing import Final, Self


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


class FindingCode(StrEnum):
    """The identifier of one kind of finding. docs/runbook.md describes every code."""

    severity: Severity

    def __new__(cls, value: str, severity: Severity) -> Self:
        """Create a member from its public value and its severity."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.severity = severity
        return member

    # sources
    KEY_UNSAFE = "key_unsafe", Severity.ERROR
    """The key is not a valid path, or its path leads outside the directory."""
    KEY_NOT_REGULAR = "key_not_regular", Severity.ERROR
    """The key is a device, FIFO or socket, or a link that points outside the directory."""
    KEY_TOO_LARGE = "key_too_large", Severity.ERROR
    LIMIT_EXCEEDED = "limit_exceeded", Severity.ERROR
    """The keys of all profile sets, or the ledger, exceed a limit."""
    SOURCE_MISSING = "source_missing", Severity.ERROR
    SOURCE_UNREADABLE = "source_unreadable", Severity.ERROR
    SOURCE_OVER_LIMIT = "source_over_limit", Severity.ERROR
    """The source has more bytes, keys or ConfigMaps than allowed."""
    SOURCE_EMPTIED = "source_emptied", Severity.ERROR
    INPUT_SKIPPED = "input_skipped", Severity.NOTICE
    """Some files, keys or resources of a source are not read as profiles."""
    # both kinds
    CHECK_FAILED = "check_failed", Severity.ERROR
    """The check of a key ended with an unexpected exception."""
    NOT_UTF8 = "not_utf8", Severity.ERROR
    NAME_CONFLICT = "name_conflict", Severity.ERROR
    """Two keys provide the same name with different content."""
    FOREIGN_NAME = "foreign_name", Severity.ERROR
    """Another program installed a profile with this name."""
    KIND_UNSUPPORTED = "kind_unsupported", Severity.ERROR
    """The node does not support profiles of this kind."""
    KIND_UNOBSERVABLE = "kind_unobservable", Severity.ERROR
    """The agent cannot observe profiles of this kind."""
    WRITE_FAILED = "write_failed", Severity.ERROR
    VERIFY_FAILED = "verify_failed", Severity.ERROR
    """The write of a profile succeeded, but the node does not have the written content."""
    REMOVE_FAILED = "remove_failed", Severity.ERROR
    IN_USE = "in_use", Severity.NOTICE
    """The profile is not removed, because a process runs under it."""
    USE_UNKNOWN = "use_unknown", Severity.NOTICE
    """The profile is not removed, because a process may use it."""
    # compiled policy
    TEXT_UNSAFE = "text_unsafe", Severity.ERROR
    """The text contains invisible characters such as NUL, which the parser treats as the end of a
    word.
    """
    PARSER_REJECTED = "parser_rejected", Severity.ERROR
    """The parser reported an error; the finding contains its message."""
    PARSER_KILLED = "parser_killed", Severity.ERROR
    """The parser exceeded a CPU, memory, output or wall-clock limit."""
    PARSER_NOT_SANDBOXED = "parser_not_sandboxed", Severity.NOTICE
    """The parser has no sandbox, so it can open any file that a profile text includes."""
    NO_PROFILE = "no_profile", Severity.ERROR
    """The profile text compiles, but declares no profile."""
    NAME_DENIED = "name_denied", Severity.ERROR
    NAME_UNSAFE = "name_unsafe", Severity.ERROR
    """The profile name contains control characters, contains // without a parent, or is longer than
    200 bytes."""
    NAME_VARIABLE = "name_variable", Severity.ERROR
    NAMESPACE_REFUSED = "namespace_refused", Severity.ERROR
    ATTACHMENT_REFUSED = "attachment_refused", Severity.ERROR
    INCLUDE_REFUSED = "include_refused", Severity.ERROR
    UNCONFINED_REFUSED = "unconfined_refused", Severity.ERROR
    """The profile has flags=(unconfined) or flags=(default_allow)."""
    KERNEL_REFUSED = "kernel_refused", Severity.ERROR
    """The kernel rejected the policy; the finding contains the errno."""
    KERNEL_JAMMED = "kernel_jammed", Severity.ERROR
    POLICY_UNREADABLE = "policy_unreadable", Severity.ERROR
    """The layout of the compiled policy is unknown."""
    CONTENT_UNVERIFIABLE = "content_unverifiable", Severity.WARNING
    """The kernel shows neither hashes of policy nor the policy itself."""
    COMPLAIN_MODE = "complain_mode", Severity.WARNING
    NAME_SUSPICIOUS = "name_suspicious", Severity.WARNING
    """The name of the profile looks like a list of flags."""
    RULE_NOT_ENFORCED = "rule_not_enforced", Severity.WARNING
    """The kernel does not mediate some rules."""
    UNCONFINED_EXEC = "unconfined_exec", Severity.WARNING
    """A rule has an unconfined mode such as ux or Ux."""
    UNCONFINED_TRANSITION = "unconfined_transition", Severity.WARNING
    """A rule permits change_profile -> unconfined."""
    # system call filters
    NOT_JSON = "not_json", Severity.ERROR
    NOT_A_PROFILE = "not_a_profile", Severity.ERROR
    """The file has a known format other than a plain profile, and may contain a profile."""
    DUPLICATE_KEY = "duplicate_key", Severity.ERROR
    UNKNOWN_FIELD = "unknown_field", Severity.ERROR
    BAD_VALUE = "bad_value", Severity.ERROR
    FAILS_OPEN = "fails_open", Severity.ERROR
    """A runtime would start the container without this filter."""
    RUNTIME_HANG = "runtime_hang", Severity.ERROR
    RUNTIME_CRASH = "runtime_crash", Severity.ERROR
    NOT_PORTABLE = "not_portable", Severity.ERROR
    """Only CRI-O understands the profile."""
    NOTIFY_REFUSED = "notify_refused", Severity.ERROR
    UNKNOWN_SYSCALL = "unknown_syscall", Severity.ERROR
    """A system call is unknown, and the default action allows calls."""
    FILTER_TOO_LARGE = "filter_too_large", Severity.ERROR
    PATH_UNSAFE = "path_unsafe", Severity.ERROR
    """A pod cannot reference a file with this path."""
    NAME_REWRITTEN = "name_rewritten", Severity.NOTICE
    EXPANDED_FOR_ARCH = "expanded_for_arch", Severity.NOTICE
    EXPANDED_FOR_KERNEL = "expanded_for_kernel", Severity.NOTICE
    EXPANDED_FOR_CAPS = "expanded_for_caps", Severity.NOTICE
    ERRNO_REWRITTEN = "errno_rewritten", Severity.NOTICE
    COMMENTS_REMOVED = "comments_removed", Severity.NOTICE
    RULE_ADDED = "rule_added", Severity.NOTICE
    SYSCALL_IGNORED = "syscall_ignored", Severity.WARNING
    """A system call is unknown, and the default action denies calls."""
    START_IMPOSSIBLE = "start_impossible", Severity.WARNING
    """No runtime can start a container under this profile."""
    STOP_IMPOSSIBLE = "stop_impossible", Severity.WARNING
    """No runtime can stop a container under this profile."""
    START_LIMITED = "start_limited", Severity.WARNING
    """At least one runtime cannot start a container under this profile."""
    CLONE3_DENIED = "clone3_denied", Severity.WARNING
    """clone3 fails with an error other than ENOSYS."""
    NOTHING_DENIED = "nothing_denied", Severity.WARNING
    """The architecture has none of the denied calls."""
    NOT_ENFORCING = "not_enforcing", Severity.WARNING
    """The default action only logs calls."""
    ABI_MISSING = "abi_missing", Severity.WARNING
    DANGEROUS_SYSCALLS = "dangerous_syscalls", Severity.WARNING
    NEWER_CALL_ALLOWED = "newer_call_allowed", Severity.WARNING
    """The profile denies a call but allows its newer variant."""
    CONDITION_SURPRISING = "condition_surprising", Severity.WARNING
    # security modules without profiles
    MODULE_UNOBSERVABLE = "module_unobservable", Severity.NOTICE
    """The agent cannot read the mode of a security module."""
    # as a daemon
    DRIFT_FOUGHT = "drift_fought", Severity.ERROR
    """Another program keeps changing a repaired profile."""
    CONFINEMENT_LOST = "confinement_lost", Severity.ERROR
    """Processes whose profile was removed run unconfined."""
    # in a cluster
    NODE_UNKNOWN = "node_unknown", Severity.ERROR
    """The Node is missing, or belongs to another machine."""
    NODE_UNREACHABLE = "node_unreachable", Severity.WARNING
    """The API server does not respond, or rejects requests."""
    LABEL_FOREIGN = "label_foreign", Severity.WARNING
    """Another client set a label with the agent's prefix."""
    LABEL_FOUGHT = "label_fought", Severity.WARNING
    """Another client keeps removing labels."""
    LABEL_REFUSED = "label_refused", Severity.WARNING
    """The API server rejects some labels."""
    LABEL_COLLISION = "label_collision", Severity.ERROR
    """Two names have the same label key."""
    LABEL_LIMIT = "label_limit", Severity.WARNING
    """The Node would have more labels than --label-limit."""
    LABEL_PENDING = "label_pending", Severity.NOTICE
    """The profile is not removed before its label has been removed and the grace period has
    passed."""
    # state
    LEDGER_DAMAGED = "ledger_damaged", Severity.ERROR
    LEDGER_NEWER = "ledger_newer", Severity.ERROR


SOURCE_CODES: Final = frozenset(
    {
        FindingCode.SOURCE_MISSING,
        FindingCode.SOURCE_UNREADABLE,
        FindingCode.SOURCE_OVER_LIMIT,
        FindingCode.SOURCE_EMPTIED,
    }
)
"""The codes of findings that only repeat the state of a profile set."""
