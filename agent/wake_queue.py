"""The queue that wakes the main loop, and the reasons that other threads put into it.

A reason says that something may have changed, and where. It carries no content, because a pass
reads everything itself. A lost reason therefore delays a change until the next resync, and never
loses the change.
"""

import queue
import time
from collections.abc import Collection
from enum import StrEnum
from typing import Final

QUIET_SECONDS: Final = 0.01
"""A burst of reasons has ended when no further reason came for this long."""

BURST_SECONDS: Final = 0.25
"""A burst of reasons delays the pass for at most this long."""


class WakeReason(StrEnum):
    """What may have changed."""

    SOURCE = "source"
    """A directory, a manifest or a ConfigMap."""

    KERNEL = "kernel"
    """The policy that the kernel has loaded."""

    FILES = "files"
    """Files that the agent installed or recorded on the node."""

    NODE = "node"
    """The Node object of this node."""

    PODS = "pods"
    """The pods of this node."""

    LABELS = "labels"
    """The labels that the publisher knows to be on the Node, or its findings."""

    COMPILED = "compiled"
    """A background check of a key has ended."""

    REQUEST = "request"
    """A user asked for a pass that reads everything again."""

    SIGNAL = "signal"
    """A signal arrived. Python runs its handler when the main thread wakes up."""


class WakeQueue:
    """Hands reasons from all threads to the main loop, which alone waits for them."""

    def __init__(self) -> None:
        # Not SimpleQueue: in CPython 3.11 and 3.12, SimpleQueue.get with a time-out can wait
        # forever if its thread is suspended inside _queuemodule.c, as on a busy machine.
        self._queue: queue.Queue[WakeReason] = queue.Queue()

    def put(self, reason: WakeReason) -> None:
        """Wake the main loop. Any thread may call this."""
        self._queue.put(reason)

    def wait(self, seconds: float) -> Collection[WakeReason]:
        """Return all reasons that are in the queue; wait until there is one.

        A pass leaves one reason for each file that it wrote. All of them are returned at once,
        because one check of the node answers them all.

        Args:
            seconds: how long to wait. If no reason comes in that time, the result is empty.
        """
        try:
            reasons = [self._queue.get(timeout=max(0.0, seconds))]
        except queue.Empty:
            return frozenset()
        reasons += [self._queue.get() for _ in range(self._queue.qsize())]
        return frozenset(reasons)

    def discard_burst(self) -> None:
        """Discard further reasons until the burst has ended: one pass answers them all."""
        end = time.monotonic() + BURST_SECONDS
        while time.monotonic() < end:
            if not self.wait(QUIET_SECONDS):
                return
