"""Tests that the daemon reports faults at run time, and recovers from them.

The tests check the node, the report, the metrics and the exit status, with real processes, file
systems and limits. tests/system/guest/faults.py contains the faults that need an AppArmor kernel.
"""

import contextlib
import ctypes
import itertools
import json
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.host.watcher import WATCH_LIMIT
from tests.system.cluster import free_port
from tests.system.daemon import Daemon, profile
from tests.system.guest import pace
from tests.system.killed import POINTS

SECONDS = 2.0  # The time limit for the exit after SIGTERM.
# The system call that sends a signal to one thread.
TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]


@pytest.fixture
def daemon(tmp_path):
    """A daemon with the profile a.json in its source. The daemon has not been started."""
    one = Daemon(tmp_path)
    one.provide(a=1)
    yield one
    one.kill()


@pytest.fixture
def mounted(daemon):
    """A function that mounts a small file system in the daemon's host root."""
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


def wait_until_converged(daemon, **numbers):
    """Wait until the node has exactly these profiles and the daemon reports that it has
    converged.
    """
    expected = {f"{name}.json": number for name, number in numbers.items()}

    def done():
        reported = daemon.converged() and "label_pending" not in daemon.findings()
        return daemon.files() == expected and reported and daemon.ready()

    daemon.until(done)


def stopped_cleanly(daemon):
    """Stop the daemon. Require exit status 0 within two seconds, and an unchanged node."""
    before = daemon.files()
    status, seconds = daemon.stop()
    assert (status, pace.in_time(seconds, SECONDS)) == (0, True), (status, seconds)
    assert daemon.files() == before


# --- file systems ---------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_previous_version_until_there_is_space(daemon, mounted):
    """On a full disk, an update fails with a reason. The update succeeds soon after another program
    frees space.
    """
    top = mounted(daemon.root / "var")
    daemon.start()
    wait_until_converged(daemon, a=1)
    with pytest.raises(OSError, match="No space left"):
        (top / "filler").write_bytes(b"x" * (1 << 20))
    daemon.provide(a=2, b=3)
    daemon.until(lambda: daemon.findings() == {"write_failed": 2})
    assert (daemon.files(), daemon.converged(), daemon.ready()) == ({"a.json": 1}, False, True)
    assert not [*top.rglob("*.tmp")]
    (top / "filler").unlink()
    wait_until_converged(daemon, a=2, b=3)
    assert daemon.findings() == {}
    stopped_cleanly(daemon)


@pytest.mark.parametrize("where", ["var/lib/kubelet", "var/lib/profile-loader/entries"])
def test_a_read_only_file_system_keeps_the_previous_version(daemon, mounted, where):
    """The previous version stays if the file system becomes read-only under the running daemon, as
    after a disk error.
    """
    top = mounted(daemon.root / where)
    daemon.start()
    wait_until_converged(daemon, a=1)
    subprocess.run(["mount", "-o", "remount,ro", top], check=True)
    daemon.provide(a=2)
    daemon.until(lambda: daemon.findings() == {"write_failed": 1})
    assert (daemon.files(), daemon.converged(), daemon.ready()) == ({"a.json": 1}, False, True)
    subprocess.run(["mount", "-o", "remount,rw", top], check=True)
    wait_until_converged(daemon, a=2)
    assert daemon.findings() == {}
    stopped_cleanly(daemon)


# --- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "garbage", "emptied", "a directory"])
def test_a_damaged_ledger_entry_removes_nothing(daemon, damage):
    """If a ledger entry is damaged, the daemon reports this. The profile stays, and its content is
    adopted.
    """
    daemon.provide(a=1, b=2)
    daemon.start()
    wait_until_converged(daemon, a=1, b=2)
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
    reported = "kind_unobservable" if damage == "a directory" else "ledger_damaged"
    daemon.until(lambda: f'"code": "{reported}"' in daemon.log_text())
    assert daemon.files() == {"a.json": 1, "b.json": 2}
    if damage == "a directory":
        daemon.provide(a=1)
        daemon.until(lambda: daemon.metric("converged") == 0.0)
        assert daemon.files() == {"a.json": 1, "b.json": 2}
        for path in daemon.entries():
            path.rmdir()
        daemon.provide(a=1, b=2)
    wait_until_converged(daemon, a=1, b=2)
    assert (daemon.findings(), len(daemon.entries())) == ({}, 2)
    stopped_cleanly(daemon)


