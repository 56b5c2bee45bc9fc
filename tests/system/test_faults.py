"""Tests of one pass on a real file system that is full, read-only or unreadable."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROFILE = '{"defaultAction": "SCMP_ACT_LOG"}'


@pytest.fixture
def mount(tmp_path):
    """Return a function that mounts a file system for the duration of a test."""
    mounted = []

    def call(path, *arguments):
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *arguments, path], check=True)
        mounted.append(path)

    yield call
    for path in reversed(mounted):
        subprocess.run(["umount", path], check=True)


def oneshot(root, source):
    result = subprocess.run(
        [sys.executable, "-m", "agent", "--oneshot", "--kinds=seccomp", "--output=json",
         f"--host-root={root}", f"--source={source}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode in (0, 1, 3), result.stderr
    return result.returncode, json.loads(result.stdout)


def source(tmp_path, count=1):
    path = tmp_path / "source"
    path.mkdir(exist_ok=True)
    for number in range(count):
        (path / f"{number}.json").write_text(PROFILE)
    return path


def codes(report):
    return sorted({item["code"] for row in report["profiles"] for item in row["problems"]
                   if item["severity"] == "error"})  # fmt: skip


def test_a_full_disk_fails_the_installation_and_leaves_no_partial_file(tmp_path, mount):
    """On a full disk, the installation fails with a reason, no file is truncated, and no temporary
    file stays.
    """
    root = tmp_path / "root"
    mount(root, "-t", "tmpfs", "-o", "size=4k,nr_inodes=100", "tmpfs")
    status, report = oneshot(root, source(tmp_path, 3))
    files = [item for item in root.rglob("*") if item.is_file() and item.name != "lock"]
    assert (status, codes(report)) == (1, ["write_failed"])
    assert [item for item in files if item.suffix == ".tmp"] == []
    for item in files:
        json.loads(item.read_text())


def test_a_read_only_disk_keeps_the_previous_file(tmp_path, mount):
    """On a read-only disk, the update fails with a reason, and the previous file stays
    unchanged.
    """
    root = tmp_path / "root"
    mount(root, "-t", "tmpfs", "tmpfs")
    assert oneshot(root, source(tmp_path))[0] == 0
    before = (root / "var/lib/kubelet/seccomp/0.json").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    (tmp_path / "source/0.json").write_text('{"defaultAction": "SCMP_ACT_ERRNO"}')
    status, report = oneshot(root, tmp_path / "source")
    assert (status, codes(report)) == (1, ["write_failed"])
    assert (root / "var/lib/kubelet/seccomp/0.json").read_bytes() == before


def test_a_file_in_place_of_the_seccomp_directory_is_not_an_empty_directory(tmp_path):
    """If a file exists at the path of the seccomp directory, the agent reports seccomp as
    unobservable, and writes nothing.
    """
    root = tmp_path / "root"
    (root / "var/lib/kubelet").mkdir(parents=True)
    (root / "var/lib/kubelet/seccomp").write_text("x")
    status, report = oneshot(root, source(tmp_path))
    assert (status, codes(report)) == (1, ["kind_unobservable"])
    assert Path(root / "var/lib/kubelet/seccomp").read_text() == "x"
