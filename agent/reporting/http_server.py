"""The daemon's HTTP server for metrics, probes and the status page.

One thread serves all connections to one listening address. The following rules ensure that no
client can crash the agent, delay the work on the node or block the probes:

- The server responds to probes immediately. A few connections are reserved for the metrics, and a
  few others for the status page and the JSON report. If no such connection is left, the server
  closes the oldest connection when a new request arrives.
- The number of connections without a complete request is limited, and these connections time out.
  A new connection replaces the oldest connection.
- All connections share the bytes of a page. If a client does not read, its connection is reset, so
  that neither the process nor the kernel keeps bytes for the client.
- Rendering and sending pages uses at most a quarter of one CPU.

The server reads the last report and never starts a pass. agent.reporting.http_messages parses
requests; agent.reporting.status_store renders the pages.
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
from agent.reporting.http_messages import Request, RequestParser, Response
from agent.reporting.http_tls import Certificates

READING_CONNECTIONS: Final = 32  # The largest number of connections with an incomplete request.
# The largest number of connections that receive the status page or the report. The same limit
# applies separately to the connections that receive metrics.
PAGE_CONNECTIONS: Final = 4
# The largest number of connections whose response was sent but is not acknowledged yet.
CLOSING_CONNECTIONS: Final = 24
# The time limit for the TLS handshake and the head of the request together.
REQUEST_SECONDS: Final = 5.0
RESPONSE_SECONDS: Final = 10.0  # The time limit for the whole response.
CLOSING_SECONDS: Final = 2.0
# The interval at which the server checks for acknowledgements, because no event reports them.
TICK_SECONDS: Final = 0.02
CPU_SHARE: Final = 0.25  # The share of one CPU that rendering and sending pages may use.
# The unused CPU time that may accumulate, so that a single request never has to wait.
BURST_SECONDS: Final = 0.2
BACKLOG: Final = 128
RECEIVE_BUFFER: Final = 16 << 10  # The size of the kernel's buffer for one connection.
SEND_BUFFER: Final = 64 << 10
ACCEPTED_PER_ROUND: Final = 32
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAGES: Final = {"/metrics": "metrics", "/": "page", "/statusz": "page", "/report.json": "json"}
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("agent")


class Pages(Protocol):
    """The content that the server provides."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return the content type and the body of the metrics."""

    def health(self) -> str:
        """Return the reason why the agent is not alive, or "" if it is alive."""

    def ready(self) -> str:
        """Return the reason why the agent is not ready, or "" if it is ready."""

    def status(self) -> tuple[bytes, bytes]:
        """Return the beginning of the status page, and the rest, which all connections share."""

    def json(self) -> bytes:
        """Return the report of the last pass as JSON; empty before the first pass has ended."""


_Stage = Literal["reading", "metrics", "page", "closing"]
_LIMITS: Final[dict[_Stage, int]] = {
    "reading": READING_CONNECTIONS,
    "metrics": PAGE_CONNECTIONS,
    "page": PAGE_CONNECTIONS,
    "closing": CLOSING_CONNECTIONS,
}


@dataclass(slots=True, eq=False)
class _Connection:
    """A connection of a client."""

    socket: socket.socket
    deadline: float
    """The time at which the server resets the connection, in monotonic seconds."""
    is_open: bool
    """Whether the TLS handshake is complete; always true without TLS."""
    stage: _Stage = "reading"
    """The next step for the connection."""
    events: int = select.POLLIN
    """The socket events for which the connection waits."""
    parser: RequestParser = field(default_factory=RequestParser)
    request: Request | None = None
    """The request for a page that has not been rendered yet."""
    unsent: list[memoryview] = field(default_factory=list)
    is_shut: bool = False
    """Whether the server has told the client that the response is complete."""


