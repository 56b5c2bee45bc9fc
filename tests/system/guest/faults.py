"""Scenarios with faults of the daemon on a real AppArmor kernel, run as root in the virtual
machine.

The program prints one line of JSON for each scenario, and {"note": ...} for measurements. Each
scenario checks the kernel, the metrics, the probes and the exit status.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import daemon  # noqa: E402 - found by the line above
from daemon import HTTP, LOG, LOOK_SECONDS, SOURCE, Daemon, told, until  # noqa: E402
from pace import in_time, pause, scaled  # noqa: E402
from scenarios import (  # noqa: E402
    SECCOMP,
    SECURITY,
    STATE,
    Confined,
    content,
    loaded,
    parser,
    plain,
    source,
)

MODE = Path("/tmp/parser-mode")  # noqa: S108 - no other user in the guest
PARSER = Path("/tmp/parser")  # noqa: S108
ARMED = Path("/tmp/armed")  # noqa: S108
PARSERS = """#!/bin/bash
case "$(cat /tmp/parser-mode)" in
hanging) sleep 600 ;;
killed) kill -9 $$ ;;
megabytes)
    yes 'error: nonsense at line 7' | head -c 40000000 >&2
    exit 1
    ;;
invalid)
    printf 'AppArmor parser error at line 3: \\xff\\xfe\\x80 \\033[31m \\x00 end\\n' >&2
    exit 1
    ;;
