"""Whether AppArmor policy can be looked at and changed here.

Rule: absent, unreadable and unsupported are three answers.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.backends.apparmor import pending_exec
from agent.core.findings import Finding
from agent.core.model import Unobservable, Unsupported
from agent.host.filesystem import Host, HostError

SECURITYFS = "/sys/kernel/security"
ROOT = f"{SECURITYFS}/apparmor"
SECURITYFS_MAGIC = 0x73636673  # linux/magic.h
_ENABLED = "/sys/module/apparmor/parameters/enabled"
_SHOWS = tuple(
    f"/sys/module/apparmor/parameters/{name}" for name in ("hash_policy", "export_binary")
)
_CAP_MAC_ADMIN = 33  # linux/capability.h


def filesystem(path: Path) -> int:
    """Return the magic number of the file system at path (statfs(2)). Raises OSError."""
    words = (ctypes.c_long * 64)()
    library = ctypes.CDLL(None, use_errno=True)
    if library.statfs(os.fsencode(path), ctypes.byref(words)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(words[0]) & 0xFFFFFFFF


def rights() -> str:
    """Return why this process may not change policy, or nothing (policy_admin_capable)."""
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
    """What this process is told about itself; tests give other answers."""

    filesystem: Callable[[Path], int] = filesystem
    rights: Callable[[], str] = rights
    shows_pending_exec: Callable[[Host], bool] = pending_exec.is_shown
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


class KernelAccess:
    """The way to AppArmor's files below one host root."""

    def __init__(self, host: Host, probes: Probes) -> None:
        self.host = host
        self.probes = probes
        self.passed = False  # the last look found no barrier

    def missing(self) -> str:
        """Return why there is no AppArmor below the host root, or nothing."""
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
        """Return why policy cannot be looked at and changed here, or None."""
        found = self._barrier()
        self.passed = found is None
        return found

    def _barrier(self) -> Unsupported | Unobservable | None:
        why = self.missing()
        if why:
            return Unsupported(
                finding=Finding(
                    code="kind_unsupported",
                    location=ROOT,
                    message=f"AppArmor cannot be used on this node: {why}.",
                    hint="Boot with AppArmor enabled, or send pods that need it elsewhere.",
                )
            )
        try:
            why = self._hidden()
        except (HostError, OSError) as error:
            why = f"it cannot be read ({error})"
        return blind(why) if why else None

    def _hidden(self) -> str:
        if self.probes.filesystem(self.host.path(SECURITYFS)) != SECURITYFS_MAGIC:
            return f"{SECURITYFS} below the host root is not a securityfs"
        if not self.host.exists(f"{ROOT}/features"):
            return "the kernel has AppArmor, but its files are not there"
        level = f"{ROOT}/.ns_level"
        if self.host.exists(level) and self.host.read(level).strip() != b"0":
            return "this is a child policy namespace, not the host's"
        why = self.probes.rights()
        if why:
            return why
        if not os.access(self.host.path(f"{ROOT}/.replace"), os.W_OK):
            return "securityfs is read-only here"
        return ""

    def hides_content(self) -> bool:
        """Return whether the kernel shows neither hashes nor loaded bytes of what is loaded now."""
        try:
            return all(
                self.host.exists(file) and self.host.read(file).strip() == b"N" for file in _SHOWS
            )
        except HostError:
            return False

    def features(self) -> bytes:
        """Return everything that the kernel says about its features. Raises HostError."""
        parts: list[bytes] = []
        stack = [f"{ROOT}/features"]
        while stack:
            path = stack.pop()
            if self.host.path(path).is_dir():
                stack += [f"{path}/{name}" for name in self.host.names(path)]
            else:
                content = self.host.read(path, limit=1 << 20)
                parts.append(path.encode() + b"\0" + content + b"\0")
        return b"".join(sorted(parts))


def blind(why: str) -> Unobservable:
    """Return that AppArmor is there, or may be, and cannot be looked at."""
    return Unobservable(
        finding=Finding(
            code="kind_unobservable",
            location=ROOT,
            message=f"AppArmor policy cannot be observed: {why}. Nothing is changed.",
            hint="Run as root with CAP_MAC_ADMIN, unconfined, with the host's securityfs writable.",
        )
    )
