"""Faults of a daemon beside a real API server: kills around labels, slow answers, few means.

Every test asserts on the node, its labels as the API has them, the metrics and the exit.
"""

import contextlib
import hashlib
import json
import resource
import select
import signal
import ssl
import time

import pytest

from tests.system import busy
from tests.system.cluster import Cluster
from tests.system.daemon import DOMAIN, RIGHTS, OnNode, profile
from tests.system.memory import MIB, joining, manifest_limit, memory_group
from tests.system.proxy import Proxy

SECONDS = 2.0  # how long a repair, a change or an end by SIGTERM may take
LABELS = {"node/seccomp": "enabled", "seccomp/a.json": "installed", "set/web": "ready"}


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as one:
        one.apply(*RIGHTS)
        yield one


@pytest.fixture
def daemon(cluster, tmp_path, request):
    """Give a daemon that is not started yet, whose ConfigMap has the profile a.json."""
    name = "n" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    one = OnNode(tmp_path, cluster, name)
    one.config_map({"a.json": profile(1)})
    yield one
    one.kill()


def left_in_peace(daemon):
    """End it: within two seconds, with 0, node and labels as they were."""
    before = daemon.files(), daemon.labels()
    since = busy.Since()
    status, seconds = daemon.stop()
    assert (status, seconds < since.within(SECONDS)) == (0, True), (status, seconds, since.short())
    assert (daemon.files(), daemon.labels()) == before


def at_once(daemon, condition):
    """Wait for what no API server delays; return how many seconds that took."""
    since = busy.Since()
    daemon.until(condition)
    seconds = since.seconds()
    assert seconds < since.within(SECONDS), (seconds, since.short())
    return seconds


@pytest.mark.parametrize("point", ["before_the_node_is_labelled", "before_an_event_is_sent"])
def test_a_kill_at_a_named_point_of_publishing_ends_in_the_same_state(daemon, monkeypatch, point):
    """No label is there without its profile; the next start labels what is in place."""
    daemon.start("--removal-grace=1s", "--prune=always")
    daemon.until_labels(LABELS)
    daemon.stop()
    monkeypatch.setenv("KILLED", point)
    daemon.start("--removal-grace=1s", "--prune=always", module="tests.system.killed")
    daemon.config_map({"b.json": profile(2)})
    daemon.until(lambda: not daemon.alive())
    assert daemon.process.returncode == -signal.SIGKILL
    labelled = {key.partition("/")[2] for key in daemon.labels() if key.startswith("seccomp/")}
    assert labelled <= set(daemon.files())
    assert daemon.number("a.json") == 1  # not removed before its label went
    monkeypatch.delenv("KILLED")
    daemon.start("--removal-grace=1s", "--prune=always")
    daemon.until_labels({key.replace("a.json", "b.json"): one for key, one in LABELS.items()})
    daemon.until(lambda: daemon.files() == {"b.json": 2} and daemon.converged())
    left_in_peace(daemon)


class SlowPatches(Proxy):
    """Ends TLS, so as to answer each patch of a Node, and nothing else, so many seconds later."""

    def __init__(self, cluster, seconds):
        super().__init__(cluster.port)
        self.patience = seconds
        self.patches = 0
        self.near = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.near.load_cert_chain(cluster.folder / "tls.crt", cluster.folder / "tls.key")
        self.far = ssl.create_default_context(cafile=str(cluster.ca))

    def _serve(self, pair):
        self.pairs.discard(pair)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for one in pair:
                stack.callback(one.close)
            client = stack.enter_context(self.near.wrap_socket(pair[0], server_side=True))
            far = self.far.wrap_socket(pair[1], server_hostname="127.0.0.1")
            server = stack.enter_context(far)
            self.pairs.add((client, server))
            stack.callback(self.pairs.discard, (client, server))
            self._between(client, server)

    def _between(self, client, server):
        """Relay both ways in one thread: OpenSSL has no lock for two on one connection."""
        slow = False
        while True:
            waiting = [one for one in (client, server) if one.pending()]
            for source in waiting or select.select([client, server], [], [])[0]:
                source.settimeout(0)
                try:
                    chunk = source.recv(1 << 16)
                except ssl.SSLWantReadError:  # a record of TLS itself
                    continue
                finally:
                    source.settimeout(None)
                if not chunk:
                    return
                if source is client and chunk.startswith(b"PATCH /api/v1/nodes/"):
                    self.patches += 1
                    slow = True
                if source is server and slow:
                    self.stop.wait(self.patience)
                    slow = False
                (server if source is client else client).sendall(chunk)


