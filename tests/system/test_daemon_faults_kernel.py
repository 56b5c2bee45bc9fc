"""Tests that the running daemon survives faults on a real AppArmor kernel."""

from pathlib import Path

import pytest

from tests.system import guest_programs, vm

LIMIT_SECONDS = 1500
# The daemon is killed before some of the steps. test_kills.py contains the complete test.
COMMAND = "STRIDE=3 python3 guest/faults.py"
SCENARIOS = [
    "a_process_that_began_after_the_last_pass_is_also_reported",
    "loaded_profiles_stay_while_securityfs_is_unmounted_or_hidden",
    "a_start_without_securityfs_installs_nothing_and_recovers",
    "the_last_good_version_stays_however_the_parser_fails",
    "a_repair_does_not_wait_for_a_hanging_parser",
    "a_jump_of_the_clock_does_not_affect_the_daemon",
    "a_daemon_killed_before_a_named_step_reaches_the_same_state",
    "a_key_that_is_deleted_after_a_kill_leaves_no_agent_owned_profile",
    "a_foreign_profile_in_place_of_an_unfinished_installation_stays",
    "a_process_stays_confined_through_upgrades_and_downgrades",
]


@pytest.fixture(scope="module")
def outcomes():
    """Return the error of each scenario, from one run of the guest."""
    files = guest_programs.files()
    files["guest/killed.py"] = Path("tests/system/killed.py").read_bytes()
    result = vm.run(files, COMMAND, timeout_seconds=LIMIT_SECONDS)
    return guest_programs.outcomes(result)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario of tests/system/guest/faults.py succeeds."""
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)
