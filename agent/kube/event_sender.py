"""Sends Events to the API server, one at a time.

events.py decides which changes become Events, and event_outbox.py stores them. publisher.py decides
when an Event is sent.
"""

from collections.abc import Callable
from http import HTTPStatus

from agent.core.report import Report
from agent.kube import events
from agent.kube.client import Api
from agent.kube.errors import StatusError
from agent.kube.event_outbox import EventOutbox


class EventSender:
    """Sends the Events of one agent. Any thread may call `add`, but only one thread may call
    `send_oldest`.
    """

    def __init__(
        self, api: Api, outbox: EventOutbox, on_drop: Callable[[int], None] = lambda _: None
    ) -> None:
        """Create a sender that has not sent any Events yet.

        Args:
            api: the client.
            outbox: stores the Events until they are sent.
            on_drop: called with the number of Events that will never be sent.
        """
        self.api = api
        self.outbox = outbox
        self.on_drop = on_drop

    @property
    def has_events(self) -> bool:
        """Whether an Event is waiting to be sent."""
        return self.outbox.oldest() is not None

    def add(self, report: Report) -> None:
        """Add the Events for a report."""
        dropped = self.outbox.add(report)
        if dropped:
            self.on_drop(dropped)

    def send_oldest(self, node: str, uid: str) -> None:
        """Send the oldest Event about a Node.

        Raises KubeError if the same request may succeed later. If the API server rejects the Event
        for any other reason, the Event is dropped.
        """
        pending = self.outbox.oldest()
        if pending is None:
            return
        event = events.body(pending.event, node=node, uid=uid, at=pending.at, number=pending.number)
        try:
            self.api.send("POST", events.PATH, event)
        except StatusError as error:
            if error.is_temporary:
                raise
            # The status Conflict means that the Event was created but the response was lost.
            if error.status != HTTPStatus.CONFLICT:
                # The Event is dropped, because the API server would reject it again.
                self.on_drop(1)
        self.outbox.remove_oldest()
