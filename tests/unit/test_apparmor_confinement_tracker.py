"""Specification of agent.backends.apparmor.confinement_tracker, on a procfs made of files."""

import json
import shutil

import pytest

from agent.backends.apparmor.confinement_tracker import (
    RECORD,
    RECORDED_THREADS,
    ConfinementTracker,
    Thread,
    encoded,
)
from agent.host.filesystem import Host

CONTAINER = "ab" * 32
SHORT = f"container {CONTAINER[:12]}"
UID = "0f1e2d3c-aaaa-bbbb-cccc-0123456789ab"
SYSTEMD = f"kubepods-besteffort-pod{UID.replace('-', '_')}.slice"
NAMES = ["web", "web//HAT", "other"]
STATE = "/state"


class Node:
    """Processes as directories in a host root, and the directories of loaded profiles."""

    def __init__(self, root):
        self.root = root / "proc"
        self.state = root / "state"
        self.directories = {name: f"{name}.1" for name in NAMES}
        self.boot("one")
        self.host = Host(root)

    def boot(self, boot_id):
        """Give the host a boot ID."""
        file = self.root / "sys/kernel/random/boot_id"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{boot_id}\n")

    def thread(self, pid, label, *, tid=0, start=7, state="S"):
        """Make a thread, or change it."""
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
        """Start the agent."""
        return ConfinementTracker(
            self.host,
            state_dir=STATE,
            places=lambda names: {
                name: at for name, at in self.directories.items() if name in names
            },
        )

    def record(self):
        """Return the record's path."""
        return self.state / RECORD


@pytest.fixture
def node(tmp_path):
    """A node with two processes under web, one of them in a hat, and one under other."""
    made = Node(tmp_path)
    made.thread(10, "web (enforce)")
    made.thread(11, "web//HAT (complain)")
    made.thread(12, "other (enforce)")
    made.thread(13, "unconfined")
    return made


@pytest.fixture
def tracker(node):
    """A tracker that has looked at that node."""
    made = node.tracker()
    made.observe(NAMES)
    return made


def pids(tracker):
    """Return each problem's name and the PIDs that it shows."""
    return [
        (one.location, one.message.partition("pid ")[2].partition(".")[0])
        for one in tracker.findings()
    ]


def test_threads_that_lost_a_removed_profile_are_reported_until_they_end(tracker, node):
    """The report has process and container; hats belong to their parent, other names do not."""
    for pid in (10, 11):
        node.thread(pid, "unconfined")
    tracker.record_removals(["web"])
    assert pids(tracker) == [("web", f"10 ({SHORT}), 11 ({SHORT})")]
    assert tracker.count() == 2
    node.end(10)
    assert pids(tracker) == [("web", f"11 ({SHORT})")]
    node.thread(11, "unconfined", start=8)  # another process with that ID
    assert (pids(tracker), tracker.count()) == ([], 0)


def test_a_zombie_is_reported_no_longer(tracker, node):
    """It runs nothing any more."""
    node.thread(12, "unconfined")
    tracker.record_removals(["other"])
    assert len(tracker.findings()) == 1
    node.thread(12, "unconfined", state="Z")
    assert tracker.findings() == ()


def test_a_thread_that_is_not_the_leader_is_reported(node):
    """A leader may be unconfined, or confined by another profile."""
    node.thread(20, "unconfined")
    node.thread(20, "web (enforce)", tid=21)
    node.thread(30, "other (enforce)")
    node.thread(30, "web (enforce)", tid=31)
    node.end(10)
    node.end(11)
    made = node.tracker()
    made.observe(NAMES)
    node.thread(20, "unconfined", tid=21)
    node.thread(30, "unconfined", tid=31)
    made.record_removals(["web"])
    assert pids(made) == [("web", f"20 ({SHORT}), 30 ({SHORT})")]


