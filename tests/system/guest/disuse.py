"""Scenarios that attack the proof of disuse. They run as root in the virtual machine.

Each scenario is a function. `disuse.py` runs all scenarios, and prints one line of JSON for each of
them: {"scenario": name, "error": null or the reason}.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import daemon
import pace
import scenarios
from inspection import apparmor_backend, inspected, install
from scenarios import RELEASES_HATS, agent, clean, loaded, plain, rows, source

from agent.core.model import InUse, Profile, SourceKey, UnknownUse, Unused
from agent.core.ports import Installed, Removed, StillInUse
from agent.host.filesystem import Host

OPEN = "  file,\n  signal,\n  capability,\n  change_profile,\n"
CHAINS = int(os.environ.get("CHAINS", "12"))
SHOWS_PENDING_EXEC = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)

# Each of these programs prints a line when it is ready, and continues when it receives a line.
PENDING = """
import os, sys
open('/proc/thread-self/attr/exec', 'w').write('exec ' + sys.argv[1])
print('ready', flush=True)
sys.stdin.readline()
os.execvp('sleep', ['sleep', '600'])
"""
FORKED_PENDING = """
import os, sys
open('/proc/thread-self/attr/exec', 'w').write('exec ' + sys.argv[1])
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.readline()
os.execvp('sleep', ['sleep', '600'])
"""
THREAD_PENDING = """
import os, sys, threading
def run():
    open('/proc/thread-self/attr/exec', 'w').write('exec ' + sys.argv[1])
    print('ready', flush=True)
    sys.stdin.readline()
    os.execvp('sleep', ['sleep', '600'])
threading.Thread(target=run).start()
threading.Event().wait()
"""
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
FORKS = """
import os, sys, time
print('ready', flush=True)
end = time.monotonic() + 300
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    if 'current' in sys.argv and open('/proc/self/attr/current').read().strip() == 'unconfined':
        open('/tmp/unconfined', 'w').close()
        os._exit(1)
"""
THREADS = """
import os, sys, threading, time
sys.setswitchinterval(1e-4)
end = time.monotonic() + 300
def confined():
    open('/proc/thread-self/attr/current', 'w').write('changeprofile ' + sys.argv[1])
    print('ready', flush=True)
    step()
def step():
    if time.monotonic() < end:
        if open('/proc/thread-self/attr/current').read().strip() == 'unconfined':
            open('/tmp/unconfined', 'w').close()
            os._exit(1)
        threading.Thread(target=step).start()
threading.Thread(target=confined).start()
threading.Event().wait()
"""
LEAVING_FORKS = """
import os, time
print('ready', flush=True)
end = time.monotonic() + 300
while time.monotonic() < end:
    if os.fork():
        open('/proc/self/attr/current', 'w').write('changeprofile unconfined')
        time.sleep(1)
        os._exit(0)
"""
LEAVING_THREADS = """
import sys, threading, time
sys.setswitchinterval(1e-4)
end = time.monotonic() + 300
def change(profile):
    open('/proc/thread-self/attr/current', 'w').write('changeprofile ' + profile)
def first():
    change(sys.argv[1])
    print('ready', flush=True)
    step()
def step():
    if time.monotonic() < end:
        threading.Thread(target=step).start()
        change('unconfined')
        time.sleep(1)
threading.Thread(target=first).start()
threading.Event().wait()
"""
# The execve of a leader cannot finish before its traced thread has ended. By then, the kernel has
# already selected the new profile of the leader.
UNFINISHED = """
import ctypes, os, sys, threading, time
SEIZE, CONT, TRACE_EXIT, ALL = 0x4206, 7, 0x40, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
def ptrace(request, tid, data=0):
    arguments = ctypes.c_long(tid), ctypes.c_void_p(0), ctypes.c_void_p(data)
    assert libc.ptrace(ctypes.c_long(request), *arguments) == 0, os.strerror(ctypes.get_errno())
read, write = os.pipe()
started, start = os.pipe()
child = os.fork()
if child == 0:
    def run():
        os.write(write, str(threading.get_native_id()).encode())
        time.sleep(600)
    threading.Thread(target=run, daemon=True).start()
    os.read(started, 1)
    os.execv(sys.argv[1], [sys.argv[1], '600'])
