"""Reads lists of objects page by page, within limits.

Each list is a consistent read: the request has no resourceVersion, so the list includes all earlier
writes. All pages of a list show the same state of the cluster. reflector.py decides when to list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Generic, Protocol, TypeVar

from agent.kube.client import JSON_TYPE, Api
from agent.kube.errors import StatusError, TooLargeError, UnreachableError
from agent.kube.responses import RESPONSE_BYTES, Json

# To read and parse a page, the agent needs about 3.3 bytes of memory for each byte (measured with
# ConfigMaps).
PAGE_BYTES: Final = 4 << 20
PAGE_OBJECTS: Final = 100
PAGE_LIMIT: Final = 10_000  # The maximum number of pages in one list.
# The number of attempts to read one list, because its page token may expire.
LIST_ATTEMPTS: Final = 3
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Kept = TypeVar("Kept")


class Bounds(Protocol[Kept]):
    """Limits how much of the listed objects is stored in memory."""

    def within(self, objects: Mapping[str, Kept]) -> Mapping[str, Kept]:
        """Return the objects that are within the limit. Above the limit, objects lose their content
        or are omitted.
        """

    def has_room(self, objects: Mapping[str, Kept], /) -> bool:
        """Return whether omitted content would now be within the limit."""


class Unbounded(Generic[Kept]):
    """Stores all objects, for resources whose stored part is small."""

    def within(self, objects: Mapping[str, Kept]) -> Mapping[str, Kept]:
        """Return all objects."""
        return objects

    def has_room(self, _objects: Mapping[str, Kept], /) -> bool:
        """Return False, because no object was omitted."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """The resource whose objects are listed and watched."""

    path: str
    """The path of the list."""
    query: tuple[tuple[str, str], ...] = ()
    """The label selector or the field selector of the list."""
    object_path: str = ""
    """The path of a single object. A GET request reads this object without the permission to list
    objects."""
    metadata_only: bool = False
    """Whether to read only the metadata of the objects."""

    @property
    def accept(self) -> str:
        """The media type of one object."""
        return _METADATA if self.metadata_only else JSON_TYPE

    @property
    def accept_list(self) -> str:
        """The media type of a list."""
        return _METADATA_LIST if self.metadata_only else JSON_TYPE

    def key(self, item: Json) -> str:
        """Return the name of an object, with its namespace if the path does not contain the
        namespace.
        """
        name, namespace = object_name(item), str(metadata(item).get("namespace", ""))
        return f"{namespace}/{name}" if namespace and "/namespaces/" not in self.path else name


@dataclass(frozen=True, slots=True, kw_only=True)
class ListResult(Generic[Kept]):
    """The result of one complete list."""

    objects: Mapping[str, Kept]
    is_partial: bool
    """Whether the limits exclude some of the objects."""
    version: str
    """The resource version from which a watch continues."""


class Lister(Generic[Kept]):
    """Reads the list of a resource."""

    def __init__(
        self,
        api: Api,
        resource: Resource,
        keep: Callable[[Json], Kept],
        bounds: Bounds[Kept],
    ) -> None:
        self.api = api
        self.resource = resource
        self.keep = keep
        """Returns the part of an object to keep."""
        self.bounds = bounds

    def list(self) -> ListResult[Kept]:
        """Read the whole list. Raises StatusError and UnreachableError."""
        if self.resource.object_path:
            item = self.api.get(self.resource.object_path, accept=self.resource.accept)
            return ListResult(
                objects={object_name(item): self.keep(item)},
                is_partial=False,
                version=resource_version(item),
            )
        for _ in range(LIST_ATTEMPTS - 1):
            try:
                return self._pages()
            except StatusError as error:
                # Only this status means that the token for the next page expired.
                if error.status != HTTPStatus.GONE:
                    raise
        return self._pages()

    def _pages(self) -> ListResult[Kept]:
        """Read a list page by page. If a page is too large, it is requested again with fewer
        objects.
        """
        objects: Mapping[str, Kept] = {}
        is_partial, token, limit = False, "", PAGE_OBJECTS
        for _ in range(PAGE_LIMIT):
            try:
                page, items = self._page(limit, token)
            except TooLargeError:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            limit = min(PAGE_OBJECTS, limit * 2)
            merged = {**objects, **items}
            objects = self.bounds.within(merged)
            is_partial = is_partial or len(objects) < len(merged)
            token = _continue_token(page)
            if not token:
                version = resource_version(page)
                return ListResult(objects=objects, is_partial=is_partial, version=version)
        raise UnreachableError(f"the list has more than {PAGE_LIMIT} pages")

    def _page(self, limit: int, token: str) -> tuple[Json, Mapping[str, Kept]]:
        """Return one page without its items, and the part of each item that is stored."""
        page, items = self.api.get_page(
            self.resource.path,
            (
                *self.resource.query,
                ("limit", str(limit)),
                *([("continue", token)] if token else []),
            ),
            accept=self.resource.accept_list,
            byte_limit=PAGE_BYTES if limit > 1 else RESPONSE_BYTES,
        )
        if "items" in page and not _is_empty(page):
            raise UnreachableError("the response is not a list")
        return page, {self.resource.key(item): self.keep(item) for item in items}


def _is_empty(page: Json) -> bool:
    """Return whether a list without items is an empty list.

    For an empty list, the API server sends `[]` (kubernetes, apiserver/pkg/storage/etcd3/store.go,
    GetList), but it sends null for an empty list of metadata
    (apiserver/pkg/endpoints/handlers/response.go). A test compares both responses with those of a
    real API server. Any other response without items is treated as an error.
    """
    return (
        page.get("items", "") is None
        and page.get("kind") == "PartialObjectMetadataList"
        and resource_version(page) != ""
    )


def _continue_token(page: Json) -> str:
    """Return the token for the next page, or "" on the last page."""
    token = metadata(page).get("continue") or ""
    if not isinstance(token, str):
        raise UnreachableError("the response is not a list")
    return token


def metadata(item: Json) -> Mapping[str, object]:
    """Return the metadata of an object. Raises UnreachableError."""
    value = item.get("metadata")
    if not isinstance(value, dict):
        raise UnreachableError("an object has no metadata")
    return value


def object_name(item: Json) -> str:
    """Return the name of an object. Raises UnreachableError."""
    return str(metadata(item).get("name", ""))


def resource_version(item: Json) -> str:
    """Return the resource version of an object or a list. Raises UnreachableError."""
    return str(metadata(item).get("resourceVersion", ""))


def is_older(version: str, other: str) -> bool:
    """Return whether a resource version is older than another. Resource versions are compared as
    decimal numbers (KEP-5504).
    """
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)
