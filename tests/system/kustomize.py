"""Builds manifests/base with components, as the kustomization of a user does."""

import functools
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.system import image
from tests.system.cluster import programs

ROOT = Path(__file__).parents[2] / "manifests"
LABELS = {
    "app.kubernetes.io/name": "profile-loader",
    "app.kubernetes.io/instance": "profile-loader",
    "app.kubernetes.io/version": image.VERSION,
    "app.kubernetes.io/part-of": "profile-loader",
}
"""The recommended labels of every object."""

COMPONENTS = sorted(path.name for path in (ROOT / "components").iterdir())


def write(folder, *components, root=ROOT, **fields):
    """Write a kustomization of the base with these components, and return its folder.

    Args:
        folder: The folder of the kustomization.
        components: The names of components.
        root: The directory of the manifests.
        fields: Further fields of the kustomization.
    """
    relative = os.path.relpath(root, folder)
    content = {
        "sortOptions": {"order": "fifo"},
        "resources": [f"{relative}/base"],
        "components": [f"{relative}/components/{name}" for name in components],
        **fields,
    }
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


def build(folder):
    """Return the YAML documents that kustomize builds from a folder."""
    return subprocess.run(
        [*programs()("kubectl"), "kustomize", folder], capture_output=True, text=True, check=True
    ).stdout


def text(*components, root=ROOT, **fields):
    """Return the YAML documents of the base with these components."""
    with tempfile.TemporaryDirectory() as folder:
        return build(write(Path(folder), *components, root=root, **fields))


@functools.cache
def _cached(components):
    return text(*components)


def objects(*components, root=ROOT, **fields):
    """Return the objects of the base with these components, by kind and name."""
    if root == ROOT and not fields:
        return by_name(_cached(components))
    return by_name(text(*components, root=root, **fields))


def by_name(documents):
    """Return the objects of YAML documents by kind and name."""
    return {
        (item["kind"], item["metadata"]["name"]): item
        for item in yaml.safe_load_all(documents)
        if item is not None
    }


def pod(items):
    """Return the specification of the agent's pod."""
    return items["DaemonSet", "profile-loader"]["spec"]["template"]["spec"]
