"""Unpacks packages of other Debian releases into a directory.

The packages come from the archive that apt uses on this machine. apt verifies the signatures of the
package indexes and the checksum of each package.
"""

import functools
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def archive_address() -> str:
    """Return the address of the Debian archive that apt uses on this machine."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    ).stdout.splitlines()  # fmt: skip
    return next(site for site, suite in map(str.split, targets) if suite == release)


def unpack(packages: Sequence[str], suite: str, folder: Path) -> None:
    """Download packages of a release with a separate configuration of apt, and unpack them.

    The folder for the files must not exist yet.
    """
    apt = folder.with_name(f"{folder.name}.apt")
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] {archive_address()} {suite} main\n")
    settings = {
        "Dir::State": apt,
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt,
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    run = functools.partial(subprocess.run, check=True, stdin=subprocess.DEVNULL)
    run(["apt-get", "-qq", *options, "update"])
    folder.mkdir(parents=True)
    run(["apt-get", "-qq", *options, "download", *packages], cwd=folder)
    for archive in folder.glob("*.deb"):
        run(["dpkg-deb", "-x", str(archive), str(folder)])
        archive.unlink()
    shutil.rmtree(apt)
