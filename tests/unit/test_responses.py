"""Tests of agent.kube.responses."""

import json
import time

from agent.kube import responses


class ChunkedResponse:
    """A response whose body arrives in chunks of one size."""

    def __init__(self, body, size):
        self.body, self.size = body, size

    def stream(self, *_args, **_options):
        """Yield the chunks. In a real response, the server chooses their sizes."""
        for begin in range(0, len(self.body), self.size):
            yield self.body[begin : begin + self.size]


def line(number, padding=""):
    return json.dumps({"type": "ADDED", "object": {"number": number, "x": padding}}).encode()


def test_the_size_of_the_chunks_does_not_change_the_events():
    """The same events are read for every chunk size. Empty lines are skipped, and the last line
    needs no line break.
    """
    body = b"\n".join([line(0), line(1), b"", b"  ", line(2)])
    expected = [{"type": "ADDED", "object": {"number": number, "x": ""}} for number in range(3)]
    for size in range(1, len(body) + 1):
        assert list(responses.watch_events(ChunkedResponse(body, size))) == expected


def test_a_long_event_in_small_chunks_is_read_in_bounded_time():
    """A long event is read in bounded time even from small chunks, which a malicious API server or
    a proxy may send.
    """
    body = line(0, padding="y" * (3 << 20)) + b"\n"
    begin = time.process_time()
    (event,) = responses.watch_events(ChunkedResponse(body, 16))
    assert len(event["object"]["x"]) == 3 << 20
    # If the code copied the line for each chunk, the test would take several minutes instead of a
    # second.
    assert time.process_time() - begin < 20.0
