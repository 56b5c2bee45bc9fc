"""The thread that tells the API server: labels, startup taint and Events of the own Node.

Rule 1: the agent's loop never waits for it: it takes the last report from a mailbox of one.
Rule 2: labels before Events. Rule 3: a failure waits longer than the one before; news do not
shorten that wait, so that a refusing API server sees no storm.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from agent.core.findings import Finding
from agent.core.report import Report
from agent.kube import events, node_labels
from agent.kube.client import Api
from agent.kube.errors import KubeError, StatusError
from agent.kube.node_labels import NodeLabeler, NodeMetadata
from agent.kube.reflector import Store

FIRST_SECONDS: Final = 1.0
LAST_SECONDS: Final = 60.0
REFUSED_SECONDS: Final = 600.0  # longest wait before refused labels are tried again
OUTBOX: Final = 100
# The same labels put on again so often within that time: somebody else takes them off.
FIGHTS: Final = 5
FIGHT_SECONDS: Final = 600.0


class Publisher:
    """Publishes for one Node.

    copy: what is known of the Node (a reflector's). changed: called when `problems` or the labels
    on the Node changed. dropped: called with a number of Events that were not sent.
    """

    def __init__(
        self,
        own: NodeLabeler,
        api: Api,
        *,
        copy: Callable[[], Store[NodeMetadata]],
        changed: Callable[[], None],
        dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.labeler = own
        self.api = api
        self.copy = copy
        self.changed = changed
        self.dropped = dropped
        self.findings: tuple[Finding, ...] = ()
        self._report: Report | None = None
        self._post_number = 0  # how many reports were posted
        self._told: Report | None = None  # the report that Events were made of last
        self._wanted: frozenset[str] = frozenset()
        self._meta: NodeMetadata | None = None  # the Node as last answered or watched
        self._seen: Store[NodeMetadata] | None = None
        self._outbox: deque[tuple[events.Happened, float, int]] = deque()  # when, and which
        self._bucket = events.Bucket()
        self._serial = 0
        self._applied: Mapping[str, str] = {}
        self._fights: list[float] = []  # monotonic times
        self._truce = 0.0  # monotonic time before which the same labels are not put on again
        self._refusals = 0  # how often in a row some labels were refused
        self._retry_refused = 0.0  # monotonic time before which refused labels are not tried again
        self._failures = 0
        self._retry = 0.0  # monotonic time before which nothing is asked
        self._wake = threading.Condition()
        self._dirty = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    # --- called by the agent's loop ---------------------------------------------------------------

    def post(self, report: Report) -> None:
        """Take a report; what it earns is published soon."""
        happened = events.transitions(self._told, report)
        self._told = report
        sent, left = events.chosen(happened, self._bucket)
        with self._wake:
            self._report = report
            self._post_number += 1
            wanted = self.labeler.wanted(report, self._known())
            self._wanted |= frozenset(wanted.labels)
            room = max(0, OUTBOX - len(self._outbox))
            at = time.time()
            for one in sent[:room]:
                self._serial += 1
                self._outbox.append((one, at, self._serial))
            left += len(sent[room:])
            self._dirty = True
            self._wake.notify()
        if left:
            self.dropped(left)

    def labels_on_node(self) -> frozenset[str] | None:
        """Return the labels below the own prefixes that are, or soon may be, on the Node.

        Those that somebody else holds are among them: while one is there it says that the profile
        is. None: not known.
        """
        with self._wake:
            meta = self._known()
            if meta is None or self.copy().reason:
                return None
            return self.labeler.below(meta) | self._wanted

    def labels(self) -> Mapping[str, str]:
        """Return the own labels on the Node, as far as known."""
        with self._wake:
            meta = self._known()
            return self.labeler.own(meta) if meta is not None else {}

    def poke(self) -> None:
        """Look again: what is known of the Node changed."""
        with self._wake:
            self._dirty = True
            self._wake.notify()

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End without a last word: labels stay as they are."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and not self._due():
                    self._wake.wait(self._patience())
                if self._stopping:
                    return
                self._dirty = False
            self.step()

    def _due(self) -> bool:
        at = self._due_at()
        return at is not None and time.monotonic() >= at

    def _due_at(self) -> float | None:
        """Return the monotonic time at which there is something to do; None: nothing is."""
        if self._dirty or self._outbox or self._failures:
            return self._retry
        return max(self._retry, self._retry_refused) if self.labeler.refused else None

    def _patience(self) -> float | None:
        at = self._due_at()
        return max(0.0, at - time.monotonic()) if at is not None else None

    def step(self) -> None:
        """Publish once: labels, taint, then one Event."""
        findings: tuple[Finding, ...]
        before = (self.findings, self.labels_on_node())
        try:
            findings = self._labels()
        except node_labels.WrongNodeError as error:
            findings = (node_labels.not_ours(error, self.labeler.options.name),)
            self._later(0.0)
        except KubeError as error:
            findings = (node_labels.failed(error, self.labeler.options.name),)
            self._later(error.retry_after if isinstance(error, StatusError) else 0.0)
            if (
                isinstance(error, StatusError)
                and not _busy(error)
                and self.labeler.is_proven(self._meta)
            ):
                self._event()  # what refuses the labels need not refuse the news
        else:
            if self._event():
                self._failures = 0
        self.findings = findings
        if (self.findings, self.labels_on_node()) != before:
            self.changed()

    def _labels(self) -> tuple[Finding, ...]:
        with self._wake:
            report, meta, post_number = self._report, self._known(), self._post_number
        if report is None:
            return self.findings
        if meta is None:
            copy = self.copy()
            if copy.objects is not None:
                raise node_labels.WrongNodeError("there is no Node of this name")
            raise KubeError(copy.reason or "the Node was not read yet")
        wanted = self.labeler.wanted(report, meta)
        if self._fighting(meta, wanted.labels):
            return (
                *wanted.findings,
                *self.labeler.findings(),
                node_labels.fought(self.labeler.options.name),
            )
        answer = self._publish(meta, wanted.labels)
        with self._wake:
            if self._known() is meta:  # nothing newer came from the watch meanwhile
                self._meta = answer
            if self._post_number == post_number:  # no newer report was posted
                self._wanted = frozenset(wanted.labels)
        self.labeler.untaint(answer, report)
        fought = (node_labels.fought(self.labeler.options.name),) * (len(self._fights) >= FIGHTS)
        return (*wanted.findings, *self.labeler.findings(), *fought)

    def _publish(self, meta: NodeMetadata, wanted: Mapping[str, str]) -> NodeMetadata:
        """Publish labels; plan when to try again those that the API server refuses."""
        if time.monotonic() >= self._retry_refused:
            self.labeler.retry_refused()
        before = self.labeler.refused
        answer = self.labeler.publish(meta, wanted)
        self._applied = self.labeler.allowed(answer, wanted)
        if not self.labeler.refused:
            self._refusals, self._retry_refused = 0, 0.0
        elif self.labeler.refused is not before:
            self._refusals += 1
            top = min(REFUSED_SECONDS, FIRST_SECONDS * 2 ** min(self._refusals - 1, 10))
            wait = random.uniform(top / 2, top)  # noqa: S311 - spreads load
            self._retry_refused = time.monotonic() + wait
        return answer

    def _fighting(self, meta: NodeMetadata, wanted: Mapping[str, str]) -> bool:
        """Note that labels are to be put on again; return whether that has to wait."""
        wanted = self.labeler.allowed(meta, wanted)
        now = time.monotonic()
        self._fights = [at for at in self._fights if now - at < FIGHT_SECONDS]
        if wanted != self._applied or self.labeler.own(meta) == wanted:
            return False
        if now < self._truce:
            with self._wake:
                self._dirty = True
                self._retry = self._truce
            return True
        self._fights.append(now)
        if len(self._fights) >= FIGHTS:
            top = min(LAST_SECONDS, FIRST_SECONDS * 2 ** min(len(self._fights) - FIGHTS, 10))
            self._truce = now + random.uniform(top / 2, top)  # noqa: S311 - spreads load
        return False

    def _known(self) -> NodeMetadata | None:
        """Return the Node as the watch or the last answer says, whichever is newer."""
        copy = self.copy()
        if copy is not self._seen:
            self._seen = copy
            self._meta = (copy.objects or {}).get(self.labeler.options.name)
        return self._meta

    def _event(self) -> bool:
        """Send the oldest Event; return whether that went well: a busy API server gets a rest."""
        with self._wake:
            oldest = self._outbox[0] if self._outbox else None
            meta = self._known()
        if oldest is None or meta is None:
            return True
        happened, at, serial = oldest
        name = self.labeler.options.name
        event = events.body(happened, node=name, uid=meta.uid, at=at, serial=serial)
        try:
            self.api.send("POST", events.PATH, event)
        except StatusError as error:
            if _busy(error):
                self._later(error.retry_after)
                return False
            if error.status != 409:  # noqa: PLR2004 - Conflict: it arrived, and its answer did not
                self.dropped(1)  # it would be refused again
        except KubeError:
            self._later(0.0)  # the labels are up to date: no word about them
            return False
        with self._wake:
            self._outbox.popleft()
        return True

    def _later(self, least: float) -> None:
        self._failures += 1
        top = min(LAST_SECONDS, FIRST_SECONDS * 2 ** min(self._failures - 1, 10))
        wait = max(least, random.uniform(top / 2, top))  # noqa: S311 - spreads load
        self._retry = time.monotonic() + wait


def _busy(error: StatusError) -> bool:
    """Return whether the same request may go well later (RFC 6585, 9110)."""
    return error.status == 429 or error.status >= 500  # noqa: PLR2004 - Too Many Requests
