"""Runs a real etcd, kube-apiserver and kube-scheduler on the loopback interface.

If the environment variable KUBEBUILDER_ASSETS is set, the programs come from that directory (the
convention of envtest). If the variable is not set, a single binary with all programs is built once
from the Go modules in tests/system/controlplane. The file go.sum in that directory contains the
hashes of the modules. The binary and its checksum are cached in ~/.cache/profile-loader.
"""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from tests.system import go_build
from tests.system.guest.pace import until

MODULE = Path(__file__).parent / "controlplane"
OLDER = Path(__file__).parent / "controlplane-old"  # An API server of an older minor version.
KUBECTL_SECONDS = 1200  # This limit also applies to commands that wait, so that every command ends.
NAMESPACE = "profile-loader"
MERGE_PATCH = "application/merge-patch+json"
NODE_INFO = (
    "architecture",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeProxyVersion",
    "kubeletVersion",
    "machineID",
    "operatingSystem",
    "osImage",
    "systemUUID",
)


def programs(*, older=False):
    """Return a function that maps the name of a program to the beginning of its command.

    Args:
        older: whether to use the API server of an older minor version.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")

    def program(name):
        if older and name == "kube-apiserver":
            return [str(go_build.program(OLDER, "controlplane")), name]
        # The assets of envtest do not contain a scheduler.
        if assets and (Path(assets) / name).exists():
            return [f"{assets}/{name}"]
        return [str(go_build.program(MODULE, "controlplane")), name]

    return program


def free_port():
    """Return a port on the loopback interface on which no process listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    """A control plane with an initially empty store. The processes of the control plane end when
    the context ends.
    """

    def __init__(self, folder=None, *, older=False):
        self.folder = Path(folder or tempfile.mkdtemp(prefix="cluster-"))
        self.program = programs(older=older)
        self.port, self.etcd_port, self.peer_port = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.running = {}

    def __enter__(self):
        try:
            self._certificates()
            self.start_etcd()
            self.start_api()
            self.write_kubeconfig("admin", "admin")
            self.kubectl("create", "namespace", NAMESPACE)
            until(self._bootstrapped, "the API server's own roles")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in list(self.running):
            self.stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- processes --------------------------------------------------------------------------------

    def _start(self, name, *arguments):
        log = (self.folder / f"{name}.log").open("ab")
        command = [*self.program(name), *map(str, arguments)]
        self.running[name] = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )
        log.close()

    def stop(self, name, *, kill=True):
        """Stop a program, and wait until it has exited."""
        process = self.running.pop(name, None)
        if process is None:
            return
        (process.kill if kill else process.terminate)()
        process.wait()

    def log(self, name):
        """Return the log of a program."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start_etcd(self):
        """Start etcd with its previous ports and data."""
        self._start(
            "etcd",
            "--data-dir", self.folder / "etcd",
            "--listen-client-urls", f"http://127.0.0.1:{self.etcd_port}",
            "--advertise-client-urls", f"http://127.0.0.1:{self.etcd_port}",
            "--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}",
            "--unsafe-no-fsync",
        )  # fmt: skip

    def save(self):
        """Copy the data of etcd, as a backup does."""
        self._replace(self.folder / "etcd", self.folder / "saved")

    def restore(self):
        """Replace the data of etcd with the copy, as an administrator does after a loss of data."""
        self._replace(self.folder / "saved", self.folder / "etcd")

    def _replace(self, source, target):
        self.stop("kube-apiserver")
        self.stop("etcd", kill=False)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self.start_etcd()
        self.start_api()

    def start_api(self, *more):
        """Start the API server with its previous port and data, and wait until it is ready."""
        f = self.folder
        self._start(
            "kube-apiserver",
            "--etcd-servers", f"http://127.0.0.1:{self.etcd_port}",
            "--bind-address", "127.0.0.1",
            "--advertise-address", "10.0.2.2",
            "--secure-port", self.port,
            "--tls-cert-file", f / "tls.crt",
            "--tls-private-key-file", f / "tls.key",
            "--token-auth-file", f / "tokens.csv",
            "--authorization-mode", "Node,RBAC",
            "--enable-admission-plugins", "NodeRestriction",
            "--service-cluster-ip-range", "10.0.0.0/24",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", f / "sa.key",
            "--service-account-signing-key-file", f / "sa.key",
            "--endpoint-reconciler-type", "none",
            "--allow-privileged=true",
            "--profiling=false",
            *more,
        )  # fmt: skip
        until(self._ready, lambda: self.log("kube-apiserver")[-3000:], 60)

    def start_scheduler(self):
        """Start the scheduler."""
        self.write_kubeconfig("scheduler", "scheduler")
        self._start(
            "kube-scheduler",
            "--kubeconfig", self.folder / "scheduler.kubeconfig",
            "--bind-address", "127.0.0.1",
            "--secure-port", free_port(),
            "--leader-elect=false",
            "--authentication-skip-lookup=true",
        )  # fmt: skip

    def start_controllers(self, *names):
        """Start the controller manager with these controllers only."""
        self.write_kubeconfig("controllers", "controllers")
        self._start(
            "kube-controller-manager",
            "--kubeconfig", self.folder / "controllers.kubeconfig",
            "--controllers", ",".join(names),
            "--bind-address", "127.0.0.1",
            "--secure-port", free_port(),
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            "--service-account-private-key-file", self.folder / "sa.key",
            "--root-ca-file", self.folder / "ca.crt",
        )  # fmt: skip

    def _ready(self):
        process = self.running["kube-apiserver"]
        if process.poll() is not None:
            raise AssertionError(self.log("kube-apiserver")[-3000:])
        with contextlib.suppress(OSError):
            return self._response("/readyz", "admin") == "ok"
        return False

    def _bootstrapped(self):
        result = self.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node")
        return result is not None

    def _certificates(self):
        f = self.folder

        def openssl(text):
            subprocess.run(["openssl", *text.split()], cwd=f, check=True, capture_output=True)

        (f / "san").write_text("subjectAltName=IP:127.0.0.1,IP:10.0.2.2,IP:10.0.0.1\n")
        openssl("genrsa -out sa.key 2048")
        openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=test-ca")
        openssl("req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=api")
        openssl("x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -extfile san -out tls.crt")
        (f / "tokens.csv").write_text(
            'admin,admin,1,"system:masters"\n'
            'kubelet-a,system:node:node-a,2,"system:nodes"\n'
            "scheduler,system:kube-scheduler,3,\n"
            "controllers,system:kube-controller-manager,4,\n"
        )

    # --- requests ---------------------------------------------------------------------------------

    @property
    def ca(self):
        """The path of the CA certificate."""
        return self.folder / "ca.crt"

    def get(self, path, token="admin"):  # noqa: S107 - of this test server only
        """Return the response to a GET request, or None if the API server responds with an error
        status.

        Repeat the request while the API server is unreachable or busy.
        """
        why = ""

        def has_response():
            nonlocal why
            try:
                return [json.loads(self._response(path, token))]
            except OSError as error:
                why = str(error)
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 429
                return [None] if refused else []

        return until(has_response, lambda: f"GET {path}: {why}")[0]

    def _response(self, path, token):
        request = urllib.request.Request(  # noqa: S310 - https only
            self.url + path, headers={"Authorization": f"Bearer {token}"}
        )
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(request, timeout=50, context=context) as answer:  # noqa: S310 - https only
            return answer.read().decode()

    def write_kubeconfig(self, name, token):
        """Write a kubeconfig with a token, and return its path."""
        path = self.folder / f"{name}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": self.url, "certificate-authority": str(self.ca)},
                }
            ],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(json.dumps(config))
        return path

    def kubectl(self, *words, stdin=None, user="admin", check=True):
        """Run kubectl and return its output. If `check` is false, return the result of the process
        instead.
        """
        result = subprocess.run(
            [
                *self.program("kubectl"),
                "--kubeconfig", str(self.folder / f"{user}.kubeconfig"),
                *map(str, words),
            ],
            input=stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin),
            capture_output=True, text=True, check=False, timeout=KUBECTL_SECONDS,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        )  # fmt: skip
        if not check:
            return result
        assert result.returncode == 0, f"kubectl {' '.join(map(str, words))}: {result.stderr}"
        return result.stdout

    def apply(self, *objects):
        """Create or change objects."""
        content = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=content)

    def node(self, name, boot_id="", labels=None):
        """Create a Node with a boot ID in its status, as a kubelet does, and return the uid of the
        Node.
        """
        created = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels or {}},
        }
        self.kubectl("create", "-f", "-", stdin=created)
        if boot_id:
            info = dict.fromkeys(NODE_INFO, "x")
            status = {"status": {"nodeInfo": {**info, "bootID": boot_id}}}
            self.kubectl("patch", "node", name, "--subresource=status", "-p", json.dumps(status))
        return self.get(f"/api/v1/nodes/{name}")["metadata"]["uid"]

    def agent_token(self, node, *, account="profile-loader", pod="agent", bound=True):
        """Return a token that has the rights of the agent's pod on a Node."""
        if self.get(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}") is None:
            self.kubectl("-n", NAMESPACE, "create", "serviceaccount", account)
        words = ["-n", NAMESPACE, "create", "token", account]
        if bound:
            name = f"{pod}-{node}"
            if self.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}") is None:
                self.kubectl(
                    "create",
                    "-f",
                    "-",
                    stdin={
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {"name": name, "namespace": NAMESPACE},
                        "spec": {
                            "nodeName": node,
                            "serviceAccountName": account,
                            "containers": [{"name": "agent", "image": "agent"}],
                        },
                    },
                )
            words += ["--bound-object-kind", "Pod", "--bound-object-name", name]
        return self.kubectl(*words).strip()

    def labels(self, node):
        """Return the labels of a Node."""
        item = self.get(f"/api/v1/nodes/{node}")
        return (item or {}).get("metadata", {}).get("labels", {})


@contextlib.contextmanager
def shared():
    """A running control plane."""
    with Cluster() as one:
        yield one
