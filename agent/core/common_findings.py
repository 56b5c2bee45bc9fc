"""Builds the findings that several backends, the sources and the ledger report.

Each function builds one finding, so that its wording is the same for every profile kind.
`diagnostics` builds the findings that explain why a profile is not installed, or why it stays.
"""

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import KeyId, ObservedProfile


def foreign_profile(
    name: str, *, observed: ObservedProfile | None, blocked_key: KeyId | None
) -> Finding:
    """Report a profile on the node that the agent did not install.

    Args:
        name: the name of the profile.
        observed: the profile on the node; None if its content was not compared.
        blocked_key: the key that is not installed because of the profile; None if the agent would
            otherwise have removed the profile.
    """
    if blocked_key is None:
        message = f'"{name}" on this node is not the version that profile-loader installed. The '
        message += "profile stays unchanged."
        hint = "Remove the profile by hand if no pod needs it."
    else:
        content = ""
        if observed is not None:
            is_readable = observed.is_readable
            content = (
                f" with {'other content' if is_readable else 'content that cannot be verified'}"
            )
        message = f'"{name}" is on this node{content}, and profile-loader did not install it. The '
        message += f"profile stays unchanged, and {blocked_key} is not installed."
        hint = f'Rename the profile, remove the other profile, or pass --take-over "{name}".'
    return Finding(code=FindingCode.FOREIGN_NAME, location=name, message=message, hint=hint)


def verify_failed(location: str, reason: str) -> Finding:
    """Report a version that the agent installed, but could not verify on the node."""
    return Finding(
        code=FindingCode.VERIFY_FAILED,
        location=location,
        message=f"The new version was installed, but it could not be verified: {reason}.",
        hint="Look for another program that changes the profile.",
    )


def remove_failed(name: str, reason: str) -> Finding:
    """Report a profile that could not be removed."""
    return Finding(
        code=FindingCode.REMOVE_FAILED,
        location=name,
        message=f'The profile "{name}" was not removed: {reason}.',
        hint="The next pass tries again.",
    )


def write_failed(path: str, subject: str, error: str, consequence: str) -> Finding:
    """Report a file that could not be written.

    Args:
        path: the path of the file.
        subject: the content of the file, as the beginning of a sentence.
        error: the error of the system.
        consequence: a sentence about the effect on the node.
    """
    return Finding(
        code=FindingCode.WRITE_FAILED,
        location=path,
        message=f"{subject} cannot be written ({error}). {consequence}",
        hint="Free up space on the file system, and check its permissions.",
    )


def kind_unobservable(location: str, subject: str, reason: str, hint: str) -> Finding:
    """Report profiles that may be on the node, but cannot be observed."""
    return Finding(
        code=FindingCode.KIND_UNOBSERVABLE,
        location=location,
        message=f"{subject} cannot be observed: {reason}. Nothing is changed.",
        hint=hint,
    )


def kind_unsupported(location: str, message: str, hint: str) -> Finding:
    """Report a profile kind that this node cannot use or check."""
    return Finding(code=FindingCode.KIND_UNSUPPORTED, location=location, message=message, hint=hint)


def key_too_large(location: str, reason: str, hint: str) -> Finding:
    """Report a key that exceeds a limit for a single key."""
    return Finding(
        code=FindingCode.KEY_TOO_LARGE,
        location=location,
        message=f"{reason}. The key is not installed.",
        hint=hint,
    )


def limit_exceeded(location: str, message: str, hint: str) -> Finding:
    """Report keys or entries that exceed a limit on all of them together."""
    return Finding(code=FindingCode.LIMIT_EXCEEDED, location=location, message=message, hint=hint)


def not_utf8(location: str, reason: str) -> Finding:
    """Report a key that is not UTF-8 text, or that begins with a byte order mark."""
    return Finding(
        code=FindingCode.NOT_UTF8,
        location=location,
        message=f"{reason}.",
        hint="Save the file as UTF-8 without a byte order mark.",
    )
