"""Tests of the final checks before a removal, with ordinary files in place of the kernel and of
/proc.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from agent.backends.apparmor import compiled_policy, kernel_access
from agent.backends.apparmor.confinement_tracker import ConfinementTracker
from agent.backends.apparmor.loaded_objects import LoadedObjects
from agent.backends.apparmor.policy_changes import PolicyChanges
from agent.backends.apparmor.policy_references import PolicyReferences
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.policy_writer import PolicyWriter
from agent.backends.apparmor.processes import Processes
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.core.model import InUse, UnknownUse
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host.filesystem import Host
from tests.narrowing import instance_of
from tests.unit.test_apparmor_faults import PROBES, loaded, node, write
from tests.unit.test_apparmor_hidden_content import BODY, DIRECTORY, PROFILE
from tests.unit.test_apparmor_processes import own_of, thread

TOP = f"{kernel_access.ROOT}/policy/profiles"
STATE = "/var/lib/profile-loader"
USER = 20


class Kernel(Host):
    """A fake kernel with one profile. A process starts under this profile after a listing
    of /proc.
    """

    revision = 5
    listings = 0
    """The number of listings of /proc so far."""

    starts_after = 0
    """The number of the listing after which the process starts, or 0 if the process never
    starts.
    """

    def write_kernel(self, path: str, content: bytes) -> None:
        if path.endswith("/.remove"):
            shutil.rmtree(self.path(f"{TOP}/{DIRECTORY}"))
        else:
            loaded(self.root, DIRECTORY, "web")
        self.revision += 1
        write(self.root, f"{kernel_access.ROOT}/revision", f"{self.revision}\n")

    def names(self, path: str) -> list[str]:
        names = super().names(path)
        if path == "/proc":
            self.listings += 1
            if self.listings == self.starts_after:
                thread(self.root, USER, USER, "web (enforce)")
        return names


class Clock:
    """A clock that only advances when the agent waits."""

    seconds = 0.0

    def time(self) -> float:
        """Return the current time."""
        return self.seconds

    def pause(self, seconds: float) -> None:
        """Advance the clock without waiting."""
        self.seconds += seconds


def policy_changes(host: Kernel) -> PolicyChanges:
    """Return the policy changes of an agent that sees every process and every pending exec."""
    own = own_of(host.root)
    thread(host.root, 1, 1, "unconfined")
    (host.root / "proc/1/ns").mkdir()
    (host.root / "proc/1/ns/pid").symlink_to("pid:[4026531836]")
    write(host.root, "/proc/sys/kernel/random/boot_id", "b-o-o-t\n")
    clock = Clock()
    probes = replace(PROBES, clock=clock.time, pause=clock.pause)
    release = RawDataRelease(host, probes)
    view = PolicyView(host, release)
    writer = PolicyWriter(host, view, release)
    return PolicyChanges(
        access=kernel_access.KernelAccess(host, probes),
        view=view,
        writer=writer,
        processes=Processes(host, own=own, shows_pending_exec=lambda _: True),
        objects=LoadedObjects(host, STATE, may_write=True),
        references=PolicyReferences(host, view, writer, probes),
        tracker=ConfinementTracker(host, state_dir=STATE, find_directories=view.directories),
    )


def removal(root: Path, starts_after: int) -> tuple[Removed | StillInUse | Failed, int]:
    """Remove a profile while a process starts. Return the result and the number of listings."""
    node(root, revision="5\n")
    host = Kernel(root)
    changes = policy_changes(host)
    installed = changes.install(PROFILE, BODY, replaceable=())
    assert isinstance(installed, Installed)
    host.starts_after = starts_after
    return changes.remove(["web"], installed.evidence, require_unused=True), host.listings


def test_a_process_that_starts_before_the_last_listing_keeps_its_profile(tmp_path: Path) -> None:
    """If a process starts before the last listing of /proc, its profile is not removed."""
    result, listings = removal(tmp_path / "unused", 0)
    assert result == Removed()
    for number in range(1, listings):
        result, _ = removal(tmp_path / str(number), number)
        assert result == StillInUse(uses={"web": InUse(pids=(USER,))}), number


class KernelWithRawData(Kernel):
    """A kernel that shows hashes, and the raw data of each referenced policy version."""

    learning = ""
    """The name of a learning profile, or "" if the kernel has no learning profile."""

    number = 0
    """The number of loads so far."""

    keeps = 0
    """The number of the load whose raw data stay referenced, or 0 if the raw data of all replaced
    versions disappear.
    """

    def write_kernel(self, path: str, content: bytes) -> None:
        super().write_kernel(path, content)
        if path.endswith("/.remove"):
            return
        self.list_profiles()
        top = self.path(f"{kernel_access.ROOT}/policy")
        if self.number and self.number != self.keeps:
            shutil.rmtree(top / f"raw_data/{self.number}")
        self.number += 1
        (top / f"raw_data/{self.number}").mkdir(parents=True)
        (top / f"raw_data/{self.number}/raw_data").write_bytes(content)
        link = top / f"profiles/{DIRECTORY}/raw_data"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../raw_data/{self.number}/raw_data")
        (declared,) = compiled_policy.read(content)
        for token in declared.evidence:
            kind, algorithm, value = token.split(":")
            if algorithm == "sha256":
                name = "sha256" if kind == "own" else "raw_sha256"
                (top / f"profiles/{DIRECTORY}/{name}").write_text(f"{value}\n")

    def list_profiles(self) -> None:
        """Write the kernel's list of all profiles, including learning profiles."""
        lines = "".join(f"{name} (enforce)\n" for name in ("web", self.learning) if name)
        write(self.root, f"{kernel_access.ROOT}/profiles", lines)


