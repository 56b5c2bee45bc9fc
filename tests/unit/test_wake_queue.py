"""Tests of agent.wake_queue."""

import threading

from agent.wake_queue import BURST_SECONDS, WakeQueue, WakeReason


def test_one_wait_returns_every_reason_in_the_queue_once() -> None:
    """One wait returns all reasons in the queue, and each reason only once."""
    wake_queue = WakeQueue()
    for reason in [WakeReason.FILES] * 30 + [WakeReason.SOURCE]:
        wake_queue.put(reason)
    assert wake_queue.wait(0.0) == {WakeReason.FILES, WakeReason.SOURCE}
    assert wake_queue.wait(0.0) == frozenset()


def test_a_reason_from_another_thread_ends_a_wait() -> None:
    """A reason from another thread wakes the main loop."""
    wake_queue = WakeQueue()
    timer = threading.Timer(0.05, wake_queue.put, [WakeReason.KERNEL])
    timer.start()
    assert wake_queue.wait(60.0) == {WakeReason.KERNEL}
    timer.join()


def test_a_burst_that_does_not_end_is_discarded_for_a_limited_time() -> None:
    """Even if a source changes continuously, a burst of reasons delays a pass only by a fraction of
    a second.
    """
    wake_queue = WakeQueue()
    ended = threading.Event()

    def put_reasons() -> None:
        while not ended.wait(0.001):
            wake_queue.put(WakeReason.SOURCE)

    threads = [
        threading.Thread(target=put_reasons),
        threading.Thread(target=wake_queue.discard_burst),
    ]
    for thread in threads:
        thread.start()
    threads[1].join(BURST_SECONDS + 60.0)
    is_discarding = threads[1].is_alive()
    ended.set()
    threads[0].join()
    assert not is_discarding


def test_a_wait_ends_even_if_a_reason_came_right_before_it() -> None:
    """A wait returns even if a wake reason arrived just before the wait began."""

    def wait() -> None:
        wake_queue = WakeQueue()
        # The SimpleQueue of CPython 3.11 hangs after 4,000 to 60,000 repetitions.
        for _ in range(60_000):
            wake_queue.put(WakeReason.FILES)
            wake_queue.wait(0.0)
            wake_queue.wait(2e-6)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(600)
    assert not waiting.is_alive()
