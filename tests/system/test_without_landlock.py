"""A real kernel whose active modules do not contain Landlock, in a virtual machine."""

import json
from pathlib import Path

import pytest

from tests.system import vm

GUEST = """
import json
from inspection import inspected, install
from agent.core.model import SourceKey
from agent.host.filesystem import Host
from agent.backends.apparmor.backend import AppArmorBackend

kind = AppArmorBackend(host=Host("/"), state_dir="/var/lib/profile-loader")

def put(key, content):
    source_key = SourceKey(profile_set="dir test", key=key, content=content.encode())
    (profile,) = inspected(kind, source_key)
    if not hasattr(profile, "version"):
        return [one.code for one in profile.findings]
    return type(install(kind, profile)).__name__

print(json.dumps({
    "modules": open("/sys/kernel/security/lsm").read().strip(),
    "code": kind.sandbox().finding.code,
    "what": kind.sandbox().finding.message,
    "plain": put("plain", "include <tunables/global>\\nprofile plain { file, }\\n"),
    "undecided": put("undecided", "include <tunables/global> profile undecided { file, }\\n"),
}))
"""


@pytest.fixture(scope="module")
def found():
    """Return what the agent does in a guest that was started with `lsm=apparmor`."""
    files = {
        "guest.py": GUEST.encode(),
        "inspection.py": Path("tests/inspection.py").read_bytes(),
    }
    result = vm.run(files, "python3 guest.py", timeout_seconds=600, append="lsm=apparmor")
    assert result.status == 0, result.output
    return json.loads(result.output.splitlines()[-1])


def test_the_kernel_has_apparmor_and_not_landlock(found):
    """The list of active modules is the one of the kernel's command line."""
    assert ("apparmor" in found["modules"], "landlock" in found["modules"]) == (True, False)


def test_a_profile_is_installed_without_the_sandbox_and_that_is_reported(found):
    """The notice says what to change; an ordinary profile does not need the sandbox."""
    assert found["plain"] == "Installed"
    assert found["code"] == "parser_not_sandboxed"
    assert "Landlock is not among the active modules of the kernel (lsm=)" in found["what"]


def test_a_text_that_the_check_cannot_decide_is_rejected_there(found):
    """Nothing would keep the parser from opening other files."""
    assert found["undecided"] == ["include_refused"]
