"""Scenarios for the daemon on a real AppArmor kernel, run as root in the virtual machine.

The program prints one line of JSON for each scenario, and {"note": ...} for measurements.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from functools import partial
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import node_tools
import pace
from node_tools import (
    SECCOMP,
    SECURITY,
    STATE,
    Confined,
    clean,
    content,
    loaded,
    parser,
    plain,
    source,
)

LOG = Path("/tmp/daemon.log")  # noqa: S108 - no other user in the guest
# The measurements in the documents come from a run with 50 repairs.
REPAIRS = int(os.environ.get("REPAIRS", "10"))
OBSERVE_SECONDS = 10.0  # The agent observes confined processes at this interval.
HTTP = "127.0.0.1:9808"
SOURCE = node_tools.SOURCE


class Daemon:
    """Run the agent as a daemon until the block ends."""

    running: ClassVar = []  # the started processes, in the order of their start

    def __init__(self, *more, **environ):
        self.more, self.environ = more, {**environ, "PYTHONFAULTHANDLER": "1"}

    def __enter__(self):
        grace = (
            [] if any("--removal-grace" in item for item in self.more) else ["--removal-grace=1s"]
        )
        command = [
            sys.executable, "-m", "agent", f"--source=dir:{SOURCE}", f"--state-dir={STATE}",
            f"--seccomp-dir={SECCOMP}", "--log-format=json", f"--http-address={HTTP}",
            *grace, *self.more,
        ]  # fmt: skip
        # If the guest has no bytecode (tests.system.vm), the first agent stores the bytecode that
        # it compiles.
        environ = {**os.environ, **self.environ}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        with LOG.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environ)
        self.running.append(self.process)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def stop(self, number=signal.SIGTERM):
        """Stop the daemon with a signal. Return the exit status and the number of seconds until the
        daemon exited.
        """
        self.process.send_signal(number)
        return pace.ended(self.process)


def until(condition, seconds=30.0, what=""):
    """Wait until a condition is true, and return the number of seconds that this took."""
    limit = pace.Limit(seconds)
    while True:
        if condition():
            return limit.seconds()
        if limit.expired() or "this is a bug" in LOG.read_text():
            raise AssertionError(f"not within {limit}: {what}\n{diagnosis()}")
        time.sleep(0.002)


def diagnosis():
    """Return the exit status or the thread stacks of the newest daemon, and the end of its log."""
    process = Daemon.running[-1] if Daemon.running else None
    status = process.poll() if process is not None else None
    if process is not None and status is None:
        # The faulthandler module writes the stacks into the log.
        process.send_signal(signal.SIGABRT)
        process.wait(300)
    return f"status {status}, loaded {sorted(loaded())}\n{LOG.read_text()[-6000:]}"


def metric(name):
    """Return the value of a metric."""
    with urllib.request.urlopen(f"http://{HTTP}/metrics", timeout=100) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
    return None


def ready():
    """Return whether the daemon's readiness probe succeeds."""
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://{HTTP}/readyz", timeout=50).status == 200
    return False


def print_distribution(name, seconds):
    """Print the distribution of some measured durations."""
    ordered = sorted(seconds)
    ms = [round(item * 1000) for item in ordered]
    print(
        json.dumps(
            {
                "note": f"{name}: {len(ms)} times, median {ms[len(ms) // 2]} ms, "
                f"from {ms[0]} to {ms[-1]} ms"
            }
        ),
        flush=True,
    )


def is_restored(what, name, good):
    """Return whether a profile has been restored. The function reads few files, because it runs
    very often.
    """
    if what == "removed":
        return name in loaded()
    # A replacement never ends the confinement of a process.
    (path,) = (SECURITY / "policy/profiles").glob(f"{name}.*")
    return next(path.glob("sha*")).read_text() == good


# --- scenarios ------------------------------------------------------------------------------------