class ChangingKernel(KernelWithRawData):
    """A kernel whose list of profiles changes once while the agent reads it."""

    walks = 0
    """The number of listings of the profile directory so far."""

    changes_at = 0
    """The number of the listing that differs, or 0 if no listing differs."""

    vanishes = False
    """Whether this listing contains a directory that does not exist. Otherwise the listing lacks
    the profile.
    """

    def names(self, path: str) -> list[str]:
        names = super().names(path)
        if path == TOP:
            self.walks += 1
            if self.walks == self.changes_at:
                return [*names, "vanished.9"] if self.vanishes else []
        return names


_Kernel = TypeVar("_Kernel", bound=KernelWithRawData)


def removal_with_raw_data(
    root: Path, kernel: type[_Kernel], **attributes: int | str
) -> tuple[Removed | StillInUse | Failed, _Kernel]:
    """Remove a profile that no thread in /proc uses.

    Return the result and the kernel. The attributes of the kernel are set right before the removal.
    """
    node(root, revision="5\n")
    host = kernel(root)
    changes = policy_changes(host)
    installed = changes.install(PROFILE, BODY, replaceable=())
    assert isinstance(installed, Installed)
    for name, value in attributes.items():
        setattr(host, name, value)
    host.list_profiles()
    return changes.remove(["web"], installed.evidence, require_unused=True), host


def test_a_profile_without_hidden_references_is_removed(tmp_path: Path) -> None:
    """To prove that the profile is unused, the agent replaces it once. If the raw data of the old
    version then disappear, the profile is removed.
    """
    result, host = removal_with_raw_data(tmp_path, KernelWithRawData)
    assert (result, host.number) == (Removed(), 2)


def test_a_profile_with_a_hidden_reference_stays(tmp_path: Path) -> None:
    """A profile stays if the raw data of its old version remain, because /proc does not show the
    profile of an unfinished execve.
    """
    result, host = removal_with_raw_data(tmp_path, KernelWithRawData, keeps=1)
    assert isinstance(result, StillInUse)
    assert isinstance(result.uses["web"], UnknownUse)
    assert "an earlier version" not in result.uses["web"].reason
    assert host.path(f"{TOP}/{DIRECTORY}").exists()


def test_a_profile_with_a_learning_profile_stays(tmp_path: Path) -> None:
    """A profile with a learning profile stays, because a pending execve may use the learning
    profile, for which the kernel keeps no raw data.
    """
    result, host = removal_with_raw_data(
        tmp_path, KernelWithRawData, learning="web//null-/bin/sleep"
    )
    assert isinstance(result, StillInUse)
    assert isinstance(result.uses["web"], UnknownUse)
    assert '"web//null-/bin/sleep"' in result.uses["web"].reason
    assert host.path(f"{TOP}/{DIRECTORY}").exists()


def test_a_failed_proof_is_only_repeated_after_the_raw_data_disappear(tmp_path: Path) -> None:
    """While the same raw data remain, the agent does not check again whether the profile is unused,
    and does not replace the profile again.
    """
    node(tmp_path, revision="5\n")
    host = KernelWithRawData(tmp_path)
    changes = policy_changes(host)
    installed = instance_of(changes.install(PROFILE, BODY, replaceable=()), Installed)
    assert changes.remembered_uses(["web"]) == {}
    host.keeps = 1
    first = changes.remove(["web"], installed.evidence, require_unused=True)
    assert isinstance(first, StillInUse)
    assert changes.remembered_uses(["web"]) == first.uses
    assert host.number == 2
    shutil.rmtree(host.path(f"{kernel_access.ROOT}/policy/raw_data/1"))
    assert changes.remembered_uses(["web"]) == {}
    assert changes.remove(["web"], installed.evidence, require_unused=True) == Removed()


def test_a_learning_profile_is_read_again_at_each_attempt(tmp_path: Path) -> None:
    """The agent holds the profile until the kernel no longer lists the learning profile."""
    node(tmp_path, revision="5\n")
    host = KernelWithRawData(tmp_path)
    changes = policy_changes(host)
    installed = instance_of(changes.install(PROFILE, BODY, replaceable=()), Installed)
    host.learning = "web//null-/bin/sleep"
    host.list_profiles()
    first = instance_of(
        changes.remove(["web"], installed.evidence, require_unused=True), StillInUse
    )
    assert changes.remembered_uses(["web"]) == first.uses
    host.learning = ""
    host.list_profiles()
    assert changes.remembered_uses(["web"]) == {}
    assert changes.remove(["web"], installed.evidence, require_unused=True) == Removed()


@pytest.mark.parametrize("vanishes", [True, False])
def test_a_change_by_another_program_does_not_prevent_the_proof(
    tmp_path: Path, vanishes: bool
) -> None:
    """If another program changes the list of profiles while the agent checks whether a profile is
    unused, the check still has the same result.
    """
    _, host = removal_with_raw_data(tmp_path / "0", keeps=1, kernel=ChangingKernel)
    walks = host.walks
    assert walks > 2
    for number in range(1, walks + 1):
        _, host = removal_with_raw_data(
            tmp_path / str(number),
            keeps=1,
            kernel=ChangingKernel,
            vanishes=vanishes,
            changes_at=number,
        )
        assert host.path(f"{TOP}/{DIRECTORY}").exists(), number