class HttpServer:
    """Serves pages on one address without TLS, with TLS, or with TLS and client certificates.

    Only the thread that `start` creates may use the state of this object. The thread ends with the
    process.
    """

    def __init__(
        self,
        address: str,
        pages: Pages,
        *,
        certificates: Certificates | None = None,
    ) -> None:
        """Create the server, which listens immediately. Raises OSError.

        Args:
            address: HOST:PORT or :PORT, for example `[::1]:9808`.
            pages: the content that the server provides.
            certificates: the certificates for TLS, or None for plain HTTP.
        """
        self.pages = pages
        self._tls = certificates
        self._listener = _listener(address)
        self.port: int = self._listener.getsockname()[1]
        # Each dictionary is used as an ordered set, in which the oldest connection comes first.
        self._stages: dict[_Stage, dict[_Connection, None]] = {stage: {} for stage in _LIMITS}
        # Before this monotonic time in seconds, no page is rendered or sent.
        self._pages_at = 0.0
        # Before this monotonic time in seconds, no connection is accepted.
        self._accept_at = 0.0

    def start(self) -> None:
        """Start the thread of the server, and return immediately."""
        threading.Thread(target=self._run, name="http", daemon=True).start()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._serve_round()

    def _connections(self) -> list[_Connection]:
        return [connection for stage in self._stages.values() for connection in stage]

    def _serve_round(self) -> None:
        """Wait for events, and handle all requests and probes before any page."""
        ready = self._wait()
        now = time.monotonic()
        for connection in self._connections():
            if now >= connection.deadline:
                self._reset(connection)
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
        """Wait for events until the next deadline, and return the descriptors that are ready."""
        now = time.monotonic()
        poll = select.poll()
        wake_at = [connection.deadline for connection in self._connections()]
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
        """Handle the events of one connection; an error ends only this connection."""
        try:
            act(connection)
        except ssl.SSLWantReadError:
            connection.events = select.POLLIN
        except ssl.SSLWantWriteError:
            connection.events = select.POLLOUT
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._reset(connection)  # The client closed the connection or does not use TLS.
        except Exception:  # noqa: BLE001 - an error in this thread would end the agent
            _log.exception("connection_failed")
            self._reset(connection)

    # --- new connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept new connections, up to a limit.

        Read each new connection immediately, since its request has often arrived already.
        """
        for _ in range(ACCEPTED_PER_ROUND):
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._accept_at = time.monotonic() + TICK_SECONDS
                    self._reset_oldest("reading")
                return  # Any other error means that the client has already closed the connection.
            self._begin(accepted)

    def _begin(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            wrapped = self._tls.wrap(accepted) if self._tls is not None else accepted
        except (OSError, ValueError):
            accepted.close()
            return
        deadline = time.monotonic() + REQUEST_SECONDS
        connection = _Connection(wrapped, deadline, is_open=self._tls is None)
        self._enter("reading", connection)
        self._guarded(connection, self._read)

    def _enter(self, stage: _Stage, connection: _Connection) -> None:
        """Move a connection to a stage. If the stage is full, its oldest connection is reset."""
        self._stages[connection.stage].pop(connection, None)
        if len(self._stages[stage]) >= _LIMITS[stage]:
            self._reset_oldest(stage)
        connection.stage = stage
        self._stages[stage][connection] = None

    def _reset_oldest(self, stage: _Stage) -> None:
        for connection in list(self._stages[stage])[:1]:
            self._reset(connection)

    def _reset(self, connection: _Connection) -> None:
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
        """Read the available part of a request, and process the request when it is complete."""
        if not connection.is_open and isinstance(connection.socket, ssl.SSLSocket):
            connection.socket.do_handshake()
            connection.is_open = True
        connection.events = select.POLLIN
        while True:
            piece = connection.socket.recv(connection.parser.missing_bytes)
            if not piece:
                self._forget(connection)
                return
            request = connection.parser.receive(piece)
            if request is not None:
                self._classify(connection, request)
                return

    def _classify(self, connection: _Connection, request: Request | Response) -> None:
        """Send a short response immediately, or queue a request for a page."""
        response = request if isinstance(request, Response) else self._short(request)
        if response is not None:
            head_only = isinstance(request, Request) and request.method == "HEAD"
            connection.unsent = response.parts(head_only=head_only)
            self._enter("closing", connection)
            self._send(connection)  # The response fits into the empty send buffer.
            return
        if isinstance(request, Request):
            connection.request = request
            connection.deadline = time.monotonic() + RESPONSE_SECONDS
            connection.events = select.POLLOUT
            self._enter("metrics" if _PAGES[request.path] == "metrics" else "page", connection)

    def _short(self, request: Request) -> Response | None:
        """Return the response to a probe or to an invalid request, or None for a page."""
        if request.method not in ("GET", "HEAD"):
            return http_messages.METHOD_NOT_ALLOWED
        match request.path:
            case "/healthz":
                return self._render(
                    request, lambda: http_messages.probe_response(self.pages.health())
                )
            case "/readyz":
                return self._render(
                    request, lambda: http_messages.probe_response(self.pages.ready())
                )
            case path if path in _PAGES:
                return None
            case _:
                return http_messages.NOT_FOUND

    def _render(self, request: Request, render: Callable[[], Response]) -> Response:
        """Return a response; if rendering fails, log the error and return status 500."""
        try:
            return render()
        except Exception:  # noqa: BLE001 - an error of a page must not end the agent
            _log.exception("page_failed", path=request.path)
            return http_messages.FAILED

    # --- pages ------------------------------------------------------------------------------------

    def _serve_pages(self, ready: set[int]) -> None:
        """Render and send pages, and delay the next pages if this work exceeded the CPU share."""
        begin = time.thread_time()
        for connection in [*self._stages["metrics"], *self._stages["page"]]:
            if connection.request is not None or connection.socket.fileno() in ready:
                self._guarded(connection, self._serve)
        saved_since = max(self._pages_at, time.monotonic() - BURST_SECONDS)
        self._pages_at = saved_since + (time.thread_time() - begin) / CPU_SHARE

    def _serve(self, connection: _Connection) -> None:
        """Render the page of a connection if necessary, and send the next part of the page."""
        request = connection.request
        if request is not None:
            connection.request = None
            response = self._render(request, lambda: self._page(request))
            connection.unsent = response.parts(head_only=request.method == "HEAD")
        self._send(connection)
        if not connection.unsent:
            self._enter("closing", connection)

    def _page(self, request: Request) -> Response:
        if _PAGES[request.path] == "metrics":
            content_type, body = self.pages.metrics(request.accept)
            return Response(HTTPStatus.OK, body, content_type)
        if _PAGES[request.path] == "json":
            return http_messages.json_response(self.pages.json())
        beginning, rest = self.pages.status()
        return Response(HTTPStatus.OK, beginning, "text/html; charset=utf-8", rest)

    def _send(self, connection: _Connection) -> None:
        """Send as many bytes as the kernel accepts. Raises OSError, including BlockingIOError."""
        connection.events = select.POLLOUT
        while connection.unsent:
            part = connection.unsent[0]
            sent = connection.socket.send(part[:SEND_BUFFER])
            connection.unsent[:1] = [part[sent:]] if sent < len(part) else []

    # --- the end of a connection ------------------------------------------------------------------

    def _finish(self, connection: _Connection) -> None:
        """Close a connection as soon as the kernel of the client has acknowledged every byte."""
        if connection.unsent:
            self._send(connection)
        if not connection.is_shut:
            connection.is_shut = True
            soon = time.monotonic() + CLOSING_SECONDS
            connection.deadline = max(connection.deadline, soon)  # A slow network needs this time.
            # SSLSocket.shutdown is not used, because it would remove the encryption first.
            socket.socket.shutdown(connection.socket, socket.SHUT_WR)
        unacknowledged = fcntl.ioctl(connection.socket, termios.TIOCOUTQ, bytes(4))  # see tcp(7)
        if not int.from_bytes(unacknowledged, sys.byteorder):
            self._forget(connection)


def _listener(address: str) -> socket.socket:
    """Listen on an address such as `:9808`, `127.0.0.1:9808` or `[::1]:9808`. Raises OSError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    dual_stack = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack or ":" in host else socket.AF_INET
    listener = socket.create_server(
        (host, int(port)), family=family, dualstack_ipv6=dual_stack, backlog=BACKLOG
    )
    listener.setblocking(False)
    # Accepted connections inherit these two options. Without them, the kernel would use megabytes
    # of memory for each connection.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return listener
