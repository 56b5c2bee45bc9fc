"""Tests of the view of the loaded policy, of the directory index, and of released raw data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from agent.backends.apparmor import kernel_access, raw_data_release
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.policy_writer import PolicyWriter
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.core.model import ObservedProfile, Unobservable
from agent.host.filesystem import Host
from tests.narrowing import not_none
from tests.unit.test_apparmor_faults import PROBES, loaded, node, write

TOP = f"{kernel_access.ROOT}/policy/profiles"


class CountingHost(Host):
    """A host that records which files and directories the agent reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.paths: list[str] = []

    def read(self, path: str, *, limit: int = 64 << 20) -> bytes:
        self.paths.append(path)
        return super().read(path, limit=limit)

    def read_once(self, path: str, *, size: int = 64) -> bytes:
        self.paths.append(path)
        return not_none(super().read_once(path, size=size))

    def names(self, path: str) -> list[str]:
        self.paths.append(path)
        return super().names(path)


class Kernel:
    """The files of a fake kernel, and the agent's view of these files."""

    def __init__(self, root: Path, probes: kernel_access.Probes = PROBES) -> None:
        self.root = root
        node(root, revision="1\n")
        self.host = CountingHost(root)
        release = RawDataRelease(self.host, probes)
        self.view = PolicyView(self.host, release)
        self.writer = PolicyWriter(self.host, self.view, release)
        self.number = 1

    def load(self, directory: str, name: str, **hashes: str) -> None:
        """Load a profile as the agent does."""
        self.load_foreign(directory, name, **hashes)
        self.writer.load(b"policy")

    def load_foreign(self, directory: str, name: str, **hashes: str) -> None:
        """Load a profile as another program does."""
        loaded(self.root, directory, name, **hashes)
        generation = self.root / TOP.lstrip("/") / directory / "raw_data"
        generation.unlink(missing_ok=True)
        self.increment()
        generation.symlink_to(f"../../raw_data/{self.number}/raw_data")

    def remove_foreign(self, directory: str) -> None:
        """Remove a profile as another program does."""
        (self.root / TOP.lstrip("/") / directory).rename(self.root / f"removed-{directory}")
        self.increment()

    def increment(self) -> None:
        self.number += 1
        write(self.root, f"{kernel_access.ROOT}/revision", f"{self.number}\n")

    def observe(self, *names: str, is_complete: bool = False) -> dict[str, ObservedProfile]:
        self.host.paths.clear()
        observed = self.view.observe(names, is_complete=is_complete)
        assert not isinstance(observed, Unobservable)
        return observed

    @property
    def was_walked(self) -> bool:
        """Return whether the last observation listed all profile directories."""
        return TOP in self.host.paths


def observed(hash_: str) -> ObservedProfile:
    """Return the expected observation of a profile with this hash."""
    return ObservedProfile(evidence=frozenset({f"own:sha1:{hash_}"}), mode="enforce")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A fake kernel with one profile, after one observation."""
    kernel = Kernel(tmp_path)
    kernel.load_foreign("old.1", "old", sha1="aa")
    kernel.observe("old", is_complete=True)
    return kernel


def test_a_new_profile_is_found_without_reading_the_others(kernel: Kernel) -> None:
    """To find a new profile, the index reads only directories that it does not contain yet."""
    kernel.load("new.2", "new", sha1="bb")
    assert kernel.observe("new", "absent") == {"new": observed("bb")}
    assert [path for path in kernel.host.paths if "old.1" in path or path == TOP] == []


def test_a_replaced_profile_is_read_again(kernel: Kernel) -> None:
    """If a profile is replaced, the agent reads its content again, although its directory is the
    same.
    """
    kernel.load("old.1", "old", sha1="cc")
    assert kernel.observe("old") == {"old": observed("cc")}
    assert not kernel.was_walked


def test_hats_of_a_new_profile_are_found(kernel: Kernel) -> None:
    """The index finds the hats of a new profile, because their directories are inside the directory
    of the profile.
    """
    loaded(kernel.root, "new.2/profiles/HAT.3", "HAT", sha1="dd")
    kernel.load("new.2", "new", sha1="bb")
    assert kernel.observe("new//HAT", "new") == {"new": observed("bb"), "new//HAT": observed("dd")}
    assert not kernel.was_walked


def test_all_profiles_are_listed_after_a_foreign_change(kernel: Kernel) -> None:
    """If the revision shows a change by another program, the agent lists all profiles again."""
    kernel.load("new.2", "new", sha1="bb")
    kernel.load_foreign("other.3", "other", sha1="ee")
    assert kernel.observe("other", "new") == {"other": observed("ee"), "new": observed("bb")}
    assert kernel.was_walked


def test_all_profiles_are_listed_if_a_directory_has_another_name(kernel: Kernel) -> None:
    """If the `name` file of a directory contains another profile name, the agent lists all profiles
    again.
    """
    kernel.load("old.1", "else", sha1="ff")
    assert kernel.observe("old", "else") == {"else": observed("ff")}
    assert kernel.was_walked


def test_a_directory_that_vanished_is_not_loaded(kernel: Kernel) -> None:
    """A profile whose directory has disappeared does not count as loaded."""
    kernel.load("new.2", "new", sha1="bb")
    (kernel.root / TOP.lstrip("/") / "old.1").rename(kernel.root / "removed")
    assert kernel.observe("old", "new") == {"new": observed("bb")}


def test_all_profiles_are_listed_after_a_removal(kernel: Kernel) -> None:
    """When a profile has been removed, the agent lists all profiles, because the kernel removes
    hats together with their parent.
    """
    kernel.remove_foreign("old.1")
    kernel.writer.remove("old")
    assert kernel.observe("old") == {}
    assert kernel.was_walked


def test_all_profiles_are_listed_after_an_invalidation(kernel: Kernel) -> None:
    """When the index has been invalidated, as in a full pass, the agent does not use it."""
    kernel.view.invalidate()
    assert kernel.observe("old") == {"old": observed("aa")}
    assert kernel.was_walked


def test_the_agents_own_writes_do_not_count_as_changes(kernel: Kernel) -> None:
    """After the agent's own verified writes, the policy counts as unchanged."""
    kernel.load("new.2", "new", sha1="bb")
    kernel.observe("new")
    assert kernel.view.is_unchanged()


