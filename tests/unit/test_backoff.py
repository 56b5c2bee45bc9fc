"""Tests of agent.backoff."""

import pytest

from agent.backoff import Backoff, delay_seconds


def test_delays_double_up_to_the_longest() -> None:
    """Each consecutive failure doubles the delay, up to the limit."""
    backoff = Backoff(first_seconds=2.0, longest_seconds=10.0)
    assert [backoff.next_delay() for _ in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_success_starts_the_delays_again() -> None:
    """After a success, the retry delay is reset to its initial value."""
    backoff = Backoff(first_seconds=1.0, longest_seconds=60.0)
    for _ in range(4):
        backoff.next_delay()
    backoff.reset()
    assert (backoff.next_delay(), backoff.failures) == (1.0, 1)


@pytest.mark.parametrize(("jitter", "least"), [(0.5, 4.0), (1.0, 0.0)])
def test_the_random_part_only_shortens_a_delay(jitter: float, least: float) -> None:
    """The random part only shortens a delay, and never extends it."""
    delays = []
    for _ in range(200):
        backoff = Backoff(first_seconds=8.0, longest_seconds=8.0, jitter=jitter)
        delays.append(backoff.next_delay())
    assert least <= min(delays) < max(delays) <= 8.0


def test_the_delay_does_not_overflow_in_a_very_long_outage() -> None:
    """If an operation fails for months, its delay is still limited."""
    assert delay_seconds(1_000_000, first_seconds=1.0, longest_seconds=60.0) == 60.0
