"""Tests that the test harness builds the same filters as the real runc and crun."""

import contextlib
import ctypes
import errno
import json
import os
import platform
import random
import struct
import subprocess
import time
import uuid

import pytest

from agent.backends.seccomp import syscalls
from agent.backends.seccomp.backend import SeccompBackend
from agent.host.filesystem import Host
from tests.system.seccomp_filter import generator, installed, libraries
from tests.system.seccomp_filter.bpf import Program
from tests.system.seccomp_filter.compare import Questions
from tests.system.seccomp_filter.reference import Reference
from tests.system.seccomp_filter.runtimes import KERNEL_NUMBERS, Runtime, build, export, wants_tree
from tests.system.test_runtimes import bundle, configure, contain, run_command

__all__ = ["bundle"]  # an imported fixture

# A sleeping container does not need these calls, so rules for these calls have no effect on the
# container.
UNUSED = (
    *("personality", "ptrace", "bind", "connect", "accept", "shmat", "semop", "mount", "chown32"),
    *("socketcall", "ipc", "stat64", "umount", "vm86", "renameat", "waitpid", "socket", "send"),
)
ALL_CALLS = sorted(syscalls.KNOWN - {*UNUSED, "futex_waitv", "process_mrelease"})


@contextlib.contextmanager
def sleeping(runtime, folder, seccomp):
    """Run a sleeping container, and yield the PID of its process on the host."""
    configure(folder, seccomp, ["sh", "-c", "echo ready; read line"])
    name = f"profile-loader-{uuid.uuid4().hex[:8]}"
    with subprocess.Popen(
        run_command(runtime, name),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process_of(runtime, name)
        finally:
            process.stdin.close()
            process.wait()
            subprocess.run([runtime, "delete", "--force", name], capture_output=True, check=False)


def process_of(runtime, name):
    """Return the PID of a container. The function waits, because crun starts the command before the
    state is available.
    """
    for _ in range(100):
        state = subprocess.run(
            [runtime, "state", name], capture_output=True, text=True, check=False
        )
        if state.returncode == 0:
            return json.loads(state.stdout)["pid"]
    raise AssertionError(state.stderr)


def family(runtime):
    """Return the runtime of the harness that builds the same filters as the installed version of a
    runtime.
    """
    if runtime == "crun":
        return Runtime.CRUN
    words = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True)
    version = words.stdout.split()[2]
    return Runtime.RUNC_1_1 if version.startswith("1.1.") else Runtime.RUNC_1_2


def random_profile(seed, default):
    """Return a profile with random rules for unused calls. The default action is not relevant."""
    draw = random.Random(seed)  # noqa: S311 - the same every time
    profile = generator.profile(draw)
    profile["defaultAction"] = default
    rules = []
    for rule in profile["syscalls"]:
        names = sorted(set(rule["names"]) & set(UNUSED)) or [draw.choice(UNUSED)]
        rules.append(rule | {"names": names, "action": "SCMP_ACT_KILL_PROCESS"})
    if default != "SCMP_ACT_ALLOW":
        rules.append({"names": ALL_CALLS, "action": "SCMP_ACT_ALLOW"})
    return profile | {"syscalls": rules}


