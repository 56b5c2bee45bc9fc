"""Tests of the agent with a real API server: sources, labels, Events, and outages."""

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system import busy
from tests.system.cluster import NAMESPACE, Cluster, free_port, until
from tests.system.daemon import BOOT_ID, DOMAIN, RIGHTS
from tests.system.guest import pace
from tests.system.proxy import Proxy

AT_ONCE_SECONDS, SOON_SECONDS = 1.0, 2.0


def profile(errno=1):
    """Return a seccomp profile that denies mkdir with a given errno."""
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as one:
        one.apply(*RIGHTS)
        yield one


class Agent:
    """An agent with its own host root, Node and namespace."""

    def __init__(self, cluster, folder, name):
        self.cluster, self.name = cluster, name
        self.root = folder / "root"
        self.log = folder / "agent.log"
        boot = self.root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text(BOOT_ID + "\n")
        cluster.kubectl("create", "namespace", name)
        self.process = None
        self.kubeconfig = None

    def node(self, labels=None):
        """Create the agent's Node, and a token that is bound to this Node."""
        uid = self.cluster.node(self.name, BOOT_ID, labels)
        token = self.cluster.agent_token(self.name)
        self.kubeconfig = self.cluster.write_kubeconfig(self.name, token)
        return uid

    def command(self, *more, source=None):
        return [
            sys.executable, "-m", "agent",
            "--source", source or f"configmap:{self.name}/web",
            "--node-name", self.name,
            "--kubeconfig", str(self.kubeconfig),
            "--host-root", str(self.root),
            "--kinds", "seccomp",
            "--log-format", "json",
            "--http-address", "off",
            *more,
        ]  # fmt: skip

    def start(self, *more, source=None):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(*more, source=source), stderr=log)
        return self

    def once(self, *more, source=None):
        command = [*self.command(*more, source=source), "--oneshot", "--output", "json"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def stop(self, number=signal.SIGTERM):
        if self.process is None:
            return None
        self.process.send_signal(number)
        status = self.process.wait(pace.scaled(30))
        self.process = None
        return status

    def config_map(self, data, name="web", **metadata):
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": self.name, **metadata},
                "data": data,
            }
        )

    def labels(self):
        """Return the agent's labels, with the domain and the namespaces of profile sets removed
        from their keys.
        """
        return {
            key.replace(f".{DOMAIN}", "")
            .replace(DOMAIN, "node")
            .replace(f"set/{self.name}__", "set/"): value
            for key, value in self.cluster.labels(self.name).items()
            if DOMAIN in key
        }

    def files(self):
        top = self.root / "var/lib/kubelet/seccomp"
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())

    def events(self, reason):
        """Return the notes of the agent's Events with a given reason."""
        item = self.cluster.get("/apis/events.k8s.io/v1/namespaces/default/events")
        return [
            entry["note"]
            for entry in item["items"]
            if entry["regarding"]["name"] == self.name and entry["reason"] == reason
        ]

    def log_text(self):
        return self.log.read_text() if self.log.exists() else ""

    def lines(self, event):
        result = [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]
        return [item for item in result if item["event"] == event]

    def until(self, condition, seconds=20.0):
        return until(
            condition,
            lambda: (
                f"labels {self.labels()}, files {self.files()}, log:\n{self.log_text()[-4000:]}"
            ),
            seconds,
        )

    def until_labels(self, expected, seconds=20.0):
        self.until(lambda: self.labels() == expected, seconds)

    def seconds_until(self, condition):
        """Wait until a condition is true, and return the number of seconds that this took."""
        begin = time.monotonic()
        self.until(condition)
        return time.monotonic() - begin

    def soon_labels(self, expected):
        """Wait for the labels of a change. The time limit is longer only if no CPU is idle."""
        since = busy.Since()
        seconds = self.seconds_until(lambda: self.labels() == expected)
        assert seconds < since.within(SOON_SECONDS), (seconds, since.waiting_fraction())


@pytest.fixture
def agent(cluster, tmp_path, request):
    name = request.node.name.replace("_", "-").replace("[", "-").rstrip("]")[5:60].strip("-")
    one = Agent(cluster, tmp_path, name)
    yield one
    one.stop(signal.SIGKILL)


