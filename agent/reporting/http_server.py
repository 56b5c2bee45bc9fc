"""The HTTP server of the daemon: metrics, probes and a page for people.

One thread serves all connections of one address; nothing that a client does may crash the agent,
delay its work on the node or keep a probe from being answered:

- A connection is classified by its request line. Probes are answered at once. Pages and metrics
  have a few connections of each sort; a newer request closes the oldest one of its sort.
- Connections without a complete request are limited, expire, and make room for newer ones.
- The body of a response is one bytes object that all connections share. A client that does not
  read is cut with a reset, so that neither the process nor the kernel keeps bytes for it.
- Making and sending pages takes at most a quarter of one CPU.

The server reads the last report and never starts a pass. agent.reporting.http_messages parses
requests; agent.reporting.status_store makes the pages.
"""

import contextlib
import errno
import fcntl
import select
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, Protocol

import structlog

from agent.reporting import http_messages
from agent.reporting.http_messages import Request, Response
from agent.reporting.http_tls import Certificates

READING_CONNECTIONS: Final = 32  # connections whose request is not complete
PAGE_CONNECTIONS: Final = 4  # connections that receive the status page; as many receive metrics
CLOSING_CONNECTIONS: Final = 24  # connections whose response is sent and not yet acknowledged
REQUEST_SECONDS: Final = 5.0  # for the TLS handshake and the head of the request together
RESPONSE_SECONDS: Final = 10.0  # for the whole response
CLOSING_SECONDS: Final = 2.0
TICK_SECONDS: Final = 0.02  # between two looks at acknowledgements, of which no event reports
CPU_SHARE: Final = 0.25  # of one CPU, for making and sending pages
BURST_SECONDS: Final = 0.2  # of that share may be saved up, so that a lone request never waits
BACKLOG: Final = 128
RECEIVE_BUFFER: Final = 16 << 10  # in the kernel, per connection
SEND_BUFFER: Final = 64 << 10
ACCEPTED_PER_TURN: Final = 32
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAGES: Final = {"/metrics": "metrics", "/": "page", "/statusz": "page"}
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("agent")


class Pages(Protocol):
    """The content that is served."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body."""

    def health(self) -> str:
        """Return why the agent is not alive, or an empty text."""

    def ready(self) -> str:
        """Return why the agent is not ready, or an empty text."""

    def status(self) -> bytes:
        """Return the status page as HTML."""