@pytest.mark.parametrize("runtime", ["runc", "crun"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"])
def test_the_built_filter_equals_the_installed_filter(runtime, seed, default, bundle):
    """For crun, the built program equals the installed program. For runc, both programs return
    equal results.
    """
    library = libraries.installed()
    kind = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64")
    bodies = (
        kind.check(json.dumps(random_profile(f"{seed}/{draw}", default)).encode())[0]
        for draw in range(100)
    )
    profile = json.loads(next(body for body in bodies if body))
    with sleeping(runtime, bundle, profile) as process:
        actual = installed.of_process(process)
    version = family(runtime)
    built = build(library, profile, version)
    tree = wants_tree(profile, version)
    plain = export(library, profile, "SCMP_ARCH_X86_64", binary_tree=tree)
    assert actual[len(actual) - len(plain) :] == plain
    if runtime == "crun":
        assert actual == built
    reference = Reference(library, profile, version)
    questions = Questions(profile, random.Random(seed))  # noqa: S311 - the same every time
    asked = 0
    harness, kernel = Program(built), Program(actual)
    for architecture in reference.architectures:
        calls = list(questions.calls(reference, architecture))
        calls += [(number, "", [(0,) * 6]) for number in every_number(architecture)]
        for number, _, vectors in calls:
            for arguments in vectors:
                kernel_number = KERNEL_NUMBERS[architecture]
                expected = harness.evaluate(kernel_number, number, arguments)
                assert kernel.evaluate(kernel_number, number, arguments) == expected
                asked += 1
    assert asked > 500


def every_number(architecture):
    """Return every number that a system call has now or may have in the future."""
    bit = (1 << 30) if architecture == "SCMP_ARCH_X32" else 0
    return [number | bit for number in range(600)]


DENIES_777 = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": index, "value": 0o777, "op": "SCMP_CMP_EQ"}],
        }
        for name, index in (("chmod", 1), ("fchmodat", 2))
    ]
    + [{"names": ["socketcall"], "action": "SCMP_ACT_ERRNO"}],
}
CHMOD = "chmod 777 /etc/hostname && echo changed"


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_conditional_rule_applies_although_libseccomp_would_drop_it(runtime, bundle):
    """In a container, the rule that the agent writes has an effect, although the original rule has
    none.
    """
    _, output = contain(runtime, bundle, DENIES_777, CHMOD)
    assert "changed" in output
    kind = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64")
    body, _ = kind.check(json.dumps(DENIES_777).encode())
    status, output = contain(runtime, bundle, json.loads(body), CHMOD)
    assert (status != 0, "changed" in output) == (True, False), output
    assert "Operation not permitted" in output


# No kernel implements this call, so it fails with the error number of the filter or with ENOSYS.
UNIMPLEMENTED, ITS_NUMBER = "afs_syscall", 183
REFUSED = 99  # EADDRNOTAVAIL, which no other call in this test returns.


def kernel_answers(program, vectors):
    """Install a program in a child process, and return the error number of the call for each
    argument vector.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            install(program)
            for arguments in vectors:
                C.syscall(ITS_NUMBER, *map(ctypes.c_uint64, arguments))
                os.write(writer, bytes([ctypes.get_errno()]))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answers = list(file.read())
    os.waitpid(child, 0)
    return answers


def install(program):
    """Install the filter in this process with prctl(2), after PR_SET_NO_NEW_PRIVS."""
    instructions = ctypes.create_string_buffer(
        b"".join(struct.pack("<HBBI", *item) for item in program)
    )
    header = ctypes.create_string_buffer(
        struct.pack("<H6xQ", len(program), ctypes.addressof(instructions))
    )
    assert C.prctl(38, 1, 0, 0, 0) == 0
    assert C.prctl(22, 2, header, 0, 0) == 0


C = ctypes.CDLL(None, use_errno=True)


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the number of the call applies to x86_64"
)
@pytest.mark.parametrize("seed", range(10))
def test_the_interpreter_returns_the_results_of_the_kernel(seed):
    """In the interpreter, a program returns the same results as in the kernel."""
    draw = random.Random(seed)  # noqa: S311 - the same every time
    conditions = [
        {"index": index, "op": f"SCMP_CMP_{draw.choice(generator.OPERATORS)}", "value": value}
        for index, value in enumerate(
            draw.sample((*generator.SMALL_VALUES, *generator.LARGE_VALUES), draw.randint(1, 3))
        )
    ]
    rule = {"names": [UNIMPLEMENTED], "action": "SCMP_ACT_ERRNO", "errnoRet": REFUSED}
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule | {"args": [item]} for item in conditions]
        + [rule | {"args": conditions}],
    }
    library = libraries.installed()
    program = export(library, profile, "SCMP_ARCH_X86_64", binary_tree=False)
    vectors = Questions(profile, draw).vectors[UNIMPLEMENTED][:200]
    interpreter = Program(program)
    architecture = KERNEL_NUMBERS["SCMP_ARCH_X86_64"]
    refused = 0x00050000 | REFUSED
    expected = [
        REFUSED if interpreter.evaluate(architecture, ITS_NUMBER, item) == refused else errno.ENOSYS
        for item in vectors
    ]
    assert kernel_answers(program, vectors) == expected
    assert len(vectors) > 5