NODE_LABELS = {"node/seccomp": "enabled", "node/selinux": "disabled"}
READY = {**NODE_LABELS, "seccomp/a.json": "installed", "set/web": "ready"}


# --- from the ConfigMap to the label -------------------------------------------------------------


def test_a_change_reaches_the_node_and_its_label_within_a_second(agent):
    """A new key, a changed key and a removed key each take effect within a second. The test repeats
    the measurement.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start("--removal-grace", "3s", "--prune", "always")
    agent.until_labels(READY)
    both = {**READY, "seccomp/b.json": "installed"}
    path = agent.root / "var/lib/kubelet/seccomp/a.json"
    since, seconds = busy.Since(), {"new": [], "changed": [], "removed": []}
    for number in range(5):
        old = path.read_bytes()
        agent.config_map({"a.json": old.decode(), "b.json": profile(2)})
        seconds["new"].append(agent.seconds_until(lambda: agent.labels() == both))
        agent.config_map({"a.json": profile(10 + number), "b.json": profile(2)})
        seconds["changed"].append(agent.seconds_until(lambda old=old: path.read_bytes() != old))
        agent.config_map({"a.json": profile(10 + number)})
        seconds["removed"].append(agent.seconds_until(lambda: agent.labels() == READY))
    assert agent.files() == ["a.json", "b.json"]  # The file b.json stays during the grace period.
    medians = {what: round(statistics.median(took), 2) for what, took in seconds.items()}
    print(
        f"seconds until the labels are correct: {medians}; "
        f"a task waited for a CPU for {since.waiting_fraction():.0%} of the time"
    )
    assert max(medians.values()) < since.within(AT_ONCE_SECONDS), seconds
    agent.until(lambda: agent.files() == ["a.json"])
    agent.until(lambda: agent.events("ProfileRemoved"))


def test_a_configmap_can_be_created_later_deleted_and_emptied(agent):
    """If a ConfigMap is missing or was emptied, the agent reports this and removes no profile."""
    agent.node()
    agent.start()
    agent.until(lambda: [line["code"] for line in agent.lines("profile_problem")])
    assert agent.lines("profile_problem")[0]["code"] == "source_missing"
    agent.config_map({"a.json": profile()})
    agent.soon_labels(READY)
    agent.cluster.kubectl("-n", agent.name, "delete", "configmap", "web")
    agent.until(lambda: len(agent.lines("profile_problem")) >= 2)
    assert (agent.labels(), agent.files()) == (READY, ["a.json"])
    agent.config_map({})
    agent.until(lambda: "source_emptied" in agent.log_text())
    assert (agent.labels(), agent.files()) == (READY, ["a.json"])


def test_an_emptied_configmap_with_the_annotation_removes_its_profiles(agent):
    """If a ConfigMap has the annotation allow-empty, it may become empty, and the agent removes its
    profiles.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start("--removal-grace", "1s", "--prune", "always")
    agent.until_labels(READY)
    agent.config_map({}, annotations={f"{DOMAIN}/allow-empty": "true"})
    agent.soon_labels(NODE_LABELS)
    agent.until(lambda: agent.files() == [])


