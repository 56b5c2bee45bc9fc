"""What must be refused or remarked on a profile's text, before and beside the parser.

Rule 1: pure; the parser alone decides what the text means, this module only what it may not say.
Rule 2: in doubt an include is found too often rather than too rarely: the parser runs with the
rights of the agent and would open any file. Files below /etc/apparmor.d are the host's own and may
include what they like.
"""

import functools
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from agent.core.problems import Problem, bounded

# apparmor_parser's lexer: `include` or `#include` (or `abi`), then <path>, "path" or a bare path.
_INCLUDE = re.compile(
    r"""(?<![\w./@-])(?<!@\{)\#?(?P<word>include|abi)(?P<exists>\s+if\s+exists)?
        (?:\s*(?:<\s*(?P<angle>[^>\n]*)>?|"(?P<quoted>[^"]*)"?)|\s+(?P<bare>[^\s,<"]+))""",
    re.VERBOSE,
)
_VARIABLE_NAME = re.compile(
    r"""(?:^|[{}\s])(?:profile|hat)\s+(?:"[^"]*|[^\s"({]*)@\{"""
    r"""|^\s*"?[^\s"={]*@\{\w+\}[^\s"=]*?"?\s*(?:\s(?:flags\s*=\s*)?\([^)]*\)\s*)?\{\s*$"""
)
_SPECIAL = re.compile(r'[#"\\\[\]]')
_COMMENT = re.compile(r"\s*#(?!include)")
_ASSIGNMENT = re.compile(r"(?m)^[^\S\n]*@\{\w+\}\s*\+?=.*$")  # the lines before are no part of it


# Control characters, and those that turn the direction of a line (Unicode, UAX 9).
_ODD: Final = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\u202a-\\u202e\\u2066-\\u2069]")


def refusals(content: bytes) -> tuple[Problem, ...]:
    """Return why a text may not be given to the parser at all."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"The text is not UTF-8 (byte {error.start})."
        return (Problem(code="not_utf8", where=f"byte {error.start}", what=what, hint=_ENCODING),)
    return bounded(itertools.chain(_odd(text), _includes(text)))


_ENCODING: Final = "Save the file as UTF-8."


def _odd(text: str) -> Iterator[Problem]:
    """Refuse characters at which the parser ends a word, and that a reader does not see."""
    found = _ODD.search(text)
    if found is not None:
        yield Problem(
            code="text_unsafe",
            where=f"line {text.count(chr(10), 0, found.start()) + 1}",
            what=f"The text holds the character {ord(found[0]):#04x}: what a reader sees is not "
            "what the parser reads.",
            hint="Remove it.",
        )


def variable_names(text: str) -> tuple[Problem, ...]:
    """Return the profile names that hold a variable: a pod could not name them."""
    return bounded(
        Problem(
            code="name_variable",
            where=f"line {number}",
            what="A profile's name holds a variable, so the text does not say what a pod names.",
            hint="Write the name out.",
        )
        for number, line in enumerate(_lines(text), 1)
        if "@{" in line and _VARIABLE_NAME.search(line)
    )


def undeclared(text: str, names: Collection[str]) -> tuple[Problem, ...]:
    """Return the compiled names that the text does not write out: made of variables.

    Assignments of variables do not count as writing a name out. Without one in the text a name
    that is not in it comes from an include, where it is written out.
    """
    plain, assigned = _ASSIGNMENT.subn("", without_comments(text))
    if not assigned:
        return ()
    return bounded(
        Problem(
            code="name_variable",
            where=name,
            what="The name does not stand in the text, so the text does not say what a pod names.",
            hint="Write the name out.",
        )
        for name in sorted(names)
        if name.rsplit("//", 1)[-1] not in plain
    )


def line_of(text: str, name: str) -> str:
    """Return `line N` where the text seems to declare a name, else the name: for messages only."""
    for part in dict.fromkeys((name, name.rsplit("//", 1)[-1])):
        declared = re.compile(rf'(?:^|[\s"^]){re.escape(part)}(?:["\s({{]|$)')
        for number, line in enumerate(_lines(text), 1):
            if declared.search(line):
                return f"line {number}"
    return f'"{name}"'


def _includes(text: str) -> Iterator[Problem]:
    bare = without_comments(text)
    place = Place(bare)
    for match in _INCLUDE.finditer(bare):
        angle, path = match["angle"], match["angle"] or match["quoted"] or match["bare"] or ""
        path = path.strip().strip('"')
        if match["word"] == "abi" and angle is None and match["quoted"] is None:
            if not path.startswith(("/", ".")):
                continue  # a word of a path or a name, not a rule
        elif angle is not None and not path.startswith("/") and ".." not in path.split("/"):
            continue
        if path in ("", "if", "{", "}"):
            continue
        if path.startswith("/"):
            why = "is absolute"
        elif ".." in path.split("/"):
            why = "climbs out of its directory"
        else:
            why = "is looked up in the working directory of the parser"
        yield Problem(
            code="include_refused",
            where=place.line(match.start()),
            what=f"The path of this {match['word']} rule {why}.",
            hint="Include only files below /etc/apparmor.d, as in include <abstractions/base>.",
        )


@functools.lru_cache(maxsize=1)
def without_comments(text: str) -> str:
    """Return the text with empty lines in place of what is a comment beyond doubt."""
    return "\n".join(_lines(text))


class Place:
    """Tells the line of places in a text, from its beginning to its end, and counts once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._counted, self._number = 0, 1

    def line(self, position: int) -> str:
        """Return `line N`. position: not before the one that was asked last."""
        self._number += self.text.count("\n", self._counted, position)
        self._counted = position
        return f"line {self._number}"


@functools.lru_cache(maxsize=1)  # one text is looked through for several reasons in a row
def _lines(text: str) -> Sequence[str]:
    """Return every line, without comments where that is beyond doubt.

    A `#` may stand in a quoted, escaped or bracketed word, also of several lines. So only a whole
    line is a comment, and only outside of what might be such a word.
    """
    lines = text.split("\n")
    open_word = False
    for index, line in enumerate(lines):
        if not _SPECIAL.search(line):
            continue
        if not open_word and "#" in line and _COMMENT.match(line):
            lines[index] = ""
            continue
        doubtful = line.count('"') % 2 == 1
        open_word = (
            open_word != doubtful or line.endswith("\\") or line.count("[") > line.count("]")
        )
    return lines
