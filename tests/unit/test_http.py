"""Specification of agent.reporters.http, over real sockets."""

import contextlib
import http.client
import socket
import threading
import time

import pytest

from agent.reporters.http import CONNECTIONS, PAGE_POLICY, Server


class Pages:
    """Pages whose answers a test sets."""

    why = ""

    def metrics(self, accept):
        return "text/plain; version=0.0.4", f"accept {accept}\n".encode()

    def health(self):
        return self.why

    def ready(self):
        return self.why

    def status(self):
        return "<p>page</p>"


@pytest.fixture
def pages():
    return Pages()


@pytest.fixture
def server(pages):
    one = Server("127.0.0.1:0", pages)
    one.start()
    yield one
    one.close()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
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


def silent(stack, server, number):
    """Open connections that say nothing, or half a request."""
    for one in range(number):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        if one % 2:
            connection.sendall(b"GET /metr")


def test_idle_and_slow_connections_hold_up_no_probe(server):
    """However many say nothing or half a request, the next one is answered at once."""
    with contextlib.ExitStack() as stack:
        silent(stack, server, 4 * CONNECTIONS)
        begin = time.monotonic()
        assert ask(server, "/healthz")[0] == 200
        assert time.monotonic() - begin < 1.0


def test_threads_are_bounded(server):
    """The oldest connection is cut when there are too many, so its thread ends."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        silent(stack, server, CONNECTIONS)
        first.settimeout(2.0)
        assert first.recv(1) == b""
        assert ask(server, "/healthz")[0] == 200
        names = [one.name for one in threading.enumerate()]
        assert names.count("http connection") <= CONNECTIONS + 1


def test_what_is_no_http_is_survived(server):
    """Garbage, a cut connection and an endless header end alone."""
    for sent in (b"\x16\x03\x01", b"GET", b"A" * 70_000, b"GET / HTTP/9.9\r\n\r\n"):
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as one, contextlib.suppress(OSError):
            one.sendall(sent)
    assert ask(server, "/healthz")[0] == 200


def test_close_ends_everything_at_once(pages):
    """Open connections are cut, no thread stays, and the port is free again."""
    server = Server("127.0.0.1:0", pages)
    server.start()
    assert ask(server, "/healthz")[0] == 200
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(b"GET /")
        begin = time.monotonic()
        server.close()
        one.settimeout(2.0)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
        assert time.monotonic() - begin < 1.0
    with pytest.raises(OSError, match="refused"):
        ask(server, "/healthz")
    Server(f"127.0.0.1:{server.port}", pages).close()


@pytest.mark.parametrize("where", [":0", "127.0.0.1:0", "[::]:0", "[::1]:0"])
def test_addresses_are_read_as_people_write_them(pages, where):
    """No host is every address of both families; IPv6 stands in brackets."""
    server = Server(where, pages)
    server.start()
    with contextlib.closing(server):
        host = "::1" if "[" in where else "127.0.0.1"
        connection = http.client.HTTPConnection(host, server.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


def test_a_port_that_is_taken_is_told_at_once(server, pages):
    """Not when the first scrape fails."""
    with pytest.raises(OSError, match="in use"):
        Server(f"127.0.0.1:{server.port}", pages)
