"""Detects that another program changes the same profiles as the agent.

If the agent has to repair the same profile repeatedly, another program is probably undoing each
repair. The agent then increases the delay before each repair, and reports a finding about the
profile. This module counts repairs and changes nothing; the controller delays the passes. All times
are monotonic seconds.
"""

from collections import deque
from typing import Final

from agent.backoff import delay_seconds
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ProfileState

FIGHT_SECONDS: Final = 120.0
FIGHT_REPAIRS: Final = 10
"""The number of repairs of one profile name within FIGHT_SECONDS that counts as a fight."""

LONGEST_PAUSE_SECONDS: Final = 60.0
# At this number of repairs, the pause reaches its maximum length.
_RECORDED_REPAIRS: Final = 2 * FIGHT_REPAIRS


class RepairFights:
    """Counts the repairs of each profile name. Only the main thread uses this class."""

    def __init__(self) -> None:
        self.paused_until = 0.0
        """Until this time, changes on the node do not trigger a pass."""

        self._repairs: dict[str, deque[float]] = {}  # The times of recent repairs, by name.

    def record(self, report: Report, now: float) -> None:
        """Count the repairs of a pass, and begin a pause if one profile name was repaired too
        often.
        """
        repaired = [row.name for row in report.profiles if _is_repair(row)]
        for name in repaired:
            self._repairs.setdefault(name, deque(maxlen=_RECORDED_REPAIRS)).append(now)
        counts = self._counts(now)
        most = max((counts[name] for name in repaired), default=0)
        if most >= FIGHT_REPAIRS and now >= self.paused_until:
            self.paused_until = now + delay_seconds(
                most - FIGHT_REPAIRS + 1, first_seconds=1.0, longest_seconds=LONGEST_PAUSE_SECONDS
            )

    def deadlines(self) -> list[float]:
        """Return the time at which the pause ends, and the time at which each fight ends if no
        repairs follow.
        """
        ends = [
            times[-FIGHT_REPAIRS] + FIGHT_SECONDS
            for times in self._repairs.values()
            if len(times) >= FIGHT_REPAIRS
        ]
        return [self.paused_until, *ends]

    def findings(self, now: float) -> tuple[Finding, ...]:
        """Return one finding for each profile name that another program keeps changing."""
        return tuple(
            Finding(
                code=FindingCode.DRIFT_FOUGHT,
                location=name,
                message=f'Another program keeps changing "{name}": the agent repaired the profile '
                f"{count} times in the last {FIGHT_SECONDS:g} s. The agent now delays further "
                "repairs.",
                hint="Find the program that loads or writes the profile, for example with auditd, "
                "or remove the profile from the sources.",
            )
            for name, count in sorted(self._counts(now).items())
            if count >= FIGHT_REPAIRS
        )

    def _counts(self, now: float) -> dict[str, int]:
        """Return how often each profile name was repaired in the last FIGHT_SECONDS, and forget
        older repairs.
        """
        for times in self._repairs.values():
            while times and times[0] + FIGHT_SECONDS <= now:
                times.popleft()
        self._repairs = {name: times for name, times in self._repairs.items() if times}
        return {name: len(times) for name, times in self._repairs.items()}


def _is_repair(row: ProfileStatus) -> bool:
    """Return whether a pass reinstalled a profile that went missing or was changed on the node."""
    return row.is_repair and row.state != ProfileState.FAILED
