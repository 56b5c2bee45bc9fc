"""Random changes around one daemon, and a model of what must hold once each batch has settled.

Rule 1: the model knows what was done, never what the agent thinks: it reads files, the labels of
the Node, /metrics and the log. Rule 2: where the order of two events cannot be known, the model
allows each end, and no other: `could` holds every version that a file may have, None for no file.
Rule 3: the same seed makes the same choices.
"""

import json
import os
import random
import shutil
import signal
import statistics
import threading
import time
import uuid

from tests.system.cluster import until
from tests.system.daemon import BUG, DOMAIN, Client, number_of, profile
from tests.system.guest import pace

MAPS = {
    "web": [f"p{number}.json" for number in range(12)],
    "db": [f"q{number}.json" for number in range(6)],
}
MOVERS = ["m0.json", "m1.json"]
THEIRS = f"seccomp.{DOMAIN}/theirs"
OPTIONS = ("--pod-aware", "--removal-grace=200ms", "--resync=3s", "--log-level=debug")
FIGHT_SECONDS, FIGHT_EDITS = 130.0, 7  # more edits of one name would be a fight
TRUCE_SECONDS, RELABELS = 610.0, 3  # as would be more changes of own labels
WARM = 12  # batches before growth is measured


class Broken(AssertionError):  # noqa: N818 - reads as what it is
    """Something does not hold that must."""


