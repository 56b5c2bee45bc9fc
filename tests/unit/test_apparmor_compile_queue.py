"""Tests of the order in which texts are compiled, and of the reasons to reject a text."""

import itertools

import pytest

from agent.backends.apparmor.compile_queue import MAX_WAIT_SECONDS, CompileQueue
from agent.backends.apparmor.parser import ParserRun, RunFailure
from agent.backends.apparmor.policy_cache import ParserResult
from tests.narrowing import not_none

POLICY = ParserRun(outcome=ParserResult(policy=b"policy"), seconds=0.1)
LIMITS = (RunFailure.CPU_TIME, RunFailure.MEMORY, RunFailure.OUTPUT)


def queue_of(*keys: str, pauses: bool = False, cpu_limit: float = 30.0) -> CompileQueue:
    """Return a queue with one text for each key. Keys have the form PROFILE_SET:NUMBER."""
    queue = CompileQueue(cpu_limit=cpu_limit, pauses_slow_texts=pauses)
    for key in keys:
        submit(queue, key)
    return queue


def submit(queue: CompileQueue, key: str) -> None:
    queue.submit(key=key, text=b"", features=(), context="", origin=key.partition(":")[0])


def limited(limit: RunFailure, seconds: float = 2.0) -> ParserRun:
    return ParserRun(outcome=limit, detail=f"too much: {limit.value}", seconds=seconds)


def order(queue: CompileQueue, run: ParserRun = POLICY, now: float = 0.0) -> list[str]:
    """Return all keys in the order in which the queue returns them."""
    keys = []
    while (task := queue.take(now)) is not None:
        keys.append(task.key)
        queue.record_run(task, run, now)
    return keys


def test_texts_are_compiled_in_the_order_of_their_submission() -> None:
    """Texts of the same profile set are compiled in the order of their submission."""
    assert order(queue_of("a:3", "a:1", "a:2")) == ["a:3", "a:1", "a:2"]


def test_a_text_is_queued_once() -> None:
    """Two keys with the same text share one result."""
    queue = queue_of("a:1", "a:1")
    assert (len(queue), queue.submitted) == (1, 1)


def test_the_profile_set_that_used_the_least_time_has_priority() -> None:
    """If one profile set has a thousand texts, another profile set waits for only one of these
    texts.
    """
    queue = queue_of("big:1", "big:2", "big:3", "small:1")
    assert order(queue) == ["big:1", "small:1", "big:2", "big:3"]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_text_that_exceeds_its_slice_waits_behind_all_others(limit: RunFailure) -> None:
    """A text that exceeds its time slice waits behind all other texts."""
    queue = queue_of("a:slow", "a:1", "a:2")
    queue.record_run(not_none(queue.take(0.0)), limited(limit), 0.0)
    assert order(queue) == ["a:1", "a:2", "a:slow"]


def test_each_slice_is_longer_up_to_the_limit() -> None:
    """Each time slice is longer than the previous one, so every text is compiled eventually.

    The first run of each text is a quick run.
    """
    queue = queue_of("a:slow")
    runs = []
    compiled = None
    while compiled is None:
        task = not_none(queue.take(0.0))
        runs.append((task.is_quick, queue.slice_seconds(task)))
        compiled = queue.record_run(task, limited(RunFailure.CPU_TIME), 0.0)
    assert runs == [(True, 2.0), (False, 8.0), (False, 30.0)]
    assert compiled == ParserResult(exceeded_limit="too much: cpu_time")
    assert len(queue) == 0


def test_a_rejected_text_states_whether_memory_was_the_limit() -> None:
    """A rejection contains whether the text exceeded the memory limit, because the operator's next
    step depends on the limit.
    """
    queue = queue_of("a:large")
    compiled = None
    while compiled is None:
        compiled = queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.MEMORY), 0.0)
    assert compiled == ParserResult(exceeded_limit="too much: memory", is_memory_exceeded=True)


def test_only_a_full_run_rejects_a_text() -> None:
    """A text is rejected only after a full run, because a quick run may fail for lack of time or
    memory.
    """
    queue = queue_of("a:1")
    wrong = ParserRun(outcome=ParserResult(error="syntax error"))
    assert queue.record_run(not_none(queue.take(0.0)), wrong, 0.0) is None
    assert queue.record_run(not_none(queue.take(0.0)), wrong, 0.0) == ParserResult(
        error="syntax error"
    )


