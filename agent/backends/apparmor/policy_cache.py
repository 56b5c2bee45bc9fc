"""Caches parser results: compiled policies, error messages and exceeded limits.

The key of a cached result is a digest of every input that affects the result; it does not depend on
names and times. Each file is verified when it is read, and a damaged file counts as missing. Each
policy is stored together with the profiles that it declares, so that the policy need not be parsed
again. If the cache cannot be written, the only effect is that profile texts are compiled again
after a restart.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.core.model import digest
from agent.host.file_role import FileRole
from agent.host.filesystem import Host, HostError
from agent.host.stat_signature import modified_ns

# The limit is larger than any policy, because the output of the parser has a smaller limit.
_MAX_ENTRY_BYTES: Final = 10 << 20
MAX_DISK_BYTES: Final = 64 << 20
MAX_DISK_ENTRIES: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserResult:
    """The final result of the parser for one profile text: a policy, an error or an exceeded limit.

    The fields size, sha256 and declared are set only in a result that comes from the cache.
    """

    policy: bytes = b""
    """The compiled policy; empty if PolicyCache.policy must read it from the disk."""
    size: int = 0
    """The length of the policy in bytes."""
    sha256: str = ""
    """The digest of the policy."""
    declared: tuple[DeclaredProfile, ...] = ()
    """The profiles in the policy."""
    warnings: tuple[str, ...] = ()
    """The parser's warnings that the policy is weaker than the text."""
    error: str = ""
    """The error message of the parser."""
    exceeded_limit: str = ""
    """A description of the limit that the text exceeded."""
    is_memory_exceeded: bool = False
    """Whether the exceeded limit is the memory limit."""


class PolicyCache:
    """Stores parser results in memory and in STATE_DIR/cache.

    If a full pass does not use a result, the next full pass removes the result from memory. Files
    are removed from the disk only if the cache is too large, beginning with the least recently used
    file.
    """

    def __init__(self, host: Host, state_dir: str, *, write: bool) -> None:
        """Open the cache. Without `write`, the cache reads its files but never changes them."""
        self.host = host
        self.directory = f"{state_dir}/cache"
        self.write = write
        self.memory: dict[str, ParserResult] = {}
        self._used: set[str] = set()  # The keys that were used since the last full pass began.
        # The size of each file in bytes, beginning with the least recently used file; None until
        # the directory has been listed.
        self._sizes: dict[str, int] | None = None

    def find(self, key: str) -> ParserResult | None:
        """Return the stored result, or None if the result is missing or damaged."""
        self._touch(key)
        if key in self.memory:
            self._used.add(key)
            return self.memory[key]
        result = self._read(key)
        if result is not None:
            # If the declared profiles are stored, no inspection needs the policy itself.
            self._keep(key, replace(result, policy=b"") if result.declared else result)
        return result

    def policy(self, key: str) -> bytes | None:
        """Return the stored policy, or None if the policy is missing or damaged.

        A missing or damaged result is also removed from memory, so that the profile text is
        compiled again.
        """
        result = self.memory.get(key)
        if result is not None and result.policy:
            return result.policy
        result = self._read(key)
        if result is None:
            self.discard(key)
            return None
        return result.policy

    def _read(self, key: str) -> ParserResult | None:
        """Return the result in a file, or None if the file is missing or damaged."""
        try:
            content = self.host.read_regular(
                self.directory, key, limit=_MAX_ENTRY_BYTES, private=True
            )
        except HostError:
            return None
        return _decode(content) if content is not None else None

    def discard(self, key: str) -> None:
        """Remove a result from memory, but keep its file."""
        self.memory.pop(key, None)
        self._used.discard(key)

    def store(self, key: str, result: ParserResult) -> None:
        """Store a result on disk, or in memory if the disk cannot be written.

        A result on disk uses no memory before an inspection reads the result.
        """
        self.discard(key)
        try:
            if self.write:
                content = _encode(result)
                sizes = self._make_room(key, len(content))
                self.host.write_file(self.directory, key, content, role=FileRole.TRANSIENT)
                sizes[key] = len(content)
                return
        except (HostError, UnicodeEncodeError):
            pass
        self._keep(key, result)

    def drop_unused(self) -> None:
        """Begin a full pass, and remove results from memory that the previous full pass did not
        use.
        """
        self.memory = {key: self.memory[key] for key in self._used}
        self._used = set()

    def _keep(self, key: str, result: ParserResult) -> None:
        self.memory[key] = result
        self._used.add(key)

    def _touch(self, key: str) -> None:
        """Mark an entry as the most recently used entry."""
        if self._sizes is not None and key in self._sizes:
            self._sizes[key] = self._sizes.pop(key)

    def _make_room(self, key: str, size: int) -> dict[str, int]:
        """Remove the least recently used entries until a new entry fits, and return the sizes.

        Raises HostError.
        """
        if self._sizes is None:
            signatures = self.host.signatures(self.directory) or {}
            oldest_first = sorted(signatures.items(), key=lambda item: modified_ns(item[1]))
            self._sizes = {name: status[2] for name, status in oldest_first if name}
        sizes = self._sizes
        sizes.pop(key, None)
        total = sum(sizes.values()) + size
        while sizes and (total > MAX_DISK_BYTES or len(sizes) >= MAX_DISK_ENTRIES):
            name = next(iter(sizes))
            self.host.remove_file(self.directory, name)
            total -= sizes.pop(name)
        return sizes


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """The second line of a file, which describes the result without the policy."""

    message: str
    notes: tuple[str, ...]
    killed: str
    sha256: str
    """The digest of the policy."""
    reader: int
    """The value of compiled_policy.READER_VERSION when the declared profiles were read."""
    declared: tuple[tuple[str, str, bool, list[str]], ...]
    unstoppable: tuple[str, ...] = ()
    """The names of the declared profiles that block signals from a container runtime."""
    memory: bool = False
    """Whether the exceeded limit is the memory limit."""


