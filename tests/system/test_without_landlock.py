"""Tests in a virtual machine whose kernel has no active Landlock."""

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
    """Run the agent in a guest with the kernel option `lsm=apparmor`, and return the results."""
    files = {
        "guest.py": GUEST.encode(),
        "inspection.py": Path("tests/inspection.py").read_bytes(),
    }
    result = vm.run(files, "python3 guest.py", timeout_seconds=600, append="lsm=apparmor")
    assert result.status == 0, result.output
    return json.loads(result.output.splitlines()[-1])


def test_the_kernel_has_apparmor_and_not_landlock(results):
    """In the guest, AppArmor is active and Landlock is not."""
    assert ("apparmor" in results["modules"], "landlock" in results["modules"]) == (True, False)


def test_a_profile_is_installed_without_the_sandbox_and_a_notice_reports_this(results):
    """Without Landlock, an ordinary profile is installed without the sandbox, and a notice contains
    the reason.
    """
    assert results["plain"] == "Installed"
    assert results["code"] == "parser_not_sandboxed"
    assert "Landlock is not among the active modules of the kernel (lsm=)" in results["what"]


def test_an_undecided_text_is_rejected_without_landlock(results):
    """Without Landlock, the agent rejects texts that the source checks cannot decide, because the
    parser could open other files.
    """
    assert results["undecided"] == ["include_refused"]