def test_a_rejected_update_keeps_the_last_good_version_and_its_label(agent):
    """If an update is rejected, the label describes the installed version, and an Event contains
    the reason.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start()
    agent.until_labels(READY)
    agent.config_map({"a.json": '{"defaultAction": "SCMP_ACT_NO"}', "c.json": "{"})
    agent.until(lambda: len(agent.events("ProfileRejected")) == 2)
    assert agent.labels() == {**NODE_LABELS, "seccomp/a.json": "installed"}
    assert agent.files() == ["a.json"]
    reported = agent.cluster.kubectl("describe", "node", agent.name)
    assert "ProfileRejected" in reported
    assert "the last good version stays" in reported


def test_kubectl_describe_node_shows_the_events_of_profiles(agent):
    """Each profile that is installed, updated, restored, held or removed causes an Event about the
    Node.
    """
    agent.node()
    agent.config_map({"a.json": profile(), "b.json": profile()})
    agent.start("--prune=always", "--removal-grace=100ms")
    agent.until(lambda: len(agent.events("ProfileLoaded")) == 2)
    agent.config_map({"a.json": profile(2), "b.json": profile()})
    agent.until(lambda: agent.events("ProfileUpdated"))
    (agent.root / "var/lib/kubelet/seccomp/a.json").unlink()
    agent.until(lambda: agent.events("ProfileRestored"))
    agent.config_map({"a.json": profile(2)})
    agent.until(lambda: agent.events("ProfileRemoved"))
    reported = agent.cluster.kubectl("describe", "node", agent.name)
    for reason in ("ProfileLoaded", "ProfileUpdated", "ProfileRestored", "ProfileRemoved"):
        assert reason in reported


def test_each_configmap_of_a_selector_is_a_separate_set(agent):
    """Each ConfigMap that a selector matches is a profile set with its own label."""
    agent.node()
    agent.config_map({"a.json": profile()}, labels={"use": "profiles"})
    agent.config_map({"b.json": profile()}, "db", labels={"use": "profiles"})
    agent.config_map({"x.json": profile()}, "other")
    agent.start(source=f"configmaps:{agent.name}?use=profiles")
    expected = {**READY, "seccomp/b.json": "installed", "set/db": "ready"}
    agent.until_labels(expected)
    agent.cluster.kubectl("-n", agent.name, "delete", "configmap", "db")
    agent.until(lambda: "source_missing" in agent.log_text())
    assert (agent.labels(), agent.files()) == (expected, ["a.json", "b.json"])
    agent.stop()
    agent.start(source=f"configmaps:{agent.name}?use=profiles")
    agent.until(lambda: len(agent.lines("pass_finished")) >= 3)
    assert (agent.labels(), agent.files()) == (expected, ["a.json", "b.json"])


def test_a_full_and_immutable_configmap_is_read(agent):
    """The agent reads a ConfigMap with a key of nearly 1 MiB, and an immutable ConfigMap."""
    agent.node()
    rules = [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "comment": "x" * 1000} for _ in range(980)
    ]
    large = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
    assert 950_000 < len(large) < 1 << 20
    map_ = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "immutable": True,
        "metadata": {"name": "web", "namespace": agent.name},
        "data": {"a.json": large},
    }
    agent.cluster.apply(map_)
    agent.start()
    agent.until_labels(READY)


def test_a_node_selector_limits_a_set_to_some_nodes(agent):
    """A profile set is installed while its node selector matches. If a node selector is invalid,
    the agent removes no profile.
    """
    agent.node({"pool": "a"})
    chosen = f"{DOMAIN}/node-selector"
    agent.config_map({"a.json": profile()}, annotations={chosen: "pool in (b,c)"})
    agent.start("--removal-grace", "1s", "--prune", "always")
    agent.until_labels(NODE_LABELS)
    agent.cluster.kubectl("label", "node", agent.name, "pool=b", "--overwrite")
    agent.soon_labels(READY)
    agent.config_map({"a.json": profile()}, annotations={chosen: "pool in b"})
    agent.until(lambda: "source_unreadable" in agent.log_text())
    assert (agent.labels(), agent.files()) == (READY, ["a.json"])
    agent.config_map({"a.json": profile()}, annotations={chosen: "pool=b"})
    agent.cluster.kubectl("label", "node", agent.name, "pool=a", "--overwrite")
    agent.soon_labels(NODE_LABELS)
    agent.until(lambda: agent.files() == [])


# --- own and foreign labels -----------------------------------------------------------------------


def test_a_removed_or_changed_label_is_restored(agent):
    """The agent corrects a removed or changed label within milliseconds, because it watches its own
    Node.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start()
    agent.until_labels(READY)
    key = f"seccomp.{DOMAIN}/a.json"
    since, seconds = busy.Since(), []
    # After two more changes, the agent would detect contention.
    for drift in (f"{key}-", f"{key}=lies", f"{key}-"):
        agent.cluster.kubectl("label", "node", agent.name, drift, "--overwrite")
        seconds.append(agent.seconds_until(lambda: agent.labels() == READY))
    assert statistics.median(seconds) < since.within(AT_ONCE_SECONDS), seconds


