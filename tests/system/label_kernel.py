"""Measures how a change reaches the kernel and the label of the Node.

A real API server with the base manifests runs on this machine. The agent runs in a virtual machine
with AppArmor, with the options of the DaemonSet and with digest labels. The test changes a
ConfigMap here, and the guest observes its kernel. Right before each change, the test compares the
clocks of both machines. The result is an upper bound for the time of each kernel event on the clock
of this machine.
"""

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.system import busy, vm
from tests.system.cluster import NAMESPACE, NODE_INFO, Cluster
from tests.system.proxy import Proxy

ROOT = Path(__file__).parents[2] / "manifests"
GUEST = Path(__file__).parent / "guest"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
NODE = "node-a"  # the Node with a token in tests/system/cluster.py
NAME = "changed"
CHANGES = int(os.environ.get("CHANGES", "20"))
RESTORES = 5  # the number of restores without an API server
LIMIT_SECONDS = 600
# The first start is slow, because an emulated guest boots a kernel and compiles every Python module
# to bytecode.
FIRST_SECONDS = 1500
ABSENT = ["", ""]


def text(number):
    """Return a numbered version of the profile. Consecutive versions have different modes."""
    flags = "flags=(complain) " if number % 2 else ""
    return f"profile {NAME} {flags}{{\n  file,\n  signal,\n  deny /etc/secret{number} r,\n}}\n"


def expected(number):
    """Return the expected labels while the given version of the profile is installed."""
    return {
        f"apparmor.{DOMAIN}/{NAME}": "complain" if number % 2 else "enforce",
        f"apparmor-digest.{DOMAIN}/{NAME}": hashlib.sha256(text(number).encode()).hexdigest()[:12],
    }


@dataclass
class Measurements:
    """The measured durations, each from the response to a change, and the observed states."""

    kernel: list[float] = field(default_factory=list)
    label: list[float] = field(default_factory=list)
    # the duration of the parser run for each change, in seconds
    compile: list[float] = field(default_factory=list)
    # the observed states of the kernel, in order
    kernels: list[list[str]] = field(default_factory=list)
    # the observed states of the labels, in order
    labels: list[dict[str, str]] = field(default_factory=list)
    versions: list[list[str]] = field(default_factory=list)  # the hash and the mode of each version
    restored: list[float] = field(default_factory=list)
    away: list[dict[str, str]] = field(default_factory=list)  # the labels after each restore
    started: float = 0.0
    caught_up: float = 0.0
    shipped: dict[str, str] = field(default_factory=dict)
    # The fraction of the time during which a task waited for a CPU, with and without the API
    # server.
    waiting_fractions: float = 0.0
    away_short: float = 0.0