def test_a_live_thread_of_an_ended_leader_is_reported(node):
    """The leader's state is that of a zombie."""
    node.thread(20, "web (enforce)", state="Z")
    node.thread(20, "web (enforce)", tid=21)
    made = node.tracker()
    made.observe(NAMES)
    node.thread(20, "unconfined", state="Z")
    node.thread(20, "unconfined", tid=21)
    made.record_removals(["web"])
    assert pids(made) == [("web", f"20 ({SHORT})")]


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        ("web//&z (enforce)", "unconfined//&z (mixed)", True),
        ("web//&z (enforce)", "z (enforce)", True),
        ("web//&z (enforce)", "unconfined", True),
        ("web//HAT//&z (enforce)", "unconfined//&z (mixed)", True),
        ("web//&z (enforce)", "web//&z (enforce)", False),
        ("web (enforce)", "web (complain)", False),
        ("web (enforce)", "next (enforce)", False),  # as change_profile or an exec rule allows
        ("web (enforce)", "web//&next (enforce)", False),
    ],
)
def test_a_part_of_a_stacked_label_that_vanished_is_reported(node, before, now, lost):
    """A thread that moved on to another profile lost nothing."""
    node.thread(20, before)
    made = node.tracker()
    made.observe(NAMES)
    node.thread(20, now)
    made.record_removals(["web"])
    assert pids(made) == ([("web", f"20 ({SHORT})")] if lost else [])


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
    """Both cgroup drivers of the kubelet have it, also as seen from another pod's namespace."""
    node.thread(12, "unconfined")
    (node.root / "12/cgroup").write_text(f"0::/{path}\n")
    tracker.record_removals(["other"])
    assert pids(tracker) == [("other", f"12 ({owner})" if owner else "12")]


def test_a_thread_that_is_still_confined_lost_nothing(tracker):
    """A name that was found missing may be back before the process ran."""
    tracker.record_removals(["web", "other"])
    assert (pids(tracker), tracker.count()) == ([], 0)


def test_a_removal_that_falls_into_a_look_is_not_missed(tracker, node):
    """That look finds the process unconfined already; the look before has its label."""
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    tracker.record_removals(["other"])
    assert [where for where, _ in pids(tracker)] == ["other"]


def test_a_thread_that_was_confined_two_looks_ago_is_forgotten(tracker, node):
    """A process that left its confinement as its profile allows is not reported for ever."""
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    tracker.observe(NAMES)
    tracker.record_removals(["other"])
    assert pids(tracker) == []


def test_the_names_that_confine_a_thread_are_those_of_the_last_look(tracker, node):
    """A hat counts for its parent."""
    assert set(NAMES) <= tracker.names_in_use()
    for pid in (11, 12):
        node.end(pid)
    tracker.observe(NAMES)
    assert tracker.names_in_use() & set(NAMES) == {"web"}


def test_names_of_other_programs_are_not_tracked(node):
    """The tracker knows agent-owned profiles only."""
    node.thread(10, "cri-containerd.apparmor.d (enforce)")
    made = node.tracker()
    made.observe(["web"])
    node.thread(10, "unconfined")
    made.record_removals(["web", "cri-containerd.apparmor.d"])
    assert pids(made) == []


def test_a_host_without_a_procfs_forgets_nothing(tracker, node, tmp_path):
    """Unreadable is not empty."""
    node.thread(12, "unconfined")
    node.root.rename(tmp_path / "away")
    tracker.observe(["other"])
    tracker.observe(["other"])
    (tmp_path / "away").rename(node.root)
    tracker.record_removals(["other"])
    assert [where for where, _ in pids(tracker)] == ["other"]


def test_without_names_no_process_is_read_and_nothing_is_written(node, tmp_path):
    """A look reads every process of the node."""

    class Deaf(Host):
        def names(self, path):
            raise AssertionError(path)

    made = ConfinementTracker(Deaf(tmp_path), state_dir=STATE, places=lambda _: {})
    made.observe([])
    made.record_removals(["web"])
    assert made.findings() == ()
    assert not node.state.exists()