def test_foreign_labels_are_never_changed(agent):
    """The agent reports a foreign label with its prefix, but does not change it."""
    agent.node({"kept": "yes", f"seccomp.{DOMAIN}/theirs": "installed"})
    agent.config_map({"a.json": profile(), "b.json": profile()})
    agent.start("--removal-grace", "1s", "--prune", "always")
    agent.until(lambda: "label_foreign" in agent.log_text())
    both = {**READY, "seccomp/b.json": "installed", "seccomp/theirs": "installed"}
    agent.until_labels(both)
    # Another field manager applies the same value, so the label stays after the agent stops
    # applying it.
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": agent.name, "labels": {f"seccomp.{DOMAIN}/b.json": "installed"}},
    }
    agent.cluster.kubectl(
        "apply", "--server-side", "--field-manager", "other", "-f", "-", stdin=body
    )
    agent.config_map({"a.json": profile()})
    agent.until(lambda: "label_pending" in agent.log_text())
    assert (agent.labels(), agent.files()) == (both, ["a.json", "b.json"])
    # The profile stays installed while the label exists.
    agent.cluster.kubectl("label", "node", agent.name, f"seccomp.{DOMAIN}/b.json-")
    agent.until(lambda: agent.files() == ["a.json"])
    assert agent.labels() == {**READY, "seccomp/theirs": "installed"}
    assert agent.cluster.labels(agent.name)["kept"] == "yes"


def test_a_node_that_is_created_again_is_labelled_with_its_own_token(agent):
    """The agent labels only the Node whose uid its token contains. Until the uid matches, a finding
    reports the other Node.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start()
    agent.until_labels(READY)
    agent.cluster.kubectl("delete", "node", agent.name)
    agent.until(lambda: "there is no Node of this name" in agent.log_text())
    agent.cluster.node(agent.name, BOOT_ID)
    agent.until(lambda: "is still bound to the previous Node" in agent.log_text())
    assert agent.labels() == {}
    agent.cluster.kubectl("-n", NAMESPACE, "delete", "pod", f"agent-{agent.name}", "--force")
    agent.stop()
    agent.kubeconfig = agent.cluster.write_kubeconfig(
        agent.name, agent.cluster.agent_token(agent.name)
    )
    agent.start()
    agent.until_labels(READY)


def test_a_node_of_another_machine_is_not_labelled(agent):
    """The agent labels a Node only if the Node has the boot ID of this kernel. The same name is not
    sufficient.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    (agent.root / "proc/sys/kernel/random/boot_id").write_text("another\n")
    agent.start()
    agent.until(lambda: "node_unknown" in agent.log_text())
    assert (agent.labels(), agent.files()) == ({}, ["a.json"])


def test_labels_survive_a_restart_and_a_kill(agent):
    """If all labels are correct, the agent sends no patch when it exits or starts."""
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start()
    agent.until_labels(READY)
    assert agent.stop() == 0
    version = agent.cluster.get(f"/api/v1/nodes/{agent.name}")["metadata"]["resourceVersion"]
    agent.start()
    agent.until(lambda: len(agent.lines("pass_finished")) >= 2)
    agent.stop(signal.SIGKILL)
    agent.start("--log-level", "debug")
    agent.until(lambda: len(agent.lines("pass_finished")) >= 3)
    after = agent.cluster.get(f"/api/v1/nodes/{agent.name}")["metadata"]["resourceVersion"]
    assert (agent.labels(), after) == (READY, version)


def test_label_keys_of_previous_releases_are_removed(agent):
    """The first apply removes label keys without a namespace, and label keys with the short
    suffix.
    """
    agent.node({"kept": "yes"})
    previous = {
        f"set.{DOMAIN}/web": "ready",
        f"seccomp.{DOMAIN}/a.json": "installed",
        f"apparmor.{DOMAIN}/web.server-f16d7544": "enforce",
    }
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": agent.name, "labels": previous},
    }
    agent.cluster.kubectl(
        "apply", "--server-side", "--field-manager", "profile-loader", "-f", "-", stdin=body
    )
    agent.config_map({"a.json": profile()})
    agent.start()
    agent.until_labels(READY)
    assert f"set.{DOMAIN}/{agent.name}__web" in agent.cluster.labels(agent.name)
    assert agent.cluster.labels(agent.name)["kept"] == "yes"


