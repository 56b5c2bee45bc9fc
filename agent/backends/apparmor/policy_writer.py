"""Writes policy to the kernel, to load, replace or remove profiles.

This module makes no decisions: `policy_changes` checks the node before each write and verifies the
result.
"""

import errno
import os
from typing import Final

from agent.backends.apparmor.kernel_access import ROOT
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.host.filesystem import Host, HostError

_NO_RIGHT: Final = "the agent has no right to change policy (CAP_MAC_ADMIN, unconfined)"
_NO_MEMORY: Final = "the kernel has no memory for the policy"
_MEANINGS: Final = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: "securityfs is mounted read-only",
    errno.EPROTO: "this kernel does not understand the compiled policy",
    errno.EPROTONOSUPPORT: "this kernel does not understand the version of the policy",
    errno.ENAMETOOLONG: "the name of a profile is too long",
    errno.ENOENT: "the parent of a hat or child is not loaded",
    errno.EEXIST: "a profile of that name is loaded",
    errno.ENOMEM: _NO_MEMORY,
    errno.ENOSPC: _NO_MEMORY,
}


def meaning(error: HostError) -> str:
    """Return a description of the error that a write of policy caused."""
    code = errno.errorcode.get(error.errno, str(error.errno))
    return f"{code}: {_MEANINGS.get(error.errno) or os.strerror(error.errno)}"


class PolicyWriter:
    """The files in securityfs that change the policy of one kernel."""

    def __init__(self, host: Host, view: PolicyView, release: RawDataRelease) -> None:
        self.host = host
        self.view = view
        self.release = release

    def load(self, policy: bytes) -> None:
        """Load all of the given new profiles, or none of them.

        Raises:
            HostError: the kernel rejected the policy; EEXIST if a name is already loaded.
        """
        self.release.wait()
        self._write("load", policy)

    def replace(self, policy: bytes) -> None:
        """Load or replace all of the given profiles, or none of them.

        Raises:
            HostError: the kernel rejected the policy.
        """
        self.release.wait()
        self._write("replace", policy)

    def remove(self, name: str) -> None:
        """Remove a profile with its hats and children.

        Raises:
            HostError: the kernel rejected the removal; ENOENT if the name is not loaded.
        """
        # The name is written without a newline, as the kernel expects.
        self._write("remove", name.encode("utf-8", "surrogateescape"))
        self.release.record_removal(name)

    def _write(self, file: str, content: bytes) -> None:
        self.host.write_kernel(f"{ROOT}/.{file}", content)
        self.view.record_write(is_removal=file == "remove")
