"""Builds the disk of the node: Debian 12 packages, the kubelet, and all imported images.

The cached disk is used only if it was built from the same content. No test changes the disk,
because each machine boots from a snapshot of the disk.
"""

import contextlib
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from subprocess import PIPE

import agent as agent_package
from tests.system import cluster, image, kept, vm
from tests.system.node import images

CACHE = kept.CACHE / "node"
ROOT = Path(__file__).parent / "root"  # the files of the node itself
PACKAGES = (
    *vm.PACKAGES,
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iproute2",
    "libseccomp2",
    "nftables",
)
NOT = ("apparmor-utils-", "systemd-", "dbus-", "dbus-user-session-")
UNIT = Path("manifests/systemd/profile-loader-restore.service")
SIZE = "4G"  # The file is sparse.
UPGRADE = "docker.io/library/profile-loader:upgrade"
IMPORT_SECONDS = 1800
KEPT = 2
# This version is part of the cache key of the packages. Increase the version when the unpacking of
# packages changes.
RECIPE = 2

# The import runs without the CRI plugin, because the plugin requires a network.
CONFIG = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
IMPORT = """set -e
mount --bind {root} {root}
cd {root}
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --bind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
chroot . /bin/bash -ec '
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
containerd --config /images/config.toml > /tmp/log 2>&1 &
trap "tail -n 20 /tmp/log" EXIT
until ctr version > /dev/null 2>&1; do kill -0 $!; sleep 0.1; done
for one in /images/*.tar; do ctr -n k8s.io images import --snapshotter overlayfs "$one"; done
rm -r /images; mkdir /images
kill $!
wait'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A prepared disk, and the kernel that boots from it."""

    path: Path
    kernel: Path


@functools.cache
def prepared():
    """Return the prepared disk. Build the disk if it is missing, damaged or outdated."""
    agent = image.build().packed
    with kept.locked(CACHE):
        packages = tree()
        folder = CACHE / f"disk-{_key(vm.sha256(packages), vm.sha256(agent), _here(), _kubelet())}"
        result = Disk(path=folder / "node.img", kernel=folder / "vmlinuz")
        mark = folder / "node.sha256"
        if not (mark.exists() and mark.read_text() == vm.sha256(result.path)):
            shutil.rmtree(folder, ignore_errors=True)
            with kept.reporting_progress("node: disk", "2 to 5 minutes"), _scratch() as scratch:
                _make(scratch, packages, agent)
                scratch.rename(folder)
        os.utime(folder)
        for old in sorted(CACHE.glob("disk-*"), key=lambda one: -one.stat().st_mtime)[KEPT:]:
            shutil.rmtree(old)
        return result


def tree():
    """Return a tar file with the files of the packages. Build the tar file if it is missing or
    damaged.
    """
    path = CACHE / f"tree-{_key(RECIPE, *PACKAGES, *NOT)}.tar"
    mark = path.with_suffix(".sha256")
    if path.exists() and mark.exists() and mark.read_text() == vm.sha256(path):
        return path
    with kept.reporting_progress("node: Debian packages", "about a minute"), _scratch() as scratch:
        root = scratch / "root"
        root.mkdir()
        _unpack(scratch, root)
        with tarfile.open(scratch / "tree.tar", "w") as tar:
            tar.add(root, arcname=".")
        (scratch / "tree.tar").rename(path)
    mark.write_text(vm.sha256(path))
    return path


def _unpack(folder, root):
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True)
    status = folder / "status"
    status.touch()
    options = [
        f"Dir::State::status={status}",
        f"Dir::Cache::archives={archives}",
        "APT::Sandbox::User=root",
        "Debug::NoLocking=true",
    ]
    command = ["apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install"]
    for option in options:
        command += ["-o", option]
    result = subprocess.run(
        [*command, *PACKAGES, *NOT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"apt-get: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted(archives.glob("*.deb")):
        # `dpkg-deb -x` would replace a symbolic link with a directory.
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=PIPE, check=True)
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "-C", root], input=files.stdout, check=True
        )
    shutil.rmtree(root / "usr/share/doc", ignore_errors=True)
    shutil.rmtree(root / "usr/share/locale", ignore_errors=True)
    shutil.rmtree(root / "usr/share/man", ignore_errors=True)
    (kernel,) = (root / "usr/lib/modules").iterdir()
    # Usually the installation scripts of the kernel package do this, but these scripts do not run
    # here.
    subprocess.run(["chroot", root, "depmod", "-a", kernel.name], check=True)


def _make(folder, packages, agent):
    root = folder / "root"
    root.mkdir()
    with tarfile.open(packages) as tar:
        tar.extractall(root, filter="fully_trusted")  # noqa: S202 - made here, checksum verified
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.move(kernel, folder / "vmlinuz")
    shutil.copytree(ROOT, root, dirs_exist_ok=True)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "var/tmp", "images", "var/lib"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("bash")
    etc = {
        "passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:\n",
        "group": "root:x:0:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost\n",
        "hostname": "node-a\n",
        "resolv.conf": "",
        "machine-id": "0123456789abcdef0123456789abcdef\n",
    }
    for name, text in etc.items():
        (root / "etc" / name).write_text(text)
    shutil.copy(cluster.programs()("kubelet")[0], root / "usr/local/bin/kubelet")
    images.write(root / "images", (root / "usr/bin/busybox").read_bytes())
    shutil.copy(agent, root / "images/agent.tar")
    images.upgrade(agent, root / "images/upgrade.tar", UPGRADE)
    _install(root)
    _import(root)
    disk = folder / "node.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, disk, SIZE],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(root)
    (folder / "node.sha256").write_text(vm.sha256(disk))


def _install(root):
    """Install the agent on the node itself too, at the path that manifests/systemd uses."""
    place = "/usr/local/lib/profile-loader"
    libraries = Path(f"{root}{place}")
    shutil.copytree(vm.libraries(), libraries)
    package = Path(agent_package.__file__).parent
    shutil.copytree(package, libraries / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    version = metadata.version("profile-loader")
    about = libraries / f"profile_loader-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: profile-loader\nVersion: {version}\n"
    )
    program = root / "usr/local/bin/profile-loader"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={place} exec python3 -B -m agent "$@"\n')
    program.chmod(0o755)
    shutil.copy(UNIT, root / "etc/profile-loader-restore.service")


def _import(root):
    """Import the archives in /images with the node's containerd.

    The node's containerd runs on this machine in separate namespaces, because an import in the
    emulator would take minutes.
    """
    (root / "images/config.toml").write_text(CONFIG)
    script = IMPORT.format(root=shlex.quote(str(root)))
    result = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
         "bash", "-c", script],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        timeout=IMPORT_SECONDS,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout[-3000:]}{result.stderr[-3000:]}"


def _kubelet():
    return vm.sha256(Path(cluster.programs()("kubelet")[0]))


def _here():
    """Return one digest for the files that this package copies to the disk."""
    result = [
        (str(path.relative_to(ROOT)), path.stat().st_mode, vm.sha256(path))
        for path in sorted(ROOT.rglob("*"))
        if path.is_file()
    ]
    sources = [UNIT, Path(__file__), Path(images.__file__), *sorted(images.ECHO_SOURCE.iterdir())]
    return _key(result, *(vm.sha256(path) for path in sources))


@contextlib.contextmanager
def _scratch():
    """Yield a folder next to the cached disks. At the end, delete the folder unless it was
    renamed.
    """
    folder = Path(tempfile.mkdtemp(prefix="making-", dir=CACHE))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