esac
exec /sbin/apparmor_parser "$@"
"""


def probe(path):
    """Return the status of a probe."""
    try:
        with urllib.request.urlopen(f"http://{HTTP}{path}", timeout=200) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0  # The server does not listen yet.


def metric(name):
    """Return the value of a metric, or None if it is missing or the server does not respond yet."""
    with contextlib.suppress(OSError):
        return daemon.metric(name)
    return None


def finding(code):
    """Return the number of findings with a code in the last report."""
    return metric(f'profile_loader_problems{{code="{code}"}}') or 0


def put(number):
    """Change the only profile of the source."""
    new = SOURCE / ".new"
    new.write_text(text(number))
    new.rename(SOURCE / "web.profile")


def text(number):
    """Return a version of the only profile of the source."""
    return plain("web", f"deny /etc/shadow{number} r,")


def settled():
    """Wait until the daemon reports that it has converged."""
    # The first start takes longer, because Python compiles the standard library.
    until(
        lambda: probe("/readyz") == 200 and metric("profile_loader_converged") == 1, 180, "settle"
    )


def left_in_peace(running):
    """Stop the daemon with SIGTERM, and require that it ends in two seconds and changes no
    policy.
    """
    before = {name: content(name) for name in loaded()}
    status, seconds = running.stop()
    assert (status, in_time(seconds, 2.0)) == (0, True), (status, seconds)
    assert {name: content(name) for name in loaded()} == before


# --- scenarios ------------------------------------------------------------------------------------


def loaded_profiles_stay_while_securityfs_is_unmounted_or_hidden():
    """If securityfs is unmounted or hidden, this is reported, and the daemon recovers
    afterwards.
    """
    top = SECURITY.parent
    source(web=text(1))
    with Daemon("--resync=3s") as running:
        settled()
        good = content("web")
        for hide, show in (
            (["umount", "-l", top], ["mount", "-t", "securityfs", "securityfs", top]),
            (["mount", "-t", "tmpfs", "none", top], ["umount", top]),
        ):
            subprocess.run(hide, check=True)
            until(lambda: metric('profile_loader_kind_supported{kind="apparmor"}') == 0, 30, hide)
            assert metric("profile_loader_converged") == 0
            assert probe("/healthz") == 200
            subprocess.run(show, check=True)
            assert content("web") == good
            settled()
            assert content("web") == good
        put(2)
        until(lambda: content("web") not in (good, None), 30, "an update after it came back")
        settled()
        left_in_peace(running)


def a_start_without_securityfs_installs_nothing_and_recovers():
    """Without securityfs, loaded profiles stay; new profiles are loaded after it was mounted
    again.
    """
    top = SECURITY.parent
    subprocess.run(["umount", "-l", top], check=True)
    source(web=text(1))
    try:
        with Daemon("--resync=3s") as running:
            until(lambda: metric('profile_loader_kind_supported{kind="apparmor"}') == 0, 60, "told")
            subprocess.run(["mount", "-t", "securityfs", "securityfs", top], check=True)
            settled()
            assert set(loaded()) == {"web"}
            left_in_peace(running)
    finally:
        if not SECURITY.exists():
            subprocess.run(["mount", "-t", "securityfs", "securityfs", top], check=True)


def the_last_good_version_stays_however_the_parser_fails():
    """If the parser is missing, hangs, is killed or is broken, this is reported until it works."""
    PARSER.write_text(PARSERS)
    PARSER.chmod(0o755)
    MODE.write_text("good")
    source(web=text(0))
    with Daemon(
        f"--apparmor-parser={PARSER}", f"--parser-timeout={scaled(4):.0f}s", "--resync=4s"
    ) as running:
        settled()
        number = 0
        for mode, code in (
            ("hanging", "parser_killed"),
            ("killed", "parser_killed"),
            ("megabytes", "parser_killed"),
            ("invalid", "parser_rejected"),
            ("missing", "kind_unsupported"),
        ):
            good = content("web")
            MODE.write_text(mode)
            if mode == "missing":
                PARSER.rename("/tmp/parser-away")  # noqa: S108
            put(number + 1)
            until(lambda code=code: finding(code) == 1, 60, mode)
            assert (content("web"), loaded()) == (good, {"web": "enforce"}), mode
            assert metric("profile_loader_converged") == 0, mode
            assert (probe("/healthz"), probe("/readyz")) == (200, 200), mode
            MODE.write_text("good")
            if mode == "missing":
                Path("/tmp/parser-away").rename(PARSER)  # noqa: S108
            number += 2
            put(number)
            until(lambda good=good: content("web") != good, 60, f"healed after {mode}")
            settled()
            assert finding(code) == 0, mode
        lines = LOG.read_text().splitlines()
        assert max(map(len, lines)) < 4000
        assert (
            "\\\\xff" in LOG.read_text()
            or "\ufffd" in LOG.read_text()
            or "\\ufffd" in LOG.read_text()
        )
        left_in_peace(running)


def a_repair_does_not_wait_for_a_hanging_parser():
    """While the parser hangs on one text, another profile is restored and reported."""
    PARSER.write_text(PARSERS)
    PARSER.chmod(0o755)
    MODE.write_text("good")
    source(web=text(0))
    repairs = 'profile_loader_drift_repairs_total{cause="missing",kind="apparmor"}'
    with Daemon(f"--apparmor-parser={PARSER}", "--parser-timeout=90s") as running:
        settled()
        good = content("web")
        with Confined("web") as process:
            pause(2 * LOOK_SECONDS)  # The agent has recorded the confined processes now.
            MODE.write_text("hanging")
            (SOURCE / "slow.profile").write_text(plain("slow"))
            until(hanging, 30, "the parser hangs")
            assert parser(text(0), "-R")[0] == 0
            seconds = until(lambda: "web" in loaded(), 30, "back")
            assert (content("web"), bool(hanging())) == (good, True)
            print(json.dumps({"note": f"repair while a parser hangs: {seconds * 1000:.0f} ms"}))
            MODE.write_text("good")
            for pid in hanging():
                os.kill(pid, signal.SIGKILL)
            until(lambda: "slow" in loaded(), 120, "the other")
            until(lambda: metric(repairs) == 1, 30, "told")
            assert f"pid {process.pid}" in LOG.read_text()
        left_in_peace(running)


def hanging():
    """Return the processes of hanging parsers."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if one.read_bytes() == b"sleep\x00600\x00":
                found.append(int(one.parent.name))
    return found


