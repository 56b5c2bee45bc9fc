"""Specification of agent.reporting.http_server, over real sockets."""

import contextlib
import http.client
import socket
import threading
import time
from pathlib import Path

import pytest
import structlog

from agent.reporting.http_messages import HEADER_BYTES, HEADER_LINES, LINE_BYTES, PAGE_POLICY, parse
from agent.reporting.http_server import (
    CLOSING_CONNECTIONS,
    PAGE_CONNECTIONS,
    READING_CONNECTIONS,
    SEND_BUFFER,
    HttpServer,
)
from tests.system.guest import pace


class Pages:
    """Pages whose answers a test sets."""

    why = ""
    page = b"<p>page</p>"

    def metrics(self, accept):
        return "text/plain; version=0.0.4", f"accept {accept}\n".encode()

    def health(self):
        return self.why

    def ready(self):
        return self.why

    def status(self):
        return self.page


@pytest.fixture
def pages():
    return Pages()


@pytest.fixture
def server(pages):
    one = HttpServer("127.0.0.1:0", pages)
    one.start()
    yield one
    one.close()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=50)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_each_path_has_its_page(server):
    """Metrics as the Accept header wants them, probes, and one page under two names."""
    found = {
        path: ask(server, path, Accept="any")[:2]
        for path in ("/metrics", "/healthz", "/readyz", "/", "/statusz", "/statusz?x=y")
    }
    assert found == {
        "/metrics": (200, "accept any\n"),
        "/healthz": (200, "ok\n"),
        "/readyz": (200, "ok\n"),
        "/": (200, "<p>page</p>"),
        "/statusz": (200, "<p>page</p>"),
        "/statusz?x=y": (200, "<p>page</p>"),
    }


def test_a_probe_that_fails_says_why(server, pages):
    """503 with the reason."""
    pages.why = "no pass has ended yet"
    assert ask(server, "/readyz")[:2] == (503, "no pass has ended yet\n")
    assert ask(server, "/healthz")[:2] == (503, "no pass has ended yet\n")


def test_other_paths_and_methods_are_refused(server):
    """Nothing else is served, and nothing is ever taken."""
    assert ask(server, "/metrics/x")[:2] == (404, "not found\n")
    assert ask(server, "/..%2f")[0] == 404
    assert ask(server, "/metrics", "HEAD")[:2] == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "ODD"):
        status, body, headers = ask(server, "/metrics", method)
        assert (status, body, headers["Allow"]) == (405, "method not allowed\n", "GET, HEAD")


def test_a_page_that_cannot_be_made_ends_alone(server, pages):
    """It is a 500 without a word of why, and the next request is answered."""
    pages.status = None
    assert ask(server, "/")[:2] == (500, "this page could not be made; the log says why\n")
    assert ask(server, "/healthz")[0] == 200


def test_the_page_may_load_nothing(server):
    """A profile's name that slipped through could not run anything either."""
    _, _, headers = ask(server, "/")
    assert headers["Content-Security-Policy"] == PAGE_POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.fixture
def died(monkeypatch):
    """Give what threads died of, each of which would end the agent."""
    found = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    return found


