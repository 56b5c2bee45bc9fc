"""Reads the names, attachments, modes and hashes of the profiles in compiled AppArmor policy.

This module performs no I/O.

For every input, the module either returns profiles or raises PolicyError, and raises no other
exception. An unknown element causes a PolicyError, because it could contain a profile. The kernel's
security/apparmor/policy_unpack.c defines the layout: a stream of tagged elements (an optional name,
then a value), in which every profile is a struct named `profile`.
"""

import functools
import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from agent.backends.apparmor import stop_signals
from agent.core.model import Evidence

READER_VERSION = 2  # Increase this number when the result for the same bytes changes.
MODES = {0: "enforce", 1: "complain", 2: "kill", 3: "unconfined", 4: "user"}

_NAME, _STRING, _BLOB, _STRUCT, _STRUCT_END, _LIST, _LIST_END, _ARRAY, _ARRAY_END = range(4, 13)
_INTEGER_BYTES = {0: 1, 1: 2, 2: 4, 3: 8}  # Maps a tag to the size of its integer in bytes.
_ENDS = {_STRUCT: _STRUCT_END, _LIST: _LIST_END, _ARRAY: _ARRAY_END}
_MAX_DEPTH = 16
# These fields are between the name and the flags of a profile, but do not belong to its attachment.
# Each entry of the permissions has a reserved number, the allowed permissions, and twelve more
# numbers (policy_unpack.c: unpack_perm).
_NUMBERS_PER_ENTRY = 14
_NOT_ATTACHMENT = frozenset({"disconnected", "learning_offset"})


_COMPRESSED = b"\x28\xb5\x2f\xfd"  # the begin of a zstd frame (RFC 8878)
_COMPRESSED_OFFSET = 8  # after the header of apparmor_parser 5.0


class PolicyError(Exception):
    """The bytes are not a compiled policy with a known layout."""


class NameEncodingError(PolicyError):
    """The name of a profile is not UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredProfile:
    """One profile, hat or child profile in a compiled policy."""

    name: str
    mode: str
    has_attachment: bool
    """Whether the compiled profile contains an attachment or a rename field."""
    evidence: Evidence
    """The hashes that the kernel shows once the profile is loaded.

    The first hash covers only this profile (aa_calc_profile_hash: the version word, then the bytes
    of the profile). The second hash covers the whole policy.
    """
    can_be_stopped: bool = True
    """Whether the rules let a container runtime stop the processes of the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Element:
    name: str
    tag: int
    value: int | bytes | tuple["_Element", ...]
    start: int
    end: int


# The result is cached, because several callers read the same policy one after another.
@functools.lru_cache(maxsize=1)
def read(policy: bytes) -> tuple[DeclaredProfile, ...]:
    """Return the profiles in a policy, in their order. Raises PolicyError.

    A profile in a policy namespace has the name `:namespace:name`.
    """
    profiles: list[DeclaredProfile] = []
    raw = raw_evidence(policy)
    for version, namespace, element, fields in _profiles(policy):
        own = struct.pack("<I", version) + policy[element.start : element.end]
        profiles.append(_declared(namespace, fields, raw | _own_evidence(own)))
    return tuple(profiles)


def names(policy: bytes) -> frozenset[str]:
    """Return the names of the profiles in a policy. Raises PolicyError."""
    return frozenset(_name(namespace, fields) for _, namespace, _, fields in _profiles(policy))


