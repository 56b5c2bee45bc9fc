"""Reads the version and the revision of the installed package."""

from pathlib import Path
from typing import Final

UNKNOWN_REVISION: Final = "unknown"
_REVISION_FILE: Final = Path(__file__).with_name("revision.txt")
"""This file is written when the image is built. A checkout does not have the file."""


def version() -> str:
    """Return the version of profile-loader."""
    # The import is late, because the imported module needs 2 MiB of memory and most commands do not
    # need it.
    from importlib import metadata

    return metadata.version("profile-loader")


def revision() -> str:
    """Return the commit from which the package was built, or "unknown"."""
    return read_revision(_REVISION_FILE)


def read_revision(path: Path) -> str:
    """Return the commit in a file that the build of the image wrote, or "unknown"."""
    try:
        return path.read_text(encoding="utf-8").strip() or UNKNOWN_REVISION
    except FileNotFoundError:
        return UNKNOWN_REVISION
