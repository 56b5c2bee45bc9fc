"""Runs a machine without an emulated processor: Debian's kernel as a process (user-mode Linux).

The kernel has AppArmor, and the machine has the same disk as the virtual machine. User code runs at
the speed of this machine. ptrace intercepts each system call and each page fault, which takes about
40 microseconds. The machine has only one core, because a second core more than doubles the time of
each system call.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.system import kept, vm

CACHE: Final = kept.CACHE / "bench"
PACKAGE: Final = "user-mode-linux"
INIT: Final = f"""{vm.BEGIN}mkdir /out; mount -t hostfs none /out
export PYTHONPATH=/job/libraries
cd /job
bash /job/command > /out/output 2>&1
echo "VM-EXIT $?" >> /out/output
sync
echo o > /proc/sysrq-trigger
sleep 30
"""


class MachineError(Exception):
    """Raised if the machine did not finish its command, or if its kernel printed a warning. The
    text of the error contains the console output.
    """


def run(files: Mapping[str, bytes], command: str, *, timeout_seconds: float) -> vm.GuestResult:
    """Run a bash command in /job, the directory of the given files, as tests.system.vm.run does."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        top, out = Path(folder), Path(folder, "out")
        out.mkdir()
        image = vm.disk(top, {**files, "command": command.encode(), "init": INIT.encode()})
        core = str(max(os.sched_getaffinity(0)))
        argv = ["taskset", "-c", core, kernel(), "mem=1024M", f"ubd0={image}", "root=/dev/ubda"]
        argv += ["rootfstype=ext4", "rw", "security=apparmor", "apparmor=1", f"hostfs={out}"]
        argv += ["con0=null,fd:1", "con=null", "ssl=null", "panic=-1"]
        argv += ["init=/bin/bash", "--", "/job/init"]
        console = top / "console"
        with console.open("wb") as said:
            process = subprocess.Popen(  # noqa: S603 - ours
                argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
            try:
                process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:
                # The processes of the guest are processes on this machine, and must end together
                # with the guest's kernel.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        written = out / "output"
        output = written.read_text("utf-8", "replace") if written.exists() else ""
        text, _, status = output.rstrip().rpartition("VM-EXIT ")
        told = console.read_text("utf-8", "replace")
        if not status.isdigit() or "WARNING: " in told:
            raise MachineError(output[-3000:] + told[-6000:])
        return vm.GuestResult(int(status), text, 1, time.monotonic() - begin)


def kernel() -> str:
    """Return the kernel of Debian's package, which is downloaded once and verified each time."""
    path, mark = CACHE / "linux.uml", CACHE / "linux.uml.sha256"
    if path.exists() and mark.exists() and mark.read_text() == vm.sha256(path):
        return str(path)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        apt = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
        subprocess.run(apt, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)  # noqa: S603, S607 - ours
        shutil.move(f"{folder}/usr/bin/linux.uml", path)
    mark.write_text(vm.sha256(path))
    return str(path)
