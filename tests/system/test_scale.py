"""Tests the watches and labels of 300 agents with one API server, in one process."""

import json
import queue
import threading
import time
from collections import Counter

import pytest

from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.kube import client, node_labels
from agent.kube import reflector as reflector_module
from agent.kube.event_outbox import EventOutbox
from agent.kube.event_sender import EventSender
from agent.kube.lister import Resource
from agent.kube.own_node import NodeOptions, node_metadata
from agent.kube.publisher import Publisher
from agent.sources import configmap as config_maps
from agent.sources.source_spec import ConfigMapSpec
from tests.system.cluster import MERGE_PATCH, NODE_INFO, Cluster, until

AGENTS = 300
BOOT_ID = "11111111-2222-3333-4444-555555555555"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
WANTED = ConfigMapSpec(namespace="default", name="profiles")


class Agent:
    """The part of an agent that uses the API server: two watches and a publisher."""

    def __init__(self, kubeconfig, name):
        self.requests = Counter()
        self.api = client.Api(kubeconfig=kubeconfig, on_request=self.counted)
        self.words = queue.SimpleQueue()
        self.own = node_labels.NodeLabeler(self.api, NodeOptions(name=name), lambda: BOOT_ID)
        self.config_map = reflector_module.Reflector(
            self.api,
            Resource(path=WANTED.path, query=WANTED.query),
            keep=config_maps.entry_for(DOMAIN),
            on_change=lambda: self.words.put("source"),
            backoff=reflector_module.new_backoff(),
        )
        self.node = reflector_module.Reflector(
            self.api,
            Resource(
                path="/api/v1/nodes",
                query=(("fieldSelector", f"metadata.name={name}"),),
                object_path=self.own.options.path,
                metadata_only=True,
            ),
            keep=node_metadata,
            on_change=self.node_changed,
            backoff=reflector_module.new_backoff(),
        )
        self.publisher = Publisher(
            labeler=self.own,
            events=EventSender(self.api, EventOutbox(time.monotonic, time.time)),
            store=lambda: self.node.store,
            on_change=lambda: None,
            clock=time.monotonic,
        )
        self.thread = threading.Thread(target=self.run, daemon=True)

    def counted(self, verb, _code, _seconds):
        self.requests[verb] += 1

    def node_changed(self):
        self.publisher.notify()

    def start(self):
        for item in (self.config_map, self.node, self.publisher, self.thread):
            item.start()

    def run(self):
        while self.words.get() != "stop":
            copy = self.config_map.store
            if copy.objects and not copy.reason:
                self.publisher.post(report(copy.objects["profiles"].content))

    def stop(self):
        self.words.put("stop")


def report(content):
    """Return the report of a pass that installed every key."""
    origin = config_maps.profile_set_of("default", "profiles")
    rows = [
        ProfileStatus(
            kind="seccomp",
            profile_set=origin,
            key=source_key.key,
            name=source_key.key,
            localhost_profile=source_key.key,
            state="installed",
            action="install",
            reason="new",
        )
        for source_key in content.source_keys
    ]
    read = ProfileSetStatus(profile_set=origin, state="read", keys=len(rows))
    return Report(
        profiles=tuple(rows),
        profile_sets=(read,),
        kind_support={"seccomp": KindSupport(state="enabled")},
    )


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as one:
        yield one


def change(cluster, number):
    key = f"p{number}.json"
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "profiles", "namespace": "default"},
            "data": {key: "{}"},
        }
    )
    return f"seccomp.{DOMAIN}/{key}"


def labelled(cluster, label):
    result = cluster.get("/api/v1/nodes")["items"]
    return sum(label in item["metadata"].get("labels", {}) for item in result)


def test_a_change_costs_one_watch_event_one_patch_and_one_event_per_node(cluster, monkeypatch):
    """Without changes, the agents send no request. A change costs one watch event, one patch and
    one Event per Node.
    """
    # No watch ends at its time limit during the test, even on a slow machine.
    monkeypatch.setattr(reflector_module, "WATCH_SECONDS", (3600, 3600))
    admin = client.Api(kubeconfig=str(cluster.folder / "admin.kubeconfig"))
    info = dict.fromkeys(NODE_INFO, "x")
    names = [f"node-{number}" for number in range(AGENTS)]
    for name in names:
        created = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        admin.send("POST", "/api/v1/nodes", created)
        status = {"status": {"nodeInfo": {**info, "bootID": BOOT_ID}}}
        admin.send("PATCH", f"/api/v1/nodes/{name}/status", status, content_type=MERGE_PATCH)
    label = change(cluster, 0)
    agents = [Agent(str(cluster.folder / "admin.kubeconfig"), name) for name in names]
    try:
        begin = time.monotonic()
        for agent in agents:
            agent.start()
        until(lambda: labelled(cluster, label) == AGENTS, lambda: labelled(cluster, label), 300)
        print(f"scale: {AGENTS} agents started and labelled in {time.monotonic() - begin:.1f} s")
        wait_until_idle(agents, Counter())
        seconds = []
        for number in (1, 2, 3):
            before = requests(agents)
            begin = time.monotonic()
            label = change(cluster, number)
            until(lambda label=label: labelled(cluster, label) == AGENTS, "every label", 120)
            seconds.append(round(time.monotonic() - begin, 2))
            wait_until_idle(agents, before)
            after = requests(agents) - before
            print(f"scale: change {number}: {dict(after)}")
            # One patch removes the previous label and sets the new label. Each profile name causes
            # one Event.
            assert after == Counter(PATCH=AGENTS, POST=AGENTS)
        print(f"scale: last of {AGENTS} nodes labelled after {seconds} s")
        before, end = requests(agents), time.monotonic() + 10.0
        until(lambda: time.monotonic() > end, "ten seconds")
        assert requests(agents) - before == Counter()
    finally:
        for agent in agents:
            agent.stop()


def requests(agents):
    total = Counter()
    for agent in agents:
        total += agent.requests
    return total


def wait_until_idle(agents, before):
    """Wait until all agents have sent a patch and an Event, and have then sent no request for a
    second.

    The server counts a request when it ends. Without the required patch and Event, a pause of the
    machine would look like the end of all requests.
    """
    last = [requests(agents), time.monotonic()]

    def quiet():
        now = requests(agents)
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        sent = now - before
        result = min(sent["PATCH"], sent["POST"]) >= AGENTS
        return result and time.monotonic() - last[1] > 1.0

    until(quiet, lambda: json.dumps(requests(agents)), 60)
