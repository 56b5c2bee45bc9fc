"""The soak: random changes from a seed, bounded in CI, as long as wanted by hand.

SOAK_SEED and SOAK_SECONDS say which and how long; the seed is the same for every commit, and 0 is
another one each time. A failure prints seed and history.
"""

import json
import os
import time
from pathlib import Path

import pytest

from tests.system import busy, vm
from tests.system.cluster import Cluster
from tests.system.daemon import RIGHTS, OnNode
from tests.system.guest import pace
from tests.system.proxy import Proxy
from tests.system.soak import Soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SOAK_SEED", "105")) or int(time.time())
GUEST = Path("tests/system/guest")
# Beside the changes: to boot (60), to start (180), to settle after the last ones (120).
GUEST_SECONDS = 480
# Growth of one process. In the virtual machine a minute has some ten samples, each of another set
# of profiles; runs of 84 to 120 changes gave 0.5 to 4.3 MiB.
MOST_KIB, MOST_KIB_IN_VM = 4096, 8192


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon that is not started yet, beside a real API server."""
    with Cluster() as cluster:
        cluster.apply(*RIGHTS)
        cluster.kubectl("create", "namespace", "soak-pods")
        one = OnNode(tmp_path, cluster, "soak")
        cluster.kubectl("-n", "soak", "create", "serviceaccount", "default", check=False)
        one.wanted = "--source=configmaps:soak?use=profiles"
        yield one
        one.kill()


def not_grown(counted, most=MOST_KIB):
    """See that one process needs no more after many changes than after a few."""
    (rss, later), threads, fds = counted["rss"], counted["threads"], counted["fds"]
    assert later - rss < most, counted
    # A connection may be open, and a thread of its own serve it.
    assert (threads[1] <= threads[0] + 1, fds[1] <= fds[0] + 2) == (True, True), counted


def test_whatever_happens_the_node_and_its_labels_end_as_they_must(daemon):
    """Files, labels, metrics and log agree with the model after each batch; nothing grows."""
    print(f"seed {SEED}, {SECONDS:g} s")
    with Proxy(daemon.cluster.port) as proxy:
        daemon.through(proxy)
        soak = Soak(daemon, proxy, SEED)
        counted = soak.run(SECONDS)
        print(counted)
        assert counted["changes"] > SECONDS, counted
        not_grown(counted)
        since = busy.Since()
        status, seconds = daemon.stop()
        assert (status, seconds < since.within(2.0)) == (0, True), seconds


def test_whatever_happens_the_kernel_holds_what_it_must_and_nobody_is_unconfined():
    """On a real AppArmor kernel: its list, every process's label and the metrics agree."""
    print(f"seed {SEED}, {SECONDS:g} s")
    files = {f"guest/{one.name}": one.read_bytes() for one in GUEST.glob("*.py")}
    command = f"python3 guest/soak.py {SEED} {SECONDS:g}"
    result = vm.run(files, command, timeout_seconds=SECONDS + GUEST_SECONDS)
    lines = [json.loads(one) for one in result.output.splitlines() if one.startswith("{")]
    assert lines, result.output[-3000:]
    line = lines[-1]
    assert line["error"] is None, line["error"]
    print(line["counted"], line["seconds"])
    assert line["counted"]["changes"] >= SECONDS / 5, line
    not_grown(line["counted"], MOST_KIB_IN_VM)
    status, seconds = line["ended"]
    assert (status, pace.in_time(seconds, 2.0)) == (0, True), seconds