def send(server, sent):
    """Send bytes; return the answer, once the server has closed the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one:
        one.sendall(sent)
        return received(one)


def received(one):
    """Return what comes until the connection ends."""
    found = b""
    with contextlib.suppress(ConnectionResetError):  # bytes that nobody read
        while piece := one.recv(65_536):
            found += piece
    return found


def status(answer):
    return int(answer.split()[1])


def head(*lines, request="GET /healthz HTTP/1.1"):
    return "\r\n".join((request, *lines, "", "")).encode()


MULTIPART = head("Content-Type: multipart/x; boundary*0=a; boundary*=b", request="GET / HTTP/1.0")


def test_what_a_header_means_to_a_mail_ends_nothing(server, died):
    """A header that the server does not need is not looked into."""
    assert status(send(server, MULTIPART)) == 200
    assert ask(server, "/healthz")[0] == 200
    assert died == []


def test_what_a_thread_of_a_connection_meets_ends_that_connection(server, pages, died):
    """It is a line in the log; no thread dies of it, which would end the agent."""
    pages.metrics = lambda _accept: ("text/plain", None)
    with structlog.testing.capture_logs() as logged:
        assert send(server, head(request="GET /metrics HTTP/1.0")) == b""
    assert [(one["event"], one["log_level"]) for one in logged] == [("connection_failed", "error")]
    assert ask(server, "/healthz")[0] == 200
    assert died == []


LARGE = {
    "request line": head(request=f"GET /healthz?{'a' * (LINE_BYTES - 23)} HTTP/1.1"),
    "line without an end": b"A" * 100_000,
    "header": head(f"A: {'a' * (HEADER_BYTES - 6)}"),
    "header without an end": head(f"A: {'a' * 100_000}"),
    "headers": head(*["A: " + "a" * 1000] * 100),
    "lines": head(*["A: a"] * (HEADER_LINES + 1)),
}


@pytest.mark.parametrize("sent", LARGE.values(), ids=LARGE)
def test_a_large_head_is_refused_and_its_rest_never_read(server, sent):
    """A request beyond the limits is answered by 431 at the limit, without waiting for its end."""
    assert status(send(server, sent[: LINE_BYTES + HEADER_BYTES])) == 431


def test_a_head_within_the_bounds_is_answered(server):
    """As many lines and bytes as a browser or a proxy sends."""
    for one in (
        head(*["A: a"] * HEADER_LINES),
        head(f"A: {'a' * (HEADER_BYTES - 7)}"),
        head(request=f"GET /healthz?{'a' * (LINE_BYTES - 24)} HTTP/1.1"),
    ):
        assert status(send(server, one)) == 200


def test_a_head_that_comes_byte_by_byte_is_cut(pages):
    """There is one time for the whole head, not one for each byte."""
    server = HttpServer("127.0.0.1:0", pages, request_seconds=0.2)
    server.start()
    address = ("127.0.0.1", server.port)
    with contextlib.closing(server), socket.create_connection(address, timeout=0.02) as one:
        for byte in head("A: " + "a" * 500):
            with contextlib.suppress(TimeoutError):
                try:
                    one.sendall(bytes([byte]))
                    if one.recv(1) == b"":
                        break
                except ConnectionError:
                    break
        else:
            pytest.fail("the whole head was waited for")


def test_a_head_may_come_in_pieces():
    """However the head is split, it is complete at its empty line and not before."""
    whole = head("Host: x", "Accept: a")
    assert [parse(whole[:end]) for end in range(len(whole))] == [None] * len(whole)
    assert parse(whole).accept == "a"


ODD = {
    "continued header": head("Accept: text/plain,", " text/html"),
    "continued request line": head("\tA: a"),
    "header without a colon": head("Accept"),
    "header without a name": head(": a"),
    "space before the colon": head("Accept : a"),
    "carriage return": head("Accept: a\rb"),
    "no version": head(request="GET /healthz"),
    "no HTTP/1": head(request="GET /healthz HTTP/2.0"),
    "no request line": b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
def test_a_head_that_can_be_read_in_two_ways_is_refused(server, sent):
    """400, for a continued header too (RFC 9112, 5.2)."""
    assert status(send(server, sent)) == 400


def test_heads_are_read_as_clients_write_them(server):
    """Lines end with or without a carriage return; a header's case and its spaces say nothing."""
    wanted = {
        b"GET /metrics HTTP/1.0\n\n": b"",
        b"GET  //metrics?x HTTP/1.1\r\nHost: x\r\nACCEPT:any \r\n\r\n": b"any",
        b"GET /metrics HTTP/1.1\r\naccept: a\r\nX: \xff\r\nAccept:\tb\r\n\r\n": b"a,b",
    }
    for sent, accept in wanted.items():
        first, _, body = send(server, sent).partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.0 200 OK\r\nServer: profile-loader\r\nDate: ")
        assert body == b"accept " + accept + b"\n"


def silent(stack, server, number):
    """Open connections that say nothing, or half a request."""
    for one in range(number):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        if one % 2:
            connection.sendall(b"GET /metr")


def test_idle_and_slow_connections_hold_up_no_probe(server):
    """However many clients send nothing or half a request, the next request is answered."""
    with contextlib.ExitStack() as stack:
        silent(stack, server, 4 * READING_CONNECTIONS)
        assert ask(server, "/healthz")[0] == 200


