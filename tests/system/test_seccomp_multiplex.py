"""Tests of the agent's table of multiplexed calls. libseccomp drops the conditions of these
calls.
"""

import ctypes
import re

import pytest

from agent.backends.seccomp import multiplex, syscalls

ALLOW, ERRNO, EQUAL = 0x7FFF0000, 0x00050001, 4
BIG_ENDIAN = {"PPC", "PPC64", "S390", "S390X", "MIPS"}
ABIS = ("X86_64", "X86", "X32", "ARM", "AARCH64", "MIPSEL", "PPC64LE", *sorted(BIG_ENDIAN))


class Condition(ctypes.Structure):
    """The struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    )


def filter_code(path, abi, name):
    """Return libseccomp's pseudo filter code for one conditional rule on one ABI."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    context = ctypes.c_void_p(library.seccomp_init(ALLOW))
    token = library.seccomp_arch_resolve_name(abi.lower().encode())
    native = library.seccomp_arch_native
    native.restype = ctypes.c_uint32
    assert library.seccomp_arch_remove(context, ctypes.c_uint32(native())) == 0
    assert library.seccomp_arch_add(context, ctypes.c_uint32(token)) == 0
    number = library.seccomp_syscall_resolve_name(name.encode())
    condition = (Condition * 1)(Condition(arg=0, op=EQUAL, value=12345))
    added = library.seccomp_rule_add_array(context, ERRNO, number, 1, condition)
    with path.open("wb") as file:
        if added == 0:
            assert library.seccomp_export_pfc(context, file.fileno()) == 0
    library.seccomp_release(context)
    return path.read_text()


@pytest.mark.parametrize("abi", ABIS)
def test_the_table_lists_the_calls_that_lose_their_conditions(tmp_path, abi):
    """The table contains exactly the calls for which libseccomp drops the conditions on socketcall
    or ipc.
    """
    result = {"socketcall": set(), "ipc": set()}
    for name in sorted(syscalls.KNOWN - {"socketcall", "ipc"}):
        code = filter_code(tmp_path / "pfc", abi, name)
        for through in re.findall(r'syscall "(socketcall|ipc)"', code):
            result[through].add(name)
    expected = (
        {"socketcall": set(multiplex.SOCKETCALL), "ipc": set(multiplex.IPC)}
        if f"SCMP_ARCH_{abi}" in multiplex.ABIS
        else {"socketcall": set(), "ipc": set()}
    )
    assert result == expected
