"""Tests of the confinement tracker, on a procfs that consists of files."""

import json
import shutil

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
    """Simulates processes as directories in a host root, and the directories of loaded profiles."""

    def __init__(self, root):
        self.root = root / "proc"
        self.state = root / "state"
        self.directories = {name: f"{name}.1" for name in NAMES}
        self.boot("one")
        self.host = Host(root)

    def boot(self, boot_id):
        """Set the boot ID of the host."""
        file = self.root / "sys/kernel/random/boot_id"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{boot_id}\n")

    def thread(self, pid, label, *, tid=0, start=7, state="S"):
        """Create a thread, or change an existing thread."""
        folder = self.root / str(pid) / "task" / str(tid or pid)
        (folder / "attr").mkdir(parents=True, exist_ok=True)
        (folder / "attr/current").write_text(f"{label}\n")
        fields = " ".join([state, *["0"] * 18, str(start)])
        (folder / "stat").write_text(f"{pid} (a) b) {fields} 0\n")
        (self.root / f"{pid}/cgroup").write_text(f"0::/kubepods/cri-containerd-{CONTAINER}.scope\n")

    def end(self, pid):
        """End a process."""
        shutil.rmtree(self.root / str(pid))

    def tracker(self):
        """Return a tracker of an agent that has just started."""
        return ConfinementTracker(
            self.host,
            state_dir=STATE,
            find_directories=lambda names: {
                name: directory for name, directory in self.directories.items() if name in names
            },
        )

    def record(self):
        """Return the path of the record."""
        return self.state / FILE


@pytest.fixture
def node(tmp_path):
    """A node with three processes: in the profile web, in a hat of web, and in the profile
    other.
    """
    node = Node(tmp_path)
    node.thread(10, "web (enforce)")
    node.thread(11, "web//HAT (complain)")
    node.thread(12, "other (enforce)")
    node.thread(13, "unconfined")
    return node


@pytest.fixture
def tracker(node):
    """A tracker that has observed this node once."""
    return observed(node)


def observed(node, names=NAMES):
    """Return a tracker of a new agent that has observed the node once."""
    tracker = node.tracker()
    tracker.observe(names)
    return tracker


def pids(tracker):
    """Return the profile and the list of processes from each finding."""
    return [
        (finding.location, finding.message.partition("pid ")[2].partition(".")[0])
        for finding in tracker.findings()
    ]


def test_threads_that_lost_a_removed_profile_are_reported_until_they_end(tracker, node):
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
    node.thread(11, "unconfined", start=8)  # Another process has this ID now.
    assert (pids(tracker), tracker.count()) == ([], 0)


def test_a_zombie_is_reported_no_longer(tracker, node):
    """A zombie is not reported, because it never runs code again."""
    node.thread(12, "unconfined")
    tracker.record_removals(["other"])
    assert len(tracker.findings()) == 1
    node.thread(12, "unconfined", state="Z")
    assert tracker.findings() == ()


def test_a_thread_that_is_not_the_leader_is_reported(node):
    """A thread is reported even if its leader is unconfined or runs under another profile."""
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


def test_a_live_thread_of_an_ended_leader_is_reported(node):
    """A live thread is reported even if its leader has ended and looks like a zombie."""
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
        # A change_profile rule or an exec rule allows this change.
        ("web (enforce)", "next (enforce)", False),
        ("web (enforce)", "web//&next (enforce)", False),
    ],
)
def test_a_part_of_a_stacked_label_that_vanished_is_reported(node, before, now, lost):
    """A thread that changed to another profile did not lose its confinement."""
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
def test_the_pod_is_reported_where_the_cgroup_has_its_uid(tracker, node, path, owner):
    """Both cgroup drivers of the kubelet use the UID of a pod in the name of its cgroup."""
    node.thread(12, "unconfined")
    (node.root / "12/cgroup").write_text(f"0::/{path}\n")
    tracker.record_removals(["other"])
    assert pids(tracker) == [("other", f"12 ({owner})" if owner else "12")]