def rewrap(blobs: Iterable[bytes], included_names: Collection[str], filler: bytes) -> bytes:
    """Return a policy with the selected profiles of the given policies, but with different bytes.

    The function writes a separate version header for each profile. The header contains the same
    version as before. After the NUL that ends the name in the header, a filler of at least 8 bytes
    follows. The kernel compares names with strcmp (aa_unpack_nameX), and its hash of one profile
    covers only the version and the profile. Therefore, the kernel enforces the same rules and shows
    the same hash for each profile, although the bytes of the whole policy are different. Raises
    PolicyError, for example if a profile is in a policy namespace.
    """
    policy = b""
    for blob in blobs:
        for version, namespace, element, fields in _profiles(blob):
            if namespace:
                raise PolicyError("it belongs to a policy namespace")
            if _name(namespace, fields) in included_names:
                # Tables in a profile are aligned to 8 bytes from the beginning of the policy.
                size = len(policy) + len(_header(version, filler))
                padding = filler[: (element.start - size) % 8]
                policy += _header(version, filler + padding) + blob[element.start : element.end]
    return policy


def _header(version: int, filler: bytes) -> bytes:
    tag = b"version\0" + filler + b"\0"
    return struct.pack("<BH", _NAME, len(tag)) + tag + struct.pack("<BI", 2, version)


def _profiles(
    blob: bytes,
) -> Iterator[tuple[int, str, "_Element", tuple["_Element", ...]]]:
    """Yield for each profile its version, its namespace (`:name:` or ""), its element and its
    fields.
    """
    if blob[_COMPRESSED_OFFSET:].startswith(_COMPRESSED):
        raise PolicyError("it is compressed with zstd")
    version, namespace = None, ""
    for element in _Reader(blob).elements(None, 0):
        match element:
            case _Element(name="version", value=int(value)):
                version = value & 0xFFFFFFFF
            case _Element(name="profile", tag=7, value=tuple(fields)) if version is not None:
                yield version, namespace, element, fields
            case _Element(name="namespace", value=bytes(value)):
                namespace = f":{value.decode('utf-8', 'replace')}:"
            case _:
                raise PolicyError(f'unexpected element "{element.name}" at byte {element.start}')


def raw_evidence(blob: bytes) -> Evidence:
    """Return the hashes of this policy that the kernel shows in the file raw_sha1 or raw_sha256."""
    return frozenset(
        {
            f"raw:sha256:{hashlib.sha256(blob).hexdigest()}",
            f"raw:sha1:{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}",
        }
    )


def _own_evidence(own: bytes) -> Evidence:
    return frozenset(
        {
            f"own:sha256:{hashlib.sha256(own).hexdigest()}",
            f"own:sha1:{hashlib.sha1(own, usedforsecurity=False).hexdigest()}",
        }
    )


def parent(name: str) -> str | None:
    """Return the parent of a hat or child profile, or None for any other profile.

    The kernel splits a profile name at every `//`, from left to right (__lookup_parent).
    """
    separator, start = -1, 0
    while (position := name.find("//", start)) >= 0:
        separator, start = position, position + 2
    return name[:separator] if separator >= 0 else None


def ancestors(name: str) -> tuple[str, ...]:
    """Return the ancestors of a hat or child profile, beginning with its parent."""
    names_of_ancestors: list[str] = []
    ancestor = parent(name)
    while ancestor is not None:
        names_of_ancestors.append(ancestor)
        ancestor = parent(ancestor)
    return tuple(names_of_ancestors)


def _declared(namespace: str, fields: tuple[_Element, ...], evidence: Evidence) -> DeclaredProfile:
    name = _name(namespace, fields)
    has_attachment = False
    for field in fields[1:]:
        if field.name == "flags" and isinstance(field.value, tuple):
            return DeclaredProfile(
                name=name,
                mode=_mode(field.value),
                has_attachment=has_attachment,
                evidence=evidence,
                can_be_stopped=_can_be_stopped(fields),
            )
        has_attachment = has_attachment or field.name not in _NOT_ATTACHMENT
    raise PolicyError(f'profile "{name}" has no flags')