def a_jump_of_the_clock_does_not_affect_the_daemon():
    """If CLOCK_REALTIME jumps by a year or a day, repairs, updates and the exit work as before."""
    source(web=text(1))
    now = time.time()
    with Daemon("--resync=5s") as running:
        settled()
        try:
            for offset in (-365 * 86400, +86400, -86400):
                time.clock_settime(time.CLOCK_REALTIME, now + offset)
                good = content("web")
                assert parser(text(1), "-R")[0] == 0
                seconds = until(lambda good=good: content("web") == good, 30, "repair")
                told(f"repair after the clock went by {offset} s", [seconds])
                number = abs(offset)
                put(number)
                until(lambda good=good: content("web") not in (good, None), 30, "update")
                settled()
                last = metric("profile_loader_last_pass_timestamp_seconds")
                assert in_time(abs(last - time.time()), 60), (last, time.time())
                assert probe("/healthz") == 200
                put(1)
                until(lambda good=good: content("web") == good, 30, "and back")
            passes = metric('profile_loader_passes_total{result="converged"}')
            until(
                lambda: metric('profile_loader_passes_total{result="converged"}') > passes,
                20,
                "the resync goes by another clock",
            )
            left_in_peace(running)
        finally:
            time.clock_settime(time.CLOCK_REALTIME, now + 600)


class Killed(Daemon):
    """A daemon that is killed right before a named step, after it was armed (killed.py)."""

    def __init__(self, point, *more):
        super().__init__(*more, KILLED=point, ARMED=str(ARMED))
        ARMED.unlink(missing_ok=True)

    def __enter__(self):
        command = [
            sys.executable, str(HERE / "killed.py"), f"--source=dir:{SOURCE}",
            f"--state-dir={STATE}", f"--seccomp-dir={SECCOMP}", "--log-format=json",
            f"--http-address={HTTP}", "--removal-grace=1s", *self.more,
        ]  # fmt: skip
        environ = {**os.environ, **self.environ}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        with LOG.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environ)
        self.running.append(self.process)
        return self


def a_daemon_killed_before_a_named_step_reaches_the_same_state():
    """A kill before a write to the kernel unconfines no process, and the next start continues."""
    for point in (
        "before_a_policy_is_loaded",
        "before_it_is_committed",
        "before_a_policy_is_replaced",
        "before_a_policy_is_removed",
    ):
        daemon.clean()
        source(web=text(1), old=plain("old"))
        with Killed(point, "--prune=always") as running:
            settled()
            with watched("web") as seen:
                ARMED.touch()
                source_changed()
                until(lambda running=running: running.process.poll() is not None, 60, point)
                assert running.process.returncode == -signal.SIGKILL, point
                assert {"web"} <= set(loaded()) <= {"web", "old", "new"}, (point, loaded())
                # The next start takes longer, because it also compiles a text.
                (SOURCE / "more.profile").write_text(plain("more"))
                with Daemon("--prune=always") as after:
                    until(lambda: set(loaded()) == {"web", "new", "more"}, 60, point)
                    settled()
                    left_in_peace(after)
        assert seen == {"web (enforce)"}, (point, seen)
        entries = sorted((STATE / "entries").glob("*.json"))
        assert len(entries) == 3, (point, entries)


def a_key_that_is_deleted_after_a_kill_leaves_no_agent_owned_profile():
    """A profile of an unfinished installation is held while a process uses it, and is removed
    afterwards.
    """
    for point in ("before_a_load_is_recorded", "before_it_is_committed"):
        killed_after_a_load(point)
        with Confined("new"), Daemon() as running:
            held()
            assert (loaded(), entries()) == ({"web": "enforce", "new": "enforce"}, 2), point
            left_in_peace(running)
        with Daemon() as running:
            until(lambda: set(loaded()) == {"web"}, 60, f"removed after {point}")
            until(lambda: entries() == 1, 60, f"released after {point}")
            settled()
            left_in_peace(running)


def a_foreign_profile_in_place_of_an_unfinished_installation_stays():
    """Equal bytes that another program loaded do not prove ownership, and the report lists the
    profile.
    """
    killed_after_a_load("before_it_is_committed")
    for option in ("-R", "-a"):
        assert parser(plain("new"), option)[0] == 0, option
    with Daemon() as running:
        until(lambda: entries() == 1, 60, "released")
        settled()
        assert set(loaded()) == {"web", "new"}
        lines = [json.loads(line) for line in LOG.read_text().splitlines() if line.startswith("{")]
        released = [line for line in lines if line["event"] == "profile_released"]
        assert [(line["name"], line["why"]) for line in released] == [("new", "foreign")]
        left_in_peace(running)