def test_a_rejected_configmap_has_no_label_of_the_same_name(agent):
    """If two namespaces contain a ConfigMap with the same name, the agent rejects the second
    ConfigMap.
    """
    agent.node()
    other = f"{agent.name[:50]}-b"
    agent.cluster.kubectl("create", "namespace", other)
    agent.config_map({"a.json": profile()})
    refused = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "web", "namespace": other},
        "data": {"b.json": "{"},
    }
    agent.cluster.apply(refused)
    agent.start("--source", f"configmap:{other}/web")
    agent.until(lambda: "profile_rejected" in agent.log_text() or "not_json" in agent.log_text())
    agent.until_labels(READY)
    accepted = {**refused, "data": {"b.json": profile()}}
    agent.cluster.apply(accepted)
    agent.until_labels({**READY, "seccomp/b.json": "installed", f"set/{other}__web": "ready"})


def test_digest_labels_contain_the_digest_of_the_source(agent):
    """The label value is the first 12 digits of the SHA-256 digest of the key's content."""
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start("--label-digest")
    digest = hashlib.sha256(profile().encode()).hexdigest()
    agent.until_labels({**READY, "seccomp-digest/a.json": digest[:12]})


def test_unlabel_removes_only_the_agents_labels(agent):
    """The command `unlabel`, which an uninstallation can run, removes only the labels of
    the agent.
    """
    agent.node({"kept": "yes"})
    agent.config_map({"a.json": profile()})
    agent.start()
    agent.until_labels(READY)
    agent.stop()
    command = [
        sys.executable, "-m", "agent", "unlabel",
        "--node-name", agent.name, "--kubeconfig", str(agent.kubeconfig),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    assert agent.labels() == {}
    assert agent.cluster.labels(agent.name)["kept"] == "yes"


def test_unlabel_does_not_create_a_missing_node(agent):
    """The command `unlabel` reports a misspelt Node name."""
    agent.node()
    command = [
        sys.executable, "-m", "agent", "unlabel",
        "--node-name", "misspelt", "--kubeconfig", str(agent.kubeconfig),
    ]  # fmt: skip
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (3, "")
    assert 'nodes "misspelt" not found' in result.stderr
    assert "misspelt" not in agent.cluster.kubectl("get", "nodes", "-o", "name")


def test_the_startup_taint_is_removed_once_accepted_profiles_are_installed(agent):
    """The agent removes only the startup taint. A rejected key does not prevent the removal."""
    agent.node()
    taints = [
        {"key": "example.org/profiles", "effect": "NoSchedule"},
        {"key": "keep", "effect": "NoSchedule"},
        {"key": "example.org/profiles", "effect": "NoExecute"},
    ]
    agent.cluster.kubectl(
        "patch", "node", agent.name, "-p", json.dumps({"spec": {"taints": taints}})
    )
    agent.start("--startup-taint", "example.org/profiles")
    agent.until(lambda: "source_missing" in agent.log_text())

    def keys():
        spec = agent.cluster.get(f"/api/v1/nodes/{agent.name}")["spec"]
        return [item["key"] for item in spec.get("taints", [])]

    assert "example.org/profiles" in keys()
    agent.config_map({"a.json": profile(), "bad.json": "{"})
    agent.until(lambda: "example.org/profiles" not in keys())
    assert "keep" in keys()
    assert agent.labels() == {**NODE_LABELS, "seccomp/a.json": "installed"}


STARTUP = "example.org/profiles"


def taint(agent):
    """Add a taint to the Node, as a cloud provider does for a new Node."""
    taints = [{"key": STARTUP, "effect": "NoSchedule"}]
    agent.cluster.kubectl(
        "patch", "node", agent.name, "-p", json.dumps({"spec": {"taints": taints}})
    )


def is_tainted(agent):
    spec = agent.cluster.get(f"/api/v1/nodes/{agent.name}")["spec"]
    return STARTUP in [item["key"] for item in spec.get("taints", [])]


def test_the_startup_taint_stays_for_an_empty_set_that_was_never_installed(agent):
    """The startup taint stays while a ConfigMap is empty, unless the annotation allow-empty
    is set.
    """
    agent.node()
    taint(agent)
    agent.config_map({})
    agent.config_map({}, "second", labels={"use": "second"})
    agent.start("--startup-taint", STARTUP, "--source", f"configmaps:{agent.name}?use=second")
    agent.until(lambda: agent.log_text().count("source_emptied") >= 2)
    agent.until_labels(NODE_LABELS)
    assert is_tainted(agent)
    agent.config_map({"a.json": profile()})
    agent.until_labels(READY)
    assert is_tainted(agent)
    agent.config_map(
        {}, "second", labels={"use": "second"}, annotations={f"{DOMAIN}/allow-empty": "true"}
    )
    agent.until(lambda: not is_tainted(agent))


def test_an_invalid_node_selector_does_not_keep_the_startup_taint(agent):
    """An invalid node selector affects only its own profile set, so the startup taint is
    removed.
    """
    agent.node()
    taint(agent)
    chosen = {
        "labels": {"use": "profiles"},
        "annotations": {f"{DOMAIN}/node-selector": "pool in b"},
    }
    agent.config_map({"b.json": profile()}, "invalid", **chosen)
    agent.config_map({"a.json": profile()}, labels={"use": "profiles"})
    agent.start("--startup-taint", STARTUP, source=f"configmaps:{agent.name}?use=profiles")
    agent.until(lambda: not is_tainted(agent))
    agent.until_labels(READY)
    assert "source_unreadable" in agent.log_text()


# --- limits, and a store that loses data ----------------------------------------------------------


def large():
    """Return a seccomp profile of nearly 1 MiB, which just fits into a ConfigMap."""
    rules = [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "comment": "x" * 1000} for _ in range(970)
    ]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def test_many_full_configmaps_are_rejected_separately(agent):
    """Of many full ConfigMaps, the agent reads only the oldest ConfigMaps. The memory of the agent
    stays below the limit of the pod.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start("--source", f"configmaps:{agent.name}?use=many")
    agent.until_labels(READY)
    agent.config_map({"first.json": profile()}, "first", labels={"use": "many"})
    agent.until_labels({**READY, "seccomp/first.json": "installed", "set/first": "ready"})
    for number in range(32):
        agent.config_map({f"n{number}.json": large()}, f"n{number:02}", labels={"use": "many"})
    agent.until(lambda: agent.log_text().count("source_over_limit") >= 15, 120)
    agent.stop()
    agent.start("--source", f"configmaps:{agent.name}?use=many")
    agent.until(lambda: len(agent.lines("pass_finished")) >= 1, 120)
    agent.config_map({"a.json": profile(7), "b.json": profile()})
    agent.until(lambda: "seccomp/b.json" in agent.labels(), 120)
    sets = sorted(label for label in agent.labels() if label.startswith("set/"))
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    print(f"32 ConfigMaps of 1 MiB: {len(sets)} sets are ready, peak {peak:.0f} MiB")
    assert sets[:2] == ["set/first", "set/n00"]
    assert 14 <= len(sets) <= 19
    assert "sent no usable response" not in agent.log_text()
    assert peak < 128
    for number in range(16):
        agent.cluster.kubectl("-n", agent.name, "delete", "configmap", f"n{number:02}")
    agent.until(lambda: "set/n31" in agent.labels(), 180)


def test_labels_and_keys_follow_a_restored_store(agent):
    """After etcd has been restored from a backup, the agent installs the restored keys, and the
    labels describe the restored state.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    agent.start("--prune", "never")
    agent.until_labels(READY)
    agent.until(lambda: len(agent.lines("pass_finished")) >= 1)
    agent.cluster.save()
    agent.until(lambda: agent.cluster.labels(agent.name), 60)
    for number in range(20):  # The test makes many changes after the backup of the store.
        agent.config_map({"a.json": profile(), "b.json": profile(number)})
    agent.until_labels({**READY, "seccomp/b.json": "installed"}, 75)
    lasted = time.monotonic() + 11.0  # This pause is longer than reflector.STABLE_SECONDS.
    agent.until(lambda: time.monotonic() > lasted)
    agent.cluster.restore()
    agent.until_labels(READY, 30)
    agent.config_map({"a.json": profile(), "c.json": profile()})
    agent.until_labels({**READY, "seccomp/c.json": "installed"}, 30)


