"""Finds the rules of a profile text that affect the expansion of its include rules.

This module performs no I/O. All parser versions that can read a profile text must find the same
rules.
"""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor import lexer
from agent.backends.apparmor.lexer import Token
from agent.backends.apparmor.lexer_dialects import DIALECTS
from agent.backends.apparmor.lexer_rules import Dialect, TokenKind

# The parser reads an include rule only between two rules, so it reads this rule if the profile text
# in front of it is complete.
_PROBE: Final = "\n#include <probe>\n"
_INCLUDE_KEYWORD: Final = re.compile(r"#?include(?P<if_exists>[ \t]+if[ \t]+exists)?\s*\Z")
_ABI_KEYWORD: Final = re.compile(r"abi\s*\Z")
_MAX_KEYWORD: Final = 4096


class RuleKind(enum.Enum):
    """The kinds of rules and braces that an expansion distinguishes."""

    INCLUDE = "include"
    INCLUDE_IF_EXISTS = "include if exists"
    ABI = "abi"
    OPEN_PROFILE = "profile {"
    """The brace that begins a profile, a hat or a child profile."""
    OPEN_BLOCK = "{"
    CLOSE_BLOCK = "}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRule:
    """One rule or brace, and its position in the profile text."""

    kind: RuleKind
    start: int
    end: int
    path: str = ""
    """The path as it is written in the rule; empty for a brace."""

    @property
    def name(self) -> str:
        """The path without its brackets and quotes."""
        return self.path.removeprefix("<").removesuffix(">").strip().strip('"')

    def __str__(self) -> str:
        path = self.path if self.path.isprintable() else ascii(self.path)
        return f"{self.kind.value} {path}"


class AmbiguousTextError(Exception):
    """Raised if no version of the parser can read a profile text, or if the versions read it
    differently.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line
        """The line of the first difference, or the first line that no version can read."""


def rules(text: str) -> Sequence[TextRule]:
    """Return the rules in a profile text, in their order. Raises AmbiguousTextError."""
    readings: list[tuple[TextRule, ...]] = []
    unread = 0
    for dialect in DIALECTS:
        found, position = _read(text, dialect)
        if found is None:
            unread = max(unread, position)
        elif found not in readings:
            readings.append(found)
    if not readings:
        raise AmbiguousTextError(
            "no known version of apparmor_parser can read the text", _line(text, unread)
        )
    if len(readings) > 1:
        raise AmbiguousTextError(
            "the versions of apparmor_parser read the text in different ways",
            _line(text, _first_difference(readings[0], readings[1])),
        )
    return readings[0]


def _first_difference(reading: Sequence[TextRule], other: Sequence[TextRule]) -> int:
    """Return the position of the first rule that two versions of the parser read differently."""
    differing = [rule.start for rule in (*reading, *other) if (rule in reading) != (rule in other)]
    return min(differing, default=0)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _read(text: str, dialect: Dialect) -> tuple[tuple[TextRule, ...] | None, int]:
    """Return the rules that one version of the parser reads, and the position at which the readable
    part ends.

    Instead of the rules, the result contains None if this version cannot read the whole profile
    text, or if the text ends inside a rule.
    """
    probed = text + _PROBE
    tokens = list(lexer.tokens(probed, dialect))
    is_complete = any(
        token.kind is TokenKind.INCLUDE_PATH and token.start > len(text) for token in tokens
    )
    if not is_complete:
        return None, min(tokens[-1].start, len(text))
    within = [token for token in tokens if token.end <= len(text)]
    return tuple(_rules(text, within)), len(text)


def _rules(text: str, tokens: Sequence[Token]) -> list[TextRule]:
    found: list[TextRule] = []
    depth = 0
    has_header = False  # Whether the current rule may declare a profile.
    for index, token in enumerate(tokens):
        match token.kind:
            case TokenKind.NAME:
                has_header = True
            case TokenKind.LABEL:
                has_header = has_header or depth <= 0
            case TokenKind.OPEN:
                kind = RuleKind.OPEN_PROFILE if has_header else RuleKind.OPEN_BLOCK
                found.append(TextRule(kind=kind, start=token.start, end=token.end))
                depth, has_header = depth + 1, False
            case TokenKind.CLOSE:
                kind = RuleKind.CLOSE_BLOCK
                found.append(TextRule(kind=kind, start=token.start, end=token.end))
                depth, has_header = depth - 1, False
            case TokenKind.INCLUDE_PATH:
                found.append(_include_rule(text, token))
                has_header = False
            case TokenKind.ABI_PATH:
                found.append(_abi_rule(text, token, tokens[index + 1 : index + 2]))
                has_header = False
            case TokenKind.ASSIGN | TokenKind.END:
                has_header = False
            case TokenKind.COMMENT | TokenKind.OTHER | TokenKind.REST:
                pass
    return found


def _include_rule(text: str, path: Token) -> TextRule:
    begin = max(0, path.start - _MAX_KEYWORD)
    keyword = _INCLUDE_KEYWORD.search(text[begin : path.start])
    is_optional = keyword is not None and keyword["if_exists"] is not None
    return TextRule(
        kind=RuleKind.INCLUDE_IF_EXISTS if is_optional else RuleKind.INCLUDE,
        start=begin + keyword.start() if keyword is not None else path.start,
        end=path.end,
        path=text[path.start : path.end],
    )


def _abi_rule(text: str, path: Token, following: Sequence[Token]) -> TextRule:
    begin = max(0, path.start - _MAX_KEYWORD)
    keyword = _ABI_KEYWORD.search(text[begin : path.start])
    ends = [token.end for token in following if token.kind is TokenKind.END]
    return TextRule(
        kind=RuleKind.ABI,
        start=begin + keyword.start() if keyword is not None else path.start,
        end=ends[0] if ends else path.end,
        path=text[path.start : path.end],
    )
