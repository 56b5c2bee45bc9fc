"""Builds the image of the Containerfile without an image registry.

mmdebstrap builds the base image from Debian packages. pip downloads the Python packages from its
configured index, and verifies their hashes. The base image, the wheels and the last two images are
cached with their checksums in ~/.cache/profile-loader/image.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import agent
from tests.system import kept, vm

CACHE = kept.CACHE / "image"
RECIPE = 3  # This version is part of every cache key. Increase the version when the build changes.
SUITE = "trixie"
VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
# `profile-loader --version` prints this revision.
REVISION = "0123456789abcdef0123456789abcdef01234567"
# The name of the image in the documents and in manifests/base.
NAME = f"docker.io/library/profile-loader:{VERSION}"
INPUTS = (
    "Containerfile",
    "requirements.lock",
    "requirements-run.lock",
    "pyproject.toml",
    "README.md",
    "scripts/bytecode",
    "scripts/sbom",
)
# debian:trixie-slim omits these files, according to its /etc/dpkg/dpkg.cfg.d/docker.
SLIM = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/linda/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image: its file system, its configuration and its docker-archive."""

    root: Path
    config: dict
    packed: Path

    def run(self, *arguments, mounts=(), check=True):
        """Run the entry point as the DaemonSet does, with a read-only file system.

        The only capability is CAP_MAC_ADMIN. The mounts exist only in the mount namespace of the
        command.

        Args:
            arguments: The arguments of the entry point.
            mounts: Pairs of a source and a name; each source is mounted at /mnt/name.
            check: Whether an exit status other than 0 is an error.
        """
        return self.execute(*self.config["Entrypoint"], *arguments, mounts=mounts, check=check)

    def execute(self, *command, mounts=(), check=True):
        """Run any command in the image, with the same restrictions as `run`."""
        root = shlex.quote(str(self.root))
        script = [
            "set -e",
            f"mount --bind {root} {root}",
            f"mount -o remount,bind,ro {root}",
            f"mount -t proc proc {root}/proc",
            f"mount -t tmpfs tmpfs {root}/tmp",  # noqa: S108 - of the image
            f"mount -t tmpfs tmpfs {root}/mnt",
        ]
        for source, name in mounts:
            place = f"{root}/mnt/{name}"
            script += [f"mkdir {place}", f"mount --bind {shlex.quote(str(source))} {place}"]
        inside = [
            "chroot", str(self.root), "/usr/bin/setpriv", "--no-new-privs",
            "--bounding-set=-all,+mac_admin", "--inh-caps=-all", "/usr/bin/env", "-i",
            *self.config["Env"], *map(str, command),
        ]  # fmt: skip
        script.append("exec " + shlex.join(inside))
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script)],
            capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def build():
    """Return the image of this checkout. Build the image if it is missing, damaged or outdated."""
    with kept.locked(CACHE):
        folder = CACHE / f"built-{_key(_sources(), base().name)}"
        if not _whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with kept.reporting_progress("image", "about a minute"), _scratch() as scratch:
                make(scratch, pack=True)
                scratch.rename(folder)
        os.utime(folder)
        for old in sorted(CACHE.glob("built-*"), key=lambda one: -one.stat().st_mtime)[2:]:
            shutil.rmtree(old)
        return _image(folder)


def second_build_digests():
    """Return the digests of a second build from the same sources. The digests are cached."""
    digests_file = build().root.parent / "again.json"
    with kept.locked(CACHE):
        if not digests_file.exists():
            with (
                kept.reporting_progress("image, a second time", "about a minute"),
                _scratch() as scratch,
            ):
                digests_file.write_text(json.dumps(digests(make(scratch, pack=False).root)))
        return json.loads(digests_file.read_text())


def archive(path):
    """Write the image as a docker-archive with the name NAME, for `ctr images import`."""
    shutil.copyfile(build().packed, path)


