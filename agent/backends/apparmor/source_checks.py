"""Checks a profile text before the parser reads it.

This module performs no I/O. Only apparmor_parser determines the meaning of a profile text. The
checks find profile texts that must not reach the parser, because it has the agent's permissions and
opens every file that a text includes. Files in the include directory belong to the host and may
include other files. character_checks.py checks single characters; lexer.py splits a profile text
into tokens.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor import character_checks, foreign_formats, lexer
from agent.backends.apparmor.lexer_dialects import DIALECTS
from agent.backends.apparmor.lexer_rules import TokenKind
from agent.backends.apparmor.profile_text import LineCounter, name_tokens
from agent.core import common_findings
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding, limit_findings

# At each match of this pattern, the parser could begin to read the path of an include or abi rule.
_CANDIDATE: Final = re.compile(r"#include|include(?=[ \t])|abi(?![A-Za-z0-9_])")
# The pattern matches the usual form of an include or abi rule: a harmless path, and nothing else on
# the line. No token begins inside such a path, so the search continues after the path.
_HARMLESS: Final = re.compile(
    r"(?:[ \t]+if[ \t]+exists(?=[ \t]))?[ \t]*(?P<path><(?![/ ])(?![^>\n]*\.\.)[\w./-]+>)[ \t]*,?"
    r"[ \t]*(?:#[^\"\\\n]{0,199})?(?:\r?\n|\Z)",
    re.ASCII,
)
_REST_OF_LINE_EMPTY: Final = re.compile(r"[ \t]*(?:#[^\"\\\n]{0,199})?(?:\r?\n|\Z)")
_NUMERIC_ESCAPE: Final = re.compile(r"\\[0-9xd]")

# A longer profile text is not split into tokens for every dialect, because that would delay a pass.
_MAX_CHARACTERS: Final = 1 << 18


def errors(content: bytes) -> tuple[Finding, ...]:
    """Return the errors that prevent a profile text from being passed to the parser."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return (
            common_findings.not_utf8(
                f"byte {error.start}", f"The text is not UTF-8 (byte {error.start})"
            ),
        )
    rest = text.removeprefix(character_checks.BYTE_ORDER_MARK)
    if foreign := tuple(foreign_formats.findings(rest)):
        return foreign
    return limit_findings(itertools.chain(character_checks.errors(text), _rejected_includes(rest)))


def undecided_includes(content: bytes) -> tuple[Finding, ...]:
    """Return an error for each include rule of an accepted profile text for which the check is
    inconclusive.

    There are two reasons why the check of an include rule is inconclusive. First, the profile
    text may be too long to be split into tokens for every dialect. Second, an included file may end
    in an assignment without a line break. The parser then reads the text after the include rule as
    values of the assigned variable. A profile text with such a rule is safe only if a sandbox
    prevents the parser from opening files outside the include directory.
    """
    return limit_findings(_undecided_includes(content.decode("utf-8", "replace")))


def _rejected_includes(text: str) -> Iterator[Finding]:
    counter = LineCounter(text)
    for start, (keyword, path) in sorted(_include_rules(text).rejected.items()):
        yield _include_refused(
            counter.line(start),
            f"The path of this {keyword} rule {outside_reason(path)}.",
            "Include only files of /etc/apparmor.d, for example: include <abstractions/base>",
        )


def _undecided_includes(text: str) -> Iterator[Finding]:
    if len(text) > _MAX_CHARACTERS and not _is_harmless(text):
        yield _include_refused(
            "line 1",
            f"The text has more than {_MAX_CHARACTERS} characters and contains include or abi rules"
            " in an unusual form.",
            "Split the text, and write each include rule on its own line.",
        )
    counter = LineCounter(text)
    for start in sorted(_include_rules(text).undecided):
        yield _include_refused(
            counter.line(start),
            "Other text follows this include rule on the same line. How the parser reads that text "
            "depends on the last line of the included file.",
            "Begin a new line after the include rule.",
        )


def _include_refused(location: str, message: str, hint: str) -> Finding:
    return Finding(code=FindingCode.INCLUDE_REFUSED, location=location, message=message, hint=hint)


@dataclass(frozen=True, slots=True)
class _IncludeRules:
    """Contains the suspicious include and abi rules of a profile text, by the positions of their
    paths.
    """

    rejected: Mapping[int, tuple[str, str]]
    """The keyword and the path of each rule that may open a file outside the include directory."""
    undecided: frozenset[int]
    """Positions of rules that are in front of the first profile and are followed by other text on
    the same line.
    """


@functools.lru_cache(maxsize=1)  # Several checks examine the same profile text one after another.
def _include_rules(text: str) -> _IncludeRules:
    """Return the suspicious include and abi rules that at least one version of the parser would
    read.
    """
    rejected: dict[int, tuple[str, str]] = {}
    undecided: set[int] = set()
    if len(text) <= _MAX_CHARACTERS and not _is_harmless(text):
        for dialect in DIALECTS:
            depth = 0
            for token in lexer.tokens(text, dialect):
                depth += (token.kind is TokenKind.OPEN) - (token.kind is TokenKind.CLOSE)
                if token.kind not in (TokenKind.INCLUDE_PATH, TokenKind.ABI_PATH):
                    continue
                path = text[token.start : token.end]
                if outside_reason(path):
                    keyword = "abi" if token.kind is TokenKind.ABI_PATH else "include"
                    rejected[token.start] = keyword, path
                elif token.kind is TokenKind.ABI_PATH or depth > 0:
                    continue
                elif not _REST_OF_LINE_EMPTY.match(text, token.end):
                    undecided.add(token.start)
    return _IncludeRules(rejected, frozenset(undecided))


def _is_harmless(text: str) -> bool:
    """Return whether each include and abi rule has the usual form. This check does not split the
    profile text into tokens.
    """
    position = 0
    while candidate := _CANDIDATE.search(text, position):
        usual = _HARMLESS.match(text, candidate.end())
        if usual is None:
            return False
        position = usual.end("path")
    return True


def outside_reason(path: str) -> str:
    """Return the reason why a path may point outside the include directory, or "" if it cannot."""
    name = path.removeprefix("<").removesuffix(">").strip().strip('"')
    if "\\" in name:
        return "contains a backslash"
    if name.startswith("/"):
        return "is absolute"
    if ".." in name.split("/"):
        return "leaves its directory with .."
    if not path.startswith("<"):
        return "is relative to the working directory of the parser"
    return ""


def variable_names(text: str) -> tuple[Finding, ...]:
    r"""Return an error for each profile name that contains a variable.

    A numeric escape in front of a brace counts as a variable, because `\x40{` is another spelling
    of `@{`.
    """
    if "@" not in text and not _can_spell_variable(text):
        return ()
    starts = [
        token.start
        for token in name_tokens(text)
        if "@{" in (name := text[token.start : token.end]) or _can_spell_variable(name)
    ]
    counter = LineCounter(text)
    return limit_findings(name_variable(counter.line(start)) for start in sorted(starts))


def name_variable(location: str) -> Finding:
    """Return the error for one profile name that contains a variable."""
    return Finding(
        code=FindingCode.NAME_VARIABLE,
        location=location,
        message="A profile name contains a variable, so the text does not show the name that pods "
        "must use.",
        hint="Replace the variable with its value.",
    )


def _can_spell_variable(text: str) -> bool:
    """Return whether a brace follows a numeric escape, which may represent `@`."""
    escape = _NUMERIC_ESCAPE.search(text)
    return escape is not None and text.find("{", escape.end()) >= 0
