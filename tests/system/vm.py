"""Runs a virtual machine with a real AppArmor kernel, built from Debian packages.

A guest has the kernel, the parser and the Python version of one Debian release, by default Debian
12. The root tree of a release is built once, and is cached in ~/.cache/profile-loader with its
checksum. Each run uses a new disk with a copy of this tree. QEMU emulates the processor (TCG), so a
run needs no special rights on the host. If the kernel of a guest crashes, the guest is started
again, at most twice. The result contains the number of starts. A guest has a network only if the
caller requests a network. Such a guest can connect to the loopback interface of this machine, but
this machine cannot connect to the guest.
"""

import contextlib
import hashlib
import itertools
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import agent
from tests.system import kept
from tests.system.guest import pace

TREES = kept.CACHE / "vm"
INSTALLED = kept.CACHE / "guest-libraries"
PACKAGES = (
    "linux-image-cloud-amd64",
    "apparmor",
    "libapparmor1",
    "python3",
    "bash",
    "coreutils",
    "util-linux",
    "mount",
    "grep",
    "sed",
    "findutils",
    "procps",
    "libc-bin",
    "busybox-static",
    "libcap2-bin",
    "kmod",
)
STANDARD = "bookworm"
# The Python version of each release.
RELEASES = {STANDARD: "3.11", "trixie": "3.13", "sid": "3.14"}
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"  # the packages that every guest contains
STARTS = 3
POWER_OFF = b"sysrq: Power Off"
POWER_OFF_SECONDS = 30
# This version is part of the cache keys. Increase the version when the build of the tree changes.
RECIPE = 4
# On a busy host, the first timer interrupts arrive too late for a check in the kernel of the guest.
# The kernel then panics ("IO-APIC + timer doesn't work"). The option no_timer_check disables this
# check.
KERNEL = (
    "console=ttyS0 panic=-1 loglevel=4 no_timer_check "
    "root=/dev/nvme0n1 rootfstype=ext4 rw init=/vminit apparmor=1 security=apparmor"
)
LIBRARIES = (
    "h11",
    "msgspec",
    "prometheus-client",
    "pyyaml",
    "structlog",
    "system-calls",
    "watchdog",
)
# The kernel modules of the network card, in the order of their dependencies.
MODULES = (
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/net/virtio_net",
)
# the loopback interface of this machine, for a guest with a network (QEMU, user networking)
HOST = "10.0.2.2"
NETWORK = f"""for one in {" ".join(MODULES)}; do
    insmod /lib/modules/$(uname -r)/kernel/$one.ko || exit 97
done
busybox ip link set lo up
busybox ip addr add 10.0.2.15/24 dev eth0
busybox ip link set eth0 up
"""
CARD = ("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile=")
BEGIN = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
mount -t securityfs securityfs /sys/kernel/security
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /run
busybox hostname guest
"""
INIT = f"""{BEGIN}stty raw -echo -F /dev/ttyS1
export PYTHONPATH=/job/libraries PYTHONDONTWRITEBYTECODE=1
cd /job
bash /job/command > /dev/ttyS1 2>&1
echo "VM-EXIT $?" > /dev/ttyS1
sync
mount -o remount,ro /
echo 1 > /proc/sys/kernel/sysrq
echo o > /proc/sysrq-trigger
sleep 30
"""


@dataclass(frozen=True)
class GuestResult:
    """The exit status and the output of a command in the guest, and the number of starts."""

    status: int
    output: str
    boots: int
    seconds: float


class GuestError(Exception):
    """The guest stopped unexpectedly in all three starts."""


def sha256(path):
    """Return the digest of a file. The cache stores the digest next to the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(release=STANDARD):
    """Return the cached root tree of a release as a tar file. Build the file if it is missing or
    damaged.
    """
    recipe = f"{RECIPE} {release} {_compiles(release)} {INIT} {' '.join(PACKAGES)}"
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    path = TREES / f"{key}.tar"
    mark = path.with_suffix(".sha256")
    with kept.locked(TREES):
        if not (path.exists() and mark.exists() and mark.read_text() == sha256(path)):
            with (
                kept.reporting_progress(f"virtual machine: root tree of {release}", "10 s to 60 s"),
                tempfile.TemporaryDirectory(dir=TREES) as folder,
            ):
                made = _make(Path(folder), release)
                made.rename(path)
            mark.write_text(sha256(path))
    return path