def test_a_thread_that_is_still_confined_lost_nothing(tracker):
    """If a removed profile is loaded again before its process runs, the process lost nothing."""
    tracker.record_removals(["web", "other"])
    assert (pids(tracker), tracker.count()) == ([], 0)


def test_a_removal_during_an_observation_is_not_missed(tracker, node):
    """If a profile is removed during an observation, the previous observation shows its
    processes.
    """
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    tracker.record_removals(["other"])
    assert [name for name, _ in pids(tracker)] == ["other"]


def test_a_thread_that_was_confined_three_observations_ago_is_forgotten(tracker, node):
    """If a process left its profile by itself, a later removal of the profile is not reported."""
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    tracker.observe(NAMES)
    tracker.record_removals(["other"])
    assert pids(tracker) == []


def test_the_names_in_use_are_those_of_the_last_observation(tracker, node):
    """If a process runs in a hat, the parent of the hat counts as in use."""
    assert set(NAMES) <= tracker.names_in_use()
    for pid in (11, 12):
        node.end(pid)
    tracker.observe(NAMES)
    assert tracker.names_in_use() & set(NAMES) == {"web"}


def test_names_of_other_programs_are_not_tracked(node):
    """The tracker records only processes under agent-owned profiles."""
    node.thread(10, "cri-containerd.apparmor.d (enforce)")
    tracker = observed(node, ["web"])
    node.thread(10, "unconfined")
    tracker.record_removals(["web", "cri-containerd.apparmor.d"])
    assert pids(tracker) == []


def test_a_procfs_that_cannot_be_read_changes_nothing(tracker, node, tmp_path):
    """If /proc cannot be read, the tracker keeps its threads, because they may still run."""
    node.thread(12, "unconfined")
    node.root.rename(tmp_path / "away")
    tracker.observe(["other"])
    tracker.observe(["other"])
    (tmp_path / "away").rename(node.root)
    tracker.record_removals(["other"])
    assert [name for name, _ in pids(tracker)] == ["other"]


def test_without_names_no_process_is_read_and_nothing_is_written(node, tmp_path):
    """If the agent has no AppArmor profiles on the node, the tracker reads no process."""

    class UnlistableHost(Host):
        def names(self, path):
            raise AssertionError(path)

    tracker = ConfinementTracker(
        UnlistableHost(tmp_path), state_dir=STATE, find_directories=lambda _: {}
    )
    tracker.observe([])
    tracker.observe_before_removal([])
    tracker.record_removals(["web"])
    assert tracker.findings() == ()
    assert not node.state.exists()


def test_threads_of_a_profile_that_was_loaded_again_are_reported(tracker, node):
    """If another program removes and loads a profile between two passes, its threads are
    reported.
    """
    node.thread(12, "unconfined")
    tracker.record_removals([])
    assert pids(tracker) == []
    node.directories["other"] = "other.2"
    tracker.record_removals([])
    assert [name for name, _ in pids(tracker)] == ["other"]


def test_a_thread_that_left_a_profile_by_itself_loses_nothing_by_its_removal(tracker, node):
    """If a process leaves its profile right before the agent removes the profile, it loses
    nothing.
    """
    node.thread(12, "unconfined")
    tracker.observe_before_removal(["other"])
    tracker.record_removals(["other"])
    assert (pids(tracker), pids(node.tracker())) == ([], [])


def test_a_thread_that_left_a_part_of_a_stack_can_still_lose_the_other_part(node):
    """If a thread leaves one profile of a stack, the tracker still watches the other profile."""
    node.thread(12, "web//&other (enforce)")
    tracker = observed(node)
    node.thread(12, "web (enforce)")
    tracker.observe_before_removal(["other"])
    node.thread(12, "unconfined")
    tracker.record_removals(["web", "other"])
    assert [name for name, _ in pids(tracker)] == ["web"]


def test_a_thread_that_started_after_the_last_observation_can_lose_its_confinement(tracker, node):
    """Before the agent removes a profile itself, the tracker observes the processes once more."""
    node.thread(20, "other (enforce)")
    tracker.observe_before_removal(["other"])
    node.thread(20, "unconfined")
    tracker.record_removals(["other"])
    assert pids(tracker) == [("other", f"20 ({SHORT})")]


