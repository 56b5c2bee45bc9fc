"""Tests of the confinement tracker, with ordinary files in place of /proc."""

import json
import shutil
from pathlib import Path

import pytest

from agent.backends.apparmor.confinement_record import (
    FILE,
    RECORDED_THREADS,
    encoded,
)
from agent.backends.apparmor.confinement_state import ConfinementState
from agent.backends.apparmor.confinement_tracker import ConfinementTracker
from agent.backends.apparmor.thread_reader import Thread
from agent.host.filesystem import Host

CONTAINER = "ab" * 32
SHORT = f"container {CONTAINER[:12]}"
UID = "0f1e2d3c-aaaa-bbbb-cccc-0123456789ab"
SYSTEMD = f"kubepods-besteffort-pod{UID.replace('-', '_')}.slice"
NAMES = ["web", "web//HAT", "other"]
STATE = "/state"


class Node:
    """A host root with files that simulate processes and loaded profiles."""

    def __init__(self, root: Path) -> None:
        self.root = root / "proc"
        self.state = root / "state"
        self.directories = {name: f"{name}.1" for name in NAMES}
        self.boot("one")
        self.host = Host(root)

    def boot(self, boot_id: str) -> None:
        """Set the boot ID of the host."""
        file = self.root / "sys/kernel/random/boot_id"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{boot_id}\n")

    def thread(
        self, pid: int, label: str, *, tid: int = 0, start: int = 7, state: str = "S"
    ) -> None:
        """Create a thread, or change an existing thread."""
        folder = self.root / str(pid) / "task" / str(tid or pid)
        (folder / "attr").mkdir(parents=True, exist_ok=True)
        (folder / "attr/current").write_text(f"{label}\n")
        fields = " ".join([state, *["0"] * 18, str(start)])
        (folder / "stat").write_text(f"{pid} (a) b) {fields} 0\n")
        (self.root / f"{pid}/cgroup").write_text(f"0::/kubepods/cri-containerd-{CONTAINER}.scope\n")

    def end(self, pid: int) -> None:
        """End a process."""
        shutil.rmtree(self.root / str(pid))

    def tracker(self) -> ConfinementTracker:
        """Return the tracker of an agent that has just started."""
        return ConfinementTracker(
            self.host,
            state_dir=STATE,
            find_directories=lambda names: {
                name: directory for name, directory in self.directories.items() if name in names
            },
        )

    def record(self) -> Path:
        """Return the path of the tracker's record."""
        return self.state / FILE


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with three processes: under the profile web, under a hat of web, and under the profile
    other.
    """
    node = Node(tmp_path)
    node.thread(10, "web (enforce)")
    node.thread(11, "web//HAT (complain)")
    node.thread(12, "other (enforce)")
    node.thread(13, "unconfined")
    return node


@pytest.fixture
def tracker(node: Node) -> ConfinementTracker:
    """A tracker that has observed this node once."""
    return observed(node)


def observed(node: Node, names: list[str] = NAMES) -> ConfinementTracker:
    """Return the tracker of a new agent, after one observation of the node."""
    tracker = node.tracker()
    tracker.observe(names)
    return tracker


def pids(tracker: ConfinementTracker) -> list[tuple[str, str]]:
    """Return the profile and the list of processes from each finding."""
    return [
        (finding.location, finding.message.partition("pid ")[2].partition(".")[0])
        for finding in tracker.findings()
    ]


def test_threads_that_lost_a_removed_profile_are_reported_until_they_end(
    tracker: ConfinementTracker, node: Node
) -> None:
    """A finding lists each process with its container.

    If a process runs in a hat, the finding is about the parent of the hat.
    """
    for pid in (10, 11):
        node.thread(pid, "unconfined")
    tracker.record_removals(["web"])
    assert pids(tracker) == [("web", f"10 ({SHORT}), 11 ({SHORT})")]
    assert tracker.count() == 2
    node.end(10)
    assert pids(tracker) == [("web", f"11 ({SHORT})")]
    node.thread(11, "unconfined", start=8)  # A different process has this PID now.
    assert (pids(tracker), tracker.count()) == ([], 0)


def test_a_zombie_is_not_reported(tracker: ConfinementTracker, node: Node) -> None:
    """A zombie is not reported, because it never runs code again."""
    node.thread(12, "unconfined")
    tracker.record_removals(["other"])
    assert len(tracker.findings()) == 1
    node.thread(12, "unconfined", state="Z")
    assert tracker.findings() == ()


def test_a_thread_that_is_not_the_leader_is_reported(node: Node) -> None:
    """A second thread is reported even if the leader was never confined, or runs under another
    profile.
    """
    node.thread(20, "unconfined")
    node.thread(20, "web (enforce)", tid=21)
    node.thread(30, "other (enforce)")
    node.thread(30, "web (enforce)", tid=31)
    node.end(10)
    node.end(11)
    tracker = observed(node)
    node.thread(20, "unconfined", tid=21)
    node.thread(30, "unconfined", tid=31)
    tracker.record_removals(["web"])
    assert pids(tracker) == [("web", f"20 ({SHORT}), 30 ({SHORT})")]


def test_a_live_thread_of_an_ended_leader_is_reported(node: Node) -> None:
    """A live thread is reported even if its leader has exited and looks like a zombie."""
    node.thread(20, "web (enforce)", state="Z")
    node.thread(20, "web (enforce)", tid=21)
    tracker = observed(node)
    node.thread(20, "unconfined", state="Z")
    node.thread(20, "unconfined", tid=21)
    tracker.record_removals(["web"])
    assert pids(tracker) == [("web", f"20 ({SHORT})")]


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        ("web//&z (enforce)", "unconfined//&z (mixed)", True),
        ("web//&z (enforce)", "z (enforce)", True),
        ("web//&z (enforce)", "unconfined", True),
        ("web//HAT//&z (enforce)", "unconfined//&z (mixed)", True),
        ("web//&z (enforce)", "web//&z (enforce)", False),
        ("web (enforce)", "web (complain)", False),
        # The kernel allows such a change because of a change_profile rule or an exec rule.
        ("web (enforce)", "next (enforce)", False),
        ("web (enforce)", "web//&next (enforce)", False),
    ],
)
def test_a_removed_profile_of_a_stacked_label_is_reported(
    node: Node, before: str, now: str, lost: bool
) -> None:
    """If one profile of a stacked label is removed, the thread is reported. A thread that changed
    to another profile is not.
    """
    node.thread(20, before)
    tracker = observed(node)
    node.thread(20, now)
    tracker.record_removals(["web"])
    assert pids(tracker) == ([("web", f"20 ({SHORT})")] if lost else [])


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        (f"kubepods/besteffort/pod{UID}/{CONTAINER}", f"pod {UID}, {SHORT}"),
        (f"../../pod{UID}/{CONTAINER}", f"pod {UID}, {SHORT}"),
        (f"kubepods.slice/{SYSTEMD}/cri-containerd-{CONTAINER}.scope", f"pod {UID}, {SHORT}"),
        (f"kubepods/pod{UID.replace('-', '')}/{CONTAINER}", f"pod {UID.replace('-', '')}, {SHORT}"),
        (f"machine.slice/libpod-{CONTAINER}.scope", SHORT),
        ("system.slice/nginx.service", ""),
    ],
)
def test_the_pod_is_reported_where_the_cgroup_has_its_uid(
    tracker: ConfinementTracker, node: Node, path: str, owner: str
) -> None:
    """A finding contains the UID of the pod if the name of the cgroup contains the UID, as with
    both cgroup drivers of the kubelet.
    """
    node.thread(12, "unconfined")
    (node.root / "12/cgroup").write_text(f"0::/{path}\n")
    tracker.record_removals(["other"])
    assert pids(tracker) == [("other", f"12 ({owner})" if owner else "12")]


def test_a_thread_that_is_still_confined_is_not_reported(tracker: ConfinementTracker) -> None:
    """A process that still runs under its profile is not reported, even if the profile was removed
    and loaded again.
    """
    tracker.record_removals(["web", "other"])
    assert (pids(tracker), tracker.count()) == ([], 0)


def test_a_removal_during_an_observation_is_not_missed(
    tracker: ConfinementTracker, node: Node
) -> None:
    """If a profile is removed during an observation, its processes are reported, because the
    previous observation recorded them.
    """
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    tracker.record_removals(["other"])
    assert [name for name, _ in pids(tracker)] == ["other"]


def test_a_thread_that_was_confined_three_observations_ago_is_forgotten(
    tracker: ConfinementTracker, node: Node
) -> None:
    """If a process left its profile before the last observations, a later removal of the profile is
    not reported.
    """
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    tracker.observe(NAMES)
    tracker.record_removals(["other"])
    assert pids(tracker) == []


def test_the_names_in_use_are_those_of_the_last_observation(
    tracker: ConfinementTracker, node: Node
) -> None:
    """The names in use come from the last observation. A hat that is in use makes its parent in
    use.
    """
    assert set(NAMES) <= tracker.names_in_use()
    for pid in (11, 12):
        node.end(pid)
    tracker.observe(NAMES)
    assert tracker.names_in_use() & set(NAMES) == {"web"}


def test_names_of_other_programs_are_not_tracked(node: Node) -> None:
    """The tracker records only processes under agent-owned profiles."""
    node.thread(10, "cri-containerd.apparmor.d (enforce)")
    tracker = observed(node, ["web"])
    node.thread(10, "unconfined")
    tracker.record_removals(["web", "cri-containerd.apparmor.d"])
    assert pids(tracker) == []


def test_a_procfs_that_cannot_be_read_changes_nothing(
    tracker: ConfinementTracker, node: Node, tmp_path: Path
) -> None:
    """If /proc cannot be read, the tracker keeps its findings, because the threads may
    still run.
    """
    node.thread(12, "unconfined")
    node.root.rename(tmp_path / "away")
    tracker.observe(["other"])
    tracker.observe(["other"])
    (tmp_path / "away").rename(node.root)
    tracker.record_removals(["other"])
    assert [name for name, _ in pids(tracker)] == ["other"]


def test_without_names_no_process_is_read_and_nothing_is_written(
    node: Node, tmp_path: Path
) -> None:
    """If the agent owns no AppArmor profile, the tracker reads no process and writes no file."""

    class UnlistableHost(Host):
        def names(self, path: str) -> list[str]:
            raise AssertionError(path)

    tracker = ConfinementTracker(
        UnlistableHost(tmp_path), state_dir=STATE, find_directories=lambda _: {}
    )
    tracker.observe([])
    tracker.observe_before_removal([])
    tracker.record_removals(["web"])
    assert tracker.findings() == ()
    assert not node.state.exists()


def test_threads_of_a_profile_that_was_loaded_again_are_reported(
    tracker: ConfinementTracker, node: Node
) -> None:
    """If another program removes a profile and loads it again between two passes, the unconfined
    threads are reported.
    """
    node.thread(12, "unconfined")
    tracker.record_removals([])
    assert pids(tracker) == []
    node.directories["other"] = "other.2"
    tracker.record_removals([])
    assert [name for name, _ in pids(tracker)] == ["other"]


def test_a_thread_that_left_a_profile_by_itself_is_not_reported_after_a_removal(
    tracker: ConfinementTracker, node: Node
) -> None:
    """If a thread leaves its profile right before the agent removes the profile, the thread is not
    reported.
    """
    node.thread(12, "unconfined")
    tracker.observe_before_removal(["other"])
    tracker.record_removals(["other"])
    assert (pids(tracker), pids(node.tracker())) == ([], [])


def test_a_thread_that_left_one_profile_of_a_stack_can_still_lose_the_other_profile(
    node: Node,
) -> None:
    """If a thread leaves one profile of a stack, the tracker still reports the loss of the other
    profile.
    """
    node.thread(12, "web//&other (enforce)")
    tracker = observed(node)
    node.thread(12, "web (enforce)")
    tracker.observe_before_removal(["other"])
    node.thread(12, "unconfined")
    tracker.record_removals(["web", "other"])
    assert [name for name, _ in pids(tracker)] == ["web"]


def test_a_thread_that_started_after_the_last_observation_can_lose_its_confinement(
    tracker: ConfinementTracker, node: Node
) -> None:
    """A thread that started after the last observation is reported, because the tracker observes
    again before the agent removes a profile.
    """
    node.thread(20, "other (enforce)")
    tracker.observe_before_removal(["other"])
    node.thread(20, "unconfined")
    tracker.record_removals(["other"])
    assert pids(tracker) == [("other", f"20 ({SHORT})")]


def test_lost_confinement_before_a_removal_is_reported(
    tracker: ConfinementTracker, node: Node
) -> None:
    """If another program removed a profile and loaded it again before the agent removes it, the
    unconfined threads are reported.
    """
    node.thread(12, "unconfined")
    node.directories["other"] = "other.2"
    tracker.observe_before_removal(["other"])
    assert pids(tracker) == [("other", f"12 ({SHORT})")]


# --- the record -----------------------------------------------------------------------------------


def test_lost_confinement_is_still_reported_after_a_restart(
    tracker: ConfinementTracker, node: Node
) -> None:
    """If the agent restarts, the finding stays until the process exits."""
    node.thread(12, "unconfined")
    tracker.record_removals(["other"])
    tracker.observe(NAMES)
    again = node.tracker()
    again.record_removals([])
    again.observe(NAMES)
    assert pids(again) == [("other", f"12 ({SHORT})")]
    node.end(12)
    assert pids(again) == []


@pytest.mark.parametrize("missing", [["other"], []])
def test_lost_confinement_while_no_agent_ran_is_reported(
    tracker: ConfinementTracker, node: Node, missing: list[str]
) -> None:
    """A thread is reported even if its profile was removed while no agent ran."""
    node.thread(12, "unconfined")
    if not missing:
        node.directories["other"] = "other.2"
    again = node.tracker()
    again.record_removals(missing)
    assert pids(again) == [("other", f"12 ({SHORT})")]


def test_a_removal_during_the_last_observation_before_a_restart_is_reported(
    tracker: ConfinementTracker, node: Node
) -> None:
    """Unconfined threads are reported even if the agent is killed right after the observation that
    found them.
    """
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    again = node.tracker()
    again.record_removals(["other"])
    assert pids(again) == [("other", f"12 ({SHORT})")]


def test_a_label_longer_than_a_page_is_read_completely(node: Node) -> None:
    """The tracker reads a label completely, even if the label is longer than a page of memory."""
    before = "//&".join([*(f"{number:0250}" for number in range(20)), "web"])
    node.thread(12, f"{before} (enforce)")
    tracker = observed(node, ["web"])
    node.thread(12, before.removesuffix("web") + "unconfined")
    tracker.record_removals(["web"])
    assert pids(tracker) == [("web", f"12 ({SHORT})")]


def test_the_record_of_another_boot_is_ignored(tracker: ConfinementTracker, node: Node) -> None:
    """The tracker ignores a record from another boot, because the kernel uses the same PIDs
    again.
    """
    node.thread(12, "unconfined")
    node.boot("two")
    again = node.tracker()
    again.record_removals(["other"])
    assert pids(again) == []


def test_an_unchanged_observation_writes_nothing(tracker: ConfinementTracker, node: Node) -> None:
    """An observation without changes does not write the record."""
    before = node.record().stat()
    tracker.record_removals([])
    tracker.observe(NAMES)
    node.tracker().observe(NAMES)
    assert node.record().stat() == before


def test_a_record_is_readable_by_root_alone(tracker: ConfinementTracker, node: Node) -> None:
    """Only root can read the record, because the record shows the processes of other users."""
    assert node.record().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"schema": 2}',
        b'{"schema":1,"boot":"one","places":[],"confined":{},"lost":{}}',
        b'{"schema":1,"boot":"one","places":{},"confined":{"web":[[1,2]]},"lost":{}}',
        b'{"schema":1,"boot":"one","places":{},"confined":{"web":[[1,2,Infinity]]},"lost":{}}',
        b'{"schema":1,"boot":"one","places":{},"confined":{"web":[["x",2,3]]},"lost":{}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_ignored_and_replaced(node: Node, content: bytes) -> None:
    """If the record is damaged, the next observation writes a new record."""
    node.state.mkdir()
    node.record().write_bytes(content)
    tracker = node.tracker()
    tracker.record_removals(["other"])
    tracker.observe(NAMES)
    assert json.loads(node.record().read_bytes())["confined"]["other (enforce)"] == [[12, 12, 7]]


def test_a_link_in_place_of_the_record_is_not_followed(node: Node, tmp_path: Path) -> None:
    """If the record is a symbolic link, the agent neither reads nor writes the target of
    the link.
    """
    node.state.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("kept")
    node.record().symlink_to(victim)
    node.tracker().observe(NAMES)
    assert victim.read_text() == "kept"
    assert not node.record().is_symlink()


def test_a_record_that_cannot_be_written_is_reported(node: Node, tmp_path: Path) -> None:
    """If the record cannot be written, the tracker reports this, and still detects unconfined
    threads from its memory.
    """
    (tmp_path / "state").write_text("a file in place of the directory")
    tracker = observed(node)
    node.thread(12, "unconfined")
    tracker.record_removals(["other"])
    assert [finding.code for finding in tracker.findings()] == ["confinement_lost", "write_failed"]


def test_a_record_is_bounded_and_lists_unconfined_threads_first() -> None:
    """If a node runs more threads than a record may contain, the record contains the unconfined
    threads first.
    """
    confined = {Thread(pid, pid, 7): "web (enforce)" for pid in range(RECORDED_THREADS)}
    lost = {Thread(pid, pid, 7): "web" for pid in range(50_000, 50_004)}
    state = ConfinementState(directories={"web": "web.1"}, confined=confined, lost=lost)
    record = json.loads(encoded("one", state))
    assert len(record["lost"]["web"]) == 4
    assert len(record["confined"]["web (enforce)"]) == RECORDED_THREADS - 4
