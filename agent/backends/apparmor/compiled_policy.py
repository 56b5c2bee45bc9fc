"""Read what a compiled AppArmor policy really declares: names, attachments, modes, hashes.

Rule 1: pure and total: any bytes give an answer or one `PolicyError`, never another exception.
Rule 2: what is not understood is an error, never skipped: a layout that this module does not know
could hide a name.

The layout is that of the kernel's security/apparmor/policy_unpack.c: a stream of tagged elements
(an optional name, then a value), where every profile is a struct named `profile`.
"""

import functools
import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from agent.core.model import Evidence

READER_VERSION = (
    1  # of what is read out of a policy: count up when the same bytes give another answer
)
MODES = {0: "enforce", 1: "complain", 2: "kill", 3: "unconfined", 4: "user"}

_NAME, _STRING, _BLOB, _STRUCT, _STRUCT_END, _LIST, _LIST_END, _ARRAY, _ARRAY_END = range(4, 13)
_FIXED = {0: 1, 1: 2, 2: 4, 3: 8}  # tag -> bytes of an integer
_ENDS = {_STRUCT: _STRUCT_END, _LIST: _LIST_END, _ARRAY: _ARRAY_END}
_DEPTH = 16
# What may stand between a profile's name and its flags without giving it an attachment.
_HARMLESS = frozenset({"disconnected", "learning_offset"})


