"""Keeps a copy of selected objects of the API server. A thread updates the copy with list and watch
requests.

Whenever the copy may be wrong, the reflector lists the objects again. An event only reports a
change, whereas a list shows the current state. The copy may be wrong after a broken connection,
because the API server may have been restored to an older state. A copy that cannot be confirmed
stays readable, and contains the reason. lister.py reads the lists.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Final, Generic

from agent.backoff import Backoff
from agent.kube.client import Api
from agent.kube.errors import StatusError, UnreachableError, WatchNotStartedError
from agent.kube.lister import (
    Bounds,
    Kept,
    Lister,
    Resource,
    Unbounded,
    is_older,
    resource_version,
)
from agent.kube.responses import Event, Json

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
# A watch that breaks after this duration does not count as another consecutive failure.
STABLE_SECONDS: Final = 10.0
# The API server sends a bookmark about every minute (kubernetes, staging/src/k8s.io/apiserver,
# storage/cacher). A connection that is silent for this long is dead.
SILENCE_SECONDS: Final = 90.0
WATCH_SECONDS: Final = (240, 360)
RELIST_SECONDS: Final = (600.0, 1800.0)
# The shortest time between two lists that are sent because omitted content may fit now.
ROOM_SECONDS: Final = 30.0
SHORT_WATCH_SECONDS: Final = 1.0  # A watch that is shorter than this counts as a failure.
# A watch that ends this many seconds before its time limit did not end normally.
EARLY_SECONDS: Final = 1.0


def new_backoff() -> Backoff:
    """Return the back-off for the list requests of one reflector, with full jitter."""
    return Backoff(first_seconds=FIRST_SECONDS, longest_seconds=LONGEST_SECONDS, jitter=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Generic[Kept]):
    """The last known copy of the objects."""

    objects: Mapping[str, Kept] | None
    """The stored part of each object, by name; None before the first list."""
    partial: bool = False
    """Whether the bounds exclude some of the objects."""
    reason: str = ""
    """The reason why the last request to confirm the copy failed; empty after a successful
    request."""
    status: int = 0
    """The HTTP status of the last failure; 0 without a response."""
    tried: bool = True
    """Whether at least one request has succeeded or failed."""
    revision: int = field(default=0, compare=False)
    """A number that increases with each new copy. Two equal copies can have different revisions."""


class Reflector(Generic[Kept]):
    """Lists and watches the objects of one resource, in one thread that never ends.

    Any thread may read `store` and `is_live`. The thread of the reflector calls `on_change` and
    `on_restart`.
    """

    def __init__(  # noqa: PLR0913 - keyword-only after the resource
        self,
        api: Api,
        resource: Resource,
        *,
        keep: Callable[[Json], Kept],
        on_change: Callable[[], None],
        backoff: Backoff,
        on_restart: Callable[[], None] = lambda: None,
        bounds: Bounds[Kept] | None = None,
    ) -> None:
        """Create a reflector without starting its thread.

        Args:
            api: the client that sends the requests.
            resource: the objects to list and watch.
            keep: returns the part of an object to store.
            on_change: called after each change of the store.
            backoff: the delays after a failure and before the next list.
            on_restart: called before each list except the first one.
            bounds: limits the stored content; if it is None, all objects are stored.
        """
        self.api = api
        self.resource = resource
        self.on_change = on_change
        self.on_restart = on_restart
        self.backoff = backoff
        self.store: Store[Kept] = Store(objects=None, reason="not read yet", tried=False)
        self.is_live = False
        """Whether the watch has started and has missed no event since the last list."""
        self._lister = Lister(api, resource, keep, bounds if bounds is not None else Unbounded())
        self._is_doubtful = False
        self._listed_at = -math.inf

    def start(self) -> None:
        """Start the thread."""
        name = f"reflect {self.resource.path}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def list(self) -> None:
        """Read the list once. This method is for a process that runs a single pass and starts no
        thread.

        Raises StatusError and UnreachableError. After an error, the store also contains the reason.
        """
        self._list()
        self.is_live = True

    def _list(self) -> str:
        """Read the list, replace the store, and return the resource version of the list."""
        try:
            result = self._lister.list()
        except (StatusError, UnreachableError) as error:
            self._record_failure(error)
            raise
        # The result of a list replaces the store even if its content is equal. The publisher may
        # know a newer state, for example from the response to a patch, and a restored API server
        # may have lost that change.
        self._is_doubtful = False
        self._replace(Store(objects=result.objects, partial=result.is_partial))
        self._listed_at = time.monotonic()
        return result.version

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            watching_since = math.inf
            delay = 0.0
            try:
                version = self._list()
                watching_since = time.monotonic()
                self._watch_until_relist(version)
                self.backoff.reset()
            except (StatusError, UnreachableError) as error:
                if _was_stable(watching_since, error):
                    self.backoff.reset()
                delay = self.backoff.next_delay()
                if isinstance(error, StatusError):
                    delay = max(delay, error.retry_after)
            self.is_live = False
            time.sleep(delay)
            self.on_restart()

    def _watch_until_relist(self, version: str) -> None:
        """Watch from a resource version until another list is due or a watch fails.

        If a watch ends at its time limit, another watch continues from the last version of the
        first one. If a watch breaks, or if the API server ends it early, another list is necessary.
        etcd may have been restored to an older state, and a watch from a lost version never reports
        events.

        The version of a single object may be older than the history that the API server keeps. The
        watch of a single object therefore begins without a version, with the current state of the
        object (kubernetes.io/docs/reference/using-api/api-concepts, semantics for watch).
        """
        until = time.monotonic() + random.SystemRandom().uniform(*RELIST_SECONDS)
        has_ended = False
        while time.monotonic() < until:
            begin = time.monotonic()
            seconds = random.SystemRandom().randint(*WATCH_SECONDS)
            # The store lacks the changes that were made before the watch started.
            self.is_live = False
            try:
                for event in self._watch(version, seconds, is_continued=has_ended):
                    previous = version
                    version = resource_version(event["object"]) or version
                    if is_older(version, previous):
                        raise UnreachableError("a resource version is older than the previous one")
                    self._apply_event(event)
                    if self._has_room():
                        return
            except StatusError as error:
                is_gone = error.status == HTTPStatus.GONE
                if not (self.resource.object_path and version and is_gone):
                    raise
                version, has_ended = "", False
                continue
            has_ended = True
            _require_normal_end(time.monotonic() - begin, seconds)

    def _watch(self, version: str, seconds: int, *, is_continued: bool) -> Iterator[Event]:
        query = [
            *self.resource.query,
            *([("resourceVersion", version)] if version else []),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
        ]
        return self.api.watch(
            self.resource.path,
            query,
            silence_seconds=SILENCE_SECONDS,
            accept=self.resource.accept,
            on_start=partial(self._set_live, is_continued=is_continued),
        )

    def _set_live(self, *, is_continued: bool) -> None:
        """Record that the watch has started, and that the API server now reports changes.

        Every few minutes, a watch ends at its time limit and is continued by another watch.
        `on_change` is not called for a continued watch, because the next resync repeats any pass
        that ran between the two watches.
        """
        was_live, self.is_live = self.is_live, True
        if not is_continued and not was_live:
            self.on_change()

    def _has_room(self) -> bool:
        """Return whether a list is due because omitted content would now be within the limit."""
        return (
            time.monotonic() - self._listed_at >= ROOM_SECONDS
            and self.store.objects is not None
            and self._lister.bounds.has_room(self.store.objects)
        )

    def _apply_event(self, event: Event) -> None:
        if event["type"] == "BOOKMARK":
            return
        item = event["object"]
        key = self.resource.key(item)
        merged = dict(self.store.objects or {})
        if event["type"] == "DELETED":
            merged.pop(key, None)
        else:
            merged[key] = self._lister.keep(item)
        objects = self._lister.bounds.within(merged)
        self._is_doubtful = False
        is_partial = self.store.partial or len(objects) < len(merged)
        self._replace_if_different(Store(objects=objects, partial=is_partial))

    def _record_failure(self, error: StatusError | UnreachableError) -> None:
        status = error.status if isinstance(error, StatusError) else 0
        if not status and self.store.objects is not None and not self._is_doubtful:
            # A single broken connection is normal, so only consecutive failures are reported.
            self._is_doubtful = True
            return
        is_missing = self.resource.object_path and status == HTTPStatus.NOT_FOUND
        objects = {} if is_missing else self.store.objects
        self._replace_if_different(Store(objects=objects, reason=str(error), status=status))

    def _replace_if_different(self, store: Store[Kept]) -> None:
        if store != self.store:
            self._replace(store)

    def _replace(self, store: Store[Kept]) -> None:
        self.store = replace(store, revision=self.store.revision + 1)
        self.on_change()


def _was_stable(since: float, error: StatusError | UnreachableError) -> bool:
    """Return whether a watch ran for a long time before it failed. `now` is a monotonic time."""
    lasted = time.monotonic() - since
    return lasted > STABLE_SECONDS and not isinstance(error, WatchNotStartedError)


def _require_normal_end(lasted: float, time_limit: int) -> None:
    """Raise UnreachableError if a watch ended long before its time limit, which is in seconds."""
    if lasted < SHORT_WATCH_SECONDS:
        raise UnreachableError("the API server ends every watch immediately")
    if lasted < time_limit - EARLY_SECONDS:
        raise UnreachableError("the API server ended a watch early")
