"""Parses responses from the API server as JSON, within limits.

A response is untrusted input. All sizes are limited, and a response that does not come from the
Kubernetes API causes an `UnreachableError`. client.py sends the requests.
"""

import json
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final, TypedDict

import msgspec
import urllib3

from agent.kube.errors import StatusError, TooLargeError, UnreachableError

# To read and parse a response, the agent needs about 3.3 bytes of memory for each byte. For a
# response with 40 MB of ConfigMaps, it needed 178 MiB (measured), whereas the memory limit of its
# container is 256 MiB.
RESPONSE_BYTES: Final = 16 << 20
# The longest wait, in seconds, that a Retry-After header can request.
RETRY_AFTER_SECONDS: Final = 60.0
_CHUNK: Final = 1 << 16
# The classes of HTTP statuses (RFC 9110, section 15).
_SUCCESSES: Final = range(200, 300)
_ERRORS: Final = range(400, 600)

Json = dict[str, object]


class Event(TypedDict):
    """An event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, with an object."""

    type: str
    object: Json


def read(response: urllib3.BaseHTTPResponse, byte_limit: int = RESPONSE_BYTES) -> bytes:
    """Return the body of a response.

    If the body is too large, this function closes the connection without reading the rest, and
    raises TooLargeError.
    """
    content = bytearray()
    for chunk in response.stream(_CHUNK, decode_content=True):
        content += chunk
        if len(content) > byte_limit:
            response.close()
            raise TooLargeError(f"the response is larger than {byte_limit} bytes")
    return bytes(content)


def parse_response(
    response: urllib3.BaseHTTPResponse, content: bytes, parse: Callable[[bytes], Json]
) -> Json:
    """Return the parsed body of a successful response. Raises StatusError and UnreachableError."""
    if response.status in _SUCCESSES:
        return parse(content)
    try:
        body = parse_object(content)
    except UnreachableError:
        body = {"message": content[:300].decode(errors="replace")}
    retry_after = _retry_after(str(response.headers.get("Retry-After", "")))
    raise _status_error(response.status, body, retry_after)


def watch_events(response: urllib3.BaseHTTPResponse) -> Iterator[Event]:
    """Yield the events of a watch. Raises StatusError and UnreachableError."""
    # Without a bytearray, each small chunk would cause a copy of the whole line.
    rest = bytearray()
    for chunk in response.stream(_CHUNK, decode_content=True):
        *lines, last = chunk.split(b"\n")
        for line in lines:
            rest += line
            if rest.strip():
                yield _event(bytes(rest))
            rest.clear()
        rest += last
        if len(rest) > RESPONSE_BYTES:
            raise UnreachableError(f"an event is larger than {RESPONSE_BYTES} bytes")
    if rest.strip():
        yield _event(bytes(rest))


def _event(line: bytes) -> Event:
    event = parse_object(line)
    kind, body = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise UnreachableError("a line of the watch is not an event")
    if kind == "ERROR":
        raise _status_error(_event_status(body.get("code")), body, 0.0)
    return {"type": kind, "object": body}


def _event_status(code: object) -> int:
    """Return the HTTP status of an ERROR event, or 500 if its code is not an error status."""
    return code if isinstance(code, int) and code in _ERRORS else HTTPStatus.INTERNAL_SERVER_ERROR


def _retry_after(header: str) -> float:
    """Return the seconds of a Retry-After header; return 0 for a date, which no API server
    sends.
    """
    return min(float(header), RETRY_AFTER_SECONDS) if header.isdecimal() else 0.0


def _status_error(status: int, body: Json, retry_after: float) -> StatusError:
    message = str(body.get("message") or "no message")
    return StatusError(status, str(body.get("reason") or ""), message[:1000], retry_after)


def parse_object(text: bytes) -> Json:
    """Parse a JSON object. Raises UnreachableError.

    Bytes that are not UTF-8 and lone surrogates are replaced by U+FFFD, as in Go's encoding/json.
    """
    try:
        value = json.loads(text.decode("utf-8", "replace"))
        if _SURROGATE.search(text):
            value = _without_surrogates(value)
    except (ValueError, RecursionError) as error:
        raise UnreachableError("the response is not JSON") from error
    if not isinstance(value, dict):
        raise UnreachableError("the response is not a JSON object")
    return value


_Fields = dict[str, msgspec.Raw]
_NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_list(text: bytes) -> Json:
    """Parse a list, but leave its items unparsed. Items that are null become None.

    A list that is not UTF-8, which no API server sends, is parsed completely. Raises
    UnreachableError.
    """
    try:
        fields = msgspec.json.decode(text, type=_Fields)
    except _NOT_JSON:
        return parse_object(text)
    items = fields.pop("items", None)
    page = _parse_fields(fields)
    if items is not None:
        page["items"] = None if bytes(items) == b"null" else items
    return page


def split_list(page: Json) -> tuple[Json, Iterator[Json]]:
    """Return the list from `parse_list` without its items, together with an iterator over the
    items.

    The returned list contains `items: None` if the API server sent null as its items. Both this
    function and the iterator may raise UnreachableError.
    """
    items = page.pop("items", _NO_ITEMS)
    if items is None:
        return page | {"items": None}, iter(())
    if isinstance(items, list) and all(isinstance(item, dict) for item in items):
        return page, iter(items)
    if not isinstance(items, msgspec.Raw):
        raise UnreachableError("the response is not a list")
    return page, _items(items)


_NO_ITEMS: Final = object()


def _items(text: msgspec.Raw) -> Iterator[Json]:
    """Yield the objects of a list, which are parsed one at a time. Raises UnreachableError."""
    try:
        items = msgspec.json.decode(text, type=list[msgspec.Raw])
    except _NOT_JSON as error:
        raise UnreachableError("the response is not a list") from error
    for item in items:
        fields = _fields(item)
        if "metadata" in fields:
            metadata = _fields(fields["metadata"])
            metadata.pop("managedFields", None)
            fields.pop("metadata")
            yield {**_parse_fields(fields), "metadata": _parse_fields(metadata)}
        else:
            yield _parse_fields(fields)


def _fields(text: bytes | msgspec.Raw) -> _Fields:
    try:
        return msgspec.json.decode(text, type=_Fields)
    except _NOT_JSON as error:
        raise UnreachableError("the response is not a JSON object") from error


def _parse_fields(fields: _Fields) -> Json:
    return {name: parse_object(b'{"":' + bytes(text) + b"}")[""] for name, text in fields.items()}


def _without_surrogates(value: object) -> object:
    """Return a text without lone surrogates, because Python's encoders reject them."""
    match value:
        case str():
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case list():
            return [_without_surrogates(item) for item in value]
        case dict():
            with_keys = {_without_surrogates(key): item for key, item in value.items()}
            return {key: _without_surrogates(item) for key, item in with_keys.items()}
        case _:
            return value
