"""Tests of attacks on the agent's memory through ConfigMaps, with a real API server.

If the machine can create a control group, the agent has the memory limit from the manifest. The
tests always measure the peak memory use of the agent.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.cluster import Cluster, free_port
from tests.system.guest import pace
from tests.system.memory import joining, manifest_limit, memory_group

NODE, NAMESPACE = "node-limits", "limits"
BOOT_ID = "11111111-2222-3333-4444-555555555555"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
SELECTED = {"profiles": "true"}
# These values equal the limits of the agent. If a limit of the agent changes, a test fails.
KEYS = 3000
LEDGER_ENTRIES = 6000
MIN_PARSER_BYTES = 64 << 20


def seccomp(call="chmod"):
    """Return a seccomp profile that denies one system call."""
    rule = {"names": [call], "action": "SCMP_ACT_ERRNO"}
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})


@pytest.fixture
def cluster():
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def agent(cluster, tmp_path):
    agent = Agent(cluster, tmp_path)
    yield agent
    agent.stop()


class Agent:
    """One agent that selects ConfigMaps by label, with its Node and its host root."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.root, self.log = folder / "root", folder / "agent.log"
        boot = self.root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text(BOOT_ID + "\n")
        self.process, self.group, self.end = None, None, contextlib.ExitStack()
        self.port = free_port()
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.node(NODE, BOOT_ID)
        self.kubeconfig = cluster.write_kubeconfig("agent", "admin")

    def start(self, *more, is_alone=True):
        """Start the agent. The memory limit applies only to an agent that starts no parser.

        In a control group of version 1, the kernel would kill the largest process.
        """
        group = self.group = (
            self.end.enter_context(memory_group(manifest_limit())) if is_alone else None
        )
        command = [
            *joining(group),
            sys.executable, "-m", "agent",
            "--source", f"configmaps:{NAMESPACE}?profiles=true",
            "--node-name", NODE,
            "--kubeconfig", str(self.kubeconfig),
            "--host-root", str(self.root),
            "--log-format", "json",
            "--http-address", f"127.0.0.1:{self.port}",
            *(more or ("--kinds", "seccomp")),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            # The image sets the same variable.
            environ = {**os.environ, "MALLOC_ARENA_MAX": "2"}
            self.process = subprocess.Popen(command, stderr=log, env=environ)

    def peak(self):
        """Return the peak of the agent's resident memory in bytes. Fail if the agent is not
        running.
        """
        assert self.process.poll() is None, self.log_text()
        with Path(f"/proc/{self.process.pid}/status").open() as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(pace.scaled(60))
            self.process = None
        self.end.close()

    def log_text(self):
        return self.log.read_text()[-3000:]

    def has_file(self, name, call="chmod"):
        path = self.root / "var/lib/kubelet/seccomp" / name
        with contextlib.suppress(FileNotFoundError):
            return call in path.read_text()
        return False

    def label(self, name):
        return self.cluster.labels(NODE).get(f"seccomp.{DOMAIN}/{name}")

    def entries(self):
        folder = self.root / "var/lib/profile-loader/entries"
        return len(os.listdir(folder)) if folder.exists() else 0

    def until(self, condition, seconds=60.0):
        def checked():
            assert self.process.poll() is None, f"the agent ended: {self.log_text()}"
            return condition()

        return pace.until(checked, self.log_text, seconds, interval=0.2)

    def until_reported(self, code):
        """Wait until the newest lines of the log contain the code of a finding."""
        self.until(lambda: code in self.log.read_text())


def send(cluster, method, path, body=None):
    """Send a request to the API server with the rights of an administrator."""
    context = ssl.create_default_context(cafile=str(cluster.ca))
    connection = http.client.HTTPSConnection("127.0.0.1", cluster.port, context=context)
    with contextlib.closing(connection):
        headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
        connection.request(method, path, body=json.dumps(body), headers=headers)
        response = connection.getresponse()
        text = response.read()
    assert response.status < 300, text[:1000]


def config_map(cluster, name, data, method="POST", annotations=None):
    """Create or replace a ConfigMap that the agent selects."""
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": SELECTED,
        "annotations": annotations or {},
    }
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    send(cluster, method, path if method == "POST" else f"{path}/{name}", body)


