"""Tests of the daemon on a real AppArmor kernel."""

import pytest

from tests.system import guest_programs, vm

LIMIT_SECONDS = 900
SCENARIOS = [
    "outside_changes_are_repaired_within_a_second",
    "a_deleted_or_changed_seccomp_file_is_restored_within_seconds",
    "a_change_of_the_source_is_loaded_at_once",
    "a_process_stays_confined_all_the_time",
    "a_process_that_lost_its_confinement_is_reported_until_it_ends",
    "a_held_profile_is_removed_soon_after_its_last_process_ends",
    "sigterm_during_a_parser_run_ends_the_daemon_within_two_seconds",
    "a_second_daemon_does_not_start",
    "changes_by_the_daemon_itself_cause_no_further_pass",
]


@pytest.fixture(scope="module")
def outcomes():
    """Return the error of each scenario, from one run of the guest."""
    result = vm.run(
        guest_programs.files(), "python3 guest/daemon.py", timeout_seconds=LIMIT_SECONDS
    )
    return guest_programs.outcomes(result)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario of tests/system/guest/daemon.py succeeds."""
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)