def test_a_profile_that_a_pod_references_is_in_use(agent):
    """If --pod-aware is set, the agent does not remove a file while a pod on this Node references
    it.
    """
    agent.node()
    agent.config_map({"a.json": profile(), "b.json": profile()})
    agent.start("--pod-aware", "--removal-grace", "1s")
    agent.until_labels({**READY, "seccomp/b.json": "installed"})
    used = {"type": "Localhost", "localhostProfile": "b.json"}
    agent.cluster.kubectl("-n", agent.name, "create", "serviceaccount", "default", check=False)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "user", "namespace": agent.name},
        "spec": {
            "nodeName": agent.name,
            "containers": [
                {"name": "c", "image": "i", "securityContext": {"seccompProfile": used}}
            ],
        },
    }
    agent.cluster.kubectl("create", "-f", "-", stdin=pod)
    agent.config_map({})
    agent.config_map({"c.json": profile()})
    expected = {**NODE_LABELS, "seccomp/c.json": "installed", "set/web": "ready"}
    agent.until_labels(expected)
    agent.until(lambda: agent.files() == ["b.json", "c.json"])
    agent.until(lambda: f"{agent.name}/user" in agent.log_text())
    agent.cluster.kubectl("-n", agent.name, "delete", "pod", "user", "--force")
    agent.until(lambda: agent.files() == ["c.json"])


