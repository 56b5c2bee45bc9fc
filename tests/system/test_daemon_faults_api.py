"""Tests of faults with a real API server: a killed daemon, slow responses and small limits.

The tests check the node, its labels on the API server, the metrics and the exit status.
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

SECONDS = 2.0  # the time limit for a restore, for a change and for the exit after SIGTERM
NODE_LABELS = {"node/seccomp": "enabled", "node/selinux": "disabled"}
LABELS = {**NODE_LABELS, "seccomp/a.json": "installed", "set/web": "ready"}


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as one:
        one.apply(*RIGHTS)
        yield one


@pytest.fixture
def daemon(cluster, tmp_path, request):
    """A daemon with a ConfigMap that contains the profile a.json. The daemon has not been
    started.
    """
    name = "n" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    one = OnNode(tmp_path, cluster, name)
    one.config_map({"a.json": profile(1)})
    yield one
    one.kill()


def stopped_cleanly(daemon):
    """Stop the daemon. Require exit status 0 within two seconds, an unchanged node and unchanged
    labels.
    """
    before = daemon.files(), daemon.labels()
    since = busy.Since()
    status, seconds = daemon.stop()
    assert (status, seconds < since.within(SECONDS)) == (0, True), (
        status,
        seconds,
        since.waiting_fraction(),
    )
    assert (daemon.files(), daemon.labels()) == before


def undelayed(daemon, condition):
    """Wait for a change that the API server must not delay, and return the number of seconds that
    this took.
    """
    since = busy.Since()
    daemon.until(condition)
    seconds = since.seconds()
    assert seconds < since.within(SECONDS), (seconds, since.waiting_fraction())
    return seconds


@pytest.mark.parametrize("point", ["before_the_node_is_labelled", "before_an_event_is_sent"])
def test_a_daemon_that_is_killed_while_publishing_reaches_the_same_state(
    daemon, monkeypatch, point
):
    """If the daemon is killed while it publishes labels, no label exists without its profile, and
    the next daemon sets all labels.
    """
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
    assert daemon.number("a.json") == 1  # The daemon must not remove the file before the label.
    monkeypatch.delenv("KILLED")
    daemon.start("--removal-grace=1s", "--prune=always")
    daemon.until_labels({key.replace("a.json", "b.json"): item for key, item in LABELS.items()})
    daemon.until(lambda: daemon.files() == {"b.json": 2} and daemon.converged())
    stopped_cleanly(daemon)


class SlowPatches(Proxy):
    """A TLS proxy that delays the response to each patch of a Node, and no other response."""

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
            for item in pair:
                stack.callback(item.close)
            client = stack.enter_context(self.near.wrap_socket(pair[0], server_side=True))
            far = self.far.wrap_socket(pair[1], server_hostname="127.0.0.1")
            server = stack.enter_context(far)
            self.pairs.add((client, server))
            stack.callback(self.pairs.discard, (client, server))
            self._between(client, server)

    def _between(self, client, server):
        """Relay both directions in one thread, because OpenSSL allows only one thread at a time per
        connection.
        """
        slow = False
        while True:
            waiting = [item for item in (client, server) if item.pending()]
            for source in waiting or select.select([client, server], [], [])[0]:
                source.settimeout(0)
                try:
                    chunk = source.recv(1 << 16)
                # These bytes belong to the TLS protocol and not to an HTTP request.
                except ssl.SSLWantReadError:
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


def test_slow_label_patches_are_sent_once_each_and_delay_no_repair(daemon):
    """If responses to patches arrive too late, the labels are still set, and the daemon still
    restores files.
    """
    key = f"seccomp.{DOMAIN}/a.json"
    with SlowPatches(daemon.cluster, 15.0) as proxy:
        daemon.through(proxy)
        daemon.start("--resync=5s")
        daemon.until_labels(LABELS)
        begin = time.monotonic()
        repairs, labelled = [], []
        for number in (2, 3):
            (daemon.seccomp / "a.json").unlink()
            repairs.append(undelayed(daemon, lambda: daemon.file("a.json")))
            daemon.config_map({"a.json": profile(number)})
            undelayed(daemon, lambda number=number: daemon.number() == number)
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
        stopped_cleanly(daemon)


def test_memory_stays_below_the_limit_of_the_manifest(daemon):
    """The memory of the daemon stays below the limit of the manifest, with an almost full ConfigMap
    of 150 profiles and with updates.
    """
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
        stopped_cleanly(daemon)


def test_with_64_descriptors_the_daemon_watches_labels_and_restores(daemon):
    """If the daemon may open at most 64 descriptors, it watches the API server, sets labels and
    restores files. The daemon uses less than half of the descriptors.
    """
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
    stopped_cleanly(daemon)
