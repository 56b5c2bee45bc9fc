"""Tests of agent.kube.responses."""

import json
import time
from collections.abc import Generator

import urllib3

from agent.kube import responses
from tests.narrowing import instance_of


class ChunkedResponse(urllib3.HTTPResponse):
    """A response whose body arrives in chunks of one size."""

    def __init__(self, body: bytes, size: int) -> None:
        super().__init__()
        self.content, self.size = body, size

    def stream(
        self, amt: int | None = None, decode_content: bool | None = None
    ) -> Generator[bytes, None, None]:
        """Yield the chunks. In a real response, the server chooses their sizes."""
        for begin in range(0, len(self.content), self.size):
            yield self.content[begin : begin + self.size]


def line(number: int, padding: str = "") -> bytes:
    return json.dumps({"type": "ADDED", "object": {"number": number, "x": padding}}).encode()


def test_the_size_of_the_chunks_does_not_change_the_events() -> None:
    """The same events are read for every chunk size. Empty lines are skipped, and the last line
    needs no line break.
    """
    body = b"\n".join([line(0), line(1), b"", b"  ", line(2)])
    expected = [{"type": "ADDED", "object": {"number": number, "x": ""}} for number in range(3)]
    for size in range(1, len(body) + 1):
        assert list(responses.watch_events(ChunkedResponse(body, size))) == expected


def test_a_long_event_in_small_chunks_is_read_in_bounded_time() -> None:
    """A long event is read in bounded time even from small chunks, which a malicious API server or
    a proxy may send.
    """
    body = line(0, padding="y" * (3 << 20)) + b"\n"
    begin = time.process_time()
    (event,) = responses.watch_events(ChunkedResponse(body, 16))
    assert len(instance_of(event["object"]["x"], str)) == 3 << 20
    # If the code copied the line for each chunk, the test would take several minutes instead of a
    # second.
    assert time.process_time() - begin < 20.0
