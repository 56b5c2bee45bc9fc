"""Specification of the short way to what was just loaded: as sure as the walk, or silent."""

from dataclasses import replace

import pytest

from agent.backends.apparmor import kernel, kernel_access
from agent.core.model import ObservedProfile
from agent.host.filesystem import Host
from tests.unit.test_apparmor_faults import PROBES, loaded, node, write

TOP = f"{kernel_access.ROOT}/policy/profiles"


class Counting(Host):
    """A host that notes which files and directories are read."""

    def __init__(self, root):
        super().__init__(root)
        self.seen = []

    def read(self, path, *, limit=64 << 20):
        self.seen.append(path)
        return super().read(path, limit=limit)

    def read_once(self, path, *, size=64):
        self.seen.append(path)
        return super().read_once(path, size=size)

    def names(self, path):
        self.seen.append(path)
        return super().names(path)


class Place:
    """A kernel with some profiles, and a write to it that the kernel would answer."""

    def __init__(self, root):
        self.root = root
        node(root, revision="1\n")
        self.host = Counting(root)
        self.kernel = kernel.Kernel(self.host, PROBES)
        self.number = 1

    def load(self, directory, name, **hashes):
        """Load as this agent does: one revision further."""
        self.appear(directory, name, **hashes)
        self.kernel.load(b"policy")

    def appear(self, directory, name, **hashes):
        loaded(self.root, directory, name, **hashes)
        generation = self.root / TOP.lstrip("/") / directory / "raw_data"
        generation.unlink(missing_ok=True)
        self.number += 1
        generation.symlink_to(f"../../raw_data/{self.number}/raw_data")
        write(self.root, f"{kernel_access.ROOT}/revision", f"{self.number}\n")

    def look(self, *names, whole=False):
        self.host.seen.clear()
        return self.kernel.observe(names, whole=whole)


def fact(hash_):
    return ObservedProfile(evidence=frozenset({f"own:sha1:{hash_}"}), mode="enforce")


@pytest.fixture
def place(tmp_path):
    one = Place(tmp_path)
    one.appear("old.1", "old", sha1="aa")
    one.look("old", whole=True)
    return one


def test_what_was_just_loaded_is_found_without_reading_the_others(place):
    """A new profile is looked for among what is new."""
    place.load("new.2", "new", sha1="bb")
    assert place.look("new", "absent") == {"new": fact("bb")}
    assert [one for one in place.host.seen if "old.1" in one or one == TOP] == []


def test_what_was_just_replaced_is_read_again(place):
    """The directory stays, its content is another one."""
    place.load("old.1", "old", sha1="cc")
    assert place.look("old") == {"old": fact("cc")}
    assert TOP not in place.host.seen


def test_hats_of_what_was_just_loaded_are_found(place):
    """A hat lies below its parent, whose place has to be known first."""
    loaded(place.root, "new.2/profiles/HAT.3", "HAT", sha1="dd")
    place.load("new.2", "new", sha1="bb")
    assert place.look("new//HAT", "new") == {"new": fact("bb"), "new//HAT": fact("dd")}
    assert TOP not in place.host.seen


def test_a_change_of_somebody_else_makes_it_walk(place):
    """Another revision than that of the own writes tells of others."""
    place.load("new.2", "new", sha1="bb")
    place.appear("other.3", "other", sha1="ee")
    assert place.look("other", "new") == {"other": fact("ee"), "new": fact("bb")}
    assert TOP in place.host.seen


def test_a_place_with_another_name_makes_it_walk(place):
    """A directory is believed for what its name file says, not for where it was."""
    place.load("old.1", "else", sha1="ff")
    assert place.look("old", "else") == {"else": fact("ff")}
    assert TOP in place.host.seen


def test_a_place_that_is_gone_makes_it_walk(place):
    """What was there and is not is no answer."""
    place.load("new.2", "new", sha1="bb")
    (place.root / TOP.lstrip("/") / "old.1").rename(place.root / "away")
    assert place.look("old", "new") == {"new": fact("bb")}