tid = int(os.read(read, 20))
ptrace(SEIZE, tid, TRACE_EXIT)
os.write(start, b'x')
os.waitpid(tid, ALL)
print(child, flush=True)
sys.stdin.readline()
ptrace(CONT, tid)
os.waitpid(tid, ALL)
time.sleep(600)
"""
# io_uring stores the credentials of the process under the first profile. Then the process changes
# to the second profile. For each line of input, the program opens a file with the stored
# credentials and prints the result.
STORED_CREDENTIALS = """
import ctypes, mmap, os, struct, sys
SETUP, ENTER, REGISTER, PERSONALITY, OPENAT, GETEVENTS = 425, 426, 427, 9, 18, 1
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
def change(profile):
    open('/proc/self/attr/current', 'w').write('changeprofile ' + profile)
parameters = ctypes.create_string_buffer(120)
ring = call(SETUP, 4, parameters)
entries, results = struct.unpack_from('<II', parameters, 0)
head, tail, mask, _, _, _, array = struct.unpack_from('<7I', parameters, 40)
done, _, done_mask, _, _, done_array = struct.unpack_from('<6I', parameters, 80)
requests = mmap.mmap(ring, array + entries * 4, offset=0)
answers = mmap.mmap(ring, done_array + results * 16, offset=0x8000000)
table = mmap.mmap(ring, entries * 64, offset=0x10000000)
word = lambda memory, offset: struct.unpack_from('<I', memory, offset)[0]
change(sys.argv[1])
stored = call(REGISTER, ring, PERSONALITY, None, 0)
change(sys.argv[2])
path = ctypes.create_string_buffer(sys.argv[3].encode())
while True:
    last = word(requests, tail)
    index = last & word(requests, mask)
    request = struct.pack('<BBHiQQIIQHHiQQ', OPENAT, 0, 0, -100, 0, ctypes.addressof(path),
                          0, os.O_RDONLY, 0, 0, stored, 0, 0, 0)
    table[index * 64 : index * 64 + 64] = request
    struct.pack_into('<I', requests, array + index * 4, index)
    struct.pack_into('<I', requests, tail, last + 1)
    call(ENTER, ring, 1, 1, GETEVENTS, None, 0)
    first = word(answers, done)
    place = done_array + (first & word(answers, done_mask)) * 16
    print(struct.unpack_from('<Qi', answers, place)[1], flush=True)
    struct.pack_into('<I', answers, done, first + 1)
    if not sys.stdin.readline():
        break
"""
ZOMBIE = "import os; print('ready', flush=True); os._exit(0)"
DEAD_LEADER = """
import ctypes, threading, time
ready = threading.Event()
def run():
    ready.set()
    time.sleep(600)
