"""What this machine keeps of the tests' makings, below ~/.cache/profile-loader.

Rule: one process at a time looks at a folder of it and makes what is missing there; whoever waited
for another looks again. Tests run in lanes beside each other, and each may be the first.
"""

import contextlib
import fcntl
import shutil
import subprocess
from pathlib import Path

CACHE = Path.home() / ".cache/profile-loader"
PACKAGES = CACHE / "corpora"


@contextlib.contextmanager
def locked(folder):
    """Let one process at a time look at what a folder keeps and change it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.name}: another process is at it; this one waits", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def package(name):
    """Return a directory with the files of a Debian package, fetched where it is missing."""
    folder = PACKAGES / name
    with locked(PACKAGES):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            subprocess.run(["apt-get", "-q", "download", name], cwd=folder, check=True)
            (archive,) = folder.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
            (folder / "complete").touch()
    return folder
