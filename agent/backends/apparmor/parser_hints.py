"""The hints for error messages of apparmor_parser 3.0.8 to 5.0.2.

This module is pure. If this module has no hint for a message, diagnostics.py adds a general hint.
"""

import re
from typing import Final

from agent.backends.apparmor.parser_messages import STANDARD_VARIABLES

_UNDECLARED: Final = re.compile(
    r"(?:reference to variable |find declaration for: |undefined variable )(?:@\{)?(?P<name>\w*)"
)
_GLOBAL_TUNABLES: Final = re.compile(r"#?include\s+(?:if\s+exists\s+)?<tunables/global>")
_MISSING_INCLUDE: Final = re.compile(r"Could not open '([^']+)'")
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


def hint(message: str, source: str, include_dir: str) -> str:
    """Return the hint for an error message about a text, or ""."""
    undeclared = _UNDECLARED.search(message)
    if undeclared is not None:
        is_own = re.search(rf"@\{{{undeclared['name']}\}}", source) is not None
        if is_own and undeclared["name"] not in STANDARD_VARIABLES:
            return f"Assign a value to @{{{undeclared['name']}}} before the first profile."
        if not _GLOBAL_TUNABLES.search(source):
            return (
                "Begin the text with: include <tunables/global>. It declares the variables that "
                "the abstractions use."
            )
        return "Assign a value to the variable before the first profile."
    missing = _MISSING_INCLUDE.search(message)
    if missing is not None:
        return (
            f"The node has no file {missing[1]} in {include_dir}. Install the package that "
            "contains it, or copy its rules into the text."
        )
    return next((step for pattern, step in _HINTS if pattern.search(message)), "")
