"""Tests of rules that libseccomp merges incorrectly. The agent completes or rejects such rules."""

import json
import time
from typing import Any

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.findings import Finding
from agent.host.filesystem import Host
from tests.json_object import JsonObject

X86_64, X86, X32 = (f"SCMP_ARCH_{name}" for name in ("X86_64", "X86", "X32"))
BOTH, THREE = [X86_64, X86], [X86_64, X86, X32]


def check(document: JsonObject, **options: Any) -> tuple[bytes, list[Finding]]:
    body, findings = SeccompBackend(
        host=Host("/"), clock_ns=time.time_ns, machine="x86_64", **options
    ).check(json.dumps(document).encode())
    return body, [finding for finding in findings if finding.severity == "error"]


def profile(
    *rules: JsonObject,
    architectures: tuple[str] | list[str] = (X86_64,),
    default: str = "SCMP_ACT_ALLOW",
) -> JsonObject:
    return {
        "defaultAction": default,
        "architectures": list(architectures),
        "syscalls": list(rules),
    }


def rule(
    name: str, *conditions: tuple[int, str, int], action: str = "SCMP_ACT_ERRNO", **more: int
) -> JsonObject:
    args = [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value} for index, op, value in conditions
    ]
    return {"names": [name], "action": action} | ({"args": args} if args else {}) | more


