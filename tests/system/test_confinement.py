"""No removal unconfines a thread, and every loss is reported, on Debian 12's kernel (Linux 6.1)."""

import pytest

from tests.system import confinement, vm


@pytest.fixture(scope="module")
def outcomes():
    """The result of every scenario."""
    return confinement.every_scenario(vm.STANDARD)


@pytest.mark.parametrize("scenario", [*confinement.SCENARIOS, confinement.WITHOUT_RAW_DATA])
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario succeeds; its description is in tests/system/guest."""
    assert outcomes.get(scenario, "it did not run") is None, outcomes.get(scenario)
