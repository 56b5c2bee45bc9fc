"""Makes batches of random changes around one daemon, and compares the results with a model after
each batch.

The same seed always results in the same changes. tests/system/soak_model.py contains the
invariants.
"""

import shutil
import signal
import threading
import time
import uuid

from tests.system.cluster import until
from tests.system.daemon import DOMAIN, profile
from tests.system.guest import pace
from tests.system.soak_model import (
    FIGHT_EDITS,
    FIGHT_SECONDS,
    MAPS,
    MOVERS,
    OPTIONS,
    RELABELS,
    THEIRS,
    TRUCE_SECONDS,
    InvariantError,
    SoakModel,
)


class Soak(SoakModel):
    """Makes random changes to the ConfigMaps, pods, files and processes of the model."""

    def run(self, seconds):
        """Make batches of changes for a number of seconds. Return the counts of changes and the
        memory growth.
        """
        begin = time.monotonic()
        watcher = threading.Thread(target=self._watch)
        self._begin()
        watcher.start()
        try:
            while time.monotonic() - begin < seconds:
                # From here on, the same process runs until the end.
                calm = time.monotonic() - begin > seconds / 3
                self.batch(calm=calm)
        except BaseException:
            print(self.description())
            raise
        finally:
            self.stop.set()
            watcher.join()
        return {"changes": self.changes, "batches": self.batches, **self.growth()}

    def _begin(self):
        self.client.merge(
            f"/api/v1/nodes/{self.daemon.name}", {"metadata": {"labels": {THEIRS: "installed"}}}
        )
        for name, keys in MAPS.items():
            for key in keys[::2]:
                self.maps[name][key] = self._new()
                self.possible[key] = {None, self.maps[name][key]}
            self._mark(name)
        self.daemon.start(*OPTIONS)
        self._settle(60)

    def batch(self, *, calm):
        """Make several changes, and check the invariants."""
        self.batches += 1
        self.touched, self.released = set(), set()
        self.pods = dict.fromkeys(self.pods, True)
        heavy = [self.restart, self.reboot] * (not calm) + [self.cut] * 2
        patience = 30.0
        if self.random.random() < 0.06:
            self.random.choice(heavy)()
            patience = 90.0
        for _ in range(self.random.randint(4, 44)):
            self.random.choices([item for item, _ in CHANGES], [weight for _, weight in CHANGES])[
                0
            ](self)
        for name, keys in self.maps.items():
            if keys:
                self._mark(name)
        if self.proxy.mode != "forward" or self.proxy.seconds:
            self.proxy.forward()
            self.record("the API server responds again")
        if not self.daemon.alive():
            self.daemon.start(*OPTIONS)
        self._settle(patience)
        self.samples.append((self.daemon.process.pid, self.daemon.usage()))

    def _new(self):
        self.version += 1
        return 1 + self.version % 4000

    def _apply(self, name):
        keys = self.maps[name]
        path = f"/api/v1/namespaces/{self.daemon.name}/configmaps/{name}"
        if keys is None:
            self.client.send_checked("DELETE", path)
            return
        data = {
            key: profile(item) if isinstance(item, int) else '{"broken": '
            for key, item in keys.items()
        }
        self.daemon.config_map(data, name, labels={"use": "profiles"})

    def _mark(self, name):
        """Change a key that contains only the number of the batch.

        When the file of the key changes, the agent has read the ConfigMap.
        """
        key = f"z-{name}.json"
        self.maps[name][key] = self._new()
        self.possible.setdefault(key, {None}).add(self.maps[name][key])
        self._apply(name)

    def _free(self, names):
        """Return a random name that this batch may still change, or None."""
        names = [name for name in names if name not in self.touched]
        return self.random.choice(names) if names else None

    def _map(self):
        return self.random.choice([name for name, keys in self.maps.items() if keys])

    def provide(self):
        """Add or change a key."""
        name = self._map()
        key = self._free(MAPS[name])
        if key is None:
            return
        version = self.maps[name][key] = self._new()
        self.possible.setdefault(key, {None}).add(version)
        self._apply(name)
        self.record(f"{name} provides {key} {version}")

    def spoil(self):
        """Make the text of a key invalid."""
        name = self._map()
        key = self._free(MAPS[name])
        if key is None:
            return
        self.maps[name][key] = "broken"
        self._apply(name)
        self.record(f"{name} breaks {key}")

    def withdraw(self):
        """Remove a key."""
        name = self._map()
        key = self._free([item for item in self.maps[name] if item in MAPS[name]])
        if key is None or len(self.maps[name]) < 3:
            return
        del self.maps[name][key]
        self.steady.discard(key)
        self._may_go(key)
        self._apply(name)
        self.record(f"{name} has no {key} any more")

    def _may_go(self, key):
        # The agent restores a file that a reboot removed only while a key defines the file.
        if not self._used(key) or key in self.disturbed:
            self.possible.setdefault(key, {None}).add(None)

    def move(self):
        """Move a key with its content to the other ConfigMap. The new key is added before or after
        the removal of the old key.
        """
        maps = [name for name, keys in self.maps.items() if keys]
        key = self._free(MOVERS)
        if len(maps) < 2 or key is None:
            return
        old = next((name for name in maps if key in self.maps[name]), None)
        new = next(name for name in maps if name != old)
        version = self._new() if old is None else self.maps[old][key]
        self.possible.setdefault(key, {None}).add(version)
        self.touched.add(key)
        first = self.random.random() < 0.5
        if old is not None and first:
            del self.maps[old][key]
            self._may_go(key)
            self._apply(old)
        self.maps[new][key] = version
        self._apply(new)
        if old is not None and not first:
            del self.maps[old][key]
            self._apply(old)
        self.record(f"{key} {version} moves from {old} to {new}")

    def empty(self):
        """Empty or delete a ConfigMap, unless it is the last ConfigMap that has keys."""
        full = [name for name, keys in self.maps.items() if keys]
        if len(full) < 2:
            return
        name = self.random.choice(full)
        if self.touched & {*self.maps[name], *MAPS[name]}:
            return
        self.touched |= {*self.maps[name], *MAPS[name]}
        self.maps[name] = {} if self.random.random() < 0.5 else None
        self._apply(name)
        self.record(f"{name} is {'deleted' if self.maps[name] is None else 'emptied'}")

    def refill(self):
        """Add keys to a ConfigMap that was emptied or deleted."""
        name = next((name for name, keys in self.maps.items() if not keys), None)
        if name is None or self.touched & {*MAPS[name]}:
            return
        # The agent now removes the profiles of earlier keys that the ConfigMap no longer contains.
        keys = [*MAPS[name], *MOVERS]
        expected = [key for key in MAPS[name] if self.random.random() < 0.6] or MAPS[name][:2]
        self.maps[name] = {}
        for key in expected:
            self.maps[name][key] = self._new()
            self.possible.setdefault(key, {None}).add(self.maps[name][key])
        for key in keys:
            if key not in expected:
                self._may_go(key)
        self._mark(name)
        self.record(f"{name} is back with {self.maps[name]}")

    def edit(self):
        """Delete or overwrite one of the agent's files, as another program would."""
        now = time.monotonic()
        # If a file that no key defines were edited, the agent would release the file, and the file
        # would become foreign.
        names = [
            name
            for name in sorted(self.steady)
            if name not in self.foreign
            and None not in self.possible.get(name, {None})
            and len([at for at in self.edits.get(name, ()) if now - at < FIGHT_SECONDS])
            < FIGHT_EDITS
        ]
        name = self._free(names)
        path = self.daemon.seccomp / (name or "-")
        if name is None or not path.exists():
            return
        self.edits.setdefault(name, []).append(now)
        self.touched.add(name)
        self.disturbed.add(name)
        change = self.random.choice(["delete", "cut", "garbage", "replace", "touch"])
        content = path.read_bytes()
        match change:
            case "delete":
                path.unlink()
            case "cut":
                path.write_bytes(content[: len(content) // 2])
            case "garbage":
                path.write_bytes(b"\xff" * len(content))
            case "replace":
                new = path.with_name("..new")
                new.write_text(profile(4095))
                new.rename(path)
            case "touch":
                path.write_bytes(content)
        self.record(f"edit of {name}: {change}")

    def intrude(self):
        """Create a foreign file at a path where the agent has no file."""
        known = {key for keys in self.maps.values() for key in keys or ()}
        names = [
            name
            for name in (*MAPS["web"], *MAPS["db"], "foreign.json")
            if name not in known
            and name not in self.foreign
            and self.possible.get(name, {None}) == {None}
            and not (self.daemon.seccomp / name).exists()
        ]
        name = self._free(names)
        if name is None or len(self.foreign) > 4:
            return
        path = self.daemon.seccomp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile(4001) + " " * self._new())
        self.foreign[name] = self._sign(name)
        self.touched.add(name)
        self.record(f"a foreign file {name}")

    def retreat(self):
        """Remove a foreign file."""
        name = self._free(sorted(self.foreign))
        if name is None:
            return
        (self.daemon.seccomp / name).unlink()
        del self.foreign[name]
        self._freed(name)
        self.touched.add(name)
        self.record(f"the foreign file {name} is removed")

    def _freed(self, name):
        """Allow that a file is missing, because a foreign file was at its path until now."""
        self.possible.setdefault(name, set()).add(None)

    def relabel(self):
        """Change one of the agent's labels, or a foreign label."""
        change = {"note": str(self._new())}
        self.note = change["note"]
        now = time.monotonic()
        recent = [at for at in self.relabelled if now - at < TRUCE_SECONDS]
        # The last client that sets a label owns it. If the agent removed the profile now, the label
        # would stay.
        there = {item for item, versions in self.possible.items() if None not in versions}
        name = self._free(sorted(self.steady & there - self.foreign.keys()))
        if name is not None and len(recent) < RELABELS:
            self.touched.add(name)
            self.relabelled.append(now)
            change[f"seccomp.{DOMAIN}/{name}"] = self.random.choice([None, "wrong"])
        self.client.merge(f"/api/v1/nodes/{self.daemon.name}", {"metadata": {"labels": change}})
        self.record(f"another client sets the labels {change}")

    def pod(self):
        """Start or end a pod that uses a profile."""
        name = self.random.choice([*MAPS["web"], *MAPS["db"]])
        pods = f"/api/v1/namespaces/{self.daemon.name}/pods"
        if name in self.pods:
            self.client.send_checked("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})
            del self.pods[name]
            self.released.add(name)
            self._may_go(name)
            self.record(f"the pod of {name} ends")
            return
        used = {"type": "Localhost", "localhostProfile": name}
        container = {"name": "c", "image": "i", "securityContext": {"seccompProfile": used}}
        spec = {"nodeName": self.daemon.name, "containers": [container]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.client.send_checked("POST", pods, body)
        self.pods[name] = False
        self.record(f"a pod uses {name}")

    def cut(self):
        """Make the API server unreachable, unresponsive or slow for a part of this batch."""
        fault = self.random.choice(["refuse", "silence", "delay"])
        if fault == "delay":
            self.proxy.delay(0.3)
        else:
            getattr(self.proxy, fault)()
        self.record(f"the API server: {fault}")
        until_passed(self.random.uniform(0.1, 1.0))

    def restart(self):
        """Stop the daemon. Start the daemon again at once or at the end of the batch."""
        number = self.random.choice([signal.SIGTERM, signal.SIGKILL])
        status, seconds = self.daemon.stop(number)
        if number == signal.SIGTERM and (status, pace.in_time(seconds, 5.0)) != (0, True):
            raise InvariantError(f"exit status {status} {seconds:.1f} s after SIGTERM")
        self.record(f"the daemon is ended with {number.name}")
        if self.random.random() < 0.5:
            self.daemon.start(*OPTIONS)

    def reboot(self):
        """Simulate a reboot, which may also remove the files of the node."""
        self.daemon.stop(signal.SIGKILL)
        boot = str(uuid.UUID(int=self.random.getrandbits(128)))
        (self.daemon.root / "proc/sys/kernel/random/boot_id").write_text(boot + "\n")
        node = f"/api/v1/nodes/{self.daemon.name}"
        info = {**self.daemon.node()["status"]["nodeInfo"], "bootID": boot}
        self.client.merge(f"{node}/status", {"status": {"nodeInfo": info}})
        removes_files = self.random.random() < 0.5
        if removes_files:
            self.disturbed |= set(self.possible)
            shutil.rmtree(self.daemon.seccomp)
            for name in self.foreign:
                self._freed(name)
            self.foreign.clear()
            # The agent does not restore a profile that no key defines and that is kept only because
            # it may be in use.
            desired = {key for keys in self.maps.values() for key in keys or ()}
            for name, versions in self.possible.items():
                if name not in desired:
                    versions.add(None)
        self.record(f"reboot, {'without' if removes_files else 'with'} the files")
        if self.random.random() < 0.5:
            self.daemon.start(*OPTIONS)


def until_passed(seconds):
    """Wait for a number of seconds."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, "time passes", seconds + 10)


CHANGES = [
    (Soak.provide, 30),
    (Soak.spoil, 8),
    (Soak.withdraw, 12),
    (Soak.move, 5),
    (Soak.empty, 3),
    (Soak.refill, 4),
    (Soak.edit, 12),
    (Soak.intrude, 5),
    (Soak.retreat, 4),
    (Soak.relabel, 6),
    (Soak.pod, 10),
]
