"""Enumerates the states, actions and reasons in decisions, reports and logs.

The value of each member is its text in JSON reports, metrics, logs and tables. The program compares
only members, and never their text. Findings have their own codes (`agent.core.finding_codes`).
"""

from enum import StrEnum


class ProfileState(StrEnum):
    """The state of one profile after a pass."""

    INSTALLED = "installed"
    """The desired version is on the node, verified in this pass."""

    OUTDATED = "outdated"
    """The last good version is on the node, because the desired version is not installed."""

    HELD = "held"
    """The profile is no longer desired but stays on the node. The reason states why the profile
    stays."""

    PENDING = "pending"
    """The check of the key is still running, and no last good version is on the node."""

    REJECTED = "rejected"
    """The desired version was rejected, and no last good version is on the node."""

    FOREIGN = "foreign"
    """Another program installed a profile with this name."""

    FAILED = "failed"
    """The action failed, or its result could not be verified."""

    UNSUPPORTED = "unsupported"
    """This node does not support profiles of this kind."""

    UNOBSERVABLE = "unobservable"
    """The node may have the profile, but the agent cannot observe it."""

    REMOVED = "removed"
    RELEASED = "released"
    """The profile stays on the node, but the agent no longer tracks it."""

    PLANNED = "planned"
    """The pass would take an action (only with `--dry-run`)."""

    ACCEPTED = "accepted"
    """The command `check`, which does not observe the node, found no errors in the profile."""


ON_NODE = frozenset({ProfileState.INSTALLED, ProfileState.OUTDATED, ProfileState.HELD})
"""The states in which a profile was verified on the node."""


class ActionName(StrEnum):
    """The action that a pass took for one profile."""

    INSTALL = "install"
    """Write a file or load a policy that this agent had not installed before."""

    REPLACE = "replace"
    """Replace the installed version, or a foreign profile that is taken over."""

    RESTORE = "restore"
    """Reinstall a version that went missing or was changed on the node."""

    ADOPT = "adopt"
    KEEP = "keep"
    HOLD = "hold"
    REMOVE = "remove"
    RELEASE = "release"
    REJECT = "reject"


INSTALLS = frozenset({ActionName.INSTALL, ActionName.REPLACE, ActionName.RESTORE})
"""The actions that write a file or load a policy."""


class Reason(StrEnum):
    """The reason for an action in a plan."""

    NONE = ""
    """The row comes from a command that only reads, so there was no action."""

    # Install
    NEW = "new"
    CHANGED = "changed"
    """The source provides another version."""

    RECOMPILED = "recompiled"
    """The source is unchanged, but the kernel, the parser or an include file changed."""

    UNFINISHED = "unfinished"
    """A previous installation ended before the ledger recorded it."""

    TAKEN_OVER = "taken over"
    """`--take-over` permits the replacement of a foreign profile."""

    WENT_MISSING = "went missing"
    """This agent installed the profile, but the node no longer has it."""

    DRIFTED = "drifted"
    """The content or mode on the node differs from the installed version."""

    # Adopt and keep
    SAME_CONTENT = "same content"
    """Another program or another key provides the same content."""

    UNCHANGED = "unchanged"
    RENAMED = "renamed"
    """The same profile was installed for another key."""

    # Hold
    FOREIGN = "foreign"
    REJECTED = "rejected"
    UNCHECKED = "unchecked"
    """This node cannot check the key, because it lacks a parser or kernel support."""

    UNSUPPORTED = "unsupported"
    UNOBSERVABLE = "unobservable"
    PENDING = "pending"
    """A key whose check is still running may provide the name."""

    CONFLICT = "conflict"
    """The name belongs to the last good version of another key."""

    SOURCE_UNAVAILABLE = "source unavailable"
    """The source of the key is missing, empty or unreadable."""

    STILL_NEEDED = "still needed"
    """The key that owns this profile name no longer provides it, but a rejected key needs it."""

    SOURCE_UNREADABLE = "a source is unreadable"
    """No source that was read provides the name, but an unreadable source may provide it."""

    PRUNE_NEVER = "prune=never"
    LABEL_PENDING = "label_pending"
    """The Node may still have the profile's label, or the grace period has not passed."""

    IN_USE = "in_use"
    USE_UNKNOWN = "use_unknown"

    # Remove and release
    NOT_DESIRED = "not desired"
    MOVED = "moved"
    """The ledger entry of another key owns the name."""

    ABSENT = "absent"
    """The profile is no longer desired, and is already absent from the node."""

    ADOPTED = "adopted"
    """The profile is no longer desired, and was installed by another program."""

    NEVER_INSTALLED = "never installed"

    # The `status` command
    INSTALLED = "installed"
    NOT_ON_NODE = "absent on the node"
    OTHER_CONTENT = "other content on the node"
    OTHER_PROGRAM = "loaded by another program"
    NO_LONGER_DESIRED = "no longer desired"


DRIFTS = frozenset({Reason.WENT_MISSING, Reason.DRIFTED})
"""The reasons to restore a profile."""


class Provenance(StrEnum):
    """The program that installed the profile of a ledger entry."""

    INSTALLED = "installed"
    """This agent installed the profile."""

    ADOPTED = "adopted"
    """Another program installed the same content, and the agent only tracks the profile."""


class OutcomeResult(StrEnum):
    """The result of an attempt to carry out an action."""

    DONE = "done"
    HELD = "held"
    """The node was not changed."""

    FAILED = "failed"
    PLANNED = "planned"
    """The action was not carried out (only with `--dry-run`)."""

    PENDING = "pending"
    """The action was postponed, because the version must be checked again first."""


class ProfileSetState(StrEnum):
    """The result of reading one profile set."""

    READ = "read"
    EMPTIED = "emptied"
    """The set exists and contains no profile."""

    MISSING = "missing"
    UNREADABLE = "unreadable"


class UnreadableCause(StrEnum):
    """The reason why a profile set could not be read."""

    UNANSWERED = "unanswered"
    """The API server did not respond, or a file could not be read."""

    INVALID = "invalid"
    OVER_LIMIT = "over_limit"


class LeftOutReason(StrEnum):
    """The reason why a source does not read an input as a profile."""

    NAME = "name"
    """The name, such as README.md, is not a valid profile name."""

    RESOURCE = "resource"
    """The input is a Kubernetes resource other than a ConfigMap."""

    KIND = "kind"
    """`--kinds` excludes the kind of the profile."""


class SupportState(StrEnum):
    """A node's support for one kind of profile."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    UNKNOWN = "unknown"


class ModuleMode(StrEnum):
    """The mode of a security module of the node."""

    ENFORCING = "enforcing"
    PERMISSIVE = "permissive"
    """The module logs denials, but allows the access."""

    DISABLED = "disabled"
    UNKNOWN = "unknown"


class PruneMode(StrEnum):
    """The rule for the removal of undesired profiles (`--prune`)."""

    UNUSED = "unused"
    ALWAYS = "always"
    NEVER = "never"
