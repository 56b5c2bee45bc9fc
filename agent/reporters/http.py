"""The HTTP server of the daemon: metrics, probes and a page for people.

Rule 1: it reads what the last pass left, and never makes one run. Rule 2: a slow or idle client
holds one of a few threads for some seconds and nothing else. Rule 3: GET and HEAD of known paths.

prometheus_client's own server does the TLS handshake in the thread that accepts, so that one idle
connection stops every scrape, and gives metrics on every path: therefore this one.
"""

import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Final, Protocol

THREADS: Final = 8
PATIENCE_SECONDS: Final = 5.0
WAITING: Final = 64  # connections that wait for a thread; more are closed
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"


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
        self.context = _context(certfile, keyfile, client_ca) if certfile else None
        host, port = _address(where)
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        self.listener = socket.create_server(
            (host, port), family=family, dualstack_ipv6=both, backlog=WAITING
        )
        self.port: int = self.listener.getsockname()[1]
        self._waiting: queue.Queue[socket.socket] = queue.Queue(WAITING)
        self._open: set[socket.socket] = set()
        self._ended = False
        self._paused = threading.Event()

    def start(self) -> None:
        """Begin to serve; returns at once. The threads end with the process."""
        threading.Thread(target=self._accept, name="http", daemon=True).start()
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"http-{number}", daemon=True).start()

    def close(self) -> None:
        """End: no new connection, and those that are open are cut."""
        self._ended = True
        for one in (self.listener, *list(self._open)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                # The client went away, or there are no descriptors left for the moment.
                self._paused.wait(0.1)
                continue
            try:
                self._waiting.put_nowait(connection)
            except queue.Full:
                connection.close()

    def _work(self) -> None:
        while not self._ended:
            self._serve(self._waiting.get())

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            connection.settimeout(PATIENCE_SECONDS)
            with self._spoken(connection) as served:
                _Handler(served, self.pages)
        except (OSError, ValueError):
            pass  # a client that is slow, gone or speaks something else
        finally:
            self._open.discard(connection)
            connection.close()

    def _spoken(self, connection: socket.socket) -> socket.socket:
        """Return the connection, after the handshake where there is TLS."""
        if self.context is None:
            return connection
        return self.context.wrap_socket(connection, server_side=True)


def _context(certfile: str, keyfile: str, client_ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certfile, keyfile or None)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of one connection."""

    server_version = "profile-loader"
    sys_version = ""

    def __init__(self, connection: socket.socket, pages: Pages) -> None:
        self.pages = pages
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type] # no server object

    def do_GET(self) -> None:
        """Answer a GET."""
        answers: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": self._metrics,
            "/healthz": lambda: _probe(self.pages.health()),
            "/readyz": lambda: _probe(self.pages.ready()),
            "/": self._page,
            "/statusz": self._page,
        }
        path = self.path.partition("?")[0]
        answer = answers.get(path)
        if answer is None:
            self._send(404, "text/plain; charset=utf-8", b"not found\n")
            return
        self._send(*answer())

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _metrics(self) -> tuple[int, str, bytes]:
        content_type, body = self.pages.metrics(self.headers.get("Accept", ""))
        return 200, content_type, body

    def _page(self) -> tuple[int, str, bytes]:
        return 200, "text/html; charset=utf-8", self.pages.status().encode("utf-8", "replace")

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", PAGE_POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a probe every few seconds is no news."""


def _probe(why: str) -> tuple[int, str, bytes]:
    body = f"{why}\n" if why else "ok\n"
    return (503 if why else 200), "text/plain; charset=utf-8", body.encode("utf-8", "replace")