class Soak:
    """One daemon, two ConfigMaps, pods, foreign files, a proxy before the API server."""

    def __init__(self, daemon, proxy, seed):
        self.daemon, self.proxy, self.seed = daemon, proxy, seed
        self.chance = random.Random(seed)  # noqa: S311 - reproducible, no secret
        self.client = daemon.client
        self.maps = {name: {} for name in MAPS}  # None: deleted
        self.could = {}  # name: versions that the file may have; None: no file
        self.foreign = {}  # name: what its file must remain
        self.pods = {}  # name: whether it was used since before this batch
        self.released = set()  # names a pod of which ended in this batch
        self.edits = {}  # name: when it was edited
        self.relabelled = []  # when own labels were changed
        self.steady = set()  # names that were desired all the time since the last settling
        self.touched = set()  # names that this batch must leave alone from now on
        self.disturbed = set()  # names whose file may be missing through no fault of the agent
        self.note = "0"
        self.version = 0
        self.changes = self.batches = 0
        self.history = []
        self.samples = []
        self.read = 0  # how much of the log was judged
        self.generation = 0
        self.lies = []
        self.stop = threading.Event()

    # --- running ----------------------------------------------------------------------------------

    def run(self, seconds):
        """Make batches of changes for so many seconds; return what was counted."""
        begin = time.monotonic()
        watcher = threading.Thread(target=self._watch)
        self._begin()
        watcher.start()
        try:
            while time.monotonic() - begin < seconds:
                calm = time.monotonic() - begin > seconds / 3  # one process for the rest
                self.batch(calm=calm)
        except BaseException:
            print(self.on_report())
            raise
        finally:
            self.stop.set()
            watcher.join()
        return {"changes": self.changes, "batches": self.batches, **self.growth()}

    def told(self):
        """Return the seed, the history and the end of the log."""
        lines = [f"seed {self.seed}, {self.changes} changes in {self.batches} batches"]
        return "\n".join([*lines, *self.history[-400:], self.daemon.said()[-4000:]])

    def say(self, text):
        """Note a change."""
        self.changes += 1
        self.history.append(f"{self.batches}: {text}")

    def _begin(self):
        self.client.merge(
            f"/api/v1/nodes/{self.daemon.name}", {"metadata": {"labels": {THEIRS: "installed"}}}
        )
        for name, keys in MAPS.items():
            for key in keys[::2]:
                self.maps[name][key] = self._new()
                self.could[key] = {None, self.maps[name][key]}
            self._mark(name)
        self.daemon.start(*OPTIONS)
        self._settle(60)

    def batch(self, *, calm):
        """Make some changes, and see that what must hold does."""
        self.batches += 1
        self.touched, self.released = set(), set()
        self.pods = dict.fromkeys(self.pods, True)
        heavy = [self.restart, self.reboot] * (not calm) + [self.cut] * 2
        patience = 30.0
        if self.chance.random() < 0.06:
            self.chance.choice(heavy)()
            patience = 90.0
        for _ in range(self.chance.randint(4, 44)):
            self.chance.choices([one for one, _ in CHANGES], [weight for _, weight in CHANGES])[0](
                self
            )
        for name, keys in self.maps.items():
            if keys:
                self._mark(name)
        if self.proxy.mode != "forward" or self.proxy.seconds:
            self.proxy.forward()
            self.say("the API answers again")
        if not self.daemon.alive():
            self.daemon.start(*OPTIONS)
        self._settle(patience)
        self.samples.append((self.daemon.process.pid, self.daemon.usage()))

    # --- changes ----------------------------------------------------------------------------------

    def _new(self):
        self.version += 1
        return 1 + self.version % 4000

    def _apply(self, name):
        keys = self.maps[name]
        path = f"/api/v1/namespaces/{self.daemon.name}/configmaps/{name}"
        if keys is None:
            self.client.done("DELETE", path)
            return
        data = {
            key: profile(one) if isinstance(one, int) else '{"broken": '
            for key, one in keys.items()
        }
        self.daemon.config_map(data, name, labels={"use": "profiles"})

    def _mark(self, name):
        """Change a key that nothing else concerns: once it is there, the rest was read."""
        key = f"z-{name}.json"
        self.maps[name][key] = self._new()
        self.could.setdefault(key, {None}).add(self.maps[name][key])
        self._apply(name)

    def _free(self, names):
        """Return one of the names that this batch may still change, or None."""
        names = [name for name in names if name not in self.touched]
        return self.chance.choice(names) if names else None

    def _map(self):
        return self.chance.choice([name for name, keys in self.maps.items() if keys])

    def provide(self):
        """Add or change a key."""
        name = self._map()
        key = self._free(MAPS[name])
        if key is None:
            return
        version = self.maps[name][key] = self._new()
        self.could.setdefault(key, {None}).add(version)
        self._apply(name)
        self.say(f"{name} provides {key} {version}")

    def spoil(self):
        """Break a key."""
        name = self._map()
        key = self._free(MAPS[name])
        if key is None:
            return
        self.maps[name][key] = "broken"
        self._apply(name)
        self.say(f"{name} breaks {key}")

    def withdraw(self):
        """Take a key away."""
        name = self._map()
        key = self._free([one for one in self.maps[name] if one in MAPS[name]])
        if key is None or len(self.maps[name]) < 3:
            return
        del self.maps[name][key]
        self.steady.discard(key)
        self._may_go(key)
        self._apply(name)
        self.say(f"{name} has no {key} any more")

    def _may_go(self, key):
        # What a reboot took is put back only as long as it is desired.
        if not self._used(key) or key in self.disturbed:
            self.could.setdefault(key, {None}).add(None)

    def _versions(self, key):
        """Return what is provided for a key now, without what is broken."""
        versions = [(keys or {}).get(key) for keys in self.maps.values()]
        return {one for one in versions if isinstance(one, int)}

    def _used(self, key):
        """Return whether a pod has named it since before this batch, and still does."""
        return self.pods.get(key) is True and key not in self.released

    def move(self):
        """Move a key to the other ConfigMap, with its content, in either order."""
        maps = [name for name, keys in self.maps.items() if keys]
        key = self._free(MOVERS)
        if len(maps) < 2 or key is None:
            return
        old = next((name for name in maps if key in self.maps[name]), None)
        new = next(name for name in maps if name != old)
        version = self._new() if old is None else self.maps[old][key]
        self.could.setdefault(key, {None}).add(version)
        self.touched.add(key)
        first = self.chance.random() < 0.5
        if old is not None and first:
            del self.maps[old][key]
            self._may_go(key)
            self._apply(old)
        self.maps[new][key] = version
        self._apply(new)
        if old is not None and not first:
            del self.maps[old][key]
            self._apply(old)
        self.say(f"{key} {version} moves from {old} to {new}")

    def empty(self):
        """Empty a ConfigMap, or delete it; one of them stays."""
        full = [name for name, keys in self.maps.items() if keys]
        if len(full) < 2:
            return
        name = self.chance.choice(full)
        if self.touched & {*self.maps[name], *MAPS[name]}:
            return
        self.touched |= {*self.maps[name], *MAPS[name]}
        self.maps[name] = {} if self.chance.random() < 0.5 else None
        self._apply(name)
        self.say(f"{name} is {'deleted' if self.maps[name] is None else 'emptied'}")

    def refill(self):
        """Make a ConfigMap again that is emptied or deleted."""
        name = next((name for name, keys in self.maps.items() if not keys), None)
        if name is None or self.touched & {*MAPS[name]}:
            return
        # What the set had and has no more is removed then.
        keys = [*MAPS[name], *MOVERS]
        wanted = [key for key in MAPS[name] if self.chance.random() < 0.6] or MAPS[name][:2]
        self.maps[name] = {}
        for key in wanted:
            self.maps[name][key] = self._new()
            self.could.setdefault(key, {None}).add(self.maps[name][key])
        for key in keys:
            if key not in wanted:
                self._may_go(key)
        self._mark(name)
        self.say(f"{name} is back with {self.maps[name]}")

    def edit(self):
        """Delete or overwrite a file of the agent's behind its back."""
        now = time.monotonic()
        # What is not desired and has other content is released, as somebody else's.
        names = [
            name
            for name in sorted(self.steady)
            if name not in self.foreign
            and None not in self.could.get(name, {None})
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
        how = self.chance.choice(["delete", "cut", "garbage", "replace", "touch"])
        content = path.read_bytes()
        match how:
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
        self.say(f"somebody does to {name}: {how}")

    def intrude(self):
        """Put a foreign file where nothing of the agent's is."""
        known = {key for keys in self.maps.values() for key in keys or ()}
        names = [
            name
            for name in (*MAPS["web"], *MAPS["db"], "theirs.json")
            if name not in known
            and name not in self.foreign
            and self.could.get(name, {None}) == {None}
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
        self.say(f"a foreign file {name}")

    def retreat(self):
        """Take a foreign file away."""
        name = self._free(sorted(self.foreign))
        if name is None:
            return
        (self.daemon.seccomp / name).unlink()
        del self.foreign[name]
        self._freed(name)
        self.touched.add(name)
        self.say(f"the foreign file {name} goes")

    def _freed(self, name):
        """Note that nothing foreign bars a name now: what was provided meanwhile may be put."""
        self.could.setdefault(name, set()).add(None)

    def _sign(self, name):
        path = self.daemon.seccomp / name
        status = path.stat()
        return path.read_bytes(), status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    def relabel(self):
        """Change a label of the agent's, or one that is not."""
        change = {"note": str(self._new())}
        self.note = change["note"]
        now = time.monotonic()
        recent = [at for at in self.relabelled if now - at < TRUCE_SECONDS]
        # Who labels last holds the label: a name that goes meanwhile would leave theirs behind.
        there = {one for one, versions in self.could.items() if None not in versions}
        name = self._free(sorted(self.steady & there - self.foreign.keys()))
        if name is not None and len(recent) < RELABELS:
            self.touched.add(name)
            self.relabelled.append(now)
            change[f"seccomp.{DOMAIN}/{name}"] = self.chance.choice([None, "lies"])
        self.client.merge(f"/api/v1/nodes/{self.daemon.name}", {"metadata": {"labels": change}})
        self.say(f"somebody labels {change}")

    def pod(self):
        """Start or end a pod that names a profile."""
        name = self.chance.choice([*MAPS["web"], *MAPS["db"]])
        pods = f"/api/v1/namespaces/{self.daemon.name}/pods"
        if name in self.pods:
            self.client.done("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})
            del self.pods[name]
            self.released.add(name)
            self._may_go(name)
            self.say(f"the pod of {name} ends")
            return
        used = {"type": "Localhost", "localhostProfile": name}
        container = {"name": "c", "image": "i", "securityContext": {"seccompProfile": used}}
        spec = {"nodeName": self.daemon.name, "containers": [container]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.client.done("POST", pods, body)
        self.pods[name] = False
        self.say(f"a pod names {name}")

    def cut(self):
        """Let the API server be away, mute or slow for a part of this batch."""
        how = self.chance.choice(["refuse", "silence", "delay"])
        if how == "delay":
            self.proxy.delay(0.3)
        else:
            getattr(self.proxy, how)()
        self.say(f"the API: {how}")
        until_passed(self.chance.uniform(0.1, 1.0))

    def restart(self):
        """End the daemon, and start it again at once or at the end of the batch."""
        number = self.chance.choice([signal.SIGTERM, signal.SIGKILL])
        status, seconds = self.daemon.stop(number)
        if number == signal.SIGTERM and (status, pace.in_time(seconds, 5.0)) != (0, True):
            raise Broken(f"SIGTERM ended it with {status} after {seconds:.1f} s")
        self.say(f"the daemon is ended with {number.name}")
        if self.chance.random() < 0.5:
            self.daemon.start(*OPTIONS)

    def reboot(self):
        """Another boot, after which the node's files may be gone."""
        self.daemon.stop(signal.SIGKILL)
        boot = str(uuid.UUID(int=self.chance.getrandbits(128)))
        (self.daemon.root / "proc/sys/kernel/random/boot_id").write_text(boot + "\n")
        node = f"/api/v1/nodes/{self.daemon.name}"
        info = {**self.daemon.node()["status"]["nodeInfo"], "bootID": boot}
        self.client.merge(f"{node}/status", {"status": {"nodeInfo": info}})
        gone = self.chance.random() < 0.5
        if gone:
            self.disturbed |= set(self.could)
            shutil.rmtree(self.daemon.seccomp)
            for name in self.foreign:
                self._freed(name)
            self.foreign.clear()
            # What was held, and is desired no more, is not put back.
            desired = {key for keys in self.maps.values() for key in keys or ()}
            for name, versions in self.could.items():
                if name not in desired:
                    versions.add(None)
        self.say(f"reboot, {'without' if gone else 'with'} the files")
        if self.chance.random() < 0.5:
            self.daemon.start(*OPTIONS)

    # --- what must hold ---------------------------------------------------------------------------

    def _settle(self, patience):
        wrong = ""

        def holds():
            nonlocal wrong
            said = self.daemon.said()
            if BUG in said or not self.daemon.alive():
                raise Broken("the daemon has ended by itself")
            wrong = self._wrong()
            return not wrong

        until(holds, lambda: f"batch {self.batches}: {wrong}\n{self.on_report()}", patience)
        self._removals()
        self._collapse()
        if self.lies:
            raise Broken(f"a label without its file: {self.lies[:5]}")
        self.generation += 1
        self.disturbed = set()

    def _wanted(self):
        """Return what the file of each name may be, as versions."""
        desired = {}
        for keys in self.maps.values():
            desired.update(keys or {})
        wanted = {}
        for name in {*self.could, *desired}:
            if name in self.foreign:
                continue
            one = desired.get(name)
            if isinstance(one, int):
                wanted[name] = {one}
            elif one == "broken" or name in self.pods or self._unread(name):
                wanted[name] = self.could.get(name, {None})
            else:
                wanted[name] = {None}
        return wanted, desired

    def _unread(self, name):
        """Return whether the set that had a name may still wish it: it is emptied or deleted."""
        return any(
            not keys and (name in (*MAPS[map_], *MOVERS, f"z-{map_}.json"))
            for map_, keys in self.maps.items()
        )

    def _wrong(self):
        """Return what does not hold (yet)."""
        for name, sign in self.foreign.items():
            if self._sign(name) != sign:
                raise Broken(f"the foreign file {name} was touched")
        files = self.daemon.files()
        wanted, desired = self._wanted()
        ours = {name: number for name, number in files.items() if name not in self.foreign}
        for name, versions in wanted.items():
            if ours.get(name) not in versions:
                return f"{name} is {ours.get(name)}, and not one of {versions}"
        if not ours.keys() <= wanted.keys():
            return f"files that nobody knows: {ours.keys() - wanted.keys()}"
        return self._labels_wrong(ours, desired) or self._report_wrong(desired)

    def _labels_wrong(self, ours, desired):
        labels = self.daemon.node()["metadata"]["labels"]
        if labels.get(THEIRS) != "installed" or labels.get("note", "0") != self.note:
            raise Broken(f"labels of others were touched: {labels}")
        must = {name for name in ours if name in desired}
        may = {name for name in ours if self._unread(name)}
        prefix = f"seccomp.{DOMAIN}/"
        found = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)} - {"theirs"}
        if not must <= found <= must | may:
            return f"labels of {found}, and must {must}, may {may}"
        values = {labels[prefix + name] for name in found}
        if values - {"installed"}:
            return f"values {values}"
        for map_, keys in self.maps.items():
            # A last good version counts.
            whole = all(key in ours for key in keys or ())
            if keys and (f"set.{DOMAIN}/{self.daemon.name}__{map_}" in labels) != whole:
                return f"the label of the set {map_} says {not whole}"
        return ""

    def _report_wrong(self, desired):
        if not self.daemon.ready():
            return "not ready"
        if all(self.maps.values()):
            good = "broken" not in desired.values() and not desired.keys() & self.foreign.keys()
            if self.daemon.converged() != good:
                return f"converged is {not good}: {self.daemon.findings()}"
        return ""

    def _collapse(self):
        """Forget what the files might have been; not where more may come."""
        files = {name: number_of(self.daemon.file(name)) for name in self.could}
        desired = {key: name for name, keys in self.maps.items() for key in keys or ()}
        self.steady = set(desired)
        for name in self.could:
            if name in self.foreign:
                # The agent may see it go before it sees its key go, and put that meanwhile.
                self.could[name] = {None, *self._versions(name)}
            elif name in desired or not (name in self.pods or self._unread(name)):
                self.could[name] = {files[name]}

    def _removals(self):
        """See in the log that nothing was removed that is desired or in use."""
        said = self.daemon.log.read_bytes()
        lines, self.read = said[self.read :].splitlines(), len(said)
        for line in lines:
            if b'"profile_removed"' not in line:
                continue
            name = json.loads(line)["name"]
            if None not in self.could.get(name, {None}) or self._used(name):
                raise Broken(f"{name} was removed: {line!r}")

    def _watch(self):
        """Look all the while whether a label says what is not so."""
        client = Client(self.daemon.cluster)
        while not self.stop.wait(0.05):
            generation, disturbed = self.generation, set(self.disturbed)
            before = self._there()
            labels = client.done("GET", f"/api/v1/nodes/{self.daemon.name}")["metadata"]["labels"]
            after = self._there()
            prefix = f"seccomp.{DOMAIN}/"
            named = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)}
            lies = named - {"theirs"} - before - after - disturbed - self.disturbed
            if lies and generation == self.generation:
                self.lies.append((self.batches, sorted(lies)))
        client.connection.close()

    def _there(self):
        try:
            return set(os.listdir(self.daemon.seccomp))
        except FileNotFoundError:
            return set()

    # --- growth -----------------------------------------------------------------------------------

    def growth(self):
        """Return how the last process grew: medians of its first and last settled batches."""
        pid = self.daemon.process.pid
        own = [usage for one, usage in self.samples if one == pid][WARM:]
        size = max(1, len(own) // 4)
        first, last = own[:size], own[-size:]

        def middle(part, what):
            return statistics.median(one[what] for one in part) if part else 0

        return {
            "settled": len(own),
            **{
                what: (middle(first, what), middle(last, what))
                for what in ("rss", "threads", "fds")
            },
        }


def until_passed(seconds):
    """Return after so many seconds."""
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
