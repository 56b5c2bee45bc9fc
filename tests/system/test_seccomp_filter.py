"""Tests that the filter of each accepted profile follows the rules of the profile, for each
runtime.

Each available libseccomp builds the filters as it does for runc and crun. The tests evaluate the
filters as the kernel does.
"""

import concurrent.futures
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest

from agent.backends.seccomp import anchor, multiplex, resolve, syscalls
from agent.backends.seccomp.backend import SeccompBackend
from agent.host.filesystem import Host
from tests.system.seccomp_filter import generator, libraries, reference
from tests.system.seccomp_filter.runtimes import for_pod
from tests.system.seccomp_filter.search import Outcome, compare_all, compare_filters

X86_64, X86, X32 = (f"SCMP_ARCH_{name}" for name in ("X86_64", "X86", "X32"))


def profile(*rules, architectures):
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": list(architectures),
        "syscalls": list(rules),
    }


def rule(name, *conditions):
    args = [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value} for index, op, value in conditions
    ]
    return {"names": [name], "action": "SCMP_ACT_ERRNO"} | ({"args": args} if args else {})


# From these profiles, libseccomp would build wrong filters if the agent wrote them unchanged.
PROBLEMATIC = {
    "x32 next to x86_64": profile(
        rule("socket", (0, "EQ", 40)), rule("socketcall"), architectures=[X86_64, X86, X32]
    ),
    "x32 without the call": profile(rule("set_thread_area", (0, "EQ", 1)), architectures=[X32]),
    "i386 without semop": profile(
        rule("ptrace", (0, "EQ", 1)), rule("semop"), architectures=[X86_64, X86]
    ),
    "i386 without accept": profile(rule("accept"), architectures=[X86_64, X86]),
    "bounds with other upper halves": profile(
        rule("personality", (0, "LT", 1 << 32)),
        rule("personality", (0, "LE", 0)),
        architectures=[X86_64],
    ),
    "an equality and its opposite": profile(
        rule("clone", (0, "EQ", 5), (2, "EQ", 8)),
        rule("clone", (2, "NE", 8)),
        architectures=[X86_64],
    ),
    "an equality and its opposite with another action": profile(
        rule("clone", (2, "EQ", 8)) | {"action": "SCMP_ACT_ALLOW"},
        rule("clone", (0, "EQ", 5), (2, "NE", 8)) | {"action": "SCMP_ACT_KILL_PROCESS"},
        architectures=[X86_64, X86],
    )
    | {"defaultAction": "SCMP_ACT_ERRNO"},
    "a bound and its opposite": profile(
        rule("clone", (2, "GT", 2)),
        rule("clone", (0, "EQ", 2), (2, "LE", 2)),
        architectures=[X86_64, X86],
    ),
    "operations of one multiplexed call": profile(
        rule("socket", (0, "GT", 2), (2, "NE", 1)),
        rule("socketcall", (0, "NE", 2), (1, "NE", 1), (2, "GE", 2)),
        architectures=[X86_64, X86],
    )
    | {"defaultAction": "SCMP_ACT_KILL_PROCESS"},
    "a comparison that two calls share": profile(
        rule("setuid", (0, "LT", 1)),
        rule("personality", (0, "LE", 2)),
        rule("setuid", (0, "LE", 1)) | {"names": ["setuid", "personality"]},
        rule("setuid", (0, "EQ", 2), (1, "EQ", 1)) | {"names": ["setuid", "personality"]},
        rule("setuid", (0, "LE", 2)) | {"names": ["setuid", "personality"]},
        architectures=[X86_64, X86],
    ),
    "two bounds in several conditions": profile(
        rule("clone", (1, "LE", 1), (2, "LE", 1)) | {"action": "SCMP_ACT_ALLOW"},
        rule("clone", (1, "GE", 2)) | {"action": "SCMP_ACT_ALLOW"},
        architectures=[X86_64],
    )
    | {"defaultAction": "SCMP_ACT_ERRNO"},
}
# The same profiles, corrected as the hint for opposite comparisons describes.
REWRITTEN = [
    profile(
        rule("clone", (0, "EQ", 5), (2, "MASKED_EQ", (1 << 64) - 1)),
        rule("clone", (2, "NE", 8)),
        architectures=[X86_64],
    ),
    profile(
        rule("clone", (2, "GE", 3)),
        rule("clone", (0, "EQ", 2), (2, "LE", 2)),
        architectures=[X86_64, X86],
    ),
    profile(
        rule("clone", (2, "GT", 2)),
        rule("clone", (0, "EQ", 2), (2, "LT", 3)),
        architectures=[X86_64, X86],
    ),
]
REWRITTEN[0]["syscalls"][0]["args"][1]["valueTwo"] = 8
UNBUILDABLE = profile(
    rule("socket", (0, "EQ", 3)),
    rule("socket", (0, "EQ", 16)) | {"action": "SCMP_ACT_KILL_PROCESS"},
    architectures=[X86_64, X86],
)


def outcome_of(body):
    """Return the outcome of one profile."""
    return compare_filters(body, "0", "x86_64")


@pytest.mark.parametrize("name", PROBLEMATIC)
def test_the_harness_detects_a_filter_that_fails_open(name):
    """For each problematic profile in its original form, the harness detects that the compiled
    filter allows a call that the profile denies.
    """
    verdict = outcome_of(json.dumps(PROBLEMATIC[name]))
    assert verdict.outcome is Outcome.FAILS_OPEN, verdict


