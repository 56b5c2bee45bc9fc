"""The policy that the kernel has loaded, and the writes that change it.

Rule 1: a listing is valid only if the policy revision is the same before and after it, because the
listing is not atomic. Rule 2: each write of the agent increments the revision by one; any other
difference shows that another program changed the policy.
"""

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath

from agent.backends.apparmor.directory_index import DirectoryIndex
from agent.backends.apparmor.kernel_access import ROOT, Probes, blind
from agent.backends.apparmor.profile_directories import (
    ERRNOS_OF_ABSENCE,
    ProfileDirectories,
    identity,
)
from agent.core.model import ObservedProfile, Unobservable
from agent.host.filesystem import Host, HostError

_TOP = f"{ROOT}/policy/profiles"
_TRIES = 20
LET_GO_SECONDS = 0.1  # for the kernel to let go of what went; 0.2 to 13 ms where measured
_LOOK_SECONDS = 0.001  # between two looks whether it has

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


def meaning(error: HostError) -> str:
    """Return a description of the errno of a policy write."""
    said = _MEANINGS.get(error.errno)
    code = errno.errorcode.get(error.errno, str(error.errno))
    return f"{code}: {said}" if said else f"{code}: {os.strerror(error.errno)}"


class Kernel:
    """AppArmor's files under one host root."""

    def __init__(self, host: Host, probes: Probes) -> None:
        self.host = host
        self.probes = probes
        self.profile_directories = ProfileDirectories(host)
        # The revision up to which every change is known, from a look or from a write of the agent.
        self.known: int | None = None
        self.looked = -1  # the revision of the last look
        self._found: Mapping[str, str] = {}  # name -> directory, at the last look
        self._places: DirectoryIndex | None = None
        self._placed: int | None = None  # the revision that they are of, as known
        self._came_with: dict[str, str] = {}  # name -> generation, at that look
        self._going: set[str] = set()  # generations of what went since the last write
        self._wrote: int | None = None  # the revision right after the last write, until a look

    # --- looking ---------------------------------------------------------------------------------

    def revision(self) -> int:
        """Return the policy revision, which grows with every change. Raises HostError."""
        read = self.host.read_once(f"{ROOT}/revision")
        return int(read) if read else 0

    def observe(
        self, names: Collection[str], *, below: bool = False, whole: bool = False
    ) -> dict[str, ObservedProfile] | Unobservable:
        """Return the facts of the loaded names.

        below: include the hats and children of these names. whole: these names are all names that
        the agent tracks, so after the look every change is known. A look at some of the names does
        not show whether the other names changed.
        """
        wanted = frozenset(names)
        why = "its policy does not stop changing"
        for turn in range(_TRIES):
            self.profile_directories.begin(calm=turn == 0)
            try:
                before = self._wrote if self._wrote is not None else self.revision()
                self._wrote = None
                near = None if below else self._near(wanted, before)
                places = dict(self._paths(_TOP)) if near is None else near
                facts = self._facts_in(places, wanted, below=below)
                if self.revision() == before:
                    self.profile_directories.remember()
                    self.looked, self._found = before, places
                    if whole:
                        self.known = before
                        self._note(places, wanted)
                    if near is None:
                        self._places = DirectoryIndex(
                            places, _TOP, self.profile_directories.name, self.host.newest
                        )
                        self._placed = before
                    return facts
            except HostError as error:
                self._places = None
                if error.errno not in ERRNOS_OF_ABSENCE:
                    return blind(f"it cannot be read ({error})")
                why = f"it cannot be read ({error})"
            except (OSError, ValueError) as error:
                return blind(f"it cannot be read ({error})")
        return blind(why)

    def objects(self, names: Collection[str]) -> dict[str, str]:
        """Return the ID of the loaded object of each name at the last look; valid in this boot."""
        return {
            name: identity(self._found[name].removeprefix(f"{_TOP}/"))
            for name in names
            if name in self._found
        }

    def directories(self, names: Collection[str]) -> dict[str, str]:
        """Return the directory of each loaded name; nothing where they cannot be read.

        A replacement keeps it; a profile that was removed and loaded again has another one.
        (Linux, security/apparmor/apparmorfs.c: __aafs_profile_mkdir numbers them all.)
        """
        try:
            return {name: path for name, path in self._paths(_TOP) if name in names}
        except HostError:
            return {}

    def _note(self, places: Mapping[str, str], wanted: frozenset[str]) -> None:
        """Note which raw data the names came with, and which of those are gone."""
        where = {name: places[name] for name in wanted & places.keys()}
        shown = {name: self.profile_directories.known(at) for name, at in where.items()}
        known = {name: one for name, one in shown.items() if one is not None}
        self._going |= {
            one
            for name, one in self._came_with.items()
            if name in wanted and (name not in where or known.get(name, one) != one)
        }
        self._came_with = known

    def _near(self, wanted: frozenset[str], revision: int) -> dict[str, str] | None:
        """Return the directory of each name, or None if the directories are not known."""
        if self._places is None or self._placed != revision:
            return None
        return self._places.of(wanted)

    def _facts_in(
        self,
        places: Mapping[str, str],
        wanted: frozenset[str],
        *,
        below: bool,
    ) -> dict[str, ObservedProfile]:
        return {
            name: self.profile_directories.observed_profile(path)
            for name, path in places.items()
            if name in wanted or (below and _is_below(name, wanted))
        }

    def raw_data(self, name: str) -> bytes | None:
        """Return the bytes from which a profile was loaded, or None if they cannot be read."""
        try:
            for found, path in self._paths(_TOP):
                if found == name:
                    return self.host.read(f"{path}/raw_data")
        except HostError:
            return None
        return None

    def raw_directories(self, names: Collection[str]) -> dict[str, str]:
        """Return which entry of policy/raw_data each loaded name came from. Raises HostError."""
        return {
            name: PurePosixPath(self.host.link(f"{path}/raw_data")).parent.name
            for name, path in self._paths(_TOP)
            if name in names
        }

    def _paths(self, top: str) -> Iterator[tuple[str, str]]:
        """Yield the name and the directory of every loaded profile, hat and child."""
        stack = [("", top)]
        while stack:
            above, directory = stack.pop()
            for entry in self.host.names(directory):
                path = f"{directory}/{entry}"
                name = above + self.profile_directories.name(path)
                yield name, path
                if self.host.exists(f"{path}/profiles"):
                    stack.append((f"{name}//", f"{path}/profiles"))

    def invalidate(self) -> None:
        """Read every name and hash again at the next look."""
        self._places = None
        self.profile_directories.invalidate()

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
        """Wait a moment until the kernel has released the raw data of earlier versions.

        Some kernels of 2026 (6.1.176, not 6.1.192) reuse raw data that are just being freed for a
        load of the same bytes: aa_replace_profiles in security/apparmor/policy.c increments the
        reference count even if it is zero. The kernel warns, and may crash. Raw data that another
        profile of the same load or a process still references stay, and are safe.
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
        # Each write increments the revision by one; otherwise another program wrote, too.
        try:
            now = self.revision()
        except (HostError, ValueError):
            self.known = self._placed = self._wrote = None
            return
        self._wrote = now
        self.known = now if self.known == now - 1 else None
        self._placed = now if self._placed == now - 1 else None

    def is_unchanged(self) -> bool:
        """Return whether only the agent's own writes changed the policy since the last look."""
        try:
            return self.known is not None and self.revision() == self.known
        except (HostError, ValueError):
            return False


def _is_below(name: str, wanted: Collection[str]) -> bool:
    return any(name.startswith(f"{one}//") for one in wanted)