ADDED = {"names": ["nfsservctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
UNANCHORED = [
    pytest.param(
        profile(rule("socket", (0, "EQ", 40)), rule("socketcall"), architectures=THREE),
        id="x86_64 lacks the only call without conditions",
    ),
    pytest.param(
        profile(rule("ptrace", (0, "EQ", 1)), rule("semop"), architectures=BOTH),
        id="i386 has the call through ipc only",
    ),
    pytest.param(profile(rule("accept"), architectures=BOTH), id="only through socketcall"),
    pytest.param(
        profile(rule("set_thread_area", (0, "EQ", 1)), architectures=[X32]),
        id="x32 lacks the call",
    ),
    pytest.param(
        profile(
            rule("ptrace", (0, "EQ", 1)), rule("ipc"), rule("futex_waitv"), architectures=THREE
        ),
        id="an older libseccomp does not know the call without conditions",
    ),
    pytest.param(
        profile(
            rule("ptrace", (0, "EQ", 1)),
            rule("ipc"),
            rule("getpid", action="SCMP_ACT_ALLOW"),
            architectures=THREE,
        ),
        id="runtimes omit a rule that equals the default",
    ),
]


@pytest.mark.parametrize("document", UNANCHORED)
def test_a_rule_is_added_if_the_filter_would_not_load_the_call_number(document: JsonObject) -> None:
    """The agent adds a rule if the filter would not load the call number, because libseccomp would
    then drop the conditional rules.
    """
    body, errors = check(document)
    assert errors == []
    assert json.loads(body)["syscalls"] == [*document["syscalls"], ADDED]


@pytest.mark.parametrize("document", UNANCHORED)
def test_a_second_rule_is_not_added_to_the_written_form(document: JsonObject) -> None:
    """A second check of the written form adds no further rule."""
    body, _ = check(document)
    assert check(json.loads(body)) == (body, [])


ANCHORED = [
    profile(rule("socket", (0, "EQ", 40)), rule("socketcall"), architectures=BOTH),
    profile(rule("ptrace", (0, "EQ", 1)), rule("ipc"), rule("getpid"), architectures=THREE),
    profile(rule("ptrace", (0, "EQ", 1)), rule("getpid"), architectures=THREE),
    profile(rule("ptrace", (0, "EQ", 1)), architectures=THREE),
    profile(rule("ipc"), rule("chown32"), architectures=[X32]),
    profile(rule("ptrace", (0, "EQ", 1)), rule("ipc"), rule("nfsservctl"), architectures=THREE),
]


@pytest.mark.parametrize("document", ANCHORED)
def test_no_rule_is_added_if_the_filter_loads_the_call_number(document: JsonObject) -> None:
    """The agent adds no rule if the filter loads the call number anyway."""
    body, errors = check(document)
    assert errors == []
    assert json.loads(body)["syscalls"] == document["syscalls"]


@pytest.mark.parametrize(
    "document",
    [
        profile(
            rule("set_thread_area", (0, "EQ", 1), action="SCMP_ACT_ALLOW"),
            architectures=THREE,
            default="SCMP_ACT_ERRNO",
        ),
        profile(
            rule("ptrace", (0, "EQ", 1)),
            rule("ipc"),
            rule("nfsservctl", (0, "EQ", 1)),
            architectures=THREE,
        ),
    ],
)
def test_a_profile_is_rejected_if_the_added_rule_would_change_its_meaning(
    document: JsonObject,
) -> None:
    """If an added rule would change the meaning of a profile, the profile is rejected with a hint
    that works.
    """
    body, errors = check(document)
    assert body == b""
    assert [error.code for error in errors] == ["fails_open"]
    assert "On SCMP_ARCH_X32 libseccomp would drop every conditional rule" in errors[0].message
    assert "getpid" in errors[0].hint


def test_a_rule_that_depends_on_capabilities_does_not_prevent_the_error() -> None:
    """A rule that depends on capabilities does not prevent the error, because the filter for pods
    without the capability lacks this rule.
    """
    pods = rule("getpid") | {"excludes": {"caps": ["CAP_SYS_ADMIN"]}}
    document = profile(rule("ptrace", (0, "EQ", 1)), rule("ipc"), pods, architectures=THREE)
    body, errors = check(document, format="docker")
    assert errors == []
    assert json.loads(body)["syscalls"] == [*document["syscalls"], ADDED]


WIDE = 1 << 32


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "LT", WIDE), (0, "LE", 0)),
        ((0, "GE", WIDE), (0, "LE", 0)),
        ((0, "LT", 2 * WIDE), (0, "GT", WIDE)),
        ((0, "LE", 3), (0, "LT", WIDE)),
    ],
)
def test_bounds_with_different_upper_halves_are_rejected(
    first: tuple[int, str, int], second: tuple[int, str, int]
) -> None:
    """Two bounds with different upper 32 bits are rejected, because the filter would lack one of
    the bounds.
    """
    body, errors = check(profile(rule("personality", first), rule("personality", second)))
    assert body == b""
    assert [(error.code, error.location) for error in errors] == [("fails_open", "syscalls[1]")]
    assert f"{first[2]} and {second[2]}" in errors[0].message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "LT", WIDE + 5), (0, "LE", WIDE)),
        ((0, "GE", WIDE), (0, "GT", 3 * WIDE)),
        ((0, "LT", WIDE), (1, "LE", 0)),
        ((0, "LT", WIDE), (0, "EQ", 0)),
        ((0, "LT", 7), (0, "GT", 9)),
    ],
)
def test_bounds_that_libseccomp_compiles_correctly_are_accepted(
    first: tuple[int, str, int], second: tuple[int, str, int]
) -> None:
    """Bounds are accepted if libseccomp compiles them correctly, for example bounds with the same
    upper half.
    """
    _, errors = check(profile(rule("personality", first), rule("personality", second)))
    assert errors == []


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (((0, "EQ", 5), (2, "EQ", 8)), ((2, "NE", 8),)),
        (((0, "EQ", 5), (2, "NE", 8)), ((2, "EQ", 8),)),
        (((0, "EQ", 5), (1, "LE", 8)), ((1, "GT", 8),)),
        (((0, "EQ", 5), (1, "GE", 8)), ((1, "LT", 8),)),
        (((0, "EQ", 5), (1, "EQ", 8), (2, "EQ", 1)), ((1, "NE", 8),)),
        (((0, "EQ", 5), (1, "EQ", 6), (2, "EQ", 8)), ((1, "EQ", 6), (2, "NE", 8))),
    ],
)
def test_opposite_comparisons_after_more_conditions_are_rejected(
    long: tuple[tuple[int, str, int], ...], short: tuple[tuple[int, str, int], ...]
) -> None:
    """Opposite comparisons are rejected: `a and x == v` would be lost next to `x != v`."""
    rules = rule("clone", *long), rule("clone", *short)
    for ordered in (rules, rules[::-1]):
        body, errors = check(profile(*ordered))
        assert body == b""
        assert [(error.code, error.location) for error in errors] == [
            ("fails_open", "syscalls[1].args")
        ]
        assert "the opposite" in errors[0].message
        assert errors[0].hint


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((0, "EQ", 5), (2, "EQ", 8)), ((2, "NE", 9),)),
        (((0, "EQ", 5), (2, "EQ", 8)), ((1, "NE", 8),)),
        (((0, "EQ", 5), (2, "EQ", 8)), ((2, "EQ", 8),)),
        (((0, "EQ", 5), (2, "EQ", 8)), ((0, "EQ", 5), (2, "NE", 8))),
        (((0, "EQ", 5), (2, "EQ", 8)), ((0, "EQ", 6), (2, "NE", 8))),
        (((0, "EQ", 5), (1, "LE", 8)), ((1, "GE", 9),)),
        (((1, "EQ", 8),), ((1, "NE", 8),)),
    ],
)
def test_comparisons_that_are_not_opposite_are_accepted(
    first: tuple[tuple[int, str, int], ...], second: tuple[tuple[int, str, int], ...]
) -> None:
    """Comparisons are accepted if their values, arguments or first conditions are not opposite."""
    assert check(profile(rule("clone", *first), rule("clone", *second)))[1] == []


