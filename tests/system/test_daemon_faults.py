"""Faults while the daemon runs: each is told, changes nothing that is good, and heals by itself.

Every test asserts on the node, the report, the metrics and the exit. Real processes, file systems
and limits; what needs an AppArmor kernel is in tests/system/guest/faults.py.
"""

import contextlib
import ctypes
import itertools
import json
import math
import os
import random
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

SECONDS = 2.0  # how long an end by SIGTERM may take
TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]  # a signal to one thread


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

    def done():
        told = daemon.converged() and "label_pending" not in daemon.findings()
        return daemon.files() == wanted and told and daemon.ready()

    daemon.until(done)


def left_in_peace(daemon):
    """End it: within two seconds, with 0, and the node as it was."""
    before = daemon.files()
    status, seconds = daemon.stop()
    assert (status, pace.in_time(seconds, SECONDS)) == (0, True), (status, seconds)
    assert daemon.files() == before


# --- file systems ---------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_version_until_there_is_room(daemon, mounted):
    """The update fails and says why; it is there soon after room was made, without a wake-up."""
    top = mounted(daemon.root / "var")
    daemon.start()
    settled(daemon, a=1)
    with pytest.raises(OSError, match="No space left"):
        (top / "filler").write_bytes(b"x" * (1 << 20))
    daemon.provide(a=2, b=3)
    daemon.until(lambda: daemon.findings() == {"write_failed": 2})
    assert (daemon.files(), daemon.converged(), daemon.ready()) == ({"a.json": 1}, False, True)
    assert not [*top.rglob("*.tmp")]
    (top / "filler").unlink()
    settled(daemon, a=2, b=3)
    assert daemon.findings() == {}
    left_in_peace(daemon)


@pytest.mark.parametrize("where", ["var/lib/kubelet", "var/lib/profile-loader/entries"])
def test_a_read_only_file_system_keeps_the_old_version_until_it_is_writable(daemon, mounted, where):
    """Remounted under the running daemon, as a kernel does after an error of the disk."""
    top = mounted(daemon.root / where)
    daemon.start()
    settled(daemon, a=1)
    subprocess.run(["mount", "-o", "remount,ro", top], check=True)
    daemon.provide(a=2)
    daemon.until(lambda: daemon.findings() == {"write_failed": 1})
    assert (daemon.files(), daemon.converged(), daemon.ready()) == ({"a.json": 1}, False, True)
    subprocess.run(["mount", "-o", "remount,rw", top], check=True)
    settled(daemon, a=2)
    assert daemon.findings() == {}
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
    assert (daemon.findings(), len(daemon.entries())) == ({}, 2)
    left_in_peace(daemon)


def test_a_ledger_of_the_next_release_changes_nothing_until_it_runs(daemon):
    """A downgrade: the node is not touched, and it says that a newer version is needed."""
    daemon.start()
    settled(daemon, a=1)
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
    path.write_bytes(whole)  # what the next release would have left to this one
    settled(daemon, a=2, b=2)
    left_in_peace(daemon)


# What 0.1.0 wrote for one seccomp key. Never to be changed: later releases must read it.
RELEASED = {
    "schema": 1,
    "kind": "seccomp",
    "how": "put",
    "prefix": "",
    "staged": None,
    "retired": {},
}


def test_a_ledger_of_a_former_release_is_kept_as_it_is(daemon):
    """An upgrade: what the former release put is ours; no file and no entry is written anew."""
    daemon.start()
    settled(daemon, a=1)
    assert daemon.stop()[0] == 0
    (path,) = daemon.entries()
    former = json.loads(path.read_text())
    assert former | RELEASED == former
    assert sorted(former) == sorted([*RELEASED, "origin", "key", "installed"])
    assert sorted(former["installed"]) == [
        "body", "context", "evidence", "modes", "provides", "source",
    ]  # fmt: skip
    before = [one.stat().st_mtime_ns for one in (path, daemon.seccomp / "a.json")]
    daemon.start()
    settled(daemon, a=1)
    assert [one.stat().st_mtime_ns for one in (path, daemon.seccomp / "a.json")] == before
    daemon.provide(b=1)  # removed, since it is ours
    assert daemon.stop()[0] == 0
    daemon.start("--prune=always")
    settled(daemon, b=1)
    left_in_peace(daemon)


