"""Rejects characters that give a profile text a meaning other than the visible one.

This module performs no I/O. The module rejects some characters everywhere in a text: control
characters, line breaks that the parser does not know, and characters that change the direction of a
line. Three other types of characters are rejected only outside comments: spaces that the parser
does not treat as spaces, characters without a visible form, and typographic quotes around a word.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from agent.backends.apparmor import profile_text
from agent.core import common_findings
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

BYTE_ORDER_MARK: Final = "\ufeff"
# These characters control the direction of text (Unicode Standard Annex 9). Editors break lines at
# U+0085, U+2028 and U+2029.
_REJECTED_EVERYWHERE: Final = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
    "|\\r(?!\\n)"
)
_NOT_ASCII: Final = re.compile("[^\\x00-\\x7f]")
# Letters, symbols and marks that have no visible form (Unicode: Default_Ignorable_Code_Point, and
# the empty Braille pattern). str.isprintable() covers the other characters without a visible form.
_INVISIBLE: Final = re.compile(
    "[\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u2800\\u3164\\ufe00-\\ufe0f\\uffa0"
    "\\U000e0100-\\U000e01ef]"
)
_QUOTED_OR_TYPOGRAPHIC: Final = re.compile(
    r'"(?:[^"\\\n]++|\\.)*+"|(?:^|(?<=[\s,(){}=]))(?P<quote>[\u2018-\u201f\u00ab\u00bb])',
    re.MULTILINE,
)
_NAMES_OF_CONTROLS: Final = {"\0": "NULL", "\r": "CARRIAGE RETURN", "\x85": "NEXT LINE"}


def errors(text: str) -> Iterator[Finding]:
    """Yield one error for each rejected character, at its first occurrence in the text."""
    if text.startswith(BYTE_ORDER_MARK):
        yield common_findings.not_utf8(
            "line 1",
            "The text begins with a byte order mark, which apparmor_parser does not accept",
        )
        text = text[1:]
    characters = set()
    counter = profile_text.LineCounter(text)
    for match in _REJECTED_EVERYWHERE.finditer(text):
        if match[0] not in characters:
            characters.add(match[0])
            yield _text_unsafe(match[0], counter.line(match.start()))
    if text.isascii():
        return
    bare = profile_text.readable_part(text)
    counter = profile_text.LineCounter(bare)
    for position in sorted(itertools.chain(_unseen(bare), _typographic_quotes(bare))):
        character = bare[position]
        if character not in characters:
            characters.add(character)
            yield _text_unsafe(character, counter.line(position))


def _unseen(bare: str) -> Iterator[int]:
    """Yield the positions of characters that are invisible or that look like a space."""
    for match in _NOT_ASCII.finditer(bare):
        if not match[0].isprintable() or _INVISIBLE.match(match[0]):
            yield match.start()


def _typographic_quotes(bare: str) -> Iterator[int]:
    """Yield the positions of typographic quotes that begin a word."""
    for match in _QUOTED_OR_TYPOGRAPHIC.finditer(bare):
        if match["quote"] is not None:
            yield match.start()


def _text_unsafe(character: str, location: str) -> Finding:
    """Return the error for one character."""
    name = unicodedata.name(character, _NAMES_OF_CONTROLS.get(character, "without a name"))
    if unicodedata.category(character) in ("Pi", "Pf", "Ps"):
        consequence = "The parser accepts only plain quotes and reads this one as part of the word."
        hint = 'Type the plain quote " instead.'
    elif unicodedata.category(character) == "Zs":
        consequence = "The character looks like a space, and the parser reads it as part of a word."
        hint = "Type an ordinary space instead."
    elif character in "\r\x0b\x0c\x85\u2028\u2029":
        consequence = "Editors show a new line there, and the parser continues the same line."
        hint = "End the line with a line feed (U+000A), or remove the character."
    else:
        consequence = "The character is not visible, so the parser reads other rules than you see."
        hint = "Remove it."
    return Finding(
        code=FindingCode.TEXT_UNSAFE,
        location=location,
        message=f"The text contains the character U+{ord(character):04X} {name}. {consequence}",
        hint=hint,
    )
