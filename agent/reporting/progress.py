"""Shows the progress of a command that checks, compiles or installs many profiles.

On a terminal, the module rewrites one line. Without a terminal, the module writes a line every 10
seconds, so that the log of a CI job shows that the command is still running.
"""

import shutil
from collections.abc import Callable, Mapping
from typing import Final, Self, TextIO

SHORT_PAUSE_SECONDS: Final = 0.5
"""The time before the first line on a terminal, and the minimum time between two updates."""

LONG_PAUSE_SECONDS: Final = 10.0
"""The corresponding times if standard error is not a terminal."""

_ERASE_LINE: Final = "\r\x1b[K"  # ECMA-48, 8.3.41
_SECONDS_PER_MINUTE: Final = 60


class Progress:
    """Shows the finished part of the current work, the rate of the work, and the estimated
    remaining time.

    The context manager removes the line from the terminal at its end.
    """

    def __init__(
        self,
        stream: TextIO,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float],
        quiet: bool = False,
    ) -> None:
        """Create the object, and start to measure the time.

        Args:
            stream: the stream to write to, usually standard error.
            environ: the environment. With TERM=dumb, the progress is written as on a stream that is
                not a terminal.
            clock: returns monotonic seconds.
            quiet: whether to write nothing.
        """
        self._stream = stream
        self._is_live = stream.isatty() and environ.get("TERM", "dumb") != "dumb"
        self._quiet = quiet
        self._clock = clock
        self._work = ""
        self._began = clock()
        self._pause = SHORT_PAUSE_SECONDS if self._is_live else LONG_PAUSE_SECONDS
        self._next = self._began + self._pause
        self._has_line = False

    def __enter__(self) -> Self:
        """Return the object itself, for a `with` statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the progress line from the terminal."""
        if self._has_line:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()

    def show(self, work: str, finished: int, total: int) -> None:
        """Write the progress, unless it was written a short time ago.

        Args:
            work: the kind of work. The rate is measured from the start of the current kind of work.
            finished: the number of finished parts.
            total: the total number of parts.
        """
        now = self._clock()
        if work != self._work:
            self._work, self._began = work, now
        if self._quiet or now < self._next:
            return
        self._next = now + self._pause
        text = f"{finished} of {total} {work}"
        details = _rate(finished, total, now - self._began)
        if not self._is_live:
            self._stream.write(f"profile-loader: {text}{details}\n")
            return
        width = shutil.get_terminal_size((80, 24)).columns - 1
        self._stream.write(f"{_ERASE_LINE}{f'{text}{details}'[:width]}")
        self._stream.flush()
        self._has_line = True


def _rate(finished: int, total: int, seconds: float) -> str:
    """Return the rate and an estimate of the remaining time; empty if nothing is finished yet."""
    if not finished or seconds <= 0:
        return ""
    rate = finished / seconds
    return f", {rate:.3g}/s, about {_duration((total - finished) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), _SECONDS_PER_MINUTE)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
