"""Replaces the include rules of a profile text with the text of the included files.

The result compiles to the same policy as the original text, even on a node without the include
files. Comments in the result show the file from which each part comes. A profile text that versions
of the parser read in different ways is not expanded. This module performs no I/O; include_files.py
reads the included files, and include_rules.py finds the rules of a profile text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agent.backends.apparmor import include_rules
from agent.backends.apparmor.include_rules import RuleKind, TextRule
from agent.backends.apparmor.source_checks import outside_reason

# The parser limits the depth of includes to 100 (parser_include.c: MAX_NEST_LEVEL).
_MAX_DEPTH: Final = 50
_REST_OF_LINE_BLANK: Final = re.compile(r"[ \t]*(?:\r?\n|\Z)")


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a line in an expanded text."""

    file: str
    """The path of the included file in the include directory; empty for the text itself."""
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}".lstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class IncludedFile:
    """One file that an include rule adds to a profile text."""

    name: str
    """The path in the include directory."""
    path: str
    """The path on this machine, for comments."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """A profile text without include rules."""

    text: str
    origins: tuple[Origin, ...]
    """The origin of each line."""


class IncludeFileError(Exception):
    """Raised if an included file exists but cannot be used."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint
        """The next step."""


class ExpansionError(Exception):
    """Raised if a profile text cannot be expanded."""

    def __init__(self, reason: str, *, origin: Origin, hint: str) -> None:
        super().__init__(reason)
        self.origin = origin
        """The location of the rule that cannot be expanded."""
        self.hint = hint
        """The next step."""


class IncludeFiles(Protocol):
    """The files that `include` rules can add to a profile text."""

    def find(self, name: str) -> Sequence[IncludedFile] | None:
        """Return the files that an include rule with this name adds, in the order in which the
        parser reads them.

        If the name is that of a directory, the include rule adds every file in the directory. If
        neither a file nor a directory has this name, the result is None. Raises IncludeFileError.
        """

    def directories(self) -> str:
        """Return the paths of the include directories as text for messages."""


def expand(text: str, files: IncludeFiles, *, max_characters: int) -> Expanded:
    """Replace every include rule of a profile text. Raises ExpansionError."""
    expansion = _Expansion(files, max_characters)
    expansion.add_text(text, "", 0)
    return expansion.result()


