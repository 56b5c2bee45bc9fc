"""Specification of how the parser is run: in a hurry first, a few at a time, never twice."""

import contextlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.model import Blob, Rejection
from agent.kinds.apparmor import cache, parser
from tests.system.guest import pace
from tests.unit.test_apparmor_faults import agent, node, script

HURRY = 'case "$*" in *no-expr-simplify*) hurry=1;; *) hurry=;; esac\n'


@pytest.fixture
def two_cores(monkeypatch):
    """Let two parsers run at a time, whatever this machine has."""
    monkeypatch.setattr(parser, "_cores", lambda: 2)


def blobs(*texts):
    return [
        Blob(origin="dir test", key=f"k{number}", content=text.encode())
        for number, text in enumerate(texts)
    ]


def one(tmp_path, text):
    return agent(node(tmp_path), parser=script(tmp_path, text), state_dir="/state")


def runs(tmp_path):
    file = tmp_path / "runs"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("fault", ["exit 1", "kill -9 $$", "kill -XCPU $$"])
def test_what_fails_in_a_hurry_is_compiled_at_leisure(tmp_path, fault):
    """Only the run without the option decides what becomes of a text."""
    made = one(tmp_path, f'{HURRY}echo "run$hurry" >> {tmp_path}/runs\n[ -z $hurry ] || {fault}')
    (blob,) = blobs("profile x {}")
    found = made.inspect(blob)
    assert [problem.code for problem in found.problems] == ["no_profile"]
    assert runs(tmp_path) == ["run1", "run"]


def test_what_succeeds_in_a_hurry_is_compiled_once(tmp_path):
    """A second run would tell nothing new."""
    made = one(tmp_path, f'{HURRY}echo "run$hurry" >> {tmp_path}/runs')
    (blob,) = blobs("profile x {}")
    made.inspect(blob)
    assert runs(tmp_path) == ["run1"]


def test_what_was_prepared_is_not_compiled_again(tmp_path):
    """Each text once, also where two keys have it, and then from the cache."""
    made = one(tmp_path, f"cat >> {tmp_path}/runs")
    some = blobs("profile x {}\n", "profile y {}\n", "profile x {}\n")
    made.prepare(some, lambda: None)
    for blob in some:
        made.inspect(blob)
    assert sorted(runs(tmp_path)) == ["profile x {}", "profile y {}"]


def test_two_parsers_run_at_a_time_and_no_more(tmp_path, two_cores):
    """Each waits a moment for a third one beside it, which never comes."""
    made = one(
        tmp_path,
        f"cat > /dev/null\ncd {tmp_path}\necho start >> runs\n"
        "now() { echo $(($(grep -c start runs) - $(grep -c end runs))); }\n"
        "for i in $(seq 20); do now >> at-once; sleep 0.01; done\necho end >> runs",
    )
    made.prepare(blobs("1", "2", "3", "4"), lambda: None)
    assert max((tmp_path / "at-once").read_text().split()) == "2"
    assert runs(tmp_path).count("start") == 4


def test_what_is_refused_by_its_text_is_never_given_to_the_parser(tmp_path):
    """An include of an arbitrary file would be read by it."""
    made = one(tmp_path, f"echo run >> {tmp_path}/runs")
    (blob,) = blobs('include "/etc/shadow"\nprofile x {}\n')
    made.prepare([blob], lambda: None)
    assert isinstance(made.inspect(blob), Rejection)
    assert runs(tmp_path) == []


def test_a_parser_that_is_killed_is_counted_once_a_pass(tmp_path):
    """Preparing and inspecting is one try: the text is tried again by the next pass."""
    made = one(tmp_path, f"echo run >> {tmp_path}/runs\nkill -9 $$")
    some = blobs("profile x {}")
    for expected in (2, 4, 4):
        made.prepare(some, lambda: None)
        found = made.inspect(some[0])
        assert [problem.code for problem in found.problems] == ["parser_killed"]
        assert len(runs(tmp_path)) == expected


def test_the_beat_goes_on_while_many_are_compiled(tmp_path):
    """Whoever watches the agent is told after each text."""
    beats = []
    one(tmp_path, "cat > /dev/null").prepare(blobs("a", "b", "c"), lambda: beats.append(1))
    assert len(beats) >= 3


def test_the_beat_goes_on_while_one_is_compiled(tmp_path):
    """Whatever the node loses in that time is put back in that time."""
    go = tmp_path / "go"
    made = one(tmp_path, f"until [ -e {go} ]; do sleep 0.01; done; cat")
    beats = []

    def meanwhile():
        beats.append(1)
        if len(beats) == 3:
            go.touch()

    made.prepare(blobs("a"), meanwhile)
    assert len(beats) >= 4


