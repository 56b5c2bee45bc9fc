"""Tests of the final checks of a removal, on a kernel and processes that consist of files."""

import shutil

from agent.backends.apparmor import kernel_access
from agent.backends.apparmor.confinement_tracker import ConfinementTracker
from agent.backends.apparmor.loaded_objects import LoadedObjects
from agent.backends.apparmor.policy_changes import PolicyChanges
from agent.backends.apparmor.policy_references import PolicyReferences
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.policy_writer import PolicyWriter
from agent.backends.apparmor.processes import Processes
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.core.model import InUse
from agent.core.ports import Installed, Removed, StillInUse
from agent.host.filesystem import Host
from tests.unit.test_apparmor_faults import PROBES, loaded, node, write
from tests.unit.test_apparmor_hidden_content import BODY, DIRECTORY, PROFILE
from tests.unit.test_apparmor_processes import own_of, thread

STATE = "/var/lib/profile-loader"
USER = 20


class Kernel(Host):
    """A fake kernel with one profile, under which a process starts after a listing of /proc."""

    revision = 5
    listings = 0
    """How often /proc was listed."""

    starts_after = 0
    """The number of the listing after which the process starts; 0: it never starts."""

    def write_kernel(self, path, content):
        if path.endswith("/.remove"):
            shutil.rmtree(self.path(f"{kernel_access.ROOT}/policy/profiles/{DIRECTORY}"))
        else:
            loaded(self.root, DIRECTORY, "web")
        self.revision += 1
        write(self.root, f"{kernel_access.ROOT}/revision", f"{self.revision}\n")

    def names(self, path):
        names = super().names(path)
        if path == "/proc":
            self.listings += 1
            if self.listings == self.starts_after:
                thread(self.root, USER, USER, "web (enforce)")
        return names


def policy_changes(host):
    """Return the changes of an agent that sees every process and every pending exec."""
    own = own_of(host.root)
    thread(host.root, 1, 1, "unconfined")
    (host.root / "proc/1/ns").mkdir()
    (host.root / "proc/1/ns/pid").symlink_to("pid:[4026531836]")
    write(host.root, "/proc/sys/kernel/random/boot_id", "b-o-o-t\n")
    release = RawDataRelease(host, PROBES)
    view = PolicyView(host, release)
    writer = PolicyWriter(host, view, release)
    return PolicyChanges(
        access=kernel_access.KernelAccess(host, PROBES),
        view=view,
        writer=writer,
        processes=Processes(host, own=own, shows_pending_exec=lambda _: True),
        objects=LoadedObjects(host, STATE, may_write=True),
        references=PolicyReferences(host, view, writer, PROBES),
        tracker=ConfinementTracker(host, state_dir=STATE, find_directories=view.directories),
    )


def removal(root, starts_after):
    """Remove a profile while a process starts; return the result and the number of listings."""
    node(root, revision="5\n")
    host = Kernel(root)
    changes = policy_changes(host)
    installed = changes.install(PROFILE, BODY, replaceable=())
    assert isinstance(installed, Installed)
    host.starts_after = starts_after
    return changes.remove(["web"], installed.evidence, require_unused=True), host.listings


def test_a_process_that_starts_before_the_last_listing_keeps_its_profile(tmp_path):
    """If a process starts before the last listing, its profile is not removed."""
    result, listings = removal(tmp_path / "unused", 0)
    assert result == Removed()
    for number in range(1, listings):
        result, _ = removal(tmp_path / str(number), number)
        assert result == StillInUse(uses={"web": InUse(pids=(USER,))}), number
