"""Tests that time limits are longer only while tasks wait for a CPU."""

import os

import pytest

from tests.system import busy

TICKS = os.sysconf("SC_CLK_TCK")
PRESSURE = "some avg10=1.00 avg60=2.00 avg300=3.00 total={}\nfull avg10=0.00 total=0\n"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Return a function that sets the waiting seconds and the idle seconds that the kernel
    reports.
    """
    clock = [100.0]
    monkeypatch.setattr(busy, "PRESSURE", tmp_path / "pressure")
    monkeypatch.setattr(busy, "STAT", tmp_path / "stat")
    monkeypatch.setattr(busy.time, "monotonic", lambda: clock[0])

    def set_counters(*, passed=0.0, waited=None, idle=0.0):
        clock[0] += passed
        if waited is not None:
            (tmp_path / "pressure").write_text(PRESSURE.format(int(waited * 1e6)))
        counters = f"cpu  700 0 9 {int(idle * TICKS)} 0 0 0 50 0 0\ncpu0 1 2 3 4\n"
        (tmp_path / "stat").write_text(counters)

    return set_counters


@pytest.mark.parametrize(("waited", "seconds"), [(1.1, 2.0), (1.3, 10.0)])
def test_a_limit_is_longer_if_a_task_waited_most_of_the_time(kernel, waited, seconds):
    """Only the waiting time during the measurement counts, and not the time before it."""
    kernel(waited=5.0)
    since = busy.Since()
    kernel(passed=2.0, waited=5.0 + waited)
    assert (since.seconds(), since.within(2.0)) == (2.0, seconds)


@pytest.mark.parametrize(("idle", "seconds"), [(3.5, 2.0), (0.9, 2.0), (0.7, 10.0)])
def test_without_pressure_data_a_limit_is_longer_if_no_cpu_was_idle(kernel, idle, seconds):
    """Without pressure data, the idle seconds determine the limit. Idle seconds are summed over all
    CPUs, so they may exceed the elapsed time.
    """
    kernel(idle=40.0)
    since = busy.Since()
    kernel(passed=2.0, idle=40.0 + idle)
    assert since.within(2.0) == seconds
