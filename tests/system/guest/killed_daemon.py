"""Starts a daemon that is killed before a named step, and examines the state after the kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import daemon
from daemon import HTTP, LOG, SOURCE, Daemon, until
from daemon_checks import finding, provide, text, wait_until_converged
from node_tools import SECCOMP, STATE, loaded, plain, source

HERE = Path(__file__).parent
ARMED = Path("/tmp/armed")  # noqa: S108 - no other user in the guest


class Killed(Daemon):
    """A daemon that killed.py kills right before a named step, once it is armed."""

    def __init__(self, point, *more):
        super().__init__(*more, KILLED=point, ARMED=str(ARMED))
        ARMED.unlink(missing_ok=True)

    def __enter__(self):
        command = [
            sys.executable, str(HERE / "killed.py"), f"--source=dir:{SOURCE}",
            f"--state-dir={STATE}", f"--seccomp-dir={SECCOMP}", "--log-format=json",
            f"--http-address={HTTP}", "--removal-grace=1s", *self.more,
        ]  # fmt: skip
        environ = {**os.environ, **self.environ}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        with LOG.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environ)
        self.running.append(self.process)
        return self


def killed_after_a_load(point):
    """Kill the daemon right after it has loaded a new profile, and delete the key of the
    profile.
    """
    daemon.clean()
    source(web=text(1))
    with Killed(point) as running:
        wait_until_converged()
        ARMED.touch()
        (SOURCE / "new.profile").write_text(plain("new"))
        until(lambda: running.process.poll() is not None, 60, point)
    assert running.process.returncode == -signal.SIGKILL, point
    assert set(loaded()) == {"web", "new"}, (point, loaded())
    (SOURCE / "new.profile").unlink()


def wait_until_held():
    """Wait until the daemon reports that it holds a profile that is in use."""
    until(lambda: finding("in_use") == 1, 180, "in use")


def entries():
    """Return the number of entries in the ledger."""
    return len(list((STATE / "entries").glob("*.json")))


def source_changed():
    """Change a profile, add a profile, and remove a profile."""
    (SOURCE / "new.profile").write_text(plain("new"))
    provide(2)
    (SOURCE / "old.profile").unlink()
