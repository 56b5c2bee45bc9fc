"""Which system call names libseccomp 2.5.4 knows, the oldest that supported runtimes use.

Rule 1: a name counts as known when libseccomp 2.5.4 resolves it on any architecture; one that
exists elsewhere only (`arm_fadvise64_64` on x86_64) is resolved, and never made.
Rule 2: the tables are data. seccomp_syscall_resolve_name(3) of Debian's libseccomp2
2.5.4-1+deb12u1 was asked for each of the 538 names of system-calls 7.2 (Linux 7.2), and
seccomp_syscall_resolve_num_arch(3) of 19 architectures for the names that system-calls lacks.
"""

import difflib
import functools
from typing import Final

import system_calls  # type: ignore[import-untyped]  # it has no stubs


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# In system-calls 7.2, not in libseccomp 2.5.4. A name newer than Linux 7.2 is unknown anyway.
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

# Debian's 2.5.4-1+deb12u1 knows these through a later table; upstream's 2.5.4 follows Linux 5.17
# (its CHANGELOG), and other distributions ship that.
_ONLY_IN_DEBIANS_2_5_4: Final = frozenset(
    ["cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "map_shadow_stack"]
)

# In libseccomp 2.5.4, not in system-calls 7.2.
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

# Names that no Linux has ever had, and that a rule may therefore carry without letting anything
# through: the AKS document's prevent-chmod lists `chmodat` beside chmod and fchmodat. A name
# belongs here only if a document that people copy from has it; a typing mistake does not.
INERT: Final = frozenset({"chmodat"})

# The 50 that Docker documents as blocked by its default profile; AKS repeats the table.
DANGEROUS: Final = _words(
    """
    acct add_key bpf clock_adjtime clock_settime clone create_module delete_module finit_module
    get_kernel_syms get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl
    lookup_dcookie mbind mount move_pages nfsservctl open_by_handle_at perf_event_open personality
    pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl reboot request_key
    set_mempolicy setns settimeofday stime swapon swapoff sysfs _sysctl umount umount2 unshare
    uselib userfaultfd ustat vm86 vm86old
    """
)


# Newer calls that do what older ones do, with the Linux release that has them (the man page of
# each). A profile that denies only the older ones lets the effect through.
NEWER_VARIANTS: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "clone3": ("5.3", frozenset({"clone"})),
    "execveat": ("3.19", frozenset({"execve"})),
    "faccessat2": ("5.8", frozenset({"faccessat"})),
    "fchmodat2": ("6.6", frozenset({"fchmodat"})),
    "openat2": ("5.6", frozenset({"openat"})),
    "renameat2": ("3.15", frozenset({"renameat"})),
}


def known(name: str) -> bool:
    """Return whether libseccomp 2.5.4 resolves the name on any architecture."""
    return name in KNOWN


# runtime-spec's name of an ABI -> the table of system-calls
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


# From this number on, Linux gives a call the same number on every architecture. Some versions of
# libseccomp that runtimes use do not know the calls after faccessat2, and skip them.
_FIRST_RECENT: Final = 440


@functools.cache
def of(abi: str) -> frozenset[str]:
    """Return the names of the calls that an ABI has; without those that Linux has removed."""
    return frozenset(name for name in KNOWN if _number(abi, name) >= 0)


def _number(abi: str, name: str) -> int:
    try:
        return int(_CALLS.get(name, _TABLES[abi]))
    except (KeyError, system_calls.NotSupportedSystemCall, system_calls.NoSuchSystemCall):
        return -1


RECENT: Final = frozenset(
    name for name in KNOWN if _number("SCMP_ARCH_X86_64", name) >= _FIRST_RECENT
)


def nearest(word: str, words: frozenset[str]) -> str:
    """Return `Did you mean X?`, or nothing if no word is near."""
    found = difflib.get_close_matches(word[:64], sorted(words), n=1)
    return f"Did you mean {found[0]}?" if found else ""