def test_threads_of_a_profile_that_was_loaded_again_are_reported(tracker, node):
    """It was not found missing: another program removed and loaded it between two passes."""
    node.thread(12, "unconfined")
    tracker.record_removals([])
    assert pids(tracker) == []
    node.directories["other"] = "other.2"
    tracker.record_removals([])
    assert [where for where, _ in pids(tracker)] == ["other"]


# --- the record -----------------------------------------------------------------------------------


def test_a_loss_is_still_reported_after_a_restart(tracker, node):
    """Until its process ends."""
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
def test_a_loss_while_the_agent_was_away_is_reported(tracker, node, missing):
    """Whether the profile is still missing, or was loaded again in another directory."""
    node.thread(12, "unconfined")
    if not missing:
        node.directories["other"] = "other.2"
    again = node.tracker()
    again.record_removals(missing)
    assert pids(again) == [("other", f"12 ({SHORT})")]


def test_a_removal_that_falls_into_the_last_look_before_a_restart_is_reported(tracker, node):
    """The last look finds the process unconfined; the agent is killed before it reports that."""
    node.thread(12, "unconfined")
    tracker.observe(NAMES)
    again = node.tracker()
    again.record_removals(["other"])
    assert pids(again) == [("other", f"12 ({SHORT})")]


def test_the_last_part_of_a_long_stack_is_known(node):
    """A process can stack profiles until its label is longer than a page of memory."""
    before = "//&".join([*(f"{number:0250}" for number in range(20)), "web"])
    node.thread(12, f"{before} (enforce)")
    made = node.tracker()
    made.observe(["web"])
    node.thread(12, before.removesuffix("web") + "unconfined")
    made.record_removals(["web"])
    assert pids(made) == [("web", f"12 ({SHORT})")]


def test_the_record_of_another_boot_says_nothing(tracker, node):
    """IDs and start times begin again."""
    node.thread(12, "unconfined")
    node.boot("two")
    again = node.tracker()
    again.record_removals(["other"])
    assert pids(again) == []


def test_an_unchanged_look_writes_nothing(tracker, node):
    """The file stays the same one."""
    before = node.record().stat()
    tracker.record_removals([])
    tracker.observe(NAMES)
    node.tracker().observe(NAMES)
    assert node.record().stat() == before


def test_a_record_is_readable_by_root_alone(tracker, node):
    """It names processes of other users."""
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
    """What is known begins again with the next look."""
    node.state.mkdir()
    node.record().write_bytes(content)
    made = node.tracker()
    made.record_removals(["other"])
    made.observe(NAMES)
    assert json.loads(node.record().read_bytes())["confined"]["other (enforce)"] == [[12, 12, 7]]


def test_a_link_in_place_of_the_record_is_not_followed(node, tmp_path):
    """Neither on reading nor on writing."""
    node.state.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("kept")
    node.record().symlink_to(victim)
    node.tracker().observe(NAMES)
    assert victim.read_text() == "kept"
    assert not node.record().is_symlink()


def test_a_record_that_cannot_be_written_is_a_problem(node, tmp_path):
    """The knowledge in memory is used all the same."""
    (tmp_path / "state").write_text("a file in place of the directory")
    made = node.tracker()
    made.observe(NAMES)
    node.thread(12, "unconfined")
    made.record_removals(["other"])
    assert [one.code for one in made.findings()] == ["confinement_lost", "write_failed"]


def test_a_record_is_bounded_and_names_losses_first():
    """A node may run more threads than the record has room for."""
    confined = {Thread(pid, pid, 7): "web (enforce)" for pid in range(RECORDED_THREADS)}
    lost = {Thread(pid, pid, 7): "web" for pid in range(50_000, 50_004)}
    record = json.loads(encoded("one", {"web": "web.1"}, confined, lost))
    assert len(record["lost"]["web"]) == 4
    assert len(record["confined"]["web (enforce)"]) == RECORDED_THREADS - 4
