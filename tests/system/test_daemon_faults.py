"""Faults while the daemon runs: each is told, changes nothing that is good, and heals by itself.

Every test asserts on the node, the report, the metrics and the exit. Real processes, file systems
and limits; what needs an AppArmor kernel is in tests/system/guest/faults.py.
"""

import subprocess

import pytest

from tests.system.daemon import Daemon

SECONDS = 2.0  # how long an end by SIGTERM may take


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon that is not started yet, with the profile a.json in its source."""
    one = Daemon(tmp_path)
    one.provide(a=1)
    yield one
    one.kill()


@pytest.fixture
def mounted(daemon):
    """Give a function that mounts a small file system below the daemon's root."""
    paths = []

    def mount(path):
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=True)
        paths.append(path)
        return path

    yield mount
    daemon.kill()
    for path in paths:
        subprocess.run(["umount", path], check=True)


def settled(daemon, **numbers):
    """Wait until the node holds exactly these profiles and the daemon says so."""
    wanted = {f"{name}.json": number for name, number in numbers.items()}
    daemon.until(lambda: daemon.files() == wanted and daemon.converged() and daemon.ready())


def left_in_peace(daemon):
    """End it: within two seconds, with 0, and the node as it was."""
    before = daemon.files()
    status, seconds = daemon.stop()
    assert (status, seconds < SECONDS, daemon.files()) == (0, True, before), (status, seconds)


# --- file systems ---------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_version_until_there_is_room(daemon, mounted):
    """The update fails and says why; it is there soon after room was made, without a wake-up."""
    top = mounted(daemon.root / "var")
    daemon.start()
    settled(daemon, a=1)
    with pytest.raises(OSError, match="No space left"):
        (top / "filler").write_bytes(b"x" * (1 << 20))
    daemon.provide(a=2, b=3)
    daemon.until(lambda: daemon.problems() == {"write_failed": 2})
    assert (daemon.files(), daemon.converged(), daemon.ready()) == ({"a.json": 1}, False, True)
    assert not [*top.rglob("*.tmp")]
    (top / "filler").unlink()
    settled(daemon, a=2, b=3)
    assert daemon.problems() == {}
    left_in_peace(daemon)


@pytest.mark.parametrize("where", ["var/lib/kubelet", "var/lib/profile-loader/entries"])
def test_a_read_only_file_system_keeps_the_old_version_until_it_is_writable(daemon, mounted, where):
    """Remounted under the running daemon, as a kernel does after an error of the disk."""
    top = mounted(daemon.root / where)
    daemon.start()
    settled(daemon, a=1)
    subprocess.run(["mount", "-o", "remount,ro", top], check=True)
    daemon.provide(a=2)
    daemon.until(lambda: daemon.problems() == {"write_failed": 1})
    assert (daemon.files(), daemon.converged(), daemon.ready()) == ({"a.json": 1}, False, True)
    subprocess.run(["mount", "-o", "remount,rw", top], check=True)
    settled(daemon, a=2)
    assert daemon.problems() == {}
    left_in_peace(daemon)


# --- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "garbage", "emptied", "a directory"])
def test_a_ledger_entry_that_is_damaged_while_it_runs_removes_nothing(daemon, damage):
    """It is told, the profile stays, and what is desired is tracked again by its content."""
    daemon.provide(a=1, b=2)
    daemon.start()
    settled(daemon, a=1, b=2)
    for path in daemon.entries():
        content = path.read_bytes()
        match damage:
            case "cut":
                path.write_bytes(content[: len(content) // 2])
            case "garbage":
                path.write_bytes(bytes(range(256)) * 4)
            case "emptied":
                path.write_bytes(b"")
            case "a directory":
                path.unlink()
                path.mkdir()
    told = "kind_unobservable" if damage == "a directory" else "ledger_damaged"
    daemon.until(lambda: f'"code": "{told}"' in daemon.said())
    assert daemon.files() == {"a.json": 1, "b.json": 2}
    if damage == "a directory":
        daemon.provide(a=1)
        daemon.until(lambda: daemon.metric("converged") == 0.0)
        assert daemon.files() == {"a.json": 1, "b.json": 2}
        for path in daemon.entries():
            path.rmdir()
        daemon.provide(a=1, b=2)
    settled(daemon, a=1, b=2)
    assert (daemon.problems(), len(daemon.entries())) == ({}, 2)
    left_in_peace(daemon)
