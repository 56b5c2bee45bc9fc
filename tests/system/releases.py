"""Packages of other Debian and Ubuntu releases, unpacked beside those of this machine.

Their package indexes are signed; apt verifies the signature and the checksum of every package.
"""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

DEBIAN = "http://deb.debian.org/debian"
DEBIAN_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def unpack(
    packages: Sequence[str],
    suite: str,
    folder: Path,
    *,
    site: str = DEBIAN,
    keys: Path = DEBIAN_KEYS,
) -> None:
    """Download packages of a release with apt, in a configuration of its own, and unpack them.

    folder: where the files go; it must not exist.
    """
    apt = folder.with_name(f"{folder.name}.apt")
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={keys}] {site} {suite} main\n")
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
