"""The record of loaded AppArmor objects: what it proves, and what it must never prove."""

import contextlib
import os

import pytest

from agent.backends.apparmor.loaded_objects import FILE, LoadedObjects
from agent.core.model import ObservedProfile
from agent.host.filesystem import Host

STATE = "/state"
BOOT = "/proc/sys/kernel/random/boot_id"
EXPECTED = {"web": frozenset({"own:sha256:1", "raw:sha256:2"})}
FACTS = {"web": ObservedProfile(evidence=frozenset({"own:sha256:1"}), mode="enforce")}


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
    return LoadedObjects(host, STATE, **{"write": True, **more})


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
    assert (one.own(found, 9, FACTS), objects(host).own(found, 9, FACTS)) == (expected, expected)


def test_directories_count_anew_at_each_boot(host):
    """The record of another boot proves nothing, and is replaced."""
    objects(host).record({"web": "web.1"})
    host.path(BOOT).write_text("second\n")
    after = objects(host)
    assert after.own({"web": "web.1"}, 1, FACTS) == frozenset()
    after.record({"next": "next.1"})
    assert objects(host).own({"web": "web.1", "next": "next.1"}, 2, FACTS) == frozenset({"next"})


@pytest.mark.parametrize(("revision", "own"), [(7, {"web"}), (6, set()), (8, set())])
def test_an_interrupted_load_is_believed_if_nothing_else_changed_policy(host, revision, own):
    """The process ended between the load and its record."""
    objects(host).begin(EXPECTED, 6)
    found = {"web": "web.1"}
    assert objects(host).own(found, revision, FACTS) == own
    # What was found out once holds when policy changes later.
    assert objects(host).own(found, 99, FACTS) == own


@pytest.mark.parametrize(
    ("facts", "own"),
    [
        ({"web": ObservedProfile(evidence=frozenset({"own:sha256:3"}), mode="enforce")}, set()),
        (
            {
                "web": ObservedProfile(
                    evidence=frozenset({"object:1"}), mode="enforce", is_readable=False
                )
            },
            {"web"},
        ),
        ({}, set()),
    ],
    ids=["other content", "no content shown", "not loaded"],
)
def test_an_interrupted_load_is_believed_if_the_content_is_the_expected_one(host, facts, own):
    """Another program may load the name right after the agent was killed, as the only change."""
    objects(host).begin(EXPECTED, 6)
    assert objects(host).own({"web": "web.1"}, 7, facts) == own


def test_a_load_that_failed_proves_nothing(host):
    """Another program may load the name next."""
    one = objects(host)
    one.begin(EXPECTED, 6)
    one.record({})
    assert objects(host).own({"web": "web.1"}, 7, FACTS) == frozenset()


def test_without_a_boot_id_nothing_is_own(host):
    """Directories alone do not identify an object."""
    one = objects(host)
    one.record({"web": "web.1"})
    host.path(BOOT).unlink()
    assert objects(host).own({"web": "web.1"}, 1, FACTS) == frozenset()


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"{}\n", b'{"own":1}\n'])
def test_a_damaged_line_says_nothing(host, damage):
    """The lines around it are believed."""
    one = objects(host)
    one.record({"a": "a.1"})
    with record(host).open("ab") as file:
        file.write(damage)
    found = {"a": "a.1", "b": "b.2"}
    again = objects(host)
    assert again.own(found, 1, FACTS) == frozenset({"a"})
    again.record({"b": "b.2"})
    assert objects(host).own(found, 1, FACTS) == frozenset({"a", "b"})


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense"])
def test_a_damaged_first_line_makes_the_record_empty(host, content):
    """Then it is not known of which boot it is."""
    objects(host).record({"a": "a.1"})
    record(host).write_bytes(content)
    again = objects(host)
    assert again.own({"a": "a.1"}, 1, FACTS) == frozenset()
    again.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, FACTS) == frozenset({"b"})


def test_a_line_that_was_cut_off_does_not_swallow_the_next_one(host):
    """As on a full disk."""
    objects(host).record({"a": "a.1"})
    with record(host).open("ab") as file:
        file.write(b'{"loa')
    objects(host).record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, FACTS) == frozenset({"a", "b"})


def test_a_record_that_somebody_deleted_is_written_whole_again(host):
    """The process still knows what it loaded."""
    one = objects(host)
    one.record({"a": "a.1"})
    record(host).unlink()
    one.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, FACTS) == frozenset({"a", "b"})


@pytest.mark.parametrize("reader", [False, True])
def test_a_fifo_in_place_of_the_record_is_replaced(host, reader):
    """An append must not wait for a reader, and must not write into the FIFO."""
    one = objects(host)
    one.record({"a": "a.1"})
    record(host).unlink()
    os.mkfifo(record(host))
    with contextlib.ExitStack() as stack:
        if reader:
            stack.callback(os.close, os.open(record(host), os.O_RDONLY | os.O_NONBLOCK))
        one.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, FACTS) == frozenset({"a", "b"})


def test_a_record_that_cannot_be_written_is_kept_in_memory(host):
    """It is written as soon as there is room."""
    base = host.path(STATE)
    base.rmdir()
    base.write_text("no directory")
    one = objects(host)
    one.record({"a": "a.1"})
    assert one.own({"a": "a.1"}, 1, FACTS) == frozenset({"a"})
    base.unlink()
    one.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, FACTS) == frozenset({"a", "b"})


def test_a_long_record_is_shortened(host):
    """Its length depends on the number of names, not on the number of loads."""
    one = objects(host)
    for number in range(5000):
        one.record({"web": f"web.{number}"})
    assert len(record(host).read_bytes().splitlines()) < 4200
    assert objects(host).own({"web": "web.4999"}, 1, FACTS) == frozenset({"web"})


def test_a_dry_run_writes_nothing(host):
    """It reads the record, and finishes no interrupted load."""
    objects(host).begin(EXPECTED, 6)
    before = record(host).read_bytes()
    assert objects(host, write=False).own({"web": "web.1"}, 7, FACTS) == frozenset({"web"})
    assert record(host).read_bytes() == before