class Api:
    """Changes the ConfigMap and watches the Node, with the rights of an administrator."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.context = ssl.create_default_context(cafile=str(cluster.ca))
        self.headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
        self.asking = self._connection()
        self.watching, self.events = None, None
        self.labels, self.history = {}, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asking.close()
        self._unwatch()

    def _unwatch(self):
        if self.watching is not None:
            self.watching.close()
        if self.events is not None:
            self.events.close()

    def _connection(self):
        return http.client.HTTPSConnection(
            "127.0.0.1", self.cluster.port, timeout=FIRST_SECONDS, context=self.context
        )

    def change(self, number):
        """Write a version of the profile, and return the time of the response."""
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": "web",
                "namespace": NAMESPACE,
                "labels": {"profile-loader.io/profiles": "true"},
            },
            "data": {f"{NAME}.profile": text(number)},
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/web"
        self.asking.request("PUT", path, json.dumps(body), self.headers)
        answer = self.asking.getresponse()
        answer.read()
        at = time.monotonic()
        assert answer.status == 200, answer.status
        return at

    def watch(self):
        """Begin to watch the Node. The first event contains the current labels."""
        self._unwatch()
        self.watching = self._connection()
        path = f"/api/v1/nodes?watch=true&fieldSelector=metadata.name%3D{NODE}"
        self.watching.request("GET", path, headers=self.headers)
        self.events = self.watching.getresponse()
        assert self.events.status == 200, self.events.status

    def until(self, wanted):
        """Read events until one shows the Node with all of these labels, and return the time of
        this last event.
        """
        at = time.monotonic()
        while not wanted.items() <= self.labels.items():
            line = self.events.readline()
            at = time.monotonic()
            assert line, "the watch ended"
            self.labels = json.loads(line)["object"]["metadata"].get("labels", {})
            own = {key: self.labels[key] for key in expected(0) if key in self.labels}
            if [own] != self.history[-1:]:
                self.history.append(own)
        return at

    def now(self):
        """Return the current labels of the changed profile."""
        result = self.cluster.labels(NODE)
        return {key: result.get(key, "") for key in expected(0)}


class Guest:
    """The connection to tests/system/guest/cluster.py."""

    def __init__(self, connection):
        self.socket = connection
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(FIRST_SECONDS)
        self.lines = connection.makefile()
        self.reports = []  # the reports of the guest that no caller has read yet
        self.history = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            # When the guest receives this command, it sends its log and exits.
            self.socket.shutdown(socket.SHUT_RDWR)
        self.lines.close()
        self.socket.close()

    def ask(self, do, wanted, **more):
        """Send a request to the guest, and return the response."""
        self.socket.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
        while True:
            output = self._next_report()
            if wanted in output:
                return output[wanted]
            self.reports.append(output)

    def kernel(self, wanted):
        """Wait until the kernel has loaded a version, and return the time of the load on the
        guest's clock.
        """
        while True:
            output = self.reports.pop(0) if self.reports else self._next_report()
            if output["kernel"] == wanted:
                return output["at"]

    def offset(self):
        """Return an upper bound for the difference between the host's clock and the guest's
        clock.
        """
        result = []
        for _ in range(5):
            at = self.ask("clock", "clock")
            result.append(time.monotonic() - at)
        return min(result)

    def _next_report(self):
        line = self.lines.readline()
        if not line:
            raise ConnectionError("the guest has ended")
        output = json.loads(line)
        if "kernel" in output:
            self.history.append(output["kernel"])
        return output


def drive(guest, api, proxy):
    """Change the ConfigMap several times, and return the measurements."""
    seen = Measurements()
    number = CHANGES + 2
    texts = [text(item) for item in range(number)]
    contents = [content for content, _ in guest.ask("compile", "compiled", texts=texts)]
    assert len(set(contents)) == number
    modes = [expected(entry)[f"apparmor.{DOMAIN}/{NAME}"] for entry in range(number)]
    held = seen.versions = [list(one) for one in zip(contents, modes, strict=True)]
    api.labels, api.history = {}, []
    api.change(0)
    api.watch()
    api.until(expected(0))
    guest.kernel(held[0])
    since = busy.Since()
    for version in range(1, CHANGES + 1):
        # The test measures again while the agent waits, because the agent was still starting during
        # the first measurement.
        ((_, seconds),) = guest.ask("compile", "compiled", texts=[text(version)])
        seen.compile.append(seconds)
        offset = guest.offset()
        answered = api.change(version)
        reported = api.until(expected(version))
        kernel = guest.kernel(held[version]) + offset
        seen.kernel.append(kernel - answered)
        seen.label.append(reported - answered)
    seen.waiting_fractions = since.waiting_fraction()
    seen.shipped = {key: value for key, value in api.labels.items() if DOMAIN in key}
    outage(guest, api, proxy, seen)
    guest.ask("end", "ended")
    # After a second start of the guest, the Node still has the labels from the first guest.
    seen.labels = api.history[api.history.index(expected(0)) :]
    seen.kernels = guest.history[guest.history.index(held[0]) :]
    return seen


def outage(guest, api, proxy, seen):
    """Disconnect the agent from the API server, remove its profile several times, kill the agent,
    and reconnect it.
    """
    proxy.refuse()
    since = busy.Since()
    for _ in range(RESTORES):
        status, output = guest.ask("remove", "removed", text=text(CHANGES))
        assert status == 0, output
        start = guest.kernel(ABSENT)
        seen.restored.append(guest.kernel(seen.versions[CHANGES]) - start)
        seen.away.append(api.now())
    seen.away_short = since.waiting_fraction()
    api.change(CHANGES + 1)
    status, output = guest.ask("restart", "restarted", text=text(CHANGES))
    assert status == 0, output
    start = guest.kernel(ABSENT)
    # The agent can restore the profile only from the ledger, because it has no other source.
    seen.started = guest.kernel(seen.versions[CHANGES]) - start
    seen.away.append(api.now())
    proxy.forward()
    back = time.monotonic()
    api.watch()
    seen.caught_up = api.until(expected(CHANGES + 1)) - back
    guest.kernel(seen.versions[CHANGES + 1])


def arguments(objects):
    """Return the source of the agent's container and the arguments of this test."""
    (daemon,) = (item for item in objects if item["kind"] == "DaemonSet")
    (container,) = daemon["spec"]["template"]["spec"]["containers"]
    (source,) = (
        item["value"] for item in container["env"] if item["name"] == "PROFILE_LOADER_SOURCE"
    )
    return [f"--source={source.replace('$(POD_NAMESPACE)', NAMESPACE)}", "--label-digest"]


