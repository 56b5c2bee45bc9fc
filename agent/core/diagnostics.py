"""Why a name stays on the node, or is not put: what people read."""

from agent.core.findings import Finding
from agent.core.model import InUse, KeyId, ObservedProfile, UnknownUse


def referenced_by_pods(name: str, pods: tuple[str, ...]) -> Finding:
    """Report the number of pods that still name a profile, and the first of them in the detail."""
    return Finding(
        code="in_use",
        location=name,
        message=f'"{name}" is no longer desired, but {len(pods)} pod(s) of this node name it.',
        hint="Delete those pods, and the profile is removed. The log and the report name the first "
        "of them.",
        detail=f"Pods: {', '.join(pods[:3])}{', ...' if len(pods) > 3 else ''}",  # noqa: PLR2004 - as shown
    )


def pods_unknown(name: str) -> Finding:
    """Say that --pod-aware does not know the pods."""
    return Finding(
        code="use_unknown",
        location=name,
        message=f'"{name}" is no longer desired, but which pods of this node name it is not known.',
        hint="It is once the API server answers; listing and watching pods must be allowed "
        "(manifests/overlays/pod-aware).",
    )


def label_pending(name: str) -> Finding:
    """Say that a label may still name it."""
    return Finding(
        code="label_pending",
        location=name,
        message=f'"{name}" is no longer desired. It stays for the grace time, which begins when no '
        "label of this Node names it.",
    )


def foreign_profile(name: str, id_: KeyId, fact: ObservedProfile) -> Finding:
    """Report that a foreign profile has the name."""
    content = "with other content" if fact.is_readable else "with content that cannot be verified"
    return Finding(
        code="foreign_name",
        location=name,
        message=f'"{name}" is on this node {content} and was not put there by '
        f"profile-loader. It is left alone, and {id_} is not put.",
        hint=f'Rename the profile, remove the other one, or run with --take-over "{name}".',
    )


def still_in_use(name: str, use: InUse | UnknownUse) -> Finding:
    """Say why a name that nobody desires any more stays on the node."""
    if isinstance(use, InUse):
        pids = ", ".join(str(pid) for pid in use.pids[:5])
        return Finding(
            code="in_use",
            location=name,
            message=f'"{name}" is no longer desired, but confines {len(use.pids)} process(es) '
            f"(first pids: {pids}). Removing it would unconfine them.",
            hint="End or restart those workloads; then it is removed.",
        )
    return Finding(
        code="use_unknown",
        location=name,
        message=f'"{name}" is no longer desired, but its use is unknown: {use.reason}.',
        hint="Remove it by hand when no workload needs it (seccomp: or use --prune=always).",
    )
