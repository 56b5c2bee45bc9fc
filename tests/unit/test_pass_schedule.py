"""Tests of agent.control.pass_schedule, which schedules retries after failures."""

import pytest

from agent.control.pass_schedule import PassSchedule
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import ProfileStatus
from tests.reports import report, row

DAY = 86_400.0
LIMITED = Finding(code=FindingCode.LIMIT_EXCEEDED, location="k", message="it does not fit")


@pytest.mark.parametrize(("resync_seconds", "longest"), [(DAY, 3600.0), (300.0, 300.0)])
def test_a_failure_is_retried_with_delays_of_up_to_an_hour(
    resync_seconds: float, longest: float
) -> None:
    """The delays between retries of a failure grow, up to one hour."""
    schedule, now, delays = PassSchedule(resync_seconds=resync_seconds), 1000.0, []
    for _ in range(16):
        schedule.begin_pass(now)
        schedule.next_full_resync = now + 10 * DAY
        schedule.end_pass(report(row(state="failed")), now, ())
        delays.append(schedule.next_pass - now)
        now = schedule.next_pass
    assert delays[:3] == [2.0, 4.0, 8.0]
    assert delays[-1] == longest


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(state="removed"), row(state="rejected", findings=(LIMITED,))], 0.0),
        ([row(state="released"), row(state="rejected", findings=(LIMITED,))], 0.0),
        ([row(state="removed"), row(state="rejected")], DAY),
        ([row(state="rejected", findings=(LIMITED,))], DAY),
    ],
)
def test_another_pass_follows_when_a_rejected_key_may_fit(
    rows: list[ProfileStatus], expected: float
) -> None:
    """After a removal, another pass follows, because a key that exceeded a limit may now fit."""
    schedule = PassSchedule(resync_seconds=DAY)
    schedule.begin_pass(1000.0)
    schedule.next_full_resync = 1000.0 + DAY
    schedule.end_pass(report(*rows), 1000.0, ())
    assert schedule.next_pass - 1000.0 == expected
