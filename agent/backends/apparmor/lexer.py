"""Splits AppArmor policy into the tokens that apparmor_parser's own lexer reads.

The meaning of `#` and of `include` depends only on the start condition of the lexer. As in flex,
the longest match has priority; among matches of equal length, the first rule has priority.

This module performs no I/O, and contains no grammar. At a syntax error, however, the parser stops,
and this lexer continues. Therefore, this lexer may report an include that the parser never reads,
but it never misses an include that the parser reads. This lexer stops at the same position as the
parser's lexer. The tables are in lexer_dialects.py.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agent.backends.apparmor.lexer_rules import Dialect, Rule, State, TokenKind


class Token(NamedTuple):
    """One token and its position in the profile text."""

    kind: TokenKind
    start: int
    end: int


class _Candidate(NamedTuple):
    """A lexer rule that may match, with its compiled pattern."""

    pattern: re.Pattern[str]
    rule: Rule


_compile = functools.cache(re.compile)


@functools.lru_cache(maxsize=8192)
def _candidates(dialect: Dialect, state: State, character: str) -> tuple[_Candidate, ...]:
    """Return, in their original order, the rules of a state whose tokens can begin with the
    character.
    """
    return tuple(
        _Candidate(_compile(rule.pattern), rule)
        for rule in dialect.table.get(state, ())
        if _compile(rule.first_characters).match(character) is not None
    )


def tokens(text: str, dialect: Dialect) -> Iterator[Token]:
    """Yield the tokens in a profile text, except for tokens of the kind TokenKind.OTHER. If the
    lexer stops before the end of the profile text, the last token contains the rest of the text.
    """
    states = [State.INITIAL]
    position, size, last_line_break = 0, len(text), text.rfind("\n")
    while position < size:
        candidates = _candidates(dialect, states[-1], text[position])
        rule, end = _longest(candidates, text, position, has_line_break=position < last_line_break)
        if rule is None:
            break
        push = dialect.keywords.get(text[position:end]) if rule.pushes_by_keyword else rule.push
        if rule.pop:
            states.pop()
        if push is not None:
            states.append(push)
        if rule.kind is not TokenKind.OTHER:
            yield Token(rule.kind, position, end)
        position = end
    yield Token(TokenKind.REST, position, size)


def _longest(
    candidates: Sequence[_Candidate], text: str, position: int, *, has_line_break: bool
) -> tuple[Rule | None, int]:
    """Return the rule that the parser's lexer would apply at a position, and the end of its
    token.
    """
    chosen, end = None, position
    for pattern, rule in candidates:
        match = pattern.match(text, position)
        if match is None:
            continue
        if rule.first_wins:
            if has_line_break:
                return rule, match.end()
        elif match.end() > end:
            chosen, end = rule, match.end()
    return chosen, end
