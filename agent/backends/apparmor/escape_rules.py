"""Warns about rules that let a process leave its confinement (apparmor.d(5)).

This module performs no I/O, and examines only the text of the profile itself, because included
files belong to the host. A rule of this kind never leads to the rejection of a profile. The warning
therefore also covers targets that might match `unconfined`.
"""

import itertools
import re
from collections.abc import Iterator

from agent.backends.apparmor.profile_text import LineCounter, without_comments
from agent.core.finding_codes import FindingCode
from agent.core.findings import MAX_FINDINGS, Finding, limit_findings

_UNCONFINED = "unconfined"
# The permissions of a file rule with an execute mode, before or after the path.
_EXECUTE = re.compile(
    r"""(?<![^\s",{}])[rwalkm]*(?P<mode>[pPcC]?[iIuU]?x)[rwalkm]*
        \s*(?=(?P<end>,|->|["/@{]))(?:->\s*(?P<target>"[^"]*"|(?:[^\s,]|,(?=\S))+))?""",
    re.VERBOSE,
)
_CHANGE_PROFILE = re.compile(
    r"""(?P<deny>\bdeny\s+)?\bchange_profile\b(?:\s+(?:safe|unsafe)\b)?
        (?:\s+(?:"[^"]*"|["/@{](?:[^\s,]|,(?=\S))*))?
        \s*(?:->\s*(?P<target>"[^"]*"|(?:[^\s,]|,(?=\S))+)|,)""",
    re.VERBOSE,
)


def warnings(source: str) -> tuple[Finding, ...]:
    """Return a warning with a line number for each rule that lets a process become unconfined."""
    bare = without_comments(source)
    return limit_findings(
        itertools.islice(
            itertools.chain(_execute_rules(bare), _change_profile_rules(bare)), MAX_FINDINGS + 1
        )
    )


def _execute_rules(bare: str) -> Iterator[Finding]:
    counter = LineCounter(bare)
    for match in _EXECUTE.finditer(bare):
        target = match["target"]
        if "u" not in match["mode"].lower() and (target is None or not _may_be_unconfined(target)):
            continue
        yield Finding(
            code=FindingCode.UNCONFINED_EXEC,
            location=counter.line(match.start("mode")),
            message="This rule lets a process start a program without any profile (ux or Ux, "
            "perhaps as a fallback).",
            hint="Use ix, px or cx.",
        )


def _change_profile_rules(bare: str) -> Iterator[Finding]:
    counter = LineCounter(bare)
    for match in _CHANGE_PROFILE.finditer(bare):
        if match["deny"] or (
            match["target"] is not None and not _may_be_unconfined(match["target"])
        ):
            continue
        yield Finding(
            code=FindingCode.UNCONFINED_TRANSITION,
            location=counter.line(match.start()),
            message="This change_profile rule lets a process become unconfined.",
            hint="Write the name of the profile that the process may change to.",
        )


def _may_be_unconfined(target: str) -> bool:
    """Return whether the target of a transition is `unconfined`, or is a pattern that may match
    it.
    """
    name = re.sub(r"^(?::[^:]*:)?(?://)?", "", target.strip('"'))
    literal = re.split(r"[*?\[{@\\^]", name, maxsplit=1)[0]
    return name == _UNCONFINED if literal == name else _UNCONFINED.startswith(literal)