def test_after_a_removal_everything_is_walked(place):
    """Hats go with their parents."""
    (place.root / TOP.lstrip("/") / "old.1").rename(place.root / "away")
    place.number += 1
    write(place.root, f"{kernel_access.ROOT}/revision", f"{place.number}\n")
    place.kernel.remove("old")
    assert place.look("old") == {}
    assert TOP in place.host.seen


def test_after_forgetting_everything_is_walked(place):
    """A resync trusts no place."""
    place.kernel.invalidate()
    assert place.look("old") == {"old": fact("aa")}
    assert TOP in place.host.seen


def test_own_writes_alone_leave_the_node_as_it_is_known(place):
    """What this agent loaded and verified calls for no further look."""
    place.load("new.2", "new", sha1="bb")
    place.look("new")
    assert place.kernel.is_unchanged()


def test_a_change_between_a_write_and_its_verification_is_not_forgotten(place):
    """A look at what was written sees no change of the other names: the node counts as touched."""
    place.load("new.2", "new", sha1="bb")
    place.appear("old.1", "old", sha1="cc")
    place.look("new")
    assert not place.kernel.is_unchanged()
    place.look("new", "old", whole=True)
    assert place.kernel.is_unchanged()


def test_a_change_of_somebody_else_before_an_own_write_makes_it_walk(place):
    """An own write does not make the places of before complete."""
    place.appear("other.2", "other", sha1="ee")
    place.load("new.3", "new", sha1="bb")
    assert place.look("other", "new") == {"other": fact("ee"), "new": fact("bb")}
    assert TOP in place.host.seen


def test_a_name_that_was_removed_and_loaded_again_has_another_directory(place):
    """A replacement keeps the directory; names that are not loaded have none."""
    before = place.kernel.directories(["old", "missing"])
    place.appear("old.1", "old", sha1="bb")
    assert place.kernel.directories(["old", "missing"]) == before
    (place.root / TOP.lstrip("/") / "old.1").rename(place.root / "away")
    place.appear("old.2", "old", sha1="bb")
    after = place.kernel.directories(["old", "missing"])
    assert (before, after) == ({"old": f"{TOP}/old.1"}, {"old": f"{TOP}/old.2"})


def test_a_profile_without_a_hash_says_nothing_of_the_others(tmp_path):
    """Which hashes the kernel shows is learned from a profile that has both, and of each anew."""
    place = Place(tmp_path)
    loaded(tmp_path, "bare.1", "bare")
    place.appear("both.2", "both", sha1="aa", raw_sha1="bb")
    place.appear("between.3", "own", sha1="cc")
    both = ObservedProfile(evidence=frozenset({"own:sha1:aa", "raw:sha1:bb"}), mode="enforce")
    write(tmp_path, "/proc/sys/kernel/random/boot_id", "boot\n")
    names = ("bare", "both", "own")
    for _ in range(2):
        found = place.look(*names)
        bare = found.pop("bare")
        assert [one.partition(":")[0] for one in bare.evidence] == ["object"]
        assert found == {"both": both, "own": fact("cc")}
        place.kernel.invalidate()


def test_a_name_longer_than_a_read_is_read_whole(place):
    """The kernel allows names of any length."""
    name = "n" * 5000
    place.appear("long.4", name, sha1="dd")
    assert place.look(name) == {name: fact("dd")}


class Swapping(Counting):
    """A host with a kernel that somebody changes between two of the agent's system calls.

    script: after which file another profile comes into the place of `old`, or before which `old`
    is back under its former generation: the kernel keeps what was loaded while somebody uses it.
    """

    def __init__(self, place, script):
        super().__init__(place.root)
        self.place = place
        self.first = super().link(f"{TOP}/old.1/raw_data")
        self.script = list(script)

    def asked(self, path, answer):
        if self.script and path.endswith(self.script[0][1]) and self.script[0][0] == "back":
            self.script.pop(0)
            self.place.appear("old.1", "old", sha1="aa")
            back = self.root / TOP.lstrip("/") / "old.1/raw_data"
            back.unlink()
            back.symlink_to(self.first)
        found = answer()
        if self.script and path.endswith(self.script[0][1]) and self.script[0][0] == "other":
            self.script.pop(0)
            self.place.appear("old.1", "old", sha1="cc")
        return found

    def read_once(self, path, *, size=64):
        return self.asked(path, lambda: super(Swapping, self).read_once(path, size=size))

    def link(self, path):
        return self.asked(path, lambda: super(Swapping, self).link(path))


