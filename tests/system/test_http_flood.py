"""A pod that floods the port of a real daemon: memory, probes and repairs (seccomp, real sockets).

The daemon has the memory limit of the manifest where the machine can make a control group.
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
HELD = 32  # connections of the clients that do not read
ROUNDS = 12
LONG = "profile-" * 14  # names are long where people use ConfigMap generators
PAGES = ("/", "/statusz", "/", "/metrics")
REQUESTS_PER_SECOND = 66


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon that is killed at the end, whatever happens."""
    one = Daemon(tmp_path)
    yield one
    one.kill()


def provide(daemon, number, version=0, name="p"):
    """Give the daemon so many profiles of a version."""
    daemon.provide(**{f"{name}{one}": (one + version) % 100 + 1 for one in range(number)})


def unread(port, path):
    """Send a request and return its connection, of which nothing is read."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.settimeout(10)
    try:
        one.connect(("127.0.0.1", port))
        one.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    except OSError:
        one.close()
        raise
    return one


def repaired(daemon, name):
    """Remove a file that the agent installed; return after how many seconds it is back."""
    (daemon.seccomp / name).unlink()
    begin = time.monotonic()
    daemon.until(lambda: daemon.file(name) is not None, 120)
    return time.monotonic() - begin


def test_clients_that_do_not_read_hold_no_memory(daemon):
    """With 3,000 profiles and changing reports the agent stays within its memory and answers."""
    provide(daemon, 3000, name=LONG)
    with memory_group(manifest_limit()) as group, contextlib.ExitStack() as end:
        end.callback(daemon.kill)  # a group with processes cannot be removed
        daemon.start(before=joining(group))
        daemon.until(daemon.converged, 120)
        before = daemon.usage()
        answers = []
        for number in range(ROUNDS):
            with contextlib.ExitStack() as stack:
                held = []
                for index in range(HELD):
                    with contextlib.suppress(OSError):
                        one = unread(daemon.port, PAGES[index % len(PAGES)])
                        held.append(stack.enter_context(one))
                for one in held:
                    with contextlib.suppress(OSError):
                        one.recv(1)  # its page is made, or it was cut
                if number % 5 == 0:  # a new report makes a new page
                    provide(daemon, 3000, number, LONG)
                answers.append(daemon.get(PROBES[number % 2])[0])
            assert daemon.alive(), daemon.said()[-2000:]
        after = daemon.usage()
        peaks = [round(one["peak"] / 1024) for one in (before, after)]
        print(f"peak {peaks} MiB; {answers.count(200)} of {len(answers)} probes; group {group}")
        assert answers == [200] * ROUNDS
        assert after["peak"] / 1024 < manifest_limit() / MIB
        assert after["peak"] - before["peak"] < 32 * 1024  # before the fix: 51 MiB
        daemon.until(daemon.converged, 120)


class Flood:
    """Requests the page at a rate, whether or not earlier requests were answered."""

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
        held = collections.deque()
        while not self._ended.wait(1 / REQUESTS_PER_SECOND):
            with contextlib.suppress(OSError):
                held.append(unread(self.port, "/"))
                self.requests += 1
            if len(held) > HELD:
                held.popleft().close()
        for one in held:
            one.close()


def cpu_seconds(process):
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_flood_of_pages_delays_neither_probes_nor_repairs(daemon):
    """66 pages a second at 1,000 profiles: each probe is answered, and repairs stay quick."""
    provide(daemon, 1000)
    daemon.start()
    daemon.until(daemon.converged, 120)
    calm = max(repaired(daemon, f"p{one}.json") for one in range(5))
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
