"""The state that the soak test expects, and its comparison with the kernel and the metrics.

soak.py makes the changes and records them in this state.
"""

import contextlib
import functools
import os
import signal
import subprocess
import time
from pathlib import Path

from daemon import OBSERVE_SECONDS, metric, ready
from node_tools import SECURITY, Confined, content, loaded

from agent.backends.apparmor import compiled_policy

KNOWN_SECONDS = 2 * OBSERVE_SECONDS  # After this time, the agent has recorded each new process.


class Broken(AssertionError):  # noqa: N818 - the name is clear
    """An invariant of the model is violated."""


def text(name, version):
    """Return the text of a version of a profile. Every third version is in complain mode."""
    flags = "flags=(complain) " if version % 3 == 0 else ""
    return f"profile {name} {flags}{{\n  file,\n  signal,\n  deny /v{version} r,\n}}\n"


@functools.cache
def evidence(name, version):
    """Return the hashes that the kernel may show for a version."""
    command = ["/sbin/apparmor_parser", "-QKS"]
    source = text(name, version).encode()
    result = subprocess.run(command, input=source, capture_output=True, check=True)
    (profile,) = compiled_policy.read(result.stdout)
    return {token.rpartition(":")[2] for token in profile.evidence if token.startswith("own:")}


def hashes():
    """Return the kernel's hash of each loaded profile. Profiles may change during the read."""
    result = {}
    for place in (SECURITY / "policy/profiles").iterdir():
        with contextlib.suppress(OSError, StopIteration):
            hash_ = next(place.glob("sha*")).read_text().strip()
            result[(place / "name").read_text().strip()] = hash_
    return result


def hashed(name):
    """Return the kernel's hash of one profile. Other profiles may change during the read."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            return content(name)
    raise Broken("the kernel's files cannot be read")


def usage(pid):
    """Return the resident memory in KiB, the number of threads and the number of descriptors of a
    process.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "rss": int(fields["VmRSS"].split()[0]),
        "threads": int(fields["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
    }


class Running:
    """A confined process."""

    def __init__(self, name):
        self.name, self.lost, self.ended, self.known = name, False, False, False
        self.begin = time.monotonic()
        self.within = Confined(name)
        self.within.__enter__()
        self.pid = self.within.pid

    def confined(self):
        """Return whether the process runs under its profile."""
        return not self.lost and not self.ended

    def lose(self, name):
        """Record that this test is about to remove the profile of the process."""
        if name == self.name and not self.lost:
            self.lost = True
            self.known = time.monotonic() - self.begin > KNOWN_SECONDS

    def label(self):
        """Return the label of the process, or "" if it has exited."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/attr/current").read_text().strip()
        return ""

    def wrong(self, label):
        """Return whether a label of the process is wrong."""
        return not self.lost and not self.ended and label.partition(" (")[0] != self.name

    def end(self):
        """End the process."""
        self.ended = True
        # Other forked processes also have the pipe of this process open.
        os.kill(self.pid, signal.SIGKILL)
        self.within.__exit__()


class Model:
    """The profiles and the processes that the changes of the test should have produced."""

    def __init__(self):
        self.keys = {}  # For each name, the current version or "broken".
        # For each name, the versions that may be loaded; None means that no version is loaded.
        self.could = {}
        self.foreign = {}  # For each name, the hash of the content that must stay loaded.
        self.processes = []  # Processes that run under a profile.

    def versions(self):
        """Return the loaded version of each profile, or {None} for a version that another program
        loaded.
        """
        result = {}
        for name, hash_ in hashes().items():
            if name not in self.foreign:
                may = {*self.could.get(name, ()), self.keys.get(name)}
                known = [item for item in may if isinstance(item, int)]
                result[name] = {item for item in known if hash_ in evidence(name, item)} or {None}
        return result

    def difference(self):
        """Return the differences from the model. The agent may still remove a difference."""
        modes = loaded()
        for name, hash_ in self.foreign.items():
            if name not in modes or hashed(name) != hash_:
                raise Broken(f"the foreign profile {name} was touched")
        result = self.versions()
        used = {item.name for item in self.processes if item.confined()}
        # A process that lost its confinement still has a reference to the removed profile.
        held = {item.name for item in self.processes if not item.ended}
        for name in {*self.could, *self.keys, *result} - self.foreign.keys():
            seen = result.get(name, {None}) if name in modes else {None}
            desired = self.keys.get(name)
            if isinstance(desired, int):
                may = {desired}
                if modes.get(name) != ("complain" if desired % 3 == 0 else "enforce"):
                    return f"{name} is in mode {modes.get(name)}"
            elif desired == "broken" or name in used:
                may = self.could.get(name, {None})
            elif name in held:
                may = self.could.get(name, {None}) | {None}
            else:
                may = {None}
            if not seen <= may:
                return f"{name} is {seen}, expected: {may}"
        return self._report_difference()

    def _report_difference(self):
        with contextlib.suppress(OSError):
            return self._metrics_difference() if ready() else "not ready"
        return "nobody answers"

    def _metrics_difference(self):
        good = "broken" not in self.keys.values() and not self.keys.keys() & self.foreign.keys()
        lost = [item for item in self.processes if item.lost]
        counted = metric("profile_loader_confinement_lost_processes")
        if (metric("profile_loader_converged") == 1) != (good and not counted):
            return f"converged is {metric('profile_loader_converged')}, lost are {counted}"
        known = len([item for item in lost if item.known])
        if not known <= counted <= len(lost):
            return f"{counted} lost confinement, and not {known} to {len(lost)}"
        return ""
