"""Tests that a profile causes a warning if and only if a runtime cannot start a container under
this profile.
"""

import json
import time

import pytest

from agent.backends.seccomp import releases, start
from agent.backends.seccomp.backend import SeccompBackend
from agent.core.finding_codes import FindingCode
from agent.host.filesystem import Host
from tests.narrowing import not_none

EVERY = frozenset().union(
    *(one.calls(no_new_privs=False) | one.replaceable | one.replacements for one in start.MEASURED)
)
PROGRAM = {"arch_prctl"}
NEWEST = "futex_waitv"  # newer than all system calls that runtimes need


def warning(
    allowed: frozenset[str] | set[str], floor: str = ""
) -> tuple[FindingCode, str, str] | None:
    """Return the code and the message of the warning about an allow list, or None without a
    warning.
    """
    tree = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": sorted({*allowed, NEWEST}), "action": "SCMP_ACT_ALLOW"}],
    }
    backend = SeccompBackend(
        host=Host("/"), clock_ns=time.time_ns, machine="x86_64", floor=releases.parse(floor)
    )
    body, findings = backend.check(json.dumps(tree).encode())
    assert body, findings
    result = [one for one in findings if one.code.startswith("start_")]
    assert len(result) <= 1
    return (result[0].code, result[0].message, result[0].hint) if result else None


def test_a_profile_with_every_needed_call_has_no_warning() -> None:
    """A profile with every listed call has no warning, because the listed calls are sufficient for
    a runtime.
    """
    assert warning(EVERY | PROGRAM) is None


@pytest.mark.parametrize("name", sorted(EVERY - {"openat2", "fcntl", "readlinkat"}))
def test_each_needed_call_alone_causes_a_warning(name: str) -> None:
    """Each missing call by itself causes a warning that contains exactly this call."""
    code, message, _ = not_none(warning((EVERY | PROGRAM) - {name}))
    assert message.count(f" needs {name}") == message.count(" needs ") > 0
    affected = [
        (one, is_set)
        for one in start.MEASURED
        for is_set in (True, False)
        if name in one.calls(no_new_privs=is_set)
    ]
    everywhere = len(affected) == 2 * len(start.MEASURED)
    assert code == ("start_impossible" if everywhere else "start_limited")


@pytest.mark.parametrize(
    ("missing", "needed"),
    [
        ({"openat2"}, None),
        ({"fcntl", "readlinkat"}, None),
        ({"openat2", "fcntl"}, "runc 1.3.6 with no_new_privs needs fcntl"),
        ({"openat2", "readlinkat"}, "runc 1.3.6 with no_new_privs needs readlinkat"),
    ],
)
def test_a_call_that_a_runtime_replaces_is_not_needed_alone(
    missing: set[str], needed: str | None
) -> None:
    """A runtime can replace openat2 by other calls. A profile without openat2 has a warning only if
    these other calls are missing.
    """
    result = warning((EVERY | PROGRAM) - missing)
    assert (result is None) == (needed is None)
    assert result is None or needed is None or needed in result[1]


def test_a_profile_that_only_suits_no_new_privs_is_limited() -> None:
    """If only pods with allowPrivilegeEscalation: false can start under a profile, the hint refers
    to this field.
    """
    allowed = frozenset().union(*(one.calls(no_new_privs=True) for one in start.MEASURED))
    code, message, hint = not_none(warning(allowed | PROGRAM | {"openat2"}))
    assert code == "start_limited"
    assert "with no_new_privs" not in message.replace("without", "")
    assert "allowPrivilegeEscalation: false" in hint


def test_programs_need_additional_calls() -> None:
    """A profile can be sufficient for a runtime but not for programs. The warning then lists the
    calls that programs in C or Go need.
    """
    code, message, hint = not_none(warning(EVERY))
    assert code == "start_impossible"
    assert message == (
        "Programs cannot start in a container with this profile: programs written in C or Go need "
        "arch_prctl."
    )
    assert hint == "Allow these calls."


@pytest.mark.parametrize(
    ("floor", "labels"),
    [
        ("", {"runc 1.1.5", "runc 1.3.6", "crun 1.8.1"}),
        ("runc=1.2", {"runc 1.1.5", "runc 1.3.6", "crun 1.8.1"}),
        ("runc=1.3.6", {"runc 1.3.6", "crun 1.8.1"}),
        ("runc=1.4,crun=1.21", {"runc 1.3.6", "crun 1.8.1"}),
    ],
)
def test_releases_that_are_older_than_the_floor_are_not_mentioned(
    floor: str, labels: set[str]
) -> None:
    """A warning mentions no release that is older than --runtime-floor, except for the newest
    measured release up to this limit.
    """
    _, message, _ = not_none(warning({"exit_group"}, floor))
    assert {label for label in ("runc 1.1.5", "runc 1.3.6", "crun 1.8.1") if label in message} == (
        labels
    )
