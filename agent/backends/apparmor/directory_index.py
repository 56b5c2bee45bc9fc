"""Finds the directories of profiles that this agent loaded, without reading all directories.

Without the index, 1,000 loads would make the agent read 1,000,000 directories, because it would
read all of them after each load. The index only saves time, and never decides that a profile is
present. The index returns a directory only if the `name` file in that directory still contains the
name, and `policy_view` uses the result only if the policy revision is the same before and after the
observation. If the index may be out of date, it returns None, and `policy_view` reads all
directories.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from agent.backends.apparmor import compiled_policy


class DirectoryIndex:
    """Stores the directories that a complete walk found, or that this agent added by loading
    profiles.
    """

    def __init__(
        self,
        directories: Mapping[str, str],
        *,
        revision: int,
        top: str,
        last_name: Callable[[str], str],
        newest_first: Callable[[str], Iterable[str]],
    ) -> None:
        """Create an index from a walk over all directories.

        Args:
            directories: the directory of each name.
            revision: the policy revision at the time of the walk.
            top: the directory that contains all profiles.
            last_name: returns the last part of the name of the profile in a directory.
            newest_first: returns the entries of a directory, newest first. The kernel lists the
                entries in this order, which only makes the search faster.
        """
        self._directories = dict(directories)
        self._known = set(directories.values())
        self._revision: int | None = revision
        self._top = top
        self._last_name = last_name
        self._newest_first = newest_first
        self._may_have_new = False

    def record_write(self, revision: int | None, *, may_add: bool) -> None:
        """Record that this agent changed the policy.

        Args:
            revision: the policy revision after the write, or None if it is unknown.
            may_add: whether the write may have added directories.
        """
        is_only_change = revision is not None and self._revision == revision - 1
        self._revision = revision if is_only_change else None
        self._may_have_new = self._may_have_new or may_add

    def find(self, names: Collection[str], revision: int) -> dict[str, str] | None:
        """Return the directory of each loaded name, or None if the index may be out of date.

        Args:
            names: the names to find.
            revision: the current policy revision. The index may be out of date if another program
                has changed the policy since the walk.
        """
        if self._revision != revision:
            return None
        directories: dict[str, str] = {}
        for name in sorted(names, key=len):  # The sorted order has each parent before its children.
            directory = self._directories.get(name)
            if directory is None and self._may_have_new:
                directory = self._search(name)
            parent = compiled_policy.parent(name)
            if directory is not None and self._last_name(directory) == _last_part(name, parent):
                directories[name] = directory
            elif directory is not None or (self._may_have_new and parent is not None):
                return None
        return directories

    def _search(self, name: str) -> str | None:
        """Find the directories that are not in the index yet, and add them to the index."""
        parent = compiled_policy.parent(name)
        if parent is not None and parent not in self._directories:
            return None
        above = self._top if parent is None else f"{self._directories[parent]}/profiles"
        for entry in self._newest_first(above):
            directory = f"{above}/{entry}"
            if directory in self._known:
                continue
            last_name = self._last_name(directory)
            full_name = last_name if parent is None else f"{parent}//{last_name}"
            self._known.add(directory)
            self._directories[full_name] = directory
            if full_name == name:
                return directory
        return None


def _last_part(name: str, parent: str | None) -> str:
    """Return the content of the `name` file of a profile's directory. For a hat or child profile,
    the file contains only the part of the name after the parent's name.
    """
    return name if parent is None else name[len(parent) + 2 :]