def test_an_earlier_loss_is_not_forgotten_before_a_removal(tracker, node):
    """If another program removed and loaded a profile before the agent removes it, this is
    reported.
    """
    node.thread(12, "unconfined")
    node.directories["other"] = "other.2"
    tracker.observe_before_removal(["other"])
    assert pids(tracker) == [("other", f"12 ({SHORT})")]


# --- the record -----------------------------------------------------------------------------------


def test_a_loss_is_still_reported_after_a_restart(tracker, node):
    """After a restart of the agent, the finding stays until the process ends."""
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
def test_a_loss_while_no_agent_ran_is_reported(tracker, node, missing):
    """A loss is reported even if the profile was removed while no agent ran."""
    node.thread(12, "unconfined")
    if not missing:
        node.directories["other"] = "other.2"
    again = node.tracker()
    again.record_removals(missing)
    assert pids(again) == [("other", f"12 ({SHORT})")]


def test_a_removal_during_the_last_observation_before_a_restart_is_reported(tracker, node):
    """A removal is reported even if the agent is killed right after the observation of its
    effect.
    """
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    again = node.tracker()
    again.record_removals(["other"])
    assert pids(again) == [("other", f"12 ({SHORT})")]


def test_a_label_longer_than_a_page_is_read_completely(node):
    """A label that is longer than a page of memory is read completely."""
    before = "//&".join([*(f"{number:0250}" for number in range(20)), "web"])
    node.thread(12, f"{before} (enforce)")
    tracker = observed(node, ["web"])
    node.thread(12, before.removesuffix("web") + "unconfined")
    tracker.record_removals(["web"])
    assert pids(tracker) == [("web", f"12 ({SHORT})")]


def test_the_record_of_another_boot_is_ignored(tracker, node):
    """A record from another boot is ignored, because the kernel uses the same IDs again."""
    node.thread(12, "unconfined")
    node.boot("two")
    again = node.tracker()
    again.record_removals(["other"])
    assert pids(again) == []


def test_an_unchanged_observation_writes_nothing(tracker, node):
    """The record is written only if its content has changed."""
    before = node.record().stat()
    tracker.record_removals([])
    tracker.observe(NAMES)
    node.tracker().observe(NAMES)
    assert node.record().stat() == before


def test_a_record_is_readable_by_root_alone(tracker, node):
    """The record is private because it shows which processes other users run."""
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
def test_a_damaged_record_is_ignored_and_replaced(node, content):
    """If the record is damaged, the next observation writes a new record."""
    node.state.mkdir()
    node.record().write_bytes(content)
    tracker = node.tracker()
    tracker.record_removals(["other"])
    tracker.observe(NAMES)
    assert json.loads(node.record().read_bytes())["confined"]["other (enforce)"] == [[12, 12, 7]]


def test_a_link_in_place_of_the_record_is_not_followed(node, tmp_path):
    """If the record is a link, the agent neither reads nor writes the link's target."""
    node.state.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("kept")
    node.record().symlink_to(victim)
    node.tracker().observe(NAMES)
    assert victim.read_text() == "kept"
    assert not node.record().is_symlink()


def test_a_record_that_cannot_be_written_is_reported(node, tmp_path):
    """If the record cannot be written, the tracker still finds losses from its memory."""
    (tmp_path / "state").write_text("a file in place of the directory")
    tracker = observed(node)
    node.thread(12, "unconfined")
    tracker.record_removals(["other"])
    assert [finding.code for finding in tracker.findings()] == ["confinement_lost", "write_failed"]


def test_a_record_is_bounded_and_lists_losses_first():
    """If a node runs more threads than a record can hold, the record lists losses first."""
    confined = {Thread(pid, pid, 7): "web (enforce)" for pid in range(RECORDED_THREADS)}
    lost = {Thread(pid, pid, 7): "web" for pid in range(50_000, 50_004)}
    state = ConfinementState(directories={"web": "web.1"}, confined=confined, lost=lost)
    record = json.loads(encoded("one", state))
    assert len(record["lost"]["web"]) == 4
    assert len(record["confined"]["web (enforce)"]) == RECORDED_THREADS - 4