def test_label_patches_answered_after_15_seconds_are_sent_once_each_and_delay_no_repair(daemon):
    """The label is on the Node although no answer comes in time; repairs go on meanwhile."""
    key = f"seccomp.{DOMAIN}/a.json"
    with SlowPatches(daemon.cluster, 15.0) as proxy:
        daemon.through(proxy)
        daemon.start("--resync=5s")
        daemon.until_labels(LABELS)
        begin = time.monotonic()
        repairs, labelled = [], []
        for number in (2, 3):
            (daemon.seccomp / "a.json").unlink()
            repairs.append(at_once(daemon, lambda: daemon.file("a.json")))
            daemon.config_map({"a.json": profile(number)})
            at_once(daemon, lambda number=number: daemon.number() == number)
            daemon.client.merge(
                f"/api/v1/nodes/{daemon.name}", {"metadata": {"labels": {key: None}}}
            )
            lost = time.monotonic()
            daemon.until_labels(LABELS, 180.0)
            labelled.append(time.monotonic() - lost)
            assert (daemon.get("/healthz")[0], daemon.ready()) == (200, True)
        seconds = time.monotonic() - begin
        print(f"{seconds:.0f} s: repairs within {max(repairs):.2f} s, labels within "
              f"{max(labelled):.0f} s, {proxy.patches} patches")  # fmt: skip
        assert proxy.patches <= 9
        left_in_peace(daemon)


def test_it_lives_within_the_memory_of_the_manifest(daemon):
    """With a ConfigMap near the largest, 150 profiles and updates it stays below the limit."""
    limit = manifest_limit()
    rules = [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x" * 2000}] * 400
    large = json.dumps(json.loads(profile(7)) | {"syscalls": rules})
    assert len(large) > 800_000
    many = {f"k{number}.json": profile(number) for number in range(150)}
    daemon.wanted = f"--source=configmaps:{daemon.name}?use=profiles"
    daemon.config_map({"large.json": large}, "large", labels={"use": "profiles"})
    daemon.config_map(many, "many", labels={"use": "profiles"})
    with memory_group(limit) as group:
        daemon.start("--resync=2s", before=joining(group))
        daemon.until(lambda: len(daemon.files()) == 151 and daemon.converged(), 60)
        for number in range(200, 230):
            daemon.config_map(
                many | {"k0.json": profile(number)}, "many", labels={"use": "profiles"}
            )
            daemon.until(lambda number=number: daemon.number("k0.json") == number)
        for number in range(3):
            changed = large.replace("xx", "xy", number + 1)
            daemon.config_map({"large.json": changed}, "large", labels={"use": "profiles"})
            daemon.until(daemon.converged)
        peak = daemon.usage()["peak"] / 1024
        kind = (
            "none could be made"
            if group is None
            else "cgroup v1"
            if "memory/" in str(group)
            else "v2"
        )
        print(f"peak {peak:.0f} MiB of {limit // MIB} MiB; control group: {kind}")
        assert peak < limit / MIB
        assert daemon.alive()
        left_in_peace(daemon)


def test_with_64_descriptors_it_watches_labels_and_repairs(daemon):
    """Watches, publisher, inotify and HTTP together need less than half of them."""
    daemon.start(limits={resource.RLIMIT_NOFILE: 64})
    daemon.until_labels(LABELS)
    for number in range(2, 6):
        daemon.config_map({"a.json": profile(number)})
        daemon.until(lambda number=number: daemon.number() == number)
    (daemon.seccomp / "a.json").unlink()
    daemon.until(lambda: daemon.number() == 5)
    daemon.until(daemon.converged)
    used = daemon.usage()["fds"]
    print(f"{used} descriptors")
    assert (used < 32, daemon.findings()) == (True, {})
    left_in_peace(daemon)
