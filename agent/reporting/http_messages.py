"""HTTP requests and responses as bytes, without sockets.

This module parses the head of a request within limits and builds the head of a response. Of the
headers only Accept is interpreted: Python's http.server reads megabytes of headers and gives them
to the e-mail parser, which a few bytes can crash or occupy for seconds. The sockets are in
agent.reporting.http_server.
"""

import email.utils
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

LINE_BYTES: Final = 4096  # limit of the request line
HEADER_BYTES: Final = 8192  # limit of all headers together
HEADER_LINES: Final = 100
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_CONTROL: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")  # includes a bare CR: RFC 9112, 2.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The parts of a request that the server uses."""

    method: str
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class Response:
    """A status and a body. The body is shared between connections and never copied."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def head(self) -> bytes:
        """Return the status line and the headers, with the empty line after them."""
        lines = [
            f"HTTP/1.0 {self.status.value} {self.status.phrase}",
            "Server: profile-loader",
            f"Date: {email.utils.formatdate(usegmt=True)}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *(["Allow: GET, HEAD"] if self.status == HTTPStatus.METHOD_NOT_ALLOWED else []),
            "Cache-Control: no-store",
            f"Content-Security-Policy: {PAGE_POLICY}",
            "X-Content-Type-Options: nosniff",
            "Referrer-Policy: no-referrer",
            "Connection: close",
        ]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


HEAD_TOO_LARGE: Final = Response(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the request line may have {LINE_BYTES} bytes, the headers {HEADER_BYTES} bytes in "
    f"{HEADER_LINES} lines\n".encode(),
)
MALFORMED: Final = Response(HTTPStatus.BAD_REQUEST, b"not a request of HTTP/1.0 or 1.1\n")
METHOD_NOT_ALLOWED: Final = Response(HTTPStatus.METHOD_NOT_ALLOWED, b"method not allowed\n")
NOT_FOUND: Final = Response(HTTPStatus.NOT_FOUND, b"not found\n")
FAILED: Final = Response(
    HTTPStatus.INTERNAL_SERVER_ERROR, b"this page could not be made; the log says why\n"
)


def parse(received: bytes) -> Request | Response | None:
    """Parse the head of a request; None if it is not complete yet.

    Returns:
        The request, or the response that rejects it.
    """
    end = _HEAD_END.search(received)
    if end is None:
        return HEAD_TOO_LARGE if len(received) >= LINE_BYTES + HEADER_BYTES else None
    head = received[: end.end()]
    line_length = head.index(b"\n") + 1
    lines = [line.removesuffix("\r") for line in head.decode("latin-1").split("\n")]
    line, *headers, _, _ = lines  # the empty line and the end of the text after it
    header_bytes = len(head) - line_length
    if line_length > LINE_BYTES or header_bytes > HEADER_BYTES or len(headers) > HEADER_LINES:
        return HEAD_TOO_LARGE
    words = line.split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004 - RFC 9112, 3
        return MALFORMED
    accept = _accept(headers)
    if accept is None:
        return MALFORMED
    path = re.sub("^/+", "/", words[1].partition("?")[0])
    return Request(method=words[0], path=path, accept=accept)


def _accept(headers: list[str]) -> str | None:
    """Return the value of the Accept headers; None if a header is malformed."""
    values = []
    for header in headers:
        name, colon, value = header.partition(":")
        # A continued line begins with a space: RFC 9112, 5.2.
        if not (name and colon) or name != name.strip() or _CONTROL.search(header):
            return None
        if name.lower() == "accept":
            values.append(value.strip())
    return ",".join(values)
