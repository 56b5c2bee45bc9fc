"""The HTTP server of the daemon: metrics, probes and a page for people.

Rule 1: it reads what the last pass left, and never makes one run. Rule 2: a slow or idle client
holds one thread of its own; when there are many, the oldest makes room, so that a scrape or a probe
never waits. Rule 3: GET and HEAD of known paths. Rule 4: a page that cannot be made is a 500 and a
line in the log, and so is whatever a connection's thread meets; the work on the node goes on.
Rule 5: of a request only its head is read, within bounds of bytes, lines and time; of its headers
only Accept is looked at.

prometheus_client's own server does the TLS handshake in the thread that accepts, so that one idle
connection stops every scrape, and gives metrics on every path: therefore this one. The standard
library's http.server reads megabytes of headers for a request and gives them to the parser of
e-mails, which a few bytes bring to an error and some more to seconds of work: therefore no child
of its.
"""

import contextlib
import email.utils
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

import structlog

CONNECTIONS: Final = 32
PATIENCE_SECONDS: Final = 5.0  # for the handshake, then for a request's head, then for a write
BACKLOG: Final = 512
LINE_BYTES: Final = 4096  # of a request's first line
HEADER_BYTES: Final = 8192  # of all its headers
HEADER_LINES: Final = 100
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("agent")


class Pages(Protocol):
    """What is served."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body."""

    def health(self) -> str:
        """Return why the agent does not live, or nothing."""

    def ready(self) -> str:
        """Return why it is not ready, or nothing."""

    def status(self) -> str:
        """Return the page, as HTML."""


def _address(text: str) -> tuple[str, int]:
    """Return host and port of `:9808`, `127.0.0.1:9808` or `[::1]:9808`."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class Server:
    """Serves pages on one address; with a certificate over TLS, with a CA to its clients only."""

    def __init__(
        self,
        where: str,
        pages: Pages,
        *,
        certfile: str = "",
        keyfile: str = "",
        client_ca: str = "",
    ) -> None:
        """Listen at once. Raises OSError (also for a certificate that cannot be read)."""
        self.pages = pages
        self.patience_seconds = PATIENCE_SECONDS
        self.tls = _Tls(certfile, keyfile, client_ca) if certfile else None
        host, port = _address(where)
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        self.listener = socket.create_server(
            (host, port), family=family, dualstack_ipv6=both, backlog=BACKLOG
        )
        self.port: int = self.listener.getsockname()[1]
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to serve; returns at once. The threads end with the process."""
        threading.Thread(target=self._accept, name="http", daemon=True).start()

    def close(self) -> None:
        """End: no new connection, and those that are open are cut."""
        with self._lock:
            self._ended.set()
            connections = list(self._open)
        for one in (self.listener, *connections):
            _cut(one)
        self.listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                # The client went away, or there are no descriptors left for the moment.
                self._ended.wait(0.1)
                continue
            try:
                self._begin(connection)
            except (OSError, ValueError, RuntimeError):
                connection.close()  # gone already, or no thread can be had for the moment

    def _begin(self, accepted: socket.socket) -> None:
        """Give a connection a thread; where there are too many, the oldest one ends."""
        accepted.settimeout(self.patience_seconds)
        connection = self.tls.wrap(accepted) if self.tls is not None else accepted
        worker = threading.Thread(
            target=self._serve, args=(connection,), name="http connection", daemon=True
        )
        with self._lock:
            if self._ended.is_set():
                connection.close()
                return
            if len(self._open) >= CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _cut(oldest)
            self._open[connection] = None
        try:
            worker.start()
        except RuntimeError:
            self._forget(connection)
            raise

    def _serve(self, connection: socket.socket) -> None:
        try:
            try:
                if isinstance(connection, ssl.SSLSocket):
                    connection.do_handshake()
                self._answer(connection)
            finally:
                self._forget(connection)
        except (OSError, ValueError):
            pass  # a client that is slow, gone or speaks something else
        except Exception:  # noqa: BLE001 - a thread that dies of one would end the agent
            _log.exception("connection_failed")

    def _answer(self, connection: socket.socket) -> None:
        """Answer the one request of a connection."""
        head = _head(connection, time.monotonic() + self.patience_seconds)
        connection.settimeout(self.patience_seconds)
        request = _TOO_LARGE if head is None else _request(head)
        answer = request if isinstance(request, _Answer) else _find(request, self.pages)
        bare = isinstance(request, _Request) and request.method == "HEAD"
        connection.sendall(answer.head() + (b"" if bare else answer.body))

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)
        connection.close()