# --- one pass, for init jobs ---------------------------------------------------------------------


def test_oneshot_sets_labels_and_leaves_a_removal_to_a_later_run(agent):
    """The first run removes the label of a file that is in no source any more, and a later run
    removes the file.
    """
    agent.node()
    agent.config_map({"a.json": profile(), "b.json": profile()})
    assert agent.once("--prune", "always").returncode == 0
    assert agent.labels() == {**READY, "seccomp/b.json": "installed"}
    agent.config_map({"a.json": profile()})
    result = agent.once("--prune", "always")
    assert (result.returncode, agent.labels(), agent.files()) == (0, READY, ["a.json", "b.json"])
    assert agent.once("--prune", "always").returncode == 0
    assert (agent.labels(), agent.files()) == (READY, ["a.json"])


def test_oneshot_without_an_api_server_restores_profiles(agent):
    """If the API server is unreachable, one pass restores the profiles in the ledger, and the exit
    status is not 0.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    assert agent.once().returncode == 0
    (agent.root / "var/lib/kubelet/seccomp/a.json").unlink()
    config = json.loads(agent.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    agent.kubeconfig.write_text(json.dumps(config))
    result = agent.once()
    report = json.loads(result.stdout)
    assert (result.returncode, agent.files()) == (3, ["a.json"])
    assert [problem["code"] for problem in report["problems"]] == [
        "source_unreadable",
        "node_unreachable",
    ]


# --- an API server that is unreachable, denies requests, or is slow -------------------------------


def through(agent, proxy):
    """Make the agent connect through a proxy."""
    config = json.loads(Path(agent.kubeconfig).read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
    agent.kubeconfig = agent.root.parent / "through.kubeconfig"
    agent.kubeconfig.write_text(json.dumps(config))


def test_an_outage_changes_nothing_and_missing_files_are_restored(agent):
    """During an outage, labels and files stay, and missing files are restored. Changes take effect
    after the outage.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    with Proxy(agent.cluster.port) as proxy:
        through(agent, proxy)
        agent.start("--resync", "2s")
        agent.until_labels(READY)
        proxy.refuse()
        begin = time.monotonic()
        agent.until(lambda: "source_unreadable" in agent.log_text(), 30)
        (agent.root / "var/lib/kubelet/seccomp/a.json").unlink()
        agent.until(lambda: agent.files() == ["a.json"])
        agent.config_map({"a.json": profile(), "b.json": profile()})
        agent.until(lambda: time.monotonic() - begin > 30.0, 40)
        assert (agent.labels(), agent.files()) == (READY, ["a.json"])
        proxy.forward()
        agent.until_labels({**READY, "seccomp/b.json": "installed"}, 75)