def test_a_foreign_change_between_a_write_and_its_verification_is_noticed(kernel: Kernel) -> None:
    """The agent notices that another program changed the policy between a write and its
    verification.
    """
    kernel.load("new.2", "new", sha1="bb")
    kernel.load_foreign("old.1", "old", sha1="cc")
    kernel.observe("new")
    assert not kernel.view.is_unchanged()
    kernel.observe("new", "old", is_complete=True)
    assert kernel.view.is_unchanged()


def test_all_profiles_are_listed_after_a_foreign_change_before_an_own_write(kernel: Kernel) -> None:
    """If another program changed the policy before a write by the agent, the agent lists all
    profiles.
    """
    kernel.load_foreign("other.2", "other", sha1="ee")
    kernel.load("new.3", "new", sha1="bb")
    assert kernel.observe("other", "new") == {"other": observed("ee"), "new": observed("bb")}
    assert kernel.was_walked


def test_a_name_that_was_removed_and_loaded_again_has_another_directory(kernel: Kernel) -> None:
    """A name that was removed and loaded again has a new directory. A replaced profile keeps its
    directory.
    """
    before = kernel.view.directories(["old", "missing"])
    kernel.load_foreign("old.1", "old", sha1="bb")
    assert kernel.view.directories(["old", "missing"]) == before
    kernel.remove_foreign("old.1")
    kernel.load_foreign("old.2", "old", sha1="bb")
    after = kernel.view.directories(["old", "missing"])
    assert (before, after) == ({"old": f"{TOP}/old.1"}, {"old": f"{TOP}/old.2"})


def test_a_profile_without_hashes_does_not_hide_the_hashes_of_others(tmp_path: Path) -> None:
    """If one profile has no hashes, the agent still reads the hashes of all other profiles."""
    kernel = Kernel(tmp_path)
    loaded(tmp_path, "bare.1", "bare")
    kernel.load_foreign("both.2", "both", sha1="aa", raw_sha1="bb")
    kernel.load_foreign("between.3", "own", sha1="cc")
    both = ObservedProfile(evidence=frozenset({"own:sha1:aa", "raw:sha1:bb"}), mode="enforce")
    write(tmp_path, "/proc/sys/kernel/random/boot_id", "boot\n")
    names = ("bare", "both", "own")
    for _ in range(2):
        profiles = kernel.observe(*names)
        bare = profiles.pop("bare")
        assert [token.partition(":")[0] for token in bare.evidence] == ["object"]
        assert profiles == {"both": both, "own": observed("cc")}
        kernel.view.invalidate()


def test_a_name_longer_than_one_read_is_read_completely(kernel: Kernel) -> None:
    """A name that is longer than one read is still read completely."""
    name = "n" * 5000
    kernel.load_foreign("long.4", name, sha1="dd")
    assert kernel.observe(name) == {name: observed("dd")}


_Content = TypeVar("_Content", str, bytes)


class SwappingHost(CountingHost):
    """A host on which another program replaces the profile `old` between two system calls of the
    agent.

    Each step of the script consists of an action and a file name. The action "other" replaces the
    profile after the agent has read the file. The action "back" loads the first content again
    before the agent reads the file. Content that is loaded a second time then gets its original
    generation number again, because the kernel keeps the raw data of a version that a process uses.
    """

    def __init__(self, kernel: Kernel, script: list[tuple[str, str]]) -> None:
        super().__init__(kernel.root)
        self.kernel = kernel
        self.first = super().link(f"{TOP}/old.1/raw_data")
        self.script = list(script)

    def read_with_script(self, path: str, read: Callable[[], _Content]) -> _Content:
        if self.script and path.endswith(self.script[0][1]) and self.script[0][0] == "back":
            self.script.pop(0)
            self.kernel.load_foreign("old.1", "old", sha1="aa")
            generation = self.root / TOP.lstrip("/") / "old.1/raw_data"
            generation.unlink()
            generation.symlink_to(self.first)
        content = read()
        if self.script and path.endswith(self.script[0][1]) and self.script[0][0] == "other":
            self.script.pop(0)
            self.kernel.load_foreign("old.1", "old", sha1="cc")
        return content

    def read_once(self, path: str, *, size: int = 64) -> bytes:
        return self.read_with_script(
            path, lambda: super(SwappingHost, self).read_once(path, size=size)
        )

    def link(self, path: str) -> str:
        return self.read_with_script(path, lambda: super(SwappingHost, self).link(path))


