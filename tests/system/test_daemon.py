"""Tests of the daemon on a real AppArmor kernel."""

import json
from pathlib import Path

import pytest

from tests.system import vm

GUEST = Path("tests/system/guest")
LIMIT_SECONDS = 900
SCENARIOS = [
    "outside_changes_are_repaired_within_a_second",
    "a_seccomp_file_that_is_deleted_or_altered_is_back_in_seconds",
    "a_change_of_the_source_is_loaded_at_once",
    "a_process_stays_confined_all_the_time",
    "who_lost_confinement_is_told_until_it_ends",
    "what_stayed_for_its_processes_goes_soon_after_them",
    "sigterm_in_the_middle_of_a_parser_run_ends_within_two_seconds",
    "a_second_daemon_refuses",
    "own_changes_wake_it_no_more",
]


@pytest.fixture(scope="module")
def outcomes():
    """Return the error of each scenario, from one run of the guest."""
    files = {f"guest/{one.name}": one.read_bytes() for one in GUEST.glob("*.py")}
    result = vm.run(files, "python3 guest/daemon.py", timeout_seconds=LIMIT_SECONDS)
    lines = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    for line in lines:
        print(line.get("note") or f"{line['scenario']}: {line['seconds']} s")
    return {line["scenario"]: line["error"] for line in lines if "scenario" in line}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario succeeds; tests/system/guest/daemon.py describes it."""
    assert outcomes.get(scenario, "it did not run") is None, outcomes.get(scenario)
