"""A copy of some objects of the API server, kept true by list and watch in a thread of its own.

Rule 1: an event says what changed, a list says what is; after any doubt it lists again. A broken
connection is a doubt: the API server may have been restored to an older state. Rule 2: a copy that
cannot be confirmed says so (`why`), and stays readable. Rule 3: every wait has an end, and every
failure waits longer than the one before, at random, so that a thousand agents do not come back at
once. Rule 4: a list is read in pages, and bounds decide after each page what is kept of it.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from agent.kube.client import Api
from agent.kube.errors import (
    StatusError,
    TooLargeError,
    UnreachableError,
    WatchNotStartedError,
)
from agent.kube.responses import RESPONSE_BYTES, Event, Json

FIRST_SECONDS: Final = 1.0
LAST_SECONDS: Final = 60.0
STABLE_SECONDS: Final = 10.0  # what was answered and lasted longer begins the waits anew
# The server sends a bookmark about every minute (kubernetes, staging/src/k8s.io/apiserver,
# storage/cacher); a peer that is silent longer than this is gone.
SILENCE_SECONDS: Final = 90.0
WATCH_SECONDS: Final = (240, 360)
RELIST_SECONDS: Final = (600.0, 1800.0)
ROOM_SECONDS: Final = 30.0  # shortest time between two lists because there is room again
EARLY_SECONDS: Final = 1.0  # a watch that ends so long before its time was broken
# Read and parsed, a page takes about 3.3 bytes for each of its own (measured with ConfigMaps).
PAGE_BYTES: Final = 4 << 20
PAGE_OBJECTS: Final = 100
PAGES: Final = 10_000  # of one list: there is an end
LIST_TRIES: Final = 3  # where the token for the next page expires
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Kept = TypeVar("Kept")


class Bounds(Protocol[Kept]):
    """Decides how much is kept of the objects of a reflector."""

    def within(self, objects: Mapping[str, Kept]) -> Mapping[str, Kept]:
        """Return the objects without what exceeds a limit: content, or whole objects."""

    def has_room(self, objects: Mapping[str, Kept]) -> bool:
        """Return whether the content of an object that was let go would fit again."""


class Unbounded(Generic[Kept]):
    """Keeps everything: what `keep` leaves of each object is small."""

    def within(self, objects: Mapping[str, Kept]) -> Mapping[str, Kept]:
        """Return all of them."""
        return objects

    def has_room(self, objects: Mapping[str, Kept]) -> bool:  # noqa: ARG002 - nothing is let go
        """Return False: nothing was let go."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Generic[Kept]):
    """What is known now.

    objects: by name, as of the last answer; None: never listed. partial: there are more objects
    than the bounds allow to remember. why: the last request that was to confirm it failed, and how;
    empty: it is confirmed. status: the HTTP status of that failure, 0 for silence. tried: it was
    asked for at least once.
    """

    objects: Mapping[str, Kept] | None
    partial: bool = False
    reason: str = ""
    status: int = 0
    tried: bool = True


