"""Checks that nothing in the kernel references a profile, even if /proc shows no reference.

/proc does not show the profile that an unfinished execve(2) has already chosen, or the credentials
that io_uring has stored. On Linux 6.1, /proc does not show the pending exec of another thread
either. The kernel keeps the raw data of a policy version (an entry of policy/raw_data) while
anything references a profile of that version, such as a zombie or a file that a confined process
opened. To prove that a profile is not referenced, the agent replaces the profile with a copy of the
same policy whose bytes differ. When the raw data of every earlier version are gone, only threads
with the new version can remain. The module `processes` finds these threads in /proc.

If raw data of an earlier version remain, the profile may still be referenced. The check therefore
fails for profiles with hats or children on Linux 6.1 and 7.2, because these kernels never release
the first version of such profiles. In complain mode the kernel creates learning profiles
(`NAME//null-PROGRAM`). A replacement moves a learning profile to the new version, and a learning
profile has no raw data. Therefore, the check also fails for a profile that has a learning profile.
"""

import secrets
from collections.abc import Collection, Mapping
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.kernel_access import ROOT, Probes
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.policy_writer import PolicyWriter
from agent.core.model import Evidence, ObservedProfile
from agent.host.filesystem import Host, HostError
from agent.host.stat_signature import Signature

# The list in this file also contains learning profiles, which have no directory.
_LIST: Final = f"{ROOT}/profiles"
_RAW_DATA: Final = f"{ROOT}/policy/raw_data"
_HOLDERS: Final = "a process, a pending or unfinished exec, a zombie, io_uring or an open file"
_CHANGED: Final = "the loaded profiles changed during the check"
RELEASE_SECONDS: Final = 1.0
"""The longest wait for the kernel in seconds. In an emulated machine, the kernel needed 4 to 32
ms."""

_POLL_SECONDS: Final = 0.002
_MOST_FAILURES: Final = 8192
_FILLER_BYTES: Final = 16


def has_raw_data_and_hash(profile: ObservedProfile) -> bool:
    """Return whether the kernel shows both the hash of a profile and the hash of its raw data."""
    return {token.partition(":")[0] for token in profile.evidence} >= {"own", "raw"}


def have_own_hashes(
    loaded: Mapping[str, ObservedProfile], evidence: Mapping[str, Evidence]
) -> bool:
    """Return whether the kernel shows the expected hash of each single profile."""
    return all(
        any(token.startswith("own:") for token in evidence[name] & profile.evidence)
        for name, profile in loaded.items()
    )


