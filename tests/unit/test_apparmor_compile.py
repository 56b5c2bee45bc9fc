"""Specification of how texts are compiled in the background: once each, and none waits for another.

A shell script stands in for the parser, so that its faults and its speed can be chosen.
"""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.backends.apparmor import policy_cache
from agent.core.model import Pending, Rejection, SourceKey, Unchecked
from tests.inspection import inspected, no_progress
from tests.unit.test_apparmor_faults import agent, node, script

QUICK = 'case "$*" in *no-expr-simplify*) quick=1;; *) quick=;; esac\n'
PATIENCE_SECONDS = 60.0


def blobs(*texts):
    return [
        SourceKey(profile_set="dir test", key=f"k{number}", content=text.encode())
        for number, text in enumerate(texts)
    ]


def backend(tmp_path, text, **options):
    return agent(
        node(tmp_path), parser=script(tmp_path, text), **{"state_dir": "/state", **options}
    )


def runs(tmp_path):
    file = tmp_path / "runs"
    return file.read_text().splitlines() if file.exists() else []


def codes(results):
    return [[finding.code for finding in result.findings] for result in results]


@pytest.mark.parametrize("fault", ["exit 1", "kill -9 $$", "kill -XCPU $$"])
def test_a_text_that_fails_in_the_quick_run_is_compiled_again_without_the_shortcut(tmp_path, fault):
    """Only the full run decides about a text."""
    text = f'{QUICK}echo "run$quick" >> {tmp_path}/runs\n[ -z $quick ] || {fault}'
    made = backend(tmp_path, text)
    assert codes(inspected(made, *blobs("profile x {}"))) == [["no_profile"]]
    assert runs(tmp_path) == ["run1", "run"]


def test_a_text_that_succeeds_in_the_quick_run_is_compiled_once(tmp_path):
    """A full run would give the same policy."""
    made = backend(tmp_path, f'{QUICK}echo "run$quick" >> {tmp_path}/runs')
    inspected(made, *blobs("profile x {}"))
    assert runs(tmp_path) == ["run1"]


def test_equal_texts_are_compiled_once(tmp_path):
    """Two keys with the same text share the result."""
    made = backend(tmp_path, f"cat >> {tmp_path}/runs")
    inspected(made, *blobs("profile x {}\n", "profile y {}\n", "profile x {}\n"))
    assert sorted(runs(tmp_path)) == ["profile x {}", "profile y {}"]


def test_an_inspection_never_waits_for_the_parser(tmp_path):
    """A text that hangs the parser leaves its key pending, and says so."""
    made = backend(tmp_path, "exec sleep 600")
    (blob,) = blobs("profile x {}")
    result = made.inspect(blob)
    assert result == Pending(id=result.id, source=blob.content, findings=())
    made.begin_pass()  # a pass that does not ask for the text ends its run
    made.begin_pass()


def test_a_result_wakes_the_agent_and_the_next_pass_uses_it(tmp_path):
    """The worker only reports that there is a result."""
    woken = threading.Event()
    made = backend(tmp_path, "cat > /dev/null", completed=woken.set)
    (blob,) = blobs("profile x {}")
    assert isinstance(made.inspect(blob), Pending)
    assert woken.wait(PATIENCE_SECONDS)
    made.begin_pass()
    assert codes([made.inspect(blob)]) == [["no_profile"]]


def test_a_failed_start_of_the_parser_is_reported_by_the_next_pass(tmp_path):
    """A failed start wakes the daemon, and a command that waits afterwards runs another pass."""
    woken = threading.Event()
    path = script(tmp_path, "exit 0")
    Path(path).write_text("#!/absent/interpreter\n")
    made = agent(node(tmp_path), parser=path, state_dir="/state", completed=woken.set)
    (blob,) = blobs("profile x {}")
    assert isinstance(made.inspect(blob), Pending)
    assert woken.wait(PATIENCE_SECONDS)
    assert made.wait(no_progress)
    made.begin_pass()
    assert isinstance(made.inspect(blob), Unchecked)
    assert not made.wait(no_progress)


def test_a_new_text_overtakes_a_slow_one(tmp_path):
    """The parser of the slow text is ended: it starts again when nothing else waits."""
    go = tmp_path / "go"
    made = backend(
        tmp_path,
        f'{QUICK}[ "$(cat)" = slow ] || exit 0\n[ -n "$quick" ] && kill -XCPU $$\n'
        f"touch {tmp_path}/started; until [ -e {go} ]; do sleep 0.01; done",
        completed=lambda: None,
    )
    slow, new = blobs("slow", "new")
    made.inspect(slow)
    until((tmp_path / "started").exists)
    made.begin_pass()
    made.inspect(slow)
    made.inspect(new)

    def is_compiled():
        made.begin_pass()
        return [isinstance(made.inspect(blob), Pending) for blob in (slow, new)] == [True, False]

    until(is_compiled)
    go.touch()
    made.begin_pass()
    made.begin_pass()