def delete(cluster, name):
    """Delete a ConfigMap."""
    send(cluster, "DELETE", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{name}")


def is_kept(agent, call="chmod"):
    return agent.has_file("web.json", call) and agent.label("web.json") == "installed"


def test_hundreds_of_thousands_of_keys_do_not_exceed_the_memory_limit(cluster, agent):
    """With seven ConfigMaps of 100,000 keys, the agent starts and installs newer profiles."""
    config_map(cluster, "web", {"web.json": seccomp()})
    for number in range(7):
        config_map(cluster, f"a{number}", {f"k{item:06}": "" for item in range(100_000)})
    # This name also sorts before the later names, because creation times are in whole seconds.
    config_map(cluster, "a-late", {"late.json": seccomp()})
    for number in range(12):
        config_map(cluster, f"b{number}", {f"k{item:04}.json": "" for item in range(4900)})
    peaks = []
    for call in ("chmod", "mount"):
        config_map(cluster, "web", {"web.json": seccomp(call)}, method="PUT")
        agent.start()
        agent.until(lambda call=call: is_kept(agent, call) and agent.has_file("late.json"))
        agent.until_reported("limit_exceeded")
        peaks.append(agent.peak())
        agent.stop()
    print("peaks in MiB:", [peak >> 20 for peak in peaks])
    assert max(peaks) < manifest_limit()


def test_older_config_maps_that_grow_do_not_displace_an_installed_one(cluster, agent):
    """Larger and older ConfigMaps do not displace an installed ConfigMap, even if it was created
    again.
    """
    older = [f"older-{number:02}" for number in range(20)]
    for name in older:
        config_map(cluster, name, {f"{name}.json": seccomp()})
    config_map(cluster, "web", {"web.json": seccomp()})
    agent.start()
    agent.until(lambda: is_kept(agent))
    for name in older:
        data = {f"{name}.json": seccomp(), "big.json": " " * 1_000_000}
        config_map(cluster, name, data, method="PUT")
    agent.until_reported("source_over_limit")
    config_map(cluster, "web", {"web.json": seccomp("mount")}, method="PUT")
    agent.until(lambda: is_kept(agent, "mount"))
    agent.stop()
    agent.start()
    config_map(cluster, "web", {"web.json": seccomp("reboot")}, method="PUT")
    agent.until(lambda: is_kept(agent, "reboot"))
    delete(cluster, "web")
    config_map(cluster, "web", {"web.json": seccomp("chroot")})
    agent.until(lambda: is_kept(agent, "chroot"))


def test_the_api_server_sets_the_creation_time(cluster, agent):
    """The API server sets the creation time, so a ConfigMap cannot pretend to be older."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    forged = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "forged", "creationTimestamp": "2000-01-01T00:00:00Z"},
    }

    def created():
        return cluster.get(f"{path}/forged")["metadata"]["creationTimestamp"]

    send(cluster, "POST", path, forged)
    first = created()
    send(cluster, "PUT", f"{path}/forged", forged)
    assert first > "2026"
    assert created() == first


def features(agent):
    """Create the features of an AppArmor kernel for the agent, from a file of the parser.

    The file contains `name {content}` at each level. The kernel represents each name as a directory
    or a file in securityfs.
    """
    words = Path("/etc/apparmor.d/abi/3.0").read_text().replace("{", " { ").replace("}", " } ")
    folder = agent.root / "sys/kernel/security/apparmor/features"
    pending = []
    for word in words.split():
        if word == "{":
            folder = folder / pending.pop()
        elif word == "}":
            if not folder.is_dir():
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.write_text(" ".join(pending) + "\n")
            pending, folder = [], folder.parent
        else:
            pending.append(word)
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
    for name in ("profiles", ".load", ".replace", ".remove"):
        (folder.parent / name).touch()


def test_many_compiled_profiles_do_not_exceed_the_memory_limit(cluster, agent):
    """With a ConfigMap of 55,000 compiled AppArmor profiles, the agent starts and still installs a
    seccomp file.
    """
    features(agent)
    config_map(cluster, "web", {"web.json": seccomp()})
    text = {
        f"k{key:02}.profile": "\n".join(f"profile p{key:02}{item:03} {{}}" for item in range(1000))
        for key in range(55)
    }
    config_map(cluster, "a", text)
    peaks = []
    for call in ("chmod", "mount", "reboot"):
        config_map(cluster, "web", {"web.json": seccomp(call)}, method="PUT")
        agent.start("--kinds", "apparmor,seccomp", is_alone=False)
        agent.until(lambda call=call: is_kept(agent, call))
        agent.until_reported("limit_exceeded")
        peaks.append(agent.peak())
        agent.stop()
    print("peaks in MiB:", [peak >> 20 for peak in peaks])
    assert max(peaks) < manifest_limit()


def test_deleted_config_maps_do_not_fill_the_memory(cluster, agent):
    """The number of ledger entries for deleted ConfigMaps is limited, so that the agent can always
    start.
    """
    config_map(cluster, "web", {"web.json": seccomp()})
    agent.start()
    agent.until(lambda: is_kept(agent))
    for number in range(4):
        keys = {f"r{number}-{item:04}.json": seccomp() for item in range(4900)}
        config_map(cluster, f"round-{number}", keys)
        expected = min(1 + (number + 1) * (KEYS - 1), LEDGER_ENTRIES)
        agent.until(lambda expected=expected: agent.entries() >= expected, 240)
        delete(cluster, f"round-{number}")
    peaks = [agent.peak()]
    for call in ("mount", "reboot"):
        agent.stop()
        agent.start()
        config_map(cluster, "web", {"web.json": seccomp(call)}, method="PUT")
        agent.until(lambda call=call: is_kept(agent, call), 120)
        peaks.append(agent.peak())
    print("peaks in MiB:", [peak >> 20 for peak in peaks], "entries:", agent.entries())
    assert agent.entries() == LEDGER_ENTRIES
    assert max(peaks) < manifest_limit()
    free_the_ledger(cluster, agent)


def free_the_ledger(cluster, agent):
    """Remove the profiles of the deleted ConfigMaps as the runbook describes, and install a new
    profile.
    """
    config_map(cluster, "late", {"late.json": seccomp()})
    agent.until_reported("the ledger has 6000 entries")
    assert not agent.has_file("late.json")
    agent.stop()
    agent.start("--kinds", "seccomp", "--prune", "always", "--removal-grace", "1s")
    for number in range(4):
        config_map(cluster, f"round-{number}", {}, annotations={f"{DOMAIN}/allow-empty": "true"})
    agent.until(lambda: agent.entries() == 2 and agent.has_file("late.json"), 240)
    for number in range(4):
        delete(cluster, f"round-{number}")
    agent.until(lambda: agent.label("late.json") == "installed")
    assert is_kept(agent, "reboot")
    assert sorted(os.listdir(agent.root / "var/lib/kubelet/seccomp")) == ["late.json", "web.json"]


# seccomp keys of 3 KiB each, which reach the limit of 3,000 keys together with the AppArmor keys
FULL_KEYS = 2600
FULL_TEXTS = 400  # AppArmor keys that compile to about 30 KiB each.
# One text whose compilation needs more memory than the parser may use.
PAIRS = zip("abcdefghijklmn", "defghijklmnopq", strict=True)
RULES = "".join(f"  /**/{a}*b*/**{b}* r,\n" for a, b in PAIRS)
HUNGRY = f"profile hungry {{\n{3 * RULES}}}\n"


def full_config_maps(version):
    """Return ConfigMaps that together reach the limits for keys, names, bytes and findings."""
    padding = " " * 3500
    texts = {
        f"t{version}-{number:03}.profile": (
            f"profile t{version}-{number:03} {{\n"
            + "".join(f"  /{item:02}{number}/**/*{item}*/** rw,\n" for item in range(12))
            + "}\n"
            + "#" * 12_000
        )
        for number in range(FULL_TEXTS)
    }
    keys = {f"s{version}-{number:04}.json": seccomp() + padding for number in range(FULL_KEYS)}
    items = [*texts.items(), *keys.items()]
    return [dict(items[begin::20]) for begin in range(20)]


def test_all_limits_together_do_not_exceed_the_memory_limit(cluster, agent):
    """The agent stays below its memory limit while keys, names, bytes, the ledger, findings and
    unread pages reach their limits together.

    As in the container, the parser runs in the control group of the agent.
    """
    features(agent)
    config_map(cluster, "web", {"web.json": seccomp()})
    peaks = []

    def measured():
        peaks.append((agent.peak(), usage_peak(agent)))
        print("peaks in MiB (agent, group):", [(item >> 20, all_ >> 20) for item, all_ in peaks])

    agent.start("--kinds", "apparmor,seccomp")
    agent.until(lambda: is_kept(agent))
    config_map(cluster, "hungry", {"hungry.profile": HUNGRY})
    for version in range(2):
        for number, data in enumerate(full_config_maps(version)):
            config_map(cluster, f"full-{version}-{number:02}", data)
        config_map(cluster, f"over-{version}", {f"o{item}.json": "{" for item in range(4900)})
        agent.until(lambda version=version: agent.entries() >= 1 + (version + 1) * 2500, 240)
        measured()
        if version == 0:
            for number in range(len(full_config_maps(version))):
                delete(cluster, f"full-{version}-{number:02}")
            delete(cluster, f"over-{version}")
    agent.until_reported("limit_exceeded")
    for call in ("mount", "reboot"):
        with contextlib.ExitStack() as stack:
            config_map(cluster, "web", {"web.json": seccomp(call)}, method="PUT")
            for number in range(32):
                with contextlib.suppress(OSError):
                    path = ("/", "/metrics")[number % 2]
                    stack.enter_context(contextlib.closing(unread(agent.port, path)))
            agent.until(lambda call=call: is_kept(agent, call), 240)
            measured()
        agent.stop()
        agent.start("--kinds", "apparmor,seccomp")
    # The parser also needs a part of the memory.
    assert max(item for item, _ in peaks) < manifest_limit() - MIN_PARSER_BYTES


def usage_peak(agent):
    """Return the peak memory of the agent's control group, or 0 without a control group."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        path = Path(agent.group or "/nonexistent") / name
        if path.exists():
            return int(path.read_text())
    return 0


def unread(port, path):
    """Request a page over a new connection, and never read the response."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return connection
