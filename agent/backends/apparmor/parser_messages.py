"""Selects the parts of apparmor_parser's output that the agent shows, without included text.

The parser quotes words from the file that it reads, which may be a file on the host. A word is
shown only if it is in the text of the key, if it is one of the parser's own words (words in the
program file), or if it is the path of a file in the include directory. The module replaces all
other words. This module performs no I/O; parser_hints.py has the hints for known messages.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor.profile_text import without_comments

REPLACED: Final = "(a word from an included file)"
# The path denotes the standard input of the process. If the parser reads its input from this path,
# its messages name the file to which a line belongs.
INPUT_PATH: Final = "/proc/self/fd/0"
_MAX_CHARACTERS: Final = 600
_MAX_WARNINGS: Final = 8
_MAX_BYTES: Final = 65536
_LINE: Final = re.compile(r"(?: in (?P<file>\S+))? at line (?P<number>\d+)")
_INPUT: Final = re.compile(rf" for {INPUT_PATH}(?: in profile (?P<file>\S+))?(?= at line )")
_SOURCE_OF_WARNING: Final = re.compile(rf" \((?:stdin|{INPUT_PATH})\)(?=:)")
# The errno is removed, because it reveals whether a file exists that the parser may not open
# (parser_yacc.y: abi).
_ERRNO: Final = re.compile(
    r"((?:Could not open|fstat failed for|failed to find features abi) '.*'): [^']*$"
)
# Lines that match this pattern are warnings or the message of an uncaught C++ exception, and never
# contain the reason for an error.
_NOT_A_REASON: Final = re.compile(
    r"(?i)warning|cache read/write disabled|terminate called after throwing|what\(\):"
)
# C++, libc, flex and the parser itself print these messages when an allocation fails.
_NO_MEMORY: Final = re.compile(
    r"(?i)bad_alloc|out of (dynamic )?memory|memory allocation|allocate memory|memory exhausted"
)
# With these warnings, the parser reports that a rule is missing from the policy or is weaker than
# written (apparmor 3.0.8 to 5.0.2).
_WEAKER: Final = re.compile(r"(?i)not enforced|downgrad|not supported|ignor")
# Abstractions contain unix rules for newer kernels, so the warning about a weaker unix rule only
# matters if the rule is in the key's own profile text.
_DOWNGRADED_UNIX: Final = re.compile(r"downgrading extended network unix socket rule")
_PROFILE_OF_WARNING: Final = re.compile(r"(?i)^warning from (?=profile )")
_UNIX_CONDITION: Final = re.compile(r"^[^#]*\bunix\b[^,]*[(=]", re.MULTILINE)
# This dictionary maps a word of a warning to the keyword of the affected rule.
_RULE_KEYWORDS: Final = {
    "unix": "unix",
    "dbus": "dbus",
    "mount": "mount",
    "signal": "signal",
    "ptrace": "ptrace",
    "userns": "userns",
    "mqueue": "mqueue",
    "io_uring": "io_uring",
    "network": "network",
    "flag": "flags",
}
# Messages may contain the names of these variables, because AppArmor's own tunables define them and
# the names are public.
STANDARD_VARIABLES: Final = frozenset(
    {"HOME", "HOMEDIRS", "PROC", "bin", "etc_ro", "etc_rw", "exec_path", "int", "lib", "multiarch"}
    | {"pid", "pids", "profile_name", "run", "securityfs", "apparmorfs", "sys", "tid", "uid"}
)
_STRING: Final = re.compile(rb"[\x20-\x7e\n\t]{4,}")
_CHARACTER: Final = re.compile(r"0x(?:ffffff)?([0-9a-f]{1,2})")
_PUNCTUATION: Final = "'\"(),.:;`"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotableWords:
    """The words that may appear in a message about one profile text."""

    source: bytes
    """The key's own text."""
    words: Collection[str]
    """The parser's fixed words; see words_of_program()."""
    include_dir: str
    """The include directory; messages may contain paths in this directory."""


def words_of_program(program: bytes) -> frozenset[str]:
    """Return every word in the printable strings of a program file."""
    words: set[str] = set()
    for string in _STRING.findall(program):
        words.update(word.strip(_PUNCTUATION) for word in string.decode("ascii").split())
    return frozenset(words)


def is_out_of_memory(stderr: bytes) -> bool:
    """Return whether the first reason that the parser reports is a failed allocation.

    Parser 5.0 reports an undeclared variable and then ends with std::bad_alloc.
    """
    reasons = [line for line in _lines(stderr) if not _is_warning(line)]
    return bool(reasons) and _NO_MEMORY.search(reasons[0]) is not None


