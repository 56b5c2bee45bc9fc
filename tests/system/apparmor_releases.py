"""Provides backends with the apparmor_parser of several Debian releases."""

import shlex
from pathlib import Path

from agent.core.model import SourceKey
from agent.host.filesystem import Host
from tests import include_search
from tests.inspection import apparmor_backend, inspected
from tests.system import kept

RELEASES = ("host", "trixie", "sid")


def include_dir(release):
    """Return the include directory of a release."""
    if release == "host":
        return Path("/etc/apparmor.d")
    return kept.CACHE / "apparmor" / release / "etc/apparmor.d"


def command(release):
    """Return the command of the parser of a release."""
    return (
        ["/sbin/apparmor_parser"] if release == "host" else include_search.other_releases()[release]
    )


def backend_options(release, folder):
    """Return the backend options for the parser of one release.

    If the release is not the release of this machine, the backend runs its parser through a script
    in the folder.
    """
    if release == "host":
        return {"include_dir": "/etc/apparmor.d"}
    words = command(release)
    script = Path(folder, f"parser-{release}")
    # The agent filters parser messages by the words in the parser program, so `words` must match
    # the command.
    start = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
    script.write_bytes(start.encode() + Path(words[-1]).read_bytes())
    script.chmod(0o755)
    return {"parser": str(script), "include_dir": str(include_dir(release))}


def inspect(folder, options, text):
    """Return the result of the inspection of one text."""
    backend = apparmor_backend(Host(folder), checking=True, **options)
    source_key = SourceKey(profile_set="dir test", key="key", content=text.encode())
    (result,) = inspected(backend, source_key)
    return result
