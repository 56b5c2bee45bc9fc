"""Tests on Debian 12's kernel (Linux 6.1): no removal unconfines a thread, and lost confinement is
always reported.
"""

import pytest

from tests.system import confinement, vm


@pytest.fixture(scope="module")
def outcomes():
    """Return the results of all scenarios."""
    return confinement.every_scenario(vm.STANDARD)


@pytest.mark.parametrize("scenario", confinement.SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario of tests/system/guest/disuse.py and tracker.py succeeds."""
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)
