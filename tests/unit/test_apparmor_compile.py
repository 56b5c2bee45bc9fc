"""Tests of the compilation of texts in the background.

A shell script replaces the parser, so that each test can control the faults and the speed of the
parser.
"""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from agent.backends.apparmor import policy_cache
from agent.backends.apparmor.backend import AppArmorBackend
from agent.core.finding_codes import FindingCode
from agent.core.model import Inspected, Pending, Rejection, SourceKey, Unchecked
from tests.inspection import inspected, no_progress
from tests.narrowing import instance_of
from tests.unit.test_apparmor_faults import apparmor_backend, node, script

QUICK = 'case "$*" in *no-expr-simplify*) quick=1;; *) quick=;; esac\n'
PATIENCE_SECONDS = 60.0


def source_keys(*texts: str) -> list[SourceKey]:
    """Return one key for each text."""
    return [
        SourceKey(profile_set="dir test", key=f"k{number}", content=text.encode())
        for number, text in enumerate(texts)
    ]


def script_backend(tmp_path: Path, text: str, **options: Any) -> AppArmorBackend:
    """Return a backend whose parser is a shell script with the given text."""
    return apparmor_backend(
        node(tmp_path), parser=script(tmp_path, text), **{"state_dir": "/state", **options}
    )


def runs(tmp_path: Path) -> list[str]:
    """Return the lines that the script has written in its runs."""
    file = tmp_path / "runs"
    return file.read_text().splitlines() if file.exists() else []


def codes(results: Sequence[Inspected]) -> list[list[FindingCode]]:
    """Return the codes of the findings of each rejection."""
    return [
        [finding.code for finding in instance_of(result, Rejection).findings] for result in results
    ]


@pytest.mark.parametrize("fault", ["exit 1", "kill -9 $$", "kill -XCPU $$"])
def test_a_text_that_fails_in_the_quick_run_gets_a_full_run(tmp_path: Path, fault: str) -> None:
    """If a quick run fails, a full run decides whether the text is rejected."""
    text = f'{QUICK}echo "run$quick" >> {tmp_path}/runs\n[ -z $quick ] || {fault}'
    backend = script_backend(tmp_path, text)
    assert codes(inspected(backend, *source_keys("profile x {}"))) == [["no_profile"]]
    assert runs(tmp_path) == ["run1", "run"]


def test_a_text_that_succeeds_in_the_quick_run_is_compiled_once(tmp_path: Path) -> None:
    """If a quick run succeeds, no full run follows, because its result would be the same."""
    backend = script_backend(tmp_path, f'{QUICK}echo "run$quick" >> {tmp_path}/runs')
    inspected(backend, *source_keys("profile x {}"))
    assert runs(tmp_path) == ["run1"]


def test_equal_texts_are_compiled_once(tmp_path: Path) -> None:
    """Two keys with the same text share one result."""
    backend = script_backend(tmp_path, f"cat >> {tmp_path}/runs")
    inspected(backend, *source_keys("profile x {}\n", "profile y {}\n", "profile x {}\n"))
    assert sorted(runs(tmp_path)) == ["profile x {}", "profile y {}"]


def test_a_text_with_an_uncollected_result_is_not_compiled_again(tmp_path: Path) -> None:
    """A second key with the same text uses the result of the first key, even if no pass has
    collected this result yet.
    """
    completed = threading.Event()
    command = f"cat >> {tmp_path}/runs"
    backend = script_backend(tmp_path, command, completed=completed.set)
    first, other, second = source_keys("profile x {}\n", "profile y {}\n", "profile x {}\n")
    backend.inspect(first)
    assert completed.wait(PATIENCE_SECONDS)
    inspected(backend, second, other)
    assert sorted(runs(tmp_path)) == ["profile x {}", "profile y {}"]


def test_an_inspection_never_waits_for_the_parser(tmp_path: Path) -> None:
    """While the parser hangs, an inspection returns a pending key at once."""
    backend = script_backend(tmp_path, "exec sleep 600")
    (source_key,) = source_keys("profile x {}")
    result = backend.inspect(source_key)
    assert result == Pending(id=result.id, source=source_key.content, findings=())
    backend.begin_pass()  # A pass that does not inspect the text cancels its run.
    backend.begin_pass()


def test_a_result_wakes_the_agent_and_the_next_pass_uses_it(tmp_path: Path) -> None:
    """A result only wakes the agent, and the next inspection returns it."""
    woken = threading.Event()
    backend = script_backend(tmp_path, "cat > /dev/null", completed=woken.set)
    (source_key,) = source_keys("profile x {}")
    assert isinstance(backend.inspect(source_key), Pending)
    assert woken.wait(PATIENCE_SECONDS)
    backend.begin_pass()
    assert codes([backend.inspect(source_key)]) == [["no_profile"]]


