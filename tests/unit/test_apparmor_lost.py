"""Specification of agent.kinds.apparmor.lost, on a procfs made of files."""

import shutil

import pytest

from agent import wiring
from agent.doors.host import Host
from agent.kinds.apparmor.kind import AppArmor
from agent.kinds.apparmor.lost import Lost

CONTAINER = "ab" * 32
UID = "0f1e2d3c-aaaa-bbbb-cccc-0123456789ab"
SYSTEMD = f"kubepods-besteffort-pod{UID.replace('-', '_')}.slice"


class Proc:
    """Processes as directories below a host root."""

    def __init__(self, root):
        self.root = root / "proc"
        self.root.mkdir()

    def process(self, pid, label, start=7):
        folder = self.root / str(pid)
        (folder / "attr").mkdir(parents=True, exist_ok=True)
        (folder / "attr/current").write_text(f"{label}\n")
        fields = " ".join(["S", *["0"] * 18, str(start)])
        (folder / "stat").write_text(f"{pid} (a) b) {fields} 0\n")
        (folder / "cgroup").write_text(f"0::/kubepods/cri-containerd-{CONTAINER}.scope\n")

    def end(self, pid):
        shutil.rmtree(self.root / str(pid))


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


@pytest.fixture
def lost(tmp_path, proc):
    """Give what knows two processes below web, one of them in a hat, and one below other."""
    proc.process(10, "web (enforce)")
    proc.process(11, "web//HAT (complain)")
    proc.process(12, "other (enforce)")
    proc.process(13, "unconfined")
    one = Lost(Host(tmp_path))
    one.look(["web", "web//HAT", "other"])
    return one


def pids(lost):
    return [(one.where, one.what.partition("pid ")[2].partition(".")[0]) for one in lost.problems()]


def test_who_ran_below_a_removed_name_and_is_unconfined_is_told_until_it_ends(lost, proc):
    """By process and container; hats with their parent, others not."""
    for pid in (10, 11):
        proc.process(pid, "unconfined")
    lost.removed(["web"])
    short = CONTAINER[:12]
    assert pids(lost) == [("web", f"10 (container {short}), 11 (container {short})")]
    assert lost.count() == 2
    proc.end(10)
    assert pids(lost) == [("web", f"11 (container {short})")]
    proc.process(11, "unconfined", start=8)  # another process of that id
    assert (pids(lost), lost.count()) == ([], 0)


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        (f"kubepods/besteffort/pod{UID}/{CONTAINER}", f"pod {UID}, container {CONTAINER[:12]}"),
        (f"../../pod{UID}/{CONTAINER}", f"pod {UID}, container {CONTAINER[:12]}"),
        (
            f"kubepods.slice/{SYSTEMD}/cri-containerd-{CONTAINER}.scope",
            f"pod {UID}, container {CONTAINER[:12]}",
        ),
        (
            f"kubepods/pod{UID.replace('-', '')}/{CONTAINER}",
            f"pod {UID.replace('-', '')}, container {CONTAINER[:12]}",
        ),
        (f"machine.slice/libpod-{CONTAINER}.scope", f"container {CONTAINER[:12]}"),
        ("system.slice/nginx.service", ""),
    ],
)
def test_the_pod_is_told_where_the_cgroup_has_its_uid(lost, proc, path, owner):
    """As both cgroup drivers of the kubelet name it, seen from another pod's namespace too."""
    proc.process(12, "unconfined")
    (proc.root / "12/cgroup").write_text(f"0::/{path}\n")
    lost.removed(["other"])
    assert pids(lost) == [("other", f"12 ({owner})" if owner else "12")]


def test_who_is_still_confined_lost_nothing(lost, proc):
    """A name that was found missing may be one of a stack, or be back before the process ran."""
    lost.removed(["web", "other"])
    assert (pids(lost), lost.count()) == ([], 0)


def test_a_removal_that_falls_into_a_look_is_not_missed(lost, proc):
    """The look finds the process unconfined already; the one before knew better."""
    proc.process(12, "unconfined")
    lost.look(["web", "web//HAT", "other"])
    lost.removed(["other"])
    assert [where for where, _ in pids(lost)] == ["other"]


def test_what_was_confined_two_looks_ago_is_forgotten(lost, proc):
    """A process that left its confinement as its profile allows is not told for ever."""
    proc.process(12, "unconfined")
    lost.look(["web", "web//HAT", "other"])
    lost.look(["web", "web//HAT", "other"])
    lost.removed(["other"])
    assert pids(lost) == []


def test_what_confines_somebody_is_known_from_the_last_look(lost, proc):
    """A name with its hats; what nobody runs below any more is not among them."""
    assert lost.confining() == {"web", "web//HAT", "other"}
    for pid in (11, 12):
        proc.end(pid)
    lost.look(["web", "web//HAT", "other"])
    assert lost.confining() == {"web"}


def test_names_of_others_are_not_looked_at(tmp_path, proc):
    """Only what this agent put is its business."""
    proc.process(10, "cri-containerd.apparmor.d (enforce)")
    one = Lost(Host(tmp_path))
    one.look(["web"])
    proc.process(10, "unconfined")
    one.removed(["web", "cri-containerd.apparmor.d"])
    assert pids(one) == []


def test_a_host_without_a_procfs_forgets_nothing(lost, proc, tmp_path):
    """What cannot be looked at is not empty."""
    proc.process(12, "unconfined")
    proc.root.rename(tmp_path / "away")
    lost.look(["other"])
    lost.look(["other"])
    (tmp_path / "away").rename(proc.root)
    lost.removed(["other"])
    assert [where for where, _ in pids(lost)] == ["other"]


def test_for_no_names_no_process_is_read(tmp_path):
    """To look is to read every process of the node."""

    class Deaf(Host):
        def names(self, path):
            raise AssertionError(path)

    one = Lost(Deaf(tmp_path))
    one.look([])
    one.removed(["web"])
    assert one.problems() == ()


def test_who_ran_below_a_name_that_is_loaded_anew_is_told(lost, proc):
    """It was not found missing: whoever removed it, or another, loaded it again."""
    proc.process(12, "unconfined")
    lost.removed([])
    assert pids(lost) == []
    lost.anew = lambda: ["other"]
    lost.removed([])
    assert [where for where, _ in pids(lost)] == ["other"]


def test_the_daemon_tells_it_what_the_kernel_side_saw(lost, tmp_path):
    """The two know nothing of each other."""
    kind = AppArmor(host=Host(tmp_path))
    wiring._heard({"apparmor": kind}, print, lost)
    assert lost.anew == kind.kernel.anew
