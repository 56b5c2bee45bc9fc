"""Runs a real daemon process with its own host root.

The tests check only properties that an operator can observe: files, /metrics, probes, the log and
exit statuses.
"""

import contextlib
import http.client
import json
import resource
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.system.cluster import NAMESPACE, free_port, until
from tests.system.guest import pace

BOOT_ID = "11111111-2222-3333-4444-555555555555"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
BUG = "this is a bug"
APPLY = "application/apply-patch+yaml"
RIGHTS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "agent"},
        "rules": [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "watch", "patch"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {
                "apiGroups": ["events.k8s.io"],
                "resources": ["events"],
                "verbs": ["create", "patch"],
            },
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "agent"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "agent",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "profile-loader", "namespace": NAMESPACE}],
    },
]


# Every container runtime needs these system calls to start a container.
START_CALLS = """
arch_prctl capget capset chdir close execve exit_group fcntl fstat fstatfs futex getcwd getdents64
getppid newfstatat openat prctl read readlinkat rt_sigaction rt_sigprocmask setgid setgroups
setresgid setresuid setuid statx write
"""


def profile(number=1):
    """Return a valid seccomp profile that has the given number as its default errno."""
    rule = {"names": START_CALLS.split(), "action": "SCMP_ACT_ALLOW"}
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": number,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [rule],
        }
    )


def number_of(content):
    """Return the version number in an installed profile.

    The result is None if the file is missing, and -1 if the content is not a complete profile of
    the tests.
    """
    if content is None:
        return None
    try:
        return json.loads(content)["defaultErrnoRet"]
    except (ValueError, KeyError, TypeError):
        return -1


