"""Reads the filter that a runtime has installed from the kernel."""

import ctypes
import os
import struct

from tests.system.seccomp_filter.runtimes import Instruction

# constants from linux/ptrace.h and linux/wait.h
_ATTACH, _DETACH, _GET_FILTER = 16, 17, 0x420C
_WAIT_ALL = 0x40000000

_C = ctypes.CDLL(None, use_errno=True)
_C.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_C.ptrace.restype = ctypes.c_long


def of_process(process: int) -> tuple[Instruction, ...]:
    """Return the newest filter of a process.

    The caller must be root, and the kernel must have CONFIG_CHECKPOINT_RESTORE.
    """
    _ptrace(_ATTACH, process, None)
    try:
        os.waitpid(process, _WAIT_ALL)
        count = _ptrace(_GET_FILTER, process, None)
        buffer = ctypes.create_string_buffer(8 * count)
        _ptrace(_GET_FILTER, process, ctypes.addressof(buffer))
        return tuple(struct.iter_unpack("<HBBI", buffer.raw))
    finally:
        _ptrace(_DETACH, process, None)


def _ptrace(request: int, process: int, data: int | None) -> int:
    result = int(_C.ptrace(request, process, None, data))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
