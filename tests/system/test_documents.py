"""Every command in the fenced `sh` blocks of the README, operations and platforms runs from there.

A page's blocks run in their order, each in a shell, in a copy of the tree: against a real API
server, below a throw-away host root (without AppArmor), and with an /etc, a /usr/local and a
/var/lib of their own. What cannot run is in NOT_RUN with the reason: a block is run or listed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.kube import client
from tests.system import image
from tests.system.cluster import Cluster
from tests.system.guest import pace

PAGES = ["README.md", "docs/operations.md", "docs/platforms.md"]
TREE = ["README.md", "docs", "manifests", "profiles", "scripts"]
BUDGET_SECONDS = 180
LABEL = "seccomp.profile-loader.node-restriction.kubernetes.io/prevent-chmod"
NOT_RUN = {  # page, first line of a block: why
    ("README.md", "sh scripts/test --install"): "it is what runs this test",
    (
        "docs/operations.md",
        f"podman save --format oci-archive -o profile-loader.tar {image.NAME}",
    ): "no podman and no containerd beside the tests; test_image.py makes the archive with buildah",
    (
        "docs/operations.md",
        "pod=$(kubectl -n profile-loader get pods --field-selector spec.nodeName=node-a -o name)",
    ): "it needs a kubelet and does not end; node/test_base.py runs status in the agent's pod",
}
# What an operator has in the PATH: the command of the wheel under test, and the real kubectl.
COMMANDS = {
    "profile-loader": 'exec "{python}" -m agent "$@"',
    "kubectl": 'exec {kubectl} --kubeconfig "$KUBECONFIG" "$@"',
}
OTHER_LOADERS = [  # what the migrations of the operations page find
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kapparmor-profiles", "namespace": "kube-system"},
        "data": {"custom.one": "profile custom.one {\n  file,\n}\n"},
    },
]


def blocks(page):
    """Return the fenced sh blocks of a page."""
    return re.findall(r"^```sh\n(.*?)^```$", Path(page).read_text(), re.MULTILINE | re.DOTALL)


def runs(page):
    return [one for one in blocks(page) if (page, one.splitlines()[0]) not in NOT_RUN]


@pytest.fixture(scope="module")
def cluster():
    """A control plane with the controllers that the commands of an operator wait for."""
    with Cluster() as one:
        one.kubectl("create", "priorityclass", "unused", "--value", "1")
        one.start_controllers(
            "daemonset-controller", "namespace-controller", "serviceaccount-controller"
        )
        one.node("node-a", labels={"kept": "yes"})
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}}
        node["metadata"]["labels"] = {LABEL: "installed"}  # as an agent that ran before
        one.kubectl(
            "apply",
            "--server-side",
            f"--field-manager={client.FIELD_MANAGER}",
            "-f",
            "-",
            stdin=node,
        )
        one.apply(*OTHER_LOADERS)
        yield one


# Directories that are the machine's until something is written, which goes with the shell.
PRIVATE = """
set -eu
mount -t tmpfs tmpfs "$WRITES"
for place in etc usr/local var/lib; do
    mkdir -p "$WRITES/upper/$place" "$WRITES/work/$place"
    mount -t overlay overlay /$place \\
        -o "lowerdir=/$place,upperdir=$WRITES/upper/$place,workdir=$WRITES/work/$place"
done
ln -sf "$COMMANDS/profile-loader" /usr/local/bin/profile-loader
# What the security-profiles-operator leaves on a node.
mkdir -p /var/lib/kubelet/seccomp /var/lib/security-profiles-operator
echo '{"defaultAction": "SCMP_ACT_LOG"}' > /var/lib/security-profiles-operator/profile1.json
ln -s ../../security-profiles-operator /var/lib/kubelet/seccomp/operator
for block in "$@"; do
    sh -eu "$block" || { echo "ended with $?:"; cat "$block"; exit 1; }
done
"""


def run(cluster, folder, blocks):
    """Run blocks in a copy of the tree, files of the host being below folder/host."""
    top, commands = folder / "tree", folder / "bin"
    top.mkdir()
    for name in TREE:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, top / name)
    (top / "scripts/python").write_text("# sets up .venv from a package index; here it is there\n")
    for place in (commands, top / ".venv/bin"):
        place.mkdir(parents=True)
        for name, text in COMMANDS.items():
            kubectl = shlex.join(cluster.program("kubectl"))
            made = text.format(python=sys.executable, kubectl=kubectl)
            (place / name).write_text(f"#!/bin/sh\n{made}\n")
            (place / name).chmod(0o755)
    for name in ("host", "writes", "blocks"):
        (folder / name).mkdir()
    files = [folder / "blocks" / f"{number}.sh" for number, _ in enumerate(blocks)]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(block)
    environ = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HOME": str(folder),
        "KUBECONFIG": str(cluster.folder / "admin.kubeconfig"),
        "PROFILE_LOADER_HOST_ROOT": str(folder / "host"),
        "PROFILE_LOADER_ALLOW_UNSUPPORTED": "true",
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))
        ),
        "COMMANDS": str(commands),
        "WRITES": str(folder / "writes"),
    }
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", PRIVATE, "sh", *files],
        cwd=top, env=environ, text=True, check=False, timeout=pace.scaled(BUDGET_SECONDS),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(cluster, tmp_path_factory):
    """Give, by page, the folder that its blocks ran in, and how they ended."""
    found = {}
    for page in PAGES:
        folder = tmp_path_factory.mktemp("page")
        found[page] = folder, run(cluster, folder, runs(page))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, ran):
    """Each block that is not listed ends with 0, one after the other, as an operator runs them."""
    assert runs(page)
    assert ran[page][1].returncode == 0, ran[page][1].stdout


def test_one_host_of_the_readme_has_its_profiles(ran):
    """What the page promises for one host is there."""
    folder, _ = ran["README.md"]
    assert seccomp(folder) == [
        "prevent-chmod",
        "profiles/audit.json",
        "profiles/fine-grained.json",
        "profiles/violation.json",
    ]


def test_an_uninstall_leaves_nothing_in_the_cluster_and_everything_on_the_host(ran, cluster):
    """The namespace, the rights, the policy and the labels are gone; files and ledger are not."""
    folder, _ = ran["docs/operations.md"]
    gone = (
        "/api/v1/namespaces/profile-loader",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/profile-loader",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/profile-loader",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/profile-loader-events",
    )
    assert [path for path in gone if cluster.get(path) is not None] == []
    assert cluster.labels("node-a") == {"kept": "yes"}
    assert "profiles/audit.json" in seccomp(folder)
    assert (folder / "host/var/lib/profile-loader/entries").is_dir()


def test_profiles_of_another_loader_move(ran):
    """The migration's blocks make of kapparmor's ConfigMap one of this program's."""
    folder, _ = ran["docs/operations.md"]
    made = yaml.safe_load((folder / "tree/moved.yaml").read_text())
    assert (made["metadata"]["namespace"], made["data"]) == (
        "profile-loader",
        OTHER_LOADERS[0]["data"],
    )


def seccomp(folder):
    """Return the files of the kubelet's directory below a folder's host root."""
    base = folder / "host/var/lib/kubelet/seccomp"
    return sorted(str(one.relative_to(base)) for one in base.rglob("*") if one.is_file())


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_is_listed_with_its_reason(page):
    """No block of the list has gone from its page, and each has a reason."""
    there = {(page, one.splitlines()[0]) for one in blocks(page)}
    listed = {one for one in NOT_RUN if one[0] == page}
    assert listed <= there
    assert all(NOT_RUN.values())