def test_a_ledger_of_a_newer_release_stops_all_changes(daemon):
    """If the agent was downgraded, the daemon changes nothing, and a finding contains the newer
    version.
    """
    daemon.start()
    wait_until_converged(daemon, a=1)
    assert daemon.stop()[0] == 0
    (path,) = daemon.entries()
    whole = path.read_bytes()
    newer = json.dumps(json.loads(whole) | {"schema": 2, "unheard": "of"})
    path.write_text(newer)
    daemon.provide(a=2, b=2)
    daemon.start()
    daemon.until(lambda: daemon.findings().get("ledger_newer"))
    assert (daemon.files(), daemon.converged(), daemon.get("/readyz")[0]) == (
        {"a.json": 1}, False, 503,
    )  # fmt: skip
    assert daemon.get("/healthz")[0] == 200
    assert path.read_text() == newer
    path.write_bytes(whole)  # a ledger entry that the next release would write
    wait_until_converged(daemon, a=2, b=2)
    stopped_cleanly(daemon)


# The ledger entry that version 0.1.0 writes for a seccomp key. Never change this entry, because
# later releases must be able to read it.
RELEASED = {
    "schema": 1,
    "kind": "seccomp",
    "how": "put",
    "prefix": "",
    "staged": None,
    "retired": {},
}


def test_a_ledger_of_a_previous_release_stays_unchanged(daemon):
    """When the agent has been upgraded, it still owns the profiles, and writes no file and no
    ledger entry again.
    """
    daemon.start()
    wait_until_converged(daemon, a=1)
    assert daemon.stop()[0] == 0
    (path,) = daemon.entries()
    former = json.loads(path.read_text())
    assert former | RELEASED == former
    assert sorted(former) == sorted([*RELEASED, "origin", "key", "installed"])
    assert sorted(former["installed"]) == [
        "body", "context", "evidence", "modes", "provides", "source",
    ]  # fmt: skip
    before = [item.stat().st_mtime_ns for item in (path, daemon.seccomp / "a.json")]
    daemon.start()
    wait_until_converged(daemon, a=1)
    assert [entry.stat().st_mtime_ns for entry in (path, daemon.seccomp / "a.json")] == before
    daemon.provide(b=1)  # This command removes the agent-owned file a.json.
    assert daemon.stop()[0] == 0
    daemon.start("--prune=always")
    wait_until_converged(daemon, b=1)
    stopped_cleanly(daemon)


# --- where profiles come from ---------------------------------------------------------------------


def test_a_source_directory_that_is_created_again_is_read(daemon):
    """While the source directory is missing, the profiles stay. After the directory was created
    again, new content is installed within seconds.
    """
    daemon.start("--prune=always")
    wait_until_converged(daemon, a=1)
    for number in (2, 3):
        shutil.rmtree(daemon.source)
        daemon.until(lambda: daemon.findings().get("source_missing"))
        assert (daemon.files(), daemon.converged()) == ({"a.json": number - 1}, False)
        daemon.source.mkdir()
        daemon.provide(a=number)
        wait_until_converged(daemon, a=number)
    daemon.provide(a=4)  # The daemon still notices changes of the directory at once.
    daemon.until(lambda: daemon.number() == 4, SECONDS)
    stopped_cleanly(daemon)