def test_idle_connections_are_bounded(server):
    """The oldest connection without a request is closed when there are too many of them."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        silent(stack, server, READING_CONNECTIONS)
        first.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        assert ask(server, "/healthz")[0] == 200


LARGE_PAGE = b"x" * (8 << 20)


def unread(stack, server, path):
    """Request a page over a new connection, of which nothing is read."""
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.settimeout(60)
    one.connect(("127.0.0.1", server.port))
    one.sendall(head(request=f"GET {path} HTTP/1.0"))
    return one


def is_reset(one):
    """Return whether the server ends a connection early, after its buffered bytes were read."""
    size = 0
    try:
        while piece := one.recv(1 << 20):
            size += len(piece)
    except ConnectionResetError:
        return True
    return size < len(LARGE_PAGE)


def test_clients_that_do_not_read_keep_no_probe_and_no_scrape_from_its_answer(server, pages):
    """Probes, metrics and the page have connections of their own."""
    pages.page = LARGE_PAGE
    with contextlib.ExitStack() as stack:
        for _ in range(4 * READING_CONNECTIONS):
            unread(stack, server, "/")
            assert ask(server, "/healthz")[0] == 200
        assert ask(server, "/readyz")[0] == 200
        assert ask(server, "/metrics")[0] == 200


def test_the_oldest_unread_page_makes_room_for_the_next(server, pages):
    """At most PAGE_CONNECTIONS clients hold a page; the others are reset, and new ones served."""
    pages.page = LARGE_PAGE
    with contextlib.ExitStack() as stack:
        held = [unread(stack, server, "/") for _ in range(PAGE_CONNECTIONS + 3)]
        assert ask(server, "/")[1] == LARGE_PAGE.decode()
        assert [is_reset(one) for one in held[:4]] == [True] * 4


def test_a_response_has_one_time_limit_for_all_its_bytes(pages):
    """A client that reads a little again and again is cut all the same."""
    pages.page = LARGE_PAGE
    server = HttpServer("127.0.0.1:0", pages, response_seconds=0.5)
    server.start()
    with contextlib.closing(server), contextlib.ExitStack() as stack:
        one = unread(stack, server, "/")
        pause = threading.Event()
        size = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := one.recv(4096):
                size += len(piece)
                pause.wait(0.01)
        assert size < len(LARGE_PAGE)


def queued_bytes(port):
    """Return how many bytes the kernel keeps for connections from a port, in any TCP state."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(int(one[4].split(":")[0], 16) for one in fields if one[1].endswith(f":{port:04X}"))


def test_the_kernel_keeps_nothing_for_clients_that_went_silent(server, pages):
    """Responses that fit the send buffer are reset too if they are not acknowledged."""
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


def test_a_page_is_complete_however_it_is_split(server, pages):
    """Every byte of a page larger than all buffers arrives, in order."""
    pages.page = bytes(range(256)) * (1 << 14)
    answer = send(server, head(request="GET / HTTP/1.0"))
    assert answer.partition(b"\r\n\r\n")[2] == pages.page


def test_what_is_no_http_is_survived(server):
    """Garbage, a cut connection and an endless header end alone."""
    for sent in (b"\x16\x03\x01", b"GET", b"A" * 70_000, b"GET / HTTP/9.9\r\n\r\n"):
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as one, contextlib.suppress(OSError):
            one.sendall(sent)
    assert ask(server, "/healthz")[0] == 200


def test_close_ends_everything_at_once(pages):
    """Open connections are cut, no thread stays, and the port is free again."""
    server = HttpServer("127.0.0.1:0", pages)
    server.start()
    assert ask(server, "/healthz")[0] == 200
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(b"GET /")
        begin = time.monotonic()
        server.close()
        one.settimeout(2.0)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
        assert pace.in_time(time.monotonic() - begin, 1.0)
    with pytest.raises(OSError, match="refused"):
        ask(server, "/healthz")
    HttpServer(f"127.0.0.1:{server.port}", pages).close()


@pytest.mark.parametrize("where", [":0", "127.0.0.1:0", "[::]:0", "[::1]:0"])
def test_addresses_are_read_as_people_write_them(pages, where):
    """No host is every address of both families; IPv6 stands in brackets."""
    server = HttpServer(where, pages)
    server.start()
    with contextlib.closing(server):
        host = "::1" if "[" in where else "127.0.0.1"
        connection = http.client.HTTPConnection(host, server.port, timeout=50)
        with contextlib.closing(connection):
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


def test_a_port_that_is_taken_is_told_at_once(server, pages):
    """Not when the first scrape fails."""
    with pytest.raises(OSError, match="in use"):
        HttpServer(f"127.0.0.1:{server.port}", pages)
