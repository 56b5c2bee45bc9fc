"""Tests of the progress of a command that checks, compiles or installs many profiles."""

import io

import pytest

from agent.reporting.progress import Progress


class Terminal(io.StringIO):
    """A stream that counts as a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def output(
    stream: io.StringIO,
    counts: range | list[int],
    *,
    term: str = "xterm",
    quiet: bool = False,
    work: str = "texts",
) -> str:
    """Return the output of a command that finishes the given counts of 100 parts, one count per
    second.
    """
    clock = [0]
    with Progress(stream, {"TERM": term}, quiet=quiet, clock=lambda: clock[0]) as progress:
        for finished in counts:
            progress.show(work, finished, 100)
            clock[0] += 1
    return stream.getvalue()


def test_a_command_that_ends_soon_shows_no_progress() -> None:
    """Without a terminal, a command shows no progress in its first ten seconds."""
    assert output(io.StringIO(), range(10)) == ""


@pytest.mark.parametrize(
    ("stream", "term"), [(io.StringIO, "xterm"), (Terminal, "dumb")], ids=["pipe", "dumb terminal"]
)
def test_a_line_is_written_every_ten_seconds(stream: type[io.StringIO], term: str) -> None:
    """Without a terminal, the command writes a line every ten seconds. A line contains the counts,
    the rate and the remaining time.
    """
    assert output(stream(), range(0, 60, 2), term=term).splitlines() == [
        "profile-loader: 20 of 100 texts, 2/s, about 40 s left",
        "profile-loader: 40 of 100 texts, 2/s, about 30 s left",
    ]


def test_the_remaining_time_is_unknown_at_first() -> None:
    """The remaining time is unknown until the first part is finished."""
    assert output(io.StringIO(), [0] * 11) == "profile-loader: 0 of 100 texts\n"


def test_a_long_time_is_shown_in_minutes() -> None:
    """A remaining time of hundreds of seconds is shown in minutes."""
    counts = [0] * 10 + [1]
    expected = "profile-loader: 1 of 100 texts, 0.1/s, about 16 min 30 s left\n"
    assert output(io.StringIO(), counts) == expected


def test_a_terminal_shows_one_line_that_is_rewritten_and_finally_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a terminal, one line is rewritten and finally removed. The line fits the terminal, because
    a wrapped line cannot be removed.
    """
    monkeypatch.setenv("COLUMNS", "20")
    written = output(Terminal(), range(3)).split("\r\x1b[K")
    assert written == ["", "1 of 100 texts, 1/s", "2 of 100 texts, 1/s", ""]


def test_the_rate_is_measured_for_each_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is measured separately for each type of work, so that fast checks do not affect the
    estimate for slow installations.
    """
    monkeypatch.setenv("COLUMNS", "80")
    clock = [0]
    stream = Terminal()
    progress = Progress(stream, {"TERM": "xterm"}, clock=lambda: clock[0])
    for work, finished in [("checks", 0), ("checks", 50), ("actions", 0), ("actions", 1)]:
        progress.show(work, finished, 100)
        clock[0] += 1
    assert stream.getvalue().split("\r\x1b[K")[1:] == [
        "50 of 100 checks, 50/s, about 1 s left",
        "0 of 100 actions",
        "1 of 100 actions, 1/s, about 1 min 39 s left",
    ]


def test_a_quiet_command_shows_no_progress() -> None:
    """With --quiet, a command shows no progress."""
    assert output(Terminal(), range(60), quiet=True) == ""
