"""Tests of the lists of system calls that a runtime needs, with the installed runc and crun."""

import json
import platform
import subprocess
import uuid

import pytest

from agent.backends.seccomp import releases, start
from tests.system.test_runtimes import bundle, configure, run_command

__all__ = ["bundle"]  # an imported fixture

ABI = "SCMP_ARCH_X86_64"
# Most starts without this call fail, but some starts succeed.
UNRELIABLE = {"futex"}
# Calls that at least one runtime in the agent's table needs.
EVERY = frozenset().union(*(one.calls(no_new_privs=False) for one in start.MEASURED))
# The program busybox needs these calls.
OF_BUSYBOX = {"execve", "write", "prctl"}


def measured(runtime):
    """Return the lists for the installed release of a runtime. Skip the test if the agent has no
    list for this release.
    """
    words = subprocess.run([runtime, "--version"], capture_output=True, text=True, check=True)
    installed = releases.version(words.stdout.split()[2].partition("+")[0])
    for one in start.MEASURED:
        if (one.runtime, one.release) == (runtime, installed):
            return one
    pytest.skip(f"{runtime} {installed} was not measured")


def starts(runtime, folder, denied, *, no_new_privs):
    """Return whether a container starts although its profile denies one call."""
    rule = {"names": [denied], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [ABI], "syscalls": [rule]}
    configure(folder, profile, ["sh", "-c", "exit 42"])
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["process"]["noNewPrivileges"] = no_new_privs
    path.write_text(json.dumps(config))
    name = f"profile-loader-{uuid.uuid4().hex[:8]}"
    try:
        result = subprocess.run(
            run_command(runtime, name), cwd=folder, capture_output=True, timeout=600, check=False
        )
    finally:
        subprocess.run([runtime, "delete", "--force", name], capture_output=True, check=False)
    return result.returncode == 42


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the lists were measured on x86_64")
@pytest.mark.parametrize("runtime", ["runc", "crun"])
@pytest.mark.parametrize("no_new_privs", [True, False])
def test_exactly_the_listed_calls_are_needed(runtime, no_new_privs, bundle):
    """A container starts exactly if its profile denies none of the listed calls."""
    needed = measured(runtime).calls(no_new_privs=no_new_privs) - UNRELIABLE
    started = {
        name: starts(runtime, bundle, name, no_new_privs=no_new_privs)
        for name in sorted((EVERY | needed) - UNRELIABLE - (OF_BUSYBOX - needed))
    }
    assert {name for name, has_started in started.items() if not has_started} == needed