def test_opposite_comparisons_with_different_actions_are_accepted() -> None:
    """Opposite comparisons with different actions are accepted, as in Podman's default profile."""
    pods = {"excludes": {"caps": ["CAP_AUDIT_WRITE"]}}
    rules = (
        rule("socket", (0, "EQ", 16), (2, "EQ", 9), errnoRet=22) | pods,
        rule("socket", (2, "NE", 9), action="SCMP_ACT_ALLOW") | pods,
    )
    assert check(profile(*rules, default="SCMP_ACT_ERRNO"), format="docker")[1] == []


@pytest.mark.parametrize(
    ("short", "long"), [("EQ", "NE"), ("NE", "EQ"), ("GT", "LE"), ("LE", "GT"), ("GE", "LT")]
)
def test_opposite_comparisons_with_different_actions_need_an_order(short: str, long: str) -> None:
    """If the longer of two opposite rules comes later, it is rejected with a hint to move it."""
    rules = [
        rule("clone", (2, short, 8), action="SCMP_ACT_ALLOW"),
        rule("clone", (0, "EQ", 5), (2, long, 8), action="SCMP_ACT_KILL_PROCESS"),
    ]
    body, (error,) = check(profile(*rules, default="SCMP_ACT_ERRNO"))
    assert (body, error.code, error.location) == (b"", "fails_open", "syscalls[1].args")
    assert error.hint.startswith("Move this rule in front of syscalls[0]")
    assert check(profile(*reversed(rules), default="SCMP_ACT_ERRNO"))[1] == []


@pytest.mark.parametrize("operator", ["NE", "LT", "LE", "GE", "GT"])
def test_a_comparison_before_the_last_one_is_rejected_if_another_rule_compares_it(
    operator: str,
) -> None:
    """A comparison before the last condition is rejected if another rule has the same comparison,
    because libseccomp may then lose a part of the shared tree.
    """
    rules = rule("clone", (0, operator, 5), (2, "EQ", 8)), rule("clone", (0, "GT", 8))
    body, errors = check(profile(*rules))
    assert body == b""
    assert [(error.code, error.location) for error in errors] == [
        ("fails_open", "syscalls[0].args")
    ]
    assert f"argument 0 with SCMP_CMP_{operator}" in errors[0].message


