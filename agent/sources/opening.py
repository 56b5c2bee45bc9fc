"""Which source an operator means by a `--source` text."""

import difflib
from pathlib import Path

from agent.core import ports
from agent.sources.directory import Directory
from agent.sources.manifest import Manifest

SCHEMES = ("dir", "manifest")


def open_source(text: str) -> ports.Source:
    """Return the source that `dir:PATH`, `manifest:FILE` or a bare path names.

    A bare path is a manifest if it is a file, or names one by its ending; else a directory. What
    does not exist is a source that is missing when it is read. Raises ValueError, with the
    mistake, for a text that names no source.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        if not rest:
            raise ValueError(f'"{text}": a path must follow "{scheme}:"')
        return Directory(rest) if scheme == "dir" else Manifest(rest)
    if not text:
        raise ValueError("a source must not be empty")
    if colon and "/" not in scheme and not Path(text).exists():
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f'; did you mean "{near[0]}:{rest}"?' if near else ""
        raise ValueError(
            f'"{text}": there is no source "{scheme}:"; use dir:PATH or manifest:FILE{hint}'
        )
    path = Path(text)
    named = path.suffix in (".yaml", ".yml")
    return Manifest(text) if path.is_file() or (named and not path.is_dir()) else Directory(text)
