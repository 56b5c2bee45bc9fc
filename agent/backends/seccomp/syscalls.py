"""Lists the system calls that libseccomp knows and that each ABI has.

The oldest supported runtimes use libseccomp 2.5.4. A name counts as known if the oldest libseccomp
on the nodes resolves it on any architecture; `releases` lists newer system calls. The tables were
measured with Debian's libseccomp2 2.5.4-1+deb12u1: seccomp_syscall_resolve_name(3) was called for
each of the 538 names of system-calls 7.2 (Linux 7.2), and seccomp_syscall_resolve_num_arch(3) on 19
architectures for the names that system-calls lacks.
"""

import difflib
import functools
from collections.abc import Sequence
from typing import Final

import system_calls  # type: ignore[import-untyped]  # the package has no stubs

from agent.backends.seccomp import releases


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# These names are in the list system-calls 7.2, but libseccomp 2.5.4 does not know them. The agent
# does not know names of system calls that are newer than Linux 7.2.
_NOT_IN_2_5_4: Final = _words(
    """
    arc_gettls arc_settls arc_usr_cmpxchg atomic_barrier atomic_cmpxchg_32 dipc exec_with_loader
    execv file_getattr file_setattr getdomainname getdtablesize gethostname getpagesize getxattrat
    getxgid getxpid getxuid kern_features listmount listns listxattrat llseek lsm_get_self_attr
    lsm_list_modules lsm_set_self_attr memory_ordering mseal old_adjtimex oldumount open_tree_attr
    or1k_atomic osf_fstat osf_fstatfs osf_fstatfs64 osf_getdirentries osf_getdomainname
    osf_getitimer osf_getrusage osf_getsysinfo osf_gettimeofday osf_lstat osf_mount
    osf_proplist_syscall osf_select osf_set_program_attributes osf_setitimer osf_setsysinfo
    osf_settimeofday osf_shmat osf_sigprocmask osf_sigstack osf_stat osf_statfs osf_statfs64
    osf_swapon osf_syscall osf_sysinfo osf_usleep_thread osf_utimes osf_utsname osf_wait4 perfctr
    removexattrat riscv_hwprobe rseq_slice_yield sched_get_affinity sched_set_affinity sethae
    setpgrp setxattrat statmount uprobe uretprobe utrap_install
    """
)

# Debian's package 2.5.4-1+deb12u1 knows these names from a newer table. libseccomp 2.5.4 without
# Debian's changes contains only the system calls of Linux 5.17 (see its CHANGELOG), and other
# distributions ship it unchanged.
_ONLY_IN_DEBIANS_2_5_4: Final = frozenset(
    ["cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "map_shadow_stack"]
)

# libseccomp 2.5.4 knows these names, but the list system-calls 7.2 does not contain them.
_ONLY_IN_LIBSECCOMP: Final = _words(
    """
    _sysctl afs_syscall arm_sync_file_range bdflush break create_module ftime get_kernel_syms
    getpmsg gtty idle lock mpx nfsservctl prof profil putpmsg query_module security stty tuxcall
    ulimit uselib vserver
    """
)

_CALLS: Final = system_calls.syscalls()

KNOWN: Final = (
    frozenset(str(name) for name in _CALLS.names()) - _NOT_IN_2_5_4 - _ONLY_IN_DEBIANS_2_5_4
) | _ONLY_IN_LIBSECCOMP

# No Linux kernel has ever had these system calls, so a rule with one of these names has no effect.
# For example, the profile prevent-chmod in the AKS documentation lists `chmodat` next to chmod and
# fchmodat. Add only names that published examples contain, and no other misspelt names.
INERT: Final = frozenset({"chmodat"})

# Each of these newer system calls can have the effect of an older call. The version is the Linux
# release that added the newer system call (source: man pages). If a profile denies only the older
# system call, a program can use the newer call for the same effect.
NEWER_VARIANTS: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "clone3": ("5.3", frozenset({"clone"})),
    "execveat": ("3.19", frozenset({"execve"})),
    "faccessat2": ("5.8", frozenset({"faccessat"})),
    "fchmodat2": ("6.6", frozenset({"fchmodat"})),
    "openat2": ("5.6", frozenset({"openat"})),
    "renameat2": ("3.15", frozenset({"renameat"})),
}


def known(name: str, floor: releases.RuntimeFloor = releases.LOWEST) -> bool:
    """Return whether every libseccomp on the nodes resolves the name on any architecture."""
    return name in KNOWN or releases.is_known(name, floor)


def exists(name: str) -> bool:
    """Return whether some architecture of Linux has the system call, even if no libseccomp knows
    it.
    """
    return name in KNOWN or name in _NOT_IN_2_5_4 or name in _ONLY_IN_DEBIANS_2_5_4


# This dictionary maps the name of an ABI in the runtime-spec to the name of its table in
# system-calls.
_TABLES: Final = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "arm64",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_PPC": "powerpc",
    "SCMP_ARCH_PPC64": "powerpc64",
    "SCMP_ARCH_PPC64LE": "powerpc64",
    "SCMP_ARCH_S390": "s390",
    "SCMP_ARCH_S390X": "s390x",
    "SCMP_ARCH_MIPS": "mipso32",
    "SCMP_ARCH_MIPSEL": "mipso32",
    "SCMP_ARCH_MIPS64": "mips64",
    "SCMP_ARCH_MIPSEL64": "mips64",
    "SCMP_ARCH_MIPS64N32": "mips64n32",
    "SCMP_ARCH_MIPSEL64N32": "mips64n32",
    "SCMP_ARCH_RISCV64": "riscv64",
}


# Every system call with this number or a larger number has the same number on every architecture.
# Some versions of libseccomp do not know the system calls after faccessat2, and runtimes with these
# versions ignore the names of these calls.
_FIRST_RECENT: Final = 440


@functools.cache
def of(abi: str) -> frozenset[str]:
    """Return the names of an ABI's system calls, except for calls that Linux has removed."""
    return frozenset(name for name in KNOWN if number(abi, name) >= 0)


@functools.lru_cache(maxsize=1 << 14)
def number(abi: str, name: str) -> int:
    """Return the number of a system call on an ABI, or -1 if the ABI lacks the call."""
    try:
        return int(_CALLS.get(name, _TABLES[abi]))
    except (KeyError, system_calls.NotSupportedSystemCall, system_calls.NoSuchSystemCall):
        return -1


def may_exist(abi: str, name: str) -> bool:
    """Return whether libseccomp may have a number for the system call on an ABI. libseccomp also
    knows calls that Linux has removed, whose numbers the agent does not know.
    """
    return number(abi, name) >= 0 or name in _ONLY_IN_LIBSECCOMP


RECENT: Final = frozenset(
    name for name in KNOWN if number("SCMP_ARCH_X86_64", name) >= _FIRST_RECENT
)


def closest(word: str, words: frozenset[str]) -> str:
    """Return the known word that differs only in case, or otherwise a similar word; empty if there
    is none.
    """
    same = next((item for item in sorted(words) if item.lower() == word.lower()), "")
    return same or next(iter(difflib.get_close_matches(word[:64], sorted(words), n=1)), "")


def nearest(word: str, words: frozenset[str]) -> str:
    """Return `Did you mean X?`, or "" if no word is similar."""
    match = closest(word, words)
    return f"Did you mean {match}?" if match else ""


_MOST_NAMES: Final = 12  # The maximum number of names in one message.


def listed(names: Sequence[str]) -> str:
    """Return a list of names for a message; after the first names, it only states how many more
    names exist.
    """
    rest = len(names) - _MOST_NAMES
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(name[:60] for name in names[:_MOST_NAMES]) + more
