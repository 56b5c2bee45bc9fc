"""Tests in a virtual machine with a kernel in which Landlock is not active."""

import json
from pathlib import Path

import pytest

from tests.system import vm

GUEST = """
import json
from inspection import apparmor_backend, inspected, install
from agent.core.model import SourceKey
from agent.host.filesystem import Host

backend = apparmor_backend(Host("/"), state_dir="/var/lib/profile-loader")

def install_key(key, content):
    source_key = SourceKey(profile_set="dir test", key=key, content=content.encode())
    (profile,) = inspected(backend, source_key)
    if not hasattr(profile, "version"):
        return [finding.code for finding in profile.findings]
    return type(install(backend, profile)).__name__

print(json.dumps({
    "modules": open("/sys/kernel/security/lsm").read().strip(),
    "code": backend.sandbox().finding.code,
    "what": backend.sandbox().finding.message,
    "plain": install_key("plain", "include <tunables/global>\\nprofile plain { file, }\\n"),
    "undecided": install_key(
        "undecided", "include <tunables/global> profile undecided { file, }\\n"
    ),
}))
"""


@pytest.fixture(scope="module")
def results():
    """Run the agent in a guest that was started with `lsm=apparmor`, and return its results."""
    files = {
        "guest.py": GUEST.encode(),
        "inspection.py": Path("tests/inspection.py").read_bytes(),
    }
    result = vm.run(files, "python3 guest.py", timeout_seconds=600, append="lsm=apparmor")
    assert result.status == 0, result.output
    return json.loads(result.output.splitlines()[-1])


def test_the_kernel_has_apparmor_and_not_landlock(results):
    """The command line of the kernel contains the list of active modules."""
    assert ("apparmor" in results["modules"], "landlock" in results["modules"]) == (True, False)


def test_a_profile_is_installed_without_the_sandbox_and_that_is_reported(results):
    """Without Landlock, a notice contains the reason. An ordinary profile does not need the
    sandbox.
    """
    assert results["plain"] == "Installed"
    assert results["code"] == "parser_not_sandboxed"
    assert "Landlock is not among the active modules of the kernel (lsm=)" in results["what"]


def test_a_text_that_the_check_cannot_decide_is_rejected_there(results):
    """Without the sandbox, undecided texts are rejected, because the parser could open other
    files.
    """
    assert results["undecided"] == ["include_refused"]
