"""Tests that time limits adapt to the speed of the machine, and always expire."""

import pytest

from tests.system.guest import pace


class Machine:
    """A clock, and work whose duration depends on the speed of the machine."""

    def __init__(self):
        self.now, self.slow = 100.0, 1.0
        self.pace = pace.Pace(self.work, 0.1, lambda: self.now)

    def work(self):
        self.now += 0.1 * self.slow


@pytest.fixture
def machine():
    return Machine()


def steps(machine, limit):
    """Return the number of steps of 0.1 s until a limit expires."""
    for number in range(1, 1000):
        machine.now += 0.1
        if limit.expired():
            return number
    raise AssertionError("the limit never expires")


def test_on_an_idle_machine_a_limit_has_its_nominal_length(machine):
    """On an idle machine, a limit of one second expires after ten steps of a tenth of a second."""
    assert steps(machine, pace.Limit(1.05, machine.pace)) == 11


def test_a_limit_grows_with_an_existing_load(machine):
    """On a machine that is four times slower, a limit of one second lasts four seconds."""
    machine.slow = 4.0
    assert steps(machine, pace.Limit(1.05, machine.pace)) == pytest.approx(42, abs=9)


def test_a_limit_grows_with_a_load_that_begins_later(machine):
    """A limit grows if the machine becomes slower, because the speed is measured again before the
    limit expires.
    """
    limit = pace.Limit(1.05, machine.pace)
    machine.slow = 4.0
    assert steps(machine, limit) == pytest.approx(42, abs=9)


def test_a_fast_machine_shortens_no_limit(machine):
    """A limit is never shorter than its nominal duration."""
    machine.slow = 0.1
    assert steps(machine, pace.Limit(1.05, machine.pace)) == 11


def test_a_limit_expires_even_on_an_extremely_slow_machine(machine):
    """Even on an extremely slow machine, a limit of one second expires after at most twenty
    seconds.
    """
    machine.slow = 1000.0
    assert machine.pace.measure() == 20.0


def test_a_pause_of_the_whole_machine_counts_as_one_step(machine):
    """A limit does not expire because of a pause of the whole machine, even if the pause takes
    minutes.
    """
    limit = pace.Limit(10.0, machine.pace)
    machine.now += 600.0
    assert limit.seconds() == pace.STEP_SECONDS
    assert not limit.expired()


@pytest.mark.parametrize(
    ("slow", "taken", "expected"),
    [(1.0, 1.9, True), (1.0, 2.1, False), (4.0, 7.9, True), (4.0, 8.1, False)],
)
def test_a_measured_duration_is_compared_with_the_scaled_limit(machine, slow, taken, expected):
    """On a machine that is four times slower, a duration of eight seconds is within a limit of two
    seconds.
    """
    machine.slow = slow
    assert pace.in_time(taken, 2.0, machine.pace) is expected


def test_a_wait_that_fails_reports_its_condition():
    """If a wait fails, the error contains the limit and the description of the condition."""
    with pytest.raises(AssertionError, match=r"^not within 0\.01 s \(.*\): the moon$"):
        pace.until(lambda: False, "the moon", 0.01)
