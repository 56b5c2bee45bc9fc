"""The kernel's side: what it has loaded, and the writes that change it.

Rule 1: a look is only an answer when the policy revision is the same before and after it: the
listing is not atomic. Rule 2: names are read from the `name` files, never from directory names,
which the kernel mangles. Rule 3: absent, unreadable and unsupported are three answers.
"""

import ctypes
import errno
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.core.model import Blind, Evidence, Fact, Unsupported
from agent.core.problems import Problem
from agent.doors.host import Host, HostError
from agent.kinds.apparmor.places import Places

SECURITYFS = "/sys/kernel/security"
ROOT = f"{SECURITYFS}/apparmor"
SECURITYFS_MAGIC = 0x73636673  # linux/magic.h
_TOP = f"{ROOT}/policy/profiles"
_ENABLED = "/sys/module/apparmor/parameters/enabled"
_CAP_MAC_ADMIN = 33  # linux/capability.h
_TRIES = 20
LET_GO_SECONDS = 0.1  # for the kernel to let go of what went; 0.2 to 13 ms where measured
_LOOK_SECONDS = 0.001  # between two looks whether it has
_WORD = 4096  # bytes, of a name or a hash
_HASHES = {
    "sha1": "own:sha1",
    "sha256": "own:sha256",
    "raw_sha1": "raw:sha1",
    "raw_sha256": "raw:sha256",
}
_BOTH = 2  # its own hash, and that of what it came with
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE)

_MEANINGS = {
    errno.EACCES: "the agent has no right to change policy (CAP_MAC_ADMIN, unconfined)",
    errno.EPERM: "the agent has no right to change policy (CAP_MAC_ADMIN, unconfined)",
    errno.EROFS: "securityfs is mounted read-only",
    errno.EPROTO: "this kernel does not understand the compiled policy",
    errno.EPROTONOSUPPORT: "this kernel does not understand the policy's version",
    errno.ENAMETOOLONG: "a profile's name is too long",
    errno.ENOENT: "a hat's or child's parent is not loaded",
    errno.EEXIST: "a profile of that name is loaded",
    errno.ENOMEM: "the kernel has no memory for the policy",
    errno.ENOSPC: "the kernel has no memory for the policy",
}


