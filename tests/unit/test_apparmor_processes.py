"""Tests of agent.backends.apparmor.processes, with ordinary files in place of /proc."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.backends.apparmor import processes
from agent.core.model import InUse, UnknownUse, Unused
from agent.host.filesystem import Host
from tests.json_object import JsonObject

SHOWN = {"shows_pending_exec": lambda _: True}


def write(root: Path, path: str, text: str) -> None:
    """Write a file in a host root."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def own_of(root: Path, *, user: str = "user:[4026531837]", mounts: str = "") -> Path:
    """Create the /proc directories of the agent and of the process with the PID 1."""
    own = root / "own"
    (own / "ns").mkdir(parents=True)
    (own / "ns/user").symlink_to(user)
    write(root, "own/mountinfo", mounts)
    return own


def host_of(
    root: Path,
    *,
    initial: bool = True,
    host: "Changing | None" = None,
    shown: bool = True,
    **own: str,
) -> processes.Processes:
    """Create a host with one process, and return the observer of its processes."""
    place = own_of(root, **own)
    thread(root, 1, 1, "unconfined")
    (root / "proc/1/ns").mkdir()
    (root / "proc/1/ns/pid").symlink_to("pid:[4026531836]" if initial else "pid:[4026532000]")
    return processes.Processes(host or Host(root), own=place, shows_pending_exec=lambda _: shown)


def thread(
    root: Path, pid: int, tid: int, label: str, *, file: str = "attr/apparmor/current"
) -> None:
    """Create a thread with a label."""
    for place in {f"/proc/{pid}/task/{tid}", f"/proc/{pid}"}:
        write(root, f"{place}/stat", stat(tid, "S"))
    write(root, f"/proc/{pid}/task/{tid}/{file}", f"{label}\n")


def stat(tid: int, state: str, start: int = 7) -> str:
    """Return the content of a stat file."""
    return f"{tid} (x) y) {state} " + " ".join(["0"] * 18) + f" {start} 0\n"


def bury(root: Path, pid: int, state: str) -> None:
    """Let the leader of a process end. The kernel still shows the label of the leader."""
    write(root, f"/proc/{pid}/task/{pid}/stat", stat(pid, state))


def end(root: Path, pid: int) -> None:
    """End a process."""
    shutil.rmtree(root / f"proc/{pid}")