class PolicyReferences:
    """Examines the policy versions that the kernel keeps because they are still referenced."""

    def __init__(self, host: Host, view: PolicyView, writer: PolicyWriter, probes: Probes) -> None:
        self.host = host
        self.view = view
        self.writer = writer
        self.probes = probes
        self._declared: dict[str, tuple[Signature | None, frozenset[str] | None]] = {}
        """Maps an entry of policy/raw_data to the signature of the entry and the names that the
        entry declares.

        The names are None if the layout of the entry is not known.
        """

        self._failures: dict[frozenset[str], tuple[frozenset[str], str]] = {}
        """Maps the names of profiles to the result of their last failed check: the entries of
        policy/raw_data that were still present, and the reason for the failure.

        If there are no entries, the check failed because of a learning profile.
        """

    def remembered_reason(self, names: Collection[str]) -> str:
        """Return the reason why the last check of these profiles failed, or "" if a new check may
        have another result.

        This method takes less than a millisecond per entry, whereas a check may take a second.
        """
        wanted = frozenset(names)
        entries, reason = self._failures.get(wanted, (frozenset(), ""))
        try:
            if reason and not entries:
                reason = self._learning_profile(wanted)
            elif not all(self.host.exists(f"{_RAW_DATA}/{entry}") for entry in entries):
                reason = ""
        except (HostError, OSError, ValueError):
            reason = ""
        if not reason:
            self._failures.pop(wanted, None)
        return reason

    def _remember(self, names: frozenset[str], entries: frozenset[str], reason: str) -> str:
        if len(self._failures) >= _MOST_FAILURES:
            self._failures.clear()
        self._failures[names] = entries, reason
        return reason

    def why_unproven(self, names: Collection[str]) -> str:
        """Return the reason why one of the profiles may still be referenced, or "" if no profile
        is referenced.

        Replace the profiles with a copy of the same policy whose bytes differ.

        Args:
            names: loaded profiles of the agent, with all their hats and children.
        """
        try:
            wanted = frozenset(names)
            # /proc does not show every reference to a learning profile, and a process can make the
            # kernel create such a profile while the agent checks that the profile is not in use.
            return (
                self._learning_profile(wanted)
                or self._why_unproven(wanted)
                or self._learning_profile(wanted)
            )
        except compiled_policy.PolicyError as error:
            return f"the loaded policy cannot be read ({error})"
        except (HostError, OSError) as error:
            return f"the loaded policy cannot be read or replaced ({error})"

    def _why_unproven(self, names: frozenset[str]) -> str:
        earlier = self.view.raw_data_entries(names)
        if earlier.keys() != names:
            return _CHANGED
        older = frozenset(self._declaring(names) - set(earlier.values()))
        if older:
            reason = f"{_HOLDERS} still references an earlier version of the profile"
            return self._remember(names, older, reason)
        reason = self._shared(names, frozenset(earlier.values()))
        if reason:
            return reason
        entries = dict.fromkeys(earlier.values())
        policies = [self.host.read(f"{_RAW_DATA}/{entry}/raw_data") for entry in entries]
        filler = secrets.token_hex(_FILLER_BYTES // 2).encode()
        policy = compiled_policy.rewrap(policies, names, filler)
        if compiled_policy.names(policy) != names:
            return "the loaded policy does not declare the profile"
        self.writer.replace(policy)
        return self._wait(names, policy)

    def _learning_profile(self, names: frozenset[str]) -> str:
        """Return the reason why a learning profile of the given names may be referenced, or ""."""
        revision = self.view.revision()
        content = self.host.read(_LIST).decode("utf-8", "surrogateescape")
        if self.view.revision() != revision:
            # The kernel may have omitted a name if the policy changed between two reads of the
            # list.
            return _CHANGED
        loaded = {line.rpartition(" (")[0] for line in content.split("\n")}
        learning = [
            name for name in loaded - names if not names.isdisjoint(compiled_policy.ancestors(name))
        ]
        if not learning:
            return ""
        reason = f'a process may still enter the learning profile "{min(learning)}"'
        return self._remember(names, frozenset(), reason)

    def _shared(self, names: frozenset[str], entries: frozenset[str]) -> str:
        """Return the reason why another loaded profile keeps the raw data, or "".

        Profiles that were loaded in one write share their raw data.
        """
        together: frozenset[str] = frozenset()
        for entry in entries:
            together |= self._declared_names(entry) or frozenset()
        loaded = self.view.raw_data_entries(together - names)
        others = sorted(name for name, entry in loaded.items() if entry in entries)
        if not others:
            return ""
        return f'the profile was loaded together with "{others[0]}", which stays loaded'

    def _wait(self, names: frozenset[str], policy: bytes) -> str:
        """Wait until only the raw data of the new policy declare the names.

        Returns:
            The reason why the wait failed, or "" if it succeeded.
        """
        new = set(self.view.raw_data_entries(names).values())
        if len(new) != 1 or self.host.read(f"{_RAW_DATA}/{min(new)}/raw_data") != policy:
            return _CHANGED
        end = self.probes.clock() + RELEASE_SECONDS
        while (declaring := self._declaring(names)) != new:
            if self.probes.clock() >= end:
                return self._remember(
                    names, frozenset(declaring - new), f"{_HOLDERS} still references the profile"
                )
            self.probes.pause(_POLL_SECONDS)
        return ""

    def _declaring(self, names: frozenset[str]) -> set[str]:
        """Return the entries of policy/raw_data that declare or may declare one of the names."""
        listed = self.host.names(_RAW_DATA)
        self._declared = {
            entry: self._declared[entry] for entry in listed if entry in self._declared
        }
        return {entry for entry in listed if self._may_declare(entry, names)}

    def _may_declare(self, entry: str, names: frozenset[str]) -> bool:
        path = f"{_RAW_DATA}/{entry}/raw_data"
        try:
            declared = self._declared_names(entry)
            if declared is not None:
                return not declared.isdisjoint(names)
            # An entry with an unknown layout counts if its bytes contain one of the names.
            content = self.host.read(path)
            return any(name.encode("utf-8", "surrogateescape") in content for name in names)
        except HostError:
            return self.host.exists(path)  # The kernel may have freed the entry after the listing.

    def _declared_names(self, entry: str) -> frozenset[str] | None:
        """Return the names that an entry of policy/raw_data declares, or None if its layout is
        unknown.

        Raises:
            HostError: the entry cannot be read.
        """
        path = f"{_RAW_DATA}/{entry}/raw_data"
        signature = self.host.signature(path)
        known = self._declared.get(entry)
        if known is not None and signature is not None and known[0] == signature:
            return known[1]
        try:
            declared: frozenset[str] | None = compiled_policy.names(self.host.read(path))
        except compiled_policy.PolicyError:
            declared = None
        self._declared[entry] = (signature, declared)
        return declared
