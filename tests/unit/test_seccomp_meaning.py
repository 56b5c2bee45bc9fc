"""Tests of the meaning of a profile, which is the result of each call for each set of
conditions.
"""

import json

import pytest

from agent.backends.seccomp import baseline, meaning, resolve, syntax
from agent.backends.seccomp.document import Answer
from tests.json_object import JsonObject

ABIS = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
ALLOW, EPERM = Answer(action="SCMP_ACT_ALLOW"), Answer(action="SCMP_ACT_ERRNO", errno=1)
ENOSYS = Answer(action="SCMP_ACT_ERRNO", errno=38)


def of(
    *rules: JsonObject,
    capabilities: tuple[str, ...] = (),
    machine: str = "x86_64",
    kernel: tuple[int, int] = (6, 1),
    **more: int,
) -> meaning.Meaning:
    tree = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": list(ABIS), "syscalls": rules}
    document, findings = syntax.read(json.dumps(tree | more).encode())
    assert document is not None, findings
    node = resolve.Node(machine=machine, kernel=kernel, capabilities=frozenset(capabilities))
    return meaning.of(resolve.resolve(document, node).document, resolve.abis(machine))


def rule(
    name: str,
    *args: tuple[int, str, int],
    action: str = "SCMP_ACT_ALLOW",
    **more: int | dict[str, str | list[str]],
) -> JsonObject:
    conditions = [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value} for index, op, value in args
    ]
    return {"names": [name], "action": action, "args": conditions} | more


def test_a_call_without_a_rule_has_the_default() -> None:
    """The result of a call without a rule is the default action with its error number."""
    assert of().answers(ABIS[0], "mount", (0,) * 6) == {EPERM}
    assert of(defaultErrnoRet=38).answers(ABIS[0], "mount", (0,) * 6) == {ENOSYS}


@pytest.mark.parametrize(("family", "answer"), [(1, ALLOW), (40, ENOSYS), (38, EPERM)])
def test_conditions_apply_to_the_arguments(family: int, answer: Answer) -> None:
    """Each rule applies only to arguments that meet its conditions."""
    profile = of(
        rule("socket", (0, "EQ", 1)),
        rule("socket", (0, "EQ", 40), action="SCMP_ACT_ERRNO", errnoRet=38),
    )
    assert profile.answers(ABIS[0], "socket", (family, 0, 0, 0, 0, 0)) == {answer}


def test_a_rule_without_conditions_decides_for_its_call() -> None:
    """An unconditional rule determines the result of its call, because libseccomp drops the
    conditional rules of this call.
    """
    profile = of(rule("socket", (0, "EQ", 1), action="SCMP_ACT_LOG"), rule("socket"))
    assert profile.call(ABIS[0], "socket").every_answer() == {ALLOW}
    assert profile.call(ABIS[0], "socket").is_always_allowed


def test_a_rule_that_equals_the_default_is_ignored() -> None:
    """A rule that equals the default action is ignored, so a later rule can apply."""
    profile = of(rule("clone", action="SCMP_ACT_ERRNO", errnoRet=1), rule("clone", (0, "EQ", 0)))
    assert profile.call(ABIS[0], "clone").every_answer() == {ALLOW, EPERM}


def test_a_32_bit_abi_compares_32_bits() -> None:
    """A filter for a 32-bit ABI ignores the upper half of an argument."""
    profile = of(rule("ptrace", (0, "EQ", 1)))
    arguments = ((1 << 32) + 1, 0, 0, 0, 0, 0)
    assert profile.answers(ABIS[0], "ptrace", arguments) == {EPERM}
    assert profile.answers(ABIS[1], "ptrace", arguments) == {ALLOW}


def test_a_multiplexed_call_has_the_rules_of_its_operations() -> None:
    """A multiplexed call has the rules of its operations. For example, operation 1 of socketcall(2)
    is socket.
    """
    profile = of(rule("socket", (0, "EQ", 1)))
    assert profile.answers(ABIS[1], "socketcall", (1, 0, 0, 0, 0, 0)) == {ALLOW}
    assert profile.answers(ABIS[1], "socketcall", (2, 0, 0, 0, 0, 0)) == {EPERM}


@pytest.mark.parametrize(
    ("capabilities", "answer"), [((), EPERM), (("CAP_BPF",), ALLOW), (("CAP_SYS_ADMIN",), EPERM)]
)
def test_capabilities_select_rules(capabilities: tuple[str, ...], answer: Answer) -> None:
    """A rule with capabilities applies to pods that have these capabilities."""
    profile = of(rule("bpf", includes={"caps": ["CAP_BPF"]}), capabilities=capabilities)
    assert profile.answers(ABIS[0], "bpf", (0,) * 6) == {answer}


@pytest.mark.parametrize(
    ("kernel", "answer"), [((4, 7), EPERM), ((4, 8), ALLOW), ((4, 19), ALLOW), ((5, 0), ALLOW)]
)
def test_the_kernel_selects_rules(kernel: tuple[int, int], answer: Answer) -> None:
    """The kernel version selects rules with minKernel. Versions are compared as numbers and not as
    text.
    """
    profile = of(rule("ptrace", includes={"minKernel": "4.8"}), kernel=kernel)
    assert profile.answers(ABIS[0], "ptrace", (0,) * 6) == {answer}


@pytest.mark.parametrize("name", baseline.NAMES)
@pytest.mark.parametrize("machine", sorted(resolve.MACHINES))
def test_a_default_profile_allows_nothing_beyond_itself(name: str, machine: str) -> None:
    """A default profile that is compared with itself allows no additional call."""
    assert list(baseline.beyond(baseline.of(name, machine), name, machine)) == []


def test_the_default_profile_of_containerd_allows_what_containerd_does() -> None:
    """The model of containerd's default profile unconditionally allows 301 of the 373 calls of
    x86_64, as measured with containerd.
    """
    profile = baseline.of("containerd", "x86_64")
    abi = profile.abis[0]
    allowed = {
        name for name in profile.calls(abi) if profile.answers(abi, name, (0,) * 6) == {ALLOW}
    }
    assert {"personality", "clone", "ptrace", "socket"} <= allowed
    assert allowed.isdisjoint({"mount", "bpf", "unshare", "setns", "keyctl", "reboot"})