threading.Thread(target=run).start()
ready.wait()
print('ready', flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


def kind():
    """Return the AppArmor backend with the agent's configuration."""
    return apparmor_backend(Host("/"), state_dir="/var/lib/profile-loader")


def text(name, rules="", flags=""):
    """Return the text of a profile that allows nearly everything."""
    return f"profile {name} {flags} {{\n{OPEN}{rules}}}\n"


def installed(source_text, replaceable=()):
    """Install a key, and return the evidence of the installed profiles."""
    agent_kind = kind()
    blob = SourceKey(profile_set="dir test", key="key", content=source_text.encode())
    (found,) = inspected(agent_kind, blob)
    assert isinstance(found, Profile), found
    done = install(agent_kind, found, replaceable)
    assert isinstance(done, Installed), done
    return done.evidence


def removed(evidence, names=None):
    """Try once to remove the named profiles of an installed key, by default all of them."""
    return kind().remove(names or sorted(evidence), evidence, require_unused=True)


def until_removed(evidence, seconds=30.0):
    """Repeat the removal until all profiles are removed."""
    limit = pace.Limit(seconds)
    while (done := removed(evidence)) != Removed():
        assert not limit.expired(), (done, str(limit))
    assert not loaded().keys() & evidence.keys(), loaded()


def state(pid):
    """Return the state letter of a process, for example Z for a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def program(code, *arguments, label=""):
    """Run a Python program, optionally under an AppArmor label. Yield its process when the program
    is ready.
    """
    start = (
        "import os, sys\n"
        "if sys.argv[1]: open('/proc/self/attr/exec', 'w').write('exec ' + sys.argv[1])\n"
        "os.execv(sys.executable, [sys.executable, '-S', '-c', *sys.argv[2:]])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", start, label, code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        child.said = child.stdout.readline().strip()
        assert child.said, "the program did not start"
        yield child
    finally:
        # All processes of a chain are in one session. The signal is repeated, because any of the
        # processes may be forking.
        for _ in range(1000):
            try:
                os.killpg(child.pid, 9)
            except ProcessLookupError:
                break
        child.wait()
        child.stdin.close()
        child.stdout.close()


def label_of(pid):
    """Wait until a process has started its next program, and return its label."""
    pace.until(lambda: "python" not in Path(f"/proc/{pid}/comm").read_text(), "execve")
    return current(pid)


def current(pid):
    """Return the label of a process."""
    return Path(f"/proc/{pid}/attr/current").read_text().strip()


def continue_program(child):
    """Make a waiting program call execve."""
    child.stdin.write("\n")
    child.stdin.flush()


def require_held(done, *names, pids=None):
    """Require that no profile was removed, and that the reason fits this kernel."""
    assert isinstance(done, StillInUse), done
    for use in done.uses.values():
        if SHOWS_PENDING_EXEC or pids is None:
            assert isinstance(use, InUse), done
        else:
            assert isinstance(use, UnknownUse), done
            assert "hides pending execs" in use.reason, use
    assert set(names) <= loaded().keys(), loaded()


# --- scenarios ------------------------------------------------------------------------------------


def an_unused_profile_is_removed_at_once():
    """Unused profiles of a key are removed separately and together, and the test measures the
    duration.
    """
    single = installed(text("single"))
    many = installed(
        text("many1", "  deny /x w,\n")
        + text("many2", "  deny /zzz/** w,\n  network inet,\n")
        + text("many3", "  deny /yy/{a,bb,ccc}* wk,\n", "flags=(complain)")
    )
    for evidence in (single, many):
        begin = time.monotonic()
        done = removed(evidence)
        print(json.dumps({"note": f"removal: {1000 * (time.monotonic() - begin):.0f} ms"}))
        assert done == Removed(), done
    assert loaded() == {}


def a_profile_with_hats_and_children_is_removed_where_its_disuse_can_be_proven():
    """A profile with hats and children is removed, except on Linux 6.1 and 7.2, which never release
    its first version.
    """
    evidence = installed(
        text("many1", "  ^HAT { file, signal, deny /x w, }\n  profile kid { file, deny /yy w, }\n")
    )
    for _ in range(2):
        done = removed(evidence)
        assert (done == Removed()) == RELEASES_HATS, done
    assert RELEASES_HATS or set(evidence) <= loaded().keys()


def a_pending_exec_keeps_its_profile():
    """A profile stays while an exec is pending in a leader, in an orphaned child or in a second
    thread.
    """
    for code in (PENDING, FORKED_PENDING, THREAD_PENDING):
        evidence = installed(text("pend"))
        with program(code, "pend") as child:
            pid = int(child.said) if child.said.isdigit() else child.pid
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

    The kernel keeps the learning profile even after its program has ended.
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
        label = label_of(child.said)
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
    """The proof of disuse replaces the profile, and the pending program then starts under the
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
    """A profile that was updated while a process ran is removed after the process ends. Like a
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
    """A profile stays during an unfinished execve. Until execve ends, /proc shows the previous
    label.
    """
    program_file = Path("/tmp/program")  # noqa: S108
    shutil.copy("/bin/sleep", program_file)
    evidence = installed(text("web"))
    installed(text("other", f"  ptrace,\n  {program_file} px -> web,\n"))
    with program(UNFINISHED, str(program_file), label="other") as child:
        pid = int(child.said)
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
    if (scenarios.SECURITY / "features/io_uring").exists():
        rules += "  io_uring,\n"
    evidence = installed(text("web", rules))
    installed(text("other", rules))
    with program(STORED_CREDENTIALS, "web", "other", str(secret)) as child:
        assert (current(child.pid), int(child.said)) == ("other (enforce)", -errno.EACCES)
        for _ in range(2):
            held_by_hidden_reference(removed(evidence), "web")
            continue_program(child)
            assert int(child.stdout.readline()) == -errno.EACCES
    # The kernel sometimes keeps the stored credentials after the process has ended.
    print(json.dumps({"note": f"after stored credentials: {type(removed(evidence)).__name__}"}))


def held_by_hidden_reference(done, name):
    """Require that a profile was not removed, although no thread in /proc shows its name."""
    assert isinstance(done, StillInUse), done
    assert isinstance(done.uses[name], UnknownUse), done
    assert name in loaded()


def a_held_profile_enforces_the_same_and_stays_agent_owned():
    """After a failed proof, the profile has an equivalent policy with different bytes, and stays
    agent-owned.
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
            assert child.said == "denied", name
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
    done = removed(first, ["hatted//B", "hatted//C"])
    assert (done == Removed()) == RELEASES_HATS, done
    assert {"hatted", "hatted//A"} <= set(loaded())


def an_open_file_of_a_confined_process_causes_no_wrong_removal():
    """A profile is not removed while another process has a file open that a confined process
    opened.
    """
    evidence = installed(text("file"))
    code = "f = open('/tmp/kept', 'w'); print(f.fileno(), flush=True); import time; time.sleep(600)"
    with program(code, label="file") as child:
        fd = os.open(f"/proc/{child.pid}/fd/{child.said}", os.O_RDONLY)
        os.close(fd)  # Only this process has the file open now.
        import ctypes

        kept = ctypes.CDLL(None).syscall(438, os.pidfd_open(child.pid), int(child.said), 0)
        assert kept > 0
    done = removed(evidence)
    assert isinstance(done, StillInUse), done
    os.close(kept)
    until_removed(evidence)


def a_dropped_key_with_a_pending_exec_is_held_by_one_pass_and_by_the_daemon():
    """While a process has a pending exec, one pass and the daemon both hold the profile of the
    dropped key.

    In rare cases, Linux 6.1 keeps an old version after the last process has ended. The test then
    requires the removal of another profile.
    """
    assert any(pending_exec_is_held_and_the_profile_is_removed(name) for name in ("web", "next"))


def pending_exec_is_held_and_the_profile_is_removed(name):
    """Check that a profile is held for a pending exec. Return whether it is removed afterwards."""
    source(**{name: plain(name)}, other=plain("other"))
    agent()
    with program(PENDING, name) as child:
        source(other=plain("other"))
        report, _ = agent()
        why = "in_use" if SHOWS_PENDING_EXEC else "use_unknown"
        assert rows(report)[name][0] == "held", (why, rows(report))
        codes = [one["code"] for one in report["profiles"] for one in one["problems"]]
        assert why in codes, report
        with daemon.Daemon("--resync=3s"):
            daemon.until(lambda: daemon.ready() and daemon.metric(PASSES) >= 3, 120)
            assert name in loaded()
            continue_program(child)
            assert label_of(child.pid) == f"{name} (enforce)"
            daemon.until(lambda: daemon.metric('profile_loader_problems{code="in_use"}') == 1)
            child.kill()
            child.wait()
            limit = pace.Limit(30.0)
            while name in loaded():
                if limit.expired():
                    assert daemon.metric('profile_loader_problems{code="use_unknown"}') == 1
                    return False
                time.sleep(0.05)
            return True


PASSES = 'profile_loader_passes_total{result="converged"}'


def a_chain_of_forks_keeps_its_profile():
    """The profile of a chain of processes is not removed while each process forks the next process
    and ends.
    """
    _attack(FORKS)


def a_chain_of_threads_keeps_its_profile():
    """The profile of a chain of threads is not removed while each thread starts the next thread and
    ends.
    """
    _attack(THREADS, "chain", label="")


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


def _attack(code, *arguments, label="chain"):
    """Try to remove the profile of a running chain, at random moments."""
    unconfined = Path("/tmp/unconfined")  # noqa: S108
    unconfined.unlink(missing_ok=True)
    seed = int(os.environ.get("SEED", "13"))
    moments = random.Random(seed)  # noqa: S311
    answers = []
    evidence = installed(text("chain"))
    with program(code, *(arguments or ("current",)), label=label):
        for _ in range(CHAINS):
            time.sleep(moments.random() / 20)
            done = removed(evidence)
            assert isinstance(done, StillInUse), (done, seed)
            answers.append(type(done.uses["chain"]).__name__)
            assert "chain" in loaded()
            assert not unconfined.exists()
    counted = {name: answers.count(name) for name in sorted(set(answers))}
    print(json.dumps({"note": f"chain: {len(answers)} attempts: {counted}"}))
    assert counted.get("InUse", 0) > CHAINS // 2, counted
    until_removed(evidence)


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
    before = scenarios.revision()
    assert kind().processes.shows_pending_exec() is SHOWS_PENDING_EXEC
    assert scenarios.revision() == before


def disuse_is_not_proven_without_raw_data():
    """With apparmor.export_binary=0, the agent proves disuse only on a kernel that shows pending
    execs.
    """
    evidence = installed(text("bare"))
    done = removed(evidence)
    assert (done == Removed()) == SHOWS_PENDING_EXEC, done
    if not SHOWS_PENDING_EXEC:
        assert isinstance(done.uses["bare"], UnknownUse), done
        assert "bare" in loaded()


SCENARIOS = [
    one
    for name, one in list(globals().items())
    if callable(one)
    and one.__doc__
    and getattr(one, "__module__", "") == __name__
    and name.split("_")[0] in {"a", "an", "the"}
]


def main(found):
    """Run all scenarios, or only the named ones."""
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
    named = [globals()[name] for name in sys.argv[1:] if name in globals()]
    for scenario in named or found:
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
    main(SCENARIOS)
