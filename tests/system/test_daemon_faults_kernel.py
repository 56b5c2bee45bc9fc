"""Tests that the running daemon survives faults on a real AppArmor kernel."""

from pathlib import Path

import pytest

from tests.system import guest_programs, vm

LIMIT_SECONDS = 1500
# The daemon is killed before some of the steps. test_kills.py contains the complete test.
COMMAND = "STRIDE=3 python3 guest/faults.py"
SCENARIOS = guest_programs.scenarios("faults")


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
