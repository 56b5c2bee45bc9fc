"""Determines the profile kind of a key from its file name or from its content.

A file that is not a profile, such as a README, has no kind, and the agent ignores it. This module
performs no I/O.
"""

import fnmatch
import re
from pathlib import PurePosixPath
from typing import Final

from agent.core.kind_rules import KIND_RULES
from agent.core.model import ProfileKind

_PATTERNS: Final = ("*.md", "*.txt", "*.yaml", "*.yml", "*~", "*.bak", "README*", ".*")
_NOT_PROFILES: Final = re.compile("|".join(map(fnmatch.translate, _PATTERNS)))
_OTHER_CONTENT: Final = next(
    kind for kind, rules in KIND_RULES.items() if not rules.first_characters
)


def classify(key: str, content: bytes) -> ProfileKind | None:
    """Return the kind of a key, or None if the key is not a profile.

    The file name extension determines the kind. If the extension is unknown, the kind depends on
    the first character of the content that is neither white space nor a byte order mark.
    """
    name = PurePosixPath(key).name if "/" in key or key == "." else key
    if _NOT_PROFILES.match(name):
        return None
    for kind, rules in KIND_RULES.items():
        if name.endswith(rules.extensions):
            return kind
    first = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    kinds = (kind for kind, rules in KIND_RULES.items() if first in rules.first_characters)
    return next(kinds, _OTHER_CONTENT)
