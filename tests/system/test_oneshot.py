"""Tests of single passes on a real AppArmor kernel."""

import json
from pathlib import Path

import pytest

from tests.system import guest_programs, vm

LIMIT_SECONDS = 900
BUDGET_SECONDS = 300
# The agent is killed before every third side effect. test_kills.py contains the complete test.
COMMAND = "STRIDE=3 python3 guest/scenarios.py"


def files():
    """Return the files of the guest by path."""
    contents = guest_programs.files()
    for path in Path("profiles").rglob("*"):
        if path.is_file():
            contents[str(path)] = path.read_bytes()
    return contents


@pytest.fixture(scope="module")
def outcomes():
    """Return the error of each scenario, or None, from one run of the guest."""
    result = vm.run(files(), COMMAND, timeout_seconds=LIMIT_SECONDS)
    if result.seconds > BUDGET_SECONDS:
        print(f"the guest took {result.seconds:.0f} s; its budget is {BUDGET_SECONDS} s")
    return guest_programs.outcomes(result)


SCENARIOS = guest_programs.scenarios("scenarios")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_real_kernel(outcomes, scenario):
    """Each scenario of tests/system/guest/scenarios.py succeeds."""
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)


def test_without_apparmor_seccomp_still_works():
    """If AppArmor is disabled, the agent installs seccomp profiles, and reports AppArmor profiles
    as unsupported.
    """
    command = "python3 -m agent --oneshot --source profiles --output json --allow-unsupported"
    result = vm.run(
        files(), f"{command} 2>/dev/null", timeout_seconds=LIMIT_SECONDS, append="apparmor=0"
    )
    report = json.loads(result.output)
    states = {row["name"] or row["key"]: row["state"] for row in report["profiles"]}
    assert (result.status, states) == (
        0,
        {
            "k8s-apparmor-example-deny-write.profile": "unsupported",
            "prevent-chmod": "installed",
            "profiles/audit.json": "installed",
            "profiles/fine-grained.json": "installed",
            "profiles/violation.json": "installed",
        },
    )