ONCE = [("other", "mode"), ("back", "revision")]


@pytest.mark.parametrize(
    "script", [ONCE, ONCE * 2, ONCE * 5, [*ONCE, ("other", "raw_data"), ("back", "raw_data")]]
)
def test_what_was_swapped_while_it_was_read_is_read_again(place, script):
    """Hashes of a replacement are not kept for what it replaced, once that is back."""
    swapping = Swapping(place, script)
    found = kernel.Kernel(swapping, PROBES).observe(["old"])
    assert (found, swapping.script) == ({"old": fact("aa")}, [])


# --- what the kernel has not let go of yet --------------------------------------------------------


class Freeing:
    """A kernel that lets go of removed raw data after a while, and a clock that waiting moves."""

    def __init__(self, root, after):
        self.place = Place(root)
        self.now = 0.0
        self.after = after
        probes = replace(PROBES, clock=lambda: self.now, pause=self.pause)
        self.place.kernel = kernel.Kernel(self.place.host, probes)
        self.left = []

    def pause(self, seconds):
        self.now += seconds
        if self.now >= self.after:
            for one in self.left:
                one.rmdir()
            self.left = []

    def appear(self, *names):
        """Load names in one write, which has one raw data."""
        for name in names:
            self.place.appear(f"{name}.1", name, sha1="aa", raw_sha1="bb")
            self.place.number -= name != names[-1]
        raw = self.place.root / f"{kernel_access.ROOT}/policy/raw_data/{self.place.number}".lstrip(
            "/"
        )
        raw.mkdir(parents=True)
        return raw

    def vanish(self, name):
        (self.place.root / TOP.lstrip("/") / f"{name}.1").rename(self.place.root / f"gone-{name}")
        self.place.number += 1
        write(self.place.root, f"{kernel_access.ROOT}/revision", f"{self.place.number}\n")


@pytest.mark.parametrize(("after", "waited"), [(0.02, 0.02), (9.0, kernel.LET_GO_SECONDS)])
def test_what_was_removed_is_loaded_again_once_the_kernel_let_go_of_it(tmp_path, after, waited):
    """Not later than a tenth of a second: a process may hold it for as long as it lives."""
    one = Freeing(tmp_path, after)
    one.left = [one.appear("x")]
    one.place.look("x", whole=True)
    one.vanish("x")
    one.place.look("x", whole=True)
    one.place.kernel.load(b"policy")
    assert one.now == pytest.approx(waited, abs=0.002)
    one.place.kernel.load(b"policy")
    assert one.now == pytest.approx(waited, abs=0.002)


def test_what_somebody_replaced_comes_back_once_the_kernel_let_go_of_it(tmp_path):
    """The bytes that are put back are those that are just being freed."""
    one = Freeing(tmp_path, 0.02)
    one.left = [one.appear("x")]
    one.place.look("x", whole=True)
    one.appear("x")
    one.place.look("x", whole=True)
    one.place.kernel.replace(b"policy")
    assert one.now == pytest.approx(0.02, abs=0.002)


def test_what_this_agent_removed_is_waited_for_too(tmp_path):
    """A text may come back as soon as it went."""
    one = Freeing(tmp_path, 0.02)
    one.left = [one.appear("x")]
    one.place.look("x", whole=True)
    one.place.kernel.remove("x")
    one.place.kernel.replace(b"policy")
    assert one.now == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize(("gone", "asked"), [("x", ("x", "y")), ("", ("y",))])
def test_what_is_held_or_no_longer_ours_is_not_waited_for(tmp_path, gone, asked):
    """Another profile of the same load holds it, or it was only released and is still loaded."""
    one = Freeing(tmp_path, 9.0)
    for load in [("x", "y")] if gone else [("x",), ("y",)]:
        one.appear(*load)
    one.place.look("x", "y", whole=True)
    if gone:
        one.vanish(gone)
    one.place.look(*asked, whole=True)
    one.place.kernel.load(b"policy")
    assert one.now == 0.0
