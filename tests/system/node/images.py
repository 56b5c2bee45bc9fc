"""Builds the images of workloads as archives for `ctr images import`, without a registry.

The images have the names that the tutorials use. The program busybox comes from a Debian package,
and a small program replaces http-echo. `upgrade` writes a copy of the agent's image with an
additional label and therefore with a different ID.
"""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

from tests.system import go_build

BUSYBOX = "docker.io/library/busybox:1.28"
ECHO = "docker.io/hashicorp/http-echo:1.0"
PAUSE = "localhost/pause:1"
ECHO_SOURCE = Path(__file__).parent / "echo"


def pack(path, name, files, config):
    """Write a docker-archive that has a single layer.

    Args:
        path: The path of the archive.
        name: The name of the image.
        files: The content of each path. A str is the target of a symbolic link.
        config: The configuration of the image.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder, mode in (("bin", 0o755), ("tmp", 0o1777), ("proc", 0o555), ("sys", 0o555)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for place, content in files.items():
            entry = tarfile.TarInfo(place)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.mode, entry.size = 0o755, len(content)
                tar.addfile(entry, io.BytesIO(content))
    output = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], **config},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer.getvalue())]},
    }
    image = json.dumps(output).encode()
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _add(tar, "config.json", image)
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def upgrade(archive, path, name):
    """Write an image without layers that adds one label to the image of a docker-archive.

    containerd finds the layers by their digests, because the original image was already imported.
    """
    with tarfile.open(archive) as source:
        (output,) = json.load(source.extractfile("manifest.json"))
        config = json.load(source.extractfile(output["Config"]))
        sizes = [source.getmember(layer).size for layer in output["Layers"]]
    config["config"].setdefault("Labels", {})["upgrade"] = "2"
    content = json.dumps(config).encode()
    kind = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}manifest.v1+json",
        "config": _described(f"{kind}config.v1+json", content),
        "layers": [
            {"mediaType": f"{kind}layer.v1.tar", "digest": digest, "size": size}
            for digest, size in zip(config["rootfs"]["diff_ids"], sizes, strict=True)
        ],
    }
    body = json.dumps(manifest).encode()
    described = _described(f"{kind}manifest.v1+json", body)
    described["annotations"] = {"io.containerd.image.name": name}
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        for blob in (content, body):
            _add(tar, "blobs/sha256/" + _digest(blob).partition(":")[2], blob)
        index = {"schemaVersion": 2, "manifests": [described]}
        _add(tar, "index.json", json.dumps(index).encode())


def write(folder, busybox):
    """Write the archives of the workload images. `busybox` is the content of the program."""
    output = subprocess.run(
        ["busybox", "--list"], capture_output=True, text=True, check=True
    ).stdout
    shell = {"bin/busybox": busybox} | {
        f"bin/{item}": "busybox" for item in output.split() if item != "busybox"
    }
    pack(folder / "busybox.tar", BUSYBOX, shell, {"Cmd": ["sh"]})
    pack(folder / "pause.tar", PAUSE, shell, {"Entrypoint": ["/bin/sleep", "2147483647"]})
    program = folder / "http-echo"
    subprocess.run(
        [go_build.go(), "build", "-trimpath", "-ldflags=-s -w", "-o", program, "."],
        cwd=ECHO_SOURCE,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"},
        check=True,
    )
    pack(
        folder / "echo.tar",
        ECHO,
        {"bin/http-echo": program.read_bytes()},
        {"Entrypoint": ["/bin/http-echo"]},
    )
    program.unlink()


def _add(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _described(kind, content):
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def _digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()
