"""Tests of agent.reporting.http_server, over real sockets."""

import contextlib
import http.client
import select
import socket
import threading
import time
from pathlib import Path

import pytest
import structlog

from agent.reporting.http_messages import HEAD_BYTES, HEADER_LINES, PAGE_POLICY, RequestParser
from agent.reporting.http_server import (
    CLOSING_CONNECTIONS,
    PAGE_CONNECTIONS,
    READING_CONNECTIONS,
    REQUEST_SECONDS,
    RESPONSE_SECONDS,
    SEND_BUFFER,
    HttpServer,
)
from tests.system.guest import pace


class Pages:
    """Pages whose content a test can set."""

    reason = ""
    page = b"<p>page</p>"
    report = b'{"converged": true}'

    def metrics(self, accept: str) -> tuple[str, bytes]:
        return "text/plain; version=0.0.4", f"accept {accept}\n".encode()

    def health(self) -> str:
        return self.reason

    def ready(self) -> str:
        return self.reason

    def status(self) -> tuple[bytes, bytes]:
        return self.page[:3], self.page[3:]

    def json(self) -> bytes:
        return self.report


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def server(pages: Pages) -> HttpServer:
    """Return a server that runs until the tests end."""
    running = HttpServer("127.0.0.1:0", pages)
    running.start()
    return running


def ask(
    server: HttpServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Send a request and return the status, the body and the headers of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=50)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())


def test_each_path_has_its_page(server: HttpServer) -> None:
    """Each path has its page. The format of the metrics depends on the Accept header, and the
    status page has two paths.
    """
    result = {
        path: ask(server, path, Accept="any")[:2]
        for path in (
            "/metrics",
            "/healthz",
            "/readyz",
            "/",
            "/statusz",
            "/statusz?x=y",
            "/report.json",
        )
    }
    assert result == {
        "/metrics": (200, "accept any\n"),
        "/healthz": (200, "ok\n"),
        "/readyz": (200, "ok\n"),
        "/": (200, "<p>page</p>"),
        "/statusz": (200, "<p>page</p>"),
        "/statusz?x=y": (200, "<p>page</p>"),
        "/report.json": (200, '{"converged": true}'),
    }


def test_before_the_first_pass_there_is_no_json_report(server: HttpServer, pages: Pages) -> None:
    """Before the first pass, a request for the JSON report results in status 503 with the
    reason.
    """
    pages.report = b""
    assert ask(server, "/report.json")[:2] == (503, "no pass has ended yet\n")


def test_a_failed_probe_returns_the_reason(server: HttpServer, pages: Pages) -> None:
    """If a probe fails, the response has status 503 and the reason as its body."""
    pages.reason = "no pass has ended yet"
    assert ask(server, "/readyz")[:2] == (503, "no pass has ended yet\n")
    assert ask(server, "/healthz")[:2] == (503, "no pass has ended yet\n")


def test_other_paths_and_methods_are_rejected(server: HttpServer) -> None:
    """A request for an unknown path results in status 404. A request with an unsupported method
    results in status 405.
    """
    assert ask(server, "/metrics/x")[:2] == (404, "not found\n")
    assert ask(server, "/..%2f")[0] == 404
    assert ask(server, "/metrics", "HEAD")[:2] == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "ODD"):
        status, body, headers = ask(server, "/metrics", method)
        assert (status, body, headers["Allow"]) == (405, "method not allowed\n", "GET, HEAD")


def test_a_page_that_cannot_be_rendered_affects_no_other_request(
    server: HttpServer, pages: Pages
) -> None:
    """If a page cannot be rendered, the response has status 500 without details, and the next
    request succeeds.
    """
    pages.status = None
    expected = "this page could not be rendered; the log contains the error\n"
    assert ask(server, "/")[:2] == (500, expected)
    assert ask(server, "/healthz")[0] == 200


