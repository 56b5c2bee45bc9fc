"""Tests of the progress lines of a command that waits for the parser."""

from agent.reporting.progress import Progress


def lines(counts):
    """Return each progress line with its time, for one new count per second."""
    clock = [0]
    written = []
    progress = Progress(lambda line: written.append((clock[0], line)), lambda: clock[0])
    for finished in counts:
        progress.show(finished, 9)
        clock[0] += 1
    return written


def test_a_command_that_ends_soon_shows_no_progress():
    """The command does not write a progress line in the first seconds."""
    assert lines([0, 0, 1]) == []


def test_each_new_count_is_shown_every_few_seconds():
    """A line contains the number of finished texts and the number of all texts."""
    assert lines(range(7)) == [
        (3, "profile-loader: 3 of 9 profile texts compiled\n"),
        (6, "profile-loader: 6 of 9 profile texts compiled\n"),
    ]


def test_a_line_that_only_repeats_is_written_less_and_less_often():
    """If a text takes ten minutes, the log of a CI job does not fill up."""
    times = [now for now, _ in lines([0] * 600)]
    assert times == [3, 6, 12, 24, 48, 96, 156, 216, 276, 336, 396, 456, 516, 576]


def test_a_new_count_does_not_wait_for_the_longer_pause():
    """When the next text has been compiled, the progress is shown immediately."""
    assert [now for now, _ in lines([0] * 50 + [1] * 7)] == [3, 6, 12, 24, 48, 51, 54]
