"""Runs helm and helm-unittest. The programs helm and helm-unittest are built once from the Go
module in tests/system/helm.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.system import go_build

MODULE = Path(__file__).parent / "helm"
CHART = Path(__file__).parents[2] / "manifests/helm/profile-loader"
RELEASE = "profile-loader"
PACKAGES = {
    "helm": "helm.sh/helm/v3/cmd/helm",
    "helm-unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
}
# As in helm's makefile, these flags set the Kubernetes version for commands that run without a
# cluster.
VERSIONS = " ".join(
    f"-X helm.sh/helm/v3/pkg/{package}.k8sVersion{part}={number}"
    for package in ("chartutil", "lint/rules")
    for part, number in (("Major", 1), ("Minor", 36))
)


def program(name):
    """Return the path of helm or helm-unittest."""
    return go_build.program(MODULE, name, PACKAGES[name], flags=VERSIONS, usual="2 to 4 minutes")


def run(name, *words, kubeconfig=None, check=True):
    """Run helm or helm-unittest without the user's configuration, and return the result."""
    with tempfile.TemporaryDirectory() as home:
        environ = {"PATH": os.environ["PATH"], "HOME": home}
        if kubeconfig is not None:
            environ["KUBECONFIG"] = str(kubeconfig)
        result = subprocess.run(
            [program(name), *map(str, words)],
            capture_output=True, text=True, check=False, env=environ, timeout=600,
        )  # fmt: skip
    if check:
        assert result.returncode == 0, f"{name} {words}: {result.stdout}{result.stderr}"
    return result


def without_version(folder):
    """Copy the chart without its required Kubernetes version, and return the path of the copy.

    The API server of the tests is built from Go modules without a version number. This API server
    therefore reports v0.0.0, and helm would refuse to install the unchanged chart.
    """
    chart = shutil.copytree(CHART, folder / CHART.name)
    file = chart / "Chart.yaml"
    lines = [line for line in file.read_text().splitlines() if "kubeVersion:" not in line]
    file.write_text("\n".join(lines) + "\n")
    return chart


def helm(*words, **more):
    """Run helm, and return its standard output."""
    return run("helm", *words, **more).stdout


def template(*words, release=RELEASE, namespace="profile-loader"):
    """Return the YAML documents that the chart renders."""
    return helm("template", release, CHART, "--namespace", namespace, *words)