def test_a_failed_start_of_the_parser_is_reported_by_the_next_pass(tmp_path: Path) -> None:
    """If the parser cannot be started, the next pass reports this. The daemon and a waiting command
    do not wait forever.
    """
    woken = threading.Event()
    path = script(tmp_path, "exit 0")
    Path(path).write_text("#!/absent/interpreter\n")
    backend = apparmor_backend(node(tmp_path), parser=path, state_dir="/state", completed=woken.set)
    (source_key,) = source_keys("profile x {}")
    assert isinstance(backend.inspect(source_key), Pending)
    assert woken.wait(PATIENCE_SECONDS)
    assert backend.wait(no_progress)
    backend.begin_pass()
    assert isinstance(backend.inspect(source_key), Unchecked)
    assert not backend.wait(no_progress)


def test_a_new_text_is_compiled_before_a_slow_text(tmp_path: Path) -> None:
    """When a new text arrives, the parser run for a slowly compiling text is cancelled. The run
    starts again when no other text waits.
    """
    go = tmp_path / "go"
    backend = script_backend(
        tmp_path,
        f'{QUICK}[ "$(cat)" = slow ] || exit 0\n[ -n "$quick" ] && kill -XCPU $$\n'
        f"touch {tmp_path}/started; until [ -e {go} ]; do sleep 0.01; done",
        completed=lambda: None,
    )
    slow, new = source_keys("slow", "new")
    backend.inspect(slow)
    until((tmp_path / "started").exists)
    backend.begin_pass()
    backend.inspect(slow)
    backend.inspect(new)

    def is_compiled() -> bool:
        backend.begin_pass()
        return [isinstance(backend.inspect(source_key), Pending) for source_key in (slow, new)] == [
            True,
            False,
        ]

    until(is_compiled)
    go.touch()
    backend.begin_pass()
    backend.begin_pass()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_at_most_two_parsers_run_at_a_time(tmp_path: Path) -> None:
    """At any time, at most two runs of the parser are active."""
    backend = script_backend(
        tmp_path,
        f"cat > /dev/null\ncd {tmp_path}\necho start >> runs\n"
        "now() { echo $(($(grep -c start runs) - $(grep -c end runs))); }\n"
        "for i in $(seq 20); do now >> at-once; sleep 0.01; done\necho end >> runs",
    )
    inspected(backend, *source_keys("1", "2", "3", "4"))
    assert max((tmp_path / "at-once").read_text().split()) <= "2"
    assert runs(tmp_path).count("start") == 4


def test_a_rejected_text_does_not_reach_the_parser(tmp_path: Path) -> None:
    """A text that includes a forbidden file is rejected without a run of the parser."""
    backend = script_backend(tmp_path, f"echo run >> {tmp_path}/runs")
    (result,) = inspected(backend, *source_keys('include "/etc/shadow"\nprofile x {}\n'))
    assert isinstance(result, Rejection)
    assert runs(tmp_path) == []


