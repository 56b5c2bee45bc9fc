"""Prepares containers and files for the tests of the agent's rights in the virtual machine.

Each container is defined by a pod in the manifests. To test that a right is necessary, the tests
run the container without this right.
"""

import contextlib
import copy
import json
import subprocess
from pathlib import Path

from agent.core import labels
from tests.system import kustomize, rights, vm
from tests.system.cluster import NAMESPACE, NODE_INFO, Cluster

GUEST = Path("tests/system/guest")
TOKEN = "/job/token"  # noqa: S105 - a directory of the guest
PLACES = {"profiles": "/run/profiles", "own": "/job/own"}
ONCE = ("--oneshot", "--prune=always", "--output=json")
DAEMON = ("--prune=always", "--removal-grace=1s", "--resync=3s", "--log-format=json")
START = """set -e
install -m 0755 runc /usr/sbin/runc
install -m 0755 libseccomp.so.2 /usr/lib/x86_64-linux-gnu/libseccomp.so.2
python3 guest/rights.py
"""


def context(**changes):
    """Return a change of the agent's securityContext."""

    def change(pod):
        (agent,) = pod["containers"]
        agent["securityContext"].update(changes)

    return change


def read_only(name):
    """Return a change that makes a mount of the agent read-only."""

    def change(pod):
        (agent,) = pod["containers"]
        (result,) = [item for item in agent["volumeMounts"] if item["name"] == name]
        result["readOnly"] = True

    return change


def own_processes_only(pod):
    pod["hostPID"] = False


WITHOUT = {
    "nothing": lambda pod: None,
    "uid 0": context(runAsUser=65534),
    "MAC_ADMIN": context(capabilities={"drop": ["ALL"]}),
    "AppArmor unconfined": context(appArmorProfile={"type": "RuntimeDefault"}),
    "hostPID": own_processes_only,
    "security writable": read_only("security"),
    "state writable": read_only("state"),
    "seccomp writable": read_only("seccomp"),
    "tmp writable": read_only("tmp"),
}


def bundles(config, port):
    """Return the configuration of each container that runs in the guest, by name."""
    result = {}

    def add(name, pod, change=lambda pod: None):
        pod = copy.deepcopy(pod)
        change(pod)
        (agent,) = pod["containers"]
        result[name] = rights.config(pod, agent, config, PLACES)

    base, own = rights.pod(), rights.pod("own-seccomp")
    add("base-oneshot", rights.without_api(base, *ONCE))
    add("base-daemon", rights.without_api(base, *DAEMON))
    add("privileged-daemon", rights.without_api(rights.pod("privileged"), *DAEMON))
    (init,) = own["initContainers"]
    result["own-seccomp-init"] = rights.config(own, init, config, PLACES)
    add("own-seccomp-daemon", rights.without_api(own, *DAEMON))
    environ = {
        "PROFILE_LOADER_NODE_NAME": "node",
        "PROFILE_LOADER_LABEL_DOMAIN": labels.DOMAIN,
        "POD_NAMESPACE": NAMESPACE,
        "KUBERNETES_SERVICE_HOST": vm.HOST,
        "KUBERNETES_SERVICE_PORT": str(port),
    }
    add("own-seccomp-cluster", rights.in_cluster(own, TOKEN, environ))
    for name, change in WITHOUT.items():
        add(f"without {name}", rights.without_api(base, *ONCE), change)
    return result


def files(config, cluster, many):
    """Return the files of the guest by path. `many` is the expected number of labels on its
    Node.
    """
    result = {f"guest/{item.name}": item.read_bytes() for item in GUEST.glob("*.py")}
    for item in Path("profiles").rglob("*"):
        if item.is_file():
            result[str(item)] = item.read_bytes()
    for name, bundle in bundles(config, cluster.port).items():
        result[f"bundles/{name}.json"] = json.dumps(bundle).encode()
    result["own/agent.json"] = (rights.ROOT / "components/own-seccomp/agent.json").read_bytes()
    # The guest has the same Debian release as this machine.
    result["runc"] = Path("/usr/sbin/runc").read_bytes()
    result["libseccomp.so.2"] = Path("/usr/lib/x86_64-linux-gnu/libseccomp.so.2").read_bytes()
    result["token/token"] = cluster.agent_token("node").encode()
    result["token/ca.crt"] = cluster.ca.read_bytes()
    result["token/namespace"] = b"profile-loader"
    api = {
        "url": f"https://{vm.HOST}:{cluster.port}",
        "info": dict.fromkeys(NODE_INFO, "x"),
        "domain": labels.DOMAIN,
        "labels": many,
    }
    result["api.json"] = json.dumps(api).encode()
    return result


def drive(root, path):
    """Write a disk image with the files of the container image."""
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, path, "500M"],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


@contextlib.contextmanager
def prepared():
    """Yield a control plane with a Node and the applied component own-seccomp."""
    with Cluster() as cluster:
        cluster.kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", "-",
            stdin=kustomize.text("own-seccomp"),
        )  # fmt: skip
        cluster.node("node")
        yield cluster
