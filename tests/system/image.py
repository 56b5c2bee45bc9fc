"""The image, built from the Containerfile without any registry.

Its base is made by mmdebstrap from Debian's packages, and Python's packages come by hash from
where pip is configured to look. Base and wheels are kept below ~/.cache/profile-loader.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CACHE = Path.home() / ".cache/profile-loader/image"
RECIPE = 1  # part of the cache's key: count up when base or wheels are made differently
SUITE = "trixie"
INPUTS = (
    "Containerfile",
    "requirements-run.lock",
    "pyproject.toml",
    "README.md",
    "scripts/bytecode",
    "agent",
)


@dataclass(frozen=True)
class Image:
    """A built image: its file system's root, and its configuration."""

    root: Path
    config: dict

    def run(self, *arguments, mounts=(), check=True):
        """Run the entry point in a chroot of the image; return what it printed and its status."""
        command = ["chroot", str(self.root), "/usr/bin/env", "-i", *self.config["Env"]]
        command += [*self.config["Entrypoint"], *map(str, arguments)]
        bound = []
        for source, target in (("/proc", "proc"), *mounts):
            place = self.root / str(target).lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", str(source), str(place)], check=True)
            bound.append(place)
        try:
            return subprocess.run(command, capture_output=True, text=True, check=check)
        finally:
            for place in reversed(bound):
                subprocess.run(["umount", "-l", str(place)], check=True)


def _key(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mirror():
    """Return where this machine takes Debian's packages from."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(COMPONENT)"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    return next(
        line.split()[0] for line in told if line.endswith(" main") and "security" not in line
    )


def base():
    """Return a tar of a minimal Debian, made anew where it is missing or damaged."""
    path = CACHE / f"base-{_key(RECIPE, SUITE)}.tar"
    mark = path.with_suffix(".sha256")
    if not (path.exists() and mark.exists() and mark.read_text() == _sha256(path)):
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "-q", "--variant=minbase", SUITE, str(path), mirror()]
        subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
        mark.write_text(_sha256(path))
    return path


def wheels():
    """Return a directory with the packages of the lock file, each checked by its hash."""
    lock = Path("requirements-run.lock")
    path = CACHE / f"wheels-{_key(RECIPE, lock.read_text())}"
    if not (path / "complete").exists():
        shutil.rmtree(path, ignore_errors=True)
        for version in ("3.13",):  # of the image's Python
            subprocess.run(
                [
                    sys.executable, "-m", "pip", "download", "-q", "--require-hashes", "--no-deps",
                    "--only-binary=:all:", "--python-version", version, "-r", str(lock),
                    "-d", str(path),
                ],
                check=True,
            )  # fmt: skip
        (path / "complete").touch()
    return path


def build(folder):
    """Build the image into a folder of its own; return it."""
    begin = time.monotonic()
    folder = Path(folder)
    context = folder / "context"
    context.mkdir(parents=True)
    for name in INPUTS:
        source = Path(name)
        if name == "agent":
            source = _package()
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (context / name).parent.mkdir(exist_ok=True)
            shutil.copy(source, context / name)
    pip = folder / "pip.conf"
    pip.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    buildah = [
        "buildah", "--storage-driver", "vfs",
        "--root", str(folder / "storage"), "--runroot", str(folder / "run"),
    ]  # fmt: skip

    def run(*words):
        done = subprocess.run([*buildah, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    made = run("from", "scratch")
    run("add", made, str(base()), "/")
    run("commit", "-q", made, "localhost/base")
    run(
        "bud", "-q", "--isolation", "chroot", "--timestamp", "0",
        "--build-arg", "BASE=localhost/base",
        "--volume", f"{wheels()}:/wheels:ro", "--volume", f"{pip}:/etc/pip.conf:ro",
        "-t", "localhost/profile-loader", str(context),
    )  # fmt: skip
    config = json.loads(run("inspect", "--type", "image", "localhost/profile-loader"))
    container = run("from", "localhost/profile-loader")
    root = Path(run("mount", container))
    print(f"image: built in {time.monotonic() - begin:.0f} s")
    return Image(root=root, config=config["OCIv1"]["config"])


def _package():
    import agent

    return Path(agent.__file__).parent


def digests(root):
    """Return what distinguishes two trees: mode, owner and content of each path."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = _sha256(path)
        found[name] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def temporary():
    """Return a folder for one build."""
    return tempfile.TemporaryDirectory(prefix="image-")