# --- where profiles come from ---------------------------------------------------------------------


def test_a_source_directory_that_is_deleted_and_made_anew_is_read_again(daemon):
    """Its profiles stay while it is away, and its new content is there within seconds."""
    daemon.start("--prune=always")
    settled(daemon, a=1)
    for number in (2, 3):
        shutil.rmtree(daemon.source)
        daemon.until(lambda: daemon.findings().get("source_missing"))
        assert (daemon.files(), daemon.converged()) == ({"a.json": number - 1}, False)
        daemon.source.mkdir()
        daemon.provide(a=number)
        settled(daemon, a=number)
    daemon.provide(a=4)  # and its changes are seen at once, as before
    daemon.until(lambda: daemon.number() == 4, SECONDS)
    left_in_peace(daemon)


def test_a_watch_that_breaks_is_told_and_watching_goes_on(daemon):
    """Watchdog stumbles over a directory that was moved out of the tree; the agent does not."""
    daemon.start()
    settled(daemon, a=1)
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
    settled(daemon, a=3)
    left_in_peace(daemon)


class Volume:
    """A ConfigMap as a kubelet mounts it (AtomicWriter)."""

    def __init__(self, path):
        self.path, self.last = path, None

    def swap(self, number, *keys):
        """Replace the whole content at once: the same number for every key."""
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


def test_a_volume_swapped_a_thousand_times_in_a_minute_is_never_read_in_half(daemon):
    """Each pass puts both keys of one generation, the last one is there at once, nothing grows."""
    (daemon.source / "a.json").unlink()
    volume = Volume(daemon.source)
    keys = ("a.json", "b.json")
    volume.swap(1, *keys)
    daemon.start()
    settled(daemon, a=1, b=1)
    before, begin = daemon.usage(), time.monotonic()
    for number in range(2, 1002):
        volume.swap(number, *keys)
        while time.monotonic() - begin < number * 0.025:  # 40 a second: in less than a minute
            time.sleep(0.001)
    seconds, end = time.monotonic() - begin, time.monotonic()
    settled(daemon, a=1001, b=1001)
    late = time.monotonic() - end
    after = daemon.usage()
    passes = daemon.metric('passes_total{result="converged"}')
    grown = after["rss"] - before["rss"]
    print(f"1000 swaps in {seconds:.0f} s, {passes:.0f} passes; the last after {late:.2f} s, "
          f"{grown} KiB more")  # fmt: skip
    assert (pace.in_time(seconds, 60.0), pace.in_time(late, SECONDS)) == (True, True)
    # A connection may be open, and a thread of its own serve it.
    assert after["threads"] <= before["threads"] + 1
    assert after["fds"] <= before["fds"] + 2
    assert grown < 4096
    put = {}
    for line in daemon.lines("profile_installed") + daemon.lines("profile_replaced"):
        put.setdefault(line["digest"], set()).add(line["key"])
    assert {tuple(sorted(one)) for one in put.values()} == {keys}
    left_in_peace(daemon)


# --- the process ----------------------------------------------------------------------------------


def test_sigterm_at_any_moment_leaves_whole_files_and_a_next_start_finishes(daemon):
    """At random moments from the start on; 0, or the signal's own end before Python runs."""
    seed = int(os.environ.get("SOAK_SEED", "105")) or int(time.time())
    print(f"seed {seed}")
    chance, ends = random.Random(seed), []  # noqa: S311 - reproducible, no secret
    for number in range(1, 13):
        daemon.provide(**{f"k{one}": number for one in range(20)})
        daemon.start()
        time.sleep(chance.uniform(0.0, 1.6))
        status, seconds = daemon.stop()
        ends.append((status, round(seconds, 2)))
        assert status in (0, -signal.SIGTERM), (seed, ends, daemon.said()[-3000:])
        assert pace.in_time(seconds, SECONDS), (seed, ends)
        assert set(daemon.files().values()) <= set(range(number + 1)), (seed, ends)
    print(f"ended with {ends}")
    daemon.start()
    settled(daemon, **{f"k{one}": 12 for one in range(20)})
    assert not [*daemon.root.rglob("*.tmp")]
    left_in_peace(daemon)


