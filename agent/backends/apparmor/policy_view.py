"""Reads the kernel's loaded policy from securityfs.

The kernel does not list its profiles atomically. Therefore, an observation is valid only if the
policy revision is the same before and after it. Each write of the agent increments the revision by
one; a larger difference shows that another program also changed the policy. `policy_writer` writes
policy, `profile_files` reads the directory of one profile, and `directory_index` avoids complete
walks of the directory tree.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from agent.backends.apparmor import compiled_policy
from agent.backends.apparmor.directory_index import DirectoryIndex
from agent.backends.apparmor.kernel_access import ROOT, unobservable
from agent.backends.apparmor.profile_files import ABSENCE_ERRNOS, ProfileFiles, object_id
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.core.model import ObservedProfile, Unobservable
from agent.host.filesystem import Host, HostError

_TOP: Final = f"{ROOT}/policy/profiles"
_ATTEMPTS: Final = 20
_READ: Final = (
    "The next pass reads the policy again. If the error persists, run the agent as root, and look "
    "for a program that loads policy all the time."
)


class PolicyView:
    """Stores the policy of one kernel as of the agent's last observation. Only the main thread uses
    the view.
    """

    def __init__(self, host: Host, release: RawDataRelease) -> None:
        self.host = host
        self.release = release
        self.files = ProfileFiles(host)
        self.observed_revision = -1
        """The policy revision of the last observation."""

        self._directories: Mapping[str, str] = {}
        """Maps the name of each profile to its directory at the last observation."""

        self._index: DirectoryIndex | None = None
        self._known_revision: int | None = None
        """The revision up to which the agent knows every change; None if the agent may have missed
        changes.
        """

        self._written_revision: int | None = None
        """The policy revision right after the agent's last write; None after the next
        observation."""

    def revision(self) -> int:
        """Return the policy revision, which increases with every change.

        Raises:
            HostError: the revision cannot be read.
        """
        content = self.host.read_once(f"{ROOT}/revision")
        return int(content) if content else 0

    def observe(
        self, names: Collection[str], *, with_children: bool = False, is_complete: bool = False
    ) -> dict[str, ObservedProfile] | Unobservable:
        """Return the loaded profiles of the given names.

        Args:
            names: the names to observe.
            with_children: whether to observe the hats and children of the names too.
            is_complete: whether the names are all names that the agent tracks. A complete
                observation detects every change; a partial observation cannot show whether other
                names changed.
        """
        wanted = frozenset(names)
        reason = "the policy changes during every attempt to read it"
        for attempt in range(_ATTEMPTS):
            self.files.begin_reading(may_defer=attempt == 0)
            try:
                before, self._written_revision = self._revision_before(), None
                indexed = None if with_children else self._indexed(wanted, before)
                directories = dict(self._walk()) if indexed is None else indexed
                profiles = {
                    name: self.files.observed_profile(directory)
                    for name, directory in directories.items()
                    if name in wanted or (with_children and _has_ancestor(name, wanted))
                }
                if self.revision() == before:
                    self._accept(directories, before, is_walk=indexed is None)
                    if is_complete:
                        self._record_complete(directories, wanted, before)
                    return profiles
            except HostError as error:
                self._index = None
                if error.errno not in ABSENCE_ERRNOS:
                    return unobservable(f"the policy cannot be read ({error})", _READ)
                reason = f"the policy cannot be read ({error})"
            except (OSError, ValueError) as error:
                return unobservable(f"the policy cannot be read ({error})", _READ)
        return unobservable(reason, _READ)

    def object_ids(self, names: Collection[str]) -> dict[str, str]:
        """Return the IDs that the named profiles had at the last observation.

        An ID is valid until the next boot.
        """
        return {
            name: object_id(self._directories[name].removeprefix(f"{_TOP}/"))
            for name in names
            if name in self._directories
        }

    def directories(self, names: Collection[str]) -> dict[str, str]:
        """Return the current directory of each loaded name, or an empty mapping if the directories
        cannot be read.

        A replaced profile keeps its directory. A profile that was removed and loaded again has a
        directory with a new number (Linux, security/apparmor/apparmorfs.c: __aafs_profile_mkdir).
        """
        try:
            return {name: directory for name, directory in self._walk() if name in names}
        except HostError:
            return {}

    def raw_data(self, name: str) -> bytes | None:
        """Return the bytes from which a profile was loaded, or None if the bytes cannot be read."""
        try:
            for loaded, directory in self._walk():
                if loaded == name:
                    return self.host.read(f"{directory}/raw_data")
        except HostError:
            return None
        return None

    def raw_data_entries(self, names: Collection[str]) -> dict[str, str]:
        """Return for each profile the entry of policy/raw_data from which it was loaded.

        Raises:
            HostError: securityfs cannot be read.
        """
        return {
            name: PurePosixPath(self.host.link(f"{directory}/raw_data")).parent.name
            for name, directory in self._walk()
            if name in names
        }

    def is_unchanged(self) -> bool:
        """Return whether no program except the agent changed the policy since the last
        observation.
        """
        try:
            return self._known_revision is not None and self.revision() == self._known_revision
        except (HostError, ValueError):
            return False

    def invalidate(self) -> None:
        """Make the next observation read every name and hash again."""
        self._index = None
        self.files.invalidate()

    def record_write(self, *, is_removal: bool) -> None:
        """Record that the agent changed the policy.

        If the revision has increased by more than one, another program also changed the policy.
        """
        try:
            now = self._written_revision = self.revision()
            is_known = self._known_revision == now - 1
        except (HostError, ValueError):
            now, self._written_revision, is_known = -1, None, False
        self._known_revision = now if is_known else None
        if is_removal:
            self._index = None
        elif self._index is not None:
            self._index.record_write(self._written_revision, may_add=True)

    def _revision_before(self) -> int:
        return self._written_revision if self._written_revision is not None else self.revision()

    def _indexed(self, wanted: frozenset[str], revision: int) -> dict[str, str] | None:
        return self._index.find(wanted, revision) if self._index is not None else None

    def _accept(self, directories: Mapping[str, str], revision: int, *, is_walk: bool) -> None:
        """Store the result of an observation during which the policy did not change."""
        self.files.confirm()
        self.observed_revision, self._directories = revision, directories
        if is_walk:
            self._index = DirectoryIndex(
                directories,
                revision=revision,
                top=_TOP,
                last_name=self.files.name,
                newest_first=self.host.newest,
            )

    def _record_complete(
        self, directories: Mapping[str, str], tracked: frozenset[str], revision: int
    ) -> None:
        self._known_revision = revision
        loaded = tracked & directories.keys()
        generations = {
            name: generation
            for name in loaded
            if (generation := self.files.cached_generation(directories[name])) is not None
        }
        self.release.record_observation(tracked, loaded, generations)

    def _walk(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the directory of every loaded profile, hat and child."""
        stack = [("", _TOP)]
        while stack:
            prefix, parent = stack.pop()
            for entry in self.host.names(parent):
                directory = f"{parent}/{entry}"
                name = prefix + self.files.name(directory)
                yield name, directory
                if self.host.exists(f"{directory}/profiles"):
                    stack.append((f"{name}//", f"{directory}/profiles"))


def _has_ancestor(name: str, wanted: Collection[str]) -> bool:
    return not frozenset(wanted).isdisjoint(compiled_policy.ancestors(name))
