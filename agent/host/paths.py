"""Paths of the host, resolved below a root directory."""

import errno
import os
from pathlib import Path, PurePosixPath
from typing import Final

_LINK_LIMIT: Final = 40  # the limit of the kernel: path_resolution(7)


def resolve(root: Path, path: str | PurePosixPath) -> Path:
    """Return the path on this machine of an absolute path below a root.

    Links are resolved as the host itself resolves them: an absolute target starts again at the
    root, and `..` does not lead out of it. A link in the last component is not resolved. Raises
    OSError (ELOOP).
    """
    remaining = [part for part in reversed(PurePosixPath(path).parts) if part != "/"]
    resolved: list[str] = []
    links = 0
    while len(remaining) > 1:
        part = remaining.pop()
        if part == "..":
            resolved = resolved[:-1]
            continue
        try:
            target = root.joinpath(*resolved, part).readlink()
        except OSError:  # not a link, or missing: opening the path reports the error
            resolved.append(part)
            continue
        links += 1
        if links > _LINK_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        if target.is_absolute():
            resolved = []
        remaining += [step for step in reversed(target.parts) if step != "/"]
    return root.joinpath(*resolved, *remaining)