@pytest.mark.parametrize("name", PROBLEMATIC)
def test_a_problematic_profile_is_rejected_or_completed(name):
    """The agent rejects each problematic profile, or writes a form that every libseccomp compiles
    correctly.
    """
    kind = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64")
    body, findings = kind.check(json.dumps(PROBLEMATIC[name]).encode())
    if body:
        assert outcome_of(body.decode()).outcome is Outcome.RIGHT
    else:
        assert {item.code for item in findings if item.severity == "error"} == {"fails_open"}


@pytest.mark.parametrize("document", REWRITTEN)
def test_the_hint_for_opposite_comparisons_corrects_the_profile(document):
    """When a user has followed the hint of a rejection, the profile is accepted and compiled
    correctly.
    """
    kind = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64")
    body, findings = kind.check(json.dumps(document).encode())
    assert body, findings
    assert outcome_of(body.decode()).outcome is Outcome.RIGHT


def test_contradicting_rules_have_no_filter():
    """No version of libseccomp builds a filter from rules that the agent rejects as
    contradicting.
    """
    verdict = outcome_of(json.dumps(UNBUILDABLE))
    assert verdict.outcome is Outcome.REJECTED, verdict


@pytest.mark.parametrize("library", libraries.every(), ids=lambda one: one.version)
@pytest.mark.parametrize("machine", sorted(resolve.MACHINES))
def test_the_tables_of_calls_equal_the_tables_of_libseccomp(library, machine):
    """The agent's tables contain the calls of each ABI, and the calls that libseccomp
    multiplexes.
    """
    for abi in resolve.abis(machine):
        if not library.token(abi):
            continue  # An older libseccomp does not know the architecture.
        result = set(reference.numbers_by_name(library, abi))
        known = {name for name in syscalls.KNOWN if library.resolves(name) != -1}
        anchors = {name for name in syscalls.of(abi) if name not in syscalls.RECENT}
        # The call arm_sync_file_range has the same number.
        assert anchors <= result | {"sync_file_range2"}
        assert abi == X32 or anchor.ANCHOR in result
        removed = (result & known) - syscalls.of(abi)
        assert removed <= REMOVED
        assert result >= multiplex.NAMES & syscalls.of(abi)


# Linux has removed these calls, so the table system-calls 7.2 does not contain them.
REMOVED = {
    *("_sysctl", "afs_syscall", "arm_sync_file_range", "bdflush", "break", "create_module"),
    *("ftime", "get_kernel_syms", "getpmsg", "gtty", "idle", "lock", "mpx", "nfsservctl", "prof"),
    *("profil", "putpmsg", "query_module", "security", "stty", "tuxcall", "ulimit", "uselib"),
    "vserver",
}


def test_every_version_is_compared():
    """The libseccomp versions of Debian 12, 13 and unstable are available for the comparisons."""
    result = {library.version for library in libraries.every()}
    assert result >= {"2.5.4", "2.6.0"}
    assert len(result) > 2


def search(machine, seed, count):
    """Run a search in a separate process, and return the number of accepted profiles."""
    words = ["--count", str(count), "--seed", str(seed), "--machine", machine]
    result = subprocess.run(
        [sys.executable, "-B", "-m", "tests.system.seccomp_filter.search", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{machine}, seed {seed}\n{result.stdout}", flush=True)
    assert result.returncode == 0, result.stdout + result.stderr
    actual = re.search(
        r"^generated (\d+)\naccepted (\d+)\n  right: (\d+)$", result.stdout, re.MULTILINE
    )
    assert actual is not None, result.stdout
    generated, accepted, right = map(int, actual.groups())
    assert (generated, right) == (count, accepted)
    return accepted


@pytest.mark.parametrize("machine", sorted(generator.MACHINES))
def test_a_short_search_finds_no_accepted_profile_with_a_wrong_filter(machine):
    """In a short search, the filter of each accepted profile follows the rules of the profile."""
    assert search(machine, 1, 1000) > 300


CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_BPF")


def test_profiles_that_depend_on_capabilities_are_compiled_correctly_for_every_pod():
    """With --seccomp-format docker, the filter for every pod follows the rules of the accepted
    profile.
    """
    kind = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64", format="docker")
    bodies = []
    for seed in range(300):
        draw = random.Random(f"capabilities/{seed}")  # noqa: S311 - the same every time
        drawn = generator.profile(draw)
        for item in drawn["syscalls"]:
            if draw.random() < 0.4:
                key = draw.choice(("includes", "excludes"))
                item[key] = {"caps": [draw.choice(CAPABILITIES)]}
        body, _ = kind.check(json.dumps(drawn).encode())
        if body:
            pods = ((), CAPABILITIES[:1], CAPABILITIES[1:], CAPABILITIES)
            bodies += [(json.dumps(for_pod(json.loads(body), pod)), str(seed)) for pod in pods]
    wrong = [
        (body, verdict)
        for (body, _), verdict in zip(bodies, compare_all(bodies, "x86_64"), strict=True)
        if verdict.outcome is not Outcome.RIGHT
    ]
    assert wrong == []
    assert len(bodies) > 300


@pytest.mark.search
def test_a_long_search_finds_no_accepted_profile_with_a_wrong_filter():
    """In a long search, the filters of more than 100,000 accepted profiles follow the rules of the
    profiles.
    """
    libraries.every()  # This call downloads the libraries once for all processes.
    chunks = [("x86_64", seed, 10_000) for seed in range(1001, 1019)]
    chunks += [("aarch64", seed, 10_000) for seed in range(2001, 2009)]
    chunks += [("ppc64le", 3001, 10_000), ("riscv64", 3002, 10_000)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        accepted = sum(pool.map(search, *zip(*chunks, strict=True)))
    assert accepted > 100_000
