"""Finds the bytes to install for each profile of a plan.

These bytes are called the body of the profile. The body comes from the ledger, from the backend, or
from a new inspection of the source. This module changes neither the node nor the ledger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Inspected,
    KeyId,
    LedgerEntry,
    Pending,
    Profile,
    ProfileKind,
    Rejection,
    SourceKey,
    Unchecked,
    Version,
)
from agent.core.ports import Ledger, ProfileBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedProfile:
    """A profile, together with the bytes to install."""

    profile: Profile
    body: bytes


class ProfilePreparer:
    """Prepares the profiles of accepted keys, and the installed versions of ledger entries."""

    def __init__(self, backends: Mapping[ProfileKind, ProfileBackend], ledger: Ledger) -> None:
        self.backends = backends
        self.ledger = ledger

    def prepare(self, profile: Profile) -> PreparedProfile | Pending | Finding:
        """Prepare the profile of an accepted key."""
        body = self._body(profile)
        if body is not None:
            return PreparedProfile(profile=profile, body=body)
        return self._prepare_again(profile)

    def prepare_installed(
        self, id_: KeyId, entry: LedgerEntry | None
    ) -> PreparedProfile | Pending | Finding:
        """Prepare the installed version of a ledger entry.

        If the body was compiled for another kernel, the source is compiled again.
        """
        version = entry.installed if entry is not None else None
        source = self.ledger.content(version.source_digest) if version is not None else None
        if entry is None or version is None or source is None:
            return _damaged(id_)
        profile = Profile(id=id_, version=version, source=source, body_size=0, prefix=entry.prefix)
        if self.backends[id_.kind].accepts_context(version.context):
            return self.prepare(profile)
        return self._prepare_again(profile)

    def _prepare_again(self, profile: Profile) -> PreparedProfile | Pending | Finding:
        """Inspect the source of a profile again to create its body."""
        source_key = SourceKey(
            profile_set=profile.id.profile_set,
            key=profile.id.key,
            content=profile.source,
            prefix=profile.prefix,
        )
        inspected = self.backends[profile.id.kind].inspect(source_key)
        checked = _checked_again(inspected, profile.version)
        if not isinstance(checked, Profile):
            return checked
        body = self._body(checked)
        if body is None:
            return _damaged(profile.id)
        return PreparedProfile(profile=checked, body=body)

    def _body(self, profile: Profile) -> bytes | None:
        """Return the body of a profile from the ledger, or from the backend if the ledger does not
        have it.
        """
        body = self.ledger.content(profile.version.body_digest)
        return body if body is not None else self.backends[profile.id.kind].body(profile)


def _checked_again(inspected: Inspected, version: Version) -> Profile | Pending | Finding:
    """Inspect the source again, and return the new profile if it still has the same names."""
    match inspected:
        case Profile():
            # The names can differ, because the ledger stores only the key, which may not be the
            # file name of the source.
            same_names = inspected.version.names == version.names
            return inspected if same_names else _damaged(inspected.id)
        case Rejection(findings=findings):
            return findings[0]
        case Unchecked(finding=finding):
            return finding
        case Pending():
            return inspected
        case unreachable:
            assert_never(unreachable)


def _damaged(id_: KeyId) -> Finding:
    return Finding(
        code=FindingCode.LEDGER_DAMAGED,
        location=str(id_),
        message="The last good version is incomplete in the state directory, so it cannot be "
        "restored.",
        hint="Make the source of the profile readable; the next pass then installs the profile "
        "again.",
    )
