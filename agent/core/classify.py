"""Determines the profile kind of a key from its file name or from its content.

A file that is not a profile, such as a README, has no kind, and the agent ignores it. This module
has no input or output.
"""

import fnmatch
import re
from pathlib import PurePosixPath
from typing import Final

from agent.core.model import ProfileKind

_PATTERNS: Final = ("*.md", "*.txt", "*.yaml", "*.yml", "*~", "*.bak", "README*", ".*")
_NOT_PROFILES: Final = re.compile("|".join(map(fnmatch.translate, _PATTERNS)))
_APPARMOR: Final = (".profile", ".apparmor", ".aa")


def classify(key: str, content: bytes) -> ProfileKind | None:
    """Return the kind of a key, or None if the key is not a profile.

    The file name extension determines the kind. If the extension is unknown, the kind depends on
    the first character of the content that is neither white space nor a byte order mark.
    """
    name = PurePosixPath(key).name if "/" in key or key == "." else key
    if _NOT_PROFILES.match(name):
        return None
    if name.endswith(".json"):
        return "seccomp"
    if name.endswith(_APPARMOR):
        return "apparmor"
    first = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return "seccomp" if first in (b"{", b"[") else "apparmor"
