"""Tests of the AppArmor backend on a real kernel: each case of apparmor_guest.py, in a virtual
machine.
"""

import re
from pathlib import Path

import pytest

from tests.system import vm

GUEST = Path(__file__).with_name("apparmor_guest.py")
CASES = re.findall(r"^@case\ndef (\w+)", GUEST.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def output():
    """Return the output of one guest that runs all cases."""
    files = {
        GUEST.name: GUEST.read_bytes(),
        "inspection.py": Path("tests/inspection.py").read_bytes(),
    }
    return vm.run(files, f"python3 {GUEST.name}", timeout_seconds=600).output


@pytest.mark.parametrize("case", CASES)
def test_on_a_real_kernel(output, case):
    """On a real kernel, the backend has the behaviour that the name of each case describes."""
    assert re.search(rf"^PASS {case}\s*$", output, re.MULTILINE), output
