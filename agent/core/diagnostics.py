"""Builds findings that explain why a profile is not installed or why it stays on the node."""

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import InUse, KeyId, UnknownUse
from agent.core.ports import Capabilities

SHOWN_PODS = 3
SHOWN_PIDS = 5


def referenced_by_pods(name: str, pods: tuple[str, ...]) -> Finding:
    """Report how many pods still reference a profile, and list the first pods in the detail."""
    more = ", ..." if len(pods) > SHOWN_PODS else ""
    return Finding(
        code=FindingCode.IN_USE,
        location=name,
        message=f'"{name}" is no longer desired, but {len(pods)} pod(s) on this node reference it. '
        "The profile stays on the node.",
        hint="Delete those pods; the profile is removed afterwards. The log and the report list "
        f"the first {SHOWN_PODS} pods.",
        detail=f"Pods: {', '.join(pods[:SHOWN_PODS])}{more}",
    )


def pods_unknown(name: str) -> Finding:
    """Report that `--pod-aware` cannot check which pods reference a profile."""
    return Finding(
        code=FindingCode.USE_UNKNOWN,
        location=name,
        message=f'"{name}" is no longer desired, but the pods on this node that reference it are '
        "not known. The profile stays on the node.",
        hint="The agent checks again when the API server responds. Listing and watching pods must "
        "be allowed (manifests/components/pod-aware).",
    )


def label_pending(name: str) -> Finding:
    """Report that a removal waits for the removal of the label and for the grace period."""
    return Finding(
        code=FindingCode.LABEL_PENDING,
        location=name,
        message=f'"{name}" is no longer desired. The profile stays on the node for the grace '
        "period, which begins when its label is removed from the Node.",
        hint="No action is needed. The agent then removes the profile.",
    )


def check_failed(id_: KeyId, error: str, location: str) -> Finding:
    """Report that the check of a key raised an unexpected exception.

    Args:
        id_: The key.
        error: The type of the exception.
        location: The lines of code that raised it.
    """
    return Finding(
        code=FindingCode.CHECK_FAILED,
        location=id_.key,
        message=f"The check of this key ended with an unexpected error ({error}). The key is not "
        "installed. The last good version of the key stays, if there is one.",
        hint="If the node has enough memory and free descriptors, this is a defect: report it with "
        "the detail of this finding from the log or the JSON report.",
        detail=f"{error} at {location}",
    )


def in_use(name: str, use: InUse) -> Finding:
    """Report that processes run under a profile that is no longer desired."""
    pids = ", ".join(str(pid) for pid in use.pids[:SHOWN_PIDS])
    return Finding(
        code=FindingCode.IN_USE,
        location=name,
        message=f'"{name}" is no longer desired, but {len(use.pids)} process(es) run under it '
        f"(first PIDs: {pids}). The profile stays, because its removal would unconfine them.",
        hint="Stop or restart those workloads; the profile is removed afterwards.",
    )


def use_unknown(name: str, use: UnknownUse, capabilities: Capabilities) -> Finding:
    """Report that it is unknown whether a process uses an undesired profile."""
    hint = "Remove the profile by hand when no workload needs it"
    return Finding(
        code=FindingCode.USE_UNKNOWN,
        location=name,
        message=f'"{name}" is no longer desired, but the agent cannot determine whether it is '
        f"in use: {use.reason}. The profile stays on the node.",
        hint=f"{hint}." if capabilities.removal_unconfines else f"{hint}, or pass --prune=always.",
    )


def still_in_use(name: str, use: InUse | UnknownUse, capabilities: Capabilities) -> Finding:
    """Report why a backend did not remove a profile."""
    if isinstance(use, InUse):
        return in_use(name, use)
    return use_unknown(name, use, capabilities)


def name_of_rejected_key(name: str, owner: KeyId) -> Finding:
    """Report that a profile name belongs to the last good version of a rejected key."""
    return _name_conflict(name, owner, "whose new version is rejected")


def name_of_unavailable_source(name: str, owner: KeyId) -> Finding:
    """Report that a profile name belongs to a key whose source is unavailable."""
    return _name_conflict(name, owner, "whose source is missing, empty or unreadable")


def _name_conflict(name: str, owner: KeyId, why: str) -> Finding:
    return Finding(
        code=FindingCode.NAME_CONFLICT,
        location=name,
        message=f'The name "{name}" belongs to the last good version of {owner}, {why}. '
        "That version stays, and this key is not installed.",
        hint="Correct or delete the other key; the name then becomes available.",
    )
