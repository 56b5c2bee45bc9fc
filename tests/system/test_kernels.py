"""Tests of the confinement scenarios on the kernels of other Debian releases."""

import pytest

from tests.system import confinement, vm

pytestmark = pytest.mark.kernels


@pytest.fixture(scope="module", params=sorted(vm.RELEASES.keys() - {vm.STANDARD}))
def outcomes(request):
    """Return the error of each scenario on the kernel of a release."""
    return confinement.every_scenario(request.param)


@pytest.mark.parametrize("scenario", confinement.SCENARIOS)
def test_on_another_kernel(outcomes, scenario):
    """Each scenario of tests/system/guest/disuse.py and tracker.py succeeds."""
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)
