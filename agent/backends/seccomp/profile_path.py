"""Decides whether a pod can reference the path of a seccomp profile."""

import re
from typing import Final

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import KeyId

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# The limit for a part of a path, in bytes. The name of the temporary file is longer than the part,
# and must not exceed 255 bytes.
_LONGEST_SEGMENT: Final = 200
_LONGEST_PATH: Final = 1024


def error(id_: KeyId, path: str) -> Finding | None:
    """Return the error about a path that no pod can reference, or None for any other path."""
    problem = _problem(path)
    if problem is None:
        return None
    message, hint = problem
    return Finding(code=FindingCode.PATH_UNSAFE, location=id_.key, message=message, hint=hint)


def _problem(path: str) -> tuple[str, str] | None:
    """Return the first problem with a path and the next step for the user, or None if the path has
    no problem.
    """
    if len(path) > _LONGEST_PATH:
        return f"The path has more than {_LONGEST_PATH} bytes.", "Choose a shorter path."
    for segment in path.split("/"):
        shown = ascii(segment)[:80]
        if len(segment) > _LONGEST_SEGMENT:
            message = f"{shown} is longer than {_LONGEST_SEGMENT} bytes, the limit for a file name."
            return message, "Choose a shorter name."
        if not _SEGMENT.fullmatch(segment):
            message = f"{shown} cannot be a part of a seccomp profile's path."
            return message, (
                "Rename the key: use letters, digits, dots, underscores and hyphens, and no dot at "
                "the beginning of a part."
            )
        if ".." in segment:
            message = "The API server rejects a localhostProfile with two dots in a row."
            return message, "Rename the key: replace the two dots with one."
    return None
