"""Runs a virtual machine in QEMU.

The command server of the machine is reachable through a port on the loopback interface. The code
that starts a machine must also stop it. If a guest stops unexpectedly, the next command raises
GuestDiedError with the end of the guest's console output.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.system.cluster import free_port, until
from tests.system.guest import pace

BOOT_SECONDS = 180.0
APPARMOR = "apparmor=1 security=apparmor"
KERNEL = (
    # The module tests.system.vm explains the option no_timer_check.
    "console=ttyS0 panic=-1 loglevel=4 no_timer_check "
    "root=/dev/nvme0n1 rootfstype=ext4 rw init=/nodeinit"
)


class GuestDiedError(Exception):
    """The kernel of the guest or the emulator stopped unexpectedly."""


class CommandFailedError(Exception):
    """A command in the guest exited with a status other than 0."""


class Machine:
    """A guest, which is stopped when the context ends."""

    def __init__(self, disk, *, append=APPARMOR, ports=()):
        self.disk, self.append = disk, append
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.console = self.folder / "console"
        self.ports = {guest: free_port() for guest in (2222, *ports)}
        self.process = None

    def __enter__(self):
        try:
            self._start()
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self):
        forward = "".join(
            f",hostfwd=tcp:127.0.0.1:{here}-:{guest}" for guest, here in self.ports.items()
        )
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1536",
            "-display", "none", "-no-reboot", "-nodefaults",
            "-serial", f"file:{self.console}",
            "-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off",
            "-kernel", str(self.disk.kernel), "-append", f"{KERNEL} {self.append}",
            "-drive", f"file={self.disk.path},format=raw,if=none,id=r,cache=unsafe",
            "-device", "nvme,drive=r,serial=r", "-snapshot",
            "-netdev", f"user,id=n{forward}", "-device", "virtio-net-pci,netdev=n,romfile=",
        ]  # fmt: skip
        log = (self.folder / "qemu.log").open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def end(self):
        """End the guest immediately, as a power failure would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def reboot(self):
        """Reboot the guest with its current disk, and wait until it responds again."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self._qmp("set-action", reboot="reset")
        with contextlib.suppress(GuestDiedError, OSError):
            self.run(
                "sync; echo 1 > /proc/sys/kernel/sysrq; "
                "(sleep 0.2; echo b > /proc/sysrq-trigger) > /dev/null 2>&1 &"
            )
        until(lambda: self._boot() not in (None, before), "the reboot", BOOT_SECONDS)
        self._qmp("set-action", reboot="shutdown")

    def wait(self):
        """Wait until the command server responds."""
        until(lambda: self._boot() is not None, lambda: self.console_output()[-2000:], BOOT_SECONDS)

    def _boot(self):
        try:
            return self.run("cat /proc/sys/kernel/random/boot_id", seconds=20)
        except (OSError, CommandFailedError):
            return None

    def console_output(self):
        """Return the output on the guest's console."""
        return self.console.read_text("utf-8", "replace") if self.console.exists() else ""

    def check(self):
        """Raise GuestDiedError if the guest has stopped."""
        if self.process is None or self.process.poll() is not None:
            log = (self.folder / "qemu.log").read_text()
            raise GuestDiedError(f"{log}\n{self.console_output()[-3000:]}")

    def _settle(self):
        """Raise GuestDiedError if the guest is about to stop. The network of a guest stops a little
        earlier than the guest itself.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(pace.scaled(2))
        self.check()

    def run(self, script, *, seconds=180.0, check=True):
        """Run a bash script as root in the guest, and return its output."""
        self.check()
        content = script.encode()
        answer = b""
        end = time.monotonic() + pace.scaled(seconds)
        try:
            with socket.create_connection(
                ("127.0.0.1", self.ports[2222]), timeout=pace.scaled(5)
            ) as line:
                line.sendall(b"%d\n" % len(content) + content)
                while time.monotonic() < end:
                    line.settimeout(max(0.1, end - time.monotonic()))
                    part = line.recv(1 << 16)
                    if not part:
                        break
                    answer += part
        except OSError:
            self._settle()
            raise
        text, mark, status = answer.decode("utf-8", "replace").rpartition("\nstatus ")
        if not mark:
            self._settle()
            raise ConnectionError(f"no complete response within {seconds} s: {answer[-500:]!r}")
        if check and int(status) != 0:
            raise CommandFailedError(f"{script}\nended with {status.strip()}:\n{text[-3000:]}")
        return text

    def _qmp(self, command, **arguments):
        """Send a command to the emulator over QMP (docs/interop/qmp-spec.txt of QEMU)."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(pace.scaled(5))
            line.connect(str(self.folder / "qmp"))
            with line.makefile("rw") as stream:
                stream.readline()  # The first line is the greeting of QMP.
                for name, what in (("qmp_capabilities", {}), (command, arguments)):
                    stream.write(json.dumps({"execute": name, "arguments": what}) + "\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
                    while "event" in answer:
                        answer = json.loads(stream.readline())
                    assert "return" in answer, answer
