"""Tests of keys of 1 MiB, the limit of a ConfigMap, whose checks could take much time or memory.

The container of the agent has 256 MiB of memory, and the check of one key delays all other keys.
"""

import json
import subprocess
import sys

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import MAX_FINDINGS, Finding, limit_findings
from tests.unit import hostile

# The limit in seconds of CPU time. On an idle machine, each seccomp key needs less than half a
# second.
SECONDS = 5.0
TEXT_SECONDS = (
    # The limit in seconds of CPU time. A text is split in three ways, and each token takes a few
    # microseconds.
    20.0
)
MEBIBYTES = 64


def checked(name: str, seconds: float = SECONDS) -> int:
    """Return the result of checking one key in a separate process."""
    command = [sys.executable, "-m", "tests.unit.hostile", name]
    result = subprocess.run(command, capture_output=True, check=True, timeout=600)
    reported = json.loads(result.stdout)
    assert (reported["seconds"] < seconds, reported["memory"] < MEBIBYTES) == (True, True), reported
    return reported["problems"]


@pytest.mark.parametrize("name", hostile.SECCOMP)
def test_a_hostile_seccomp_key_is_rejected_quickly(name: str) -> None:
    """The check of a malicious seccomp key takes little time and memory, and reports errors."""
    assert 0 < checked(name) <= MAX_FINDINGS + 1


@pytest.mark.parametrize("name", hostile.APPARMOR)
def test_a_hostile_apparmor_text_is_checked_quickly(name: str) -> None:
    """The checks of a malicious AppArmor text before the parser take little time and memory."""
    assert checked(name, TEXT_SECONDS) <= MAX_FINDINGS + 1


def finding(code: FindingCode, number: int) -> Finding:
    return Finding(code=code, location=str(number), message="it is so")


def test_an_error_after_many_warnings_is_reported() -> None:
    """A key with an error is rejected, even if many warnings precede the error."""
    warnings = [finding(FindingCode.COMPLAIN_MODE, number) for number in range(MAX_FINDINGS * 2)]
    error = finding(FindingCode.NOT_JSON, 0)
    more = Finding(
        code=FindingCode.NOT_JSON,
        location="0",
        message="More problems were found; only the first 50 are shown.",
        hint="Correct these problems first, and check the profile again.",
    )
    assert limit_findings([*warnings, error]) == (*warnings[: MAX_FINDINGS - 1], error, more)
    assert limit_findings([error, *warnings]) == (
        error,
        *warnings[: MAX_FINDINGS - 1],
        Finding(
            code=FindingCode.COMPLAIN_MODE,
            location=str(MAX_FINDINGS - 2),
            message="More problems were found; only the first 50 are shown.",
            hint="Correct these problems first, and check the profile again.",
        ),
    )


def test_few_problems_are_all_reported() -> None:
    """A small number of problems is reported completely, without a notice about omitted
    problems.
    """
    result = tuple(finding(FindingCode.NOT_JSON, number) for number in range(MAX_FINDINGS))
    assert (limit_findings(result), limit_findings(())) == (result, ())


def test_the_search_ends_after_an_error_and_enough_problems() -> None:
    """Once the check has found an error and enough problems in total, it stops looking for more."""
    result = iter([finding(FindingCode.NOT_JSON, number) for number in range(MAX_FINDINGS + 5)])
    assert len(limit_findings(result)) == MAX_FINDINGS + 1
    assert len([*result]) == 4
