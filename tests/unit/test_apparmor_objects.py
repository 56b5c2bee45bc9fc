"""The record of loaded AppArmor objects: what it proves, and what it must never prove."""

import pytest

from agent.doors.host import Host
from agent.kinds.apparmor.objects import FILE, Objects

STATE = "/state"
BOOT = "/proc/sys/kernel/random/boot_id"


@pytest.fixture
def host(tmp_path):
    """Return a host with a boot id and an empty state directory."""
    (tmp_path / "state").mkdir()
    boot = tmp_path / BOOT.lstrip("/")
    boot.parent.mkdir(parents=True)
    boot.write_text("first\n")
    return Host(tmp_path)


def objects(host, **more):
    """Return the record as a process that just started sees it."""
    return Objects(host, STATE, **{"write": True, **more})


def record(host):
    """Return the file of the record."""
    return host.path(f"{STATE}/{FILE}")


def test_a_loaded_object_is_own_in_the_next_process_too(host):
    """Only under its name, and only in its directory."""
    one = objects(host)
    one.record({"web": "web.1", "web//HAT": "web.1/profiles/HAT.2"})
    one.record({"other": "other.3"})
    found = {"web": "web.4", "web//HAT": "web.1/profiles/HAT.2", "other": "other.3", "x": "web.1"}
    expected = frozenset({"web//HAT", "other"})
    assert (one.own(found, 9), objects(host).own(found, 9)) == (expected, expected)


def test_directories_count_anew_at_each_boot(host):
    """The record of another boot proves nothing, and is replaced."""
    objects(host).record({"web": "web.1"})
    host.path(BOOT).write_text("second\n")
    after = objects(host)
    assert after.own({"web": "web.1"}, 1) == frozenset()
    after.record({"next": "next.1"})
    assert objects(host).own({"web": "web.1", "next": "next.1"}, 2) == frozenset({"next"})


@pytest.mark.parametrize(("revision", "own"), [(7, {"web"}), (6, set()), (8, set())])
def test_an_interrupted_load_is_believed_if_nothing_else_changed_policy(host, revision, own):
    """The process ended between the load and its record."""
    objects(host).begin(["web"], 6)
    found = {"web": "web.1"}
    assert objects(host).own(found, revision) == own
    # What was found out once holds when policy changes later.
    assert objects(host).own(found, 99) == own


def test_a_load_that_failed_proves_nothing(host):
    """Another program may load the name next."""
    one = objects(host)
    one.begin(["web"], 6)
    one.record({})
    assert objects(host).own({"web": "web.1"}, 7) == frozenset()


def test_without_a_boot_id_nothing_is_own(host):
    """Directories alone do not identify an object."""
    one = objects(host)
    one.record({"web": "web.1"})
    host.path(BOOT).unlink()
    assert objects(host).own({"web": "web.1"}, 1) == frozenset()


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"{}\n", b'{"own":1}\n'])
def test_a_damaged_line_says_nothing(host, damage):
    """The lines around it are believed."""
    one = objects(host)
    one.record({"a": "a.1"})
    with record(host).open("ab") as file:
        file.write(damage)
    found = {"a": "a.1", "b": "b.2"}
    again = objects(host)
    assert again.own(found, 1) == frozenset({"a"})
    again.record({"b": "b.2"})
    assert objects(host).own(found, 1) == frozenset({"a", "b"})


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense"])
def test_a_damaged_first_line_makes_the_record_empty(host, content):
    """Then it is not known of which boot it is."""
    objects(host).record({"a": "a.1"})
    record(host).write_bytes(content)
    again = objects(host)
    assert again.own({"a": "a.1"}, 1) == frozenset()
    again.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1) == frozenset({"b"})


def test_a_line_that_was_cut_off_does_not_swallow_the_next_one(host):
    """As on a full disk."""
    objects(host).record({"a": "a.1"})
    with record(host).open("ab") as file:
        file.write(b'{"loa')
    objects(host).record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1) == frozenset({"a", "b"})


def test_a_record_that_somebody_deleted_is_written_whole_again(host):
    """The process still knows what it loaded."""
    one = objects(host)
    one.record({"a": "a.1"})
    record(host).unlink()
    one.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1) == frozenset({"a", "b"})


def test_a_record_that_cannot_be_written_is_kept_in_memory(host):
    """It is written as soon as there is room."""
    base = host.path(STATE)
    base.rmdir()
    base.write_text("no directory")
    one = objects(host)
    one.record({"a": "a.1"})
    assert one.own({"a": "a.1"}, 1) == frozenset({"a"})
    base.unlink()
    one.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1) == frozenset({"a", "b"})


def test_a_long_record_is_shortened(host):
    """Its length depends on the number of names, not on the number of loads."""
    one = objects(host)
    for number in range(5000):
        one.record({"web": f"web.{number}"})
    assert len(record(host).read_bytes().splitlines()) < 4200
    assert objects(host).own({"web": "web.4999"}, 1) == frozenset({"web"})


def test_a_dry_run_writes_nothing(host):
    """It reads the record, and finishes no interrupted load."""
    objects(host).begin(["web"], 6)
    before = record(host).read_bytes()
    assert objects(host, write=False).own({"web": "web.1"}, 7) == frozenset({"web"})
    assert record(host).read_bytes() == before
