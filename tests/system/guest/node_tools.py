"""Helper functions for the scenarios. The functions load profiles, run single passes of the agent,
start confined processes, and read the state of the kernel.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import watched

SECURITY = Path("/sys/kernel/security/apparmor")
SOURCE = Path("/tmp/source")  # noqa: S108 - no other user in the guest
STATE = Path("/tmp/state")  # noqa: S108
SECCOMP = Path("/tmp/seccomp")  # noqa: S108
# On Linux 6.1 and 7.2, a profile with hats or children stays, because these kernels never release
# its first version.
RELEASES_HATS = tuple(map(int, os.uname().release.split(".")[:2])) == (6, 12)
# A scenario that kills the agent at many steps selects only every STRIDE-th step.
STRIDE = int(os.environ.get("STRIDE", "1"))
PLAIN = "profile {name} {{\n  file,\n  signal,\n  {rule}\n}}\n"


def loaded():
    """Return the mode of each profile in the kernel's list, by name."""
    lines = (SECURITY / "profiles").read_text().splitlines()
    return {line.rsplit(" (", 1)[0]: line.rsplit(" (", 1)[1][:-1] for line in lines}


def revision():
    """Return the current policy revision without waiting for a change."""
    fd = os.open(SECURITY / "revision", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 64)
    except BlockingIOError:
        return b""
    finally:
        os.close(fd)


def parser(text, *arguments):
    """Run the host's apparmor_parser on a text, as an administrator would."""
    result = subprocess.run(
        ["/sbin/apparmor_parser", "-K", *arguments],
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    return result.returncode, result.stderr.decode("utf-8", "replace")


def content(name):
    """Return the kernel's hash of a loaded profile."""
    for path in (SECURITY / "policy/profiles").rglob("name"):
        if path.read_text().strip() == name:
            return next(iter(sorted(path.parent.glob("sha*")))).read_text()
    return None


def change_profile(name):
    """Confine the calling thread (aa_change_profile(2))."""
    path = "/proc/thread-self/attr/apparmor/current"
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, f"changeprofile {name}".encode())
    os.close(fd)


class Confined:
    """A process or thread that runs under a profile until the block ends."""

    def __init__(self, name, *, thread=False, hat=""):
        self.name, self.thread, self.hat = name, thread, hat

    def __enter__(self):
        ready, output = os.pipe()
        wait, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go)
            try:
                self.child(output, wait)
            finally:
                os._exit(0)
        os.close(output)
        os.close(wait)
        self.go = go
        answer = os.read(ready, 200)
        os.close(ready)
        assert answer == b"ready", answer
        return self

    def child(self, told, wait):
        def confined():
            try:
                if self.hat:
                    library = ctypes.CDLL("libapparmor.so.1", use_errno=True)
                    change_profile(self.name)
                    assert library.aa_change_hat(self.hat.encode(), 12345) == 0
                else:
                    change_profile(self.name)
                os.write(told, b"ready")
            except BaseException as error:  # noqa: BLE001 - reported to the parent
                os.write(told, repr(error).encode()[:200])
            os.read(wait, 1)

        if self.thread:
            one = threading.Thread(target=confined)
            one.start()
            one.join()
        else:
            confined()

    def __exit__(self, *_):
        os.close(self.go)
        os.waitpid(self.pid, 0)


def agent(*arguments, mode="", status=0, command="run"):
    """Run the agent once in a separate process, and return its report and its standard error."""
    argv = [command, f"--state-dir={STATE}", f"--seccomp-dir={SECCOMP}", "--output=json"]
    if command == "run":
        argv += ["--oneshot", f"--source=dir:{SOURCE}"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                code = watched.run([*argv, *arguments], mode)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, ended = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        told, output = out.read().decode(), err.read().decode("utf-8", "replace")
    if status is not None:
        assert os.waitstatus_to_exitcode(ended) == status, (ended, told[-3000:], output[-3000:])
    return (json.loads(told) if told.strip() else {}), output


def rows(report):
    """Return the state and the reason of each row, by profile name. A row without a name has its
    key as the name.
    """
    return {
        item["name"] or item["key"]: (item["state"], item["why"]) for item in report["profiles"]
    }


def codes(report):
    """Return the codes of findings, by key."""
    return {
        item["key"]: [finding["code"] for finding in item["problems"]]
        for item in report["profiles"]
        if item["problems"]
    }


def source(**keys):
    """Replace the content of the source directory with AppArmor keys."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir()
    for key, text in keys.items():
        (SOURCE / f"{key}.profile").write_text(text)


def plain(name, rule=""):
    """Return the text of a small profile."""
    return PLAIN.format(name=name, rule=rule)


def clean():
    """Remove all profiles and all state of the agent, except for the cached compilations."""
    for path in (STATE / "entries", STATE / "bodies", SECCOMP, SOURCE):
        shutil.rmtree(path, ignore_errors=True)
    for _ in range(3):
        for name in sorted(loaded(), key=len, reverse=True):
            fd = os.open(SECURITY / ".remove", os.O_WRONLY)
            try:
                os.write(fd, name.encode())
            except OSError:
                pass
            finally:
                os.close(fd)
    assert loaded() == {}, loaded()
