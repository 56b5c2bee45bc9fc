"""Uses the lexer to find comments, declared names and line numbers in a profile text.

This module performs no I/O, and its results only affect messages and warnings. The module therefore
uses only the newest version of the lexer that reads the whole profile text. The module
source_checks.py, which protects the host, considers every version of the parser.
"""

import functools
import re
from collections import deque
from collections.abc import Iterator
from typing import Final

from agent.backends.apparmor import lexer
from agent.backends.apparmor.lexer import Token
from agent.backends.apparmor.lexer_dialects import DIALECTS
from agent.backends.apparmor.lexer_rules import Dialect, TokenKind

# After the last token, the pattern allows white space and one comment.
_END: Final = re.compile(r"[ \t\r\n]*(?:#[^\n]*)?\Z")


class LineCounter:
    """Converts positions in a profile text to line numbers; positions must not decrease."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._position, self._line = 0, 1

    def line(self, position: int) -> str:
        """Return `line N` for a position."""
        self._line += self.text.count("\n", self._position, position)
        self._position = position
        return f"line {self._line}"


# The result is cached, because several checks examine the same profile text.
@functools.lru_cache(maxsize=1)
def _dialect(text: str) -> Dialect:
    """Return the newest dialect that reads the whole profile text, or the newest dialect if none
    reads it completely.
    """
    for dialect in reversed(DIALECTS):
        (rest,) = deque(lexer.tokens(text, dialect), maxlen=1)
        if _END.match(text, rest.start):
            return dialect
    return DIALECTS[-1]


# The result is cached, because several checks examine the same profile text.
@functools.lru_cache(maxsize=1)
def without_comments(text: str) -> str:
    """Return the profile text without its comments, with the same line breaks.

    The part that the lexer cannot read is returned unchanged, including its comments.
    """
    readable, rest = _split(text)
    return readable + rest


def readable_part(text: str) -> str:
    """Return the profile text without its comments, up to the first line that the lexer cannot
    read.
    """
    readable, rest = _split(text)
    return readable + rest.partition("\n")[0]


def _split(text: str) -> tuple[str, str]:
    """Return two parts of a profile text: the part that the lexer can read, without comments, and
    the rest.
    """
    if "#" not in text:
        return text, ""
    pieces: list[str] = []
    end = 0
    for token in lexer.tokens(text, _dialect(text)):
        if token.kind is TokenKind.COMMENT:
            pieces += text[end : token.start], "\n" * text.count("\n", token.start, token.end)
            end = token.end
        elif token.kind is TokenKind.REST:
            pieces.append(text[end : token.start])
            end = token.start
    return "".join(pieces), "" if _END.match(text, end) else text[end:]


def name_tokens(text: str) -> Iterator[Token]:
    """Yield the tokens that declare a profile, a hat or a child profile, in the order of the
    profile text.
    """
    depth = 0
    header: Token | None = None  # A rule that begins with this word may declare a profile.
    for token in lexer.tokens(text, _dialect(text)):
        match token.kind:
            case TokenKind.NAME:
                yield token
                header = header or token
            case TokenKind.LABEL if depth <= 0:
                header = header or token
            case TokenKind.OPEN:
                if header is not None and header.kind is TokenKind.LABEL:
                    yield header
                depth, header = depth + 1, None
            case TokenKind.CLOSE:
                depth, header = depth - 1, None
            case TokenKind.ASSIGN | TokenKind.INCLUDE_PATH | TokenKind.ABI_PATH | TokenKind.END:
                header = None
            case TokenKind.COMMENT | TokenKind.LABEL | TokenKind.OTHER | TokenKind.REST:
                pass


def declaration_line(text: str, name: str) -> str:
    """Return the line (`line N`) that probably declares a profile, or else the profile name.

    Only messages use this line, because the search for the name may find another rule.
    """
    for part in dict.fromkeys((name, name.rsplit("//", 1)[-1])):
        declaration = re.compile(rf'(?:^|[\s"^]){re.escape(part)}(?:["\s({{]|$)')
        for number, line in enumerate(without_comments(text).split("\n"), 1):
            if declaration.search(line):
                return f"line {number}"
    return f'"{name}"'
