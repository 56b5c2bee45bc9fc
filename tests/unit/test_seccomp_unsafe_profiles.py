"""Tests of profiles that a runtime does not enforce, or that make a runtime hang or crash.

Each row is a case that was measured with containerd 1.6 and HEAD, CRI-O, cri-dockerd, runc 1.1.5
and HEAD, or crun 1.8.1. A row contains a description, the profile, and the codes of the expected
errors.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.finding_codes import FindingCode
from agent.core.model import Inspected, Profile, Rejection, SourceKey
from agent.host.filesystem import Host
from tests.json_object import JsonObject
from tests.narrowing import instance_of


def allow(*rules: JsonObject | None, **more: object) -> JsonObject:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list(rules)} | more


def deny(
    **more: object,
) -> JsonObject:
    return {"names": ["chmod"], "action": "SCMP_ACT_ERRNO"} | more


def arg(**more: object) -> JsonObject:
    return {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"} | more


def default(action: str, **more: object) -> JsonObject:
    return {"defaultAction": action, "syscalls": [deny()]} | more


TEXT = (
    '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}'
)
TWO_DEFAULTS = '{"defaultAction":"SCMP_ACT_ERRNO","%s":"SCMP_ACT_ALLOW"}'

CASES: list[tuple[str, object, set[str]]] = [
    # In these profiles, two rules match the same arguments, and libseccomp may apply the rule that
    # allows the call.
    (
        "two conditions that may be true at once",
        allow(
            deny(args=[arg(index=1, value=0, op="SCMP_CMP_NE")]),
            {"names": ["chmod"], "action": "SCMP_ACT_LOG", "args": [arg(index=1, value=511)]},
        ),
        {"fails_open"},
    ),
    (
        "the same condition with two actions",
        allow(deny(args=[arg()]), {"names": ["chmod"], "action": "SCMP_ACT_LOG", "args": [arg()]}),
        {"fails_open"},
    ),
    # For these profiles, libseccomp merges rules incorrectly or never finishes (measured with a
    # kernel).
    (
        "two rules for which libseccomp never finishes",
        allow(
            deny(args=[arg(op="SCMP_CMP_LE"), arg(index=1, value=5, op="SCMP_CMP_LT")]),
            deny(args=[arg(op="SCMP_CMP_LE"), arg(index=1, value=9, op="SCMP_CMP_NE")]),
        ),
        {"fails_open"},
    ),
    (
        "two rules, and libseccomp drops one of the rules",
        allow(
            deny(args=[arg(index=2, op="SCMP_CMP_LE"), arg(index=1, op="SCMP_CMP_LE")]),
            deny(args=[arg(index=1, value=2, op="SCMP_CMP_GE")]),
        ),
        {"fails_open"},
    ),
    (
        "a condition on bits that a 32-bit ABI does not have",
        default("SCMP_ACT_ERRNO")
        | {
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {
                    "names": ["unshare"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [arg(op="SCMP_CMP_MASKED_EQ", value=2**32, valueTwo=0)],
                }
            ],
        },
        {"fails_open"},
    ),
    # In these profiles, libseccomp drops the condition for socketcall(2), as its pseudo filter code
    # shows.
    (
        "a condition on a call that 32-bit programs also reach through socketcall",
        default("SCMP_ACT_KILL_PROCESS")
        | {
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {
                    "names": ["socket"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [arg(value=40, op="SCMP_CMP_NE")],
                }
            ],
        },
        {"fails_open"},
    ),
    ("less than nothing", allow(deny(args=[arg(value=0, op="SCMP_CMP_LT")])), {"fails_open"}),
    (
        "more than everything",
        allow(deny(args=[arg(value=2**64 - 1, op="SCMP_CMP_GT")])),
        {"fails_open"},
    ),
    # With these profiles, a runtime runs the container unconfined or without the rule.
    ("no key at all", {}, {"fails_open"}),
    ("null", None, {"fails_open"}),
    ("an empty default", {"defaultAction": "", "syscalls": []}, {"fails_open"}),
    ("a null default", {"defaultAction": None}, {"fails_open"}),
    ("rules only", {"syscalls": [deny()]}, {"fails_open"}),
    (
        "a profile in a custom resource",
        {"apiVersion": "v1", "kind": "SeccompProfile", "spec": allow(deny())},
        {"not_a_profile"},
    ),
    (
        "a misspelt key at the top level",
        {"defaultAction": "SCMP_ACT_ALLOW", "syscall": []},
        {"unknown_field"},
    ),
    ("a misspelt rule key", allow(deny(arg=[])), {"unknown_field"}),
    ("a misspelt condition key", allow(deny(args=[arg(valuetwo=1)])), {"unknown_field"}),
    ("two cases of one key", TWO_DEFAULTS % "DefaultAction", {"unknown_field"}),
    ("a long s", TEXT[:-1] + ',"\u017fyscalls":[]}', {"unknown_field"}),
    ("one key twice", TWO_DEFAULTS % "defaultAction", {"duplicate_key"}),
    ("rules twice", TEXT[:-1] + ',"syscalls":[]}', {"duplicate_key"}),
    ("no names", allow({"action": "SCMP_ACT_ERRNO"}), {"fails_open"}),
    ("empty names", allow(deny(names=[])), {"fails_open"}),
    ("an empty name", allow(deny(names=[""])), {"fails_open"}),
    ("a NUL in a name", allow(deny(names=["chmod\0x"])), {"fails_open"}),
    ("upper case", allow(deny(names=["CHMOD"])), {"fails_open"}),
    ("a blank in a name", allow(deny(names=[" chmod"])), {"fails_open"}),
    ("a null name", allow(deny(names=[None])), {"fails_open"}),
    ("a misspelt name", allow(deny(names=["chmodd"])), {"unknown_syscall"}),
    (
        "a misspelt name under LOG",
        default("SCMP_ACT_LOG") | {"syscalls": [deny(names=["chmodd"])]},
        {"unknown_syscall"},
    ),
    ("a name newer than 2.5.4", allow(deny(names=["mseal"])), {"unknown_syscall"}),
    ("name and names", allow(deny(name="chown")), {"bad_value"}),
    ("one index twice", allow(deny(args=[arg(), arg(value=2)])), {"fails_open"}),
    ("seven conditions", allow(deny(args=[arg()] * 7)), {"bad_value"}),
    (
        "a mask that never matches",
        allow(deny(args=[arg(op="SCMP_CMP_MASKED_EQ", value=1, valueTwo=2)])),
        {"fails_open"},
    ),
    (
        "two actions for one call",
        allow(deny(action="SCMP_ACT_LOG"), deny()),
        {"bad_value"},
    ),
    (
        "a condition next to a weaker unconditional rule",
        default("SCMP_ACT_ERRNO")
        | {"syscalls": [deny(action="SCMP_ACT_ALLOW"), deny(action="SCMP_ACT_TRAP", args=[arg()])]},
        {"fails_open"},
    ),
    # With these profiles, a runtime applies the rule without its condition.
    ("capabilities", allow(deny(includes={"caps": ["CAP_SYS_ADMIN"]})), {"not_portable"}),
    ("lack of capabilities", allow(deny(excludes={"caps": ["CAP_BPF"]})), {"not_portable"}),
    ("not a kernel version", allow(deny(includes={"minKernel": "new"})), {"bad_value"}),
    ("an error with an unknown name", allow(deny(errno="ENOTHING")), {"bad_value"}),
    (
        "a default error with a name and a different number",
        default("SCMP_ACT_ERRNO", defaultErrno="ENOSYS", defaultErrnoRet=1),
        {"bad_value"},
    ),
    ("flags", allow(deny(), flags=["SECCOMP_FILTER_FLAG_LOG"]), {"not_portable"}),
    ("a misspelt Go architecture", allow(deny(includes={"arches": ["am64"]})), {"bad_value"}),
    # With these profiles, a runtime crashes or hangs.
    ("a null rule", allow(None), {"runtime_crash"}),
    ("a null condition", allow(deny(args=[None])), {"runtime_crash"}),
    ("KILL as default", default("SCMP_ACT_KILL"), {"runtime_hang"}),
    ("KILL_THREAD as default", default("SCMP_ACT_KILL_THREAD"), {"runtime_hang"}),
    ("NOTIFY as default", default("SCMP_ACT_NOTIFY"), {"notify_refused"}),
    ("NOTIFY", allow(deny(action="SCMP_ACT_NOTIFY")), {"notify_refused"}),
    ("a listener", allow(deny(), listenerPath="/run/x.sock"), {"notify_refused"}),
    ("a listener's data", allow(deny(), listenerMetadata="x"), {"notify_refused"}),
    (
        "8000 conditions",
        allow(*[deny(args=[arg(value=value)]) for value in range(8000)]),
        {"filter_too_large"},
    ),
    # With these profiles, no container starts.
    ("an unknown action", allow(deny(action="SCMP_ACT_DENY")), {"bad_value"}),
    ("a small action", allow(deny(action="scmp_act_errno")), {"bad_value"}),
    ("no action", allow({"names": ["chmod"]}), {"bad_value"}),
    ("an unknown architecture", allow(deny(), architectures=["amd64"]), {"bad_value"}),
    ("PARISC", allow(deny(), architectures=["SCMP_ARCH_PARISC"]), {"bad_value"}),
    ("RISCV64", allow(deny(), architectures=["SCMP_ARCH_RISCV64"]), {"bad_value"}),
    ("mixed byte orders", allow(deny(), architectures=["SCMP_ARCH_S390X"]), {"bad_value"}),
    (
        "archMap and architectures",
        allow(
            deny(),
            architectures=["SCMP_ARCH_X86_64"],
            archMap=[{"architecture": "SCMP_ARCH_X86_64"}],
        ),
        {"bad_value"},
    ),
    ("argument 6", allow(deny(args=[arg(index=6)])), {"bad_value"}),
    ("an unknown operator", allow(deny(args=[arg(op="SCMP_CMP_XX")])), {"bad_value"}),
    ("no operator", allow(deny(args=[{"index": 0, "value": 1}])), {"bad_value"}),
    ("error number 4096", allow(deny(errnoRet=4096)), {"bad_value"}),
    ("error number 65537", allow(deny(errnoRet=65537)), {"bad_value"}),
    ("error number -1", allow(deny(errnoRet=-1)), {"bad_value"}),
    ("error number 1.0", allow(deny(errnoRet=1.0)), {"bad_value"}),
    ("an error number in quotes", allow(deny(errnoRet="1")), {"bad_value"}),
    ("true for a number", allow(deny(errnoRet=True)), {"bad_value"}),
    (
        "an error number for KILL_PROCESS",
        allow(deny(action="SCMP_ACT_KILL_PROCESS", errnoRet=1)),
        {"bad_value"},
    ),
    ("a default error for ALLOW", allow(deny(), defaultErrnoRet=1), {"bad_value"}),
    ("2 to the 64", allow(deny(args=[arg(value=2**64)])), {"bad_value"}),
    ("a list", [], {"bad_value"}),
    ("nothing", "", {"not_json"}),
    ("a comment", "// x\n" + TEXT, {"not_json"}),
    ("a superfluous comma", TEXT[:-1] + ",}", {"not_json"}),
    ("text after it", TEXT + "x", {"not_json"}),
    ("YAML", "defaultAction: SCMP_ACT_ALLOW", {"not_json"}),
    ("NaN", '{"defaultAction":NaN}', {"not_json"}),
    ("100,000 levels", "[" * 100_000, {"not_json"}),
    ("a number of 5000 digits", "1" * 5000, {"not_json"}),
    ("UTF-16", TEXT.encode("utf-16"), {"not_utf8"}),
    ("a byte order mark", TEXT.encode("utf-8-sig"), {"not_utf8"}),
    ("more than 1 MiB", TEXT + " " * (1 << 20), {"key_too_large"}),
]


def inspect(content: bytes | str | list[object] | JsonObject | None, **options: Any) -> Inspected:
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    backend = SeccompBackend(
        host=Host(Path("/nonexistent")), clock_ns=time.time_ns, machine="x86_64", **options
    )
    return backend.inspect(SourceKey(profile_set="dir /x", key="p.json", content=content))


def errors(inspected: Rejection) -> set[FindingCode]:
    assert isinstance(inspected, Rejection)
    return {finding.code for finding in inspected.findings if finding.severity == "error"}


@pytest.mark.parametrize(("content", "codes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_an_unsafe_profile_is_rejected(
    content: bytes | str | list[object] | JsonObject | None, codes: set[str]
) -> None:
    """An unsafe profile is rejected with the code that describes the measured fault."""
    assert errors(instance_of(inspect(content), Rejection)) == codes


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (allow(None), {"runtime_crash"}),
        (allow(deny(errno="ENOTHING")), {"bad_value"}),
        (allow(deny(errno="ENOSYS", errnoRet=1)), {"bad_value"}),
        (allow(deny(includes={"caps": ["SYS_ADMIN"]})), {"bad_value"}),
        (allow(deny(), flags=["SECCOMP_FILTER_FLAG_FOO"]), {"bad_value"}),
    ],
    ids=["null rule", "unknown errno", "two errors", "caps", "flag"],
)
def test_the_docker_format_rejects_profiles_that_are_unsafe_with_crio(
    content: JsonObject, codes: set[str]
) -> None:
    """In the docker format, a field that CRI-O ignores or rejects, or that makes CRI-O crash,
    causes a rejection.
    """
    assert errors(instance_of(inspect(content, format="docker"), Rejection)) == codes


def test_all_mistakes_are_reported_together_with_their_fields() -> None:
    """One inspection reports all mistakes, each with its field."""
    rejection = inspect(allow(deny(action="X"), deny(names=["chmodd"]), None, flag=1))
    assert isinstance(rejection, Rejection)
    assert {(p.code, p.location) for p in rejection.findings if p.severity == "error"} == {
        ("unknown_field", "flag"),
        ("bad_value", "syscalls[0].action"),
        ("unknown_syscall", "syscalls[1].names"),
        ("runtime_crash", "syscalls[2]"),
    }


def test_unknown_names_can_be_allowed() -> None:
    """With allow_unknown_syscalls, an unknown call name is accepted. A malformed name is still
    rejected.
    """
    assert isinstance(inspect(allow(deny(names=["mseal"])), allow_unknown_syscalls=True), Profile)
    assert errors(
        instance_of(inspect(allow(deny(names=["MSEAL"])), allow_unknown_syscalls=True), Rejection)
    ) == {"fails_open"}


@pytest.mark.parametrize(
    ("rule", "codes"),
    [
        ({"names": ["socketcall"], "action": "SCMP_ACT_ALLOW"}, {"condition_surprising"}),
        ({"names": ["socketcall"], "action": "SCMP_ACT_TRAP"}, set()),
    ],
    ids=["let through", "denied"],
)
def test_a_condition_next_to_a_rule_for_socketcall_is_accepted(
    rule: dict[str, str | list[str]], codes: set[str]
) -> None:
    """A condition on the call socket is accepted if the profile has a rule for socketcall."""
    tied = {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [arg()]}
    profile = inspect(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [tied, rule],
        }
    )
    assert isinstance(profile, Profile)
    assert {finding.code for finding in profile.findings} & {"condition_surprising"} == codes


@pytest.mark.parametrize(
    ("rule", "op"),
    [
        ({"action": "SCMP_ACT_ERRNO"}, "SCMP_CMP_EQ"),
        ({"action": "SCMP_ACT_ALLOW"}, "SCMP_CMP_NE"),
    ],
)
def test_a_comparison_that_higher_bits_evade_causes_a_warning(
    rule: dict[str, str], op: str
) -> None:
    """A comparison that a program can bypass with higher bits causes a warning: the kernel uses
    only the lower 32 bits, but the filter compares 64 bits.
    """
    action = "SCMP_ACT_ALLOW" if rule["action"] == "SCMP_ACT_ERRNO" else "SCMP_ACT_ERRNO"
    tied = {"names": ["personality"], "args": [arg(op=op)], **rule}
    profile = inspect({"defaultAction": action, "syscalls": [tied]})
    assert isinstance(profile, Profile)
    assert "condition_surprising" in {finding.code for finding in profile.findings}
    masked = arg(op="SCMP_CMP_MASKED_EQ", value=0xFFFFFFFF, valueTwo=1)
    tied = {"names": ["personality"], "args": [masked], **rule}
    profile = inspect({"defaultAction": action, "syscalls": [tied]})
    assert isinstance(profile, Profile)
    assert "condition_surprising" not in {finding.code for finding in profile.findings}
