"""Tests with profiles of real users, which previous versions of the agent handled incorrectly."""

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.host.filesystem import Host
from tests.json_object import JsonObject

# This allow list is sufficient to start every container.
USUAL = (
    *("access", "arch_prctl", "brk", "capget", "capset", "chdir", "clone", "close", "dup2"),
    *("dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "execve", "exit", "exit_group"),
    *("faccessat2", "fchdir", "fchown", "fcntl", "fstat", "fstatfs", "futex", "getcwd"),
    *("getdents64", "getegid", "geteuid", "getgid", "getpid", "getppid", "getrandom"),
    *("gettid", "getuid", "ioctl", "lseek", "lstat", "mmap", "mprotect", "munmap"),
    *("nanosleep", "newfstatat", "openat", "pipe2", "prctl", "pread64", "prlimit64", "read"),
    *("readlinkat", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn"),
    *("sched_getaffinity", "sched_yield", "set_robust_list", "set_tid_address", "setgid"),
    *("setgroups", "setresgid", "setresuid", "setuid", "sigaltstack", "stat", "statfs", "statx"),
    *("tgkill", "umask", "uname", "wait4", "write"),
)
BOTH = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
NAMESPACES = 2114060288  # These flags of clone create namespaces.


def profile(*rules: JsonObject, **more: object) -> JsonObject:
    allowed = {"names": USUAL, "action": "SCMP_ACT_ALLOW"}
    tree = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": BOTH, "syscalls": [allowed, *rules]}
    return tree | more


def rule(
    *names: str,
    action: str = "SCMP_ACT_ALLOW",
    args: Sequence[tuple[Any, ...]] = (),
    **more: object,
) -> JsonObject:
    conditions = [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value}
        | ({"valueTwo": two} if two else {})
        for index, op, value, *rest in args
        for two in [rest[0] if rest else 0]
    ]
    return {"names": list(names), "action": action} | ({"args": conditions} if args else {}) | more


def denying(*names: str, **more: object) -> JsonObject:
    denied = rule(*names, action="SCMP_ACT_ERRNO")
    return {"defaultAction": "SCMP_ACT_ALLOW", "architectures": BOTH, "syscalls": [denied]} | more


def check(
    tree: bytes | JsonObject,
    *,
    machine: str = "x86_64",
    form: Literal["oci", "docker"] = "oci",
    kernel: str = "6.1",
    **options: Any,
) -> tuple[bytes, tuple[Finding, ...]]:
    content = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    backend = SeccompBackend(
        host=Host("/nowhere"),
        clock_ns=time.time_ns,
        machine=machine,
        format=form,
        kernel=kernel,
        **options,
    )
    return backend.check(content)


def errors(tree: bytes | JsonObject, **options: Any) -> tuple[Finding, ...]:
    body, findings = check(tree, **options)
    assert body == b""
    assert {item.severity for item in findings} == {"error"}
    return findings


def codes(tree: JsonObject, **options: Any) -> set[FindingCode]:
    body, findings = check(tree, **options)
    assert body, findings
    return {item.code for item in findings}


ENOSYS: JsonObject = {"action": "SCMP_ACT_ERRNO", "errnoRet": 38}
ACCEPTED = {
    "a default action with another error number denies socketcall": profile(
        rule("socketcall", **ENOSYS), rule("socket", args=[(0, "LT", 38)])
    ),
    "ERRNO without a number is EPERM": denying("swapon")
    | {
        "syscalls": [
            rule("swapon", action="SCMP_ACT_ERRNO"),
            rule("swapon", "reboot", action="SCMP_ACT_ERRNO", errnoRet=1),
        ]
    },
    "a rule that equals the default next to a condition": profile(
        rule("unshare", "personality", action="SCMP_ACT_ERRNO", errnoRet=1),
        rule("personality", args=[(0, "EQ", 8)]),
    ),
    "KILL is KILL_THREAD": denying("swapon")
    | {
        "syscalls": [
            rule("swapon", action="SCMP_ACT_KILL"),
            rule("swapon", action="SCMP_ACT_KILL_THREAD"),
        ]
    },
    "an equality and its complement": profile(
        rule("socket", args=[(0, "EQ", 40)], action="SCMP_ACT_ERRNO", errnoRet=1),
        rule("socket", args=[(0, "NE", 40)]),
        defaultErrnoRet=38,
        architectures=BOTH[:1],
    ),
    "a bound and its complement": profile(
        rule("socket", args=[(0, "GE", 40)], action="SCMP_ACT_ERRNO", errnoRet=1),
        rule("socket", args=[(0, "LT", 40)]),
        defaultErrnoRet=38,
        architectures=BOTH[:1],
    ),
    "two values of one mask": profile(
        rule("socket", args=[(0, "MASKED_EQ", 0xFFFFFFFF, 1)]),
        rule(
            "socket", args=[(0, "MASKED_EQ", 0xFFFFFFFF, 40)], action="SCMP_ACT_ERRNO", errnoRet=1
        ),
        defaultErrnoRet=38,
        architectures=BOTH[:1],
    ),
    "masks that share one bit with other values": profile(
        rule("socket", args=[(0, "MASKED_EQ", 6, 2)]),
        rule("socket", args=[(0, "MASKED_EQ", 12, 4)], action="SCMP_ACT_ERRNO", errnoRet=1),
        defaultErrnoRet=38,
        architectures=BOTH[:1],
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_rules_that_do_not_contradict_each_other_are_accepted(name: str) -> None:
    """Rules that do not contradict each other are accepted. Actions are compared in their normal
    form, and conditions exactly.
    """
    codes(ACCEPTED[name])


def test_rules_of_different_pods_are_not_compared() -> None:
    """A rule that requires a capability and a rule that excludes it are not compared, because no
    pod has both rules.
    """
    capability = {"caps": ["CAP_AUDIT_WRITE"]}
    tree = profile(
        rule("socket", args=[(0, "EQ", 16), (2, "NE", 9)], excludes=capability),
        rule("socket", args=[(0, "NE", 40)], includes=capability),
        architectures=BOTH[:1],
    )
    codes(tree, form="docker")


@pytest.mark.parametrize(
    ("kernel", "count"), [("4.7", 1), ("4.8", 2), ("4.19.0-27-amd64", 2), ("6.1", 2)]
)
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_a_condition_on_the_kernel_is_resolved_for_the_node(
    form: Literal["oci", "docker"], kernel: str, count: int
) -> None:
    """A rule with minKernel is written if the kernel of the node is new enough, and a notice
    reports this.
    """
    tree = profile(rule("ptrace", includes={"minKernel": "4.8"}))
    body, findings = check(tree, form=form, kernel=kernel)
    assert len(json.loads(body)["syscalls"]) == count
    assert "includes" not in body.decode()
    assert "expanded_for_kernel" in {item.code for item in findings}


def test_an_excluded_kernel_is_resolved_too() -> None:
    """A rule that excludes newer kernels with minKernel is omitted on such kernels."""
    tree = profile(rule("ptrace", excludes={"minKernel": "4.8"}))
    assert len(json.loads(check(tree, kernel="4.7")[0])["syscalls"]) == 2
    assert len(json.loads(check(tree, kernel="4.8")[0])["syscalls"]) == 1


def test_names_of_error_numbers_are_rewritten() -> None:
    """The names of error numbers are replaced by the numbers, so that a name equals its number."""
    swapon = rule("swapon", action="SCMP_ACT_ERRNO", errno="EOPNOTSUPP", errnoRet=95)
    body, findings = check(profile(swapon, defaultErrno="ENOSYS"))
    assert json.loads(body)["defaultErrnoRet"] == 38
    assert json.loads(body)["syscalls"][1]["errnoRet"] == 95
    assert "errno_rewritten" in {item.code for item in findings}


@pytest.mark.parametrize("key", ["$schema", "_comment", "//", "description", "Comment", "#"])
def test_comment_keys_are_removed_with_one_notice(key: str) -> None:
    """Comment keys are removed from every object of the profile."""
    tree = profile(rule("personality", args=[(0, "EQ", 8)]) | {key: "why"})
    tree["syscalls"][1]["args"][0][key] = "why"
    body, findings = check(tree | {key: "why"})
    notices = [item for item in findings if item.code == "comments_removed"]
    assert (bool(body), len(notices), b"why" in body) == (True, 1, False)


@pytest.mark.parametrize("key", ["_syscalls", "$defaultAction", "//flags", "DefaultAction", "x"])
def test_a_disabled_or_misspelt_field_is_not_a_comment(key: str) -> None:
    """A disabled or misspelt field is rejected and does not count as a comment, because the author
    may have meant the field.
    """
    assert [item.code for item in errors(profile() | {key: []})] == ["unknown_field"]


def test_a_comment_next_to_a_condition_on_a_socket_is_removed() -> None:
    """A comment next to a condition on a socket call is removed. The agent also adds a rule for
    socketcall, because 32-bit programs could bypass the condition.
    """
    tree = profile(rule("socket", args=[(0, "EQ", 1)])) | {"$schema": "x", "_comment": "y"}
    tree["syscalls"][1]["args"][0]["comment"] = "AF_UNIX"
    body, findings = check(tree)
    notices = {item.code for item in findings if item.severity == "notice"}
    assert notices == {"comments_removed", "rule_added"}
    assert json.loads(body)["syscalls"][2] == rule("socket", args=[(0, "EQ", 1)])


SPEC = {"defaultAction": "SCMP_ACT_ERRNO"}
OTHER_FORMATS = [
    ({"apiVersion": "x/v1beta1", "kind": "SeccompProfile", "spec": SPEC}, "spec", "convert"),
    ({"ociVersion": "1.0.2", "linux": {"seccomp": SPEC}}, "linux.seccomp", "convert"),
    ({"ociVersion": "1.0.2", "linux": {}}, "profile", "Move it to a file"),
    ({"apiVersion": "v1", "kind": "Pod", "spec": {}}, "profile", "Move it to a file"),
    ({"version": "1.0.0", "hook": {"path": "/x"}, "when": {}}, "profile", "Move it to a file"),
    ({"input": {}, "expected": {}}, "profile", "Move it to a file"),
]


@pytest.mark.parametrize(("tree", "where", "hint"), OTHER_FORMATS)
def test_a_file_of_a_known_format_gets_one_message(
    tree: dict[str, str | JsonObject], where: str, hint: str
) -> None:
    """A file in another known format causes one message, with the type of the file and the location
    of the profile in it.
    """
    (error,) = errors(tree)
    assert (error.code, error.location) == ("not_a_profile", where)
    assert hint in error.hint


def test_a_resource_in_yaml_gets_the_command_that_converts_it() -> None:
    """If a key with the extension .json contains a resource in YAML, the finding contains the
    command that converts the resource.
    """
    (error,) = errors(b"apiVersion: x/v1\nkind: SeccompProfile\nspec: {}\n")
    assert error.code == "not_json"
    assert "profile-loader convert FILE" in error.hint


REJECTED = {
    "an error number for ALLOW": (
        denying("swapon", defaultErrnoRet=1),
        ("bad_value", "defaultErrnoRet", "Remove defaultErrnoRet."),
    ),
    "architectures of several nodes": (
        profile(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"]),
        ("bad_value", "architectures", "archMap"),
    ),
    "a condition on capabilities": (
        profile(
            rule("bpf", includes={"caps": ["CAP_BPF"]}), rule("acct", excludes={"caps": ["CAP_X"]})
        ),
        ("not_portable", "syscalls[1].includes.caps", "profile-loader convert FILE --caps"),
    ),
    "a call that is newer than the oldest libseccomp": (
        denying("chmod", "fchmodat2"),
        ("unknown_syscall", "syscalls[0].names", "since Linux 6.6"),
    ),
    "a listener": (
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/run/x.sock",
            "listenerMetadata": "x",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [rule("mknod", "mknodat", action="SCMP_ACT_NOTIFY")],
        },
        ("notify_refused", "syscalls[0].action", "SCMP_ACT_LOG"),
    ),
    "a condition that socketcall evades": (
        profile(rule("socket", args=[(0, "EQ", 1)]), defaultAction="SCMP_ACT_KILL_PROCESS"),
        ("fails_open", "syscalls[1].args", "Deny socketcall"),
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_rejection_is_one_message_with_the_next_step(name: str) -> None:
    """A single mistake causes one error with a next step, and no warnings that follow from the
    mistake.
    """
    tree, (code, where, hint) = REJECTED[name]
    (error,) = errors(tree)
    assert (error.code, error.location) == (code, where)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("more", "errno"),
    [({}, 38), ({"defaultErrnoRet": 1}, 38), ({"defaultErrnoRet": 38}, 1)],
)
@pytest.mark.parametrize(("call", "through"), [("socket", "socketcall"), ("semop", "ipc")])
def test_a_condition_that_32_bit_programs_could_evade_is_completed(
    more: dict[str, int], errno: int, call: str, through: str
) -> None:
    """If 32-bit programs could bypass a condition, the agent adds a rule that denies the
    multiplexing call.

    The error number of this rule differs from the default, because libseccomp ignores a rule that
    equals the default action.
    """
    body, findings = check(profile(rule(call, args=[(0, "EQ", 1)]), **more))
    assert json.loads(body)["syscalls"][0] == rule(through, action="SCMP_ACT_ERRNO", errnoRet=errno)
    (notice,) = [item for item in findings if item.code == "rule_added"]
    assert f"the condition on {call} for calls through {through}(2)" in notice.message
    assert check(body)[0] == body


@pytest.mark.parametrize(
    ("more", "machine"),
    [
        ({"architectures": ["SCMP_ARCH_PPC64LE"]}, "ppc64le"),
        ({"architectures": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"]}, "s390x"),
    ],
)
def test_a_condition_that_native_programs_evade_is_rejected(
    more: dict[str, list[str]], machine: str
) -> None:
    """A condition that native programs can bypass through socketcall is rejected, because the C
    library may need socketcall.
    """
    tree = profile(rule("socket", args=[(0, "EQ", 1)]), **more)
    assert {item.code for item in errors(tree, machine=machine)} == {"fails_open"}


def test_no_rule_is_added_where_the_author_allows_the_multiplexing_call() -> None:
    """If the author allows the multiplexing call, no rule is added. A warning reports that 32-bit
    programs can bypass the condition.
    """
    tree = profile(rule("socket", args=[(0, "EQ", 1)]), rule("socketcall"))
    assert {"condition_surprising"} <= codes(tree)
    assert "rule_added" not in codes(tree)


NEXT_STEPS = {
    "Remove defaultErrnoRet": denying("swapon"),
    "use archMap": profile(
        archMap=[
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
            {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
            {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
        ],
        architectures=None,
    ),
    "use SCMP_ACT_LOG": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule("mknod", "mknodat", action="SCMP_ACT_LOG")],
    },
    "Deny socketcall": profile(
        rule("socket", args=[(0, "EQ", 1)]),
        rule("socketcall", action="SCMP_ACT_ERRNO", errnoRet=38),
        defaultAction="SCMP_ACT_KILL_PROCESS",
    ),
}


@pytest.mark.parametrize("name", NEXT_STEPS)
def test_the_next_step_of_a_rejection_works(name: str) -> None:
    """A rejected profile is accepted after a change that follows the hint."""
    codes(NEXT_STEPS[name])


def test_allow_unknown_syscalls_accepts_a_newer_call() -> None:
    """The hint of the code unknown_syscall contains the option that accepts the call."""
    codes(denying("chmod", "fchmodat2"), allow_unknown_syscalls=True)


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ((), None),
        (("exit_group",), None),
        (("setuid",), "start_limited"),
        (("setresuid",), "start_limited"),
        (("execve",), "start_impossible"),
        (("arch_prctl",), "start_impossible"),
    ],
)
def test_start_warnings_follow_the_measured_lists(
    missing: tuple[str, ...], code: str | None
) -> None:
    """A warning about the start of containers appears exactly if a measured runtime cannot start a
    container.
    """
    allowed = rule(*(name for name in USUAL if name not in missing))
    result = codes(profile() | {"syscalls": [allowed, rule("clone3", **ENOSYS)]})
    assert {item for item in result if item.startswith("start_")} == ({code} if code else set())


@pytest.mark.parametrize(
    ("rules", "is_warned"),
    [
        ([], True),
        ([rule("clone3", **ENOSYS)], False),
        ([rule("clone3")], False),
        ([rule("clone3", action="SCMP_ACT_KILL_PROCESS")], True),
    ],
)
def test_clone3_must_fail_with_enosys(rules: list[JsonObject], is_warned: bool) -> None:
    """A profile in which clone3 fails with an error other than ENOSYS has a warning, because glibc
    then cannot start threads.
    """
    assert ("clone3_denied" in codes(profile(*rules))) == is_warned


@pytest.mark.parametrize(("errno", "is_warned"), [(1, True), (38, False)])
def test_an_explicit_error_of_clone3_must_be_enosys(errno: int, is_warned: bool) -> None:
    """An explicit rule must let clone3 fail with ENOSYS, even if the default action allows
    calls.
    """
    tree = denying("swapon")
    tree["syscalls"].append(rule("clone3", action="SCMP_ACT_ERRNO", errnoRet=errno))
    assert ("clone3_denied" in codes(tree)) == is_warned


@pytest.mark.parametrize(
    ("name", "code"), [("execve", "start_impossible"), ("statx", "start_limited"), ("chmod", None)]
)
def test_a_denied_call_that_a_runtime_needs_causes_a_warning(name: str, code: str | None) -> None:
    """A denied call that a runtime needs causes a warning, even if the default action
    allows calls.
    """
    result = {item for item in codes(denying(name)) if item.startswith("start_")}
    assert result == ({code} if code else set())


def without_clone(*rules: JsonObject) -> JsonObject:
    allowed = rule(*(name for name in USUAL if name != "clone"))
    return profile() | {"syscalls": [allowed, rule("clone3", **ENOSYS), *rules]}


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ([rule("clone", args=[(0, "MASKED_EQ", NAMESPACES)])], None),
        ([rule("clone")], "clone"),
        ([rule("clone", args=[(0, "MASKED_EQ", NAMESPACES >> 1)])], "clone"),
        ([rule("personality", args=[(0, "EQ", 8)])], None),
        ([rule("personality", args=[(0, "EQ", 9)])], "personality"),
        ([rule("mount", "bpf")], "bpf, mount"),
        ([rule("ptrace")], None),
    ],
)
def test_a_profile_is_compared_with_the_default_of_containerd(
    rules: list[JsonObject], names: str | None
) -> None:
    """In comparison with the default profile of containerd, the warning lists only calls that this
    profile denies for the same arguments.
    """
    _, findings = check(without_clone(*rules))
    messages = [item.message for item in findings if item.code == "dangerous_syscalls"]
    assert [item.partition(": ")[2] for item in messages] == ([f"{names}."] if names else [])


@pytest.mark.parametrize(
    ("names", "machine", "is_warned"),
    [
        (("chmod", "mkdir", "unlink", "open"), "aarch64", True),
        (("chmod", "mkdir", "unlink", "open"), "riscv64", True),
        (("chmod", "fchmodat"), "aarch64", False),
        (("chmod",), "x86_64", False),
    ],
)
def test_denied_calls_that_the_architecture_lacks_cause_a_warning(
    names: tuple[str, ...], machine: str, is_warned: bool
) -> None:
    """If the architecture lacks the denied calls, for example chmod on arm64, a warning reports
    that the profile denies no call.
    """
    tree = denying(*names, architectures=None)
    assert ("nothing_denied" in codes(tree, machine=machine)) == is_warned


@pytest.mark.parametrize("flags", [NAMESPACES, 0x10000000])
def test_the_flags_of_clone_are_another_argument_on_s390x(flags: int) -> None:
    """On s390x, the flags of clone are the second argument. A condition on the first argument would
    compare the address of the stack.
    """
    tree = profile(rule("clone", args=[(0, "MASKED_EQ", flags)]), architectures=None)
    tree["syscalls"][0] = rule(*(name for name in USUAL if name != "clone"))
    _, findings = check(tree, machine="s390x")
    messages = [item.message for item in findings if item.code == "condition_surprising"]
    assert ["second argument" in item for item in messages] == [True]