def test_a_start_without_an_api_server_restores_the_last_good_profiles(agent):
    """If the node reboots while the API server is down, the agent installs the profiles before the
    API server responds.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    with Proxy(agent.cluster.port) as proxy:
        through(agent, proxy)
        agent.start()
        agent.until_labels(READY)
        agent.stop()
        proxy.refuse()
        (agent.root / "var/lib/kubelet/seccomp/a.json").unlink()
        agent.start()
        agent.until(lambda: agent.files() == ["a.json"])
        proxy.forward()
        agent.until(lambda: "problem_over" in agent.log_text(), 75)
        assert agent.labels() == READY


def test_a_slow_api_server_delays_no_repair(agent):
    """Even if each response takes 15 s, a removed file is restored immediately."""
    agent.node()
    agent.config_map({"a.json": profile()})
    with Proxy(agent.cluster.port) as proxy:
        through(agent, proxy)
        agent.start("--resync", "1s")
        agent.until_labels(READY)
        proxy.delay(15.0)
        agent.cluster.kubectl("label", "node", agent.name, f"seccomp.{DOMAIN}/a.json-")
        (agent.root / "var/lib/kubelet/seccomp/a.json").unlink()
        assert agent.seconds_until(lambda: agent.files() == ["a.json"]) < 10.0
        begun = agent.process
        assert agent.stop() == 0
        assert begun.returncode == 0


def test_a_forbidden_configmap_is_reported_and_removes_nothing(agent):
    """If the agent may not read a ConfigMap, the agent reports it as unreadable, and removes no
    profile.
    """
    agent.node()
    agent.config_map({"a.json": profile()})
    assert agent.once().returncode == 0
    agent.kubeconfig = agent.cluster.write_kubeconfig(
        f"{agent.name}-weak", agent.cluster.agent_token(agent.name, account="weak", pod="weak")
    )
    result = agent.once()
    reported = {
        problem["code"]: problem["what"] for problem in json.loads(result.stdout)["problems"]
    }
    assert (result.returncode, agent.files(), agent.labels()) == (3, ["a.json"], READY)
    assert sorted(reported) == ["node_unreachable", "source_unreadable"]
    assert "the API server denied the read request: 403 Forbidden" in reported["source_unreadable"]


def test_an_idle_agent_has_few_connections_and_sends_no_request(agent):
    """An idle agent has two watches, and sends no request within ten seconds."""
    agent.node()
    agent.config_map({"a.json": profile()})
    with Proxy(agent.cluster.port) as proxy:
        through(agent, proxy)
        agent.start("--resync", "1s")
        agent.until_labels(READY)
        agent.until(lambda: len(agent.lines("pass_finished")) >= 1)
        agent.until(lambda: agent.events("ProfileLoaded"))
        settled = proxy.sent()
        agent.until(lambda: proxy.idle() > 10.0, 40)
        assert proxy.sent() - settled < 4096
        assert len(os.listdir(f"/proc/{agent.process.pid}/fd")) < 32
        assert proxy.open() <= 4


# --- in a pod -------------------------------------------------------------------------------------


def test_in_a_pod_the_token_is_read_again(agent):
    """If the kubelet replaces the token file of a pod, the agent uses the new token."""
    agent.node()
    agent.config_map({"a.json": profile()})
    mounted = agent.root.parent / "serviceaccount"
    mounted.mkdir()
    (mounted / "ca.crt").write_bytes(agent.cluster.ca.read_bytes())
    (mounted / "token").write_text(agent.cluster.agent_token(agent.name))
    place = "/run/secrets/kubernetes.io/serviceaccount"
    # The agent has a mount namespace of its own, so that this directory does not appear on the
    # machine.
    script = (
        f'mount -t tmpfs none /run && mkdir -p {place} && mount --bind "$0" {place} && exec "$@"'
    )
    command = agent.command("--log-level", "debug")
    del command[command.index("--kubeconfig") : command.index("--kubeconfig") + 2]
    environ = {
        **os.environ,
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(agent.cluster.port),
    }
    with agent.log.open("ab") as log:
        agent.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, str(mounted), *command], stderr=log, env=environ
        )
    agent.until_labels(READY)
    begin = time.monotonic()
    (mounted / "token").write_text(agent.cluster.agent_token(agent.name, pod="next"))
    agent.cluster.kubectl("-n", NAMESPACE, "delete", "pod", f"agent-{agent.name}", "--force")
    key = f"seccomp.{DOMAIN}/a.json"
    # The agent reads the file with the token again after a minute (agent.kube.credentials).
    agent.until(lambda: time.monotonic() - begin > 61.0, 70)
    agent.cluster.kubectl("label", "node", agent.name, f"{key}-")
    agent.until_labels(READY, 75)


def test_the_agent_reports_a_missing_configuration(agent):
    """Outside a pod and without a kubeconfig, the agent prints one line without a traceback, and
    exits with status 2.
    """
    result = subprocess.run(
        [sys.executable, "-m", "agent", "--source", "configmap:a/b", "--oneshot"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "profile-loader: this process does not run in a pod of a cluster"
    )
    assert len(result.stderr.splitlines()) == 1