ONCE = [("other", "mode"), ("back", "revision")]


@pytest.mark.parametrize(
    "script", [ONCE, ONCE * 2, ONCE * 5, [*ONCE, ("other", "raw_data"), ("back", "raw_data")]]
)
def test_a_profile_that_changes_while_it_is_read_is_read_again(
    kernel: Kernel, script: list[tuple[str, str]]
) -> None:
    """If a profile changes while the agent reads it, the agent does not cache the new hashes for
    the old version.
    """
    host = SwappingHost(kernel, script)
    view = PolicyView(host, RawDataRelease(host, PROBES))
    assert (view.observe(["old"]), host.script) == ({"old": observed("aa")}, [])


# --- raw data that the kernel has not released yet ---


class ReleasingKernel(Kernel):
    """A fake kernel that releases removed raw data after some seconds. A pause advances the clock
    of the kernel.
    """

    def __init__(self, root: Path, after: float) -> None:
        self.now = 0.0
        self.after = after
        probes = replace(PROBES, clock=lambda: self.now, pause=self.pause)
        super().__init__(root, probes)
        self.unreleased: list[Path] = []

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.after:
            for directory in self.unreleased:
                directory.rmdir()
            self.unreleased = []

    def load_together(self, *names: str) -> Path:
        """Load several profiles in one write, so that they share their raw data."""
        for name in names:
            self.load_foreign(f"{name}.1", name, sha1="aa", raw_sha1="bb")
            self.number -= name != names[-1]
        raw_data = f"{kernel_access.ROOT}/policy/raw_data/{self.number}"
        directory = self.root / raw_data.lstrip("/")
        directory.mkdir(parents=True)
        return directory


@pytest.mark.parametrize(
    ("after", "waited"), [(0.02, 0.02), (9.0, raw_data_release.RELEASE_SECONDS)]
)
def test_a_removed_profile_is_loaded_again_after_the_kernel_released_it(
    tmp_path: Path, after: float, waited: float
) -> None:
    """Before the agent loads a removed profile again, it waits until the kernel has released the
    raw data of the profile.
    """
    kernel = ReleasingKernel(tmp_path, after)
    kernel.unreleased = [kernel.load_together("x")]
    kernel.observe("x", is_complete=True)
    kernel.remove_foreign("x.1")
    kernel.observe("x", is_complete=True)
    kernel.writer.load(b"policy")
    assert kernel.now == pytest.approx(waited, abs=0.002)
    kernel.writer.load(b"policy")
    assert kernel.now == pytest.approx(waited, abs=0.002)


def test_a_replaced_profile_is_restored_after_the_kernel_released_it(tmp_path: Path) -> None:
    """Before the agent restores a replaced profile, it waits until the kernel has released the old
    raw data.
    """
    kernel = ReleasingKernel(tmp_path, 0.02)
    kernel.unreleased = [kernel.load_together("x")]
    kernel.observe("x", is_complete=True)
    kernel.load_together("x")
    kernel.observe("x", is_complete=True)
    kernel.writer.replace(b"policy")
    assert kernel.now == pytest.approx(0.02, abs=0.002)


def test_the_agent_waits_for_the_raw_data_of_a_profile_that_it_removed(tmp_path: Path) -> None:
    """The agent also waits for the raw data of a profile that it removed itself."""
    kernel = ReleasingKernel(tmp_path, 0.02)
    kernel.unreleased = [kernel.load_together("x")]
    kernel.observe("x", is_complete=True)
    kernel.writer.remove("x")
    kernel.writer.replace(b"policy")
    assert kernel.now == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize(("removed", "tracked"), [("x", ("x", "y")), ("", ("y",))])
def test_the_agent_does_not_wait_for_raw_data_that_stay_referenced(
    tmp_path: Path, removed: str, tracked: tuple[str, ...]
) -> None:
    """The agent does not wait for raw data that another profile still references."""
    kernel = ReleasingKernel(tmp_path, 9.0)
    for load in [("x", "y")] if removed else [("x",), ("y",)]:
        kernel.load_together(*load)
    kernel.observe("x", "y", is_complete=True)
    if removed:
        kernel.remove_foreign(f"{removed}.1")
    kernel.observe(*tracked, is_complete=True)
    kernel.writer.load(b"policy")
    assert kernel.now == 0.0
