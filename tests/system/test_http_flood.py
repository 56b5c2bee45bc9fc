"""Tests of the memory, the probes and the repairs of a real daemon while clients flood its HTTP
port.

If the machine can create a control group, the daemon has the memory limit from the manifest.
"""

import collections
import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.system.daemon import Daemon
from tests.system.memory import MIB, joining, manifest_limit, memory_group

PROBES = ("/healthz", "/readyz")
UNREAD = 32  # the number of connections whose clients do not read responses
ROUNDS = 12
LONG = "profile-" * 14  # ConfigMap generators create long names.
PAGES = ("/", "/statusz", "/report.json", "/metrics")
REQUESTS_PER_SECOND = 66


@pytest.fixture
def daemon(tmp_path):
    """Yield a daemon that is killed at the end."""
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.kill()


def provide(daemon, number, version=0, name="p"):
    """Provide a number of profiles, all with the same version number."""
    daemon.provide(**{f"{name}{index}": (index + version) % 100 + 1 for index in range(number)})


def unread(port, path):
    """Send a request, and return the connection without reading the response."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    try:
        connection.connect(("127.0.0.1", port))
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    except OSError:
        connection.close()
        raise
    return connection


def repaired(daemon, name):
    """Remove an installed file, and return the number of seconds until the agent has
    restored it.
    """
    (daemon.seccomp / name).unlink()
    begin = time.monotonic()
    daemon.until(lambda: daemon.file(name) is not None, 120)
    return time.monotonic() - begin


def test_clients_that_do_not_read_use_no_memory(daemon):
    """Clients that do not read responses do not increase the memory of the agent beyond its limit,
    with 3,000 profiles and changing reports.
    """
    provide(daemon, 3000, name=LONG)
    with memory_group(manifest_limit()) as group, contextlib.ExitStack() as end:
        end.callback(daemon.kill)  # A control group that contains processes cannot be removed.
        daemon.start(before=joining(group))
        daemon.until(daemon.converged, 120)
        before = daemon.usage()
        statuses = []
        for number in range(ROUNDS):
            with contextlib.ExitStack() as stack:
                connections = []
                for index in range(UNREAD):
                    with contextlib.suppress(OSError):
                        connection = unread(daemon.port, PAGES[index % len(PAGES)])
                        connections.append(stack.enter_context(connection))
                for connection in connections:
                    with contextlib.suppress(OSError):
                        # The agent has rendered the page or reset the connection.
                        connection.recv(1)
                if number % 5 == 0:  # A new report causes a new page.
                    provide(daemon, 3000, number, LONG)
                statuses.append(daemon.get(PROBES[number % 2])[0])
            assert daemon.alive(), daemon.log_text()[-2000:]
        after = daemon.usage()
        peaks = [round(usage["peak"] / 1024) for usage in (before, after)]
        print(f"peak {peaks} MiB; {statuses.count(200)} of {len(statuses)} probes; group {group}")
        assert statuses == [200] * ROUNDS
        assert after["peak"] / 1024 < manifest_limit() / MIB
        # Before the agent limited unread responses, its memory grew by 51 MiB here.
        assert after["peak"] - before["peak"] < 32 * 1024
        daemon.until(daemon.converged, 120)


class Flood:
    """Requests the page at a constant rate without waiting for responses."""

    def __init__(self, port):
        self.port = port
        self.requests = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _run(self):
        connections = collections.deque()
        while not self._ended.wait(1 / REQUESTS_PER_SECOND):
            with contextlib.suppress(OSError):
                connections.append(unread(self.port, "/"))
                self.requests += 1
            if len(connections) > UNREAD:
                connections.popleft().close()
        for connection in connections:
            connection.close()


def cpu_seconds(process):
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_flood_of_pages_delays_neither_probes_nor_repairs(daemon):
    """While clients request 66 pages per second with 1,000 profiles, probes succeed, and repairs
    are as fast as before.
    """
    provide(daemon, 1000)
    daemon.start()
    daemon.until(daemon.converged, 120)
    calm = max(repaired(daemon, f"p{index}.json") for index in range(5))
    with Flood(daemon.port) as flood:
        daemon.until(lambda: flood.requests > 2 * REQUESTS_PER_SECOND, 60)
        begin, used = time.monotonic(), cpu_seconds(daemon.process)
        probes, repairs = [], []
        for number in range(20):
            probes.append(daemon.get(PROBES[number % 2])[0])
            repairs.append(repaired(daemon, f"p{number}.json"))
        wall, used = time.monotonic() - begin, cpu_seconds(daemon.process) - used
    counted = f"{flood.requests} requests, {probes.count(200)} of {len(probes)} probes"
    print(f"{counted}; repairs {max(repairs):.2f} s, without {calm:.2f} s; CPU {used / wall:.0%}")
    assert probes == [200] * 20
    assert max(repairs) < 5 * calm + 0.5