def began(thread):
    """Return when a thread began, in ticks, and its id: numbers begin anew, times do not."""
    with contextlib.suppress(OSError):
        # starttime of proc_pid_stat(5); a name may have spaces and brackets
        return int((thread / "stat").read_text().rpartition(")")[2].split()[19]), int(thread.name)
    return math.inf, 0  # it ended


def test_a_signal_that_comes_right_before_it_waits_ends_it_as_soon(daemon):
    """As one that another thread takes: neither interrupts the main thread's waiting."""
    daemon.start()
    settled(daemon, a=1)
    pid = daemon.process.pid
    # The second oldest is the HTTP server's, which lives as long as the process; the newest may be
    # that of the last connection, and gone when the signal is sent.
    _, server, *_ = sorted(Path(f"/proc/{pid}/task").iterdir(), key=began)
    begin = time.monotonic()
    assert ctypes.CDLL(None).syscall(TGKILL, pid, int(server.name), signal.SIGTERM) == 0
    status = daemon.process.wait(pace.scaled(30))
    assert (status, pace.in_time(time.monotonic() - begin, SECONDS), daemon.files()) == (
        0,
        True,
        {"a.json": 1},
    )


def test_a_signal_that_comes_while_python_ignores_exceptions_ends_it_too(daemon, monkeypatch):
    """What is raised while an object ends is ignored; the signal is not, and says nothing."""
    monkeypatch.setenv("SWALLOWED", "import")
    daemon.start(module="tests.system.ended")
    assert (daemon.process.wait(pace.scaled(30)), daemon.said()) == (0, "")


def parsers(daemon):
    """Return the processes that run the daemon's parser."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [one.parent.name] * (f"{daemon.root}/parser" in one.read_text().split("\0"))
    return found


@pytest.mark.parametrize("swallowed", ["", "os.listdir"])
def test_a_parser_that_runs_ends_with_the_daemon(daemon, monkeypatch, swallowed):
    """Wherever the signal comes: while it is waited for, or where Python ignores exceptions."""
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
    assert "Traceback" not in daemon.said()


def test_a_log_that_nobody_reads_does_not_keep_it(daemon, monkeypatch):
    """Python's own end would wait for the thread that writes to it."""
    monkeypatch.setenv("TALKING", "1")
    told, tells = os.pipe()
    command = [sys.executable, "-m", "tests.system.ended", *daemon.command()]
    daemon.process = subprocess.Popen(command, stderr=tells)
    daemon.until(lambda: daemon.number() == 1 and not select.select([], [tells], [], 0)[1])
    left_in_peace(daemon)
    os.close(told)
    os.close(tells)


def test_a_log_that_nobody_reads_stops_no_repair(daemon, monkeypatch):
    """Lines are dropped and counted; files come back, and metrics and probes are served."""
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
    left_in_peace(daemon)
    os.close(received)
    os.close(sender)


def test_a_source_of_many_empty_directories_takes_few_watches(daemon):
    """The source is unreadable and says why, the profiles stay, and repairs go on by polling."""
    daemon.start()
    settled(daemon, a=1)
    for one in range(200):
        for two in range(100):
            (daemon.source / str(one) / str(two)).mkdir(parents=True)
    daemon.until(lambda: daemon.findings().get("source_unreadable") == 1)
    assert "too_many_directories" in daemon.said()
    watches = 0
    for file in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a descriptor that was closed
            watches += file.read_text().count("inotify wd:")
    assert watches <= WATCH_LIMIT
    (daemon.seccomp / "a.json").unlink()
    daemon.until(lambda: daemon.number() == 1)
    for one in range(200):
        shutil.rmtree(daemon.source / str(one))
    settled(daemon, a=1)
    left_in_peace(daemon)


IGNORED = (
    "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR",
)  # fmt: skip


def test_signals_that_are_no_request_to_end_do_not_end_it(daemon):
    """SIGHUP makes a pass, SIGQUIT logs the stack of each thread, and other signals are logged."""
    daemon.start("--resync=60m")
    settled(daemon, a=1)
    for name in IGNORED:
        daemon.process.send_signal(getattr(signal, name))
    daemon.until(lambda: len(daemon.lines("signal_ignored")) == len(IGNORED))
    assert {one["signal"] for one in daemon.lines("signal_ignored")} == set(IGNORED)
    daemon.process.send_signal(signal.SIGQUIT)
    daemon.until(lambda: "MainThread" in {one["thread"] for one in daemon.lines("thread_stack")})
    passes = 'passes_total{result="converged"}'
    before = daemon.metric(passes)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: daemon.metric(passes) > before)
    assert daemon.findings() == {}
    left_in_peace(daemon)


