"""Determines whether the AppArmor policy on this host can be observed and changed.

A kernel without AppArmor, an unreadable policy, and a missing permission are different results.
This module neither reads nor changes profiles; `policy_view` reads them, and `policy_writer`
changes them.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.backends.apparmor import pending_exec
from agent.core import common_findings
from agent.core.model import Unobservable, Unsupported
from agent.host.filesystem import Host, HostError

SECURITYFS: Final = "/sys/kernel/security"
ROOT: Final = f"{SECURITYFS}/apparmor"
SECURITYFS_MAGIC: Final = 0x73636673  # linux/magic.h
_ENABLED: Final = "/sys/module/apparmor/parameters/enabled"
_CONTENT_PARAMETERS: Final = tuple(
    f"/sys/module/apparmor/parameters/{name}" for name in ("hash_policy", "export_binary")
)
_CAP_MAC_ADMIN: Final = 33  # linux/capability.h
_FEATURE_BYTES: Final = 1 << 20
_RUN_AS_ROOT: Final = "Run the agent as root with CAP_MAC_ADMIN, and unconfined by AppArmor."
_MOUNT: Final = f"Mount the host's securityfs read-write at {SECURITYFS} below the host root."
# On every architecture, struct statfs has fewer words than this number.
_STATFS_WORDS: Final = 64


def filesystem_magic(path: Path) -> int:
    """Return the magic number of the file system at a path (statfs(2)).

    Raises:
        OSError: the path cannot be examined.
    """
    words = (ctypes.c_long * _STATFS_WORDS)()
    library = ctypes.CDLL(None, use_errno=True)
    if library.statfs(os.fsencode(path), ctypes.byref(words)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(words[0]) & 0xFFFFFFFF


def missing_right() -> str:
    """Return the missing permission without which this process cannot change policy, or "" if none
    is missing.

    The kernel checks the same permissions (security/apparmor/policy.c: aa_policy_admin_capable).
    """
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line
    )
    if status["Uid"].split()[1] != "0":
        return "the agent does not run as root"
    if not int(status["CapEff"], 16) >> _CAP_MAC_ADMIN & 1:
        return "the agent lacks the capability CAP_MAC_ADMIN"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The functions with which the backend examines its process and its kernel, and waits."""

    filesystem: Callable[[Path], int]
    """Returns the magic number of a file system."""

    rights: Callable[[], str]
    """Returns the missing permission without which this process cannot change policy."""

    shows_pending_exec: Callable[[Host], bool]
    """Returns whether the kernel shows the pending exec of another thread."""

    clock: Callable[[], float]
    """Returns monotonic seconds."""

    pause: Callable[[float], None]
    """Waits for a number of seconds."""


SYSTEM_PROBES: Final = Probes(
    filesystem=filesystem_magic,
    rights=missing_right,
    shows_pending_exec=pending_exec.is_shown,
    clock=time.monotonic,
    pause=time.sleep,
)
"""The probes of this process and of the running kernel."""


class KernelAccess:
    """Gives access to AppArmor's files under one host root."""

    def __init__(self, host: Host, probes: Probes) -> None:
        self.host = host
        self.probes = probes
        self.is_open = False
        """Whether the agent could access the policy at the last call to `barrier`."""

    def unsupported_reason(self) -> str:
        """Return the reason why the host root has no AppArmor, or "" if it has or may have
        AppArmor.
        """
        try:
            if self.host.exists(f"{ROOT}/features"):
                return ""
            enabled = self.host.read(_ENABLED).strip() if self.host.exists(_ENABLED) else b"N"
        except HostError:
            return ""
        if enabled == b"Y":
            return ""
        return "the kernel has no AppArmor, or it is switched off"

    def barrier(self) -> Unsupported | Unobservable | None:
        """Return the reason why policy cannot be observed and changed on this host, or None if
        there is none.
        """
        barrier = self._barrier()
        self.is_open = barrier is None
        return barrier

    def _barrier(self) -> Unsupported | Unobservable | None:
        reason = self.unsupported_reason()
        if reason:
            return Unsupported(
                finding=common_findings.kind_unsupported(
                    location=ROOT,
                    message=f"AppArmor cannot be used on this node: {reason}.",
                    hint="Boot with AppArmor enabled, or schedule pods that need it elsewhere.",
                )
            )
        try:
            obstacle = self._obstacle()
        except (HostError, OSError) as error:
            obstacle = (f"the policy cannot be read ({error})", _RUN_AS_ROOT)
        return unobservable(*obstacle) if obstacle is not None else None

    def _obstacle(self) -> tuple[str, str] | None:
        """Return why the agent has no access to the policy of a kernel with AppArmor, and the next
        step.
        """
        if self.probes.filesystem(self.host.path(SECURITYFS)) != SECURITYFS_MAGIC:
            return f"{SECURITYFS} below the host root is not a securityfs", _MOUNT
        if not self.host.exists(f"{ROOT}/features"):
            return "the kernel has AppArmor, but its files are missing", _MOUNT
        level = f"{ROOT}/.ns_level"
        if self.host.exists(level) and self.host.read(level).strip() != b"0":
            reason = "this is a child policy namespace, not the policy namespace of the host"
            return (
                reason,
                "Run the agent on the host, outside the container that has the namespace.",
            )
        reason = self.probes.rights()
        if reason:
            return reason, _RUN_AS_ROOT
        if not os.access(self.host.path(f"{ROOT}/.replace"), os.W_OK):
            return "securityfs is read-only here", _MOUNT
        return None

    def hides_content(self) -> bool:
        """Return whether the kernel will show neither the hash nor the bytes of a profile that is
        loaded now.
        """
        try:
            return all(
                self.host.exists(file) and self.host.read(file).strip() == b"N"
                for file in _CONTENT_PARAMETERS
            )
        except HostError:
            return False

    def features(self) -> bytes:
        """Return the content of all files that show the kernel's features.

        Raises:
            HostError: a file cannot be read.
        """
        parts: list[bytes] = []
        stack = [f"{ROOT}/features"]
        while stack:
            path = stack.pop()
            if self.host.path(path).is_dir():
                stack += [f"{path}/{name}" for name in self.host.names(path)]
            else:
                content = self.host.read(path, limit=_FEATURE_BYTES)
                parts.append(path.encode() + b"\0" + content + b"\0")
        return b"".join(sorted(parts))


def unobservable(reason: str, hint: str) -> Unobservable:
    """Return the result for a host that may have AppArmor but whose policy cannot be observed.

    Args:
        reason: why the policy cannot be observed.
        hint: the next step for the administrator.
    """
    return Unobservable(
        finding=common_findings.kind_unobservable(
            location=ROOT,
            subject="AppArmor policy",
            reason=reason,
            hint=hint,
        )
    )
