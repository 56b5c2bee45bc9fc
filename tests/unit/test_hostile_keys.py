"""One key of 1 MiB, as a ConfigMap may hold it, that would take the agent's time or memory.

The container has 128 MiB, and what looks at one key holds up all others and the probes.
"""

import json
import subprocess
import sys

import pytest

from agent.core.findings import MAX_FINDINGS, Finding, limited
from tests.unit import hostile

SECONDS = 5.0  # of CPU; each seccomp key takes less than half a second
TEXT_SECONDS = 20.0  # of CPU; a text is split in three ways, each token takes some microseconds
MEBIBYTES = 64


def looked_at(name, seconds=SECONDS):
    """Return what a process of its own says about looking at a key."""
    command = [sys.executable, "-m", "tests.unit.hostile", name]
    done = subprocess.run(command, capture_output=True, check=True, timeout=600)
    told = json.loads(done.stdout)
    assert (told["seconds"] < seconds, told["memory"] < MEBIBYTES) == (True, True), told
    return told["problems"]


@pytest.mark.parametrize("name", hostile.SECCOMP)
def test_a_hostile_seccomp_key_is_refused_quickly(name):
    """With some of its mistakes, in little time and memory."""
    assert 0 < looked_at(name) <= MAX_FINDINGS + 1


@pytest.mark.parametrize("name", hostile.APPARMOR)
def test_a_hostile_text_is_looked_through_quickly(name):
    """Before the parser, and beside it."""
    assert looked_at(name, TEXT_SECONDS) <= MAX_FINDINGS + 1


def finding(code, number):
    return Finding(code=code, location=str(number), message="it is so")


def test_an_error_is_told_however_many_warnings_come_before():
    """A key with an error is refused: no flood of warnings may hide it."""
    warnings = [finding("complain_mode", number) for number in range(MAX_FINDINGS * 2)]
    error = finding("not_json", 0)
    more = Finding(code="not_json", location="0", message="There is more, which is not told.")
    assert limited([*warnings, error]) == (*warnings[: MAX_FINDINGS - 1], error, more)
    assert limited([error, *warnings]) == (
        error,
        *warnings[: MAX_FINDINGS - 1],
        Finding(
            code="complain_mode",
            location=str(MAX_FINDINGS - 2),
            message="There is more, which is not told.",
        ),
    )


def test_what_has_few_problems_tells_them_all():
    """Nothing is added where nothing is left out."""
    found = tuple(finding("not_json", number) for number in range(MAX_FINDINGS))
    assert (limited(found), limited(())) == (found, ())


def test_nothing_more_is_looked_for_once_an_error_and_enough_is_known():
    """What finds problems one by one may stop there."""
    found = iter([finding("not_json", number) for number in range(MAX_FINDINGS + 5)])
    assert len(limited(found)) == MAX_FINDINGS + 1
    assert len([*found]) == 4