class _Expansion:
    """Builds the expanded form of one profile text, part by part."""

    def __init__(self, files: IncludeFiles, max_characters: int) -> None:
        self._files = files
        self._space = max_characters
        """The number of characters that can be added before the limit is reached."""

        self._pieces: list[tuple[str, Origin]] = []
        self._has_abi_rule = False
        self._included: list[set[str]] = [set()]
        """The names that each open profile has included. The parser includes a name once per
        profile (parser_yacc.y: profile_base).
        """

    def result(self) -> Expanded:
        """Return the expanded text."""
        origins: list[Origin] = []
        is_line_begun = False
        for piece, origin in self._pieces:
            lines = piece.split("\n")
            begun = [Origin(origin.file, origin.line + index) for index in range(len(lines))]
            if is_line_begun:
                del begun[0]
            if not lines[-1]:
                begun = begun[: len(begun) - 1]
            is_line_begun = bool(lines[-1]) or (is_line_begun and len(lines) == 1)
            origins += begun
        return Expanded(text="".join(piece for piece, _ in self._pieces), origins=tuple(origins))

    def add_text(self, text: str, file: str, depth: int) -> None:
        """Add a profile text or an included file, with its include rules expanded."""
        # The list records for each open block of this text whether the block is a profile.
        blocks: list[bool] = []
        position, line = 0, 1
        for rule in self._rules(text, file):
            origin = Origin(file, line + text.count("\n", position, rule.start))
            match rule.kind:
                case RuleKind.OPEN_PROFILE | RuleKind.OPEN_BLOCK:
                    blocks.append(rule.kind is RuleKind.OPEN_PROFILE)
                    self._included += [set()] * blocks[-1]
                case RuleKind.CLOSE_BLOCK:
                    self._close_block(blocks, origin)
                case RuleKind.INCLUDE | RuleKind.INCLUDE_IF_EXISTS:
                    self._add(text[position : rule.start], Origin(file, line))
                    self._add_include(rule, origin, depth)
                    line += text.count("\n", position, rule.end)
                    position = self._end_line(text, rule.end, origin)
                case RuleKind.ABI:
                    if self._has_abi_rule:
                        self._add(text[position : rule.start], Origin(file, line))
                        self._add(f"# omitted, because only the first abi applies: {rule}", origin)
                        line += text.count("\n", position, rule.end)
                        position = self._end_line(text, rule.end, origin)
                    self._has_abi_rule = True
        if file and blocks:
            raise _unbalanced(Origin(file, line))
        self._add(text[position:], Origin(file, line))

    def _rules(self, text: str, file: str) -> Sequence[TextRule]:
        try:
            return include_rules.rules(text)
        except include_rules.AmbiguousTextError as error:
            raise ExpansionError(
                str(error),
                origin=Origin(file, error.line),
                hint="Correct the syntax. Write each rule on its own line, with line feeds as line "
                "breaks.",
            ) from error

    def _close_block(self, blocks: list[bool], origin: Origin) -> None:
        if blocks:
            if blocks.pop():
                self._included.pop()
        elif origin.file:
            raise _unbalanced(origin)

    def _end_line(self, text: str, position: int, origin: Origin) -> int:
        """End the line of a comment that replaces a rule, and return the position after the
        rule.
        """
        if not _REST_OF_LINE_BLANK.match(text, position):
            self._add("\n", origin)
        return position

    def _add_include(self, rule: TextRule, origin: Origin, depth: int) -> None:
        """Add the files of an include rule, or add a comment if the rule includes nothing."""
        reason = outside_reason(rule.path)
        if reason or not rule.name.isprintable():
            raise ExpansionError(
                f"the path {reason or 'contains a character that cannot be printed'}",
                origin=origin,
                hint="Include only files of the include directory, for example: "
                "include <abstractions/base>",
            )
        if depth >= _MAX_DEPTH:
            raise ExpansionError(
                f"the include rules are nested more than {_MAX_DEPTH} levels deep",
                origin=origin,
                hint="Remove the include rule that leads back to its own file.",
            )
        if rule.name in self._included[-1]:
            self._add(f"# omitted, because it was included before: {rule}", origin)
            return
        files = self._found(rule, origin)
        if files is not None:
            self._included[-1].add(rule.name)
        self._add(f"# begin {rule}\n", origin)
        for file in self._new_files(files or (), rule.name):
            self._add(f"# file {_shown(file.path)}\n", origin)
            ending = "" if file.text.endswith("\n") else "\n"
            self.add_text(file.text + ending, file.name, depth + 1)
        if not files:
            absence = "does not exist" if files is None else "is an empty directory"
            self._add(f"# {rule.name} {absence}\n", origin)
        self._add(f"# end {rule}", origin)

    def _new_files(self, files: Sequence[IncludedFile], name: str) -> list[IncludedFile]:
        """Return the files that the open profile has not included yet, and record all of them.

        The parser records all files of a directory before it reads the first of them.
        """
        included = self._included[-1]
        new = [file for file in files if file.name == name or file.name not in included]
        included.update(file.name for file in new)
        return new

    def _found(self, rule: TextRule, origin: Origin) -> Sequence[IncludedFile] | None:
        try:
            files = self._files.find(rule.name)
        except IncludeFileError as error:
            raise ExpansionError(str(error), origin=origin, hint=error.hint) from error
        if files is None and rule.kind is RuleKind.INCLUDE:
            raise ExpansionError(
                f"{self._files.directories()} does not contain {rule.name}",
                origin=origin,
                hint="Pass a directory that contains the file with another --include.",
            )
        return files

    def _add(self, piece: str, origin: Origin) -> None:
        """Add a part of the result, and record the origin of its first line."""
        self._space -= len(piece)
        if self._space < 0:
            raise ExpansionError(
                "the expanded text is longer than a key may be",
                origin=origin,
                hint="Include fewer files, or split the profile.",
            )
        if piece:
            self._pieces.append((piece, origin))


def _unbalanced(origin: Origin) -> ExpansionError:
    return ExpansionError(
        "the file opens or closes a block that another file closes or opens",
        origin=origin,
        hint="Write each block completely in one file.",
    )


def _shown(path: str) -> str:
    """Return a path without the characters that would end the line of a comment."""
    return path if path.isprintable() else ascii(path)
