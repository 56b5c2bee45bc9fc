"""Compares the loaded policy with the policy that the agent wrote.

This module neither reads nor writes policy: `policy_changes` passes the observed profiles.
"""

from collections.abc import Iterable, Mapping

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.core import common_findings
from agent.core.model import KeyId, ObservedProfile
from agent.core.ports import Failed, Installed


def declared_profiles(body: bytes, names: frozenset[str]) -> tuple[DeclaredProfile, ...]:
    """Return the profiles of a compiled policy. Raises PolicyError if the policy does not contain
    exactly the expected names.
    """
    declared = compiled_policy.read(body)
    if sorted(each.name for each in declared) != sorted(names):
        raise compiled_policy.PolicyError("the policy declares names that were not checked")
    return declared


def verified(
    id_: KeyId, declared: Iterable[DeclaredProfile], loaded: Mapping[str, ObservedProfile]
) -> Installed | Failed:
    """Return evidence and modes from the kernel if the written policy is loaded unchanged."""
    expected = {each.name: each.evidence for each in declared}
    modes = {each.name: each.mode for each in declared}
    for name, evidence in expected.items():
        profile = loaded.get(name)
        if profile is None:
            return not_verified(id_, f'"{name}" is not loaded')
        if profile.is_readable and not evidence & profile.evidence:
            return not_verified(id_, f'"{name}" holds other content')
        if profile.mode != modes[name]:
            reason = f'"{name}" is in {profile.mode} mode, not {modes[name]}'
            return not_verified(id_, reason)
    return Installed(
        evidence={
            name: evidence | loaded[name].evidence
            if loaded[name].is_readable
            else loaded[name].evidence
            for name, evidence in expected.items()
        },
        modes=modes,
    )


def not_verified(id_: KeyId, reason: str) -> Failed:
    """Return the result for a policy that was written, but cannot be verified."""
    return Failed(finding=common_findings.verify_failed(id_.key, reason))
