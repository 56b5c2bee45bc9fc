"""Parses HTTP requests and builds responses, as bytes and without sockets.

h11 parses the head of a request. This module limits the size of the head, extracts the parts of the
request that the server uses, and builds the head of the response. The sockets are in
agent.reporting.http_server.
"""

import email.utils
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

HEAD_BYTES: Final = 12 << 10  # The size limit of the request line and all headers together.
HEADER_LINES: Final = 100
_HEAD_LINES: Final = HEADER_LINES + 2  # The head also contains the request line and the empty line.
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The parts of an HTTP request that the server uses."""

    method: str
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class Response:
    """A response with a status and a body; the connections share the body without copying it."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    rest: bytes = b""
    """The end of the body, if only its beginning differs between connections."""

    def head(self) -> bytes:
        """Return the status line, the headers and the empty line after the headers."""
        lines = [
            f"HTTP/1.0 {self.status.value} {self.status.phrase}",
            "Server: profile-loader",
            f"Date: {email.utils.formatdate(usegmt=True)}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body) + len(self.rest)}",
            *(["Allow: GET, HEAD"] if self.status == HTTPStatus.METHOD_NOT_ALLOWED else []),
            "Cache-Control: no-store",
            f"Content-Security-Policy: {PAGE_POLICY}",
            "X-Content-Type-Options: nosniff",
            "Referrer-Policy: no-referrer",
            "Connection: close",
        ]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")

    def parts(self, *, head_only: bool) -> list[memoryview]:
        """Return the parts of the response that are not empty, without copying the body."""
        body = () if head_only else (self.body, self.rest)
        return [memoryview(part) for part in (self.head(), *body) if part]


HEAD_TOO_LARGE: Final = Response(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the head of a request is limited to {HEAD_BYTES} bytes and {HEADER_LINES} headers\n".encode(),
)
MALFORMED: Final = Response(HTTPStatus.BAD_REQUEST, b"not a valid HTTP/1.0 or HTTP/1.1 request\n")
METHOD_NOT_ALLOWED: Final = Response(HTTPStatus.METHOD_NOT_ALLOWED, b"method not allowed\n")
NOT_FOUND: Final = Response(HTTPStatus.NOT_FOUND, b"not found\n")
NO_REPORT: Final = Response(HTTPStatus.SERVICE_UNAVAILABLE, b"no pass has ended yet\n")
FAILED: Final = Response(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    b"this page could not be rendered; the log contains the error\n",
)


def probe_response(reason: str) -> Response:
    """Return the response to a probe; the probe fails if a reason is passed."""
    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
    return Response(status, f"{reason or 'ok'}\n".encode("utf-8", "replace"))


def json_response(report: bytes) -> Response:
    """Return the response with a JSON report, which is empty before the first pass has ended."""
    return Response(HTTPStatus.OK, report, "application/json") if report else NO_REPORT


class RequestParser:
    """Parses the head of one request, which may arrive in several pieces."""

    def __init__(self) -> None:
        # h11 raises an error when it has received more bytes than this without a complete head.
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES - 1)
        self._received = 0
        self._lines = 0
        self._last_bytes = b""

    @property
    def missing_bytes(self) -> int:
        """The largest size in bytes that the next piece may have; never 0."""
        return HEAD_BYTES - self._received

    def receive(self, piece: bytes) -> Request | Response | None:
        """Add a piece, and parse the head if it is complete.

        Returns:
            The request, or the response that rejects it, or None while the head is incomplete.
        """
        self._received += len(piece)
        if self._has_too_many_lines(piece):
            return HEAD_TOO_LARGE
        try:
            self._connection.receive_data(piece)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            too_large = error.error_status_hint == HEAD_TOO_LARGE.status
            return HEAD_TOO_LARGE if too_large else MALFORMED
        if not isinstance(event, h11.Request):
            return None
        if not event.http_version.startswith(b"1."):
            return MALFORMED
        accept = b",".join(value for name, value in event.headers if name == b"accept")
        return Request(
            method=event.method.decode("ascii"),
            path=re.sub("^/+", "/", event.target.decode("ascii").partition("?")[0]),
            accept=accept.decode("latin-1"),
        )

    def _has_too_many_lines(self, piece: bytes) -> bool:
        """Return whether the head has more lines than the limit. This check comes before h11 parses
        the head.

        h11 needs 20 microseconds for each line, so that many small requests could use a whole CPU.
        """
        text = self._last_bytes + piece
        end = _END_OF_HEAD.search(text)
        self._lines += text.count(b"\n", len(self._last_bytes), end.end() if end else len(text))
        self._last_bytes = text[-2:]
        return self._lines > _HEAD_LINES
