"""Check a profile's text before the parser reads it.

This module is pure. apparmor_parser alone decides what a text means; the checks here only find what
must not reach the parser (it opens every file that a text includes, with the rights of the agent),
and what would mislead a reader. Files below the include directory belong to the host, and may
include what they like. See lexer.py for how the text is split into tokens.
"""

import functools
import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor import lexer
from agent.backends.apparmor.lexer import Token, TokenKind
from agent.core.findings import Finding, limited

# Control characters, line breaks that only a reader sees, and characters that turn the direction
# of a line (Unicode, UAX 9).
_ODD: Final = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\u202a-\\u202e\\u2066-\\u2069]|\\r(?!\\n)"
)
# Each place at which the parser could begin to read the path of an include or abi rule.
_CANDIDATE: Final = re.compile(r"#include|include(?=[ \t])|abi(?![A-Za-z0-9_])")
# How nearly every such place continues: a harmless path, and nothing else in the line. Only the
# path may be skipped: whatever the parser takes it for, no other token begins inside of it.
_HARMLESS: Final = re.compile(
    r"(?:[ \t]+if[ \t]+exists(?=[ \t]))?[ \t]*(?P<path><(?![/ ])(?![^>\n]*\.\.)[\w./-]+>)[ \t]*,?"
    r"[ \t]*(?:#[^\"\\\n]{0,199})?(?:\r?\n|\Z)",
    re.ASCII,
)
_ALONE: Final = re.compile(r"[ \t]*(?:#[^\"\\\n]{0,199})?(?:\r?\n|\Z)")
_END: Final = re.compile(r"\s*(?:#[^\n]*)?\Z")  # what may follow the last token
_ESCAPE: Final = re.compile(r"\\[0-9xd]")

_LONGEST: Final = 1 << 18  # characters that are split into tokens in every dialect

_ENCODING: Final = "Save the file as UTF-8."


