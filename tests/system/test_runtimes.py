"""Tests that the shipped seccomp profiles have the described effects under runc and crun."""

import json
import platform
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.model import Profile, SourceKey
from agent.host.filesystem import Host

CAPABILITIES = ["CAP_CHOWN", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
# crun does not support these controllers of a hybrid cgroup hierarchy.
HYBRID = "/sys/fs/cgroup/unified"


def installed(key):
    """Return the parsed content of the file that the agent would install for a shipped profile."""
    content = (Path("profiles") / key).read_bytes()
    kind = SeccompBackend(host=Host("/nowhere"), clock_ns=time.time_ns, machine=platform.machine())
    profile = kind.inspect(SourceKey(profile_set="dir profiles", key=key, content=content))
    assert isinstance(profile, Profile), profile
    return json.loads(kind.body(profile))


@pytest.fixture
def bundle(tmp_path):
    """Return an OCI bundle whose root file system contains busybox."""
    root = tmp_path / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "chmod", "mkdir", "cat", "grep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/hostname").write_text("x\n")
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    return tmp_path


def configure(bundle, seccomp, words):
    """Write the configuration of the bundle, with a command and optionally with a seccomp
    profile.
    """
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": words}
    config["process"]["capabilities"] = dict.fromkeys(
        ("bounding", "effective", "permitted"), CAPABILITIES
    )
    config["root"]["readonly"] = False
    config["linux"].pop("seccomp", None)
    if seccomp is not None:
        config["linux"]["seccomp"] = seccomp
    (bundle / "config.json").write_text(json.dumps(config))


def run_command(runtime, name):
    """Return the command that runs the bundle in the current directory under a name."""
    if runtime != "crun":
        return [runtime, "run", name]
    command = ["crun", "--cgroup-manager=cgroupfs", "run", name]
    if not Path(HYBRID).is_dir():
        return command
    return ["unshare", "-m", "sh", "-c", f"umount {HYBRID}; exec {' '.join(command)}"]


def contain(runtime, bundle, seccomp, script):
    """Run a shell script or a command in a container, and return its exit status and its output."""
    configure(bundle, seccomp, ["sh", "-c", script] if isinstance(script, str) else script)
    name = f"profile-loader-{uuid.uuid4().hex[:8]}"
    try:
        result = subprocess.run(
            run_command(runtime, name),
            cwd=bundle,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        subprocess.run([runtime, "delete", "--force", name], capture_output=True, check=False)
    return result.returncode, result.stdout + result.stderr


pytestmark = pytest.mark.parametrize("runtime", ["runc", "crun"])
CHMOD = "chmod 777 /etc/hostname && echo changed; grep Seccomp: /proc/self/status"


def test_without_a_profile_chmod_works(runtime, bundle):
    """Without a profile, the container can make the calls that the shipped profiles deny."""
    status, output = contain(runtime, bundle, None, CHMOD)
    assert (status, "changed" in output, "Seccomp:\t0" in output) == (0, True, True), output


def test_prevent_chmod_denies_chmod(runtime, bundle):
    """Under the profile prevent-chmod, chmod fails, all other commands work, and a filter is
    active.
    """
    status, output = contain(runtime, bundle, installed("prevent-chmod"), CHMOD)
    assert (status, "changed" in output, "Seccomp:\t2" in output) == (0, False, True), output
    assert "Operation not permitted" in output


@pytest.mark.parametrize("text", ["name", "names"])
def test_the_documented_text_prevents_chmod(runtime, bundle, text):
    """Both versions of the profile in the AKS documentation deny chmod after their installation."""
    names = ["chmod", "fchmodat", "chmodat"]
    rules = [{"names": names, "action": "SCMP_ACT_ERRNO"}]
    if text == "name":
        rules = [{"name": item, "action": "SCMP_ACT_ERRNO"} for item in names]
    content = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}).encode()
    kind = SeccompBackend(host=Host("/nowhere"), clock_ns=time.time_ns, machine=platform.machine())
    profile = kind.inspect(SourceKey(profile_set="dir x", key="prevent-chmod", content=content))
    assert isinstance(profile, Profile), profile
    _, output = contain(runtime, bundle, json.loads(kind.body(profile)), CHMOD)
    assert ("changed" in output, "Seccomp:\t2" in output) == (False, True), output


def test_audit_runs_under_a_filter(runtime, bundle):
    """Under an auditing profile, every system call is allowed, and a filter is active."""
    status, output = contain(runtime, bundle, installed("profiles/audit.json"), CHMOD)
    assert (status, "changed" in output, "Seccomp:\t2" in output) == (0, True, True), output


def test_violation_does_not_start(runtime, bundle):
    """If the profile of a container allows no call, its command does not run."""
    status, output = contain(runtime, bundle, installed("profiles/violation.json"), "echo started")
    assert (status != 0, "started" in output) == (True, False), output


def test_fine_grained_denies_calls_that_it_does_not_list(runtime, bundle):
    """Under the profile fine-grained, calls that the profile does not list fail, so a command has
    no effect.
    """
    script = "mkdir /tmp/made && echo made"
    _, output = contain(runtime, bundle, installed("profiles/fine-grained.json"), script)
    assert "made\n" not in output, output
