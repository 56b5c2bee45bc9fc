"""Decides whether a compiled policy may be loaded, by its profile names, attachments and modes.

This module is pure. It examines the compiled policy, which is what the kernel will load; the text
only provides line numbers. Every reason for a refusal is returned, not only the first.
"""

import fnmatch
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.backends.apparmor import compiled_policy, source_checks
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.core.findings import MAX_FINDINGS, Finding, limited

DENY_NAMES = (
    "docker-default",
    "cri-containerd.apparmor.d",
    "crio-default*",
    "containers-default*",
    "lxc-*",
    "snap.*",
    "unconfined",
)
_LONGEST = 200


MAX_NAMES = 1000  # of one key: each is a load for the kernel, a row and a label


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRules:
    """What an operator may allow and deny."""

    deny_names: Sequence[str] = DENY_NAMES
    allow_attachments: bool = False
    allow_unconfined_mode: bool = False


def errors(
    declared: Sequence[DeclaredProfile], source: str, rules: ValidationRules
) -> tuple[Finding, ...]:
    """Return why a compiled policy may not be put."""
    if len(declared) > MAX_NAMES:
        what = f"It declares {len(declared)} profiles, hats and children; {MAX_NAMES} are the most."
        hint = "Split it into keys of fewer."
        return (Finding(code="key_too_large", location="profile", message=what, hint=hint),)
    names = frozenset(one.name for one in declared)
    return limited(finding for one in declared for finding in _refusals(one, names, source, rules))


def warnings(declared: Sequence[DeclaredProfile], source: str) -> tuple[Finding, ...]:
    """Return what is allowed and does not protect."""
    found = (
        Finding(
            code="complain_mode",
            location=source_checks.line_of(source, one.name),
            message=f'Profile "{one.name}" is in complain mode: it reports and hardly denies.',
            hint="Remove flags=(complain) once its log is quiet.",
        )
        for one in declared
        if one.mode == "complain"
    )
    return limited(itertools.islice(found, MAX_FINDINGS + 1))


def _refusals(
    one: DeclaredProfile, names: frozenset[str], source: str, rules: ValidationRules
) -> Iterator[Finding]:
    shown = ascii(one.name)[1:-1] if not one.name.isprintable() else one.name
    above = compiled_policy.ancestors(one.name)
    top = above[-1] if above else one.name
    if one.name.startswith(":"):
        yield Finding(
            code="namespace_refused",
            location=source_checks.line_of(source, one.name),
            message=f'Profile "{shown}" names a policy namespace.',
            hint="Remove the namespace; pods use the host's.",
        )
        return
    why = _unsafe(one.name, names)
    if why:
        yield Finding(
            code="name_unsafe",
            location=source_checks.line_of(source, one.name),
            message=f'The name "{shown[:_LONGEST]}" {why}.',
            hint="Choose a shorter, plain name; declare hats and children inside their parent, "
            "one level deep.",
        )
    if "@{" in one.name:
        yield Finding(
            code="name_variable",
            location=source_checks.line_of(source, one.name),
            message=f'The name "{shown}" holds a variable.',
            hint="Write the name out.",
        )
    denied = next((rule for rule in rules.deny_names if fnmatch.fnmatchcase(top, rule)), None)
    if denied is not None:
        yield Finding(
            code="name_denied",
            location=source_checks.line_of(source, one.name),
            message=f'The name "{shown}" is on the deny list ("{denied}"): it belongs to the host.',
            hint="Give the profile a name of its own.",
        )
    # A child's attachment only chooses among the children of its parent (cx rules).
    if (
        not above
        and (one.has_attachment or one.name.startswith("/"))
        and not rules.allow_attachments
    ):
        yield Finding(
            code="attachment_refused",
            location=source_checks.line_of(source, one.name),
            message=f'Profile "{shown}" has an attachment: it would confine processes of the host '
            "that run that program.",
            hint="Remove the path after the name (profile NAME {), or set --allow-attachments.",
        )
    if one.mode == "unconfined" and not rules.allow_unconfined_mode:
        yield Finding(
            code="unconfined_refused",
            location=source_checks.line_of(source, one.name),
            message=f'Profile "{shown}" is in unconfined mode (flags=(unconfined) or default_allow)'
            ": it confines nothing.",
            hint="Remove the flag, or set --allow-unconfined-mode.",
        )


def _unsafe(  # noqa: PLR0911 - one return a reason
    name: str, names: frozenset[str]
) -> str:
    """Return what would jam the kernel or forge a line of its listing, or nothing."""
    if not name:
        return "is empty"
    if not name.isprintable():
        return "holds a character that cannot be printed"
    if name != name.strip():
        return "begins or ends with a space"
    if len(name.encode()) > _LONGEST:
        return f"is longer than {_LONGEST} bytes"
    if "//&" in name:
        return "looks like a stack of profiles (//&)"
    above = compiled_policy.parent(name)
    if above is not None and above not in names:
        return f'has no parent "{above}" in the same key'
    return ""
