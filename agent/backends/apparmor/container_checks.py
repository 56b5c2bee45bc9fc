"""Warns about profiles under which a container cannot start or cannot be stopped.

This module performs no I/O. The check that a container can start only reads the profile's own text.
The check gives no warning if an included file may contain file rules, so a profile without a
warning may still be unusable. The check that a container can be stopped is exact, because it reads
the compiled policy.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.backends.apparmor.profile_text import declaration_line, without_comments
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding, limit_findings

_INCLUDE: Final = re.compile(r"#?include\s+(?:if\s+exists\s+)?[<\"]?([^>\"\s]+)")
# These AppArmor include files contain no rules that allow a program to start.
_WITHOUT_PROGRAMS: Final = re.compile(r"tunables/.*|abstractions/(?:base|nameservice)")
_DENY_RULE: Final = re.compile(r"\bdeny\b[^,\n]*")
_FILE_RULE: Final = re.compile(r"(?:^|[\s{},])(?:\"?(?:/|@\{)|(?:file|all)(?=[\s,]))")
_CONFINING_MODES: Final = frozenset({"enforce", "kill"})


def warnings(declared: Sequence[DeclaredProfile], source: str) -> tuple[Finding, ...]:
    """Return warnings about those profiles of a text that pods can reference."""
    profiles = [profile for profile in declared if compiled_policy.parent(profile.name) is None]
    confining = [profile for profile in profiles if profile.mode in _CONFINING_MODES]
    cannot_start = confining == profiles != [] and _has_no_file_rule(source)
    return limit_findings(
        itertools.chain(
            (_start_impossible(source, profiles[0]),) if cannot_start else (),
            (_stop_impossible(source, each) for each in confining if not each.can_be_stopped),
        )
    )


def _has_no_file_rule(source: str) -> bool:
    """Return whether no rule of a profile text or of its included files allows access to files."""
    bare = without_comments(source)
    included = _INCLUDE.findall(bare)
    if not all(_WITHOUT_PROGRAMS.fullmatch(path) for path in included):
        return False
    rules = _INCLUDE.sub("", _DENY_RULE.sub("", bare.partition("{")[2]))
    return _FILE_RULE.search(rules) is None


def _start_impossible(source: str, profile: DeclaredProfile) -> Finding:
    return Finding(
        code=FindingCode.START_IMPOSSIBLE,
        location=declaration_line(source, profile.name),
        message="No rule of the text allows access to files, so no container can start under "
        "the profile.",
        hint="Add `file,` or rules for the files that the container needs.",
    )


def _stop_impossible(source: str, profile: DeclaredProfile) -> Finding:
    return Finding(
        code=FindingCode.STOP_IMPOSSIBLE,
        location=declaration_line(source, profile.name),
        message=f'Profile "{profile.name}" does not receive the signals TERM and KILL from the '
        "container runtime, so a runtime cannot stop its containers with signals.",
        hint="Add `signal (receive) peer=unconfined,`. If the runtime runs under a profile, add a "
        "rule for that profile too, for example `signal (receive) peer=runc,`.",
    )
