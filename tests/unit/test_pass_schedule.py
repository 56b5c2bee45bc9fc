"""Tests of agent.control.pass_schedule: the retries of failures."""

import pytest

from agent.control.pass_schedule import PassSchedule
from tests.reports import report, row

DAY = 86_400.0


@pytest.mark.parametrize(("resync_seconds", "longest"), [(DAY, 3600.0), (300.0, 300.0)])
def test_a_failure_is_retried_less_and_less_often_up_to_an_hour(resync_seconds, longest):
    """A failure is retried less and less often, but at least every hour."""
    schedule, now, delays = PassSchedule(resync_seconds=resync_seconds), 1000.0, []
    for _ in range(16):
        schedule.begin_pass(now)
        schedule.next_full_resync = now + 10 * DAY
        schedule.end_pass(report(row(state="failed")), now, ())
        delays.append(schedule.next_pass - now)
        now = schedule.next_pass
    assert delays[:3] == [2.0, 4.0, 8.0]
    assert delays[-1] == longest
