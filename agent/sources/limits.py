"""How large a set may be, and the words for what is too large.

Rule 1: a limit on one key refuses that key; a limit on a set makes the whole set unreadable, so
that nothing is removed for what was not read.
"""

from collections.abc import Sequence

from agent.core import model
from agent.core.findings import Finding
from agent.core.model import Emptied, Read, Snapshot, SourceKey, Unreadable
from agent.core.vocabulary import UnreadableCause

KEY_BYTES = 1 << 20  # a ConfigMap holds no more (Kubernetes: 1 MiB for all its data)
SET_BYTES = 32 << 20
SET_KEYS = 5000
SET_DIRECTORIES = 5000  # of one directory source; empty ones cost as much as others
SET_NAMES = 100_000  # of files and directories that are looked at, profiles or not
# What is kept of all ConfigMaps that one source selects.
SOURCE_BYTES = 16 << 20
SOURCE_CONFIG_MAPS = 1000
KEY_OVERHEAD = 256  # bytes of memory for each key, besides its name and its content


def too_large(key: str) -> Finding:
    """Say that one key is larger than a profile may be."""
    return Finding(
        code="key_too_large",
        location=key,
        message=f"The key is larger than {KEY_BYTES} bytes. It is not put.",
        hint="Split it; the common rules of AppArmor profiles may be an abstraction on the host.",
    )


def unsafe(key: str, why: str) -> Finding:
    """Say that a key's name cannot be a profile's name or path."""
    return Finding(
        code="key_unsafe",
        location=key,
        message=f"The key's name {why}. It is not put.",
        hint="Use letters, digits, '.', '_' and '-' in the name of a key.",
    )


def snapshot(
    origin: str,
    blobs: Sequence[SourceKey],
    refused: Sequence[tuple[str, Finding]],
    *,
    empty: bool = False,
    created: str = "",
) -> Snapshot:
    """Return what was read of a set, within the limits.

    Args:
        origin: the profile set.
        blobs: its keys.
        refused: keys that were rejected before their content was read, and why.
        empty: allows the set to contain nothing.
        created: see `model.Read`.
    """
    if len(blobs) + len(refused) > SET_KEYS:
        why = f"it has more than {SET_KEYS} keys"
        return Unreadable(profile_set=origin, reason=why, cause=UnreadableCause.OVER_LIMIT)
    if sum(len(blob.content) for blob in blobs) > SET_BYTES:
        why = f"it has more than {SET_BYTES} bytes"
        return Unreadable(profile_set=origin, reason=why, cause=UnreadableCause.OVER_LIMIT)
    parts = [f"{blob.key}\0{blob.path}\0{model.digest(blob.content)}\n" for blob in blobs]
    revision = model.digest("".join(parts).encode("utf-8", "surrogateescape"))
    if not blobs and not refused and not empty:
        return Emptied(profile_set=origin, revision=revision)
    return Read(
        profile_set=origin,
        revision=revision,
        source_keys=tuple(blobs),
        refused=tuple(refused),
        created=created,
    )
