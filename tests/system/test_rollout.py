"""Tests the pool-by-pool rollout and the rollback that docs/how-to.md describes, with agents on two
nodes.

The blocks of the page run one by one, with a real API server. After each block, the test waits
until the agents have installed the version that the page describes.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.cluster import NAMESPACE, Cluster, until

ROOT = Path(__file__).parents[2]
BOOT_ID = "11111111-2222-3333-4444-555555555555"
LABEL = "seccomp.profile-loader.node-restriction.kubernetes.io/app.json"
POOL, OTHERS = "node-pool", "node-other"
OLD, NEW = "SCMP_ACT_LOG", "SCMP_ACT_ALLOW"


@pytest.fixture(scope="module")
def cluster():
    """A control plane with the applied manifests, a Node in the pool canary and a second Node."""
    with Cluster() as control_plane:
        control_plane.kubectl("create", "priorityclass", "unused", "--value", "1")
        control_plane.kubectl("apply", "--server-side", "-k", ROOT / "manifests/base")
        control_plane.node(POOL, BOOT_ID, {"pool": "canary"})
        control_plane.node(OTHERS, BOOT_ID)
        yield control_plane


@pytest.fixture
def roots(cluster, tmp_path):
    """Run one agent for each Node, and yield the host roots of both agents."""
    folders, agents = {}, []
    for node in (POOL, OTHERS):
        folders[node] = tmp_path / node
        boot = folders[node] / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text(BOOT_ID)
        kubeconfig = cluster.write_kubeconfig(node, cluster.agent_token(node))
        command = [
            sys.executable, "-m", "agent", "--kinds", "seccomp", "--http-address", "off",
            "--source", f"configmaps:{NAMESPACE}?profile-loader.io/profiles=true",
            "--node-name", node, "--kubeconfig", str(kubeconfig),
            "--host-root", str(folders[node]), "--removal-grace", "1",
        ]  # fmt: skip
        with (tmp_path / f"{node}.log").open("wb") as log:
            agents.append(subprocess.Popen(command, stderr=log))
    yield folders
    for agent in agents:
        agent.terminate()
    for agent in agents:
        agent.wait()


def section(heading):
    """Return the sh blocks of one section of the page."""
    text = (ROOT / "docs/how-to.md").read_text().partition(f"## {heading}\n")[2]
    return re.findall(r"^```sh\n(.*?)^```$", text.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


def run(cluster, folder, block):
    """Run a block as an operator does, and require its success."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    kubectl = (
        f"{shlex.join(cluster.program('kubectl'))} --kubeconfig {cluster.folder}/admin.kubeconfig"
    )
    scripts = {"kubectl": kubectl, "profile-loader": f"{sys.executable} -m agent"}
    for name, command in scripts.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (commands / name).chmod(0o755)
    path = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": path}
    result = subprocess.run(
        ["sh", "-eu", "-c", block],
        cwd=folder, env=environ, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def installed(root):
    """Return the default action of the installed profile, or "" if it is missing."""
    file = root / "var/lib/kubelet/seccomp/app.json"
    return json.loads(file.read_text())["defaultAction"] if file.exists() else ""


def wait_for(cluster, roots, expected):
    """Wait until both nodes have the expected versions and the label of the profile."""

    def state():
        return {node: (installed(roots[node]), LABEL in cluster.labels(node)) for node in roots}

    until(lambda: state() == {node: (version, True) for node, version in expected.items()}, state)


def test_a_rollout_by_pool_and_its_rollback_reach_the_nodes(cluster, roots, tmp_path):
    """Each step of the page installs the described version on the described nodes."""
    first, second, third = section("Roll a profile out pool by pool")
    (rollback,) = section("Go back to the previous version of a bad profile")
    run(cluster, tmp_path, first)
    wait_for(cluster, roots, {POOL: OLD, OTHERS: OLD})
    run(cluster, tmp_path, second)
    wait_for(cluster, roots, {POOL: NEW, OTHERS: OLD})
    run(cluster, tmp_path, third)
    wait_for(cluster, roots, {POOL: NEW, OTHERS: NEW})
    run(cluster, tmp_path, rollback)
    wait_for(cluster, roots, {POOL: OLD, OTHERS: OLD})