def _can_be_stopped(fields: tuple[_Element, ...]) -> bool:
    """Return whether a container runtime may stop the processes of a profile."""
    values = _values(next((field for field in fields if field.name == "policydb"), None))
    dfa, permissions = values.get("aadfa"), values.get("perms")
    if not isinstance(dfa, bytes):
        return True
    if permissions is None:
        return stop_signals.are_allowed(dfa, None)
    entries = next((value.value for value in _children(permissions) if value.tag == _ARRAY), ())
    numbers = [entry.value for entry in _children(entries)]
    allowed = [number for number in numbers[1::_NUMBERS_PER_ENTRY] if isinstance(number, int)]
    return stop_signals.are_allowed(dfa, allowed)


def _values(element: _Element | None) -> dict[str, object]:
    """Return a mapping from the names to the values in a struct."""
    return (
        {} if element is None else {child.name: child.value for child in _children(element.value)}
    )


def _children(value: object) -> tuple[_Element, ...]:
    return value if isinstance(value, tuple) else ()


def _name(namespace: str, fields: tuple[_Element, ...]) -> str:
    if not fields or fields[0].name or not isinstance(fields[0].value, bytes):
        raise PolicyError("a profile does not begin with its name")
    try:
        return namespace + fields[0].value.decode()
    except UnicodeDecodeError as error:
        shown = ascii(fields[0].value)[2:-1]
        raise NameEncodingError(shown) from error


def _mode(fields: tuple[_Element, ...]) -> str:
    match fields:
        case (_hat, _Element(value=int(mode)), _audit, *_):
            pass
        case _:
            raise PolicyError("a profile's flags are not three numbers")
    if mode not in MODES:
        raise PolicyError(f"a profile's mode is {mode}, which is unknown")
    return MODES[mode]


class _Reader:
    """Reads the elements of a compiled policy, and raises PolicyError if the layout is unknown."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.position = 0

    def elements(self, until: int | None, depth: int) -> tuple[_Element, ...]:
        """Read elements up to the tag that ends their parent, or to the end of the policy."""
        if depth > _MAX_DEPTH:
            raise PolicyError("the policy is nested too deeply")
        elements: list[_Element] = []
        while self.position < len(self.blob):
            start = self.position
            tag = self._take(1)[0]
            if tag == until:
                return tuple(elements)
            name = ""
            if tag == _NAME:
                name = self._tag().decode("latin-1")
                tag = self._take(1)[0]
            elements.append(self._element(name, tag, start, depth))
        if until is not None:
            raise PolicyError("the policy ends inside a struct, list or array")
        return tuple(elements)

    def _element(self, name: str, tag: int, start: int, depth: int) -> _Element:
        value: int | bytes | tuple[_Element, ...]
        if tag in _INTEGER_BYTES:
            value = int.from_bytes(self._take(_INTEGER_BYTES[tag]), "little")
        elif tag == _STRING:
            value = self._string()
        elif tag == _BLOB:
            value = self._take(int.from_bytes(self._take(4), "little"))
        elif tag in _ENDS:
            if tag == _ARRAY:
                self._take(2)
            value = self.elements(_ENDS[tag], depth + 1)
        else:
            raise PolicyError(f"unknown tag {tag} at byte {start}")
        return _Element(name=name, tag=tag, value=value, start=start, end=self.position)

    def _tag(self) -> bytes:
        """Return the name of an element. As in the kernel, the name ends at its first NUL."""
        text = self._take(int.from_bytes(self._take(2), "little"))
        if not text.endswith(b"\0"):
            raise PolicyError(f"a name before byte {self.position} does not end with NUL")
        return text.partition(b"\0")[0]

    def _string(self) -> bytes:
        text = self._take(int.from_bytes(self._take(2), "little"))
        if not text.endswith(b"\0") or b"\0" in text[:-1]:
            raise PolicyError(f"a string before byte {self.position} does not end with one NUL")
        return text[:-1]

    def _take(self, size: int) -> bytes:
        content = self.blob[self.position : self.position + size]
        if len(content) != size:
            raise PolicyError("the policy ends too early")
        self.position += size
        return content