def files(cluster, proxy, listener, objects):
    """Return the files that the guest needs to act as this Node: settings, kubeconfig and CA
    certificate.
    """
    config = json.loads(cluster.write_kubeconfig("agent", cluster.agent_token(NODE)).read_text())
    config["clusters"][0]["cluster"] = {
        "server": f"https://{vm.HOST}:{proxy.port}",
        "certificate-authority": "ca.crt",
    }
    setting = {
        "node": NODE,
        "profile": NAME,
        "kubelet": "kubelet-a",
        "info": dict.fromkeys(NODE_INFO, "x"),
        "url": f"https://{vm.HOST}:{cluster.port}",
        "host": vm.HOST,
        "port": listener.getsockname()[1],
        "arguments": arguments(objects),
    }
    return {
        **{f"guest/{path.name}": path.read_bytes() for path in GUEST.glob("*.py")},
        "setting.json": json.dumps(setting).encode(),
        "agent.kubeconfig": json.dumps(config).encode(),
        "ca.crt": cluster.ca.read_bytes(),
    }


def measured():
    """Return the measurements of one run of the guest with the API server."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster())
        cluster.kubectl("create", "priorityclass", "unused", "--value", "1")
        created = cluster.kubectl("kustomize", ROOT / "base")
        cluster.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=created)
        cluster.node(NODE)
        proxy = stack.enter_context(Proxy(cluster.port))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(1.0)
        api = stack.enter_context(Api(cluster))
        cluster.kubectl("-n", NAMESPACE, "create", "configmap", "web")
        given = files(
            cluster, proxy, listener, [item for item in yaml.safe_load_all(created) if item]
        )
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        run = pool.submit(
            vm.run, given, "python3 guest/cluster.py", timeout_seconds=LIMIT_SECONDS, network=True
        )
        value, error = None, None
        while not run.done():  # If the guest stops unexpectedly, the test starts it again.
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                value, error = None, None
                with Guest(connection) as guest:
                    try:
                        value = drive(guest, api, proxy)
                    except (AssertionError, OSError) as failure:
                        error = failure
                    finally:
                        proxy.forward()
        result = run.result()
        log = result.output[-6000:]
        assert error is None, f"{error!r}\n{log}"
        assert result.status == 0, log
        assert value is not None, log
    print_distribution("policy in the kernel after the response to the change", value.kernel)
    print_distribution("digest on the label after the response to the change", value.label)
    print(f"during the test, a task waited for a CPU for {value.waiting_fractions:.0%} of the time")
    print_distribution("restored without an API server", value.restored)
    print(f"restored by a new agent without an API server: {value.started:.1f} s after the kill")
    print(f"from the API server's return until the label is correct: {value.caught_up:.2f} s")
    return value


def print_distribution(what, seconds):
    """Print the distribution of some values."""
    ms = [round(second * 1000) for second in sorted(seconds)]
    print(f"{what}: {len(ms)} times, median {ms[len(ms) // 2]} ms, from {ms[0]} to {ms[-1]} ms")