def test_a_failed_watch_is_logged_and_replaced(daemon):
    """If the library watchdog fails for a directory that was moved out of the tree, the daemon logs
    this and starts a new watch.
    """
    daemon.start()
    wait_until_converged(daemon, a=1)
    sub, away = daemon.source / "sub", daemon.root / "away"
    steps = itertools.cycle([sub.mkdir, lambda: sub.rename(away), sub.mkdir, sub.rmdir, away.rmdir])

    def broken():
        next(steps)()
        return daemon.lines("watch_broken")

    daemon.until(broken)
    shutil.rmtree(sub, ignore_errors=True)
    for number in (2, 3):
        daemon.provide(a=number)
        daemon.until(lambda number=number: daemon.number() == number, SECONDS)
    wait_until_converged(daemon, a=3)
    stopped_cleanly(daemon)


class Volume:
    """A ConfigMap volume as the kubelet writes it (AtomicWriter)."""

    def __init__(self, path):
        self.path, self.last = path, None

    def swap(self, number, *keys):
        """Replace the whole content with profiles that have the same version number."""
        new = self.path / f"..generation{number}"
        new.mkdir()
        for key in keys:
            (new / key).write_text(profile(number))
            if not (self.path / key).is_symlink():
                (self.path / key).symlink_to(f"..data/{key}")
        (self.path / "..data_tmp").symlink_to(new.name)
        (self.path / "..data_tmp").rename(self.path / "..data")
        if self.last is not None:
            shutil.rmtree(self.last)
        self.last = new


def test_a_volume_that_changes_a_thousand_times_is_read_consistently(daemon):
    """Each pass installs both keys from the same generation of the volume, and uses no additional
    memory or descriptors.
    """
    (daemon.source / "a.json").unlink()
    volume = Volume(daemon.source)
    keys = ("a.json", "b.json")
    volume.swap(1, *keys)
    daemon.start()
    wait_until_converged(daemon, a=1, b=1)
    before, begin = daemon.usage(), time.monotonic()
    for number in range(2, 1002):
        volume.swap(number, *keys)
        # At 40 changes per second, this takes less than a minute.
        while time.monotonic() - begin < number * 0.025:
            time.sleep(0.001)
    seconds, end = time.monotonic() - begin, time.monotonic()
    wait_until_converged(daemon, a=1001, b=1001)
    late = time.monotonic() - end
    after = daemon.usage()
    passes = daemon.metric('passes_total{result="converged"}')
    grown = after["rss"] - before["rss"]
    print(f"1000 swaps in {seconds:.0f} s, {passes:.0f} passes; the last after {late:.2f} s, "
          f"{grown} KiB more")  # fmt: skip
    assert (pace.in_time(seconds, 60.0), pace.in_time(late, SECONDS)) == (True, True)
    # One connection may still be open, with the thread that serves it.
    assert after["threads"] <= before["threads"] + 1
    assert after["fds"] <= before["fds"] + 2
    assert grown < 4096
    put = {}
    for line in daemon.lines("profile_installed") + daemon.lines("profile_replaced"):
        put.setdefault(line["digest"], set()).add(line["key"])
    assert {tuple(sorted(item)) for item in put.values()} == {keys}
    stopped_cleanly(daemon)


# --- the process ----------------------------------------------------------------------------------


def test_sigterm_at_any_moment_leaves_complete_files(daemon):
    """After SIGTERM at any moment, all files are complete, and the next daemon completes
    the work.
    """
    seed = int(os.environ.get("SOAK_SEED", "105")) or int(time.time())
    print(f"seed {seed}")
    chance, ends = random.Random(seed), []  # noqa: S311 - reproducible, no secret
    for number in range(1, 13):
        daemon.provide(**{f"k{entry}": number for entry in range(20)})
        daemon.start()
        time.sleep(chance.uniform(0.0, 1.6))
        status, seconds = daemon.stop()
        ends.append((status, round(seconds, 2)))
        assert status in (0, -signal.SIGTERM), (seed, ends, daemon.log_text()[-3000:])
        assert pace.in_time(seconds, SECONDS), (seed, ends)
        assert set(daemon.files().values()) <= set(range(number + 1)), (seed, ends)
    print(f"ended with {ends}")
    daemon.start()
    wait_until_converged(daemon, **{f"k{item}": 12 for item in range(20)})
    assert not [*daemon.root.rglob("*.tmp")]
    stopped_cleanly(daemon)


