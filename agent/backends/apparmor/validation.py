"""Decides from names, attachments and modes whether a compiled policy may be loaded.

This module performs no I/O. The decisions use the compiled policy, because the kernel loads it; the
profile text only provides line numbers. The module returns all errors together, so that an author
can correct them at once.
"""

import fnmatch
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor import compiled_policy, source_checks
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.backends.apparmor.profile_text import declaration_line
from agent.core import common_findings
from agent.core.finding_codes import FindingCode
from agent.core.findings import MAX_FINDINGS, Finding, limit_findings

DENY_NAMES: Final = (
    "docker-default",
    "cri-containerd.apparmor.d",
    "crio-default*",
    "containers-default*",
    "nerdctl-default",
    "incus-*",
    "libvirt-*",
    "lxc-*",
    "lxd-*",
    "snap.*",
    "unconfined",
    "unprivileged_userns",
)
_MAX_NAME_BYTES: Final = 200
_FLAGS: Final = re.compile(r"(?:flags|xattrs)\s*=")
# A key may contain at most this number of profiles. The number is limited because each profile
# needs kernel memory and adds a label to the Node.
MAX_NAMES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRules:
    """The operator's options for compiled policies."""

    deny_names: Sequence[str] = DENY_NAMES
    """The patterns (fnmatch) of names that are reserved for the host."""
    allow_attachments: bool = False
    allow_unconfined_mode: bool = False


def errors(
    declared: Sequence[DeclaredProfile], source: str, rules: ValidationRules
) -> tuple[Finding, ...]:
    """Return the errors that prevent a compiled policy from being loaded."""
    if len(declared) > MAX_NAMES:
        return (
            common_findings.key_too_large(
                location="profile",
                reason=f"The key declares {len(declared)} profiles, hats and child profiles; at "
                f"most {MAX_NAMES} are allowed",
                hint="Split it into several keys.",
            ),
        )
    names = frozenset(profile.name for profile in declared)
    return limit_findings(
        finding for profile in declared for finding in _errors(profile, names, source, rules)
    )


def warnings(declared: Sequence[DeclaredProfile], source: str) -> tuple[Finding, ...]:
    """Return warnings about profiles that may be loaded although they restrict nothing."""
    return limit_findings(
        itertools.islice(
            itertools.chain(_complain_mode(declared, source), _suspicious_names(declared, source)),
            MAX_FINDINGS + 1,
        )
    )


def _complain_mode(declared: Sequence[DeclaredProfile], source: str) -> Iterator[Finding]:
    return (
        Finding(
            code=FindingCode.COMPLAIN_MODE,
            location=declaration_line(source, profile.name),
            message=f'Profile "{profile.name}" is in complain mode: the kernel only logs what it '
            "would deny, except for explicit deny rules.",
            hint="Remove flags=(complain) when the log shows no more violations.",
        )
        for profile in declared
        if profile.mode == "complain"
    )


def _suspicious_names(declared: Sequence[DeclaredProfile], source: str) -> Iterator[Finding]:
    return (
        Finding(
            code=FindingCode.NAME_SUSPICIOUS,
            location=declaration_line(source, profile.name),
            message=f'The name of the profile is "{profile.name}", because the name before the '
            f"flags is missing. The profile is in {profile.mode} mode.",
            hint="Write: profile NAME flags=(...) {",
        )
        for profile in declared
        if _FLAGS.match(profile.name)
    )


def _errors(
    profile: DeclaredProfile, names: frozenset[str], source: str, rules: ValidationRules
) -> Iterator[Finding]:
    shown = profile.name if profile.name.isprintable() else ascii(profile.name)[1:-1]
    location = declaration_line(source, profile.name)
    if profile.name.startswith(":"):
        yield Finding(
            code=FindingCode.NAMESPACE_REFUSED,
            location=location,
            message=f'Profile "{shown}" belongs to a policy namespace, and pods can use only '
            "profiles of the host's namespace.",
            hint="Remove the namespace from the name.",
        )
        return
    yield from _name_errors(profile.name, shown, location, names, rules)
    yield from _confinement_errors(profile, shown, location, rules)


