"""Shows the progress of a command while it waits for the parser.

If a line repeats the previous line, it only shows that the command is still running. The pause
before such a line doubles each time, up to a minute.
"""

import time
from collections.abc import Callable
from typing import Final

FIRST_PAUSE_SECONDS: Final = 3.0
LONGEST_PAUSE_SECONDS: Final = 60.0


class Progress:
    """Shows how many texts have been compiled, if compiling takes more than a few seconds.

    Args:
        write: writes one line for the user.
        clock: returns the monotonic time in seconds.
    """

    def __init__(
        self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._last = clock()
        self._line = ""
        self._pause = FIRST_PAUSE_SECONDS

    def show(self, finished: int, total: int) -> None:
        """Write a line, unless the previous line was written only a short time ago."""
        line = f"profile-loader: {finished} of {total} profile texts compiled\n"
        if line != self._line:
            self._pause = FIRST_PAUSE_SECONDS
        now = self._clock()
        if now < self._last + self._pause:
            return
        if line == self._line:
            self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause)
        self._line = line
        self._last = now
        self._write(line)