@pytest.mark.parametrize(
    "rules",
    [
        [((0, "NE", 5), (1, "LT", 8), (2, "GT", 9))],
        [((0, "EQ", 5), (2, "GE", 8)), ((2, "LT", 9),)],
        [((0, "NE", 5), (2, "EQ", 8)), ((2, "EQ", 9),)],
        [((0, "EQ", 5), (2, "EQ", 8)), ((0, "NE", 5),)],
        # A range and an equality have no comparison in common.
        [((0, "GT", 5), (2, "EQ", 8)), ((0, "EQ", 5), (1, "EQ", 1))],
        [((0, "LE", 5), (2, "NE", 8)), ((0, "EQ", 8),)],
        # The rules have opposite comparisons.
        [((0, "GE", 5), (2, "EQ", 8)), ((0, "LT", 5), (2, "EQ", 9))],
        [((0, "NE", 5), (2, "EQ", 8)), ((0, "EQ", 5), (2, "EQ", 9))],
        # The upper 32 bits differ.
        [((0, "GE", WIDE), (2, "EQ", 8)), ((0, "GE", 5), (2, "EQ", 9))],
        # Different comparisons precede the argument.
        [((0, "EQ", 1), (1, "GE", 5), (2, "EQ", 8)), ((0, "EQ", 2), (1, "GE", 7), (2, "EQ", 8))],
        [((0, "EQ", 1), (1, "GE", 5), (2, "EQ", 8)), ((1, "GE", 7), (3, "EQ", 9))],
        # One rule has more conditions before the argument, and the later conditions differ.
        [((0, "EQ", 1), (1, "GE", 5), (2, "EQ", 8)), ((1, "GE", 7), (2, "EQ", 9))],
        # One rule has more conditions before the argument, and compares it for equality.
        [((1, "GE", 5), (2, "EQ", 8)), ((0, "EQ", 1), (1, "EQ", 7), (2, "EQ", 8))],
    ],
)
def test_comparisons_that_libseccomp_compiles_correctly_are_accepted(
    rules: list[tuple[tuple[int, str, int], ...]],
) -> None:
    """A range is accepted as the last condition, and as an earlier condition if libseccomp does not
    merge the trees of two rules.
    """
    assert check(profile(*(rule("clone", *conditions) for conditions in rules)))[1] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((0, "NE", 5), (2, "EQ", 8)), ((0, "EQ", 6),)),
        (((1, "LE", 4), (2, "EQ", 8)), ((0, "GE", 4), (1, "NE", 4), (2, "EQ", 8))),
        (((1, "GE", 1), (2, "EQ", 1)), ((0, "NE", 1), (1, "GT", 1), (2, "NE", 1))),
        (((0, "EQ", 1), (1, "GE", 5), (2, "EQ", 8)), ((0, "EQ", 1), (1, "GE", 7))),
        (((1, "LT", 3), (2, "LE", 1)), ((0, "EQ", 3), (1, "LE", 3), (2, "LE", 1))),
        (((1, "GT", 3), (2, "EQ", 3)), ((0, "EQ", 3), (1, "GE", 3), (2, "NE", 3))),
    ],
)
def test_merged_trees_are_rejected_in_every_order(
    first: tuple[tuple[int, str, int], ...], second: tuple[tuple[int, str, int], ...]
) -> None:
    """If rules share comparisons and a subtree has two parents, the rules are rejected in every
    order.
    """
    for rules in ((first, second), (second, first)):
        body, errors = check(profile(*(rule("clone", *conditions) for conditions in rules)))
        assert (body, [error.code for error in errors]) == (b"", ["fails_open"])


