"""The built image, not only the wheel: what is in it, and that it works."""

import json
import stat
import subprocess
from pathlib import Path

import pytest

from tests.system import image


@pytest.fixture(scope="module")
def folder():
    with image.temporary() as one:
        yield Path(one)
        subprocess.run(["umount", "-q", "-R", one], check=False)


@pytest.fixture(scope="module")
def built(folder):
    return image.build(folder / "one")


def test_it_says_its_version(built):
    """The entry point is the command."""
    assert built.run("--version").stdout.startswith("profile-loader ")
    assert built.config["Entrypoint"] == ["profile-loader"]


def test_it_checks_the_shipped_profiles_with_its_own_parser(built):
    """apparmor_parser and its abstractions are in it."""
    done = built.run("check", "/srv", mounts=[(Path("profiles").absolute(), "/srv")])
    assert "accepted" in done.stdout
    assert "AppArmor profiles were compiled against" in done.stderr


def test_one_pass_installs_the_shipped_profiles(built, tmp_path):
    """Below a throw-away host root, as on a machine without AppArmor."""
    done = built.run(
        "--oneshot", "--source", "/srv", "--host-root", "/mnt", "--allow-unsupported",
        "--output", "json",
        mounts=[(Path("profiles").absolute(), "/srv"), (tmp_path, "/mnt")],
    )  # fmt: skip
    rows = {one["name"]: one["state"] for one in json.loads(done.stdout)["profiles"]}
    assert rows["profiles/audit.json"] == "installed"
    assert (tmp_path / "var/lib/kubelet/seccomp/profiles/audit.json").is_file()


def test_the_daemon_has_everything_it_imports(built):
    """The client of the API server, metrics and watches come with their bytecode."""
    code = (
        "import os, sys, agent.daemon, agent.doors.kube, agent.doors.watch\n"
        "import agent.reporters.board, agent.reporters.http, agent.reporters.publisher\n"
        "kept = [getattr(one, '__cached__', None) for one in sys.modules.values()]\n"
        "print([one for one in kept if one and not os.path.exists(one)])"
    )
    done = subprocess.run(
        ["chroot", str(built.root), "/opt/profile-loader/bin/python", "-I", "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_it_holds_no_tool_to_build_with_and_nothing_that_others_may_write(built):
    """No compiler, pip or uv; no file of the agent is writable for others or runs as its owner."""
    for name in ("pip", "pip3", "uv", "gcc", "cc", "make", "curl", "wget"):
        for place in ("usr/bin", "usr/local/bin", "opt/profile-loader/bin"):
            assert not (built.root / place / name).exists(), name
    wrong = [
        str(path)
        for path in (built.root / "opt/profile-loader").rglob("*")
        if not path.is_symlink()
        and path.lstat().st_mode & (stat.S_IWOTH | stat.S_IWGRP | stat.S_ISUID | stat.S_ISGID)
    ]
    assert wrong == []


def test_two_builds_give_the_same_files(built, folder):
    """Mode, owner and content of every path."""
    again = image.build(folder / "two")
    one, two = image.digests(built.root), image.digests(again.root)
    different = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    assert different == [], "\n".join(different[:60])