def filesystem(path: Path) -> int:
    """Return the magic number of the file system at path (statfs(2)). Raises OSError."""
    words = (ctypes.c_long * 64)()
    library = ctypes.CDLL(None, use_errno=True)
    if library.statfs(os.fsencode(path), ctypes.byref(words)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(words[0]) & 0xFFFFFFFF


def rights() -> str:
    """Return why this process may not change policy, or nothing (policy_admin_capable)."""
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line
    )
    if status["Uid"].split()[1] != "0":
        return "the agent does not run as root"
    if not int(status["CapEff"], 16) >> _CAP_MAC_ADMIN & 1:
        return "the agent lacks the capability CAP_MAC_ADMIN"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What this process is told about itself; tests give other answers."""

    filesystem: Callable[[Path], int] = filesystem
    rights: Callable[[], str] = rights
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


def meaning(error: HostError) -> str:
    """Return what an errno of a policy write means, in words."""
    said = _MEANINGS.get(error.errno)
    code = errno.errorcode.get(error.errno, str(error.errno))
    return f"{code}: {said}" if said else f"{code}: {os.strerror(error.errno)}"


class Kernel:
    """AppArmor's files below one host root."""

    def __init__(self, host: Host, probes: Probes) -> None:
        self.host = host
        self.probes = probes
        # The revision up to which every change is known: seen by a look, or our own.
        self.known: int | None = None
        self.passed = False  # the last look found no barrier
        self._places: Places | None = None
        self._placed: int | None = None  # the revision that they are of, as known
        self._where: dict[str, str] = {}  # name -> directory, at the last look at all names
        self._came_with: dict[str, str] = {}  # name -> generation, at that look
        self._going: set[str] = set()  # generations of what went since the last write
        self._anew: set[str] = set()
        self._names: dict[str, tuple[str, str]] = {}  # directory -> (generation, name)
        self._facts: dict[str, tuple[str, Fact]] = {}  # directory -> (generation, fact)
        self._wrote: int | None = None  # the revision right after the last write, until a look
        self._generations: dict[str, str] = {}  # directory -> generation, within one look
        self._hashes: tuple[str, ...] = ()  # the files of a profile that hold its hashes

    # --- may we look, may we write ---------------------------------------------------------------

    def missing(self) -> str:
        """Return why there is no AppArmor below the host root, or nothing."""
        try:
            if self.host.exists(f"{ROOT}/features"):
                return ""
            enabled = self.host.read(_ENABLED).strip() if self.host.exists(_ENABLED) else b"N"
        except HostError:
            return ""
        if enabled == b"Y":
            return ""
        return "the kernel has no AppArmor, or it is switched off"

    def barrier(self) -> Unsupported | Blind | None:
        """Return why policy cannot be looked at and changed here, or None."""
        found = self._barrier()
        self.passed = found is None
        return found

    def _barrier(self) -> Unsupported | Blind | None:
        why = self.missing()
        if why:
            return Unsupported(
                problem=Problem(
                    code="kind_unsupported",
                    where=ROOT,
                    what=f"AppArmor cannot be used on this node: {why}.",
                    hint="Boot with AppArmor enabled, or send pods that need it elsewhere.",
                )
            )
        try:
            why = self._hidden()
        except (HostError, OSError) as error:
            why = f"it cannot be read ({error})"
        return blind(why) if why else None

    def _hidden(self) -> str:
        if self.probes.filesystem(self.host.path(SECURITYFS)) != SECURITYFS_MAGIC:
            return f"{SECURITYFS} below the host root is not a securityfs"
        if not self.host.exists(f"{ROOT}/features"):
            return "the kernel has AppArmor, but its files are not there"
        level = f"{ROOT}/.ns_level"
        if self.host.exists(level) and self.host.read(level).strip() != b"0":
            return "this is a child policy namespace, not the host's"
        why = self.probes.rights()
        if why:
            return why
        if not os.access(self.host.path(f"{ROOT}/.replace"), os.W_OK):
            return "securityfs is read-only here"
        return ""

    def features(self) -> bytes:
        """Return everything that the kernel says about its features. Raises HostError."""
        parts: list[bytes] = []
        stack = [f"{ROOT}/features"]
        while stack:
            path = stack.pop()
            if self.host.path(path).is_dir():
                stack += [f"{path}/{name}" for name in self.host.names(path)]
            else:
                content = self.host.read(path, limit=1 << 20)
                parts.append(path.encode() + b"\0" + content + b"\0")
        return b"".join(sorted(parts))

    # --- looking ---------------------------------------------------------------------------------

    def revision(self) -> int:
        """Return the policy revision: it grows with every change. Raises HostError."""
        read = self.host.read_once(f"{ROOT}/revision")
        return int(read) if read else 0

    def look(
        self, names: Collection[str], *, below: bool = False, whole: bool = False
    ) -> dict[str, Fact] | Blind:
        """Return what is loaded under names; with below, their hats and children too.

        whole: these are all names that matter, so that every change is known then. A look at some
        of them says nothing of a change of the others in between.
        """
        wanted = frozenset(names)
        why = "its policy does not stop changing"
        for turn in range(_TRIES):
            self._generations = {}
            fresh: dict[str, tuple[str, Fact]] | None = {} if turn == 0 else None
            try:
                before = self._wrote if self._wrote is not None else self.revision()
                self._wrote = None
                near = None if below else self._near(wanted, before)
                places = dict(self._paths(_TOP)) if near is None else near
                facts = self._facts_in(places, wanted, before, fresh, below=below)
                if self.revision() == before:
                    self._facts |= fresh or {}
                    if whole:
                        self.known = before
                        self._note(places, wanted)
                    if near is None:
                        self._places = Places(places, _TOP, self._name, self.host.newest)
                        self._placed = before
                    return facts
            except HostError as error:
                self._places = None
                if error.errno not in _GONE:
                    return blind(f"it cannot be read ({error})")
                why = f"it cannot be read ({error})"
            except (OSError, ValueError) as error:
                return blind(f"it cannot be read ({error})")
        return blind(why)

    def anew(self) -> frozenset[str]:
        """Return, once, which names were removed and loaded again between two looks."""
        found = frozenset(self._anew)
        self._anew.clear()
        return found

    def _note(self, places: Mapping[str, str], wanted: frozenset[str]) -> None:
        """Compare where each name lies: a replacement keeps the directory, a new load has another.

        (Linux, security/apparmor/apparmorfs.c: __aafs_profile_mkdir numbers them all.)
        """
        where = {name: places[name] for name in wanted & places.keys()}
        self._anew |= {name for name, at in where.items() if self._where.get(name, at) != at}
        known = {name: self._facts[at][0] for name, at in where.items() if at in self._facts}
        self._going |= {
            one
            for name, one in self._came_with.items()
            if name in wanted and (name not in where or known.get(name, one) != one)
        }
        self._where, self._came_with = where, known

    def _near(self, wanted: frozenset[str], revision: int) -> dict[str, str] | None:
        """Return where each of names lies, if that is known; else None."""
        if self._places is None or self._placed != revision:
            return None
        return self._places.of(wanted)

    def _facts_in(
        self,
        places: Mapping[str, str],
        wanted: frozenset[str],
        revision: int,
        fresh: dict[str, tuple[str, Fact]] | None,
        *,
        below: bool,
    ) -> dict[str, Fact]:
        return {
            name: self._fact(path, revision, fresh)
            for name, path in places.items()
            if name in wanted or (below and _is_below(name, wanted))
        }

    def raw_data(self, name: str) -> bytes | None:
        """Return the bytes that a loaded profile came with, or None if they cannot be had."""
        try:
            for found, path in self._paths(_TOP):
                if found == name:
                    return self.host.read(f"{path}/raw_data")
        except HostError:
            return None
        return None

    def _paths(self, top: str) -> Iterator[tuple[str, str]]:
        """Give the name and the directory of every loaded profile, hat and child."""
        stack = [("", top)]
        while stack:
            above, directory = stack.pop()
            for entry in self.host.names(directory):
                path = f"{directory}/{entry}"
                name = above + self._name(path)
                yield name, path
                if self.host.exists(f"{path}/profiles"):
                    stack.append((f"{name}//", f"{path}/profiles"))

    def _name(self, path: str) -> str:
        """Return the name of a profile's directory; of a hat or child its last part only."""
        generation = self._generation(path)
        known = self._names.get(path)
        if generation and known is not None and known[0] == generation:
            return known[1]
        content = self._word(f"{path}/name")
        name = content.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        self._names[path] = (generation, name)
        return name

    def _generation(self, path: str) -> str:
        """Return a profile's generation, asked once in a look."""
        found = self._generations.get(path)
        if found is None:
            found = self._generations[path] = self._link(path)
        return found

    def _link(self, path: str) -> str:
        """Return where a profile's raw data lie: raw_data/REVISION, new with every new content.

        (Linux, security/apparmor/apparmorfs.c: rawdata_get_link.) Empty where the kernel keeps
        none; then nothing is remembered.
        """
        try:
            return self.host.link(f"{path}/raw_data")
        except HostError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return ""
            raise

    def forget(self) -> None:
        """Read every name and hash again at the next look."""
        self._places = None
        self._names.clear()
        self._facts.clear()

    def _fact(self, path: str, revision: int, fresh: dict[str, tuple[str, Fact]] | None) -> Fact:
        """Return a profile's fact; what is read anew is remembered, with its generation.

        fresh: where to put it, to be remembered if the revision is the same after the look. None
        while policy changes: it is remembered at once, if the generation is the same after it.
        """
        generation = self._generation(path) if fresh is not None else self._link(path)
        known = self._facts.get(path)
        if generation and known is not None and known[0] == generation:
            return known[1]
        fact = self._read_fact(path, revision)
        if generation and fresh is not None:
            fresh[path] = (generation, fact)
        elif generation and self._link(path) == generation:
            self._facts[path] = (generation, fact)
        return fact

    def _read_fact(self, path: str, revision: int) -> Fact:
        mode = self._word(f"{path}/mode").strip().decode("ascii", "replace")
        evidence = self._evidence(path) or self._without_hashes(path, revision)
        return Fact(evidence=evidence, mode=mode)

    def _evidence(self, path: str) -> Evidence:
        """Return the hashes that the kernel shows of a profile, from the files that others have."""
        if self._hashes:
            try:
                return self._read_hashes(path, self._hashes)
            except HostError as error:
                if error.errno not in _GONE:
                    raise
        files = tuple(file for file in self.host.names(path) if file in _HASHES)
        # One that was loaded without a hash says nothing of the others.
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

    def _without_hashes(self, path: str, revision: int) -> Evidence:
        """Hash what the kernel holds, or say only that nothing changed since the same boot."""
        if self.host.exists(f"{path}/raw_data"):
            blob = self.host.read(f"{path}/raw_data")
            return frozenset({f"raw:sha256:{hashlib.sha256(blob).hexdigest()}"})
        boot = self.host.read("/proc/sys/kernel/random/boot_id", limit=4096).strip().decode("ascii")
        return frozenset({f"boot:{boot}:{revision}"})

    # --- writing ---------------------------------------------------------------------------------

    def load(self, blob: bytes) -> None:
        """Load new profiles, all or none; EEXIST if one of the names is taken."""
        self._let_go()
        self._write("load", blob)
        self._came()

    def replace(self, blob: bytes) -> None:
        """Replace or load profiles, all or none."""
        self._let_go()
        self._write("replace", blob)
        self._came()

    def remove(self, name: str) -> None:
        """Remove a profile with its hats and children: the bare name, no newline."""
        self._places = None
        self._write("remove", name.encode("utf-8", "surrogateescape"))
        for one in [one for one in self._came_with if one == name or _is_below(one, {name})]:
            self._going.add(self._came_with.pop(one))

    def _let_go(self) -> None:
        """Wait a moment until the kernel has let go of the raw data of what was there before.

        Some kernels of 2026 (6.1.176, not 6.1.192) hand raw data that are just being freed to a
        load of the same bytes: aa_replace_profiles of security/apparmor/policy.c took its reference
        without looking whether there was one left. The kernel warns, and may fall. Raw data that
        somebody still holds (another profile of the same load, a process) stay, and are safe.
        """
        going = self._going - set(self._came_with.values())
        self._going = set()
        left = [f"{ROOT}/policy/raw_data/{PurePosixPath(one).parent.name}" for one in going]
        end = self.probes.clock() + LET_GO_SECONDS
        while any(self._is_there(one) for one in left) and self.probes.clock() < end:
            self.probes.pause(_LOOK_SECONDS)

    def _is_there(self, path: str) -> bool:
        try:
            return self.host.exists(path)
        except HostError:
            return False

    def _came(self) -> None:
        if self._places is not None:
            self._places.loaded()

    def _write(self, file: str, content: bytes) -> None:
        self.host.write_kernel(f"{ROOT}/.{file}", content)
        # Each write is one step; another number tells of somebody else's change between.
        try:
            now = self.revision()
        except (HostError, ValueError):
            self.known = self._placed = self._wrote = None
            return
        self._wrote = now
        self.known = now if self.known == now - 1 else None
        self._placed = now if self._placed == now - 1 else None

    def untouched(self) -> bool:
        """Return whether nothing but our own writes changed the policy since the last look."""
        try:
            return self.known is not None and self.revision() == self.known
        except (HostError, ValueError):
            return False


def blind(why: str) -> Blind:
    """Return that AppArmor is there, or may be, and cannot be looked at."""
    return Blind(
        problem=Problem(
            code="kind_unobservable",
            where=ROOT,
            what=f"AppArmor policy cannot be observed: {why}. Nothing is changed.",
            hint="Run as root with CAP_MAC_ADMIN, unconfined, with the host's securityfs writable.",
        )
    )


def _is_below(name: str, wanted: Collection[str]) -> bool:
    return any(name.startswith(f"{one}//") for one in wanted)