def started_at(thread):
    """Return the start time of a thread in ticks, and its ID.

    Thread IDs are reused, but start times are not.
    """
    with contextlib.suppress(OSError):
        # The start time is the field starttime of proc_pid_stat(5). The name of a process may
        # contain spaces and brackets.
        return int((thread / "stat").read_text().rpartition(")")[2].split()[19]), int(thread.name)
    return math.inf, 0  # The thread has exited.


def test_a_signal_right_before_the_main_thread_waits_ends_the_daemon(daemon):
    """A signal stops the daemon, even if it arrives right before a wait of the main thread, or in
    another thread.
    """
    daemon.start()
    wait_until_converged(daemon, a=1)
    pid = daemon.process.pid
    # The second oldest thread is the HTTP server, which runs as long as the process. The newest
    # thread may serve the last connection, so it may end before the test sends the signal.
    _, server, *_ = sorted(Path(f"/proc/{pid}/task").iterdir(), key=started_at)
    begin = time.monotonic()
    assert ctypes.CDLL(None).syscall(TGKILL, pid, int(server.name), signal.SIGTERM) == 0
    status = daemon.process.wait(pace.scaled(30))
    assert (status, pace.in_time(time.monotonic() - begin, SECONDS), daemon.files()) == (
        0,
        True,
        {"a.json": 1},
    )


def test_a_signal_while_python_ignores_exceptions_ends_the_daemon(daemon, monkeypatch):
    """A signal stops the daemon even if it arrives during a destructor, in which Python ignores
    exceptions.
    """
    monkeypatch.setenv("SWALLOWED", "import")
    daemon.start(module="tests.system.ended")
    status = daemon.process.wait(pace.scaled(30))
    events = [json.loads(line)["event"] for line in daemon.log_text().splitlines()]
    assert (status, events) == (0, ["agent_stopped"])


def parsers(daemon):
    """Return the PIDs of the daemon's parsers."""
    result = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            result += [path.parent.name] * (f"{daemon.root}/parser" in path.read_text().split("\0"))
    return result


@pytest.mark.parametrize("swallowed", ["", "os.listdir"])
def test_a_running_parser_ends_with_the_daemon(daemon, monkeypatch, swallowed):
    """If a signal stops the daemon, the running parser is stopped too, even if the signal arrives
    during a destructor.
    """
    kernel = daemon.root / "sys/kernel/security/apparmor"
    (kernel / "features/policy/versions").mkdir(parents=True)
    (kernel / "features/policy/versions/v8").write_text("yes")
    for name in ("profiles", ".load", ".replace", ".remove"):
        (kernel / name).touch()
    (daemon.source / "x.profile").write_text("profile x {}\n")
    os.mkfifo(daemon.root / "never")
    parser = daemon.root / "parser"
    parser.write_text(f'#!/bin/sh\n[ "$*" = --version ] || read line < {daemon.root}/never\n')
    parser.chmod(0o755)
    monkeypatch.setenv("SWALLOWED", swallowed)
    daemon.start("--kinds=apparmor", f"--apparmor-parser={parser}", module="tests.system.ended")
    if not swallowed:
        daemon.until(lambda: parsers(daemon))
        daemon.process.send_signal(signal.SIGTERM)
    assert (daemon.process.wait(pace.scaled(30)), parsers(daemon)) == (0, [])
    assert "Traceback" not in daemon.log_text()


