"""Implements the queue of wake reasons, which wakes the main loop.

Other threads add wake reasons to the queue. A wake reason states that something may have changed,
and where. A wake reason does not describe the change, because a pass reads everything itself. If a
wake reason is lost, the agent detects the change at the next resync.
"""

import queue
import time
from collections.abc import Collection
from enum import StrEnum
from typing import Final

QUIET_SECONDS: Final = 0.01
"""A burst of wake reasons ends when no further reason arrives for this many seconds."""

BURST_SECONDS: Final = 0.25
"""A burst of wake reasons delays a pass by at most this many seconds."""


class WakeReason(StrEnum):
    """The part of the node or the cluster that may have changed."""

    SOURCE = "source"
    """A directory, a manifest or a ConfigMap."""

    KERNEL = "kernel"
    """The policy that is loaded in the kernel."""

    FILES = "files"
    """Files that the agent installed or recorded on the node."""

    NODE = "node"
    """The Node object for this node."""

    PODS = "pods"
    """The pods on this node."""

    LABELS = "labels"
    """The labels of the Node that the publisher knows, or the findings of the publisher."""

    COMPILED = "compiled"
    """A background check of a key has ended."""

    REQUEST = "request"
    """A user requested a pass that reads everything again."""

    SIGNAL = "signal"
    """A signal has arrived. Python runs its handler when the main thread wakes
    up."""


class WakeQueue:
    """Passes wake reasons from all threads to the main loop.

    Only the main loop waits for wake reasons.
    """

    def __init__(self) -> None:
        # SimpleQueue is not used here. In CPython 3.11 and 3.12, SimpleQueue.get with a timeout can
        # wait forever if a busy machine suspends its thread inside _queuemodule.c.
        self._queue: queue.Queue[WakeReason] = queue.Queue()

    def put(self, reason: WakeReason) -> None:
        """Wake the main loop. Any thread may call this method."""
        self._queue.put(reason)

    def wait(self, seconds: float) -> Collection[WakeReason]:
        """Wait for a wake reason, and return all reasons that are in the queue.

        A pass causes one wake reason for each file that it writes. This method returns all queued
        reasons together, because one check of the node covers all of them.

        Args:
            seconds: the longest time to wait. The result is empty if no reason arrives in this
                time.
        """
        try:
            reasons = [self._queue.get(timeout=max(0.0, seconds))]
        except queue.Empty:
            return frozenset()
        reasons += [self._queue.get() for _ in range(self._queue.qsize())]
        return frozenset(reasons)

    def discard_burst(self) -> None:
        """Discard wake reasons until the current burst of changes has ended. One pass is enough for
        the whole burst.
        """
        end = time.monotonic() + BURST_SECONDS
        while time.monotonic() < end:
            if not self.wait(QUIET_SECONDS):
                return