class Changing(Host):
    """A host that runs an action right after the agent has listed a directory."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.after: dict[
            str, Callable[[], None]
        ] = {}  # path -> the action that runs after each listing of the path
        self.listed: list[str] = []

    def names(self, path: str) -> list[str]:
        result = super().names(path)
        self.listed.append(path)
        self.after.get(path, lambda: None)()
        return result


@pytest.mark.parametrize(
    ("label", "used"),
    [
        ("web (enforce)", {"web"}),
        ("web//hat (complain)", {"web", "web//hat"}),
        ("web//kid//deep (enforce)", {"web", "web//kid", "web//kid//deep"}),
        ("other//&web (mixed)", {"other", "web"}),
        (":ns://x//&web (enforce)", {"web"}),
        ("unconfined", set()),
        ("webs (enforce)", set()),
        (":ns:web (enforce)", set()),
    ],
)
def test_a_label_is_in_use_with_its_parents_and_its_stacked_parts(
    tmp_path: Path, label: str, used: set[str]
) -> None:
    """A hat in use also counts as a use of its parents. A stacked label counts as a use of each
    profile in the stack.
    """
    host = host_of(tmp_path)
    thread(tmp_path, 20, 20, "unconfined")
    thread(tmp_path, 20, 21, label, file="attr/current")
    names = {"web", "web//hat", "web//kid", "web//kid//deep", "other", "ns"}
    uses = host.uses(names)
    assert {name for name, use in uses.items() if use == InUse(pids=(20,))} == used
    assert {name for name, use in uses.items() if use == Unused()} == names - used


@pytest.mark.parametrize("shown", [True, False])
def test_a_pending_exec_counts_as_use_if_the_kernel_shows_it(tmp_path: Path, shown: bool) -> None:
    """A profile counts as in use if a runtime has written its name to attr/exec."""
    host = host_of(tmp_path, shown=shown)
    thread(tmp_path, 20, 20, "unconfined")
    thread(tmp_path, 20, 20, "web", file="attr/apparmor/exec")
    assert host.uses(["web"]) == {"web": InUse(pids=(20,)) if shown else Unused()}


def test_the_kernel_is_tested_for_pending_execs_once(tmp_path: Path) -> None:
    """The agent tests only once whether the kernel shows pending execs."""
    answers = iter([True, False])
    look = processes.Processes(
        Host(tmp_path), own=Path("/proc/self"), shows_pending_exec=lambda _: next(answers)
    )
    assert [look.shows_pending_exec(), look.shows_pending_exec()] == [True, True]


@pytest.mark.parametrize("options", [{"initial": False}, {"user": "user:[4026532001]"}])
def test_from_another_namespace_disuse_is_not_proven(tmp_path: Path, options: JsonObject) -> None:
    """An agent outside the initial PID and user namespaces proves no disuse, because it does not
    see every process.
    """
    use = host_of(tmp_path, **options).uses(["web"])["web"]
    assert isinstance(use, UnknownUse)


def test_a_procfs_that_hides_processes_is_no_proof(tmp_path: Path) -> None:
    """A procfs with the option hidepid proves no disuse, because hidden processes may exist."""
    device = tmp_path.stat().st_dev
    line = f"1 1 {os.major(device)}:{os.minor(device)} / /proc rw - proc proc rw,hidepid=invisible"
    use = host_of(tmp_path, mounts=line).uses(["web"])["web"]
    assert isinstance(use, UnknownUse)


def test_the_use_is_unknown_if_a_live_thread_cannot_be_read(tmp_path: Path) -> None:
    """If the label of a live thread cannot be read, the use of every profile is unknown."""
    host = host_of(tmp_path)
    write(tmp_path, "/proc/20/stat", stat(20, "S"))
    write(tmp_path, "/proc/20/task/20/stat", stat(20, "S"))
    assert isinstance(host.uses(["web"])["web"], UnknownUse)


def test_a_thread_that_ended_during_the_read_has_no_effect(tmp_path: Path) -> None:
    """If a thread exits while its directory is read, the result does not change."""
    host = host_of(tmp_path)
    (tmp_path / "proc/20/task/20").mkdir(parents=True)
    assert host.uses(["web"]) == {"web": Unused()}


def test_without_a_procfs_disuse_is_not_proven(tmp_path: Path) -> None:
    """If the host root has no /proc, the agent proves no disuse."""
    look = processes.Processes(Host(tmp_path), own=Path("/proc/self"), **SHOWN)
    assert isinstance(look.uses(["web"])["web"], UnknownUse)


def test_the_last_process_of_a_chain_of_forks_is_found(tmp_path: Path) -> None:
    """In a chain of processes, each process forks the next process and exits. The agent finds the
    last process of the chain.
    """
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "web (enforce)")
    chain = [20]

    def fork() -> None:
        if chain[-1] < 30:
            end(tmp_path, chain[-1])
            chain.append(chain[-1] + 1)
            thread(tmp_path, chain[-1], chain[-1], "web (enforce)")

    host.after["/proc"] = fork
    assert look.uses(["web"]) == {"web": InUse(pids=(30,))}


def test_an_endless_chain_of_forks_is_no_proof(tmp_path: Path) -> None:
    """The number of listings is limited, so the agent cannot prove that a profile is unused while
    an endless chain of forks runs. The agent reports all uses that it has found so far.
    """
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 5, 5, "other (enforce)")
    thread(tmp_path, 20, 20, "web (enforce)")
    chain = [20]

    def fork() -> None:
        end(tmp_path, chain[-1])
        chain.append(chain[-1] + 1)
        thread(tmp_path, chain[-1], chain[-1], "web (enforce)")

    host.after["/proc"] = fork
    uses = look.uses(["web", "other"])
    assert uses["other"] == InUse(pids=(5,))
    assert isinstance(uses["web"], UnknownUse)
    assert host.listed.count("/proc") == processes.LISTINGS


def test_new_unconfined_processes_delay_the_proof(tmp_path: Path) -> None:
    """On a busy node, the agent repeats the listing of processes until no new process appears."""
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)

    def start() -> None:
        number = host.listed.count("/proc")
        if number % 20:
            thread(tmp_path, 100 + number, 100 + number, "unconfined")

    host.after["/proc"] = start
    assert look.uses(["web"]) == {"web": Unused()}


def test_a_child_of_a_process_that_left_the_profile_is_found(tmp_path: Path) -> None:
    """If a process forks after the listing and leaves its profile before the agent reads its label,
    its child is found.
    """
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "web (enforce)")
    chain = [20]

    def fork() -> None:
        if chain[-1] < 30:
            thread(tmp_path, chain[-1], chain[-1], "unconfined")
            chain.append(chain[-1] + 1)
            thread(tmp_path, chain[-1], chain[-1], "web (enforce)")

    host.after["/proc"] = fork
    assert look.uses(["web"]) == {"web": InUse(pids=(30,))}


def test_a_thread_whose_creator_left_the_profile_is_found(tmp_path: Path) -> None:
    """If a thread starts another thread after the listing and leaves its profile, the new thread is
    found.
    """
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "unconfined")
    thread(tmp_path, 20, 21, "web (enforce)")
    chain = [21]

    def start() -> None:
        if chain[-1] < 30:
            thread(tmp_path, 20, chain[-1], "unconfined")
            chain.append(chain[-1] + 1)
            thread(tmp_path, 20, chain[-1], "web (enforce)")

    host.after["/proc/20/task"] = start
    assert look.uses(["web"]) == {"web": InUse(pids=(20,))}


def test_an_endless_chain_of_threads_is_no_proof(tmp_path: Path) -> None:
    """The number of listings of the threads of a process is limited, so the agent cannot prove that
    a profile is unused while an endless chain of threads runs.
    """
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "unconfined")

    def start() -> None:
        new = 21 + host.listed.count("/proc/20/task")
        thread(tmp_path, 20, new, "unconfined")

    host.after["/proc/20/task"] = start
    assert isinstance(look.uses(["web"])["web"], UnknownUse)
    assert host.listed.count("/proc/20/task") == processes.LISTINGS


def test_a_chain_of_threads_that_ends_in_execve_is_found(tmp_path: Path) -> None:
    """If a thread calls execve, it takes over the ID of the leader. The agent then reads the leader
    again.
    """
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "unconfined")
    thread(tmp_path, 20, 21, "web (enforce)")

    def execve() -> None:
        shutil.rmtree(tmp_path / "proc/20/task/21", ignore_errors=True)
        if host.listed.count("/proc/20/task") == 2:
            thread(tmp_path, 20, 20, "web (enforce)")

    host.after["/proc/20/task"] = execve
    assert look.uses(["web"]) == {"web": InUse(pids=(20,))}


def test_a_process_with_a_reused_id_is_read_again(tmp_path: Path) -> None:
    """If a chain of forks reuses a PID, the agent also reads the new process."""
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "unconfined")

    def come_round() -> None:
        if host.listed.count("/proc") == 1:
            host.after["/proc/1/task"] = reuse

    def reuse() -> None:
        thread(tmp_path, 20, 20, "web (enforce)")
        write(tmp_path, "/proc/20/stat", stat(20, "S", start=8))

    host.after["/proc"] = come_round
    assert look.uses(["web"]) == {"web": InUse(pids=(20,))}


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_zombie_does_not_use_a_profile(tmp_path: Path, state: str) -> None:
    """A zombie does not use a profile, although the kernel still shows its label."""
    host = host_of(tmp_path)
    thread(tmp_path, 20, 20, "web (enforce)")
    bury(tmp_path, 20, state)
    assert host.uses(["web"]) == {"web": Unused()}


def test_a_thread_of_a_zombie_leader_uses_its_profile(tmp_path: Path) -> None:
    """If the leader of a process is a zombie, the other threads of the process still use their
    profiles.
    """
    host = host_of(tmp_path)
    thread(tmp_path, 20, 20, "web (enforce)")
    bury(tmp_path, 20, "Z")
    thread(tmp_path, 20, 21, "web (enforce)")
    assert host.uses(["web"]) == {"web": InUse(pids=(20,))}


def test_a_child_of_a_process_that_became_a_zombie_is_found(tmp_path: Path) -> None:
    """If a process forks after the listing and then becomes a zombie, its child is found."""
    host = Changing(tmp_path)
    look = host_of(tmp_path, host=host)
    thread(tmp_path, 20, 20, "web (enforce)")

    def fork() -> None:
        bury(tmp_path, 20, "Z")
        thread(tmp_path, 21, 21, "web (enforce)")

    host.after["/proc"] = fork
    assert look.uses(["web"]) == {"web": InUse(pids=(21,))}