def test_no_parser_outlives_the_agent(tmp_path: Path) -> None:
    """If the agent exits during a compilation, the parser exits too."""
    path = script(
        tmp_path,
        f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 600",
    )
    node(tmp_path)
    program = (
        "import sys, pathlib\n"
        "from tests.unit.test_apparmor_faults import apparmor_backend, Host\n"
        "from tests.unit.test_apparmor_compile import source_keys, until\n"
        f"host = Host({str(tmp_path)!r})\n"
        f"backend = apparmor_backend(host, parser={path!r}, state_dir='/state')\n"
        "backend.inspect(*source_keys('a'))\n"
        f"until(pathlib.Path({str(tmp_path)!r}, 'pid').exists)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_SECONDS)
    pid = (tmp_path / "pid").read_text().strip()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_result_for_outdated_includes_is_not_used(tmp_path: Path) -> None:
    """If an included file changes during a run, the result is not used, and the text is compiled
    again.
    """
    include = tmp_path / "includes"
    include.mkdir()
    path = script(
        tmp_path,
        f"echo run >> {tmp_path}/runs\n[ -e {include}/a ] || echo > {include}/a",
    )
    backend = apparmor_backend(
        node(tmp_path), parser=path, state_dir="/state", include_dir=str(include)
    )
    inspected(backend, *source_keys("profile x {}"))
    assert runs(tmp_path) == ["run", "run"]


def test_the_duration_of_each_run_is_reported(tmp_path: Path) -> None:
    """The reported durations are separate, so a slow run does not affect the duration of a fast
    run.
    """
    seconds: list[float] = []
    backend = script_backend(
        tmp_path,
        f'{QUICK}[ "$(cat)$quick" = slow1 ] || exit 0\nsleep 1; exit 1',
        parser_ran=seconds.append,
    )
    inspected(backend, *source_keys("slow", "fast"))
    assert [duration > 0.9 for duration in sorted(seconds)] == [False, False, True]


def full_pass(backend: AppArmorBackend, number: int) -> None:
    """Run a full pass over one text with a new comment."""
    backend.invalidate()
    backend.begin_pass()
    inspected(backend, *source_keys(f"profile x {{ # {number}\n}}\n"))


def test_old_versions_of_a_text_are_removed_from_memory_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that the last full pass did not use are removed from memory, and from the disk above
    its limits.
    """
    monkeypatch.setattr(policy_cache, "MAX_DISK_ENTRIES", 10)
    backend = script_backend(tmp_path, "cat > /dev/null")
    for number in range(30):
        full_pass(backend, number)
    assert len(backend.inspector.cache.memory) == 2
    assert len(list((tmp_path / "state/cache").iterdir())) <= 10


def test_a_text_in_use_stays_in_memory(tmp_path: Path) -> None:
    """If two full passes inspect the same text, the second pass does not read the disk."""
    backend = script_backend(tmp_path, f"echo run >> {tmp_path}/runs")
    for _ in range(3):
        full_pass(backend, 1)
        shutil.rmtree(tmp_path / "state/cache", ignore_errors=True)
    assert runs(tmp_path) == ["run"]


def test_a_text_that_exceeded_a_limit_is_compiled_again_with_a_higher_limit(tmp_path: Path) -> None:
    """If an operator raises --parser-timeout, a text that exceeded the limit is compiled again."""
    path, host = script(tmp_path, f"echo run >> {tmp_path}/runs\nkill -XCPU $$"), node(tmp_path)
    for limit, expected in ((1.0, 2), (1.0, 2), (2.0, 4)):
        backend = apparmor_backend(host, parser=path, state_dir="/state", cpu_limit=limit)
        assert codes(inspected(backend, *source_keys("profile x {}"))) == [["parser_killed"]]
        assert len(runs(tmp_path)) == expected


@pytest.fixture
def no_thread_left() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which no thread can start, because its stack would be too large."""

    @contextlib.contextmanager
    def limited() -> Iterator[None]:
        before = threading.stack_size(1 << 47)
        try:
            yield
        finally:
            threading.stack_size(before)

    return limited


def test_a_worker_that_cannot_start_is_started_by_a_later_pass(
    tmp_path: Path, no_thread_left: Callable[[], AbstractContextManager[None]]
) -> None:
    """If no thread can start, the text stays pending, and a later pass starts the worker."""
    backend = script_backend(tmp_path, "exit 0")
    with no_thread_left():
        (result,) = inspected(backend, *source_keys("profile x {}"))
    assert isinstance(result, Unchecked)
    assert codes(inspected(backend, *source_keys("profile x {}"))) == [["no_profile"]]


def test_a_worker_survives_a_lack_of_threads_during_a_run(
    tmp_path: Path, no_thread_left: Callable[[], AbstractContextManager[None]]
) -> None:
    """If the system has no free threads during a run, the text is not rejected, and the worker
    continues.
    """
    backend = script_backend(tmp_path, "exit 0")
    inspected(backend, *source_keys("profile x {}"))
    with no_thread_left():
        (result,) = inspected(backend, *source_keys("profile y {}"))
    assert isinstance(result, Unchecked)
    assert codes(inspected(backend, *source_keys("profile z {}"))) == [["no_profile"]]


def test_the_parser_pauses_until_a_pass_collects_large_results(tmp_path: Path) -> None:
    """The parser pauses while uncollected results are large, so that they do not fill the
    memory.
    """
    backend = script_backend(tmp_path, f"echo run >> {tmp_path}/runs; yes | head -c 3000000")
    texts = source_keys(*(f"profile x{number} {{}}" for number in range(8)))
    for source_key in texts:
        backend.inspect(source_key)
    assert backend.wait(lambda *_: None)
    assert len(runs(tmp_path)) < len(texts)
    assert codes(inspected(backend, *texts)) == [["policy_unreadable"]] * len(texts)
