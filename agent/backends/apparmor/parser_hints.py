"""Contains the hints for the error messages of apparmor_parser 3.0.8 to 5.0.2.

This module performs no I/O. If this module has no hint for a message, diagnostics.py adds a general
hint.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.backends.apparmor.parser_messages import REPLACED, STANDARD_VARIABLES
from agent.backends.apparmor.profile_text import without_comments

_UNDECLARED: Final = re.compile(
    r"(?:reference to variable |find declaration for: |undefined variable )(?:@\{)?(?P<name>\w*)"
)
# apparmor_parser 5.0 declares these variables for each profile with an attachment.
_VARIABLES_OF_ATTACHMENTS: Final = frozenset({"exec_path", "attach_path"})
_GLOBAL_TUNABLES: Final = re.compile(r"#?include\s+(?:if\s+exists\s+)?<tunables/global>")
_MISSING_FILE: Final = re.compile(rf"Could not open (?:'(?P<path>[^']+)'|{re.escape(REPLACED)})")
_HINTS: Final = (
    (
        re.compile(r"conflicting x modifiers"),
        "Two rules give the same path different execute modes (for example ix and px). Keep one.",
    ),
    (
        re.compile(r"previously declared|already defined"),
        "An included file declares this variable. Use += to add values, or another variable.",
    ),
    (
        re.compile(r"Regex grouping error|Unable to parse input line"),
        "Close every {, [ and ( of the pattern, or write a backslash before the character.",
    ),
    (
        re.compile(r"Encoding of mount rule failed"),
        "Remove the source from the mount rule: a rule with make-* options has only a mount point.",
    ),
    (
        re.compile(r"Multiple definitions for profile"),
        "Give each profile its own name, or remove one of the definitions.",
    ),
    (
        re.compile(r"unexpected end of file"),
        "A block is not closed: add the missing }.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingFile:
    """A file that the parser could not open."""

    path: str
    """The path in the include directory; empty if the message does not contain the path, because
    only an included file contains it.
    """

    @property
    def is_abi(self) -> bool:
        """Whether an abi rule names the file, which then contains features."""
        return self.path.startswith("abi/")


def missing_file(message: str) -> MissingFile | None:
    """Return the missing file that caused an error message; None if the message has another
    cause.
    """
    missing = _MISSING_FILE.search(message)
    return None if missing is None else MissingFile(path=missing["path"] or "")


def missing_file_hint(
    missing: MissingFile, key: str, *, include_dir: str, parser_version: str, abis: Sequence[str]
) -> str:
    """Return a hint for a profile text that needs a file which the node does not have.

    Args:
        missing: the file that the parser could not open.
        key: the key of the text.
        include_dir: the include directory of the node.
        parser_version: the version of the node's parser; empty if it is unknown.
        abis: the names of the features files in the include directory.
    """
    version = f" {parser_version}" if parser_version else ""
    node = f"of this node (apparmor_parser{version})"
    if missing.is_abi:
        known = ", ".join(f"abi <abi/{name}>," for name in abis)
        change = (
            f"Replace the rule by one of: {known} Or remove the rule."
            if abis
            else ("Remove the rule.")
        )
        return f"{include_dir} {node} does not contain {missing.path}. {change}"
    command = f"profile-loader render {shlex.quote(key)} --inline --include {include_dir}"
    file = missing.path or "a file that an included file includes"
    return (
        f"{include_dir} {node} does not contain {file}. Put the included rules into the text: run "
        f"`{command} > FILE` on a machine whose {include_dir} contains it. Or install the package "
        "that contains it on the node."
    )


def hint(message: str, source: str) -> str:
    """Return the hint for an error message about a profile text, or an empty string."""
    undeclared = _UNDECLARED.search(message)
    if undeclared is not None:
        return _undeclared_hint(undeclared["name"], without_comments(source))
    return next((step for pattern, step in _HINTS if pattern.search(message)), "")


def _undeclared_hint(name: str, bare: str) -> str:
    """Return a hint for the use of an undeclared variable.

    Args:
        name: the name of the variable; empty if the message does not contain the name.
        bare: the text without its comments.
    """
    if name in _VARIABLES_OF_ATTACHMENTS:
        return (
            f"The parser declares @{{{name}}} only for a profile with an attachment. Declare the "
            f"path of the program in front of the first profile: @{{{name}}} = /usr/bin/NAME"
        )
    is_own = re.search(rf"@\{{{name}\}}", bare) is not None
    if is_own and name not in STANDARD_VARIABLES:
        return f"Assign a value to @{{{name}}} before the first profile."
    if not _GLOBAL_TUNABLES.search(bare):
        return (
            "Begin the text with: include <tunables/global>. This file declares the variables "
            "that the abstractions use."
        )
    return "Assign a value to the variable before the first profile."
