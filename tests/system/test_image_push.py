"""Tests of the commands in docs/image.md that push the image to a registry and pin its digest.

The registry is Debian's docker-registry on the loopback interface. The pushed image has only one
small file, because the commands do not depend on the content of the image.
"""

import os
import re
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.system import charts, image
from tests.system.cluster import free_port, programs, until

PAGE = Path("docs/image.md")
EXAMPLE = "registry.example.com"
CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "{address}"}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The address of a registry without TLS."""
    folder = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(CONFIG.format(folder=folder, address=address))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        until(lambda: answers(address), "the registry answers")
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(address):
    """Return whether a registry responds at this address."""
    try:
        return urllib.request.urlopen(f"http://{address}/v2/", timeout=5).status == 200
    except OSError:
        return False


class Machine:
    """The directory and the programs that a reader of the page would use."""

    def __init__(self, folder, registry):
        self.registry = registry
        self.tree, self.folder = folder / "tree", folder
        shutil.copytree("manifests", self.tree / "manifests")
        (folder / "bin").mkdir()
        (folder / "registries.conf").write_text(
            f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n'
        )
        self.buildah = self.buildah_with("storage")
        for name, words in {
            "buildah": self.buildah,
            "kubectl": programs()("kubectl"),
            "helm": [charts.program("helm")],
        }.items():
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
            program.chmod(0o755)

    def buildah_with(self, name):
        """Return the beginning of a buildah command that uses a storage of its own."""
        folders = ("--root", self.folder / name, "--runroot", self.folder / f"{name}-run")
        return [shutil.which("buildah"), "--storage-driver", "vfs", *map(str, folders)]

    def run(self, *command):
        """Run a command, and return its standard output."""
        environ = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
        }
        result = subprocess.run(
            command, cwd=self.tree, env=environ, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def commit(self, content):
        """Create an image with one file under the name that the page uses, and return the
        image ID.
        """
        (self.folder / "content").write_text(content)
        container = self.run(*self.buildah, "from", "scratch")
        self.run(*self.buildah, "add", "-q", container, str(self.folder / "content"), "/content")
        return self.run(*self.buildah, "commit", "-q", "--rm", container, image.NAME)


def blocks():
    """Return the shell blocks of the page that do not build or run the image."""
    result = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in result if not block.startswith("podman ")]


@pytest.fixture(scope="module")
def machine(registry, tmp_path_factory):
    """A machine on which the commands of the page have run, and the ID of the pushed image."""
    machine = Machine(tmp_path_factory.mktemp("machine"), registry)
    image_id = machine.commit("the pinned image")
    assert len(blocks()) == 3
    for block in blocks():
        machine.run("sh", "-eu", "-c", block.replace(EXAMPLE, registry))
    return machine, image_id


def reference(machine):
    """Return the pinned reference of the pushed image."""
    return (machine.tree / "image").read_text().strip()


def test_the_digest_selects_the_pushed_image(machine):
    """The reference selects the pushed image, even after another image got the same tag."""
    computer, image_id = machine
    assert re.fullmatch(rf"{computer.registry}/.*@sha256:[0-9a-f]{{64}}", reference(computer))
    other = computer.commit("another image")
    tag = f"docker://{computer.registry}/security/profile-loader:{image.VERSION}"
    computer.run(*computer.buildah, "push", "-q", image.NAME, tag)
    clean = computer.buildah_with("clean")
    pulled = [computer.run(*clean, "pull", "-q", name) for name in (reference(computer), tag)]
    assert pulled == [image_id, other]


@pytest.mark.parametrize("way", ["kustomize", "helm"])
def test_the_manifests_use_the_digest(machine, way):
    """Each container of the DaemonSet has the pinned reference."""
    computer, _ = machine
    documents = yaml.safe_load_all((computer.tree / f"with-{way}.yaml").read_text())
    (daemon_set,) = [item for item in documents if item and item["kind"] == "DaemonSet"]
    pod = daemon_set["spec"]["template"]["spec"]
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    assert [item["image"] for item in containers] == [reference(computer)] * len(containers)