def test_an_empty_policy_is_a_result() -> None:
    """For a text that contains only comments, the result is an empty policy."""
    queue = queue_of("a:1")
    assert (
        queue.record_run(not_none(queue.take(0.0)), ParserRun(outcome=ParserResult()), 0.0)
        == ParserResult()
    )


@pytest.mark.parametrize(
    "failure", [RunFailure.WALL_CLOCK, RunFailure.NOT_STARTED, RunFailure.SIGNAL]
)
def test_an_inconclusive_run_is_repeated_with_back_off(failure: RunFailure) -> None:
    """A run without a result, for example because of the OOM killer, is repeated with growing
    delays.
    """
    queue = queue_of("a:1", pauses=True)
    if failure is RunFailure.SIGNAL:
        queue.record_run(
            not_none(queue.take(0.0)), limited(failure), 0.0
        )  # A full run follows without a delay.
    now, delays = 0.0, []
    for _ in range(9):
        assert queue.record_run(not_none(queue.take(now)), limited(failure), now) is None
        assert queue.take(now) is None
        retry = not_none(queue.next_retry())
        delays.append(retry - now)
        now = retry
    assert delays == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0, 600.0]
    assert not_none(queue.find("a:1")).failure == limited(failure)


def test_slow_texts_pause_between_their_runs() -> None:
    """The queue pauses between the parser runs for texts that compile slowly, so that these texts
    together use at most a quarter of one processor.
    """
    queue = queue_of("a:slow", pauses=True)
    # The first time slice is the quick run.
    queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.CPU_TIME), 0.0)
    queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.CPU_TIME, seconds=8.0), 8.0)
    assert queue.next_retry() == 8.0 + 3 * 8.0


def test_the_run_of_a_slow_text_is_cancelled_for_a_new_text() -> None:
    """If a parser run is cancelled because a new text arrives, the text of the cancelled run keeps
    its level in the queue.
    """
    queue = queue_of("a:slow")
    queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.CPU_TIME), 0.0)
    slow = not_none(queue.take(0.0))
    before = (slow.level, queue.is_cancelled(slow, 0.0))
    submit(queue, "b:new")
    assert queue.is_cancelled(slow, 0.0)
    assert queue.record_run(slow, limited(RunFailure.CANCELLED), 0.0) is None
    assert (slow.level, False) == before
    assert order(queue) == ["b:new", "a:slow"]


def test_the_run_of_a_new_text_is_not_cancelled_for_another_text() -> None:
    """A run of a new text is not cancelled during its first time slice."""
    queue = queue_of("a:1", "a:2")
    assert not queue.is_cancelled(not_none(queue.take(0.0)), 0.0)


def test_a_text_without_a_source_is_not_compiled() -> None:
    """If the key of a text is deleted, the text is removed from the queue, even during its run."""
    queue = queue_of("a:1", "a:2", "a:3")
    running = not_none(queue.take(0.0))
    queue.retain({"a:3"})
    assert queue.is_cancelled(running, 0.0)
    assert queue.record_run(running, POLICY, 0.0) is None
    assert order(queue) == ["a:3"]


def test_a_text_that_returns_before_its_old_run_ends_is_compiled_again() -> None:
    """If a text is deleted and submitted again during its run, the queue ignores the result of this
    run.
    """
    queue = queue_of("a:1")
    old = not_none(queue.take(0.0))
    queue.retain(())
    submit(queue, "a:1")
    new = not_none(queue.take(0.0))
    assert queue.record_run(old, POLICY, 0.0) is None
    assert queue.is_cancelled(old, 0.0)
    assert not queue.is_cancelled(new, 0.0)
    assert queue.record_run(new, POLICY, 0.0) == POLICY.outcome


def test_the_queue_is_idle_when_nothing_may_run_now() -> None:
    """The queue of the daemon is idle while all texts wait for a retry."""
    queue = queue_of("a:1", pauses=True)
    task = not_none(queue.take(0.0))
    assert not queue.is_idle(0.0)
    queue.record_run(task, limited(RunFailure.WALL_CLOCK), 0.0)
    assert (queue.is_idle(0.0), queue.is_idle(10.0)) == (True, False)


