"""The HTTP server of the daemon: metrics, probes and a page for people.

Rule 1: it reads what the last pass left, and never makes one run. Rule 2: a slow or idle client
holds one thread of its own; when there are many, the oldest makes room, so that a scrape or a probe
never waits. Rule 3: GET and HEAD of known paths. Rule 4: a page that cannot be made is a 500 and a
line in the log; the work on the node goes on.

prometheus_client's own server does the TLS handshake in the thread that accepts, so that one idle
connection stops every scrape, and gives metrics on every path: therefore this one.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final, Protocol

import structlog

CONNECTIONS: Final = 32
PATIENCE_SECONDS: Final = 5.0  # for one read or write, the handshake among them
BACKLOG: Final = 512
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
        accepted.settimeout(PATIENCE_SECONDS)
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
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            _Handler(connection, self.pages)
        except (OSError, ValueError):
            pass  # a client that is slow, gone or speaks something else
        finally:
            self._forget(connection)

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


_TEXT: Final = "text/plain; charset=utf-8"


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of one connection."""

    server_version = "profile-loader"
    sys_version = ""

    def __init__(self, connection: socket.socket, pages: Pages) -> None:
        self.pages = pages
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type] # no server object

    def parse_request(self) -> bool:
        """Refuse every other method before anything else is looked at."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self._send(405, _TEXT, b"method not allowed\n", allow="GET, HEAD")
            return False
        return True

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
            self._send(404, _TEXT, b"not found\n")
            return
        try:
            made = answer()
        except Exception:  # noqa: BLE001 - a broken page must not end the work on the node
            _log.exception("page_failed", path=path)
            made = (500, _TEXT, b"this page could not be made; the log says why\n")
        self._send(*made)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _metrics(self) -> tuple[int, str, bytes]:
        content_type, body = self.pages.metrics(self.headers.get("Accept", ""))
        return 200, content_type, body

    def _page(self) -> tuple[int, str, bytes]:
        return 200, "text/html; charset=utf-8", self.pages.status().encode("utf-8", "replace")

    def _send(self, status: int, content_type: str, body: bytes, *, allow: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if allow:
            self.send_header("Allow", allow)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", PAGE_POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a probe every few seconds is no news."""


def _probe(why: str) -> tuple[int, str, bytes]:
    body = f"{why}\n" if why else "ok\n"
    return (503 if why else 200), _TEXT, body.encode("utf-8", "replace")
