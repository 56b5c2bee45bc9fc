"""Manages the cache of files that the system tests build, in ~/.cache/profile-loader.

Tests run in parallel processes, and any of these processes may be the first that needs a file.
Therefore, only one process at a time checks a folder of the cache and builds missing files. A
process that had to wait for the lock checks the folder again.
"""

import contextlib
import fcntl
import shutil
import subprocess
import threading
import time
from pathlib import Path

CACHE = Path.home() / ".cache/profile-loader"
PACKAGES = CACHE / "corpora"


@contextlib.contextmanager
def locked(folder):
    """Lock a folder of the cache, so that only one process at a time uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.name}: another process is already building it; waiting", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def reporting_progress(what, usual, progress=lambda: "", *, every=60.0):
    """Print what is being built and how long the build usually takes. Then print the progress from
    time to time.

    Args:
        what: A description of the result, for example "virtual machine: root tree".
        usual: The usual duration, in words.
        progress: A function that returns a description of the progress.
        every: The number of seconds between two progress reports.
    """
    begin = time.monotonic()
    print(f"{what}: the build usually takes {usual}", flush=True)
    finished = threading.Event()

    def report():
        while not finished.wait(every):
            seconds = time.monotonic() - begin
            print(
                f"{what}: the build is still running after {seconds:.0f} s {progress()}", flush=True
            )

    reporter = threading.Thread(target=report)
    reporter.start()
    try:
        yield
    finally:
        finished.set()
        reporter.join()
    print(f"{what}: made in {time.monotonic() - begin:.0f} s", flush=True)


def package(name):
    """Return a directory with the files of a Debian package. Download the package if it is
    missing.
    """
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