class PolicyError(Exception):
    """The bytes are not a compiled policy of a layout that this module knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredProfile:
    """One profile, hat or child of a compiled policy.

    attached: it has an attachment of its own, a match or a rename. evidence: what the kernel shows
    when it holds it: the hash of this one profile (aa_calc_profile_hash: the version word, then the
    profile's bytes), and that of the whole blob.
    """

    name: str
    mode: str
    has_attachment: bool
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class _Element:
    name: str
    tag: int
    value: int | bytes | tuple["_Element", ...]
    start: int
    end: int


@functools.lru_cache(maxsize=1)  # one body is read for several reasons, one after the other
def read(policy: bytes) -> tuple[DeclaredProfile, ...]:
    """Return every profile in the blob, in its order. Raises PolicyError.

    A profile of a policy namespace is named `:namespace:name`.
    """
    found: list[DeclaredProfile] = []
    raw = raw_evidence(policy)
    for version, namespace, element, fields in _profiles(policy):
        own = struct.pack("<I", version) + policy[element.start : element.end]
        found.append(_declared(namespace, fields, raw | _own_evidence(own)))
    return tuple(found)


def names(policy: bytes) -> frozenset[str]:
    """Return the names of the profiles in the blob. Raises PolicyError."""
    return frozenset(_name(namespace, fields) for _, namespace, _, fields in _profiles(policy))


def rewrap(blobs: Iterable[bytes], included_names: Collection[str], filler: bytes) -> bytes:
    """Return one blob with the wanted profiles, byte for byte as they are in the given blobs.

    Each profile gets a version header of its own, with the same version but with filler (at least
    8 bytes) behind the NUL that ends the header's name. The kernel compares names with strcmp
    (aa_unpack_nameX), and its hash of one profile covers the version and the profile alone. So what
    the kernel enforces and that hash stay the same, while the blob as a whole is another one.
    Raises PolicyError, also for a policy namespace.
    """
    made = b""
    for blob in blobs:
        for version, namespace, element, fields in _profiles(blob):
            if namespace:
                raise PolicyError("it belongs to a policy namespace")
            if _name(namespace, fields) in included_names:
                # Tables in a profile are aligned to 8 bytes from the beginning of the blob.
                size = len(made) + len(_header(version, filler))
                padding = filler[: (element.start - size) % 8]
                made += _header(version, filler + padding) + blob[element.start : element.end]
    return made


def _header(version: int, filler: bytes) -> bytes:
    tag = b"version\0" + filler + b"\0"
    return struct.pack("<BH", _NAME, len(tag)) + tag + struct.pack("<BI", 2, version)


def _profiles(
    blob: bytes,
) -> Iterator[tuple[int, str, "_Element", tuple["_Element", ...]]]:
    """Give the version, the namespace (`:name:` or nothing), the element and the fields of each."""
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
    """Return what the kernel's raw_sha1 or raw_sha256 shows when it holds this whole blob."""
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
    """Return the parent of a hat or child, or None for a profile of its own.

    The kernel splits at every `//` from the left (__lookup_parent).
    """
    at, start = -1, 0
    while (found := name.find("//", start)) >= 0:
        at, start = found, found + 2
    return name[:at] if at >= 0 else None


def ancestors(name: str) -> tuple[str, ...]:
    """Return the parents of a hat or child, the nearest first."""
    found: list[str] = []
    above = parent(name)
    while above is not None:
        found.append(above)
        above = parent(above)
    return tuple(found)


def _declared(namespace: str, fields: tuple[_Element, ...], evidence: Evidence) -> DeclaredProfile:
    name = _name(namespace, fields)
    attached = False
    for field in fields[1:]:
        if field.name == "flags" and isinstance(field.value, tuple):
            return DeclaredProfile(
                name=name, mode=_mode(field.value), has_attachment=attached, evidence=evidence
            )
        attached = attached or field.name not in _HARMLESS
    raise PolicyError(f'profile "{name}" has no flags')


def _name(namespace: str, fields: tuple[_Element, ...]) -> str:
    if not fields or fields[0].name or not isinstance(fields[0].value, bytes):
        raise PolicyError("a profile does not begin with its name")
    try:
        return namespace + fields[0].value.decode()
    except UnicodeDecodeError as error:
        raise PolicyError("a profile's name is not UTF-8") from error


def _mode(fields: tuple[_Element, ...]) -> str:
    if len(fields) < 3 or not isinstance(fields[1].value, int):  # noqa: PLR2004 - hat, mode, audit
        raise PolicyError("a profile's flags are not three numbers")
    mode = fields[1].value
    if mode not in MODES:
        raise PolicyError(f"a profile's mode is {mode}, which is not known")
    return MODES[mode]


class _Reader:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.at = 0

    def elements(self, until: int | None, depth: int) -> tuple[_Element, ...]:
        """Read elements up to the tag that ends their parent, or to the end of the blob."""
        if depth > _DEPTH:
            raise PolicyError("it is nested too deep")
        found: list[_Element] = []
        while self.at < len(self.blob):
            start = self.at
            tag = self._take(1)[0]
            if tag == until:
                return tuple(found)
            name = ""
            if tag == _NAME:
                name = self._tag().decode("latin-1")
                tag = self._take(1)[0]
            found.append(self._element(name, tag, start, depth))
        if until is not None:
            raise PolicyError("it ends inside a struct, list or array")
        return tuple(found)

    def _element(self, name: str, tag: int, start: int, depth: int) -> _Element:
        value: int | bytes | tuple[_Element, ...]
        if tag in _FIXED:
            value = int.from_bytes(self._take(_FIXED[tag]), "little")
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
        return _Element(name=name, tag=tag, value=value, start=start, end=self.at)

    def _tag(self) -> bytes:
        """Return an element's name: the kernel reads it up to its first NUL."""
        text = self._take(int.from_bytes(self._take(2), "little"))
        if not text.endswith(b"\0"):
            raise PolicyError(f"a name before byte {self.at} does not end with NUL")
        return text.partition(b"\0")[0]

    def _string(self) -> bytes:
        text = self._take(int.from_bytes(self._take(2), "little"))
        if not text.endswith(b"\0") or b"\0" in text[:-1]:
            raise PolicyError(f"a string before byte {self.at} does not end with one NUL")
        return text[:-1]

    def _take(self, size: int) -> bytes:
        taken = self.blob[self.at : self.at + size]
        if len(taken) != size:
            raise PolicyError("it ends too early")
        self.at += size
        return taken