def test_a_condition_that_is_always_true_is_not_written() -> None:
    """A condition that is always true, because its mask is empty, is not written."""
    always = {"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 0, "valueTwo": 0}
    document = profile(rule("clone") | {"args": [always]})
    body, errors = check(document)
    assert errors == []
    assert json.loads(body)["syscalls"] == [rule("clone")]


def test_a_condition_that_is_always_true_does_not_hide_a_later_rule() -> None:
    """A rule whose condition is always true conflicts with another rule for the same call."""
    always = {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0, "valueTwo": 0}
    allowed = rule("setuid", action="SCMP_ACT_ALLOW") | {"args": [always]}
    body, errors = check(profile(allowed, rule("setuid"), default="SCMP_ACT_LOG"))
    assert body == b""
    assert [error.code for error in errors] == ["bad_value"]


@pytest.mark.parametrize(
    "rules",
    [
        (
            rule("socket", (0, "GT", 2), (2, "NE", 1)),
            rule("socketcall", (0, "NE", 2), (1, "NE", 1), (2, "GE", 2)),
        ),
        (
            rule("socket", (0, "EQ", 3), (1, "EQ", 4), (2, "EQ", 5)),
            rule("socket", (0, "EQ", 7), (2, "NE", 5)),
        ),
    ],
)
def test_rules_for_socket_calls_are_compared_as_rules_for_socketcall(
    rules: tuple[JsonObject, JsonObject],
) -> None:
    """On i386, rules for socket calls are compared as rules for socketcall."""
    assert check(profile(*rules))[1] == []
    body, errors = check(profile(*rules, architectures=BOTH))
    assert body == b""
    assert {error.code for error in errors} == {"fails_open"}
    assert "socketcall(2)" in errors[0].message


BOUND, LONG = (0, "GT", 2), ((0, "EQ", 2), (1, "NE", 9))


@pytest.mark.parametrize("architectures", [BOTH, [X86_64, X32]])
def test_a_comparison_that_two_calls_share_is_rejected_on_32_bit_abis(
    architectures: list[str],
) -> None:
    """On 32-bit ABIs, a comparison that the rules of two calls share is rejected."""
    common = [{**rule("setuid", *args), "names": ["setuid", "setgid"]} for args in ((BOUND,), LONG)]
    document = profile(*common, rule("setgid", (0, "LT", 2)), architectures=architectures)
    body, errors = check(document)
    assert body == b""
    assert [error.code for error in errors] == ["fails_open"]
    assert "share a comparison of argument 0" in errors[0].message
    assert check(document | {"architectures": [X86_64]})[1] == []


def test_two_calls_with_the_same_rules_are_accepted() -> None:
    """Two calls with exactly the same rules are accepted."""
    common = [{**rule("setuid", *args), "names": ["setuid", "setgid"]} for args in ((BOUND,), LONG)]
    assert check(profile(*common, architectures=BOTH))[1] == []


def test_a_shared_comparison_with_different_next_conditions_is_accepted() -> None:
    """A shared comparison that is followed by different conditions is accepted, because the
    resulting instructions are different.
    """
    document = profile(
        rule("setuid", (0, "EQ", 2), (1, "NE", 9)),
        rule("setuid", (0, "EQ", 3)),
        rule("setgid", (0, "EQ", 2), (1, "EQ", 5)),
        rule("setgid", (0, "EQ", 4)),
        architectures=BOTH,
    )
    assert check(document)[1] == []


CONTRADICTIONS = [
    (rule("socket", (0, "EQ", 3)), rule("socket", (0, "EQ", 16), action="SCMP_ACT_KILL_PROCESS")),
    (rule("bind", (2, "NE", 1), action="SCMP_ACT_TRACE"), rule("bind", action="SCMP_ACT_TRAP")),
    (rule("socket"), rule("socketcall", (0, "EQ", 1), action="SCMP_ACT_KILL_PROCESS")),
]


@pytest.mark.parametrize("rules", CONTRADICTIONS)
def test_rules_that_contradict_each_other_without_the_first_argument_are_rejected(
    rules: tuple[JsonObject, JsonObject],
) -> None:
    """On i386, rules that contradict each other apart from the first argument are rejected, because
    libseccomp builds no filter from them.
    """
    body, errors = check(profile(*rules, architectures=BOTH))
    assert body == b""
    assert [(error.code, error.location) for error in errors] == [("bad_value", "syscalls[1]")]
    assert "On SCMP_ARCH_X86" in errors[0].message


def test_the_order_of_the_names_in_a_rule_has_an_effect() -> None:
    """In a rule, the name socketcall covers only the names that follow it."""
    earlier = rule("socket", (1, "NE", 40))
    later = {"action": "SCMP_ACT_TRAP"}
    for names, codes in ((["socket", "socketcall"], ["bad_value"]), (["socketcall", "socket"], [])):
        document = profile(earlier, later | {"names": names}, architectures=BOTH)
        assert [error.code for error in check(document)[1]] == codes


@pytest.mark.parametrize("rules", CONTRADICTIONS)
def test_contradicting_socket_rules_are_accepted_without_32_bit_abis(
    rules: tuple[JsonObject, JsonObject],
) -> None:
    """Without 32-bit ABIs, contradicting socket rules are accepted, because on x86_64 each socket
    call has its own number.
    """
    assert check(profile(*rules))[1] == []


def test_contradicting_socket_rules_are_accepted_after_a_rule_for_socketcall() -> None:
    """After an unconditional rule for socketcall, contradicting socket rules are accepted."""
    rules = (rule("socketcall"), *CONTRADICTIONS[0])
    assert check(profile(*rules, architectures=BOTH))[1] == []


def warnings(document: JsonObject) -> list[Finding]:
    _, findings = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64").check(
        json.dumps(document).encode()
    )
    return [finding for finding in findings if finding.code == "condition_surprising"]


