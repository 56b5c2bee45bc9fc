"""Scenarios in which the daemon meets faults on a real AppArmor kernel. All scenarios run as root
in the virtual machine.

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
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import daemon  # noqa: E402 - found by the line above
from daemon import LOG, OBSERVE_SECONDS, SOURCE, Daemon, print_distribution, until  # noqa: E402
from daemon_checks import (  # noqa: E402
    finding,
    metric,
    probe,
    provide,
    recorded_labels,
    require_clean_stop,
    text,
    wait_until_converged,
)
from killed_daemon import (  # noqa: E402
    ARMED,
    Killed,
    entries,
    killed_after_a_load,
    source_changed,
    wait_until_held,
)
from node_tools import (  # noqa: E402
    SECURITY,
    STATE,
    STRIDE,
    Confined,
    content,
    loaded,
    parser,
    plain,
    source,
)
from pace import in_time, pause, scaled  # noqa: E402

MODE = Path("/tmp/parser-mode")  # noqa: S108 - no other user in the guest
PARSER = Path("/tmp/parser")  # noqa: S108
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


def loaded_profiles_stay_while_securityfs_is_unmounted_or_hidden():
    """While securityfs is unmounted or hidden, the daemon reports this and changes nothing.
    Afterwards it recovers.
    """
    top = SECURITY.parent
    source(web=text(1))
    with Daemon("--resync=3s") as running:
        wait_until_converged()
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
            wait_until_converged()
            assert content("web") == good
        provide(2)
        until(
            lambda: content("web") not in (good, None),
            30,
            "an update after the recovery of securityfs",
        )
        wait_until_converged()
        require_clean_stop(running)


def a_start_without_securityfs_installs_nothing_and_recovers():
    """A daemon that starts without securityfs changes no profile. After securityfs was mounted, the
    daemon loads new profiles.
    """
    top = SECURITY.parent
    subprocess.run(["umount", "-l", top], check=True)
    source(web=text(1))
    try:
        with Daemon("--resync=3s") as running:
            until(
                lambda: metric('profile_loader_kind_supported{kind="apparmor"}') == 0,
                60,
                "the daemon reports the fault",
            )
            subprocess.run(["mount", "-t", "securityfs", "securityfs", top], check=True)
            wait_until_converged()
            assert set(loaded()) == {"web"}
            require_clean_stop(running)
    finally:
        if not SECURITY.exists():
            subprocess.run(["mount", "-t", "securityfs", "securityfs", top], check=True)


def the_last_good_version_stays_however_the_parser_fails():
    """While the parser is missing, hangs, crashes or is broken, the daemon reports this, and the
    last good version stays.
    """
    PARSER.write_text(PARSERS)
    PARSER.chmod(0o755)
    MODE.write_text("good")
    source(web=text(0))
    with Daemon(
        f"--apparmor-parser={PARSER}", f"--parser-timeout={scaled(4):.0f}s", "--resync=4s"
    ) as running:
        wait_until_converged()
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
            provide(number + 1)
            until(lambda code=code: finding(code) == 1, 60, mode)
            assert (content("web"), loaded()) == (good, {"web": "enforce"}), mode
            assert metric("profile_loader_converged") == 0, mode
            assert (probe("/healthz"), probe("/readyz")) == (200, 200), mode
            MODE.write_text("good")
            if mode == "missing":
                Path("/tmp/parser-away").rename(PARSER)  # noqa: S108
            number += 2
            provide(number)
            until(lambda good=good: content("web") != good, 60, f"healed after {mode}")
            wait_until_converged()
            assert finding(code) == 0, mode
        lines = LOG.read_text().splitlines()
        assert max(map(len, lines)) < 4000
        assert (
            "\\\\xff" in LOG.read_text()
            or "\ufffd" in LOG.read_text()
            or "\\ufffd" in LOG.read_text()
        )
        require_clean_stop(running)


def a_repair_does_not_wait_for_a_hanging_parser():
    """While the parser hangs on one text, the daemon restores another profile and reports this."""
    PARSER.write_text(PARSERS)
    PARSER.chmod(0o755)
    MODE.write_text("good")
    source(web=text(0))
    repairs = 'profile_loader_drift_repairs_total{cause="missing",kind="apparmor"}'
    with Daemon(f"--apparmor-parser={PARSER}", "--parser-timeout=90s") as running:
        wait_until_converged()
        good = content("web")
        with Confined("web") as process:
            pause(2 * OBSERVE_SECONDS)  # By now, the daemon has recorded the confined processes.
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
            until(lambda: metric(repairs) == 1, 30, "the daemon reports the fault")
            assert f"pid {process.pid}" in LOG.read_text()
        require_clean_stop(running)


def hanging():
    """Return the PIDs of hanging parsers."""
    result = []
    for item in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if item.read_bytes() == b"sleep\x00600\x00":
                result.append(int(item.parent.name))
    return result


def a_jump_of_the_clock_does_not_affect_the_daemon():
    """If CLOCK_REALTIME jumps by a day or a year, repairs, updates and the exit work as before."""
    source(web=text(1))
    now = time.time()
    with Daemon("--resync=5s") as running:
        wait_until_converged()
        try:
            for offset in (-365 * 86400, +86400, -86400):
                time.clock_settime(time.CLOCK_REALTIME, now + offset)
                good = content("web")
                assert parser(text(1), "-R")[0] == 0
                seconds = until(lambda good=good: content("web") == good, 30, "repair")
                print_distribution(f"repair after a jump of the clock by {offset} s", [seconds])
                number = abs(offset)
                provide(number)
                until(lambda good=good: content("web") not in (good, None), 30, "update")
                wait_until_converged()
                last = metric("profile_loader_last_pass_timestamp_seconds")
                assert in_time(abs(last - time.time()), 60), (last, time.time())
                assert probe("/healthz") == 200
                provide(1)
                until(lambda good=good: content("web") == good, 30, "and back")
            passes = metric('profile_loader_passes_total{result="converged"}')
            until(
                lambda: metric('profile_loader_passes_total{result="converged"}') > passes,
                20,
                "the resync does not depend on CLOCK_REALTIME",
            )
            require_clean_stop(running)
        finally:
            time.clock_settime(time.CLOCK_REALTIME, now + 600)


def a_daemon_killed_before_a_named_step_reaches_the_same_state():
    """If the daemon is killed before a write to the kernel, every process stays confined, and the
    next daemon completes the work.
    """
    points = (
        "before_a_policy_is_replaced",
        "before_a_policy_is_loaded",
        "before_a_policy_is_removed",
        "before_it_is_committed",
    )
    for point in points[::STRIDE]:
        daemon.clean()
        source(web=text(1), old=plain("old"))
        with Killed(point, "--prune=always") as running:
            wait_until_converged()
            with recorded_labels("web") as seen:
                ARMED.touch()
                source_changed()
                until(lambda running=running: running.process.poll() is not None, 60, point)
                assert running.process.returncode == -signal.SIGKILL, point
                assert {"web"} <= set(loaded()) <= {"web", "old", "new"}, (point, loaded())
                # The next start takes longer, because the daemon also compiles a text.
                (SOURCE / "more.profile").write_text(plain("more"))
                with Daemon("--prune=always") as after:
                    until(lambda: set(loaded()) == {"web", "new", "more"}, 60, point)
                    wait_until_converged()
                    require_clean_stop(after)
        assert seen == {"web (enforce)"}, (point, seen)
        entries = sorted((STATE / "entries").glob("*.json"))
        assert len(entries) == 3, (point, entries)


def a_key_that_is_deleted_after_a_kill_leaves_no_agent_owned_profile():
    """If a daemon was killed during an installation and the key is deleted, the next daemon removes
    the profile once no process uses it.
    """
    for point in ("before_a_load_is_recorded", "before_it_is_committed")[::STRIDE]:
        killed_after_a_load(point)
        with Confined("new"), Daemon() as running:
            wait_until_held()
            assert (loaded(), entries()) == ({"web": "enforce", "new": "enforce"}, 2), point
            require_clean_stop(running)
        with Daemon() as running:
            until(lambda: set(loaded()) == {"web"}, 60, f"removed after {point}")
            until(lambda: entries() == 1, 60, f"released after {point}")
            wait_until_converged()
            require_clean_stop(running)


def a_foreign_profile_in_place_of_an_unfinished_installation_stays():
    """A profile that has the same bytes as an unfinished installation is kept, because another
    program loaded it. The report lists the profile.
    """
    killed_after_a_load("before_it_is_committed")
    for option in ("-R", "-a"):
        assert parser(plain("new"), option)[0] == 0, option
    with Daemon() as running:
        until(lambda: entries() == 1, 60, "released")
        wait_until_converged()
        assert set(loaded()) == {"web", "new"}
        lines = [json.loads(line) for line in LOG.read_text().splitlines() if line.startswith("{")]
        released = [line for line in lines if line["event"] == "profile_released"]
        assert [(line["name"], line["why"]) for line in released] == [("new", "foreign")]
        require_clean_stop(running)


def a_process_stays_confined_through_upgrades_and_downgrades():
    """A process stays confined while the agent is upgraded to a version with another parser, and
    then downgraded.
    """
    other = Path("/tmp/other")  # noqa: S108
    shutil.rmtree(other, ignore_errors=True)
    libraries = Path(os.environ["PYTHONPATH"])
    other.mkdir()
    for item in libraries.iterdir():
        if item.name != "agent" and not item.name.startswith("profile_loader-"):
            (other / item.name).symlink_to(item)
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
        wait_until_converged()
        with recorded_labels("web") as seen:
            running.stop()
            provide("up")
            before = content("web")
            with Daemon(f"--apparmor-parser={PARSER}", **new) as upgraded:
                until(lambda: content("web") != before, 120, "the upgrade's put")
                wait_until_converged()
                assert metric('profile_loader_build_info{version="99.0.0"}') == 1
                upgraded.stop(signal.SIGKILL)
            with Daemon() as former:  # the downgrade to the first parser
                wait_until_converged()
                require_clean_stop(former)
            time.sleep(0.1)
    assert seen == {"web (enforce)"}, seen


def a_process_that_began_after_the_last_pass_is_also_reported():
    """A process that began after the last pass is also reported, because the daemon observes
    processes every ten seconds.
    """
    source(web=text(1))
    lost = "profile_loader_confinement_lost_processes"
    with Daemon() as running:
        wait_until_converged()
        with Confined("web") as process:
            pause(2 * OBSERVE_SECONDS)
            assert parser(text(1), "-R")[0] == 0
            until(lambda: metric(lost) == 1, 30, "the daemon reports the fault")
            assert f"pid {process.pid}" in LOG.read_text()
        until(lambda: metric(lost) == 0, 60, "over")
        require_clean_stop(running)


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
