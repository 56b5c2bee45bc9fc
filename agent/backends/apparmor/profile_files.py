"""Reads the files in which the kernel shows one loaded profile, and caches their content.

Each profile has a directory in policy/profiles. The module reads a profile's name from the `name`
file, because the kernel changes some characters in the names of directories. Cached content is
valid only for one generation of a profile. The target of the link `raw_data` identifies the
generation, because each change of content also changes this target. `policy_view` decides which
directories are read, and whether an observation is consistent.
"""

import errno
import hashlib
from collections.abc import Collection
from typing import Final

from agent.core.model import Evidence, ObservedProfile
from agent.host import stat_signature
from agent.host.filesystem import Host, HostError

ABSENCE_ERRNOS: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE)
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_VALUE_BYTES: Final = 4096  # Longer values need several reads.
_LONGEST_VALUE_BYTES: Final = 1 << 20
_EVIDENCE_PREFIXES: Final = {
    "sha1": "own:sha1",
    "sha256": "own:sha256",
    "raw_sha1": "raw:sha1",
    "raw_sha256": "raw:sha256",
}
_ALL_HASHES: Final = 2  # The two hashes are those of the profile and of the loaded policy.


class ProfileFiles:
    """Reads the directories of loaded profiles under one host root. Only the main thread uses this
    class.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._names: dict[str, tuple[str, str]] = {}
        """Maps a directory to the generation and the name of its profile."""

        self._profiles: dict[str, tuple[str, ObservedProfile]] = {}
        """Maps a directory to the generation and the content of its profile."""

        self._unconfirmed: dict[str, tuple[str, ObservedProfile]] | None = None
        """Content from the current observation, which `confirm` adds to the cache; None if content
        is cached immediately.
        """

        self._generations: dict[str, str] = {}
        """Maps a directory to the generation that the first read of the current observation
        found."""

        self._hash_files: tuple[str, ...] = ()
        """The names of the hash files; empty until a directory with all hash files was found."""

        self._boot_id = ""

    def begin_reading(self, *, may_defer: bool) -> None:
        """Begin an observation of several profiles, which reads the generation of each profile
        once.

        Args:
            may_defer: if True, content is only cached when `confirm` is called after a consistent
                observation. If False, content is cached immediately, provided that the generation
                is the same before and after the read.
        """
        self._generations = {}
        self._unconfirmed = {} if may_defer else None

    def confirm(self) -> None:
        """Cache the content that the current observation read, after the caller has verified that
        the policy did not change.
        """
        self._profiles |= self._unconfirmed or {}

    def cached_generation(self, directory: str) -> str | None:
        """Return the generation of a profile's cached content, or None if no content is cached."""
        return self._profiles[directory][0] if directory in self._profiles else None

    def invalidate(self) -> None:
        """Clear the cache, so that the next observation reads all files again."""
        self._names.clear()
        self._profiles.clear()

    def name(self, directory: str) -> str:
        """Return the name of a profile; for a hat or child, return only the last part.

        Raises:
            HostError: the files of the profile cannot be read.
        """
        generation = self._generation(directory)
        cached = self._names.get(directory)
        if generation and cached is not None and cached[0] == generation:
            return cached[1]
        content = self._value(f"{directory}/name")
        name = content.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        self._names[directory] = (generation, name)
        return name

    def observed_profile(self, directory: str) -> ObservedProfile:
        """Return the mode and the evidence of a profile.

        Raises:
            HostError: the files of the profile cannot be read.
            ValueError: a file has unexpected content.
        """
        is_deferred = self._unconfirmed is not None
        generation = (
            self._generation(directory) if is_deferred else self._read_generation(directory)
        )
        cached = self._profiles.get(directory)
        if generation and cached is not None and cached[0] == generation:
            return cached[1]
        profile = self._read_profile(directory)
        if generation and self._unconfirmed is not None:
            self._unconfirmed[directory] = (generation, profile)
        elif generation and self._read_generation(directory) == generation:
            self._profiles[directory] = (generation, profile)
        return profile

    def _generation(self, directory: str) -> str:
        """Return the generation of a profile. An observation reads the link `raw_data` once."""
        generation = self._generations.get(directory)
        if generation is None:
            generation = self._generations[directory] = self._read_generation(directory)
        return generation

    def _read_generation(self, directory: str) -> str:
        """Return the path of the raw data of a profile, raw_data/REVISION.

        The kernel stores new raw data for new content (Linux, security/apparmor/apparmorfs.c:
        rawdata_get_link). If the kernel keeps no raw data, the result is "", and the content is not
        cached.
        """
        try:
            return self.host.link(f"{directory}/raw_data")
        except HostError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return ""
            raise

    def _read_profile(self, directory: str) -> ObservedProfile:
        mode = self._value(f"{directory}/mode").strip().decode("ascii", "replace")
        evidence = self._evidence(directory) or self._raw_data_evidence(directory)
        if evidence:
            return ObservedProfile(evidence=evidence, mode=mode)
        evidence = self._object_evidence(directory)
        return ObservedProfile(evidence=evidence, mode=mode, is_readable=False)

    def _evidence(self, directory: str) -> Evidence:
        """Return the hashes that the kernel shows for a profile.

        For every profile, the method reads the files of the same names, so that it need not list
        each directory.
        """
        if self._hash_files:
            try:
                return self._read_hashes(directory, self._hash_files)
            except HostError as error:
                if error.errno not in ABSENCE_ERRNOS:
                    raise
        files = tuple(file for file in self.host.names(directory) if file in _EVIDENCE_PREFIXES)
        # This profile may have been loaded without hashes although other profiles have hashes.
        self._hash_files = files if len(files) == _ALL_HASHES else ()
        return self._read_hashes(directory, files)

    def _read_hashes(self, directory: str, files: Collection[str]) -> Evidence:
        evidence: set[str] = set()
        for file in files:
            value = self._value(f"{directory}/{file}").strip().decode("ascii")
            if value:
                evidence.add(f"{_EVIDENCE_PREFIXES[file]}:{value}")
        return frozenset(evidence)

    def _value(self, path: str) -> bytes:
        """Return the content of a file that contains one value.

        If the buffer is larger than the value, one read(2) returns the whole value (Linux,
        fs/seq_file.c: seq_read_iter).

        Raises:
            HostError: the file cannot be read.
        """
        value = self.host.read_once(path, size=_VALUE_BYTES)
        if value is None or len(value) == _VALUE_BYTES:
            return self.host.read(path, limit=_LONGEST_VALUE_BYTES)
        return value

    def _raw_data_evidence(self, directory: str) -> Evidence:
        """Return the hash of the loaded bytes, or "" if the kernel does not show the bytes."""
        if not self.host.exists(f"{directory}/raw_data"):
            return frozenset()
        content = self.host.read(f"{directory}/raw_data")
        return frozenset({f"raw:sha256:{hashlib.sha256(content).hexdigest()}"})

    def _object_evidence(self, directory: str) -> Evidence:
        """Return evidence that identifies a loaded profile and its last replacement, for kernels
        that show no content.

        When a profile is replaced, the kernel keeps its directory and sets the modification time
        of its files (Linux, security/apparmor/apparmorfs.c: __aafs_profile_migrate_dents).
        """
        if not self._boot_id:
            self._boot_id = self.host.read(_BOOT_ID, limit=4096).strip().decode("ascii")
        signature = self.host.signature(f"{directory}/mode")
        if signature is None:
            raise HostError(f"{directory}/mode", OSError(errno.ENOENT, "its status cannot be read"))
        modified = stat_signature.modified_ns(signature)
        return frozenset({f"object:{self._boot_id}:{object_id(directory)}:{modified}"})


def object_id(directory: str) -> str:
    """Return the name of a directory as text that JSON can contain. The kernel may cut a name
    inside a UTF-8 character.
    """
    return directory.encode("utf-8", "surrogateescape").decode("ascii", "backslashreplace")