class Reflector(Generic[Kept]):
    """Lists and watches the objects of one path.

    query selects (labelSelector, fieldSelector). A list is a consistent read: without a
    resourceVersion, it has what was written before it. keep makes of an object what is remembered
    of it. one: the path of the only object, read by GET instead of a list (a right less). changed
    is called after every change of the copy.
    """

    def __init__(  # noqa: PLR0913 - what is watched, and who hears of it
        self,
        api: Api,
        path: str,
        *,
        keep: Callable[[Json], Kept],
        changed: Callable[[], None],
        query: tuple[tuple[str, str], ...] = (),
        one: str = "",
        metadata: bool = False,
        restarted: Callable[[], None] = lambda: None,
        bounds: Bounds[Kept] | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.api = api
        self.path = path
        self.query = query
        self.keep = keep
        self.changed = changed
        self.one = one
        self.metadata = metadata
        self.restarted = restarted
        self.bounds: Bounds[Kept] = bounds if bounds is not None else Unbounded()
        self.silence_seconds = silence_seconds
        self.store: Store[Kept] = Store(objects=None, reason="not read yet", tried=False)
        self.is_live = False  # no event was missed since the last answer, as far as can be known
        self._doubtful = False
        self._listed_at = -math.inf  # monotonic time of the last list
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._random = random.Random()  # noqa: S311 - spreads load, keeps no secret

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread = threading.Thread(target=self._run, name=f"reflect {self.path}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; closing the Api wakes it from a watch."""
        self._stop.set()

    def list(self) -> None:
        """Read everything once, and keep it: for who asks at once, it is what there is.

        Raises Refused and Unreachable; the copy says so then too.
        """
        self._list()
        self.is_live = True

    def _list(self) -> str:
        """Read everything, keep it, and return the resource version."""
        try:
            objects, partial_, version = self._listed()
        except (StatusError, UnreachableError) as error:
            self._failed(error)
            raise
        self._known(objects, is_partial=partial_, anew=True)
        self._listed_at = time.monotonic()
        return version

    def _listed(self) -> tuple[Mapping[str, Kept], bool, str]:
        """Return the objects, whether there are more, and the resource version."""
        if self.one:
            accept = METADATA if self.metadata else "application/json"
            found = self.api.get(self.one, accept=accept)
            return {_name(found): self.keep(found)}, False, _version(found)
        for _ in range(LIST_TRIES - 1):
            try:
                return self._pages()
            except StatusError as error:
                if error.status != 410:  # noqa: PLR2004 - Gone: the token for the next page
                    raise
        return self._pages()

    def _pages(self) -> tuple[Mapping[str, Kept], bool, str]:
        """Read a list page by page. All pages are of one state of the cluster (list chunking)."""
        objects: Mapping[str, Kept] = {}
        is_partial, token, limit = False, "", PAGE_OBJECTS
        for _ in range(PAGES):
            try:
                items, page = self._page(limit, token)
            except TooLargeError:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            limit = min(PAGE_OBJECTS, limit * 2)
            every = {**objects, **{self._key(item): self.keep(item) for item in items}}
            objects = self.bounds.within(every)
            is_partial = is_partial or len(objects) < len(every)
            token = _continue(page)
            if not token:
                return objects, is_partial, _version(page)
        raise UnreachableError(f"the list has more than {PAGES} pages")

    def _page(self, limit: int, token: str) -> tuple[Iterable[Json], Json]:
        """Return the objects of a page, and the page."""
        page, items = self.api.get_page(
            self.path,
            (*self.query, ("limit", str(limit)), *([("continue", token)] if token else [])),
            accept=METADATA_LIST if self.metadata else "application/json",
            byte_limit=PAGE_BYTES if limit > 1 else RESPONSE_BYTES,
        )
        if "items" in page and not _none(page):
            raise UnreachableError("the answer is no list")
        return items, page

    def _key(self, found: Json) -> str:
        """Return an object's name, with its namespace where the path has none."""
        name, namespace = _name(found), str(_metadata(found).get("namespace", ""))
        return f"{namespace}/{name}" if namespace and "/namespaces/" not in self.path else name

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            watching = math.inf
            try:
                version = self._list()
                watching = time.monotonic()
                self._follow(version)
                failures, least = 0, 0.0
            except (StatusError, UnreachableError) as error:
                failures = 1 if _lasted(watching, error) else failures + 1
                least = error.retry_after if isinstance(error, StatusError) else 0.0
            self.is_live = False
            self._stop.wait(max(least, self.pause(failures)))
            self.restarted()

    def pause(self, failures: int) -> float:
        """Return how many seconds to wait after so many failures in a row: full jitter."""
        top = min(LAST_SECONDS, FIRST_SECONDS * 2 ** min(failures - 1, 10)) if failures else 0.0
        return self._random.uniform(0.0, top)

    def _follow(self, version: str) -> None:
        """Watch from a resource version until it is time to list again, or something breaks.

        A watch that ends in its time continues with another one. After one that broke, or that the
        API server ended early, only a list is sure: etcd may have been restored to an older state,
        and a watch from a version of the lost history is silent. The version of a single object may
        be older than what the API server still has; without one it first says how the object is now
        (kubernetes.io/docs/reference/using-api/api-concepts, semantics for watch).
        """
        until = time.monotonic() + self._random.uniform(*RELIST_SECONDS)
        ended = False
        while not self._stop.is_set() and time.monotonic() < until:
            begin = time.monotonic()
            seconds = self._random.randint(*WATCH_SECONDS)
            self.is_live = False  # what changes before the watch is answered is not in the copy
            try:
                for event in self._watched(version, seconds, partial(self._lives, tell=not ended)):
                    former, version = version, _version(event["object"]) or version
                    if _is_older(version, former):
                        raise UnreachableError("a resource version is older than the one before it")
                    self._changed(event)
                    if self._has_room():
                        return
            except StatusError as error:
                if not (self.one and version and error.status == 410):  # noqa: PLR2004 - Gone
                    raise
                version, ended = "", False
                continue
            ended = True
            lasted = time.monotonic() - begin
            if lasted < FIRST_SECONDS:
                raise UnreachableError("the API server ends every watch at once")
            if lasted < seconds - EARLY_SECONDS:
                raise UnreachableError("the API server ended a watch early")

    def _has_room(self) -> bool:
        """Return whether to list again because content that was let go fits now."""
        copy = self.store
        return (
            time.monotonic() - self._listed_at >= ROOM_SECONDS
            and copy.objects is not None
            and self.bounds.has_room(copy.objects)
        )

    def _watched(self, version: str, seconds: int, answered: Callable[[], None]) -> Iterator[Event]:
        query = [
            *self.query,
            *([("resourceVersion", version)] if version else []),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
        ]
        accept = METADATA if self.metadata else "application/json"
        return self.api.watch(
            self.path,
            query,
            silence_seconds=self.silence_seconds,
            accept=accept,
            on_start=answered,
        )

    def _changed(self, event: Event) -> None:
        found = event["object"]
        if event["type"] == "BOOKMARK":
            return
        name = self._key(found)
        every = dict(self.store.objects or {})
        if event["type"] == "DELETED":
            every.pop(name, None)
        else:
            every[name] = self.keep(found)
        objects = self.bounds.within(every)
        self._known(objects, is_partial=self.store.partial or len(objects) < len(every))

    def _lives(self, *, tell: bool) -> None:
        """Note that the API server tells of changes; who waits for that hears of it.

        tell: not after a watch that ended in its time, which is every few minutes, and where the
        next one was answered at once. Who looked in between looks again at the next resync.
        """
        was, self.is_live = self.is_live, True
        if tell and not was:
            self.changed()

    def _known(
        self, objects: Mapping[str, Kept], *, is_partial: bool = False, anew: bool = False
    ) -> None:
        """Replace or update the copy by an answer. anew: it is a list.

        A list counts as a change even if it is equal to the copy: a user of the copy may know a
        newer answer, to a patch for example, which a restored API server has lost.
        """
        self._doubtful = False
        copy: Store[Kept] = Store(objects=objects, partial=is_partial)
        if anew or copy != self.store:
            self.store = copy
            self.changed()

    def _failed(self, error: StatusError | UnreachableError) -> None:
        status = error.status if isinstance(error, StatusError) else 0
        if not status and self.store.objects is not None and not self._doubtful:
            self._doubtful = True  # one connection that breaks is no news; the next failure is
            return
        gone = self.one and status == 404  # noqa: PLR2004 - Not Found
        objects = {} if gone else self.store.objects
        copy: Store[Kept] = Store(objects=objects, reason=str(error), status=status)
        if copy != self.store:
            self.store = copy
            self.changed()


def _lasted(begin: float, error: StatusError | UnreachableError) -> bool:
    """Return whether a watch lasted that began at begin, in monotonic seconds, and broke now."""
    return time.monotonic() - begin > STABLE_SECONDS and not isinstance(error, WatchNotStartedError)


def _none(found: Json) -> bool:
    """Return whether a list says that there are no objects, by null.

    The API server makes `[]` of an empty list (kubernetes, apiserver/pkg/storage/etcd3/store.go,
    GetList), but null of one of metadata alone (apiserver/pkg/endpoints/handlers/response.go); seen
    with a real one by a test. Any other answer without items is no empty list.
    """
    return (
        found.get("items", "") is None
        and found.get("kind") == "PartialObjectMetadataList"
        and _version(found) != ""
    )


def _continue(page: Json) -> str:
    """Return the token for the next page; empty: there is none."""
    token = _metadata(page).get("continue") or ""
    if not isinstance(token, str):
        raise UnreachableError("the answer is no list")
    return token


def _is_older(version: str, than: str) -> bool:
    """Return whether a resource version is older; both are decimal numbers (KEP-5504)."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)


def _metadata(found: Json) -> Mapping[str, object]:
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        raise UnreachableError("an object has no metadata")
    return metadata


def _name(found: Json) -> str:
    return str(_metadata(found).get("name", ""))


def _version(found: Json) -> str:
    return str(_metadata(found).get("resourceVersion", ""))
