"""Tests of the record of the AppArmor objects that this agent loaded."""

import contextlib
import os
from pathlib import Path

import pytest

from agent.backends.apparmor.loaded_objects import FILE, LoadedObjects
from agent.core.model import ObservedProfile
from agent.host.filesystem import Host
from tests.narrowing import not_none

STATE = "/state"
BOOT = "/proc/sys/kernel/random/boot_id"
EXPECTED = {"web": frozenset({"own:sha256:1", "raw:sha256:2"})}
PROFILES = {"web": ObservedProfile(evidence=frozenset({"own:sha256:1"}), mode="enforce")}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host with a boot ID and an empty state directory."""
    (tmp_path / "state").mkdir()
    boot = tmp_path / BOOT.lstrip("/")
    boot.parent.mkdir(parents=True)
    boot.write_text("first\n")
    return Host(tmp_path)


def objects(host: Host, **more: bool) -> LoadedObjects:
    """Return the record of loaded objects for an agent that has just started."""
    return LoadedObjects(host, STATE, **{"may_write": True, **more})


def record(host: Host) -> Path:
    """Return the path of the record."""
    return host.path(f"{STATE}/{FILE}")


def test_a_loaded_object_is_also_agent_owned_for_the_next_process(host: Host) -> None:
    """The next agent process recognizes an agent-owned object by its name and its directory."""
    own_objects = objects(host)
    own_objects.record({"web": "web.1", "web//HAT": "web.1/profiles/HAT.2"})
    own_objects.record({"other": "other.3"})
    result = {"web": "web.4", "web//HAT": "web.1/profiles/HAT.2", "other": "other.3", "x": "web.1"}
    expected = frozenset({"web//HAT", "other"})
    assert (own_objects.own(result, 9, PROFILES), objects(host).own(result, 9, PROFILES)) == (
        expected,
        expected,
    )


def test_the_record_of_another_boot_is_ignored_and_replaced(host: Host) -> None:
    """A record from another boot is ignored, because the kernel reuses directory numbers after a
    reboot.
    """
    objects(host).record({"web": "web.1"})
    host.path(BOOT).write_text("second\n")
    after = objects(host)
    assert after.own({"web": "web.1"}, 1, PROFILES) == frozenset()
    after.record({"next": "next.1"})
    assert objects(host).own({"web": "web.1", "next": "next.1"}, 2, PROFILES) == frozenset({"next"})


@pytest.mark.parametrize(("revision", "own"), [(7, {"web"}), (6, set()), (8, set())])
def test_an_interrupted_load_counts_if_it_was_the_only_change_of_policy(
    host: Host, revision: int, own: set[str]
) -> None:
    """If the agent exited between a load and its record, the object counts as agent-owned if no
    other change of the policy happened.
    """
    objects(host).begin(EXPECTED, 6)
    result = {"web": "web.1"}
    assert objects(host).own(result, revision, PROFILES) == own
    # Later changes of the policy do not change the result.
    assert objects(host).own(result, 99, PROFILES) == own


@pytest.mark.parametrize(
    ("profiles", "own"),
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
def test_an_interrupted_load_counts_if_the_kernel_shows_the_expected_content(
    host: Host, profiles: dict[str, ObservedProfile], own: set[str]
) -> None:
    """If a load was interrupted, the object counts as agent-owned only if it has the expected
    content.
    """
    objects(host).begin(EXPECTED, 6)
    assert objects(host).own({"web": "web.1"}, 7, profiles) == own


def test_a_failed_load_is_not_an_interrupted_load(host: Host) -> None:
    """If a load failed, an object of the same name that another program loads does not count as
    agent-owned.
    """
    own_objects = objects(host)
    own_objects.begin(EXPECTED, 6)
    own_objects.record({})
    assert objects(host).own({"web": "web.1"}, 7, PROFILES) == frozenset()


def test_without_a_boot_id_no_object_is_agent_owned(host: Host) -> None:
    """Without a boot ID, no object counts as agent-owned, because directory numbers restart at each
    boot.
    """
    own_objects = objects(host)
    own_objects.record({"web": "web.1"})
    host.path(BOOT).unlink()
    assert objects(host).own({"web": "web.1"}, 1, PROFILES) == frozenset()


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"{}\n", b'{"own":1}\n'])
def test_a_damaged_line_is_ignored(host: Host, damage: bytes) -> None:
    """If one line of the record is damaged, the other lines stay valid."""
    own_objects = objects(host)
    own_objects.record({"a": "a.1"})
    with record(host).open("ab") as file:
        file.write(damage)
    result = {"a": "a.1", "b": "b.2"}
    restarted = objects(host)
    assert restarted.own(result, 1, PROFILES) == frozenset({"a"})
    restarted.record({"b": "b.2"})
    assert objects(host).own(result, 1, PROFILES) == frozenset({"a", "b"})


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense"])
def test_a_damaged_first_line_makes_the_record_empty(host: Host, content: bytes) -> None:
    """If the first line, which contains the boot ID, is damaged, the agent ignores the whole
    record.
    """
    objects(host).record({"a": "a.1"})
    record(host).write_bytes(content)
    restarted = objects(host)
    assert restarted.own({"a": "a.1"}, 1, PROFILES) == frozenset()
    restarted.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, PROFILES) == frozenset({"b"})


def test_a_truncated_line_does_not_damage_the_next_line(host: Host) -> None:
    """If a full disk truncated a line, the next line is still valid."""
    objects(host).record({"a": "a.1"})
    with record(host).open("ab") as file:
        file.write(b'{"loa')
    objects(host).record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, PROFILES) == frozenset({"a", "b"})


def test_a_deleted_record_is_written_completely_again(host: Host) -> None:
    """If the record is deleted, the agent writes it again from its memory."""
    own_objects = objects(host)
    own_objects.record({"a": "a.1"})
    record(host).unlink()
    own_objects.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, PROFILES) == frozenset({"a", "b"})


@pytest.mark.parametrize("reader", [False, True])
def test_a_fifo_in_place_of_the_record_is_replaced(host: Host, reader: bool) -> None:
    """If a FIFO is at the path of the record, the agent replaces it, and does not wait for another
    process.
    """
    own_objects = objects(host)
    own_objects.record({"a": "a.1"})
    record(host).unlink()
    os.mkfifo(record(host))
    with contextlib.ExitStack() as stack:
        if reader:
            stack.callback(os.close, os.open(record(host), os.O_RDONLY | os.O_NONBLOCK))
        own_objects.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, PROFILES) == frozenset({"a", "b"})


def test_a_record_that_cannot_be_written_is_kept_in_memory(host: Host) -> None:
    """If a write of the record fails, the next successful write contains all objects."""
    base = host.path(STATE)
    base.rmdir()
    base.write_text("a file in place of the directory")
    own_objects = objects(host)
    own_objects.record({"a": "a.1"})
    assert own_objects.own({"a": "a.1"}, 1, PROFILES) == frozenset({"a"})
    base.unlink()
    own_objects.record({"b": "b.2"})
    assert objects(host).own({"a": "a.1", "b": "b.2"}, 1, PROFILES) == frozenset({"a", "b"})


def test_a_record_that_cannot_be_written_is_reported_until_it_is_written(host: Host) -> None:
    """If a write of the record fails, the agent reports this until a write succeeds."""
    base = host.path(STATE)
    base.rmdir()
    base.write_text("a file in place of the directory")
    own_objects = objects(host)
    assert own_objects.finding() is None
    own_objects.begin(EXPECTED, 6)
    own_objects.record({"web": "web.1"})
    assert not_none(own_objects.finding()).code == "write_failed"
    assert not_none(own_objects.finding()).location == f"{STATE}/{FILE}"
    base.unlink()
    base.mkdir()
    assert own_objects.finding() is None
    assert objects(host).own({"web": "web.1"}, 9, PROFILES) == frozenset({"web"})


def test_a_long_record_is_shortened(host: Host) -> None:
    """The length of the record depends on the number of names, and not on the number of loads."""
    own_objects = objects(host)
    for number in range(5000):
        own_objects.record({"web": f"web.{number}"})
    assert len(record(host).read_bytes().splitlines()) < 4200
    assert objects(host).own({"web": "web.4999"}, 1, PROFILES) == frozenset({"web"})


def test_a_dry_run_writes_nothing(host: Host) -> None:
    """A dry run reads the record, but does not write the result of an interrupted load."""
    objects(host).begin(EXPECTED, 6)
    before = record(host).read_bytes()
    assert objects(host, may_write=False).own({"web": "web.1"}, 7, PROFILES) == frozenset({"web"})
    assert record(host).read_bytes() == before
