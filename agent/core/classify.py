"""Which kind of profile a key is, by its name, and by its first character where the name is mute.

Rule 1: this module decides; it reads nothing and writes nothing.
Rule 2: what is not a profile is None, never a refused profile: a README does no harm.
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
    """Return the kind of a key, or None where it is not a profile at all.

    The last component of key decides by its ending; any other name is decided by the first
    character that is neither white space nor part of a byte order mark.
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
