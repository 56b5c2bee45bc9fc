"""The cache of parser results: compiled policies, error messages and exceeded limits.

A cache key is a digest of everything that the result depends on; names and times are not part of
it. Each file is verified when it is read, and a damaged file counts as missing. The profiles that
a policy declares are stored with it, so that the policy need not be parsed again. If the cache
cannot be written, texts are compiled again after a restart; nothing else changes. Unused results
are removed from memory at the next full pass. They are removed from the disk only when there are
too many of them, the least recently used first.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.core.model import digest
from agent.host.filesystem import Host, HostError
from agent.host.stat_signature import modified_ns

_ENTRY_BYTES: Final = 10 << 20  # more than the parser may print
MAX_DISK_BYTES: Final = 64 << 20
MAX_DISK_ENTRIES: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserResult:
    """What the parser did with a text: the policy, or its message, or how it was killed.

    notes: what it said beside the policy, a line each. killed: which limit the text exceeded.
    """

    policy: bytes = b""
    """Empty where `PolicyCache.policy` reads it from the disk."""

    size: int = 0
    """Bytes of the policy. This, sha256 and declared are there if they came from the cache."""

    sha256: str = ""
    declared: tuple[DeclaredProfile, ...] = ()
    omitted_rules: tuple[str, ...] = ()
    error: str = ""
    exceeded_limit: str = ""


class PolicyCache:
    """Compiled policy below <state directory>/cache; with write=False it is only read."""

    def __init__(self, host: Host, state_dir: str, *, write: bool) -> None:
        self.host = host
        self.directory = f"{state_dir}/cache"
        self.write = write
        self.memory: dict[str, ParserResult] = {}
        self._used: set[str] = set()  # keys of memory, since the last full pass began
        self._sizes: dict[str, int] | None = None  # bytes on disk, the least recently used first

    def find(self, key: str) -> ParserResult | None:
        """Return what is stored under key, or None if it is absent or damaged."""
        self._touch(key)
        if key in self.memory:
            self._used.add(key)
            return self.memory[key]
        found = self._read(key)
        if found is not None:
            # Without a declaration the inspection reads the policy itself.
            self._keep(key, replace(found, policy=b"") if found.declared else found)
        return found

    def policy(self, key: str) -> bytes | None:
        """Return the policy that is stored under key, or None if it is absent or damaged.

        If it is, nothing is stored under key any more, so that the text is compiled again.
        """
        known = self.memory.get(key)
        if known is not None and known.policy:
            return known.policy
        found = self._read(key)
        if found is None:
            self.discard(key)
            return None
        return found.policy

    def _read(self, key: str) -> ParserResult | None:
        """Return what the disk holds under key, or None if it is absent or damaged."""
        try:
            content = self.host.read_regular(self.directory, key, limit=_ENTRY_BYTES, private=True)
        except HostError:
            return None
        return _decode(content) if content is not None else None

    def discard(self, key: str) -> None:
        """Remove what is stored under key from memory."""
        self.memory.pop(key, None)
        self._used.discard(key)

    def store(self, key: str, compiled: ParserResult) -> None:
        """Store what the parser said: on disk, or in memory where that is not possible.

        A result that no inspection asks for again takes no memory.
        """
        self.discard(key)
        try:
            if self.write:
                content = _encode(compiled)
                sizes = self._make_room(key, len(content))
                self.host.write_file(self.directory, key, content, mode=0o600, durable=False)
                sizes[key] = len(content)
                return
        except (HostError, UnicodeEncodeError):
            pass
        self._keep(key, compiled)

    def drop_unused(self) -> None:
        """Begin a full pass: what was not used since the last one began leaves the memory."""
        self.memory = {key: self.memory[key] for key in self._used}
        self._used = set()

    def _keep(self, key: str, compiled: ParserResult) -> None:
        self.memory[key] = compiled
        self._used.add(key)

    def _touch(self, key: str) -> None:
        """Make an entry the most recently used one."""
        if self._sizes is not None and key in self._sizes:
            self._sizes[key] = self._sizes.pop(key)

    def _make_room(self, key: str, size: int) -> dict[str, int]:
        """Remove the least recently used entries until a new one fits; return the sizes.

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
    """The first line but one: everything but the policy."""

    message: str
    notes: tuple[str, ...]
    killed: str
    sha256: str  # of the policy
    reader: int  # which edition of agent.backends.apparmor.compiled_policy said what is declared
    declared: tuple[tuple[str, str, bool, list[str]], ...]


def _encode(compiled: ParserResult) -> bytes:
    declared: tuple[DeclaredProfile, ...] = ()
    with contextlib.suppress(compiled_policy.PolicyError):  # whoever judges it finds that too
        declared = compiled_policy.read(compiled.policy)
    head = msgspec.json.encode(
        _Head(
            message=compiled.error,
            notes=compiled.omitted_rules,
            killed=compiled.exceeded_limit,
            sha256=digest(compiled.policy),
            reader=compiled_policy.READER_VERSION,
            declared=tuple(
                (one.name, one.mode, one.has_attachment, sorted(one.evidence)) for one in declared
            ),
        )
    )
    return digest(head).encode() + b"\n" + head + b"\n" + compiled.policy


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
        omitted_rules=head.notes,
        exceeded_limit=head.killed,
    )


def _declared(head: _Head, policy: bytes) -> tuple[DeclaredProfile, ...]:
    """Return what a policy declares; nothing if it cannot be read."""
    if head.reader == compiled_policy.READER_VERSION:
        return tuple(
            DeclaredProfile(
                name=name, mode=mode, has_attachment=attached, evidence=frozenset(evidence)
            )
            for name, mode, attached, evidence in head.declared
        )
    with contextlib.suppress(compiled_policy.PolicyError):
        return compiled_policy.read(policy)
    return ()
