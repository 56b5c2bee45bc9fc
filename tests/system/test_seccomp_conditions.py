"""What libseccomp makes of accepted conditions is what they read like: call by call.

Random profiles that `check` accepts are compiled by the real libseccomp, and its filter is
evaluated as the kernel does it, beside the rules themselves.
"""

import ctypes
import json
import random
import struct

import pytest

from agent.doors.host import Host
from agent.kinds.seccomp.kind import Seccomp
from tests.system.test_seccomp_multiplex import Condition

OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")  # from 1 on, in seccomp.h
ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ERRNO": 0x00050001,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
}
# AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386, with the number of personality(2) on each.
ABIS = {"SCMP_ARCH_X86_64": (0xC000003E, 135), "SCMP_ARCH_X86": (0x40000003, 136)}
VALUES = (0, 1, 2, 3, 5, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def holds(condition, value):
    op, wanted = condition["op"].removeprefix("SCMP_CMP_"), condition["value"]
    return {
        "NE": value != wanted,
        "LT": value < wanted,
        "LE": value <= wanted,
        "EQ": value == wanted,
        "GE": value >= wanted,
        "GT": value > wanted,
        "MASKED_EQ": value & wanted == condition.get("valueTwo", 0),
    }[op]


def meant(document, arguments):
    """Return the action that a document reads like for a call.

    A rule without conditions decides for the others too: where they differ there is a warning.
    """
    default = document["defaultAction"]
    rules = [one for one in document["syscalls"] if one["action"] != default]
    for rule in sorted(rules, key=lambda one: bool(one.get("args"))):
        if all(holds(one, arguments[one["index"]]) for one in rule.get("args", [])):
            return ACTIONS[rule["action"]]
    return ACTIONS[document["defaultAction"]]


def compiled(document, path):
    """Return libseccomp's filter as instructions (code, true, false, value)."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(
        library.seccomp_init(ctypes.c_uint32(ACTIONS[document["defaultAction"]]))
    )
    if "SCMP_ARCH_X86" in document["architectures"]:
        assert library.seccomp_arch_add(context, ctypes.c_uint32(ABIS["SCMP_ARCH_X86"][0])) == 0
    for rule in document["syscalls"]:
        if rule["action"] == document["defaultAction"]:
            continue  # runtimes leave it out
        conditions = [
            Condition(
                arg=one["index"],
                op=OPERATORS.index(one["op"].removeprefix("SCMP_CMP_")) + 1,
                value=one["value"],
                value_two=one.get("valueTwo", 0),
            )
            for one in rule.get("args", [])
        ]
        array = (Condition * max(1, len(conditions)))(*conditions)
        action = ctypes.c_uint32(ACTIONS[rule["action"]])
        added = library.seccomp_rule_add_array(context, action, 135, len(conditions), array)
        assert added == 0
    with path.open("wb") as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
    library.seccomp_release(context)
    return list(struct.iter_unpack("<HBBI", path.read_bytes()))


def answer(program, data):
    """Run a classic BPF filter on one struct seccomp_data (linux/filter.h)."""
    position, accumulator = 0, 0
    while True:
        code, true, false, value = program[position]
        position += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= value
        elif code == 0x06:  # BPF_RET | BPF_K
            return value
        elif code == 0x05:  # BPF_JMP | BPF_JA
            position += value
        else:
            taken = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            position += true if taken else false


def drawn(draw):
    rules = []
    for _ in range(draw.randint(1, 3)):
        conditions = []
        for index in draw.sample(range(3), draw.randint(0 if draw.random() < 0.2 else 1, 2)):
            op = draw.choice(OPERATORS)
            value = draw.choice(VALUES)
            two = draw.choice(VALUES) & value if op == "MASKED_EQ" else 0
            conditions.append(
                {"index": index, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}
            )
        action = draw.choice(list(ACTIONS))
        rules.append({"names": ["personality"], "action": action, "args": conditions})
    small = ["SCMP_ARCH_X86"] if draw.random() < 0.5 else []
    return {
        "defaultAction": draw.choice(list(ACTIONS)[:3]),
        "architectures": ["SCMP_ARCH_X86_64", *small],
        "syscalls": rules,
    }


@pytest.mark.parametrize("seed", range(4))
def test_an_accepted_profile_decides_every_call_as_it_reads(tmp_path, seed):
    """Whatever rules and conditions are accepted, the filter is the one that is written."""
    draw = random.Random(seed)  # noqa: S311 - the same every time
    kind = Seccomp(host=Host(tmp_path), machine="x86_64")
    accepted = 0
    for _ in range(700):
        body, _problems = kind.check(json.dumps(drawn(draw)).encode())
        if not body:
            continue
        accepted += 1
        document = json.loads(body)
        program = compiled(document, tmp_path / "bpf")
        for _call in range(40):
            for abi in document["architectures"]:
                token, number = ABIS[abi]
                most = 0xFFFFFFFF if abi == "SCMP_ARCH_X86" else 2**64 - 1
                near = [draw.choice(VALUES) + draw.choice((-1, 0, 1)) for _ in range(6)]
                arguments = [max(0, min(one, most)) for one in near]
                data = struct.pack("<IIQ6Q", number, token, 0, *arguments)
                told = (answer(program, data), json.dumps(document), abi, arguments)
                assert told == (meant(document, arguments), *told[1:])
    assert accepted > 50
