"""Writes to the standard streams of a command.

agent.__main__ decides what a command prints. agent.reporting.logs writes the log.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from agent.core.printable import printable


class OutputError(Exception):
    """Raised if standard output cannot be written."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """The cause of the error; empty if the process that reads the pipe has closed it."""


def warn(lines: Iterable[str]) -> None:
    """Write lines to standard error, without control characters."""
    write_errors(f"profile-loader: {printable(line)}" for line in lines)


def write_errors(lines: Iterable[str]) -> None:
    """Write lines to standard error. On a terminal, words are not broken at the end of a line."""
    is_terminal = sys.stderr.isatty()
    sys.stderr.writelines(f"{_wrapped(line) if is_terminal else line}\n" for line in lines)


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line,
        shutil.get_terminal_size().columns,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def write(text: str) -> None:
    """Write a text to standard output, and flush it.

    Raises:
        OutputError: standard output cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputError("") from error
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


def open_closed() -> None:
    """Open /dev/null for each standard stream that the caller closed.

    Without this function, the next file that is opened would get the descriptor of the closed
    stream, and would receive its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            mode = "r" if number == 0 else "w"
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - stays open
            setattr(sys, name, stream)