def test_the_page_may_not_load_anything(server: HttpServer) -> None:
    """The content security policy of the page blocks all scripts, so a script in a profile name
    could not run even without escaping.
    """
    _, _, headers = ask(server, "/")
    assert headers["Content-Security-Policy"] == PAGE_POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the exceptions that terminated threads. In the agent, each of these exceptions would
    terminate the process.
    """
    exceptions = []
    monkeypatch.setattr(threading, "excepthook", lambda args: exceptions.append(args.exc_value))
    return exceptions


def send(server: HttpServer, content: bytes) -> bytes:
    """Send bytes and return the response after the server has closed the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(content)
        return receive(connection)


def receive(connection: socket.socket) -> bytes:
    """Return all bytes that the server sends until the connection is closed."""
    content = b""
    # The server closed the connection before it read every byte.
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            content += piece
    return content


def status(response: bytes) -> int:
    return int(response.split()[1])


def head(*lines: str, request: str = "GET /healthz HTTP/1.1") -> bytes:
    """Return the head of a request with a Host header, which HTTP/1.1 requires."""
    return "\r\n".join((request, "Host: x", *lines, "", "")).encode()


MULTIPART = head("Content-Type: multipart/x; boundary*0=a; boundary*=b", request="GET / HTTP/1.0")


def test_a_malicious_mail_header_is_ignored(server: HttpServer, died: list[object]) -> None:
    """The server does not interpret a header that it does not need."""
    assert status(send(server, MULTIPART)) == 200
    assert ask(server, "/healthz")[0] == 200
    assert died == []


def test_an_unexpected_error_ends_only_its_connection(
    server: HttpServer, pages: Pages, died: list[object]
) -> None:
    """An unexpected error closes only its connection. The thread of the server continues."""
    pages.metrics = lambda _accept: ("text/plain", None)
    with structlog.testing.capture_logs() as logged:
        assert send(server, head(request="GET /metrics HTTP/1.0")) == b""
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("connection_failed", "error")
    ]
    assert ask(server, "/healthz")[0] == 200
    assert died == []


OVERHEAD = len(head("A: "))
LARGE = {
    "request line": head(request=f"GET /healthz?{'a' * HEAD_BYTES} HTTP/1.1"),
    "line without an end": b"A" * 100_000,
    "header": head(f"A: {'a' * HEAD_BYTES}"),
    "header without an end": head(f"A: {'a' * 100_000}"),
    "headers": head(*["A: " + "a" * 1000] * 100),
    "lines": head(*["A: a"] * HEADER_LINES),
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_a_large_head_is_rejected_without_reading_the_rest(
    server: HttpServer, content: bytes
) -> None:
    """A request head above the limit results in status 431, before the server reads the rest."""
    assert status(send(server, content[:HEAD_BYTES])) == 431


def test_a_head_within_the_limits_is_accepted(server: HttpServer) -> None:
    """A request head with the usual headers of browsers and proxies is accepted."""
    for content in (
        head(*["A: a"] * (HEADER_LINES - 1)),
        head(f"A: {'a' * (HEAD_BYTES - OVERHEAD)}"),
    ):
        assert status(send(server, content)) == 200


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_head_with_too_many_lines_is_rejected_before_it_is_parsed(size: int) -> None:
    """A head with too many lines is rejected before h11 parses it: 2,900 empty headers would take
    h11 50 ms.
    """
    content = head(*["A:"] * 2900)
    parser = RequestParser()
    received = 0
    while (response := parser.receive(content[received : received + size])) is None:
        received += size
    assert response.status == 431
    assert received <= len(head(*["A:"] * (HEADER_LINES + 1))) + size


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 100_000])
def test_only_the_first_pipelined_request_is_parsed(size: int) -> None:
    """Only the first pipelined request is parsed, and the lines of later requests do not count."""
    content = head(*["A: a"] * (HEADER_LINES - 1)) + 100 * head()
    parser = RequestParser()
    request, received = None, 0
    while request is None:
        request = parser.receive(content[received : received + size])
        received += size
    assert (request.method, request.path) == ("GET", "/healthz")