def test_no_parser_is_begun_beside_those_that_compile_already(tmp_path):
    """The memory of the agent's pod is shared out among those."""
    made = one(tmp_path, f"echo run >> {tmp_path}/runs; cat")
    (first, second) = blobs("a", "b")
    found = []
    made.prepare([first], lambda: found.append(made.inspect(second)))
    assert {type(each).__name__ for each in found} == {"Unchecked"}
    assert len(runs(tmp_path)) == 1


def test_an_end_in_the_middle_leaves_no_parser_behind(tmp_path, two_cores):
    """A signal's SystemExit ends what was started."""
    made = one(tmp_path, f"echo $$ >> {tmp_path}/runs\n[ $(cat) = fast ] || exec sleep 600")

    def leave():
        raise SystemExit

    begin = time.monotonic()
    with contextlib.suppress(SystemExit):
        made.prepare(blobs("fast", "slow", "slow "), leave)
    assert pace.in_time(time.monotonic() - begin, 5.0)
    for pid in runs(tmp_path):
        assert not Path(f"/proc/{pid}").exists()


def test_includes_that_change_meanwhile_leave_nothing_in_the_cache(tmp_path):
    """What was compiled belongs to no context that is known."""
    include = tmp_path / "includes"
    include.mkdir()
    host, path = (
        node(tmp_path),
        script(tmp_path, f"echo run >> {tmp_path}/runs; echo > {include}/a"),
    )
    options = {"parser": path, "state_dir": "/state", "include_dir": str(include)}
    some = blobs("profile x {}")
    for _ in range(2):
        (include / "a").unlink(missing_ok=True)
        fresh = agent(host, **options)
        fresh.prepare(some, lambda: None)
        fresh.inspect(some[0])
    assert runs(tmp_path) == ["run", "run"]


def test_the_seconds_told_are_those_of_each_run(tmp_path, two_cores):
    """A run that ended at once does not count the wait for the slow one before it."""
    told = []
    made = one(tmp_path, f'{HURRY}[ "$(cat)$hurry" = slow1 ] || exit 0\nsleep 1; exit 1')
    made.parser.ran = told.append
    made.prepare(blobs("slow", "fast"), lambda: None)
    assert [seconds > 0.9 for seconds in sorted(told)] == [False, False, True]


def edited(made, number):
    """Make a full pass over one text in its next edition."""
    made.forget()
    some = blobs(f"profile x {{ # {number}\n}}\n")
    made.prepare(some, lambda: None)
    made.inspect(some[0])


def test_editions_of_a_text_leave_memory_and_disk(tmp_path, monkeypatch):
    """What no full pass used since the last one is kept on disk only, and there not for ever."""
    monkeypatch.setattr(cache, "_MOST", 10)
    made = one(tmp_path, "cat > /dev/null")
    for number in range(30):
        edited(made, number)
    assert len(made.cache.memory) == 2
    assert len(list((tmp_path / "state/cache").iterdir())) <= 10


def test_what_is_in_use_stays_in_memory(tmp_path):
    """Full passes over the same text read nothing again from the disk."""
    made = one(tmp_path, f"echo run >> {tmp_path}/runs")
    for _ in range(3):
        edited(made, 1)
        shutil.rmtree(tmp_path / "state/cache", ignore_errors=True)
    assert runs(tmp_path) == ["run"]


def test_names_that_are_gone_leave_the_memory(tmp_path):
    """Of a policy that was checked once, and is desired no more, nothing is kept."""
    made = one(tmp_path, "exit 1")
    made.changes.checked["gone"] = b"policy"
    edited(made, 1)
    assert made.changes.checked == {}


def test_a_text_that_was_too_much_is_tried_again_with_more(tmp_path):
    """A raised --parser-timeout counts at once, without an edit of the text."""
    path, host = script(tmp_path, f"echo run >> {tmp_path}/runs\nkill -9 $$"), node(tmp_path)
    for timeout, expected in ((1, 2), (1, 4), (1, 4), (2, 6)):
        made = agent(host, parser=path, state_dir="/state", timeout_seconds=timeout)
        made.inspect(blobs("profile x {}")[0])
        assert len(runs(tmp_path)) == expected


def test_a_text_of_two_keys_hangs_the_parser_once_a_pass(tmp_path):
    """The second key has the answer that the first one waited for."""
    made = one(tmp_path, f"echo run >> {tmp_path}/runs; kill -9 $$")
    (first,) = blobs("a")
    second = replace(first, key="other")
    made.prepare([first, second], lambda: None)
    before = len(runs(tmp_path))
    answers = [made.inspect(blob) for blob in (first, second)]
    assert [answer.problems[0].code for answer in answers] == ["parser_killed"] * 2
    assert len(runs(tmp_path)) == before
