"""Tests that the commands in the `sh` blocks of the README and of the guides succeed.

The blocks of a page run in order, each in its own shell, in a copy of the tree. The blocks use a
real API server, a temporary host root without AppArmor, and private copies of /etc, /usr/local and
/var/lib. tests/document_blocks.py lists each block that cannot run, with the reason.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.kube import client
from tests.document_blocks import PAGES, fenced_blocks, runs
from tests.system import charts
from tests.system.cluster import Cluster
from tests.system.guest import pace

TREE = ["README.md", "docs", "manifests", "profiles", "scripts"]
BUDGET_SECONDS = 180
LABEL = "seccomp.profile-loader.node-restriction.kubernetes.io/prevent-chmod"
# The PATH of the blocks contains these commands: the agent under test, and the real kubectl and
# helm.
COMMANDS = {
    "profile-loader": 'exec "{python}" -m agent "$@"',
    "kubectl": 'exec {kubectl} --kubeconfig "$KUBECONFIG" "$@"',
    "helm": 'exec {helm} "$@"',
}
OTHER_LOADERS = [  # The commands of the how-to page migrate these objects of other loaders.
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kapparmor-profiles", "namespace": "kube-system"},
        "data": {"custom.one": "profile custom.one {\n  file,\n}\n"},
    },
]


@pytest.fixture(scope="module")
def cluster():
    """A control plane with the controllers that the commands of an operator need."""
    with Cluster() as one:
        one.kubectl("create", "priorityclass", "unused", "--value", "1")
        one.start_controllers(
            "daemonset-controller", "namespace-controller", "serviceaccount-controller"
        )
        one.node("node-a", labels={"kept": "yes"})
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}}
        # These labels simulate the labels of a previous agent.
        node["metadata"]["labels"] = {LABEL: "installed"}
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


# Overlays prevent the blocks from changing the directories of this machine.
PRIVATE = """
set -eu
mount -t tmpfs tmpfs "$WRITES"
for place in etc usr/local var/lib; do
    mkdir -p "$WRITES/upper/$place" "$WRITES/work/$place"
    mount -t overlay overlay /$place \\
        -o "lowerdir=/$place,upperdir=$WRITES/upper/$place,workdir=$WRITES/work/$place"
done
ln -sf "$COMMANDS/profile-loader" /usr/local/bin/profile-loader
# The files of the security-profiles-operator on a node.
mkdir -p /var/lib/kubelet/seccomp /var/lib/security-profiles-operator
echo '{"defaultAction": "SCMP_ACT_LOG"}' > /var/lib/security-profiles-operator/profile1.json
ln -s ../../security-profiles-operator /var/lib/kubelet/seccomp/operator
for block in "$@"; do
    sh -eu "$block" || { echo "exit status $?:"; cat "$block"; exit 1; }
done
"""


def run(cluster, folder, blocks):
    """Run blocks in a copy of the tree, with folder/host as the host root."""
    top, commands = folder / "tree", folder / "bin"
    top.mkdir()
    for name in TREE:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, top / name)
    shutil.rmtree(top / "manifests/helm/profile-loader")
    charts.without_version(top / "manifests/helm")
    (top / "scripts/python").write_text("# The test has created .venv already.\n")
    for place in (commands, top / ".venv/bin"):
        place.mkdir(parents=True)
        for name, text in COMMANDS.items():
            kubectl = shlex.join(cluster.program("kubectl"))
            script = text.format(
                python=sys.executable, kubectl=kubectl, helm=charts.program("helm")
            )
            (place / name).write_text(f"#!/bin/sh\n{script}\n")
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
    """Return the folder and the result of the blocks, by page."""
    results = {}
    for page in PAGES:
        folder = tmp_path_factory.mktemp("page")
        results[page] = folder, run(cluster, folder, runs(page))
    return results


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_succeed(page, ran):
    """All blocks of a page that can run exit with status 0."""
    assert runs(page)
    assert ran[page][1].returncode == 0, ran[page][1].stdout


def test_the_commands_of_the_readme_install_its_profiles(ran):
    """After the commands of the README, the profiles that the page shows are installed."""
    folder, _ = ran["README.md"]
    assert seccomp(folder) == [
        "prevent-chmod",
        "profiles/audit.json",
        "profiles/fine-grained.json",
        "profiles/violation.json",
    ]


def test_the_output_in_the_readme_is_the_output_of_its_commands(ran):
    """The commands print the table of profiles, and the column of the label."""
    outputs = [block.text for block in fenced_blocks("README.md") if not block.language]
    profiles, nodes = (output.splitlines() for output in outputs)
    lines = ran["README.md"][1].stdout.splitlines()
    assert [line for line in profiles if line not in lines] == []
    headings = [line.split() for line in lines]
    assert nodes[0].split() in headings


def test_an_uninstall_removes_the_objects_of_the_cluster_and_no_file_of_the_host(ran, cluster):
    """The uninstallation removes the namespace, the roles, the policy and the labels. The profiles
    and the ledger stay.
    """
    folder, _ = ran["docs/operations.md"]
    removed = (
        "/api/v1/namespaces/profile-loader",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/profile-loader",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/profile-loader",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/profile-loader-events",
    )
    assert [path for path in removed if cluster.get(path) is not None] == []
    assert cluster.labels("node-a") == {"kept": "yes"}
    assert "profiles/audit.json" in seccomp(folder)
    assert (folder / "host/var/lib/profile-loader/entries").is_dir()


def test_profiles_of_another_loader_are_migrated(ran):
    """The documented commands convert kapparmor's ConfigMap into a ConfigMap for this agent."""
    folder, _ = ran["docs/how-to.md"]
    config_map = yaml.safe_load((folder / "tree/moved.yaml").read_text())
    assert (config_map["metadata"]["namespace"], config_map["data"]) == (
        "profile-loader",
        OTHER_LOADERS[0]["data"],
    )


def seccomp(folder):
    """Return the files in the kubelet's seccomp directory of a host root."""
    base = folder / "host/var/lib/kubelet/seccomp"
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