def test_an_unread_log_does_not_delay_the_end(daemon, monkeypatch):
    """If no process reads the log, the daemon exits without waiting for the thread that writes the
    log.
    """
    monkeypatch.setenv("TALKING", "1")
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "tests.system.ended", *daemon.command()]
    daemon.process = subprocess.Popen(command, stderr=write_end)
    daemon.until(lambda: daemon.number() == 1 and not select.select([], [write_end], [], 0)[1])
    stopped_cleanly(daemon)
    os.close(read_end)
    os.close(write_end)


def test_an_unread_log_delays_no_repair(daemon, monkeypatch):
    """If no process reads the log, the daemon drops log lines, and restores files as usual."""
    monkeypatch.setenv("TALKING", "1")
    received, sender = os.pipe()
    command = [sys.executable, "-m", "tests.system.ended", *daemon.command()]
    daemon.process = subprocess.Popen(command, stderr=sender)
    daemon.until(lambda: (daemon.metric("log_lines_dropped_total") or 0) > 0)
    daemon.until(lambda: daemon.number() == 1)
    for _ in range(3):
        (daemon.seccomp / "a.json").unlink()
        daemon.until(lambda: daemon.number() == 1)
    assert (daemon.get("/healthz")[0], daemon.ready()) == (200, True)
    stopped_cleanly(daemon)
    os.close(received)
    os.close(sender)


def test_a_source_with_many_empty_directories_uses_few_watches(daemon):
    """If a source has too many directories for inotify, the daemon reports it as unreadable, keeps
    the profiles and continues to poll.
    """
    daemon.start()
    wait_until_converged(daemon, a=1)
    for item in range(200):
        for two in range(100):
            (daemon.source / str(item) / str(two)).mkdir(parents=True)
    daemon.until(lambda: daemon.findings().get("source_unreadable") == 1)
    assert "too_many_directories" in daemon.log_text()
    watches = 0
    for file in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir():
        # The descriptor was closed during this read.
        with contextlib.suppress(FileNotFoundError):
            watches += file.read_text().count("inotify wd:")
    assert watches <= WATCH_LIMIT
    (daemon.seccomp / "a.json").unlink()
    daemon.until(lambda: daemon.number() == 1)
    for entry in range(200):
        shutil.rmtree(daemon.source / str(entry))
    wait_until_converged(daemon, a=1)
    stopped_cleanly(daemon)


IGNORED = (
    "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT",
    "SIGXCPU", "SIGRTMIN", "SIGRTMAX",
)  # fmt: skip


def test_other_signals_do_not_end_the_daemon(daemon):
    """SIGHUP starts a pass, SIGQUIT logs the stack of each thread, and the daemon logs all other
    signals.
    """
    daemon.start("--resync=60m")
    wait_until_converged(daemon, a=1)
    for name in IGNORED:
        daemon.process.send_signal(getattr(signal, name))
    daemon.process.send_signal(signal.SIGRTMIN + 1)
    ignored = {*IGNORED, "SIGRTMIN+1"}
    daemon.until(lambda: len(daemon.lines("signal_ignored")) == len(ignored))
    assert {line["signal"] for line in daemon.lines("signal_ignored")} == ignored
    daemon.process.send_signal(signal.SIGQUIT)
    daemon.until(lambda: "MainThread" in {line["thread"] for line in daemon.lines("thread_stack")})
    passes = 'passes_total{result="converged"}'
    before = daemon.metric(passes)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: daemon.metric(passes) > before)
    assert daemon.findings() == {}
    stopped_cleanly(daemon)


