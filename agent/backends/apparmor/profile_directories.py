"""The files in which the kernel shows one loaded profile; each profile has its own directory.

Rule 1: names are read from the `name` files, never from directory names, which the kernel mangles.
Rule 2: facts are cached with the profile's generation, and valid as long as it is the same.
"""

import errno
import hashlib
from collections.abc import Collection

from agent.core.model import Evidence, ObservedProfile
from agent.host import stat_signature
from agent.host.filesystem import Host, HostError

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
ERRNOS_OF_ABSENCE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE)
_WORD = 4096  # bytes, of a name or a hash
_HASHES = {
    "sha1": "own:sha1",
    "sha256": "own:sha256",
    "raw_sha1": "raw:sha1",
    "raw_sha256": "raw:sha256",
}
_BOTH = 2  # its own hash, and that of what it came with


class ProfileDirectories:
    """The directories of profiles under one host root, with a cache of their facts."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._names: dict[str, tuple[str, str]] = {}  # directory -> (generation, name)
        self._facts: dict[str, tuple[str, ObservedProfile]] = {}  # directory -> (generation, fact)
        self._fresh: dict[str, tuple[str, ObservedProfile]] | None = (
            None  # of this look, not yet believed
        )
        self._generations: dict[str, str] = {}  # directory -> generation, within one look
        self._hashes: tuple[str, ...] = ()  # the files of a profile that hold its hashes
        self._boot = ""

    def begin(self, *, calm: bool) -> None:
        """Begin a look, which reads every generation once.

        calm: `remember` caches the facts after the look is known to be valid. Otherwise policy is
        changing, and each fact is cached at once if its generation is the same after the read.
        """
        self._generations = {}
        self._fresh = {} if calm else None

    def remember(self) -> None:
        """Cache the facts that were read since `begin`, as policy did not change since then."""
        self._facts |= self._fresh or {}

    def known(self, path: str) -> str | None:
        """Return the generation of the cached fact of a directory."""
        return self._facts[path][0] if path in self._facts else None

    def invalidate(self) -> None:
        """Read every name and hash again at the next look."""
        self._names.clear()
        self._facts.clear()

    def name(self, path: str) -> str:
        """Return the name of a profile's directory; of a hat or child its last part only.

        Raises HostError.
        """
        generation = self._generation(path)
        known = self._names.get(path)
        if generation and known is not None and known[0] == generation:
            return known[1]
        content = self._word(f"{path}/name")
        name = content.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        self._names[path] = (generation, name)
        return name

    def _generation(self, path: str) -> str:
        """Return a profile's generation, which is read once per look."""
        found = self._generations.get(path)
        if found is None:
            found = self._generations[path] = self._link(path)
        return found

    def _link(self, path: str) -> str:
        """Return the path of a profile's raw data: raw_data/REVISION, which is new for new content.

        (Linux, security/apparmor/apparmorfs.c: rawdata_get_link.) Empty where the kernel keeps
        no raw data; then nothing is cached.
        """
        try:
            return self.host.link(f"{path}/raw_data")
        except HostError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return ""
            raise

    def observed_profile(self, path: str) -> ObservedProfile:
        """Return a profile's fact. Raises HostError, ValueError."""
        generation = self._generation(path) if self._fresh is not None else self._link(path)
        known = self._facts.get(path)
        if generation and known is not None and known[0] == generation:
            return known[1]
        fact = self._read_fact(path)
        if generation and self._fresh is not None:
            self._fresh[path] = (generation, fact)
        elif generation and self._link(path) == generation:
            self._facts[path] = (generation, fact)
        return fact

    def _read_fact(self, path: str) -> ObservedProfile:
        mode = self._word(f"{path}/mode").strip().decode("ascii", "replace")
        evidence = self._evidence(path) or self._hash_of_raw_data(path)
        if evidence:
            return ObservedProfile(evidence=evidence, mode=mode)
        return ObservedProfile(evidence=self._unchanged_object(path), mode=mode, is_readable=False)

    def _evidence(self, path: str) -> Evidence:
        """Return the hashes that the kernel shows of a profile, from the files that others have."""
        if self._hashes:
            try:
                return self._read_hashes(path, self._hashes)
            except HostError as error:
                if error.errno not in ERRNOS_OF_ABSENCE:
                    raise
        files = tuple(file for file in self.host.names(path) if file in _HASHES)
        # A profile that was loaded without hashes does not show whether others have hashes.
        self._hashes = files if len(files) == _BOTH else ()
        return self._read_hashes(path, files)

    def _read_hashes(self, path: str, files: Collection[str]) -> Evidence:
        found: set[str] = set()
        for file in files:
            value = self._word(f"{path}/{file}").strip().decode("ascii")
            if value:
                found.add(f"{_HASHES[file]}:{value}")
        return frozenset(found)

    def _word(self, path: str) -> bytes:
        """Return what a file of securityfs says that shows one thing. Raises HostError.

        One read gives all of it where it has room (Linux, fs/seq_file.c: seq_read_iter).
        """
        found = self.host.read_once(path, size=_WORD)
        if found is None or len(found) == _WORD:
            return self.host.read(path, limit=1 << 20)
        return found

    def _hash_of_raw_data(self, path: str) -> Evidence:
        """Return the hash of the loaded bytes; nothing where the kernel does not show them."""
        if not self.host.exists(f"{path}/raw_data"):
            return frozenset()
        blob = self.host.read(f"{path}/raw_data")
        return frozenset({f"raw:sha256:{hashlib.sha256(blob).hexdigest()}"})

    def _unchanged_object(self, path: str) -> Evidence:
        """Identify the loaded object and its last replacement, where nothing shows its content.

        The kernel keeps the directory of a profile that is replaced, and sets the modification
        time of its files (Linux, security/apparmor/apparmorfs.c: __aafs_profile_migrate_dents).
        """
        if not self._boot:
            self._boot = self.host.read(_BOOT_ID, limit=4096).strip().decode("ascii")
        sign = self.host.signature(f"{path}/mode")
        if sign is None:
            raise HostError(f"{path}/mode", OSError(errno.ENOENT, "its status cannot be read"))
        return frozenset(
            {f"object:{self._boot}:{identity(path)}:{stat_signature.modified_ns(sign)}"}
        )


def identity(path: str) -> str:
    """Return a profile's directory as text that JSON can hold; the kernel cuts names anywhere."""
    return path.encode("utf-8", "surrogateescape").decode("ascii", "backslashreplace")
