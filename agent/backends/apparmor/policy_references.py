"""A second proof of disuse: whether anything in the kernel still references a profile.

Linux 6.1 hides the pending exec of another thread. But the kernel keeps the raw data of a policy
version, a directory in policy/raw_data, as long as anything references a profile of it: a thread, a
pending exec, a file that a confined process opened. So a profile is replaced by the very same
policy in other bytes; when the raw data of every earlier version are gone, nothing but the loaded
profile itself and threads that took the new version are left, and a look at /proc finds those.

The proof is one-sided. If raw data stay, the result is "cannot tell". Linux 6.1 never releases the
first version of a profile with hats or children, so their disuse cannot be proven. The same is true
of a profile in complain mode after the kernel created a learning profile (`NAME//null-PROGRAM`)
below it: a replacement moves a learning profile to the new version, and it has no raw data.
"""

import secrets
from collections.abc import Collection
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.kernel import Kernel
from agent.backends.apparmor.kernel_access import ROOT, Probes
from agent.host.filesystem import Host, HostError
from agent.host.stat_signature import Signature

_LOADED: Final = f"{ROOT}/profiles"  # learning profiles are listed here, and have no directory
_RAW_DATA: Final = f"{ROOT}/policy/raw_data"
RELEASE_SECONDS: Final = 1.0  # the kernel needs 4 to 32 ms where measured, in emulation
_POLL_SECONDS: Final = 0.002
_FILLER_BYTES: Final = 16


class PolicyReferences:
    """What the kernel shows of the policy versions that something references."""

    def __init__(self, host: Host, kernel: Kernel, probes: Probes) -> None:
        self.host = host
        self.kernel = kernel
        self.probes = probes
        # What each entry of policy/raw_data declares; None where its layout is not known.
        self._declared: dict[str, tuple[Signature | None, frozenset[str] | None]] = {}

    def why_unproven(self, names: Collection[str]) -> str:
        """Return why one of these loaded profiles may still be referenced, or nothing.

        Replaces the profiles by the same policy in other bytes. names: loaded profiles with all
        their hats and children, whose content is agent-owned.
        """
        try:
            return self._why_unproven(frozenset(names))
        except compiled_policy.PolicyError as error:
            return f"the loaded policy cannot be read ({error})"
        except (HostError, OSError) as error:
            return f"the loaded policy cannot be read or replaced ({error})"

    def _why_unproven(self, names: frozenset[str]) -> str:
        earlier = self.kernel.raw_directories(names)
        if earlier.keys() != names:
            return "the loaded profiles changed during the check"
        if not set(earlier.values()) >= self._declaring(names):
            return "a process, a pending exec or an open file still holds an earlier version of it"
        why = self._learning(names) or self._shared(names, frozenset(earlier.values()))
        if why:
            return why
        directories = dict.fromkeys(earlier.values())
        blobs = [self.host.read(f"{_RAW_DATA}/{one}/raw_data") for one in directories]
        filler = secrets.token_hex(_FILLER_BYTES // 2).encode()
        blob = compiled_policy.rewrap(blobs, names, filler)
        if compiled_policy.names(blob) != names:
            return "the loaded policy does not declare it"
        self.kernel.replace(blob)
        return self._wait(names, blob) or self._learning(names)

    def _learning(self, names: frozenset[str]) -> str:
        """Return which learning profile below one of the names may be referenced, or nothing."""
        content = self.host.read(_LOADED).decode("utf-8", "surrogateescape")
        loaded = {line.rpartition(" (")[0] for line in content.split("\n")}
        below = min(
            (
                name
                for name in loaded - names
                if not names.isdisjoint(compiled_policy.ancestors(name))
            ),
            default="",
        )
        return f'a pending exec may hold the learning profile "{below}"' if below else ""

    def _shared(self, names: frozenset[str], directories: frozenset[str]) -> str:
        """Return which other loaded profile came with the same policy: it keeps the raw data."""
        together: frozenset[str] = frozenset()
        for directory in directories:
            together |= self._declares(directory) or frozenset()
        loaded = self.kernel.raw_directories(together - names)
        others = sorted(name for name, directory in loaded.items() if directory in directories)
        return f'it was loaded together with "{others[0]}", which stays' if others else ""

    def _wait(self, names: frozenset[str], blob: bytes) -> str:
        """Wait until the raw data of the new blob are the only ones that declare the names."""
        new = set(self.kernel.raw_directories(names).values())
        if len(new) != 1 or self.host.read(f"{_RAW_DATA}/{min(new)}/raw_data") != blob:
            return "the loaded profiles changed during the check"
        end = self.probes.clock() + RELEASE_SECONDS
        while self._declaring(names) != new:
            if self.probes.clock() >= end:
                return "a process, a pending exec or an open file still holds it"
            self.probes.pause(_POLL_SECONDS)
        return ""

    def _declaring(self, names: frozenset[str]) -> set[str]:
        """Return the entries of policy/raw_data that declare one of the names, or may do so."""
        listed = self.host.names(_RAW_DATA)
        self._declared = {one: self._declared[one] for one in listed if one in self._declared}
        return {one for one in listed if self._may_declare(one, names)}

    def _may_declare(self, directory: str, names: frozenset[str]) -> bool:
        path = f"{_RAW_DATA}/{directory}/raw_data"
        try:
            declared = self._declares(directory)
            if declared is not None:
                return not declared.isdisjoint(names)
            # A layout that this agent does not know: the bytes of a name must not occur in it.
            content = self.host.read(path)
            return any(name.encode("utf-8", "surrogateescape") in content for name in names)
        except HostError:
            return self.host.exists(path)  # it may have gone since it was listed

    def _declares(self, directory: str) -> frozenset[str] | None:
        """Return the names that an entry of policy/raw_data declares; None: an unknown layout.

        Raises HostError.
        """
        path = f"{_RAW_DATA}/{directory}/raw_data"
        signature = self.host.signature(path)
        known = self._declared.get(directory)
        if known is not None and signature is not None and known[0] == signature:
            return known[1]
        try:
            declared: frozenset[str] | None = compiled_policy.names(self.host.read(path))
        except compiled_policy.PolicyError:
            declared = None
        self._declared[directory] = (signature, declared)
        return declared