MASKED = {"index": 2, "op": "SCMP_CMP_MASKED_EQ", "value": 0xFFFFFFFF, "valueTwo": 9}


@pytest.mark.parametrize(
    ("denied", "through"),
    [(rule("socket") | {"args": [MASKED]}, "socketcall"), (rule("shmat"), "ipc")],
)
def test_a_denied_call_that_a_multiplexing_call_still_reaches_causes_a_warning(
    denied: JsonObject, through: str
) -> None:
    """A warning reports that an i386 program can make a denied call through socketcall or ipc."""
    (warning,) = warnings(profile(denied, architectures=BOTH))
    assert f"through {through}(2)" in warning.message
    assert warnings(profile(denied, rule(through), architectures=BOTH)) == []
    assert warnings(profile(denied)) == []


def test_a_call_that_libseccomp_denies_completely_causes_no_warning() -> None:
    """A call that a rule denies unconditionally causes no warning, because libseccomp also denies
    it in socketcall.
    """
    assert warnings(profile(rule("socket"), architectures=BOTH)) == []


def with_capability(key: str, entry: JsonObject) -> JsonObject:
    return entry | {key: {"caps": ["CAP_SYS_ADMIN"]}}


@pytest.mark.parametrize(
    ("rules", "codes"),
    [
        # A pod with the capability has both rules.
        (
            (
                with_capability("includes", rule("clone", (0, "NE", 5))),
                rule("clone", (0, "GT", 7), action="SCMP_ACT_LOG"),
            ),
            ["fails_open"],
        ),
        (
            (
                with_capability("includes", rule("clone", action="SCMP_ACT_LOG")),
                rule("clone", (0, "EQ", 7)),
            ),
            ["fails_open"],
        ),
        # No pod has both rules.
        (
            (
                with_capability("includes", rule("clone", (0, "NE", 5))),
                with_capability("excludes", rule("clone", (0, "GT", 7), action="SCMP_ACT_LOG")),
            ),
            [],
        ),
        (
            (
                with_capability("includes", rule("clone", action="SCMP_ACT_LOG")),
                with_capability("excludes", rule("clone", (0, "EQ", 7))),
            ),
            [],
        ),
    ],
)
def test_rules_that_depend_on_capabilities_must_agree_where_a_pod_has_both(
    rules: tuple[JsonObject, JsonObject], codes: list[str]
) -> None:
    """Rules that depend on capabilities must agree if a pod can have both rules. If no pod can have
    both rules, their actions may differ.
    """
    assert [error.code for error in check(profile(*rules), format="docker")[1]] == codes