def test_a_head_that_arrives_byte_by_byte_has_one_time_limit(server: HttpServer) -> None:
    """The whole head of a request has one time limit, which new bytes do not extend."""
    begin = time.monotonic()
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=REQUEST_SECONDS / 50) as connection:
        for byte in head("A: " + "a" * 5000):
            with contextlib.suppress(TimeoutError):
                try:
                    connection.sendall(bytes([byte]))
                    if connection.recv(1) == b"":
                        break
                except ConnectionError:
                    break
        else:
            pytest.fail("the server waited for the whole head")
    assert pace.in_time(time.monotonic() - begin, 3 * REQUEST_SECONDS)


def test_a_head_may_arrive_in_pieces() -> None:
    """A request head may arrive in pieces, and is complete at its empty line."""
    whole = head("Accept: a")
    for end in range(1, len(whole)):
        parser = RequestParser()
        assert parser.receive(whole[:end]) is None
        assert parser.receive(whole[end:]).accept == "a"


MALFORMED = {
    "header without a colon": head("Accept"),
    "header without a name": head(": a"),
    "space before the colon": head("Accept : a"),
    "carriage return": head("Accept: a\rb"),
    "continued request line": b"GET / HTTP/1.1\r\n\tA: a\r\nHost: x\r\n\r\n",
    "two hosts": head("Host: y"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "no version": head(request="GET /healthz"),
    "another version": head(request="GET /healthz HTTP/2.0"),
    "no request line": b"\r\n\r\n",
    "two lengths": head("Content-Length: 1", "Content-Length: 2"),
    "TLS": b"\x16\x03\x01",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_an_ambiguous_or_malformed_head_is_rejected(server: HttpServer, content: bytes) -> None:
    """An ambiguous or malformed request head results in status 400."""
    assert status(send(server, content)) == 400


def test_common_variants_of_heads_are_accepted(server: HttpServer) -> None:
    """The server accepts bare line feeds, any letter case, extra spaces, and repeated or continued
    headers (RFC 9112).
    """
    variants = {
        b"GET /metrics HTTP/1.0\n\n": b"",
        b"GET //metrics?x HTTP/1.1\r\nHost: x\r\nACCEPT:any \r\n\r\n": b"any",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\naccept: a\r\nX: \xff\r\nAccept:\tb\r\n\r\n": b"a,b",
        head("Accept: text/plain,", " text/html", request="GET /metrics HTTP/1.1"): (
            b"text/plain, text/html"
        ),
    }
    for content, accept in variants.items():
        start, _, body = send(server, content).partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.0 200 OK\r\nServer: profile-loader\r\nDate: ")
        assert body == b"accept " + accept + b"\n"


def silent(stack: contextlib.ExitStack, server: HttpServer, number: int) -> None:
    """Open connections that send no data or only half a request."""
    for index in range(number):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        if index % 2:
            connection.sendall(b"GET /metr")


def test_idle_and_slow_connections_do_not_delay_probes(server: HttpServer) -> None:
    """Many clients that send no data or only half a request do not delay the next request."""
    with contextlib.ExitStack() as stack:
        silent(stack, server, 4 * READING_CONNECTIONS)
        assert ask(server, "/healthz")[0] == 200


def test_idle_connections_are_limited(server: HttpServer) -> None:
    """A new connection replaces the oldest connection that has sent no request."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        silent(stack, server, READING_CONNECTIONS)
        first.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        assert ask(server, "/healthz")[0] == 200


LARGE_PAGE = b"x" * (8 << 20)


def unread(stack: contextlib.ExitStack, server: HttpServer, path: str) -> socket.socket:
    """Request a page over a new connection without reading the response."""
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(head(request=f"GET {path} HTTP/1.0"))
    return connection


def is_reset(connection: socket.socket) -> bool:
    """Return whether the connection is closed before the client has received the whole page."""
    size = 0
    try:
        while piece := connection.recv(1 << 20):
            size += len(piece)
    except ConnectionResetError:
        return True
    return size < len(LARGE_PAGE)


def test_clients_that_do_not_read_do_not_delay_probes_or_scrapes(
    server: HttpServer, pages: Pages
) -> None:
    """Clients that do not read a page delay neither probes nor scrapes."""
    pages.page = LARGE_PAGE
    with contextlib.ExitStack() as stack:
        for _ in range(4 * READING_CONNECTIONS):
            unread(stack, server, "/")
            assert ask(server, "/healthz")[0] == 200
        assert ask(server, "/readyz")[0] == 200
        assert ask(server, "/metrics")[0] == 200


def test_a_new_request_replaces_the_oldest_unread_page(server: HttpServer, pages: Pages) -> None:
    """At most PAGE_CONNECTIONS clients receive a page at the same time. A new request resets the
    oldest of these connections.
    """
    pages.page = LARGE_PAGE
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(PAGE_CONNECTIONS + 3):
            connections.append(unread(stack, server, "/"))
            # By now, the server has started to send the response.
            select.select(connections[-1:], [], [], 60)
        assert ask(server, "/")[1] == LARGE_PAGE.decode()
        assert [is_reset(connection) for connection in connections[:4]] == [True] * 4


def test_a_response_has_one_time_limit_for_all_its_bytes(server: HttpServer, pages: Pages) -> None:
    """A response has one time limit for all its bytes. At this limit, the server resets the
    connection of a slow client.
    """
    pages.page = LARGE_PAGE
    with contextlib.ExitStack() as stack:
        connection = unread(stack, server, "/")
        pause = threading.Event()
        size = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1024):
                size += len(piece)
                pause.wait(RESPONSE_SECONDS / 200)
        assert size < len(LARGE_PAGE)


def queued_bytes(port: int) -> int:
    """Return the number of bytes that the kernel stores for connections from a port, in any TCP
    state.
    """
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(f":{port:04X}"))


def test_the_kernel_stores_no_data_for_clients_that_stop_reading(
    server: HttpServer, pages: Pages
) -> None:
    """The server also resets a connection whose response fits into the send buffer but is never
    acknowledged.
    """
    pages.page = b"x" * SEND_BUFFER
    with contextlib.ExitStack() as stack:
        for _ in range(4 * CLOSING_CONNECTIONS):
            unread(stack, server, "/")
        assert ask(server, "/")[0] == 200
        assert (
            queued_bytes(server.port) < 3 * (CLOSING_CONNECTIONS + PAGE_CONNECTIONS) * SEND_BUFFER
        )
        end = time.monotonic() + pace.scaled(60)
        while queued_bytes(server.port):
            assert time.monotonic() < end


def test_a_page_is_complete_however_it_is_split(server: HttpServer, pages: Pages) -> None:
    """A page that is larger than all buffers arrives completely and in order."""
    pages.page = bytes(range(256)) * (1 << 14)
    response = send(server, head(request="GET / HTTP/1.0"))
    assert response.partition(b"\r\n\r\n")[2] == pages.page


def test_bytes_that_are_not_http_do_not_affect_other_requests(server: HttpServer) -> None:
    """Random bytes, half a request and an endless header end only their own connection."""
    for content in (b"\x16\x03\x01", b"GET", b"A" * 70_000, b"GET / HTTP/9.9\r\n\r\n"):
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as connection, contextlib.suppress(OSError):
            connection.sendall(content)
    assert ask(server, "/healthz")[0] == 200


@pytest.mark.parametrize("address", [":0", "127.0.0.1:0", "[::]:0", "[::1]:0"])
def test_an_address_can_be_written_in_the_usual_ways(pages: Pages, address: str) -> None:
    """Without a host, the server listens on IPv4 and IPv6. An IPv6 address is written in
    brackets.
    """
    server = HttpServer(address, pages)
    server.start()
    host = "::1" if "[" in address else "127.0.0.1"
    connection = http.client.HTTPConnection(host, server.port, timeout=50)
    with contextlib.closing(connection):
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200


def test_a_port_in_use_is_reported_at_once(server: HttpServer, pages: Pages) -> None:
    """If the port is in use, the constructor of the server raises an error."""
    with pytest.raises(OSError, match="in use"):
        HttpServer(f"127.0.0.1:{server.port}", pages)