def make(folder, *, pack):
    """Build the image and, if requested, its archive in an empty folder. Return the image."""
    context = folder / "context"
    context.mkdir()
    for name in INPUTS:
        (context / name).parent.mkdir(exist_ok=True)
        shutil.copy(name, context / name)
    shutil.copytree(_package(), context / "agent")
    pip = folder / "pip.conf"
    pip.write_text("[global]\nno-index = true\nfind-links = /media\n")
    storage = folder / "storage"
    buildah = [
        "buildah", "--storage-driver", "vfs", "--root", str(storage), "--runroot",
        str(folder / "run"),
    ]  # fmt: skip

    def run(*words):
        result = subprocess.run([*buildah, *words], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{words}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        return result.stdout.strip()

    made = run("from", "scratch")
    run("add", "-q", made, str(base()), "/")
    run("commit", "-q", "--rm", made, "localhost/base")
    run(
        "bud", "-q", "--isolation", "chroot", "--timestamp", "0",
        "--build-arg", "BASE=localhost/base", "--build-arg", f"REVISION={REVISION}",
        "--volume", f"{wheels()}:/media:ro", "--volume", f"{pip}:/etc/pip.conf:ro",
        "-t", NAME, str(context),
    )  # fmt: skip
    if pack:
        run("push", "-q", NAME, f"docker-archive:{folder / 'image.tar'}:{NAME}")
        (folder / "image.sha256").write_text(vm.sha256(folder / "image.tar"))
    config = json.loads(run("inspect", "--type", "image", NAME))["OCIv1"]["config"]
    Path(run("mount", run("from", NAME))).rename(folder / "root")
    shutil.rmtree(storage)
    shutil.rmtree(folder / "run")
    shutil.rmtree(context)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "digests.json").write_text(json.dumps(digests(folder / "root")))
    return _image(folder)


def base():
    """Return the tar file of a minimal Debian system. Build the file if it is missing or
    damaged.
    """
    path = CACHE / f"base-{_key(RECIPE, SUITE, *SLIM)}.tar"
    mark = path.with_suffix(".sha256")
    if not (path.exists() and mark.exists() and mark.read_text() == vm.sha256(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "-q", "--variant=minbase"]
        command += [f"--dpkgopt={item}" for item in SLIM]
        # mmdebstrap copies these files from this machine, but the image must not contain them.
        command += ['--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"']
        command += [SUITE, str(path), mirror()]
        with kept.reporting_progress("image: its Debian base", "about a minute"):
            subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
        mark.write_text(vm.sha256(path))
    return path


def mirror():
    """Return the address of the Debian mirror that this machine uses."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line.split() for line in targets.splitlines() if "security" not in line]
    return next(words[0] for words in lines if words[-1] == "main")


def wheels():
    """Return a directory with the packages of the lock files. pip has verified the hashes of the
    packages.
    """
    locks = [Path(name) for name in INPUTS if name.endswith(".lock")]
    path = CACHE / f"wheels-{_key(RECIPE, *(lock.read_text() for lock in locks))}"
    if not (path / "complete").exists():
        shutil.rmtree(path, ignore_errors=True)
        for lock in locks:
            subprocess.run(
                [
                    sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q",
                    "--require-hashes", "--no-deps", "--only-binary=:all:",
                    "--python-version", "3.13",  # the Python version of the image
                    "-r", str(lock), "-d", str(path),
                ],
                check=True,
            )  # fmt: skip
        (path / "complete").touch()
    return path


def digests(root):
    """Return the mode, the owner and the content digest of each file in a tree, by path."""
    result = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = vm.sha256(path)
        name = str(path.relative_to(root))
        result[name] = [oct(status.st_mode), status.st_uid, status.st_gid, content]
    return result


def _image(folder):
    config = json.loads((folder / "config.json").read_text())
    return Image(root=folder / "root", config=config, packed=folder / "image.tar")


def _whole(folder):
    """Return whether a cached image is complete and unchanged."""
    try:
        result = json.loads((folder / "digests.json").read_text())
        packed = (folder / "image.sha256").read_text()
        return result == digests(folder / "root") and packed == vm.sha256(folder / "image.tar")
    except (OSError, ValueError):
        return False


def _package():
    """Return the directory of the agent's package, either in the checkout or from the installed
    wheel.
    """
    return Path(agent.__file__).parent


def _sources():
    """Return one digest for all files of the project that the image contains."""
    package = _package()
    paths = [Path(name) for name in INPUTS]
    result = [(str(path), vm.sha256(path)) for path in paths]
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            result.append((str(path.relative_to(package)), vm.sha256(path)))  # noqa: PERF401 - clearer
    return _key(RECIPE, NAME, REVISION, result)


@contextmanager
def _scratch():
    """Yield a folder next to the cached images. At the end, delete the folder unless it was
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
