"""Warns if a container runtime cannot start a container under a profile.

The lists of system calls were measured on x86_64 with the UIDs 0 and 1000, by denying one call at a
time. A process without no_new_privs installs the filter before it changes its UID and capabilities,
so a container without no_new_privs needs more system calls. tests/system/test_start_needs.py
compares the lists with the installed runtimes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from agent.backends.seccomp import releases, syscalls
from agent.backends.seccomp.meaning import Meaning
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

# On each architecture, every C and Go program sets up its thread-local storage with the listed
# system call.
_PROGRAM: Final = frozenset({"arch_prctl"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The system calls that one release of a runtime needs to start a container."""

    runtime: Literal["runc", "crun"]
    release: releases.Version
    with_no_new_privs: frozenset[str]
    without: frozenset[str]
    """The further system calls that a container without no_new_privs needs."""
    replaceable: frozenset[str] = frozenset()
    """The system calls that the runtime replaces with `replacements` if they are denied."""
    replacements: frozenset[str] = frozenset()
    """The system calls that the runtime needs instead of the replaced calls."""

    @property
    def label(self) -> str:
        """The name of the runtime and the release, for messages."""
        return f"{self.runtime} {releases.shown(self.release)}"

    def calls(self, *, no_new_privs: bool) -> frozenset[str]:
        """Return the system calls for a container with or without no_new_privs."""
        return self.with_no_new_privs | (frozenset() if no_new_privs else self.without)


# Go programs wait for their other threads with futex. Without futex, 6 to 9 of 20 starts with runc
# 1.1 succeeded, and 3 to 5 of 16 starts with runc 1.3.
_RUNC_1_1: Final = frozenset(
    {"close", "execve", "fstatfs", "futex", "getdents64", "openat", "write"}
)
_RUNC_AS_ROOT: Final = frozenset(
    {
        *("capget", "capset", "chdir", "fstat", "getcwd", "getppid", "newfstatat", "prctl"),
        *("read", "setgid", "setgroups", "setuid"),
    }
)
_CRUN_AS_ROOT: Final = frozenset(
    {
        *("capset", "prctl", "rt_sigaction", "rt_sigprocmask", "setresgid", "setresuid"),
        "write",
    }
)
MEASURED: Final = (
    Measured(
        runtime="runc",
        release=(1, 1, 5),
        with_no_new_privs=_RUNC_1_1,
        without=_RUNC_AS_ROOT,
    ),
    Measured(
        runtime="runc",
        release=(1, 3, 6),
        with_no_new_privs=_RUNC_1_1 | {"fstat", "statx"},
        without=_RUNC_AS_ROOT,
        replaceable=frozenset({"openat2"}),
        replacements=frozenset({"fcntl", "readlinkat"}),
    ),
    # crun 1.21 and 1.28 need the same system calls.
    Measured(
        runtime="crun",
        release=(1, 8, 1),
        with_no_new_privs=frozenset({"execve"}),
        without=_CRUN_AS_ROOT,
    ),
)


def findings(profile: Meaning, floor: releases.RuntimeFloor) -> Iterator[Finding]:
    """Warn if a runtime cannot start a container, or can start it only with no_new_privs."""
    failing: dict[tuple[str, bool], list[str]] = {}
    cases = [(measured, is_set) for measured in _relevant(floor) for is_set in (True, False)]
    for measured, is_set in cases:
        missing = _denied(profile, measured.calls(no_new_privs=is_set))
        if measured.replaceable and _denied(profile, measured.replaceable):
            missing += _denied(profile, measured.replacements)
        if missing:
            failing[measured.label, is_set] = missing
    programs = _denied(profile, _PROGRAM)
    if not failing and not programs:
        return
    reasons = [
        f"{label} {'with' if is_set else 'without'} no_new_privs needs {syscalls.listed(names)}"
        for (label, is_set), names in failing.items()
    ]
    if programs:
        reasons.append(f"programs written in C or Go need {', '.join(programs)}")
    if len(failing) == len(cases):
        summary = "Neither runc nor crun can start a container with this profile"
    elif failing:
        summary = "Some runtimes cannot start a container with this profile"
    else:
        summary = "Programs cannot start in a container with this profile"
    is_impossible = bool(programs) or len(failing) == len(cases)
    hint = "Allow these calls."
    if not programs and all(not is_set for _, is_set in failing):
        hint += " Pods with allowPrivilegeEscalation: false have no_new_privs, and can start."
    yield Finding(
        code=FindingCode.START_IMPOSSIBLE if is_impossible else FindingCode.START_LIMITED,
        location="syscalls",
        message=f"{summary}: {'; '.join(reasons)}.",
        hint=hint,
    )


def _denied(profile: Meaning, names: frozenset[str]) -> list[str]:
    """Return the names of native system calls that the profile always denies."""
    abi = profile.abis[0]
    existing = names & profile.calls(abi)
    return sorted(name for name in existing if profile.call(abi, name).is_always_denied)


def _relevant(floor: releases.RuntimeFloor) -> Iterator[Measured]:
    """Return the measured releases that can be on a node, according to the floor.

    The result includes the newest measured release that is not newer than the floor, because this
    measurement is the closest to the floor.
    """
    floors = {"runc": floor.runc, "crun": floor.crun}
    for measured in MEASURED:
        lowest = floors[measured.runtime]
        if not any(
            other.runtime == measured.runtime and measured.release < other.release <= lowest
            for other in MEASURED
        ):
            yield measured
