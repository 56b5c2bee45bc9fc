"""Tests of agent.host.landlock on the kernel of this machine."""

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from agent.backends.apparmor.parser_sandbox import interpreter
from agent.host import commands, landlock
from agent.host.commands import CommandLimits
from agent.host.filesystem import HostError
from agent.host.landlock import Access

needs_landlock = pytest.mark.skipif(
    landlock.missing() != "", reason=f"this kernel: {landlock.missing()}"
)
SHELL = os.path.realpath("/bin/sh")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache")
SYSTEM_CALL_NUMBERS = {"create": 444, "add": 445, "restrict": 446}


def opened(path: Path | str, flags: int = os.O_RDONLY) -> bool:
    """Open a path, and return whether the kernel permits this."""
    try:
        os.close(os.open(path, flags, 0o600))
    except PermissionError:
        return False
    return True


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Create a directory that a sandbox may read, and a secret file outside the directory."""
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_text("listed")
    (tmp_path / "secret").write_text("canary")
    return tmp_path


@needs_landlock
def test_a_restricted_thread_can_only_open_listed_files(files: Path) -> None:
    """A restricted thread cannot open other files, whether by their path, through a link or through
    `..`.
    """
    (files / "tree/link").symlink_to(files / "secret")
    tree = f"{files}/tree"
    paths = (f"{tree}/below/file", tree, f"{files}/secret", f"{tree}/link", f"{tree}/../secret")
    permitted = landlock.run(lambda: [opened(path) for path in paths], Access(read=[tree]))
    assert permitted == [True, True, False, False, False]


@needs_landlock
def test_a_rule_for_a_link_applies_to_its_target(files: Path) -> None:
    """If a listed path is a link, the rule applies to the target of the link."""
    link = files / "link"
    link.symlink_to(files / "secret")
    assert landlock.run(lambda: opened(files / "secret"), Access(read=[str(link)]))


@needs_landlock
def test_a_restricted_thread_cannot_write(files: Path) -> None:
    """A restricted thread cannot write, truncate, create or remove files, even in a listed
    directory.
    """
    file = files / "tree/below/file"

    def attempts() -> list[bool]:
        permitted = [opened(file, os.O_WRONLY), opened(file, os.O_RDONLY | os.O_TRUNC)]
        permitted.append(opened(files / "tree/new", os.O_WRONLY | os.O_CREAT))
        for attempt in (file.unlink, (files / "tree/directory").mkdir):
            try:
                attempt()
                permitted.append(True)
            except PermissionError:
                permitted.append(False)
        return permitted

    assert landlock.run(attempts, Access(read=[str(files / "tree")])) == [False] * 5
    assert file.read_text() == "listed"


@needs_landlock
def test_other_threads_are_not_restricted(files: Path) -> None:
    """While a restricted thread runs and afterwards, other threads can open every file."""
    access, inside, result = Access(read=[]), threading.Event(), threading.Event()
    permitted = []

    def restricted() -> bool:
        inside.set()
        result.wait()
        return opened(files / "secret")

    thread = threading.Thread(target=lambda: permitted.append(landlock.run(restricted, access)))
    thread.start()
    inside.wait()
    assert opened(files / "secret")
    assert opened(files / "new", os.O_WRONLY | os.O_CREAT)
    result.set()
    thread.join()
    assert permitted == [False]
    assert opened(files / "secret")


@needs_landlock
def test_no_new_privileges_is_set_in_the_restricted_thread_only(files: Path) -> None:
    """The flag no_new_privs is set only in the restricted thread."""

    def flag() -> str:
        with open("/proc/thread-self/status") as file:
            return next(line.split()[1] for line in file if line.startswith("NoNewPrivs"))

    before = flag()
    assert landlock.run(flag, Access(read=["/proc"])) == "1"
    assert flag() == before


def run(command: str, sandbox: landlock.Access, *, cpu_seconds: int = 30) -> tuple[int, str, str]:
    """Run a shell command as the agent runs the parser. Return the exit status and the output."""
    limits = CommandLimits(
        seconds=60, memory_bytes=1 << 30, cpu_seconds=cpu_seconds, output_bytes=1 << 16
    )
    argv = [SHELL, "-c", command]
    with commands.started(argv, stdin=b"", limits=limits, sandbox=sandbox) as running:
        result = running.result()
    return result.status, result.stdout.decode(), result.stderr.decode()


@needs_landlock
def test_a_program_and_the_programs_that_it_starts_are_restricted(files: Path) -> None:
    """A command in a sandbox can read only listed files, and cannot start another program."""
    programs = [SHELL, interpreter(SHELL)]
    sandbox = Access(read=[*LIBRARIES, f"{files}/tree"], execute=programs)
    reading = f'read -r word < {files}/tree/below/file; echo "$word"'
    assert run(reading, sandbox)[:2] == (0, "listed\n")
    for command in (
        f"read -r word < {files}/secret && echo $word",
        f"( read -r word < {files}/secret && echo $word )",
        f"echo word > {files}/tree/below/file",
        f"/bin/cat {files}/tree/below/file",
        f"read -r word < /proc/{os.getpid()}/root{files}/secret && echo $word",
        f"read -r word < /proc/{os.getpid()}/environ && echo $word",
    ):
        status, stdout, stderr = run(command, sandbox)
        assert (status != 0, stdout) == (True, ""), command
        assert "Permission denied" in stderr, (command, stderr)
    assert (files / "tree/below/file").read_text() == "listed"


@needs_landlock
def test_a_program_that_is_not_listed_is_not_started(files: Path) -> None:
    """A program that is not listed is not started, and the kernel's error is returned."""
    with pytest.raises(HostError) as raised:
        run("exit 0", Access(read=["/"]))
    assert raised.value.errno == errno.EACCES


