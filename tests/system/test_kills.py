"""Tests that kill the agent before every side effect on a real AppArmor kernel."""

from pathlib import Path

import pytest

from tests.system import guest_programs, vm

pytestmark = pytest.mark.search
LIMIT_SECONDS = 1800


@pytest.mark.parametrize(
    ("program", "scenario"),
    [
        ("scenarios.py", "an_agent_killed_at_any_step_reaches_the_same_state"),
        ("faults.py", "a_daemon_killed_before_a_named_step_reaches_the_same_state"),
        ("faults.py", "a_key_that_is_deleted_after_a_kill_leaves_no_agent_owned_profile"),
    ],
)
def test_a_kill_before_every_side_effect(program, scenario):
    """The agent is killed before every side effect. The standard tests of these scenarios use only
    some of the steps.
    """
    files = guest_programs.files()
    files["guest/killed.py"] = Path("tests/system/killed.py").read_bytes()
    command = f"python3 guest/{program} {scenario}"
    result = vm.run(files, command, timeout_seconds=LIMIT_SECONDS)
    assert guest_programs.outcomes(result) == {scenario: None}