def until(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_at_most_two_parsers_run_at_a_time(tmp_path):
    """Each run counts the runs beside it."""
    made = backend(
        tmp_path,
        f"cat > /dev/null\ncd {tmp_path}\necho start >> runs\n"
        "now() { echo $(($(grep -c start runs) - $(grep -c end runs))); }\n"
        "for i in $(seq 20); do now >> at-once; sleep 0.01; done\necho end >> runs",
    )
    inspected(made, *blobs("1", "2", "3", "4"))
    assert max((tmp_path / "at-once").read_text().split()) <= "2"
    assert runs(tmp_path).count("start") == 4


def test_a_text_that_is_refused_is_never_given_to_the_parser(tmp_path):
    """The parser would read the file that an include names."""
    made = backend(tmp_path, f"echo run >> {tmp_path}/runs")
    (result,) = inspected(made, *blobs('include "/etc/shadow"\nprofile x {}\n'))
    assert isinstance(result, Rejection)
    assert runs(tmp_path) == []


def test_no_parser_outlives_the_agent(tmp_path):
    """A process that ends while a text is compiled ends the parser, too."""
    path = script(
        tmp_path,
        f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 600",
    )
    node(tmp_path)
    program = (
        "import sys, pathlib\n"
        "from tests.unit.test_apparmor_faults import agent, Host\n"
        "from tests.unit.test_apparmor_compile import blobs, until\n"
        f"made = agent(Host({str(tmp_path)!r}), parser={path!r}, state_dir='/state')\n"
        "made.inspect(*blobs('a'))\n"
        f"until(pathlib.Path({str(tmp_path)!r}, 'pid').exists)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_SECONDS)
    pid = (tmp_path / "pid").read_text().strip()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_result_for_includes_that_changed_in_the_meantime_is_not_used(tmp_path):
    """The text is compiled again for the includes of today."""
    include = tmp_path / "includes"
    include.mkdir()
    path = script(
        tmp_path,
        f"echo run >> {tmp_path}/runs\n[ -e {include}/a ] || echo > {include}/a",
    )
    made = agent(node(tmp_path), parser=path, state_dir="/state", include_dir=str(include))
    inspected(made, *blobs("profile x {}"))
    assert runs(tmp_path) == ["run", "run"]


def test_the_seconds_of_each_run_are_reported(tmp_path):
    """A run that ended at once does not count the wait for a slow one."""
    seconds = []
    made = backend(
        tmp_path,
        f'{QUICK}[ "$(cat)$quick" = slow1 ] || exit 0\nsleep 1; exit 1',
        parser_ran=seconds.append,
    )
    inspected(made, *blobs("slow", "fast"))
    assert [each > 0.9 for each in sorted(seconds)] == [False, False, True]


def full_pass(made, number):
    """Make a full pass over one text in its next edition."""
    made.invalidate()
    made.begin_pass()
    inspected(made, *blobs(f"profile x {{ # {number}\n}}\n"))


def test_old_editions_of_a_text_leave_memory_and_disk(tmp_path, monkeypatch):
    """Texts that no full pass has used lately are kept on disk only, and there within bounds."""
    monkeypatch.setattr(policy_cache, "MAX_DISK_ENTRIES", 10)
    made = backend(tmp_path, "cat > /dev/null")
    for number in range(30):
        full_pass(made, number)
    assert len(made.cache.memory) == 2
    assert len(list((tmp_path / "state/cache").iterdir())) <= 10


def test_a_text_in_use_stays_in_memory(tmp_path):
    """Full passes over the same text do not read the disk again."""
    made = backend(tmp_path, f"echo run >> {tmp_path}/runs")
    for _ in range(3):
        full_pass(made, 1)
        shutil.rmtree(tmp_path / "state/cache", ignore_errors=True)
    assert runs(tmp_path) == ["run"]


def test_names_that_are_gone_leave_the_memory(tmp_path):
    """A policy that was checked once, and that no source provides any more, is not kept."""
    made = backend(tmp_path, "exit 1")
    made.changes.checked["gone"] = "digest"
    full_pass(made, 1)
    assert made.changes.checked == {}


def test_a_text_that_was_too_much_is_compiled_again_with_a_higher_limit(tmp_path):
    """A raised --parser-timeout takes effect at once, without a change of the text."""
    path, host = script(tmp_path, f"echo run >> {tmp_path}/runs\nkill -XCPU $$"), node(tmp_path)
    for limit, expected in ((1.0, 2), (1.0, 2), (2.0, 4)):
        made = agent(host, parser=path, state_dir="/state", cpu_limit=limit)
        assert codes(inspected(made, *blobs("profile x {}"))) == [["parser_killed"]]
        assert len(runs(tmp_path)) == expected


@pytest.fixture
def no_thread_left():
    """Return a context in which no thread can be started: no address space has so large a stack."""

    @contextlib.contextmanager
    def limited():
        before = threading.stack_size(1 << 47)
        try:
            yield
        finally:
            threading.stack_size(before)

    return limited


def test_a_worker_that_cannot_start_is_started_by_a_later_pass(tmp_path, no_thread_left):
    """A lack of threads is this node's matter, and may be over at the next pass."""
    made = backend(tmp_path, "exit 0")
    with no_thread_left():
        (result,) = inspected(made, *blobs("profile x {}"))
    assert isinstance(result, Unchecked)
    assert codes(inspected(made, *blobs("profile x {}"))) == [["no_profile"]]


def test_a_worker_survives_a_lack_of_threads_during_a_run(tmp_path, no_thread_left):
    """The text is not rejected, and the worker compiles the next one."""
    made = backend(tmp_path, "exit 0")
    inspected(made, *blobs("profile x {}"))
    with no_thread_left():
        (result,) = inspected(made, *blobs("profile y {}"))
    assert isinstance(result, Unchecked)
    assert codes(inspected(made, *blobs("profile z {}"))) == [["no_profile"]]


def test_the_parser_pauses_until_a_pass_collects_large_results(tmp_path):
    """Results do not fill the memory while a pass takes long."""
    made = backend(tmp_path, f"echo run >> {tmp_path}/runs; yes | head -c 3000000")
    texts = blobs(*(f"profile x{number} {{}}" for number in range(8)))
    for blob in texts:
        made.inspect(blob)
    assert made.wait(lambda *_: None)
    assert len(runs(tmp_path)) < len(texts)
    assert codes(inspected(made, *texts)) == [["policy_unreadable"]] * len(texts)