def test_a_command_does_not_repeat_inconclusive_runs() -> None:
    """In a command, runs without a result are not repeated, because a hanging parser would prevent
    the exit of the command.
    """
    queue = queue_of("a:1")
    queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.WALL_CLOCK), 0.0)
    assert queue.is_idle(1e9)
    assert queue.next_retry() is None


def test_two_full_runs_never_share_the_memory() -> None:
    """Full runs never overlap. A text is rejected for its memory use only if its run could use all
    of the memory.
    """
    queue = queue_of("a:1", "a:2")
    for _ in range(2):
        queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.MEMORY), 0.0)
    first = not_none(queue.take(0.0))
    assert queue.take(0.0) is None
    submit(queue, "a:quick")
    quick = not_none(queue.take(0.0))
    assert quick.key == "a:quick"
    queue.record_run(first, POLICY, 0.0)
    assert not_none(queue.take(0.0)).key == "a:2"


def run_stream(queue: CompileQueue, seconds: float) -> list[tuple[str, float, float]]:
    """Run a queue while a new text arrives every second.

    Return (key, begin, end) of each run. Each new text takes one second to compile, and each other
    text exceeds every time slice. A cancelled run takes no time.
    """
    now, number, runs = 0.0, 0, []
    while now < seconds:
        number += 1
        submit(queue, f"stream:{number}")
        task = not_none(queue.take(now))
        if task.origin == "stream":
            run, end = POLICY, now + 1.0
        elif task.is_slow and queue.is_cancelled(task, now):
            run, end = limited(RunFailure.CANCELLED, seconds=0.0), now
        else:
            used = queue.slice_seconds(task)
            run, end = limited(RunFailure.CPU_TIME, seconds=used), now + used
        runs.append((task.key, now, end))
        queue.record_run(task, run, end)
        now = end
    return runs


def test_a_stream_of_new_texts_does_not_starve_a_slow_text() -> None:
    """Even if new texts arrive continuously, a text that compiles slowly gets all of its time
    slices and a result.
    """
    queue = queue_of("a:slow", pauses=True)
    runs = run_stream(queue, 300.0)
    assert queue.find("a:slow") is None
    slices = [end - begin for key, begin, end in runs if key == "a:slow" and end > begin]
    assert slices == [2.0, 8.0, 30.0]


def test_every_slow_text_is_compiled_in_a_stream_of_new_texts() -> None:
    """Among the texts that compile slowly in all profile sets, the text that has waited longest has
    priority.
    """
    keys = [f"{profile_set}:{number}" for profile_set in "abc" for number in range(3)]
    queue = queue_of(*keys, pauses=True)
    run_stream(queue, 2400.0)
    assert [key for key in keys if queue.find(key) is not None] == []


def test_slow_texts_delay_a_new_text_by_at_most_one_slice() -> None:
    """Texts that compile slowly delay a new text by at most one time slice, and the parser runs
    reserved for them use at most a quarter of the time.
    """
    queue = queue_of(*(f"a:{number}" for number in range(100)), pauses=True)
    runs = run_stream(queue, 3000.0)
    assert queue.find("stream:1") is None
    slow = [(begin, end) for key, begin, end in runs if key.startswith("a:") and end - begin > 2.0]
    pauses = [
        later - end >= 3 * (end - begin) for (begin, end), (later, _) in itertools.pairwise(slow)
    ]
    assert len(slow) > 10
    assert all(pauses)


def test_a_reserved_run_of_a_deleted_text_ends() -> None:
    """The reserved run of a text is cancelled when the text is deleted."""
    queue = queue_of("a:slow")
    queue.record_run(not_none(queue.take(0.0)), limited(RunFailure.CPU_TIME), 0.0)
    submit(queue, "b:new")
    slow = not_none(queue.take(MAX_WAIT_SECONDS))
    assert slow.key == "a:slow"
    assert not queue.is_cancelled(slow, MAX_WAIT_SECONDS)
    queue.retain({"b:new"})
    assert queue.is_cancelled(slow, MAX_WAIT_SECONDS)
