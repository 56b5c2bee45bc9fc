"""Tests in virtual machines with and without SELinux in the kernel."""

import json

import pytest

from tests.system import vm

GUEST = """
import json
import os
import subprocess
from pathlib import Path

DIRECTORY = Path("/sys/fs/selinux")

def report():
    words = ["python3", "-m", "agent", "--oneshot", "--source=dir:/job/source", "--kinds=seccomp"]
    done = subprocess.run([*words, "--output=json"], capture_output=True, text=True)
    document = json.loads(done.stdout)
    codes = [problem["code"] for problem in document["problems"]]
    return [done.returncode, document["security_modules"], codes]

def container(command):
    # Run a command in a mount namespace with a new sysfs, as a container runtime does.
    words = ["unshare", "--mount", "sh", "-c", f"mount -t sysfs -o ro sysfs /sys && {command}"]
    return subprocess.run(words, capture_output=True, text=True)

results = {
    "modules": Path("/sys/kernel/security/lsm").read_text().strip(),
    "not mounted": report(),
}
if DIRECTORY.exists():
    results["in a container"] = container("ls -A /sys/fs/selinux; test -d /sys/fs/selinux").stdout
    results["new directory"] = container("mkdir /sys/fs/other").returncode
    subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", DIRECTORY], check=True)
    (DIRECTORY / "enforce").write_text("0")
    results["permissive"] = report()
    (DIRECTORY / "enforce").write_text("1")
    results["enforcing"] = report()
    subprocess.run(["mount", "-o", "remount,bind,ro", DIRECTORY], check=True)
    try:
        (DIRECTORY / "enforce").write_text("0")
    except OSError as error:
        results["written"] = error.strerror
    results["read-only"] = report()
print(json.dumps(results))
"""


def results(modules):
    """Return the results in a guest whose kernel has these security modules."""
    files = {"guest.py": GUEST.encode(), "source/a.json": b'{"defaultAction": "SCMP_ACT_LOG"}'}
    result = vm.run(files, "python3 guest.py", timeout_seconds=600, append=f"lsm={modules}")
    assert result.status == 0, result.output
    return json.loads(result.output.splitlines()[-1])


@pytest.fixture(scope="module")
def selinux():
    """Return the results in a guest with SELinux."""
    return results("landlock,selinux")


def test_selinux_is_disabled_without_it_in_the_kernel():
    """A kernel without SELinux has no directory for selinuxfs."""
    without = results("landlock,apparmor")
    assert "selinux" not in without["modules"]
    assert without["not mounted"] == [0, {"selinux": {"mode": "disabled"}}, []]


def test_the_mode_is_unknown_until_selinuxfs_is_mounted(selinux):
    """The mode is unknown while the directory of selinuxfs is empty, as in a container without the
    mount.
    """
    assert "selinux" in selinux["modules"]
    unknown = [0, {"selinux": {"mode": "unknown"}}, ["module_unobservable"]]
    assert selinux["not mounted"] == unknown
    assert selinux["in a container"] == ""


@pytest.mark.parametrize("mode", ["permissive", "enforcing"])
def test_the_mode_of_the_kernel_is_reported(selinux, mode):
    """The agent reads the current mode from the kernel."""
    assert selinux[mode] == [0, {"selinux": {"mode": mode}}, []]


def test_a_read_only_mount_suffices(selinux):
    """The agent reads the mode through a read-only mount, which prevents every write."""
    assert selinux["written"] == "Read-only file system"
    assert selinux["read-only"] == [0, {"selinux": {"mode": "enforcing"}}, []]


def test_a_missing_directory_in_sysfs_cannot_be_created(selinux):
    """A runtime cannot create a missing directory, so the base must not mount selinuxfs."""
    assert selinux["new directory"] != 0
