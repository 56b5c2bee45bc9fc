"""Scenarios with threads that lose their confinement on a real kernel, run as root in the virtual
machine.

Each scenario is a function. `tracker.py` runs all scenarios, and prints one line of JSON for each
of them: {"scenario": name, "error": null or the reason}.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import disuse
import node_tools
import pace
import programs
from daemon import LOG, Daemon, metric, ready, until
from node_tools import loaded, parser, plain, source
from programs import DEAD_LEADER, SLEEP, current, program
from removal_tools import installed, kind, text

from agent.backends.apparmor.confinement_tracker import ConfinementTracker
from agent.core.ports import Removed
from agent.host.filesystem import Host

STATE = Path("/var/lib/profile-loader")
# the file in which the daemon records confined threads
RECORD = node_tools.STATE / "confinement.json"
LOST = "profile_loader_confinement_lost_processes"
NAMES = ("web", "other")

# The leader keeps its label, and a second thread changes to the named profile.
MIXED = """
import sys, threading, time
def run():
    open('/proc/thread-self/attr/current', 'w').write('changeprofile ' + sys.argv[1])
    print('ready', flush=True)
    time.sleep(600)
threading.Thread(target=run).start()
time.sleep(600)
"""


def tracker():
    """Return a new confinement tracker, as a new process of the agent would have."""
    return ConfinementTracker(
        Host("/"), state_dir=str(STATE), find_directories=kind().view.directories
    )


def pids(made):
    """Return the reported PIDs by profile name."""
    result = {}
    for finding in made.findings():
        words = finding.message.partition("pid ")[2].partition(".")[0].replace(",", " ").split()
        result[finding.location] = {int(word) for word in words if word.isdigit()}
    return result


def unload(name):
    """Remove a profile as an administrator does."""
    assert parser(text(name), "-R")[0] == 0


def fresh():
    """Install two profiles, and remove the record of confined threads."""
    (STATE / "confinement.json").unlink(missing_ok=True)
    return {name: installed(text(name)) for name in NAMES}


# --- scenarios ------------------------------------------------------------------------------------


def every_kind_of_thread_is_reported():
    """Unconfined threads of every type are reported: leaders, other threads, and threads whose
    leader has exited.
    """
    fresh()
    with (
        program(SLEEP, label="web") as plain_one,
        program(MIXED, "web") as second,
        program(MIXED, "web", label="other") as mixed,
        program(DEAD_LEADER, label="web") as dead,
        program(SLEEP, label="other") as kept,
    ):
        pace.until(lambda: programs.state(dead.pid) == "Z", "the leader's end")
        made = tracker()
        made.observe(NAMES)
        unload("web")
        made.record_removals(["web"])
        assert pids(made) == {"web": {plain_one.pid, second.pid, mixed.pid, dead.pid}}, pids(made)
        assert made.count() == 4
        assert current(kept.pid) == "other (enforce)"


def a_vanished_part_of_a_stack_is_reported():
    """A thread is reported if one profile of its stack is removed. In the label, the kernel then
    shows `unconfined` instead of this profile.
    """
    fresh()
    with program(SLEEP, label="web//&other") as child:
        made = tracker()
        made.observe(NAMES)
        unload("web")
        label = Path(f"/proc/{child.pid}/attr/current").read_text().strip()
        print(json.dumps({"note": f"label after the removal: {label}"}))
        made.record_removals(["web"])
        assert pids(made) == {"web": {child.pid}}, (pids(made), label)


def a_stacked_profile_is_recognized_in_a_label_longer_than_a_page():
    """The label of many stacked profiles is read completely, even if it is longer than a page."""
    stack = (
        "import sys, time\n"
        "for name in sys.argv[1:]:\n"
        "    open('/proc/self/attr/current', 'w').write('stack ' + name)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    names = [f"{number:0180}" for number in range(25)]
    installed("".join(text(f"n{name}") for name in names))
    with program(stack, *(f"n{name}" for name in names[1:]), label=f"n{names[0]}") as child:
        label = Path(f"/proc/{child.pid}/attr/current").read_text()
        last = label.rpartition(" (")[0].rpartition("//&")[2]
        assert label.index(last) > 4096, label
        made = tracker()
        made.observe([last])
        assert last in made.names_in_use(), label


def a_profile_that_was_removed_and_loaded_again_is_noticed():
    """A thread is reported even if its profile was removed and loaded again between two
    observations, or while no agent ran.
    """
    for away in (False, True):
        fresh()
        with program(SLEEP, label="web") as child:
            made = tracker()
            made.observe(NAMES)
            unload("web")
            assert parser(text("web"), "-a")[0] == 0
            made = tracker() if away else made
            made.record_removals([])
            assert pids(made) == {"web": {child.pid}}, (away, pids(made))
            again = tracker()
            again.record_removals([])
            again.observe(NAMES)
            assert pids(again) == {"web": {child.pid}}, away
        assert pids(again) == {}
        unload("web")
        unload("other")


def a_replacement_is_not_reported_as_a_removal():
    """If the agent, its check for disuse or another program replaces a profile, no thread is
    reported.
    """
    fresh()
    with program(SLEEP, label="web") as child:
        made = tracker()
        made.observe(NAMES)
        installed(text("web", "  deny /x w,\n"), replaceable=["web"])
        assert parser(text("web", "  deny /y w,\n"), "-r")[0] == 0
        for one in (made, tracker()):
            one.record_removals([])
            one.observe(NAMES)
            assert pids(one) == {}
        assert current(child.pid) == "web (enforce)"


def a_thread_that_a_removal_by_the_agent_unconfined_is_reported():
    """If the agent itself removes a profile that is in use, the unconfined thread is reported."""
    evidence = fresh()
    with program(SLEEP, label="web") as child:
        made = tracker()
        made.observe(NAMES)
        assert kind().remove(["web"], evidence["web"], require_unused=False) == Removed()
        made.record_removals(["web"])
        made.observe(["other"])
        assert pids(made) == {"web": {child.pid}}


def an_unchanged_node_is_observed_without_a_write():
    """An observation of an unchanged node writes no file. The test also measures the duration of an
    observation with many processes and threads.
    """
    fresh()
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in range(200)]
    for one in threads:
        one.start()
    try:
        with program(SLEEP, label="web"):
            made = tracker()
            made.observe(NAMES)
            before = (STATE / "confinement.json").stat()
            tasks = len(list(Path("/proc").glob("[0-9]*/task/*")))
            begin = time.process_time()
            for _ in range(5):
                made.observe(NAMES)
            spent = (time.process_time() - begin) / 5
            made.record_removals([])
            assert (STATE / "confinement.json").stat() == before
    finally:
        ended.set()
    print(
        json.dumps({"note": f"a look at {tasks} threads: {1000 * spent:.0f} ms of CPU, emulated"})
    )


def lost_confinement_is_reported_across_a_restart_of_the_daemon():
    """If threads lose their confinement before or during a restart of the daemon, they are reported
    until they end.
    """
    RECORD.unlink(missing_ok=True)
    source(web=plain("web"), other=plain("other"))
    with Daemon("--resync=3s"):
        until(lambda: ready() and len(loaded()) == 2, 120)
        passes = 'profile_loader_passes_total{result="converged"}'
        with program(MIXED, "web") as first, program(SLEEP, label="other") as second:
            before = metric(passes)
            until(lambda: metric(passes) >= before + 2, 60, "two resyncs")
            assert parser(plain("web"), "-R")[0] == 0
            until(lambda: metric(LOST) == 1)
            until(lambda: '"lost":{}' not in RECORD.read_text(), 60, "the record")
            Daemon.running[-1].kill()
            Daemon.running[-1].wait()
            assert parser(plain("other"), "-R")[0] == 0
            assert parser(plain("other"), "-a")[0] == 0
            with Daemon("--resync=3s"):
                until(lambda: ready() and metric(LOST) == 2, 120)
                for child in (first, second):
                    until(lambda child=child: f"pid {child.pid}" in LOG.read_text())
                first.kill()
                second.kill()
                first.wait()
                second.wait()
                until(lambda: metric(LOST) == 0)


SCENARIOS = [
    every_kind_of_thread_is_reported,
    a_vanished_part_of_a_stack_is_reported,
    a_stacked_profile_is_recognized_in_a_label_longer_than_a_page,
    a_profile_that_was_removed_and_loaded_again_is_noticed,
    a_replacement_is_not_reported_as_a_removal,
    a_thread_that_a_removal_by_the_agent_unconfined_is_reported,
    an_unchanged_node_is_observed_without_a_write,
    lost_confinement_is_reported_across_a_restart_of_the_daemon,
]


if __name__ == "__main__":
    STATE.mkdir(exist_ok=True)
    assert os.getuid() == 0
    disuse.main(SCENARIOS)
