"""The soak: random changes from a seed, bounded in CI, as long as wanted by hand.

SOAK_SEED and SOAK_SECONDS say which and how long. A failure prints seed and history.
"""

import os
import time

import pytest

from tests.system.cluster import Cluster
from tests.system.daemon import RIGHTS, OnNode
from tests.system.proxy import Proxy
from tests.system.soak import Soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or int(time.time())
MOST_KIB = 4096  # growth of one process


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


def test_whatever_happens_the_node_and_its_labels_end_as_they_must(daemon):
    """Files, labels, metrics and log agree with the model after each batch; nothing grows."""
    print(f"seed {SEED}, {SECONDS:g} s")
    with Proxy(daemon.cluster.port) as proxy:
        daemon.through(proxy)
        soak = Soak(daemon, proxy, SEED)
        counted = soak.run(SECONDS)
        print(counted)
        (rss, later), threads, fds = counted["rss"], counted["threads"], counted["fds"]
        assert counted["changes"] > SECONDS, counted
        assert later - rss < MOST_KIB, counted
        assert (threads[1] <= threads[0], fds[1] <= fds[0] + 2) == (True, True), counted
        status, seconds = daemon.stop()
        assert (status, seconds < 2.0) == (0, True)
