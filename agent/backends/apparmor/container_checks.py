"""Warns about profiles under which a container cannot start.

This module is pure and only reads the text of the profile itself. If an included file may contain
file rules, there is no warning. A profile without a warning may therefore still be unusable.
"""

import re
from collections.abc import Sequence
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.backends.apparmor.profile_text import declaration_line, without_comments
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

_INCLUDE: Final = re.compile(r"#?include\s+(?:if\s+exists\s+)?[<\"]?([^>\"\s]+)")
# These include files of AppArmor contain no rules for starting a program.
_WITHOUT_PROGRAMS: Final = re.compile(r"tunables/.*|abstractions/(?:base|nameservice)")
_DENY_RULE: Final = re.compile(r"\bdeny\b[^,\n]*")
_FILE_RULE: Final = re.compile(r"(?:^|[\s{},])(?:\"?(?:/|@\{)|(?:file|all)(?=[\s,]))")
_CONFINING_MODES: Final = frozenset({"enforce", "kill"})


def warnings(declared: Sequence[DeclaredProfile], source: str) -> tuple[Finding, ...]:
    """Return a warning if no rule of the text allows access to files."""
    profiles = [profile for profile in declared if compiled_policy.parent(profile.name) is None]
    if not profiles or any(profile.mode not in _CONFINING_MODES for profile in profiles):
        return ()
    bare = without_comments(source)
    included = _INCLUDE.findall(bare)
    if not all(_WITHOUT_PROGRAMS.fullmatch(path) for path in included):
        return ()
    rules = _INCLUDE.sub("", _DENY_RULE.sub("", bare.partition("{")[2]))
    if _FILE_RULE.search(rules):
        return ()
    return (
        Finding(
            code=FindingCode.START_IMPOSSIBLE,
            location=declaration_line(source, profiles[0].name),
            message="No rule of the text allows access to files, so no container can start under "
            "the profile.",
            hint="Add `file,` or rules for the files that the container needs.",
        ),
    )