def test_keys_of_a_kubeconfig_do_not_stay_behind(daemon, tmp_path, monkeypatch):
    """The client writes them to files, which it removes when Python ends."""
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
    assert [one.read_text() for one in (tmp_path / "tmp").rglob("*")] == ["key"]
    left_in_peace(daemon)
    assert [*(tmp_path / "tmp").rglob("*")] == []


def test_a_second_agent_refuses_and_the_first_one_goes_on(daemon):
    """Exit status 4, a sentence, and no change; the first one still repairs."""
    daemon.start()
    settled(daemon, a=1)
    command = [sys.executable, "-m", "agent", *daemon.command("--http-address=off")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout) == (4, "")
    assert "another agent is running" in done.stderr
    (daemon.seccomp / "a.json").unlink()
    settled(daemon, a=1)
    left_in_peace(daemon)


ON_FILES = [
    name for name in POINTS if "policy" not in name and "node" not in name and "event" not in name
]


@pytest.mark.parametrize("point", ON_FILES)
def test_a_kill_at_a_named_point_ends_in_the_same_state(daemon, monkeypatch, point):
    """Files are old or new, never half; the next start does the rest and tidies up."""
    daemon.provide(a=1, c=3)
    armed = daemon.root / "armed"
    monkeypatch.setenv("KILLED", point)
    monkeypatch.setenv("ARMED", str(armed))
    daemon.start("--prune=always", module="tests.system.killed")
    settled(daemon, a=1, c=3)
    armed.touch()
    daemon.provide(a=2, b=2)
    daemon.until(lambda: not daemon.alive())
    assert daemon.process.returncode == -signal.SIGKILL
    found = daemon.files()
    assert found["a.json"] in (1, 2)
    assert found.get("b.json", 2) == 2
    assert found.get("c.json", 3) == 3
    monkeypatch.delenv("KILLED")
    daemon.start("--prune=always")
    settled(daemon, a=2, b=2)
    assert (daemon.findings(), len(daemon.entries())) == ({}, 2)
    assert not [*daemon.root.rglob("*.tmp")]
    left_in_peace(daemon)


@contextlib.contextmanager
def connections(daemon, number):
    """Hold so many idle connections, or as many as can be had."""
    idle = [socket.socket() for _ in range(number)]
    try:
        for one in idle:
            one.settimeout(0.2)
            if one.connect_ex(("127.0.0.1", daemon.port)):
                break
        yield
    finally:
        for one in idle:
            one.close()


def test_with_64_descriptors_it_works_and_outlives_a_storm_of_connections(daemon):
    """Idle connections take what is left; repairs go on, and afterwards it answers again."""
    daemon.start(limits={resource.RLIMIT_NOFILE: 64})
    settled(daemon, a=1)
    with connections(daemon, 100):
        for number in range(2, 8):
            daemon.provide(a=number)
            daemon.until(lambda number=number: daemon.number() == number)
        (daemon.seccomp / "a.json").unlink()
        daemon.until(lambda: daemon.number() == 7)
    settled(daemon, a=7)
    assert (daemon.findings(), daemon.usage()["fds"] < 40) == ({}, True)
    left_in_peace(daemon)


def test_without_any_descriptor_left_it_is_blind_touches_nothing_and_heals(daemon):
    """Far below 64: it says that it cannot look, lives, and repairs once it can."""
    daemon.start(limits={resource.RLIMIT_NOFILE: 28})
    settled(daemon, a=1)
    with connections(daemon, 60):
        daemon.until(lambda: daemon.usage()["fds"] >= 27)  # the server keeps the last one free
        daemon.provide(a=2)
        daemon.until(lambda: "Too many open files" in daemon.said())
        assert daemon.files() == {"a.json": 1}
    settled(daemon, a=2)
    assert daemon.findings() == {}
    left_in_peace(daemon)