class InterruptedRunError(Exception):
    """A signal handler of a test raises this error."""


@needs_landlock
# Python ignores the exception, because a destructor raises it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_leaves_no_program_running() -> None:
    """If a signal handler raises an exception during the start, no program continues to run."""

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise InterruptedRunError

    def children() -> set[str]:
        tasks = Path("/proc/self/task").glob("*/children")
        return {child for task in tasks for child in task.read_text().split()}

    sandbox = Access(read=LIBRARIES, execute=[SHELL, interpreter(SHELL)])
    known = children()
    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        for number in range(1, 31):
            signal.setitimer(signal.ITIMER_REAL, 0.0002 * number)
            with contextlib.suppress(InterruptedRunError):
                run("while :; do :; done", sandbox, cpu_seconds=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    end = time.monotonic() + 60
    while children() - known and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert children() - known == set()


class InterruptedThread(threading.Thread):
    """A thread whose start is interrupted: a signal handler raises an exception, as can happen in
    CPython 3.11.
    """

    def start(self) -> None:
        try:
            raise InterruptedRunError
        finally:
            raise RuntimeError("release unlocked lock")


class StartedThread(threading.Thread):
    """A thread that has started when a signal handler raises an exception in the caller."""

    def start(self) -> None:
        try:
            raise InterruptedRunError
        finally:
            raise KeyError(self)


class RefusedThread(threading.Thread):
    """A thread that the system cannot start."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("thread", "error"),
    [
        (InterruptedThread, InterruptedRunError),
        (StartedThread, InterruptedRunError),
        (RefusedThread, OSError),
    ],
)
def test_an_interrupted_start_does_not_count_as_a_lack_of_threads(
    monkeypatch: pytest.MonkeyPatch, thread: type[threading.Thread], error: type[Exception]
) -> None:
    """If a signal handler raises an exception during the start of a thread, the caller gets this
    exception, even while it handles another exception.
    """
    monkeypatch.setattr(threading, "Thread", thread)
    with pytest.raises(error):
        landlock.run(lambda: None, Access(read=[]))
    try:
        int("x")
    except ValueError:
        with pytest.raises(error):
            landlock.run(lambda: None, Access(read=[]))


@needs_landlock
def test_a_thousand_runs_leave_no_thread_and_no_descriptor(files: Path) -> None:
    """After a thousand runs, no additional thread or descriptor remains."""
    access = Access(read=[str(files / "tree"), str(files / "missing")], execute=[SHELL])
    landlock.run(lambda: None, access)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        landlock.run(lambda: None, access)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_an_error_of_the_function_is_raised_in_the_calling_thread(files: Path) -> None:
    """If the restricted function raises an exception, the calling thread gets the same
    exception.
    """
    if landlock.missing():
        pytest.skip(landlock.missing())
    with pytest.raises(ZeroDivisionError):
        landlock.run(lambda: 1 // 0, Access(read=[]))


@pytest.mark.parametrize(
    ("version", "files", "network", "scoped"),
    [
        (1, 13, 0, 0),
        (2, 14, 0, 0),
        (3, 15, 0, 0),
        (4, 15, 2, 0),
        (5, 16, 2, 0),
        (6, 16, 2, 2),
        (7, 16, 2, 2),
        (99, 16, 2, 2),
    ],
)
def test_each_version_denies_all_of_its_rights(
    version: int, files: int, network: int, scoped: int
) -> None:
    """For each Landlock version up to 6, the sandbox denies all rights in linux/landlock.h."""
    result = landlock.handled(version)
    assert result == ((1 << files) - 1, (1 << network) - 1, (1 << scoped) - 1)


def seccomp(number: int, code: int) -> bytes:
    """Return a BPF program that makes one system call fail with an errno (seccomp(2))."""
    load, equal, ret = 0x20, 0x15, 0x06
    instructions = (
        (load, 0, 0, 0),  # the number of the system call
        (equal, 0, 1, number),
        (ret, 0, 0, 0x00050000 | code),
        (ret, 0, 0, 0x7FFF0000),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def output_under(number: int, code: int, script: str) -> str:
    """Return the output of a Python process whose seccomp filter denies a system call."""
    setup = f"""
import ctypes
from agent.host import commands, landlock
program = ctypes.create_string_buffer({seccomp(number, code)!r})
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
filter_ = Filter(4, ctypes.addressof(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(filter_), 0, 0) == 0
"""
    result = subprocess.run(
        [sys.executable, "-c", f"{setup}{script}"], capture_output=True, text=True, check=True
    )
    return result.stdout


def missing_under(number: int, code: int) -> str:
    """Return the result of landlock.missing in a process whose seccomp filter denies a call."""
    return output_under(number, code, 'print(landlock.missing(), end="")')


@pytest.mark.parametrize("call", SYSTEM_CALL_NUMBERS)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSYS, "the kernel has no Landlock"),
        (errno.EPERM, "a system call filter denies"),
        (errno.EACCES, "a system call filter denies"),
        (errno.EOPNOTSUPP, "not among the active modules"),
    ],
)
def test_a_kernel_or_a_filter_without_landlock_is_detected(
    call: str, code: int, reason: str
) -> None:
    """A kernel without Landlock, or a filter that denies it, is detected. Each errno has a specific
    reason.
    """
    if landlock.missing() and call != "create":
        pytest.skip(landlock.missing())
    if call == "add":  # The probe for Landlock does not add a rule.
        assert missing_under(SYSTEM_CALL_NUMBERS[call], code) == ""
    else:
        assert reason in missing_under(SYSTEM_CALL_NUMBERS[call], code)


def test_landlock_is_missing_if_the_kernel_has_no_version_of_it() -> None:
    """Landlock is missing if the system call landlock_create_ruleset returns an error."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(SYSTEM_CALL_NUMBERS["create"], None, ctypes.c_long(0), 1)
    assert (landlock.missing() == "") == (version >= 1)
