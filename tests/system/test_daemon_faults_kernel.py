"""Tests of faults of a daemon on a real AppArmor kernel."""

import json
from pathlib import Path

import pytest

from tests.system import vm

GUEST = Path("tests/system/guest")
LIMIT_SECONDS = 1500
SCENARIOS = [
    "who_began_after_the_last_pass_lost_confinement_too",
    "a_securityfs_that_goes_away_or_is_another_leaves_what_is_loaded",
    "a_start_without_securityfs_puts_nothing_and_heals",
    "a_parser_that_fails_in_any_way_keeps_the_last_good_version",
    "a_repair_waits_for_no_parser_that_hangs",
    "a_clock_set_back_or_forth_disturbs_nothing",
    "a_kill_at_a_named_point_ends_in_the_same_state",
    "a_key_that_disappears_after_a_kill_leaves_no_profile_of_the_agent",
    "a_foreign_profile_in_place_of_an_unfinished_installation_stays",
    "a_process_stays_confined_through_upgrades_and_downgrades",
]


@pytest.fixture(scope="module")
def outcomes():
    """Return the error of each scenario, from one run of the guest."""
    files = {f"guest/{one.name}": one.read_bytes() for one in GUEST.glob("*.py")}
    files["guest/killed.py"] = Path("tests/system/killed.py").read_bytes()
    result = vm.run(files, "python3 guest/faults.py", timeout_seconds=LIMIT_SECONDS)
    lines = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    for line in lines:
        print(line.get("note") or f"{line['scenario']}: {line['seconds']} s")
    return {line["scenario"]: line["error"] for line in lines if "scenario" in line}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario succeeds; tests/system/guest/faults.py describes it."""
    assert outcomes.get(scenario, "it did not run") is None, outcomes.get(scenario)
