"""Tests of the ownership of profiles on kernels that show hashes, raw data, both or neither."""

import pytest

from tests.system import guest_programs, vm

LIMIT_SECONDS = 1800  # The longest run took 400 s on two cores with ten competing processes.
KERNELS = {
    "apparmor.hash_policy=1 apparmor.export_binary=1": "content",
    "apparmor.hash_policy=0 apparmor.export_binary=1": "content",
    "apparmor.hash_policy=1 apparmor.export_binary=0": "content",
    "apparmor.hash_policy=0 apparmor.export_binary=0": "nothing",
}
SHOWN = ("both", "raw data", "hashes", "nothing")
SCENARIOS = guest_programs.scenarios("hidden")


@pytest.fixture(scope="module", params=KERNELS, ids=SHOWN)
def outcomes(request):
    """Return the error of each scenario on one kernel, from one run of the guest."""
    result = vm.run(
        guest_programs.files(),
        f"python3 guest/hidden.py {KERNELS[request.param]}",
        timeout_seconds=LIMIT_SECONDS,
        append=request.param,
    )
    return guest_programs.outcomes(result)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario of tests/system/guest/hidden.py succeeds."""
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)


def test_a_profile_that_the_host_loads_at_the_next_boot_is_foreign(tmp_path):
    """A profile that the host loads after a reboot is foreign. The agent ignores records from the
    previous boot, because directory numbers restart at each boot.
    """
    for boot in ("before", "after"):
        result = vm.run(
            guest_programs.files(),
            f"python3 guest/hidden.py {boot}",
            timeout_seconds=LIMIT_SECONDS,
            keep=tmp_path,
        )
        assert result.status == 0, result.output
