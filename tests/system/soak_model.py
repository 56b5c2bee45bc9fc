"""The model of the soak test.

The model records the changes, and computes the states that may result from these changes. The test
compares the model with files, the labels of the Node, /metrics and the log. The test never reads
the internal state of the agent. If the order of two events is unknown, the model allows both
results. tests/system/soak.py makes the changes.
"""

import json
import os
import random
import statistics
import threading

from tests.system.cluster import until
from tests.system.daemon import BUG, DOMAIN, Client, number_of

MAPS = {
    "web": [f"p{number}.json" for number in range(12)],
    "db": [f"q{number}.json" for number in range(6)],
}
MOVERS = ["m0.json", "m1.json"]
THEIRS = f"seccomp.{DOMAIN}/theirs"
OPTIONS = ("--pod-aware", "--removal-grace=200ms", "--resync=3s", "--log-level=debug")
# After more edits of one file, or more changes of its labels, the agent would delay repairs.
FIGHT_SECONDS, FIGHT_EDITS = 130.0, 7
TRUCE_SECONDS, RELABELS = 610.0, 3
WARM = 12  # the number of batches before the growth is measured


class InvariantError(AssertionError):
    """An invariant of the model is violated by the node, its labels or the daemon."""


class SoakModel:
    """One daemon, two ConfigMaps, pods and foreign files, with their invariants."""

    def __init__(self, daemon, proxy, seed):
        self.daemon, self.proxy, self.seed = daemon, proxy, seed
        self.random = random.Random(seed)  # noqa: S311 - reproducible, no secret
        self.client = daemon.client
        # the keys of each ConfigMap, or None if it is deleted
        self.maps = {name: {} for name in MAPS}
        # the versions that the file of each name may have; None represents a missing file
        self.possible = {}
        self.foreign = {}  # The signature that the foreign file of each name must keep.
        self.pods = {}  # Whether a pod has used the profile since before this batch, by name.
        self.released = set()  # The names whose pod was stopped in this batch.
        self.edits = {}  # The times at which the file of a profile was edited, by name.
        self.relabelled = []  # The times at which the test changed the agent's labels.
        self.steady = set()  # The names that have been desired since the last checked batch.
        self.touched = set()  # The names that this batch must not change again.
        self.disturbed = set()  # The names whose file this test may have removed.
        self.note = "0"
        self.version = 0
        self.changes = self.batches = 0
        self.history = []
        self.samples = []
        self.log_offset = 0  # the number of bytes of the log that have been checked
        self.generation = 0
        self.wrong_labels = []
        self.stop = threading.Event()

    def description(self):
        """Return the seed, the history and the end of the log."""
        lines = [f"seed {self.seed}, {self.changes} changes in {self.batches} batches"]
        return "\n".join([*lines, *self.history[-400:], self.daemon.log_text()[-4000:]])

    def record(self, text):
        """Add a change to the history."""
        self.changes += 1
        self.history.append(f"{self.batches}: {text}")

    def _settle(self, patience):
        wrong = ""

        def holds():
            nonlocal wrong
            if BUG in self.daemon.log_text() or not self.daemon.alive():
                raise InvariantError("the daemon has ended")
            wrong = self._wrong()
            return not wrong

        until(holds, lambda: f"batch {self.batches}: {wrong}\n{self.description()}", patience)
        self._removals()
        self._collapse()
        if self.wrong_labels:
            raise InvariantError(f"a label without its file: {self.wrong_labels[:5]}")
        self.generation += 1
        self.disturbed = set()

    def _wanted(self):
        """Return the versions that each file may have, and the desired version of each file."""
        desired = {}
        for keys in self.maps.values():
            desired.update(keys or {})
        expected = {}
        for name in {*self.possible, *desired}:
            if name in self.foreign:
                continue
            one = desired.get(name)
            if isinstance(one, int):
                expected[name] = {one}
            elif one == "broken" or name in self.pods or self._unread(name):
                expected[name] = self.possible.get(name, {None})
            else:
                expected[name] = {None}
        return expected, desired

    def _unread(self, name):
        """Return whether the ConfigMap that provided a name was emptied or deleted."""
        return any(
            not keys and (name in (*MAPS[map_], *MOVERS, f"z-{map_}.json"))
            for map_, keys in self.maps.items()
        )

    def _used(self, key):
        """Return whether a pod that started before this batch still uses a key."""
        return self.pods.get(key) is True and key not in self.released

    def _versions(self, key):
        """Return the versions of a key in all ConfigMaps, except for invalid versions."""
        versions = [(keys or {}).get(key) for keys in self.maps.values()]
        return {item for item in versions if isinstance(item, int)}

    def _sign(self, name):
        path = self.daemon.seccomp / name
        status = path.stat()
        return path.read_bytes(), status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    def _wrong(self):
        """Return a difference from the model that may still disappear, or ""."""
        for name, sign in self.foreign.items():
            if self._sign(name) != sign:
                raise InvariantError(f"the foreign file {name} was touched")
        files = self.daemon.files()
        expected, desired = self._wanted()
        ours = {name: number for name, number in files.items() if name not in self.foreign}
        for name, versions in expected.items():
            if ours.get(name) not in versions:
                return f"{name} is {ours.get(name)}, expected: {versions}"
        if not ours.keys() <= expected.keys():
            return f"unexpected files: {ours.keys() - expected.keys()}"
        return self._labels_wrong(ours, desired) or self._report_wrong(desired)

    def _labels_wrong(self, ours, desired):
        labels = self.daemon.node()["metadata"]["labels"]
        if labels.get(THEIRS) != "installed" or labels.get("note", "0") != self.note:
            raise InvariantError(f"foreign labels were changed: {labels}")
        must = {name for name in ours if name in desired}
        may = {name for name in ours if self._unread(name)}
        prefix = f"seccomp.{DOMAIN}/"
        result = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)} - {"theirs"}
        if not must <= result <= must | may:
            return f"labels of {result}; required {must}, allowed {may}"
        values = {labels[prefix + name] for name in result}
        if values - {"installed"}:
            return f"values {values}"
        for map_, keys in self.maps.items():
            # The last good version of a key is sufficient.
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
        """Reduce the allowed versions of each file to its current version, unless another version
        may still follow.
        """
        files = {name: number_of(self.daemon.file(name)) for name in self.possible}
        desired = {key: name for name, keys in self.maps.items() for key in keys or ()}
        self.steady = set(desired)
        for name in self.possible:
            if name in self.foreign:
                # The agent may notice the removal of the foreign file before it notices the removal
                # of the key.
                self.possible[name] = {None, *self._versions(name)}
            elif name in desired or not (name in self.pods or self._unread(name)):
                self.possible[name] = {files[name]}

    def _removals(self):
        """Check in the log that no profile was removed while it was desired or in use."""
        log = self.daemon.log.read_bytes()
        lines, self.log_offset = log[self.log_offset :].splitlines(), len(log)
        for line in lines:
            if b'"profile_removed"' not in line:
                continue
            name = json.loads(line)["name"]
            if None not in self.possible.get(name, {None}) or self._used(name):
                raise InvariantError(f"{name} was removed: {line!r}")

    def _watch(self):
        """Check continuously that the file of each labelled profile exists."""
        client = Client(self.daemon.cluster)
        while not self.stop.wait(0.05):
            generation, disturbed = self.generation, set(self.disturbed)
            before = self._there()
            labels = client.send_checked("GET", f"/api/v1/nodes/{self.daemon.name}")["metadata"][
                "labels"
            ]
            after = self._there()
            prefix = f"seccomp.{DOMAIN}/"
            named = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)}
            wrong = named - {"theirs"} - before - after - disturbed - self.disturbed
            if wrong and generation == self.generation:
                self.wrong_labels.append((self.batches, sorted(wrong)))
        client.connection.close()

    def _there(self):
        try:
            return set(os.listdir(self.daemon.seccomp))
        except FileNotFoundError:
            return set()

    def growth(self):
        """Return the memory growth of the last process: the difference between the medians of its
        first and its last batches.
        """
        pid = self.daemon.process.pid
        own = [usage for item, usage in self.samples if item == pid][WARM:]
        size = max(1, len(own) // 4)
        first, last = own[:size], own[-size:]

        def middle(part, what):
            return statistics.median(item[what] for item in part) if part else 0

        return {
            "settled": len(own),
            **{
                what: (middle(first, what), middle(last, what))
                for what in ("rss", "threads", "fds")
            },
        }
