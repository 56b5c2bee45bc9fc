"""Stores Events until they are sent to the API server, with a rate limit and a size limit.

events.py decides which changes between two reports become Events. event_sender.py sends the Events.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.core.report import Report
from agent.kube import events

OUTBOX_LIMIT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEvent:
    """An Event that the API server has not accepted yet."""

    event: events.NodeEvent
    at: float
    """The Unix time of the report that caused the Event."""
    number: int
    """A number for the name of the Event, which is unique in this process."""


class EventOutbox:
    """The queue of Events that have not been sent, with the oldest Event first. Any thread may call
    the methods.
    """

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        """Create an empty queue.

        Args:
            clock: returns the monotonic time in seconds.
            wall_clock: returns the Unix time in seconds.
        """
        self._lock = threading.Lock()
        self._wall_clock = wall_clock
        self._bucket = events.TokenBucket(clock)
        self._pending: deque[PendingEvent] = deque()
        self._last_report: Report | None = None
        self._number = 0

    def add(self, report: Report) -> int:
        """Add the Events for a report, and return the number of dropped Events."""
        with self._lock:
            changes = events.transitions(self._last_report, report)
            self._last_report = report
            allowed, dropped = events.take_allowed(changes, self._bucket)
            room = max(0, OUTBOX_LIMIT - len(self._pending))
            at = self._wall_clock()
            for event in allowed[:room]:
                self._number += 1
                self._pending.append(PendingEvent(event=event, at=at, number=self._number))
            return dropped + len(allowed[room:])

    def oldest(self) -> PendingEvent | None:
        """Return the next Event to send."""
        with self._lock:
            return self._pending[0] if self._pending else None

    def remove_oldest(self) -> None:
        """Remove an Event that was sent, or that the API server rejected."""
        with self._lock:
            self._pending.popleft()