_Stage = Literal["reading", "metrics", "page", "closing"]


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection. The stage says what the server does for it next."""

    socket: socket.socket
    deadline: float  # monotonic seconds
    is_open: bool  # the TLS handshake is done, or there is none
    stage: _Stage = "reading"
    events: int = select.POLLIN  # events that the stage waits for
    received: bytearray = field(default_factory=bytearray)
    request: Request | None = None
    unsent: list[memoryview] = field(default_factory=list)
    is_shut: bool = False  # the end of the response was announced to the client


class HttpServer:
    """Serves pages on one address: plain, over TLS, or over TLS for clients of one authority.

    All state belongs to the thread that `start` creates; `close` may be called from any thread.
    """

    def __init__(
        self,
        address: str,
        pages: Pages,
        *,
        certificates: Certificates | None = None,
        request_seconds: float = REQUEST_SECONDS,
        response_seconds: float = RESPONSE_SECONDS,
    ) -> None:
        """Listen at once. Raises OSError."""
        self.pages = pages
        self._request_seconds = request_seconds
        self._response_seconds = response_seconds
        self._tls = certificates
        self._listener = _listener(address)
        self.port: int = self._listener.getsockname()[1]
        self._limits: dict[_Stage, int] = {
            "reading": READING_CONNECTIONS,
            "metrics": PAGE_CONNECTIONS,
            "page": PAGE_CONNECTIONS,
            "closing": CLOSING_CONNECTIONS,
        }
        # Dictionaries as ordered sets: the oldest connection first.
        self._stages: dict[_Stage, dict[_Connection, None]] = {one: {} for one in self._limits}
        self._pages_at = 0.0  # monotonic seconds; until then pages wait
        self._accept_at = 0.0  # monotonic seconds; until then no descriptor is free
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Start to serve; returns at once. The thread ends with the process."""
        self._thread.start()

    def close(self) -> None:
        """Close the listener and every connection, and return when that is done."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            self._turn()
        for connection in self._all():
            self._cut(connection)

    def _all(self) -> list[_Connection]:
        return [one for stage in self._stages.values() for one in stage]

    def _turn(self) -> None:
        """Wait for events and do what they allow: requests and probes first, then pages."""
        ready = self._wait()
        now = time.monotonic()
        for connection in self._all():
            if now >= connection.deadline:
                self._cut(connection)
        if self._listener.fileno() in ready:
            self._accept()
        for connection in list(self._stages["reading"]):
            if connection.socket.fileno() in ready:
                self._guarded(connection, self._read)
        if now >= self._pages_at:
            self._serve_pages(ready)
        for connection in list(self._stages["closing"]):
            self._guarded(connection, self._finish)

    def _wait(self) -> set[int]:
        """Return the descriptors that are ready, at the next deadline at the latest."""
        now = time.monotonic()
        poll = select.poll()
        wake_at = [one.deadline for one in self._all()]
        if now >= self._accept_at:
            poll.register(self._listener, select.POLLIN)
        else:
            wake_at.append(self._accept_at)
        for connection in self._stages["reading"]:
            poll.register(connection.socket, connection.events)
        pages = [*self._stages["metrics"], *self._stages["page"]]
        if pages and now < self._pages_at:
            wake_at.append(self._pages_at)
        else:
            for connection in pages:
                poll.register(connection.socket, connection.events)
        if self._stages["closing"]:
            wake_at.append(now + TICK_SECONDS)
        seconds = max(0.0, min(wake_at) - now) if wake_at else None
        events = poll.poll(None if seconds is None else seconds * 1000 + 1)
        return {descriptor for descriptor, _ in events}

    def _guarded(self, connection: _Connection, act: Callable[[_Connection], None]) -> None:
        """Act on one connection. Whatever happens, only that connection ends."""
        try:
            act(connection)
        except ssl.SSLWantReadError:
            connection.events = select.POLLIN
        except ssl.SSLWantWriteError:
            connection.events = select.POLLOUT
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._cut(connection)  # the client is gone or does not speak TLS
        except Exception:  # noqa: BLE001 - an error in this thread would end the agent
            _log.exception("connection_failed")
            self._cut(connection)

    # --- new connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept some connections, and read each at once: its request is often there already."""
        for _ in range(ACCEPTED_PER_TURN):
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._accept_at = time.monotonic() + TICK_SECONDS
                    self._cut_oldest("reading")
                return  # else the client is gone already
            self._begin(accepted)

    def _begin(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            wrapped = self._tls.wrap(accepted) if self._tls is not None else accepted
        except (OSError, ValueError):
            accepted.close()
            return
        deadline = time.monotonic() + self._request_seconds
        connection = _Connection(wrapped, deadline, is_open=self._tls is None)
        self._enter("reading", connection)
        self._guarded(connection, self._read)

    def _enter(self, stage: _Stage, connection: _Connection) -> None:
        """Move a connection to a stage. If the stage is full, its oldest connection is cut."""
        self._stages[connection.stage].pop(connection, None)
        if len(self._stages[stage]) >= self._limits[stage]:
            self._cut_oldest(stage)
        connection.stage = stage
        self._stages[stage][connection] = None

    def _cut_oldest(self, stage: _Stage) -> None:
        for connection in list(self._stages[stage])[:1]:
            self._cut(connection)

    def _cut(self, connection: _Connection) -> None:
        """Reset a connection, so that the kernel keeps nothing for a client that does not read."""
        with contextlib.suppress(OSError):
            reset = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._stages[connection.stage].pop(connection, None)
        with contextlib.suppress(OSError):
            connection.socket.close()

    # --- requests ---------------------------------------------------------------------------------

    def _read(self, connection: _Connection) -> None:
        """Read a request as far as it is there, and classify it once it is complete."""
        if not connection.is_open and isinstance(connection.socket, ssl.SSLSocket):
            connection.socket.do_handshake()
            connection.is_open = True
        connection.events = select.POLLIN
        limit = http_messages.LINE_BYTES + http_messages.HEADER_BYTES
        while True:
            piece = connection.socket.recv(limit - len(connection.received))
            if not piece:
                self._forget(connection)
                return
            connection.received += piece
            request = http_messages.parse(bytes(connection.received))
            if request is not None:
                self._classify(connection, request)
                return

    def _classify(self, connection: _Connection, request: Request | Response) -> None:
        """Answer a short response at once; let a request for a page wait for its turn."""
        connection.received = bytearray()
        response = request if isinstance(request, Response) else self._short(request)
        if response is not None:
            head_only = isinstance(request, Request) and request.method == "HEAD"
            connection.unsent = _parts(response, head_only=head_only)
            self._enter("closing", connection)
            self._send(connection)  # it fits into the empty send buffer
            return
        if isinstance(request, Request):
            connection.request = request
            connection.deadline = time.monotonic() + self._response_seconds
            connection.events = select.POLLOUT
            self._enter("metrics" if _PAGES[request.path] == "metrics" else "page", connection)

    def _short(self, request: Request) -> Response | None:
        """Return the response to a probe or to a mistake; None for a page."""
        if request.method not in ("GET", "HEAD"):
            return http_messages.METHOD_NOT_ALLOWED
        match request.path:
            case "/healthz":
                return self._made(request, lambda: _probe(self.pages.health()))
            case "/readyz":
                return self._made(request, lambda: _probe(self.pages.ready()))
            case path if path in _PAGES:
                return None
            case _:
                return http_messages.NOT_FOUND

    def _made(self, request: Request, make: Callable[[], Response]) -> Response:
        """Return a response; an error while it is made becomes a 500 and a log line."""
        try:
            return make()
        except Exception:  # noqa: BLE001 - a broken page must not end the work on the node
            _log.exception("page_failed", path=request.path)
            return http_messages.FAILED

    # --- pages ------------------------------------------------------------------------------------

    def _serve_pages(self, ready: set[int]) -> None:
        """Make and send pages, and let the next ones wait if that took more than its share."""
        begin = time.thread_time()
        for connection in [*self._stages["metrics"], *self._stages["page"]]:
            if connection.request is not None or connection.socket.fileno() in ready:
                self._guarded(connection, self._serve)
        saved_since = max(self._pages_at, time.monotonic() - BURST_SECONDS)
        self._pages_at = saved_since + (time.thread_time() - begin) / CPU_SHARE

    def _serve(self, connection: _Connection) -> None:
        """Make the page of a connection if that is still to be done, and send a part of it."""
        request = connection.request
        if request is not None:
            connection.request = None
            response = self._made(request, lambda: self._page(request))
            connection.unsent = _parts(response, head_only=request.method == "HEAD")
        self._send(connection)
        if not connection.unsent:
            self._enter("closing", connection)

    def _page(self, request: Request) -> Response:
        if _PAGES[request.path] == "metrics":
            content_type, body = self.pages.metrics(request.accept)
            return Response(HTTPStatus.OK, body, content_type)
        return Response(HTTPStatus.OK, self.pages.status(), "text/html; charset=utf-8")

    def _send(self, connection: _Connection) -> None:
        """Send as much as the kernel takes. Raises OSError, BlockingIOError among them."""
        connection.events = select.POLLOUT
        while connection.unsent:
            part = connection.unsent[0]
            sent = connection.socket.send(part[:SEND_BUFFER])
            connection.unsent[:1] = [part[sent:]] if sent < len(part) else []

    # --- the end of a connection ------------------------------------------------------------------

    def _finish(self, connection: _Connection) -> None:
        """Close a connection once its client's kernel has acknowledged every byte."""
        if connection.unsent:
            self._send(connection)
        if not connection.is_shut:
            connection.is_shut = True
            soon = time.monotonic() + CLOSING_SECONDS
            connection.deadline = max(connection.deadline, soon)  # a slow link needs its time
            # SSLSocket.shutdown would drop the encryption first.
            socket.socket.shutdown(connection.socket, socket.SHUT_WR)
        unacknowledged = fcntl.ioctl(connection.socket, termios.TIOCOUTQ, bytes(4))  # tcp(7)
        if not int.from_bytes(unacknowledged, sys.byteorder):
            self._forget(connection)


def _listener(address: str) -> socket.socket:
    """Listen on `:9808`, `127.0.0.1:9808` or `[::1]:9808`. Raises OSError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    dual_stack = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack or ":" in host else socket.AF_INET
    listener = socket.create_server(
        (host, int(port)), family=family, dualstack_ipv6=dual_stack, backlog=BACKLOG
    )
    listener.setblocking(False)
    # Accepted connections inherit both; without them the kernel grants megabytes to each.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return listener


def _parts(response: Response, *, head_only: bool) -> list[memoryview]:
    """Return the parts of a response to send; the body is not copied."""
    parts = (response.head(), b"" if head_only else response.body)
    return [memoryview(part) for part in parts if part]


def _probe(reason: str) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
    return Response(status, f"{reason or 'ok'}\n".encode("utf-8", "replace"))
