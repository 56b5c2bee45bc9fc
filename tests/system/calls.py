"""Records the agent's system calls, and writes the profile of manifests/components/own-seccomp.

    python -m tests.system.calls

In the virtual machine, strace follows runc, the agent and its child processes. The trace covers
every function of the agent, and the shipped pod's communication with a real API server. Calls
before runc has loaded the filter are not recorded. The profile also contains rare calls, and the
variants of the recorded calls on other architectures, C libraries and kernels.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.system import image, rights, rights_run, vm

STRACE = "/usr/bin/strace"
LIMIT_SECONDS = 1800
TRACED = ("base one pass", "base daemon", "own seccomp as it ships")
# If one call of a line was recorded, the profile allows all calls of the line.
FAMILIES = """
access faccessat faccessat2
open openat
stat lstat fstat newfstatat statx
statfs fstatfs
dup dup2 dup3
pipe pipe2
poll ppoll
select pselect6
epoll_create epoll_create1
epoll_wait epoll_pwait epoll_pwait2
inotify_init inotify_init1
mkdir mkdirat
unlink unlinkat rmdir
rename renameat renameat2
link linkat
readlink readlinkat
getdents getdents64
chmod fchmod fchmodat fchmodat2
fork vfork clone clone3
wait4 waitid
nanosleep clock_nanosleep
getrlimit setrlimit prlimit64
sendto sendmsg sendmmsg
recvfrom recvmsg
accept accept4
futex futex_waitv
getuid geteuid getgid getegid
""".strip().splitlines()
RARE = (
    # The agent needs these calls after a signal, for example after SIGTERM, or when it stops a
    # hanging parser.
    *("restart_syscall", "rt_sigreturn", "rt_sigaction", "rt_sigprocmask", "sigaltstack"),
    *("exit", "exit_group", "kill", "tgkill", "getpid", "gettid"),
    # These calls read clocks and processors, in case the vDSO cannot respond without a system call.
    *("clock_gettime", "clock_getres", "gettimeofday", "time", "getcpu", "sched_getaffinity"),
    # The agent uses these calls to pause, for example until the kernel has freed an old policy.
    *("nanosleep", "clock_nanosleep"),
    # These calls manage memory. The amount of free memory determines whether these calls occur.
    *("brk", "mmap", "mprotect", "mremap", "munmap", "madvise"),
    # The sandbox of the parser needs these calls. The kernel of the recording may not support the
    # sandbox.
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    # With this call, the dynamic loader writes its messages and the list of libraries.
    "writev",
    # Other runtimes, and later versions of runc, make these calls after they load the filter and
    # before they start the agent.
    *("capget", "capset", "prctl", "close_range", "sched_yield", "execve", "execveat", "umask"),
)


def profile(called):
    """Return the profile that allows the recorded calls. Under this profile, every other call fails
    with ENOSYS.
    """
    names = {*called, *RARE}
    for family in FAMILIES:
        if not names.isdisjoint(family.split()):
            names.update(family.split())
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": sorted(names), "action": "SCMP_ACT_ALLOW"}],
    }


def record():
    """Return the names of the calls that were recorded in the virtual machine."""
    output = subprocess.run(["ldd", STRACE], capture_output=True, text=True, check=True).stdout
    libraries = [item for item in re.findall(r"=> (\S+)", output) if "libc.so" not in item]
    built = image.build()
    command = [
        "install -m 0755 tools/strace /usr/bin/strace",
        *(f"install -m 0755 tools/{Path(item).name} {item}" for item in libraries),
        "export TRACE='strace -f -qq -s 0'",
        rights_run.START.strip() + "".join(f" '{item}'" for item in TRACED),
    ]
    with rights_run.prepared() as cluster, tempfile.TemporaryDirectory() as folder:
        files = rights_run.files(built.config, cluster, 9)
        # This filter allows every call.
        files["own/agent.json"] = b'{"defaultAction": "SCMP_ACT_LOG"}'
        for item in (STRACE, *libraries):
            files[f"tools/{Path(item).name}"] = Path(item).read_bytes()
        drive = rights_run.drive(built.root, Path(folder) / "image")
        result = vm.run(
            files, "\n".join(command), timeout_seconds=LIMIT_SECONDS, drives=[drive], network=True
        )
    lines = [json.loads(item) for item in result.output.splitlines() if item.startswith("{")]
    failed = [item for item in lines if item.get("error")]
    assert not failed, failed
    return next(item["calls"] for item in lines if "calls" in item)


if __name__ == "__main__":
    path = rights.ROOT / "components/own-seccomp/agent.json"
    path.write_text(json.dumps(profile(record()), indent=2) + "\n")
    sys.stdout.write(f"{path}\n")