def killed_after_a_load(point):
    """Kill the agent right after it loaded a new profile, and delete the profile's key."""
    daemon.clean()
    source(web=text(1))
    with Killed(point) as running:
        settled()
        ARMED.touch()
        (SOURCE / "new.profile").write_text(plain("new"))
        until(lambda: running.process.poll() is not None, 60, point)
    assert running.process.returncode == -signal.SIGKILL, point
    assert set(loaded()) == {"web", "new"}, (point, loaded())
    (SOURCE / "new.profile").unlink()


def held():
    """Wait until the daemon reports that it holds a profile that is in use."""
    until(lambda: finding("in_use") == 1, 180, "in use")


def entries():
    """Return the number of ledger entries."""
    return len(list((STATE / "entries").glob("*.json")))


def source_changed():
    """Change a profile, add a profile, and remove a profile."""
    (SOURCE / "new.profile").write_text(plain("new"))
    put(2)
    (SOURCE / "old.profile").unlink()


@contextlib.contextmanager
def watched(name):
    """Run a process under a profile, and record all its labels."""
    stop, seen = threading.Event(), set()
    with Confined(name) as process:
        path = Path(f"/proc/{process.pid}/attr/current")

        def watch():
            while not stop.is_set():
                seen.add(path.read_text().strip())
                time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            stop.set()
            watcher.join()


def a_process_stays_confined_through_upgrades_and_downgrades():
    """The agent is upgraded to another version with another parser, and is then downgraded."""
    other = Path("/tmp/other")  # noqa: S108
    shutil.rmtree(other, ignore_errors=True)
    libraries = Path(os.environ["PYTHONPATH"])
    other.mkdir()
    for one in libraries.iterdir():
        if one.name != "agent" and not one.name.startswith("profile_loader-"):
            (other / one.name).symlink_to(one)
    shutil.copytree(libraries / "agent", other / "agent")
    about = other / "profile_loader-99.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: profile-loader\nVersion: 99.0.0\n"
    )
    PARSER.write_text('#!/bin/bash\nexec /sbin/apparmor_parser -O no-expr-simplify "$@"\n')
    PARSER.chmod(0o755)
    source(web=text(1))
    new = {"PYTHONPATH": str(other)}
    with Daemon() as running:
        settled()
        with watched("web") as seen:
            running.stop()
            put("up")
            before = content("web")
            with Daemon(f"--apparmor-parser={PARSER}", **new) as upgraded:
                until(lambda: content("web") != before, 120, "the upgrade's put")
                settled()
                assert metric('profile_loader_build_info{version="99.0.0"}') == 1
                upgraded.stop(signal.SIGKILL)
            with Daemon() as former:  # the downgrade, with the first parser
                settled()
                left_in_peace(former)
            time.sleep(0.1)
    assert seen == {"web (enforce)"}, seen


def a_process_that_began_after_the_last_pass_is_also_reported():
    """The observation every ten seconds also finds processes that began after the last pass."""
    source(web=text(1))
    lost = "profile_loader_confinement_lost_processes"
    with Daemon() as running:
        settled()
        with Confined("web") as process:
            pause(2 * LOOK_SECONDS)
            assert parser(text(1), "-R")[0] == 0
            until(lambda: metric(lost) == 1, 30, "told")
            assert f"pid {process.pid}" in LOG.read_text()
        until(lambda: metric(lost) == 0, 60, "over")
        left_in_peace(running)


SCENARIOS = [
    a_process_that_began_after_the_last_pass_is_also_reported,
    loaded_profiles_stay_while_securityfs_is_unmounted_or_hidden,
    a_start_without_securityfs_installs_nothing_and_recovers,
    the_last_good_version_stays_however_the_parser_fails,
    a_repair_does_not_wait_for_a_hanging_parser,
    a_jump_of_the_clock_does_not_affect_the_daemon,
    a_daemon_killed_before_a_named_step_reaches_the_same_state,
    a_key_that_is_deleted_after_a_kill_leaves_no_agent_owned_profile,
    a_foreign_profile_in_place_of_an_unfinished_installation_stays,
    a_process_stays_confined_through_upgrades_and_downgrades,
]


if __name__ == "__main__":
    daemon.SCENARIOS = SCENARIOS
    daemon.main()
