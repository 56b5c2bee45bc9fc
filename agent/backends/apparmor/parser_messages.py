"""Choose what of apparmor_parser's output is shown, and never quote an included file.

The parser quotes words of the file that it reads at that moment, which may be a file of the host.
A word is shown only if it is in the key's own text, if it is one of the parser's fixed words (they
are in the program itself), or if it is the path of a file below the include directory. All others
are replaced. This module is pure.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

REPLACED: Final = "(a word of an included file)"
_MOST_CHARACTERS: Final = 600
_MOST_NOTES: Final = 8
_MOST_BYTES: Final = 65536
_LINE: Final = re.compile(r" at line (\d+)")
# The errno would tell whether a file exists that the parser may not open (parser_yacc.y: abi).
_ERRNO: Final = re.compile(
    r"((?:Could not open|fstat failed for|failed to find features abi) '.*'): [^']*$"
)
_STRING: Final = re.compile(rb"[\x20-\x7e\n\t]{4,}")
_CHARACTER: Final = re.compile(r"0x(?:ffffff)?([0-9a-f]{1,2})")
_PUNCTUATION: Final = "'\"(),.:;`"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotableWords:
    """What may be shown of a message about one text."""

    source: bytes
    """The key's own text."""
    words: Collection[str]
    """The parser's fixed words, see words()."""
    include_dir: str


def words_of_program(program: bytes) -> frozenset[str]:
    """Return every word of the printable strings of a program."""
    found: set[str] = set()
    for string in _STRING.findall(program):
        found.update(word.strip(_PUNCTUATION) for word in string.decode("ascii").split())
    return frozenset(found)


def error_message(stderr: bytes, known: QuotableWords) -> str:
    """Return the parser's first error: bounded, printable, valid UTF-8."""
    lines = _lines(stderr)
    chosen = next((line for line in lines if "error" in line.lower()), "")
    if not chosen:
        chosen = next((line for line in lines if not line.lower().startswith("warning")), "")
    return _shown(_ERRNO.sub(r"\1", chosen), known)


def omitted_rules(stderr: bytes, known: QuotableWords) -> tuple[str, ...]:
    """Return the parser's reports of rules that it left out: the kernel does not mediate them."""
    found = dict.fromkeys(_shown(line, known) for line in _lines(stderr) if "not enforced" in line)
    return tuple(found)[:_MOST_NOTES]


def line_reference(shown: str, source: str) -> str:
    """Return `line N` of the text where a message names one that the text has, else nothing.

    The parser reads the text on its standard input and then names no files: a line may be one of an
    included file. It is one if the text does not have so many, or if the message quotes that file.
    """
    found = _LINE.search(shown)
    if found is None or REPLACED in shown or len(found[1]) > len(str(len(source) + 1)):
        return ""
    return f"line {found[1]}" if int(found[1]) <= source.count("\n") + 1 else ""


def _lines(stderr: bytes) -> list[str]:
    lines = [line.strip() for line in stderr[:_MOST_BYTES].decode("utf-8", "replace").splitlines()]
    return [line for line in lines if line]


def _shown(line: str, known: QuotableWords) -> str:
    """Return a line with each word replaced that is neither the parser's nor the key's."""
    source = known.source.decode("utf-8", "replace")
    pieces: list[str] = []
    is_line_number = False
    if len(line) > 2 * _MOST_CHARACTERS:
        line = line[: 2 * _MOST_CHARACTERS].rpartition(" ")[0]  # the last word is not whole
    for piece in line.split():
        word = piece.strip(_PUNCTUATION)
        if (is_line_number and word.isdecimal()) or _is_known(word, source, known):
            pieces.append(piece)
        elif pieces[-1:] != [REPLACED]:
            pieces.append(REPLACED)
        is_line_number = word == "line"
    text = "".join(map(_printable, " ".join(pieces)))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _is_known(word: str, source: str, known: QuotableWords) -> bool:
    """Return whether a word may be shown."""
    if not word.strip("\ufffd") or word in known.words:  # nothing but bytes that are not UTF-8
        return True
    if word.startswith(f"{known.include_dir.rstrip('/')}/"):
        return ".." not in word.split("/")
    if len(word) == 1:
        return word in source
    character = _CHARACTER.fullmatch(word)
    if character is not None:
        return int(character[1], 16) in known.source
    # A part of a longer word is not the same word.
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return word in source and re.search(f"{before}{re.escape(word)}{after}", source) is not None
