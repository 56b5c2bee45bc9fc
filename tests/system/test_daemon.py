"""Tests of the daemon on a real AppArmor kernel."""

import pytest

from tests.system import guest_programs, vm

LIMIT_SECONDS = 900
SCENARIOS = guest_programs.scenarios("daemon")


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