def name_not_utf8(key: str, error: compiled_policy.NameEncodingError) -> Finding:
    """Return the error about a profile name with bytes that are not UTF-8."""
    hint = "Rename the profile: replace the escapes in its name with letters or digits."
    return _name_unsafe(key, str(error), "is not UTF-8, so no pod can reference it", hint)


def _name_unsafe(location: str, shown: str, reason: str, hint: str) -> Finding:
    return Finding(
        code=FindingCode.NAME_UNSAFE,
        location=location,
        message=f'The profile name "{shown[:_MAX_NAME_BYTES]}" {reason}.',
        hint=hint,
    )


def _name_errors(
    name: str, shown: str, location: str, names: frozenset[str], rules: ValidationRules
) -> Iterator[Finding]:
    unsafe = _unsafe_reason(name, names)
    if unsafe is not None:
        reason, hint = unsafe
        yield _name_unsafe(location, shown, reason, hint)
    if "@{" in name:
        yield source_checks.name_variable(location)
    outermost = (name, *compiled_policy.ancestors(name))[-1]
    denied = next(
        (pattern for pattern in rules.deny_names if fnmatch.fnmatchcase(outermost, pattern)),
        None,
    )
    if denied is not None:
        yield Finding(
            code=FindingCode.NAME_DENIED,
            location=location,
            message=f'The profile name "{shown}" is reserved for the host: it matches "{denied}" '
            "in the deny list.",
            hint="Choose another name for the profile.",
        )


def _confinement_errors(
    profile: DeclaredProfile, shown: str, location: str, rules: ValidationRules
) -> Iterator[Finding]:
    # The attachment of a child profile only selects a child inside the parent (cx rules).
    is_child = compiled_policy.parent(profile.name) is not None
    attaches = not is_child and (profile.has_attachment or profile.name.startswith("/"))
    if attaches and not rules.allow_attachments:
        change = "Remove the path after the name"
        if profile.name.startswith("/"):
            change = "Write a plain name instead of the path"
        yield Finding(
            code=FindingCode.ATTACHMENT_REFUSED,
            location=location,
            message=f'Profile "{shown}" has an attachment: it would confine every process on the '
            "host that runs the attached program.",
            hint=f"{change}: profile NAME {{. Or set --allow-attachments.",
        )
    if profile.mode == "unconfined" and not rules.allow_unconfined_mode:
        yield Finding(
            code=FindingCode.UNCONFINED_REFUSED,
            location=location,
            message=f'Profile "{shown}" is in unconfined mode (flags=(unconfined) or '
            "default_allow), so it does not confine any process.",
            hint="Remove the flag, or set --allow-unconfined-mode.",
        )


def _unsafe_reason(name: str, names: frozenset[str]) -> tuple[str, str] | None:
    """Return the reason why a name could block later loads or forge a line of the kernel's list,
    and how to correct it.

    If a load fails because a name is too long or has no parent, data remain in the kernel that
    block later loads. The result is None for a safe name.
    """
    parent = compiled_policy.parent(name)
    plain = "Choose a name of letters, digits, `-`, `_` and `.`."
    checks = (
        (not name, "is empty", plain),
        (not name.isprintable(), "contains a character that cannot be printed", plain),
        (name != name.strip(), "begins or ends with a space", "Remove the space."),
        (
            len(name.encode()) > _MAX_NAME_BYTES,
            f"is longer than {_MAX_NAME_BYTES} bytes",
            "Choose a shorter name.",
        ),
        ("//&" in name, "has the form of a stack of profiles (//&)", plain),
        (
            name.startswith("localhost/"),
            "begins with localhost/, which container runtimes remove from the name in a pod",
            f"Remove `localhost/` from the name: profile {name.removeprefix('localhost/')} {{",
        ),
        (
            parent is not None and parent not in names,
            f'has a parent "{parent}" that the same key does not declare',
            "Declare the profile as a hat or child profile inside its parent.",
        ),
    )
    return next((problem[1:] for problem in checks if problem[0]), None)