def outside_changes_are_repaired_within_a_second():
    """If another program removes or replaces a profile, or sets it to complain mode, the daemon
    restores it within a second.
    """
    names = [f"p{number}" for number in range(REPAIRS)]
    source(**{name: plain(name) for name in names})
    with Daemon():
        until(lambda: ready() and len(loaded()) == REPAIRS, 120, "the first pass")
        good = {name: content(name) for name in names}
        outside = {
            "removed": lambda name: parser(plain(name), "-R"),
            "replaced": lambda name: parser(plain(name, "deny /etc/shadow r,"), "-r"),
            "complain": lambda name: parser(plain(name), "-C", "-r"),
        }
        for what, change in outside.items():
            seconds = []
            for name in names:
                status, output = change(name)
                assert status == 0, output
                seconds.append(until(partial(is_restored, what, name, good[name]), 30, what))
                assert content(name) == good[name]
            print_distribution(f"repair after {what}", seconds)
            assert pace.in_time(sorted(seconds)[len(seconds) // 2], 1.0), what
        assert set(loaded().values()) == {"enforce"}


def a_deleted_or_changed_seccomp_file_is_restored_within_seconds():
    """If another program deletes or changes a seccomp file, the daemon restores its content."""
    files = [SECCOMP / f"s{number}.json" for number in range(REPAIRS)]
    source()
    for item in files:
        (SOURCE / item.name).write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    with Daemon():
        until(lambda: ready() and all(item.exists() for item in files), 120, "the first pass")
        good = files[0].read_bytes()
        outside = {
            "deleted": Path.unlink,
            "altered": lambda path: path.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}'),
        }
        for what, change in outside.items():
            seconds = []
            for path in files:
                change(path)
                seconds.append(until(partial(_holds, path, good), 30, what))
            print_distribution(f"repair of a file that was {what}", seconds)
            assert pace.in_time(sorted(seconds)[len(seconds) // 2], 3.0), what


def _holds(path, content):
    return path.exists() and path.read_bytes() == content


def a_change_of_the_source_is_loaded_at_once():
    """A changed key is loaded long before the next resync, because inotify reports the change."""
    source(web=plain("web"))
    with Daemon():
        until(lambda: ready() and "web" in loaded())
        seconds = []
        for number in range(10):
            old = content("web")
            (SOURCE / "web.profile").write_text(plain("web", f"deny /etc/shadow{number} r,"))
            seconds.append(until(lambda old=old: content("web") != old, 30))
        print_distribution("file changed to policy loaded", seconds)


def a_process_stays_confined_all_the_time():
    """A process stays confined through updates, a rejected update, kills and restarts of the
    daemon.
    """
    source(web=plain("web"))
    stop = threading.Event()
    seen = set()
    with Daemon() as daemon:
        until(lambda: ready() and "web" in loaded())
        with Confined("web") as process:

            def watch():
                path = Path(f"/proc/{process.pid}/attr/current")
                while not stop.is_set():
                    seen.add(path.read_text().strip())

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                for number in range(4):
                    old = content("web")
                    (SOURCE / "web.profile").write_text(plain("web", f"deny /x{number} r,"))
                    until(lambda old=old: content("web") != old)
                (SOURCE / "web.profile").write_text("profile web { nonsense }\n")
                until(lambda: metric('profile_loader_problems{code="parser_rejected"}') == 1)
                for number in (signal.SIGKILL, signal.SIGTERM):
                    daemon.stop(number)
                    (SOURCE / "web.profile").write_text(plain("web", f"deny /y{number} r,"))
                    old = content("web")
                    with Daemon():
                        until(lambda old=old: content("web") != old)
            finally:
                stop.set()
                watcher.join()
    assert seen == {"web (enforce)"}, seen


def a_process_that_lost_its_confinement_is_reported_until_it_ends():
    """If a profile is removed, the daemon restores it, and reports the process that stays
    unconfined.
    """
    source(web=plain("web"))
    lost = "profile_loader_confinement_lost_processes"
    with Daemon("--resync=3s"):
        until(lambda: ready() and "web" in loaded())
        with Confined("web") as process:
            label = Path(f"/proc/{process.pid}/attr/current")
            passes = 'profile_loader_passes_total{result="converged"}'
            before = metric(passes)  # The daemon may have recorded the process in an earlier pass.
            until(lambda: metric(passes) >= before + 2, 60, "two resyncs")
            assert metric(lost) == 0
            assert parser(plain("web"), "-R")[0] == 0
            until(lambda: "web" in loaded())
            until(lambda: metric(lost) == 1)
            assert label.read_text().strip() == "unconfined"
            assert f"pid {process.pid}" in LOG.read_text()
        until(lambda: metric(lost) == 0)


def a_held_profile_is_removed_soon_after_its_last_process_ends():
    """When the last confined process exits, the agent removes its profile minutes before the next
    full resync.
    """
    source(web=plain("web"), other=plain("other"))
    with Daemon():
        until(lambda: ready() and "web" in loaded())
        with Confined("web"):
            (SOURCE / "web.profile").unlink()
            until(lambda: metric('profile_loader_problems{code="in_use"}') == 1)
            assert "web" in loaded()
        seconds = until(lambda: "web" not in loaded(), 60)
    print_distribution("removal after the last process", [seconds])
    assert pace.in_time(seconds, 30.0)


def sigterm_during_a_parser_run_ends_the_daemon_within_two_seconds():
    """If the daemon is stopped while the parser runs, the parser is stopped too, and the node does
    not change.
    """
    slow = Path("/tmp/slow-parser")  # noqa: S108
    slow.write_text("#!/bin/bash\ntouch /tmp/in-parser\nsleep 60\n")
    slow.chmod(0o755)
    marker = Path("/tmp/in-parser")  # noqa: S108
    marker.unlink(missing_ok=True)
    source(web=plain("web"))
    with Daemon(f"--apparmor-parser={slow}") as daemon:
        until(marker.exists)
        status, seconds = daemon.stop()
    print_distribution("SIGTERM in a parser run", [seconds])
    assert (status, pace.in_time(seconds, 2.0)) == (0, True), (status, seconds)
    assert loaded() == {}
    left = subprocess.run(["pgrep", "-f", str(slow)], capture_output=True, check=False)
    assert left.stdout == b"", left


def a_second_daemon_does_not_start():
    """A second daemon exits at once, and the first daemon continues to run."""
    source(web=plain("web"))
    with Daemon() as first:
        until(lambda: ready() and "web" in loaded())
        result = subprocess.run(
            [sys.executable, "-m", "agent", f"--source=dir:{SOURCE}", f"--state-dir={STATE}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (result.returncode, "another agent" in result.stderr) == (4, True), result
        assert first.process.poll() is None


def changes_by_the_daemon_itself_cause_no_further_pass():
    """The changes that the daemon makes cause no further pass, and an idle daemon runs no pass."""
    source(web=plain("web"))
    with Daemon() as daemon:
        until(lambda: ready() and "web" in loaded())
        passes = 'profile_loader_passes_total{result="converged"}'
        first = metric(passes)
        (SOURCE / "web.profile").write_text(plain("web", "deny /x r,"))
        until(lambda: metric('profile_loader_actions_total{action="replace",kind="apparmor"}') == 1)
        settled = metric(passes)
        before, deadline = cpu(daemon.process.pid), time.monotonic() + 8.0
        until(lambda: time.monotonic() > deadline)
        print(json.dumps({"note": f"8 s idle: {cpu(daemon.process.pid) - before} ticks of CPU"}))
        assert metric(passes) - settled <= 1, (first, settled, metric(passes))


def cpu(pid):
    """Return the CPU time that a process has used, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


SCENARIOS = [
    outside_changes_are_repaired_within_a_second,
    a_deleted_or_changed_seccomp_file_is_restored_within_seconds,
    a_change_of_the_source_is_loaded_at_once,
    a_process_stays_confined_all_the_time,
    a_process_that_lost_its_confinement_is_reported_until_it_ends,
    a_held_profile_is_removed_soon_after_its_last_process_ends,
    sigterm_during_a_parser_run_ends_the_daemon_within_two_seconds,
    a_second_daemon_does_not_start,
    changes_by_the_daemon_itself_cause_no_further_pass,
]


def main():
    """Run all scenarios, or only the named ones."""
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
    for scenario in SCENARIOS:
        if sys.argv[1:] and scenario.__name__ not in sys.argv[1:]:
            continue
        begin, error = time.monotonic(), None
        try:
            clean()
            scenario()
        except BaseException:  # noqa: BLE001 - reported to the test on the host
            error = traceback.format_exc()
        seconds = round(time.monotonic() - begin, 1)
        line = {"scenario": scenario.__name__, "error": error, "seconds": seconds}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