def _encode(result: ParserResult) -> bytes:
    """Return the content of a cache file: the digest of the head, the head and the policy."""
    declared: tuple[DeclaredProfile, ...] = ()
    # The backend reports this error when it reads the policy itself.
    with contextlib.suppress(compiled_policy.PolicyError):
        declared = compiled_policy.read(result.policy)
    head = msgspec.json.encode(
        _Head(
            message=result.error,
            notes=result.warnings,
            killed=result.exceeded_limit,
            memory=result.is_memory_exceeded,
            sha256=digest(result.policy),
            reader=compiled_policy.READER_VERSION,
            declared=tuple(
                (profile.name, profile.mode, profile.has_attachment, sorted(profile.evidence))
                for profile in declared
            ),
            unstoppable=tuple(profile.name for profile in declared if not profile.can_be_stopped),
        )
    )
    return digest(head).encode() + b"\n" + head + b"\n" + result.policy


def _decode(content: bytes) -> ParserResult | None:
    first = content.find(b"\n")
    second = content.find(b"\n", first + 1)
    line, body = content[first + 1 : second], content[second + 1 :]
    if second < 0 or content[:first].decode("ascii", "replace") != digest(line):
        return None
    try:
        head = msgspec.json.decode(line, type=_Head)
    except msgspec.MsgspecError:
        return None
    if head.sha256 != digest(body):
        return None
    return ParserResult(
        policy=body,
        size=len(body),
        sha256=head.sha256,
        declared=_declared(head, body),
        error=head.message,
        warnings=head.notes,
        exceeded_limit=head.killed,
        is_memory_exceeded=head.memory,
    )


def _declared(head: _Head, policy: bytes) -> tuple[DeclaredProfile, ...]:
    """Return the profiles of a policy, or an empty tuple if it cannot be read."""
    if head.reader == compiled_policy.READER_VERSION:
        return tuple(
            DeclaredProfile(
                name=name,
                mode=mode,
                has_attachment=attached,
                evidence=frozenset(evidence),
                can_be_stopped=name not in head.unstoppable,
            )
            for name, mode, attached, evidence in head.declared
        )
    with contextlib.suppress(compiled_policy.PolicyError):
        return compiled_policy.read(policy)
    return ()
