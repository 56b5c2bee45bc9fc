"""Makes random changes around a daemon on a real AppArmor kernel, and compares the results with a
model.

The model records the changes. The test compares the model with the kernel's list of profiles, the
labels of processes, and /metrics. Each version of a profile has a different rule, so that the hash
in the kernel identifies the version. If the order of two events is unknown, the model allows the
results of both orders, and no other result.
"""

import contextlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pace  # noqa: E402 - found by the line above
from daemon import (  # noqa: E402
    LOG,
    SOURCE,
    Daemon,
    until,
)
from node_tools import (  # noqa: E402
    SECURITY,
    clean,
    loaded,
    parser,
)
from soak_state import (  # noqa: E402
    Broken,
    Model,
    Running,
    hashed,
    text,
    usage,
)

NAMES = [f"n{number}" for number in range(7)]
MARK = "z"
BOOT = Path("/tmp/boot-id")  # noqa: S108 - no other user in the guest
# With more edits of one profile, the agent would detect a repair fight.
FIGHT_SECONDS, FIGHT_EDITS = 130.0, 7
WARM = 3
OPTIONS = ("--removal-grace=200ms", "--resync=4s", "--log-level=debug")


class Soak(Model):
    """One daemon, one source directory, foreign profiles and confined processes."""

    def __init__(self, seed):
        super().__init__()
        self.seed, self.chance = seed, random.Random(seed)  # noqa: S311 - reproducible, no secret
        self.edits = {}
        self.steady, self.touched = set(), set()
        self.version = self.changes = self.batches = 0
        self.history, self.samples = [], []
        self.daemon = None
        self.read = 0  # The size of the part of the log that has been checked.
        self.away = False  # Whether the source directory is deleted.
        self.stop = threading.Event()
        self.unconfined = []

    # --- running ----------------------------------------------------------------------------------

    def run(self, seconds):
        """Make batches of changes for a number of seconds."""
        SOURCE.mkdir(exist_ok=True)
        for name in NAMES[:3]:
            self.provide(name)
        self._mark()
        self._start()
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            # The first start takes longer, because Python compiles the standard library.
            self._settle(180)
            begin = time.monotonic()
            while (spent := time.monotonic() - begin) < seconds:
                self.batch(calm=spent > seconds / 3)
            return self.counted()
        finally:
            self.stop.set()
            watcher.join()
            for item in self.processes:
                item.end()

    def _start(self):
        self.daemon = Daemon(*OPTIONS).__enter__()

    def _end(self, number):
        self.daemon.stop(number)

    def record(self, said):
        """Add a change to the history."""
        self.changes += 1
        self.history.append(f"{self.batches}: {said}")

    def batch(self, *, calm):
        """Make several changes, and check the invariants."""
        self.batches += 1
        self.touched = set()
        if not calm and self.chance.random() < 0.2:
            self.chance.choice([self.restart, self.reboot])()
        for _ in range(self.chance.randint(3, 12)):
            self.chance.choices([item for item, _ in CHANGES], [weight for _, weight in CHANGES])[
                0
            ](self)
        if self.away:
            self._back()
        self._mark()
        if self.daemon.process.poll() is not None:
            self._start()
        self._settle(120)
        self.samples.append((self.daemon.process.pid, usage(self.daemon.process.pid)))

    # --- changes ----------------------------------------------------------------------------------

    def _write(self, name):
        if self.away:
            return
        version = self.keys[name]
        output = (
            text(name, version) if isinstance(version, int) else f"profile {name} {{ nonsense\n"
        )
        path = SOURCE / f"{name}.profile"
        if self.chance.random() < 0.3:
            path.write_text(output)  # The test changes the file in place, as some editors do.
            return
        (SOURCE / ".new").write_text(output)
        (SOURCE / ".new").rename(path)

    def _new(self, name):
        self.version += 1
        self.keys[name] = self.version
        self.could.setdefault(name, {None}).add(self.version)
        self._write(name)

    def _mark(self):
        self._new(MARK)

    def _free(self, names):
        names = [name for name in names if name not in self.touched]
        return self.chance.choice(names) if names else None

    def provide(self, name=None):
        """Add or change a key."""
        name = name or self._free(NAMES)
        if name is not None:
            self._new(name)
            self.record(f"{name} is {self.keys[name]}")

    def spoil(self):
        """Make the text of a key invalid."""
        name = self._free(NAMES)
        if name is not None:
            self.keys[name] = "broken"
            self._write(name)
            self.record(f"{name} is broken")

    def withdraw(self):
        """Remove a key."""
        name = self._free([item for item in self.keys if item != MARK])
        if name is None:
            return
        del self.keys[name]
        self.steady.discard(name)
        self._may_go(name)
        if not self.away:
            (SOURCE / f"{name}.profile").unlink()
        self.record(f"{name} is withdrawn")

    def _may_go(self, name):
        if not any(item.name == name and item.confined() for item in self.processes):
            self.could.setdefault(name, {None}).add(None)

    def vanish(self):
        """Delete the source directory. The end of the batch restores the directory."""
        if not self.away:
            # The test renames the directory, because a rename is atomic. If the test deleted the
            # files one by one, a pass could observe removed keys.
            old = SOURCE.with_name("source.old")
            SOURCE.rename(old)
            shutil.rmtree(old)
            self.away = True
            self.record("the source is deleted")

    def _back(self):
        new = SOURCE.with_name("source.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        self.away = False
        for name, version in self.keys.items():
            output = text(name, version) if isinstance(version, int) else "profile { nonsense\n"
            (new / f"{name}.profile").write_text(output)
        new.rename(SOURCE)
        self.record("the source is created again")

    def edit(self):
        """Remove or replace an agent-owned profile, as another program would."""
        now = time.monotonic()
        name = self._free(
            [
                item
                for item in sorted(self.steady - self.foreign.keys())
                if None not in self.could.get(item, {None})
                and len([at for at in self.edits.get(item, ()) if now - at < FIGHT_SECONDS])
                < FIGHT_EDITS
            ]
        )
        if name is None or name not in loaded():
            return
        self.edits.setdefault(name, []).append(now)
        self.touched.add(name)
        how = self.chance.choice(["remove", "replace", "complain"])
        if how == "remove":
            for item in self.processes:
                item.lose(name)
            with (SECURITY / ".remove").open("wb", buffering=0) as file:
                file.write(name.encode())
        else:
            flags = ["-C", "-r"] if how == "complain" else ["-r"]
            status, output = parser(
                f"profile {name} {{\n  file,\n  signal,\n  deny /etc/x r,\n}}\n", *flags
            )
            if status:
                raise Broken(output)
        self.record(f"another program changes {name}: {how}")

    def intrude(self):
        """Load a foreign profile under a name that the agent does not use."""
        names = [
            name
            for name in (*NAMES, "theirs1", "theirs2")
            if name not in self.keys
            and name not in self.foreign
            and self.could.get(name, {None}) == {None}
            and name not in loaded()
        ]
        name = self._free(names)
        if name is None or len(self.foreign) > 2:
            return
        status, output = parser(f"profile {name} {{\n  file,\n  deny /etc/y r,\n}}\n", "-a")
        if status:
            raise Broken(output)
        self.foreign[name] = hashed(name)
        self.touched.add(name)
        self.record(f"a foreign profile {name}")

    def confine(self):
        """Start a process under an agent-owned profile, or end such a process."""
        if len(self.processes) > 4 or (self.processes and self.chance.random() < 0.4):
            one = self.processes.pop(self.chance.randrange(len(self.processes)))
            one.end()
            self._may_go(one.name)
            self.record(f"process {one.pid} below {one.name} ends")
            return
        name = self._free(sorted((self.steady & loaded().keys()) - self.foreign.keys()))
        if name is None:
            return
        self.touched.add(name)
        self.processes.append(Running(name))
        self.record(f"process {self.processes[-1].pid} below {name}")

    def restart(self):
        """End the daemon, and start it again at the end of the batch."""
        number = self.chance.choice([signal.SIGTERM, signal.SIGKILL])
        status, seconds = self.daemon.stop(number)
        if number == signal.SIGTERM and (status, pace.in_time(seconds, 2.0)) != (0, True):
            raise Broken(f"SIGTERM ended it with {status} after {seconds:.1f} s")
        self.record(f"the daemon is ended with {number.name}")

    def reboot(self):
        """Simulate a reboot: no processes, no loaded profiles, a new boot ID and the same disk."""
        self.daemon.stop(signal.SIGKILL)
        for item in self.processes:
            item.end()
        self.processes.clear()
        for name in sorted(loaded(), key=len):
            with contextlib.suppress(OSError), (SECURITY / ".remove").open("wb", 0) as file:
                file.write(name.encode())
        for name in self.foreign:
            version = self.keys.get(name)
            self.could.setdefault(name, {None}).update(
                {version} if isinstance(version, int) else ()
            )
        self.foreign.clear()
        for name, versions in self.could.items():
            if name not in self.keys:
                # The agent does not restore a profile that is in no source and is kept only because
                # it may be in use.
                versions.add(None)
        BOOT.write_text(f"{uuid.UUID(int=self.chance.getrandbits(128))}\n")
        target = "/proc/sys/kernel/random/boot_id"
        subprocess.run(["mount", "--bind", BOOT, target], check=True)
        self.record("reboot")

    # --- invariants -------------------------------------------------------------------------------

    def _settle(self, patience):
        wrong = ""

        def holds():
            nonlocal wrong
            if self.unconfined:
                raise Broken(f"unconfined by the agent: {self.unconfined[:3]}")
            if self.daemon.process.poll() is not None:
                raise Broken(f"the daemon ended by itself: {LOG.read_text()[-3000:]}")
            wrong = self.difference()
            time.sleep(0.05)
            return not wrong

        try:
            until(holds, patience)
        except AssertionError as error:
            raise Broken(f"batch {self.batches}: {wrong}\n{error}") from error
        self._removals()
        result = self.versions()
        self.steady = set(self.keys)
        used = {item.name for item in self.processes if item.confined()}
        for name in self.could:
            if name in self.foreign:
                self.could[name] = {None}
            elif name in self.keys or name not in used:
                self.could[name] = result.get(name, {None})

    def _removals(self):
        """Check in the log that no profile was removed while it was desired or in use."""
        output = LOG.read_bytes()
        start = self.read if self.read <= len(output) else 0  # Each daemon writes its own log.
        self.read = len(output)
        for line in output[start:].splitlines():
            if b'"profile_removed"' not in line:
                continue
            name = json.loads(line)["name"]
            if None not in self.could.get(name, {None}):
                raise Broken(f"{name} was removed: {line!r}")

    def _watch(self):
        """Check continuously that only this test, and never the agent, unconfines processes."""
        while not self.stop.wait(0.02):
            for item in list(self.processes):
                label = item.label()
                if label and item.wrong(label):
                    self.unconfined.append((self.batches, item.pid, item.name, label))

    def counted(self):
        """Return the number of changes, and the growth of the last daemon process."""
        pid = self.daemon.process.pid
        own = [item for of, item in self.samples if of == pid][WARM:]
        size = max(1, len(own) // 4)
        parts = own[:size], own[-size:]
        growth = {
            what: [statistics.median(item[what] for item in part) if part else 0 for part in parts]
            for what in ("rss", "threads", "fds")
        }
        return {"changes": self.changes, "batches": self.batches, "settled": len(own), **growth}


CHANGES = [
    (Soak.provide, 30),
    (Soak.spoil, 8),
    (Soak.withdraw, 12),
    (Soak.vanish, 2),
    (Soak.edit, 14),
    (Soak.intrude, 6),
    (Soak.confine, 16),
]


def main():
    """Run the soak test for SECONDS with SEED, and report the result as one scenario."""
    seed, seconds = int(sys.argv[1]), float(sys.argv[2])
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
    clean()
    soak, begin, error, counted = Soak(seed), time.monotonic(), None, None
    try:
        counted = soak.run(seconds)
    except BaseException:  # noqa: BLE001 - reported to the test on the host
        history = "\n".join(soak.history[-300:])
        error = f"seed {seed}, {soak.changes} changes\n{history}\n{traceback.format_exc()}"
    finally:
        if soak.daemon is not None:
            ended = soak.daemon.stop() if soak.daemon.process.poll() is None else "by itself"
    line = {"scenario": "soak", "error": error, "seconds": round(time.monotonic() - begin, 1)}
    print(json.dumps({**line, "counted": counted, "ended": ended}), flush=True)


if __name__ == "__main__":
    main()