class Daemon:
    """The agent as a daemon for seccomp profiles, with a directory as its source."""

    def __init__(self, folder, *, root=None):
        self.root = root or folder / "root"
        self.source = folder / "source"
        self.source.mkdir()
        self.log = folder / "agent.log"
        self.seccomp = self.root / "var/lib/kubelet/seccomp"
        self.state = self.root / "var/lib/profile-loader"
        boot = self.root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True, exist_ok=True)
        boot.write_text(BOOT_ID + "\n")
        self.port = free_port()
        self.options = [f"--source=dir:{self.source}"]
        self.process = None

    # --- the process ------------------------------------------------------------------------------

    def command(self, *more):
        """Return the options of the command. An additional option replaces an option with the same
        name.
        """
        options = [
            f"--host-root={self.root}",
            "--kinds=seccomp",
            "--log-format=json",
            "--removal-grace=1s",
            f"--http-address=127.0.0.1:{self.port}",
        ]
        replaced = {option.partition("=")[0] for option in more}
        kept = [option for option in options if option.partition("=")[0] not in replaced]
        return [*self.options, *kept, *more]

    def start(self, *more, module="agent", before=(), limits=None):
        """Start the daemon.

        Args:
            more: additional options.
            module: the module to run.
            before: a command prefix, for example to run the interpreter inside a control group.
            limits: the limit of each resource.
        """

        def limit():
            for which, value in (limits or {}).items():
                resource.setrlimit(which, (value, value))

        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", module, *self.command(*more)],
                stdout=log,
                stderr=log,
                preexec_fn=limit if limits else None,  # noqa: PLW1509 - no thread holds a lock here
            )
        return self

    def stop(self, number=signal.SIGTERM):
        """Send a signal to the daemon. Return its exit status and the number of seconds until it
        ended.
        """
        begin = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(pace.scaled(30))
        self.process = None
        return status, time.monotonic() - begin

    def kill(self):
        """Kill the daemon if it is running."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def alive(self):
        """Return whether the daemon is running."""
        return self.process is not None and self.process.poll() is None

    # --- observation ------------------------------------------------------------------------------

    def get(self, path):
        """Return the status and the text of a page. Without a response, return (0, reason)."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=100) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def ready(self):
        """Return whether /readyz responds with success."""
        return self.get("/readyz")[0] == 200

    def metrics(self):
        """Return the values of all series, or an empty mapping if the daemon does not respond."""
        status, text = self.get("/metrics")
        lines = [line for line in text.splitlines() if not line.startswith("#")] if status else []
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name):
        """Return the value of a series, or None if it does not exist."""
        return self.metrics().get(f"profile_loader_{name}")

    def findings(self):
        """Return the number of findings of each code."""
        head = "profile_loader_problems{code="
        return {
            name.removeprefix(head).strip('"}'): int(value)
            for name, value in self.metrics().items()
            if name.startswith(head) and value
        }

    def converged(self):
        """Return whether the node was converged after the last pass."""
        return self.metric("converged") == 1.0

    def file(self, name):
        """Return the content of an installed file, or None if it is missing."""
        with contextlib.suppress(FileNotFoundError):
            return (self.seccomp / name).read_bytes()
        return None

    def number(self, name="a.json"):
        """Return the version number in an installed profile, or None if its file is missing."""
        return number_of(self.file(name))

    def files(self):
        """Return the version number of each profile in the seccomp directory, by path."""
        return {
            str(path.relative_to(self.seccomp)): self.number(path.relative_to(self.seccomp))
            for path in sorted(self.seccomp.rglob("*"))
            if path.is_file()
        }

    def entries(self):
        """Return the paths of the entries in the ledger."""
        return sorted((self.state / "entries").glob("*.json"))

    def log_text(self):
        """Return the whole log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self, event):
        """Return all log lines of one event."""
        lines = [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def usage(self):
        """Return the process's resident KiB, peak resident KiB, number of threads and number of
        file descriptors.
        """
        proc = Path(f"/proc/{self.process.pid}")
        fields = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        return {
            "rss": int(fields["VmRSS"].split()[0]),
            "peak": int(fields["VmHWM"].split()[0]),
            "threads": int(fields["Threads"]),
            "fds": len(list((proc / "fd").iterdir())),
        }

    # --- waiting ----------------------------------------------------------------------------------

    def until(self, condition, seconds=20.0):
        """Wait until a condition is true. If the agent logs an internal error, the wait fails
        immediately.
        """

        def checked():
            assert BUG not in self.log_text(), self.log_text()[-6000:]
            return condition()

        def description():
            files = "unreadable"
            with contextlib.suppress(Exception):
                files = self.files()
            return f"files {files}, findings {self.findings()}, log:\n{self.log_text()[-5000:]}"

        return until(checked, description, seconds)

    # --- the source -------------------------------------------------------------------------------

    def provide(self, **numbers):
        """Replace the content of the source directory. The keys are file names without the
        extension .json.
        """
        for path in self.source.iterdir():
            if path.name.removesuffix(".json") not in numbers:
                path.unlink()
        for key, number in numbers.items():
            text = profile(number) if isinstance(number, int) else number
            path = self.source / f"{key}.json"
            if not path.exists() or path.read_text() != text:
                new = self.source / f".{key}"
                new.write_text(text)
                new.rename(path)


class Client:
    """A connection to the API server with the rights of an administrator."""

    def __init__(self, cluster):
        context = ssl.create_default_context(cafile=str(cluster.ca))
        self.connection = http.client.HTTPSConnection(
            "127.0.0.1", cluster.port, context=context, timeout=300
        )

    def send(self, method, path, body=None, type_="application/json"):
        """Send a request, and return the status and the body of the response."""
        headers = {"Authorization": "Bearer admin", "Content-Type": type_}
        text = json.dumps(body) if body is not None else None
        self.connection.request(method, path, text, headers)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def send_checked(self, method, path, body=None, type_="application/json"):
        """Send a request, require its success, and return the body of the response."""
        status, content = self.send(method, path, body, type_)
        assert 200 <= status < 300, f"{method} {path}: {status} {content}"
        return content

    def apply(self, path, body):
        """Create or change an object, and become the only owner of its fields."""
        self.send_checked("PATCH", f"{path}?fieldManager=test&force=true", body, APPLY)

    def merge(self, path, body):
        """Change some fields of an object."""
        self.send_checked("PATCH", path, body, "application/merge-patch+json")


class OnNode(Daemon):
    """A daemon with its own Node and namespace, and a ConfigMap as its source."""

    def __init__(self, folder, cluster, name):
        super().__init__(folder)
        self.cluster, self.name = cluster, name
        self.client = Client(cluster)
        cluster.kubectl("create", "namespace", name)
        cluster.node(name, BOOT_ID)
        self.kubeconfig = cluster.write_kubeconfig(name, cluster.agent_token(name))
        self.wanted = f"--source=configmap:{name}/web"

    def kill(self):
        """Kill the daemon if it is running, and close the connection to the API server."""
        super().kill()
        self.client.connection.close()

    def command(self, *more):
        """Return the command without the interpreter."""
        self.options = [
            self.wanted,
            f"--node-name={self.name}",
            f"--kubeconfig={self.kubeconfig}",
        ]
        return super().command(*more)

    def through(self, proxy):
        """Let the daemon connect through a proxy from its next start on."""
        config = json.loads(self.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
        self.kubeconfig.write_text(json.dumps(config))

    def config_map(self, data, name="web", **metadata):
        """Create a ConfigMap, or replace its data."""
        self.client.apply(
            f"/api/v1/namespaces/{self.name}/configmaps/{name}",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, **metadata},
                "data": data,
            },
        )

    def node(self):
        """Return the Node object."""
        return self.client.send_checked("GET", f"/api/v1/nodes/{self.name}")

    def labels(self):
        """Return the agent's labels, with the domain and the namespace removed from their keys."""
        return {
            key.replace(f".{DOMAIN}", "")
            .replace(DOMAIN, "node")
            .replace(f"set/{self.name}__", "set/"): value
            for key, value in self.node()["metadata"].get("labels", {}).items()
            if DOMAIN in key
        }

    def until_labels(self, expected, seconds=20.0):
        """Wait until the Node has exactly these agent labels."""
        self.until(lambda: self.labels() == expected, seconds)