def _cut(one: socket.socket) -> None:
    """Wake whoever waits for a socket; its own thread closes it.

    SSLSocket.shutdown would first drop the encryption of a connection that another thread uses.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(one, socket.SHUT_RDWR)


class Uncertified(OSError):  # noqa: N818 - reads as what it is
    """A certificate, key or authority that cannot be read; the text names the option."""


class _Tls:
    """The server's side of TLS; a certificate that was renewed is read again."""

    def __init__(self, certfile: str, keyfile: str, client_ca: str) -> None:
        self.files = (certfile, keyfile, client_ca)
        self._signs = self._look()
        self._context = self._read()

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return the connection as a TLS one, before its handshake."""
        signs = self._look()
        if signs != self._signs:
            try:
                self._context = self._read()
                self._signs = signs
            except OSError as error:  # half renewed, perhaps: the one that was read serves on
                _log.warning("certificate_unreadable", error=str(error))
        return self._context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what tells one version of the files from another."""
        return tuple(_sign(one) for one in self.files)

    def _read(self) -> ssl.SSLContext:
        certfile, keyfile, client_ca = self.files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with _named(f"--tls-cert {certfile}" + (f", --tls-key {keyfile}" if keyfile else "")):
            context.load_cert_chain(certfile, keyfile or None)
        if client_ca:
            with _named(f"--tls-client-ca {client_ca}"):
                context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise Uncertified(f"{what}: {error.strerror or error}") from error


def _sign(file: str) -> tuple[int, int, int] | None:
    try:
        found = Path(file).stat() if file else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if found is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is looked at of a request."""

    method: str
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """A status with what is sent below it."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def head(self) -> bytes:
        """Return the lines that are sent before the body."""
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


_TOO_LARGE: Final = _Answer(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the request line may have {LINE_BYTES} bytes, the headers {HEADER_BYTES} bytes in "
    f"{HEADER_LINES} lines\n".encode(),
)
_MALFORMED: Final = _Answer(HTTPStatus.BAD_REQUEST, b"not a request of HTTP/1.0 or 1.1\n")
_END: Final = re.compile(rb"\n\r?\n")
_CONTROL: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")  # a bare CR too: RFC 9112, 2.2


def _head(connection: socket.socket, end: float) -> bytes | None:
    """Return a request up to its empty line; nothing where that is further than is ever read.

    Raises OSError for a client that is gone, or has not sent it all at the time `end`.
    """
    found = bytearray()
    while left := LINE_BYTES + HEADER_BYTES - len(found):
        connection.settimeout(max(end - time.monotonic(), 0))  # then: only what is there already
        piece = connection.recv(left)
        if not piece:
            raise ConnectionError("the client went away within the head of its request")
        found += piece
        if at := _END.search(found, max(len(found) - len(piece) - 2, 0)):
            return bytes(found[: at.end()])
    return None


def _request(head: bytes) -> _Request | _Answer:
    """Return the request, or why it is refused."""
    ends = head.index(b"\n") + 1
    lines = [line.removesuffix("\r") for line in head.decode("latin-1").split("\n")]
    line, *headers, _, _ = lines  # the empty line, and nothing below it
    if ends > LINE_BYTES or len(head) - ends > HEADER_BYTES or len(headers) > HEADER_LINES:
        return _TOO_LARGE
    words = line.split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004 - as it is defined
        return _MALFORMED
    accept = []
    for header in headers:
        name, colon, value = header.partition(":")
        # A continued line begins with a space: RFC 9112, 5.2.
        if not (name and colon) or name != name.strip() or _CONTROL.search(header):
            return _MALFORMED
        if name.lower() == "accept":
            accept.append(value.strip())
    path = re.sub("^/+", "/", words[1].partition("?")[0])
    return _Request(method=words[0], path=path, accept=",".join(accept))


def _find(request: _Request, pages: Pages) -> _Answer:
    """Return the answer to a request; whatever a page meets becomes a 500."""
    answers: dict[str, Callable[[], _Answer]] = {
        "/metrics": lambda: _metrics(pages.metrics(request.accept)),
        "/healthz": lambda: _probe(pages.health()),
        "/readyz": lambda: _probe(pages.ready()),
        "/": lambda: _page(pages.status()),
        "/statusz": lambda: _page(pages.status()),
    }
    if request.method not in ("GET", "HEAD"):
        return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"method not allowed\n")
    make = answers.get(request.path)
    if make is None:
        return _Answer(HTTPStatus.NOT_FOUND, b"not found\n")
    try:
        return make()
    except Exception:  # noqa: BLE001 - a broken page must not end the work on the node
        _log.exception("page_failed", path=request.path)
        why = b"this page could not be made; the log says why\n"
        return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, why)


def _metrics(made: tuple[str, bytes]) -> _Answer:
    content_type, body = made
    return _Answer(HTTPStatus.OK, body, content_type)


def _page(made: str) -> _Answer:
    return _Answer(HTTPStatus.OK, made.encode("utf-8", "replace"), "text/html; charset=utf-8")


def _probe(why: str) -> _Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
    return _Answer(status, f"{why or 'ok'}\n".encode("utf-8", "replace"))
