"""Defines the size limits of sources, and builds findings about sources that exceed a limit.

A key that exceeds a limit does not affect other keys, because only this key is rejected. If a
profile set exceeds a limit, the whole set is unreadable, so that no profile is removed because its
key was not read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from agent.core import common_findings, left_out, model
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.left_out import LeftOut
from agent.core.model import Emptied, Read, Snapshot, SourceKey, Unreadable
from agent.core.vocabulary import LeftOutReason, UnreadableCause

KEY_BYTES: Final = 1 << 20  # Kubernetes has the same limit for the whole data of a ConfigMap.
SET_BYTES: Final = 32 << 20
SET_KEYS: Final = 5000
# The largest number of directories in one directory source, including empty directories.
SET_DIRECTORIES: Final = 5000
# The largest number of files and directories in one source, including files that are not profiles.
SET_NAMES: Final = 100_000
# The limits apply to all ConfigMaps of one source together.
SOURCE_BYTES: Final = 16 << 20
SOURCE_CONFIG_MAPS: Final = 1000
# The bytes of memory that each key needs in addition to its name and content.
KEY_OVERHEAD: Final = 256
MANIFESTS: Final = (".yaml", ".yml")
_PROFILE_NAMES: Final = (
    "The name of a profile ends in .json, .profile, .apparmor or .aa, or has no known extension. "
    "Rename a key that is a profile."
)


def too_large(key: str) -> Finding:
    """Return the error about a key that is larger than a profile may be."""
    return common_findings.key_too_large(
        location=key,
        reason=f"The key is larger than {KEY_BYTES} bytes",
        hint="Check that the key is a profile. A larger profile must be split.",
    )


def too_deep(key: str, reason: str) -> Finding:
    """Report a directory that is nested too deeply."""
    return _unsafe(key, reason, "Move the directory to a higher level.")


def unsafe(key: str, reason: str) -> Finding:
    """Return the error about a key whose name cannot be the name or the path of a profile."""
    return _unsafe(key, reason, "Rename the key: use letters, digits, '.', '_' and '-'.")


def _unsafe(key: str, reason: str, hint: str) -> Finding:
    return Finding(
        code=FindingCode.KEY_UNSAFE,
        location=key,
        message=f"The name of the key {reason}. It is not installed.",
        hint=hint,
    )


def skipped_by_name(names: Iterable[str]) -> tuple[LeftOut, ...]:
    """Return the description of keys or files that are skipped because of their names.

    Hidden files, whose names begin with a dot, are not reported.
    """
    visible = [name for name in names if not PurePosixPath(name).name.startswith(".")]
    hint = _PROFILE_NAMES
    if any(name.endswith(MANIFESTS) for name in visible):
        hint += " A manifest with ConfigMaps is a separate source: use its path."
    return left_out.of(LeftOutReason.NAME, visible, hint)


def snapshot(
    profile_set: str,
    source_keys: Sequence[SourceKey],
    rejected: Sequence[tuple[str, Finding]],
    *,
    allow_empty: bool = False,
    created: str = "",
) -> Snapshot:
    """Return the snapshot of a profile set that was read and is within the limits.

    Args:
        profile_set: the profile set.
        source_keys: the keys of the profile set.
        rejected: the keys that were rejected before their content was read, with the reasons.
        allow_empty: whether the profile set may be empty.
        created: see the class `model.Read`.
    """
    if len(source_keys) + len(rejected) > SET_KEYS:
        return _over_limit(profile_set, f"it has more than {SET_KEYS} keys")
    if sum(len(source_key.content) for source_key in source_keys) > SET_BYTES:
        return _over_limit(profile_set, f"it has more than {SET_BYTES} bytes")
    parts = [f"{item.key}\0{item.path}\0{model.digest(item.content)}\n" for item in source_keys]
    revision = model.digest("".join(parts).encode("utf-8", "surrogateescape"))
    if not source_keys and not rejected and not allow_empty:
        return Emptied(profile_set=profile_set, revision=revision)
    return Read(
        profile_set=profile_set,
        revision=revision,
        source_keys=tuple(source_keys),
        rejected_keys=tuple(rejected),
        created=created,
    )


def with_left_out(read: Snapshot, inputs: tuple[LeftOut, ...]) -> Snapshot:
    """Return the snapshot with the inputs that are not read as profiles added."""
    return replace(read, left_out=inputs) if isinstance(read, Read | Emptied) else read


def _over_limit(profile_set: str, reason: str) -> Unreadable:
    return Unreadable(profile_set=profile_set, reason=reason, cause=UnreadableCause.OVER_LIMIT)