def _other_release(folder, release):
    """Return the apt options for another release of the same archive, with separate package
    lists.
    """
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CREATED_BY) $(REPO_URI)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    archives = [line.split()[1] for line in targets.splitlines() if line.startswith("Packages ")]
    archive = next(uri for uri in archives if uri.endswith("/debian/"))
    sources, lists = folder / "sources.list", folder / "lists"
    (lists / "partial").mkdir(parents=True)
    sources.write_text(f"deb [signed-by={KEYS}] {archive} {release} main\n")
    options = [
        "-o", f"Dir::Etc::SourceList={sources}",
        "-o", "Dir::Etc::SourceParts=-",
        "-o", f"Dir::State::Lists={lists}",
        "-o", f"Dir::Cache::pkgcache={folder / 'pkgcache.bin'}",
        "-o", f"Dir::Cache::srcpkgcache={folder / 'srcpkgcache.bin'}",
        "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    result = subprocess.run(
        ["apt-get", "-q", *options, "update"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"apt-get: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return options


def _make(folder, release):
    archives, root = folder / "archives", folder / "root"
    (archives / "partial").mkdir(parents=True)
    status = folder / "status"
    status.touch()
    apt = ["apt-get", "-q", "-y", "--no-install-recommends", "--download-only"]
    options = [
        f"Dir::State::status={status}",
        f"Dir::Cache::archives={archives}",
        "APT::Sandbox::User=root",
        "Debug::NoLocking=true",
    ]
    for option in options:
        apt += ["-o", option]
    if release != STANDARD:
        apt += _other_release(folder, release)
    result = subprocess.run(
        [*apt, "install", *PACKAGES], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"apt-get: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    root.mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    for name in ("proc", "sys", "dev", "run", "tmp", "job", "root", "etc", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("bash")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "vminit").write_text(INIT)
    (root / "vminit").chmod(0o755)
    python = RELEASES[release]
    _compile(root / "usr/lib/python3", "/usr/lib/python3", release)
    _compile(root / f"usr/lib/python{python}", f"/usr/lib/python{python}", release)
    kernels = (root / "boot").glob("vmlinuz-*"), (root / "usr/lib/modules").glob("*/vmlinuz")
    kernel = min(itertools.chain(*kernels))
    shutil.move(kernel, root / "vmlinuz")
    shutil.rmtree(root / "usr/share/doc", ignore_errors=True)
    shutil.rmtree(root / "usr/share/locale", ignore_errors=True)
    made = folder / "tree.tar"
    with tarfile.open(made, "w") as tar:
        tar.add(root, arcname=".")
    return made


def libraries(*, network=False, release=STANDARD):
    """Return a directory with the libraries that a pass needs, for the Python version of a release.

    With `network`, the directory contains all libraries of the agent, including the API client.
    """
    lock = Path("requirements.lock").read_text()
    expected, keep = [], False
    for line in lock.splitlines():
        if line and not line.startswith((" ", "#")):
            keep = network or line.split("==")[0] in LIBRARIES
        if keep:
            expected.append(line)
    text = "\n".join(expected) + "\n"
    key = f"{RECIPE} {RELEASES[release]} {_compiles(release)} {text}"
    path = INSTALLED / hashlib.sha256(key.encode()).hexdigest()[:16]
    with kept.locked(INSTALLED):
        if not (path / "complete").exists():
            shutil.rmtree(path, ignore_errors=True)
            _install(text, path, RELEASES[release])
            _compile(path, "/job/libraries", release)
            (path / "complete").touch()
    return path


def _install(text, path, python):
    """Install the packages of a lock file for a version of Python into a new directory."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes",
             "--only-binary=:all:", f"--python-version={python}", "--implementation=cp",
             "--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64",
             "--platform=manylinux_2_28_x86_64", "--no-compile", "--target", path, "-r",
             file.name],
            check=True,
        )  # fmt: skip


def _compiles(release):
    """Return whether the bytecode of this Python is valid in the guest."""
    this = ".".join(map(str, sys.version_info[:2]))
    return this == RELEASES[release] and sys.implementation.name == "cpython"


def _compile(folder, place, release):
    """Compile modules for their path in the guest, because the emulated guest is slow.

    A guest with a different Python version compiles its modules itself.
    """
    if _compiles(release):
        command = [sys.executable, "-m", "compileall", "-q", "-f", "-s", folder, "-p", place]
        # Debian ships template files with the suffix .py that Python cannot compile.
        subprocess.run([*command, "--invalidation-mode", "unchecked-hash", folder],
            stdout=subprocess.DEVNULL, check=False)  # fmt: skip


def disk(folder, files, *, network=False, release=STANDARD):
    """Create the disk of one run, with the root tree, the installed agent and the given files."""
    root = folder / "root"
    root.mkdir()
    with tarfile.open(tree(release)) as tar:
        tar.extractall(root, filter="fully_trusted")  # noqa: S202 - made here, checksum verified
    (root / "vmlinuz").rename(folder / "vmlinuz")
    shutil.copytree(
        libraries(network=network, release=release), root / "job/libraries", dirs_exist_ok=True
    )
    shutil.copytree(Path(agent.__file__).parent, root / "job/libraries/agent")
    _compile(root / "job/libraries/agent", "/job/libraries/agent", release)
    version = metadata.version("profile-loader")
    about = root / f"job/libraries/profile_loader-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: profile-loader\nVersion: {version}\n"
    )
    for name, content in files.items():
        path = root / "job" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    image = folder / "disk.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, image, "900M"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(root)
    return image


def run(  # noqa: PLR0913 - what a guest consists of
    files: Mapping[str, bytes],
    command: str,
    *,
    timeout_seconds: float,
    append: str = "",
    keep: Path | None = None,
    network: bool = False,
    drives: Sequence[Path] = (),
    release: str = STANDARD,
) -> GuestResult:
    """Run a bash command in a new guest, in the directory /job.

    Args:
        files: The files in /job, by their relative paths.
        command: The command to run.
        timeout_seconds: The time limit of each start.
        append: A text to append to the command line of the kernel, for example `apparmor=0`.
        keep: A directory for the disk. A later run with the same directory boots from this disk,
            with new files and a new command. If a guest crashes, its changes are discarded.
        network: Whether the guest has a network and every library of the agent. In the guest, the
            address HOST is the loopback interface of this machine.
        drives: Additional disks.
        release: The Debian release, a key of RELEASES.
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image = folder / "disk.img"
        files = {**files, "command": (NETWORK * network + command).encode()}
        if image.exists():
            _add(folder, image, files)
        else:
            disk(folder, files, network=network, release=release)
        output = ""
        used = image if keep is None else folder / "used.img"
        for boot in range(1, STARTS + 1):
            if keep is not None:
                subprocess.run(["cp", "--sparse=always", image, used], check=True)
            more = ["-snapshot"] * (keep is None) + list(CARD) * network
            more += [word for number, path in enumerate(drives) for word in _drive(number, path)]
            output, ended = _boot(folder, used, append, timeout_seconds, more)
            lines = output.rstrip().rsplit("\n", 1)
            if lines[-1].startswith("VM-EXIT "):
                used.replace(image)
                seconds = time.monotonic() - begin
                print(f"virtual machine: {boot} start(s), {seconds:.1f} s")
                text = lines[0] if len(lines) > 1 else ""
                return GuestResult(int(lines[-1].split()[1]), text, boot, seconds)
            console = (folder / "console").read_text("utf-8", "replace")[-1500:]
            how = "died" if ended else f"did not end within {timeout_seconds:g} s"
            print(f"virtual machine: start {boot} {how}:\n{console}")
        raise GuestError(f"the guest {how}, at start {STARTS}; its output:\n{output[-3000:]}")


def _add(folder, image, files):
    """Write files into a kept disk, and replace existing files with the same names."""
    source = folder / "file"
    for name, content in files.items():
        source.write_bytes(content)
        for request in (f"rm /job/{name}", f"write {source} /job/{name}"):
            subprocess.run(["debugfs", "-w", "-R", request, image], check=True, capture_output=True)


def _drive(number, path):
    """Return the options for an additional disk (/dev/nvme1n1 and so on). Without `keep`, the disk
    is read-only.
    """
    drive = f"file={path},format=raw,if=none,id=d{number}"
    return ["-drive", drive, "-device", f"nvme,drive=d{number},serial=d{number}"]


def _boot(folder, image, append, timeout_seconds, more):
    """Run the emulator, and return the command's output and whether the guest stopped by itself."""
    serial = folder / "output"
    serial.write_bytes(b"")
    (folder / "console").write_bytes(b"")
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1024",
        "-display", "none", "-no-reboot", "-nodefaults",
        "-serial", f"file:{folder / 'console'}", "-serial", f"file:{serial}",
        "-kernel", str(folder / "vmlinuz"),
        "-append", f"{KERNEL} {append}",
        "-drive", f"file={image},format=raw,if=none,id=r", "-device", "nvme,drive=r,serial=r",
        *more,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended, limit, since_power_off = False, pace.Limit(timeout_seconds), 0
    try:
        # In rare cases, the emulator continues to run after the guest has written its disk and
        # powered off.
        while not (ended or limit.expired() or since_power_off > POWER_OFF_SECONDS):
            since_power_off += POWER_OFF in (folder / "console").read_bytes()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                ended = True
    finally:
        process.kill()
        process.wait()
    return serial.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n"), ended
