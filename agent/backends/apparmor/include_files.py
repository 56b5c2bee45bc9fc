"""Reads the files of include directories for the expansion of a profile text.

The module opens only regular files inside the include directories that the user passes, and does
not follow links that point outside them. include_expansion.py decides which files a profile text
needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.backends.apparmor.include_expansion import IncludedFile, IncludeFileError

# The parser ignores files with these names in an included directory (libapparmor, private.c:
# _aa_is_blacklisted).
_IGNORED_SUFFIXES: Final = (
    ".dpkg-new",
    ".dpkg-old",
    ".dpkg-dist",
    ".dpkg-bak",
    ".dpkg-remove",
    ".pacsave",
    ".pacnew",
    ".rpmnew",
    ".rpmsave",
    ".orig",
    ".rej",
    "~",
)
_COPY: Final = "Replace the link with a copy of the file."


class IncludeDirectories:
    """The files in the given include directories. Implements include_expansion.IncludeFiles."""

    def __init__(self, directories: Sequence[str], *, max_bytes: int) -> None:
        """Create a reader for the given include directories. If several directories contain a name,
        the first of them is used.
        """
        self._directories = tuple(directories)
        self._max_bytes = max_bytes

    def directories(self) -> str:
        """Return the paths of the include directories as text for messages."""
        return " or ".join(self._directories)

    def find(self, name: str) -> Sequence[IncludedFile] | None:
        """Return the files that an include rule with this name adds; None if no include directory
        contains the name.

        Raises IncludeFileError.
        """
        for directory in self._directories:
            path = Path(directory, name)
            try:
                if path.is_dir():
                    return self._files(directory, name)
                if path.exists() or path.is_symlink():
                    return (self._file(directory, name),)
            except OSError as error:
                raise _unreadable(path, error) from error
        return None

    def _files(self, directory: str, name: str) -> Sequence[IncludedFile]:
        """Return the files in a directory.

        The parser puts the files on a stack in the order of their names, so it reads the last file
        first (parser_lex.l: include_dir_cb).
        """
        path = _inside(directory, name)
        entries = sorted((entry.name for entry in path.iterdir()), reverse=True)
        return tuple(
            self._file(directory, f"{name}/{entry}")
            for entry in entries
            if not _is_ignored(entry) and (path / entry).is_file()
        )

    def _file(self, directory: str, name: str) -> IncludedFile:
        shown = Path(directory, name)
        path = _inside(directory, name)
        if not path.is_file():
            raise IncludeFileError(
                f"{shown} is not a regular file", "Replace it with a regular file."
            )
        try:
            with path.open("rb") as file:
                content = file.read(self._max_bytes + 1)
            text = content.decode("utf-8")
        except OSError as error:
            raise _unreadable(shown, error) from error
        except UnicodeDecodeError as error:
            raise IncludeFileError(
                f"{shown} is not UTF-8 (byte {error.start})", "Save the file as UTF-8."
            ) from error
        return IncludedFile(name=name, path=str(shown), text=text)


def _inside(directory: str, name: str) -> Path:
    """Return the path of a name after its symbolic links are resolved. Raises IncludeFileError if
    that path is outside the include directory.
    """
    root, path = Path(directory).resolve(), Path(directory, name).resolve()
    if not path.is_relative_to(root):
        raise IncludeFileError(
            f"{Path(directory, name)} is a link that points outside the include directory", _COPY
        )
    return path


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "README" or name.endswith(_IGNORED_SUFFIXES)


def _unreadable(path: Path, error: OSError) -> IncludeFileError:
    return IncludeFileError(
        f"{path} cannot be read: {error.strerror}", "Make the file readable for this command."
    )