def test_the_files_with_keys_of_a_kubeconfig_are_removed(daemon, tmp_path, monkeypatch):
    """The kubernetes package writes the keys of a kubeconfig to temporary files. The daemon removes
    the temporary files when the daemon exits.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": f"https://127.0.0.1:{free_port()}"}}],
        "users": [{"name": "x", "user": {"client-key-data": "a2V5"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    daemon.start("--node-name=x", f"--kubeconfig={tmp_path}/kubeconfig")
    daemon.until(lambda: daemon.number() == 1)
    assert [path.read_text() for path in (tmp_path / "tmp").rglob("*")] == ["key"]
    stopped_cleanly(daemon)
    assert [*(tmp_path / "tmp").rglob("*")] == []


def test_a_second_agent_exits_and_the_first_one_continues(daemon):
    """A second agent prints a message and exits with status 4. The first agent still restores
    files.
    """
    daemon.start()
    wait_until_converged(daemon, a=1)
    command = [sys.executable, "-m", "agent", *daemon.command("--http-address=off")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (result.returncode, result.stdout) == (4, "")
    assert "another agent is running" in result.stderr
    (daemon.seccomp / "a.json").unlink()
    wait_until_converged(daemon, a=1)
    stopped_cleanly(daemon)


ON_FILES = [name for name in POINTS if not re.search("policy|load|node|event", name)]


@pytest.mark.parametrize("point", ON_FILES)
def test_a_daemon_that_is_killed_at_any_step_reaches_the_same_state(daemon, monkeypatch, point):
    """If the daemon is killed at any step, each file has either its old or its new content, and the
    next daemon completes the work.
    """
    daemon.provide(a=1, c=3)
    armed = daemon.root / "armed"
    monkeypatch.setenv("KILLED", point)
    monkeypatch.setenv("ARMED", str(armed))
    daemon.start("--prune=always", module="tests.system.killed")
    wait_until_converged(daemon, a=1, c=3)
    armed.touch()
    daemon.provide(a=2, b=2)
    daemon.until(lambda: not daemon.alive())
    assert daemon.process.returncode == -signal.SIGKILL
    result = daemon.files()
    assert result["a.json"] in (1, 2)
    assert result.get("b.json", 2) == 2
    assert result.get("c.json", 3) == 3
    monkeypatch.delenv("KILLED")
    daemon.start("--prune=always")
    wait_until_converged(daemon, a=2, b=2)
    assert (daemon.findings(), len(daemon.entries())) == ({}, 2)
    assert not [*daemon.root.rglob("*.tmp")]
    stopped_cleanly(daemon)


@contextlib.contextmanager
def connections(daemon, number):
    """Open a number of idle connections. If the daemon accepts fewer, open as many as possible."""
    idle = [socket.socket() for _ in range(number)]
    try:
        for item in idle:
            item.settimeout(0.2)
            if item.connect_ex(("127.0.0.1", daemon.port)):
                break
        yield
    finally:
        for entry in idle:
            entry.close()


def test_with_64_descriptors_the_daemon_survives_many_connections(daemon):
    """If idle connections use all free descriptors, the daemon still restores files. Later, the
    daemon serves HTTP requests again.
    """
    daemon.start(limits={resource.RLIMIT_NOFILE: 64})
    wait_until_converged(daemon, a=1)
    with connections(daemon, 100):
        for number in range(2, 8):
            daemon.provide(a=number)
            daemon.until(lambda number=number: daemon.number() == number)
        (daemon.seccomp / "a.json").unlink()
        daemon.until(lambda: daemon.number() == 7)
    wait_until_converged(daemon, a=7)
    assert (daemon.findings(), daemon.usage()["fds"] < 40) == ({}, True)
    stopped_cleanly(daemon)


def test_without_free_descriptors_nothing_is_changed(daemon):
    """If no descriptor is free, the daemon cannot observe the node. The daemon reports this,
    changes nothing, and recovers later.
    """
    daemon.start(limits={resource.RLIMIT_NOFILE: 28})
    wait_until_converged(daemon, a=1)
    with connections(daemon, 60):
        # The HTTP server keeps the last descriptor free.
        daemon.until(lambda: daemon.usage()["fds"] >= 27)
        daemon.provide(a=2)
        daemon.until(lambda: "Too many open files" in daemon.log_text())
        assert daemon.files() == {"a.json": 1}
    wait_until_converged(daemon, a=2)
    assert daemon.findings() == {}
    stopped_cleanly(daemon)