def errors(content: bytes) -> tuple[Finding, ...]:
    """Return why a text may not be given to the parser at all."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"The text is not UTF-8 (byte {error.start})."
        return (
            Finding(code="not_utf8", location=f"byte {error.start}", message=what, hint=_ENCODING),
        )
    return limited(itertools.chain(_odd(text), _refused(text)))


def undecided_includes(content: bytes) -> tuple[Finding, ...]:
    """Return where this module cannot tell what the parser would read of an accepted text.

    A text can be too long to be split into tokens in every dialect. And an included file that ends
    in an assignment without a line break makes the parser read the rest of the including line as
    values of that variable. Such texts are safe only where the parser cannot open files outside of
    the include directory.
    """
    return limited(_undecided(content.decode("utf-8", "replace")))


def _odd(text: str) -> Iterator[Finding]:
    """Refuse characters at which the parser ends a word, and that a reader does not see."""
    found = _ODD.search(text)
    if found is not None:
        yield Finding(
            code="text_unsafe",
            location=f"line {text.count(chr(10), 0, found.start()) + 1}",
            message=f"The text holds the character {ord(found[0]):#04x}: what a reader sees is not "
            "what the parser reads.",
            hint="Remove it.",
        )


def _refused(text: str) -> Iterator[Finding]:
    place = LineCounter(text)
    for start, (word, path) in sorted(_paths(text).refused.items()):
        yield Finding(
            code="include_refused",
            location=place.line(start),
            message=f"The path of this {word} rule {_outside(path)}.",
            hint="Include only files below /etc/apparmor.d, as in include <abstractions/base>.",
        )


def _undecided(text: str) -> Iterator[Finding]:
    if len(text) > _LONGEST and not _is_harmless(text):
        yield Finding(
            code="include_refused",
            location="line 1",
            message=f"The text is longer than {_LONGEST} characters, and not all of its include "
            "and "
            "abi rules are of the usual form.",
            hint="Split the text, and write each include rule in a line of its own.",
        )
    place = LineCounter(text)
    for start in sorted(_paths(text).undecided):
        yield Finding(
            code="include_refused",
            location=place.line(start),
            message="Text follows this include rule in the same line: what the parser reads "
            "depends "
            "on how the included file ends.",
            hint="Begin a new line after the include rule.",
        )


@dataclass(frozen=True, slots=True)
class _Paths:
    """The include and abi rules of a text: refused paths, and undecided rules, by position."""

    refused: Mapping[int, tuple[str, str]]
    undecided: frozenset[int]


@functools.lru_cache(maxsize=1)  # several checks look at the same text in a row
def _paths(text: str) -> _Paths:
    """Return which include and abi rules any generation of the parser could read."""
    refused: dict[int, tuple[str, str]] = {}
    undecided: set[int] = set()
    if len(text) <= _LONGEST and not _is_harmless(text):
        for dialect in lexer.DIALECTS:
            depth = 0
            for token in lexer.tokens(text, dialect):
                depth += (token.kind is TokenKind.OPEN) - (token.kind is TokenKind.CLOSE)
                if token.kind not in (TokenKind.INCLUDE_PATH, TokenKind.ABI_PATH):
                    continue
                path = text[token.start : token.end]
                if _outside(path):
                    word = "abi" if token.kind is TokenKind.ABI_PATH else "include"
                    refused[token.start] = word, path
                elif token.kind is TokenKind.ABI_PATH or depth > 0:
                    continue
                elif not _ALONE.match(text, token.end):
                    undecided.add(token.start)
    return _Paths(refused, frozenset(undecided))


def _is_harmless(text: str) -> bool:
    """Return whether each include and abi rule is one of the usual ones, without reading tokens."""
    position = 0
    while found := _CANDIDATE.search(text, position):
        usual = _HARMLESS.match(text, found.end())
        if usual is None:
            return False
        position = usual.end("path")
    return True


def _outside(path: str) -> str:
    """Return why a path, as it is written, may lead out of the include directory, or nothing."""
    name = path.removeprefix("<").removesuffix(">").strip().strip('"')
    if "\\" in name:
        return "contains a backslash"
    if name.startswith("/"):
        return "is absolute"
    if ".." in name.split("/"):
        return "climbs out of its directory"
    if not path.startswith("<"):
        return "is looked up in the working directory of the parser"
    return ""


def variable_names(text: str) -> tuple[Finding, ...]:
    """Return the profile names that contain a variable: the text does not say what a pod names.

    A name with a numeric escape before a brace counts as well: it can spell a variable.
    """
    if "@" not in text and not _can_spell_variable(text):
        return ()
    starts = [
        token.start
        for token in _names(text)
        if "@{" in (name := text[token.start : token.end]) or _can_spell_variable(name)
    ]
    place = LineCounter(text)
    return limited(
        Finding(
            code="name_variable",
            location=place.line(start),
            message="A profile name contains a variable, so the text does not show which name a "
            "pod "
            "must use.",
            hint="Write the name out.",
        )
        for start in sorted(starts)
    )


def _can_spell_variable(text: str) -> bool:
    """Return whether a brace follows a numeric escape, which may be the escape of `@`."""
    escape = _ESCAPE.search(text)
    return escape is not None and text.find("{", escape.end()) >= 0


def _names(text: str) -> Iterator[Token]:
    """Return the tokens that name a profile, a hat or a child, in their order."""
    depth = 0
    header: Token | None = None  # the first word of what could be the head of a profile
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


@functools.lru_cache(maxsize=1)  # several checks look at the same text in a row
def _dialect(text: str) -> lexer.Dialect:
    """Return the newest dialect in which the whole text can be read, or the newest of all."""
    for dialect in reversed(lexer.DIALECTS):
        (rest,) = deque(lexer.tokens(text, dialect), maxlen=1)
        if _END.match(text, rest.start):
            return dialect
    return lexer.DIALECTS[-1]


def line_of(text: str, name: str) -> str:
    """Return `line N` where the text seems to declare a name, else the name: for messages only."""
    for part in dict.fromkeys((name, name.rsplit("//", 1)[-1])):
        declared = re.compile(rf'(?:^|[\s"^]){re.escape(part)}(?:["\s({{]|$)')
        for number, line in enumerate(without_comments(text).split("\n"), 1):
            if declared.search(line):
                return f"line {number}"
    return f'"{name}"'


@functools.lru_cache(maxsize=1)  # several checks look at the same text in a row
def without_comments(text: str) -> str:
    """Return the text without its comments, with the same line breaks."""
    if "#" not in text:
        return text
    pieces: list[str] = []
    end = 0
    for token in lexer.tokens(text, _dialect(text)):
        if token.kind is TokenKind.COMMENT:
            pieces += text[end : token.start], "\n" * text.count("\n", token.start, token.end)
            end = token.end
        elif token.kind is TokenKind.REST:
            pieces.append(text[end : token.start if _END.match(text, token.start) else None])
    return "".join(pieces)


class LineCounter:
    """Reports the line numbers of places in a text, from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._counted, self._number = 0, 1

    def line(self, position: int) -> str:
        """Return `line N`. position: not before the one of the previous call."""
        self._number += self.text.count("\n", self._counted, position)
        self._counted = position
        return f"line {self._number}"
