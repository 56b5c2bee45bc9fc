"""Scenarios that try to defeat the check that a profile is unused. All scenarios run as root in the
virtual machine.

Each scenario is a function. `disuse.py` runs all scenarios, and prints one line of JSON for each of
them: {"scenario": name, "error": null or the reason}.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import node_tools
import pace
from node_tools import RELEASES_HATS, clean, loaded
from programs import (
    DEAD_LEADER,
    FORKED_PENDING,
    FORKS,
    LEAVING_FORKS,
    LEAVING_THREADS,
    PENDING,
    STORED_CREDENTIALS,
    THREAD_PENDING,
    THREADS,
    UNFINISHED,
    ZOMBIE,
    continue_program,
    current,
    label_of,
    program,
    state,
)
from removal_tools import (
    CHAINS,
    OPEN,
    SHOWS_PENDING_EXEC,
    attack,
    held_by_hidden_reference,
    installed,
    kind,
    pending_exec_is_held_and_the_profile_is_removed,
    removed,
    require_held,
    text,
    until_removed,
)

from agent.core.model import UnknownUse, Unused
from agent.core.ports import Removed, StillInUse


def an_unused_profile_is_removed_at_once():
    """The agent removes the unused profiles of a key one at a time and then all at once, and the
    scenario measures how long each removal takes.
    """
    single = installed(text("single"))
    many = installed(
        text("many1", "  deny /x w,\n")
        + text("many2", "  deny /zzz/** w,\n  network inet,\n")
        + text("many3", "  deny /yy/{a,bb,ccc}* wk,\n", "flags=(complain)")
    )
    for evidence in (single, many):
        begin = time.monotonic()
        result = removed(evidence)
        print(json.dumps({"note": f"removal: {1000 * (time.monotonic() - begin):.0f} ms"}))
        assert result == Removed(), result
    assert loaded() == {}


def a_profile_with_hats_and_children_is_removed_where_its_disuse_can_be_proven():
    """A profile with hats and children is removed, except on Linux 6.1 and 7.2, which never release
    its first version.
    """
    evidence = installed(
        text("many1", "  ^HAT { file, signal, deny /x w, }\n  profile kid { file, deny /yy w, }\n")
    )
    for _ in range(2):
        result = removed(evidence)
        assert (result == Removed()) == RELEASES_HATS, result
    assert RELEASES_HATS or set(evidence) <= loaded().keys()


def a_pending_exec_keeps_its_profile():
    """A profile stays while an exec is pending in a leader, in an orphaned child or in a second
    thread.
    """
    for code in (PENDING, FORKED_PENDING, THREAD_PENDING):
        evidence = installed(text("pend"))
        with program(code, "pend") as child:
            pid = int(child.first_line) if child.first_line.isdigit() else child.pid
            for _ in range(2):
                require_held(removed(evidence), "pend", pids={pid})
            continue_program(child)
            assert label_of(pid) == "pend (enforce)", code
            require_held(removed(evidence), "pend")
        until_removed(evidence)


def a_pending_exec_keeps_a_hat_and_a_stack():
    """A container may start in a hat or under two stacked profiles. In both cases, the profiles
    stay.
    """
    kid = installed(text("par", f"  profile kid {{\n{OPEN}  }}\n"))
    other = installed(text("other"))
    for name, evidence in (("par//kid", kid), ("other//&par", other)):
        with program(PENDING, name) as child:
            require_held(removed(evidence), *evidence, pids={child.pid})
            continue_program(child)
            assert "unconfined" not in label_of(child.pid)
            require_held(removed(evidence), *evidence)
    # Linux 6.1 and 6.12 sometimes keep a profile version that was part of a stacked label.
    print(json.dumps({"note": f"after a stacked label: {type(removed(other)).__name__}"}))


def a_pending_exec_of_a_learning_profile_keeps_its_profile():
    """A profile in complain mode stays if the kernel has created a learning profile under it.

    The kernel keeps the learning profile even after its program has exited.
    """
    evidence = installed("profile learn flags=(complain) {\n  /** rwm,\n  signal,\n}\n")
    learning = f"learn//null-{Path('/bin/sleep').resolve()}"
    start = (
        "import subprocess\n"
        "child = subprocess.Popen(['/bin/sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with program(start, label="learn") as child:
        label = label_of(child.first_line)
        assert label == f"{learning} (complain)", label
        require_held(removed(evidence), "learn")
    with program(PENDING, learning) as child:
        for _ in range(2):
            require_held(removed(evidence), "learn", pids={child.pid})
        continue_program(child)
        assert label_of(child.pid) == f"{learning} (complain)"
        require_held(removed(evidence), "learn")
    held_by_hidden_reference(removed(evidence), "learn")


def a_pending_exec_of_an_earlier_version_keeps_the_profile():
    """The check for disuse replaces the profile, and the pending program then starts under the
    newest version.
    """
    installed(text("versions"))
    with program(PENDING, "versions") as child:
        evidence = installed(text("versions", "  deny /x w,\n"), replaceable=["versions"])
        for _ in range(3):
            require_held(removed(evidence), "versions", pids={child.pid})
        continue_program(child)
        assert label_of(child.pid) == "versions (enforce)"
    until_removed(evidence)


def a_profile_that_was_updated_under_a_process_is_removed_after_its_end():
    """A profile that was updated while a process ran is removed after the process exits. Like a
    container, the process writes to a pipe that an unconfined process opened.
    """
    writes = "import sys\nwhile True:\n    print('ready', flush=True)\n    sys.stdin.readline()\n"
    installed(text("web"))
    with program(writes, label="web") as child:
        for number in range(2):
            evidence = installed(text("web", f"  deny /x{number} w,\n"), replaceable=["web"])
            continue_program(child)
            assert child.stdout.readline() == "ready\n"
            require_held(removed(evidence), "web")
    until_removed(evidence)


def an_unfinished_exec_keeps_its_profile():
    """A profile stays during an unfinished execve. Until execve has finished, /proc shows the
    previous label.
    """
    program_file = Path("/tmp/program")  # noqa: S108
    shutil.copy("/bin/sleep", program_file)
    evidence = installed(text("web"))
    installed(text("other", f"  ptrace,\n  {program_file} px -> web,\n"))
    with program(UNFINISHED, str(program_file), label="other") as child:
        pid = int(child.first_line)
        assert current(pid) == "other (enforce)"
        for _ in range(2):
            held_by_hidden_reference(removed(evidence), "web")
        continue_program(child)
        pace.until(lambda: Path(f"/proc/{pid}/comm").read_text() == "program\n", "execve")
        assert current(pid) == "web (enforce)"
        require_held(removed(evidence), "web")
    until_removed(evidence)


def a_profile_of_stored_credentials_stays():
    """A profile stays while io_uring stores credentials that reference it."""
    secret = Path("/tmp/secret")  # noqa: S108
    secret.touch()
    rules = f"  deny {secret} r,\n"
    if (node_tools.SECURITY / "features/io_uring").exists():
        rules += "  io_uring,\n"
    evidence = installed(text("web", rules))
    installed(text("other", rules))
    with program(STORED_CREDENTIALS, "web", "other", str(secret)) as child:
        assert (current(child.pid), int(child.first_line)) == ("other (enforce)", -errno.EACCES)
        for _ in range(2):
            held_by_hidden_reference(removed(evidence), "web")
            continue_program(child)
            assert int(child.stdout.readline()) == -errno.EACCES
    # The kernel sometimes keeps the stored credentials after the process has exited.
    print(json.dumps({"note": f"after stored credentials: {type(removed(evidence)).__name__}"}))


def a_held_profile_enforces_the_same_and_stays_agent_owned():
    """If the agent cannot prove that a profile is unused, it leaves an equivalent policy with
    different bytes loaded, and still owns the profile.
    """
    rules = "  deny /tmp/forbidden w,\n  ^HAT { file, signal, deny /tmp/forbidden w, }\n"
    evidence = installed(text("strict", rules) + text("second", "  deny /tmp/forbidden w,\n"))
    with program(PENDING, "second") as child:
        require_held(removed(evidence), "strict", "second", pids={child.pid})
    attempt = (
        "import sys\n"
        "try:\n    open('/tmp/forbidden', 'w')\n    print('written')\n"
        "except PermissionError:\n    print('denied')\n"
    )
    for name in ("strict", "strict//HAT", "second"):
        with program(attempt, label=name) as child:
            assert child.first_line == "denied", name
    seen = kind().observe(sorted(evidence), []).profiles
    assert all(evidence[name] & seen[name].evidence for name in evidence), (evidence, seen)
    assert {fact.mode for fact in seen.values()} == {"enforce"}
    if RELEASES_HATS:
        until_removed(evidence)


def a_dropped_hat_is_removed_and_one_with_a_pending_exec_stays():
    """A hat that the new version omits is removed. A hat with a pending exec stays, because it
    keeps the raw data of the old version.
    """
    first = installed(text("hatted", "  ^A { file, }\n  ^B { file, }\n  ^C { file, }\n"))
    installed(text("hatted", "  ^A { file, }\n"), replaceable=["hatted", "hatted//A"])
    with program(PENDING, "hatted//C") as child:
        require_held(removed(first, ["hatted//C"]), "hatted//C", pids={child.pid})
    result = removed(first, ["hatted//B", "hatted//C"])
    assert (result == Removed()) == RELEASES_HATS, result
    assert {"hatted", "hatted//A"} <= set(loaded())


def an_open_file_of_a_confined_process_causes_no_wrong_removal():
    """A profile is not removed while another process has a file open that a confined process
    opened.
    """
    evidence = installed(text("file"))
    code = "f = open('/tmp/kept', 'w'); print(f.fileno(), flush=True); import time; time.sleep(600)"
    with program(code, label="file") as child:
        fd = os.open(f"/proc/{child.pid}/fd/{child.first_line}", os.O_RDONLY)
        os.close(fd)  # Only this process has the file open now.
        import ctypes

        kept = ctypes.CDLL(None).syscall(438, os.pidfd_open(child.pid), int(child.first_line), 0)
        assert kept > 0
    result = removed(evidence)
    assert isinstance(result, StillInUse), result
    os.close(kept)
    until_removed(evidence)


def a_dropped_key_with_a_pending_exec_is_held_by_one_pass_and_by_the_daemon():
    """While a process has a pending exec, both a single pass and the daemon keep the profile of a
    key that was removed.

    In rare cases, Linux 6.1 keeps an old version after the last process has exited. The test then
    requires the removal of another profile.
    """
    assert any(pending_exec_is_held_and_the_profile_is_removed(name) for name in ("web", "next"))


def a_chain_of_forks_keeps_its_profile():
    """The profile of a chain of processes is not removed while each process forks the next process
    and exits.
    """
    attack(FORKS)


def a_chain_of_threads_keeps_its_profile():
    """The profile of a chain of threads is not removed while each thread starts the next thread and
    ends.
    """
    attack(THREADS, "chain", label="")


def a_chain_whose_members_leave_the_profile_is_never_unused():
    """A profile is not removed while each of its threads or processes starts a successor and then
    leaves the profile.
    """
    installed(text("chain"))
    # This scenario makes fewer attempts, because each observation of the many processes takes long.
    for code, label, looks in ((LEAVING_FORKS, "chain", 3), (LEAVING_THREADS, "", CHAINS)):
        processes = kind().processes
        assert processes.shows_pending_exec() is SHOWS_PENDING_EXEC
        with program(code, "chain", label=label):
            uses = [processes.uses(["chain"])["chain"] for _ in range(looks)]
        names = [type(use).__name__ for use in uses]
        counted = {name: names.count(name) for name in sorted(set(names))}
        print(json.dumps({"note": f"leaving chain: {counted}"}))
        assert "Unused" not in counted, counted


def a_zombie_keeps_its_profile_until_it_is_reaped():
    """A profile stays until its last zombie is reaped, because a zombie looks like a hidden
    reference to the profile.
    """
    evidence = installed(text("zombie"))
    with program(ZOMBIE, label="zombie") as child:
        pace.until(lambda: state(child.pid) == "Z", "the leader's end")
        assert Path(f"/proc/{child.pid}/attr/current").read_text().strip() == "zombie (enforce)"
        assert kind().processes.uses(["zombie"]) == {"zombie": Unused()}
        held_by_hidden_reference(removed(evidence), "zombie")
    until_removed(evidence)


def a_live_thread_of_a_zombie_leader_keeps_its_profile():
    """A profile stays while a thread runs under it, even if the leader of the process is a
    zombie.
    """
    evidence = installed(text("leader"))
    with program(DEAD_LEADER, label="leader") as child:
        pace.until(lambda: state(child.pid) == "Z", "the leader's end")
        require_held(removed(evidence), "leader")
    until_removed(evidence)


def the_agent_detects_whether_the_kernel_shows_pending_execs():
    """The agent detects whether the kernel shows pending execs, and removes its temporary files."""
    before = node_tools.revision()
    assert kind().processes.shows_pending_exec() is SHOWS_PENDING_EXEC
    assert node_tools.revision() == before


def disuse_is_not_proven_without_raw_data():
    """With apparmor.export_binary=0, the agent proves disuse only on a kernel that shows pending
    execs.
    """
    evidence = installed(text("bare"))
    result = removed(evidence)
    assert (result == Removed()) == SHOWS_PENDING_EXEC, result
    if not SHOWS_PENDING_EXEC:
        assert isinstance(result.uses["bare"], UnknownUse), result
        assert "bare" in loaded()


SCENARIOS = [
    an_unused_profile_is_removed_at_once,
    a_profile_with_hats_and_children_is_removed_where_its_disuse_can_be_proven,
    a_pending_exec_keeps_its_profile,
    a_pending_exec_keeps_a_hat_and_a_stack,
    a_pending_exec_of_a_learning_profile_keeps_its_profile,
    a_pending_exec_of_an_earlier_version_keeps_the_profile,
    a_profile_that_was_updated_under_a_process_is_removed_after_its_end,
    an_unfinished_exec_keeps_its_profile,
    a_profile_of_stored_credentials_stays,
    a_held_profile_enforces_the_same_and_stays_agent_owned,
    a_dropped_hat_is_removed_and_one_with_a_pending_exec_stays,
    an_open_file_of_a_confined_process_causes_no_wrong_removal,
    a_dropped_key_with_a_pending_exec_is_held_by_one_pass_and_by_the_daemon,
    a_chain_of_forks_keeps_its_profile,
    a_chain_of_threads_keeps_its_profile,
    a_chain_whose_members_leave_the_profile_is_never_unused,
    a_zombie_keeps_its_profile_until_it_is_reaped,
    a_live_thread_of_a_zombie_leader_keeps_its_profile,
    the_agent_detects_whether_the_kernel_shows_pending_execs,
]
# On a kernel without raw data of policies, only this scenario runs.
WITHOUT_RAW_DATA = [disuse_is_not_proven_without_raw_data]


def main(scenarios):
    """Run these scenarios."""
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
    for scenario in scenarios:
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
    main(WITHOUT_RAW_DATA if sys.argv[1:] == ["without_raw_data"] else SCENARIOS)