def error_message(stderr: bytes, quotable: QuotableWords) -> str:
    """Return the reasons that the parser reports, as one printable line of limited length.

    Warnings of the parser are omitted.
    """
    reasons = [line for line in _lines(stderr) if not _NOT_A_REASON.match(line)]
    shown = dict.fromkeys(_shown(_located(line), quotable) for line in reasons)
    return _bounded("; ".join(shown))


def weaker_rules(stderr: bytes, quotable: QuotableWords) -> tuple[str, ...]:
    """Return the parser's warnings that the policy is weaker than the profile text."""
    source = quotable.source.decode("utf-8", "replace")
    has_unix_condition = _UNIX_CONDITION.search(without_comments(source)) is not None
    warnings = dict.fromkeys(
        _shown(_SOURCE_OF_WARNING.sub("", _PROFILE_OF_WARNING.sub("", line)), quotable)
        for line in _lines(stderr)
        if _WEAKER.search(line) and (has_unix_condition or not _DOWNGRADED_UNIX.search(line))
    )
    return tuple(warnings)[:_MAX_WARNINGS]


def weaker_rule_line(warning: str, source: str) -> str:
    """Return `line N` for the first rule that may have caused a warning, or ""."""
    words = frozenset(re.findall(r"\w+", warning.rpartition(":")[2]))
    keyword = next((_RULE_KEYWORDS[word] for word in _RULE_KEYWORDS if word in words), None)
    if keyword is None:
        return ""
    rule = re.compile(rf"(?:^|[\s{{,]){keyword}(?![\w/.-])")
    for number, line in enumerate(without_comments(source).split("\n"), 1):
        if rule.search(line):
            return f"line {number}"
    return ""


def line_reference(message: str, source: str) -> str:
    """Return `line N` if a message is about a line of the profile text, or "".

    Without INPUT_PATH, the parser does not report which file a line belongs to. The result is "" if
    the line number exceeds the length of the text or if the message quotes an included file,
    because the line then belongs to that file.
    """
    match = _LINE.search(message)
    if match is None or match["file"] or REPLACED in message:
        return ""
    number = match["number"]
    if len(number) > len(str(len(source) + 1)) or int(number) > source.count("\n") + 1:
        return ""
    return f"line {number}"


def _lines(stderr: bytes) -> list[str]:
    lines = [line.strip() for line in stderr[:_MAX_BYTES].decode("utf-8", "replace").splitlines()]
    return [line for line in lines if line]


def _is_warning(line: str) -> bool:
    return line.lower().startswith(("warning", "cache read/write disabled"))


def _located(line: str) -> str:
    """Return a message without the path of the input and the errno; the path of an included file
    stays.
    """
    match = _INPUT.search(line)
    if match is not None:
        file = match["file"] or INPUT_PATH
        place = "" if file == INPUT_PATH else f" in {file}"
        line = f"{line[: match.start()]}{place}{line[match.end() :]}"
    return _ERRNO.sub(r"\1", line)


def _shown(line: str, quotable: QuotableWords) -> str:
    """Return the line with all words from included files replaced."""
    source = quotable.source.decode("utf-8", "replace")
    pieces: list[str] = []
    is_line_number = False
    if len(line) > 2 * _MAX_CHARACTERS:
        line = line[: 2 * _MAX_CHARACTERS].rpartition(" ")[0]  # The last word may be cut off.
    for piece in line.split():
        word = piece.strip(_PUNCTUATION)
        if (is_line_number and word.isdecimal()) or _is_quotable(word, source, quotable):
            pieces.append(piece)
        elif pieces[-1:] != [REPLACED]:
            pieces.append(REPLACED)
        is_line_number = word == "line"
    return _bounded("".join(map(_printable, " ".join(pieces))))


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _is_quotable(word: str, source: str, quotable: QuotableWords) -> bool:
    """Return whether a message may contain a word."""
    # A word that contains only bytes that are not UTF-8 may be shown.
    if not word.strip("\ufffd") or word in quotable.words:
        return True
    if word.removeprefix("@{").removesuffix("}") in STANDARD_VARIABLES:
        return True
    if word.startswith(f"{quotable.include_dir.rstrip('/')}/"):
        return ".." not in word.split("/")
    if len(word) == 1:
        return word in source
    character = _CHARACTER.fullmatch(word)
    if character is not None:
        return int(character[1], 16) in quotable.source
    # A match inside a longer word of the profile text does not count.
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return word in source and re.search(f"{before}{re.escape(word)}{after}", source) is not None
