"""Finds rules that let a process leave its confinement (apparmor.d(5)), and warns of them.

This module is pure and reads only the profile's text; included files belong to the host. A rule is
never refused for this, so a target that could match `unconfined` causes a warning.
"""

import itertools
import re
from collections.abc import Iterator

from agent.backends.apparmor.source_checks import LineCounter, without_comments
from agent.core.findings import MAX_FINDINGS, Finding, limited

_UNCONFINED = "unconfined"
# Permissions of a file rule with an execute mode, before or after the path.
_EXECUTE = re.compile(
    r"""(?<![^\s",{}])[rwalkm]*(?P<mode>[pPcC]?[iIuU]?x)[rwalkm]*
        \s*(?=(?P<end>,|->|["/@{]))(?:->\s*(?P<target>"[^"]*"|(?:[^\s,]|,(?=\S))+))?""",
    re.VERBOSE,
)
_CHANGE = re.compile(
    r"""(?P<deny>\bdeny\s+)?\bchange_profile\b(?:\s+(?:safe|unsafe)\b)?
        (?:\s+(?:"[^"]*"|["/@{](?:[^\s,]|,(?=\S))*))?
        \s*(?:->\s*(?P<target>"[^"]*"|(?:[^\s,]|,(?=\S))+)|,)""",
    re.VERBOSE,
)


def warnings(source: str) -> tuple[Finding, ...]:
    """Return what the text allows that ends confinement, each with its line."""
    bare = without_comments(source)
    return limited(
        itertools.islice(itertools.chain(_executions(bare), _changes(bare)), MAX_FINDINGS + 1)
    )


def _executions(bare: str) -> Iterator[Finding]:
    place = LineCounter(bare)
    for match in _EXECUTE.finditer(bare):
        target = match["target"]
        if "u" not in match["mode"].lower() and (target is None or not _leaves(target)):
            continue
        yield Finding(
            code="unconfined_exec",
            location=place.line(match.start("mode")),
            message="An execute rule with ux or Ux (or a fallback to it) starts a program "
            "without any profile.",
            hint="Use ix, px or cx.",
        )


def _changes(bare: str) -> Iterator[Finding]:
    place = LineCounter(bare)
    for match in _CHANGE.finditer(bare):
        if match["deny"] or (match["target"] is not None and not _leaves(match["target"])):
            continue
        yield Finding(
            code="unconfined_transition",
            location=place.line(match.start()),
            message="A change_profile rule lets the process leave for unconfined.",
            hint="Name the profile that it may change to.",
        )


def _leaves(target: str) -> bool:
    """Return whether a target, of its own or as a pattern, may mean unconfined."""
    name = re.sub(r"^(?::[^:]*:)?(?://)?", "", target.strip('"'))
    fixed = re.split(r"[*?\[{@\\^]", name, maxsplit=1)[0]
    return name == _UNCONFINED if fixed == name else _UNCONFINED.startswith(fixed)
