"""Where below policy/profiles the kernel shows each name, while only this agent changes policy.

A walk over all profiles after each of a thousand loads would make a thousand thousand steps.

Rule 1: a place only saves the way: it is believed if its `name` file says the name, in a look whose
revision is the same before and after. Rule 2: whoever cannot tell says so, and the walk decides.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from agent.backends.apparmor import compiled_policy


class DirectoryIndex:
    """The directories of a complete walk, and of what this agent has loaded since.

    name_of gives the last part of the name of what lies in a directory; listed gives the names in
    a directory, the newest first (which is the order of the kernel, and only a matter of speed).
    """

    def __init__(
        self,
        found: Mapping[str, str],
        top: str,
        name_of: Callable[[str], str],
        listed: Callable[[str], Iterable[str]],
    ) -> None:
        self._top = top
        self._name_of = name_of
        self._listed = listed
        self._paths = dict(found)
        self._directories = set(found.values())
        self._new = False

    def loaded(self) -> None:
        """Note that something was loaded: there may be directories that are not known."""
        self._new = True

    def of(self, names: Collection[str]) -> dict[str, str] | None:
        """Return the directory of each of names that is loaded; None where that is not sure."""
        found: dict[str, str] = {}
        for name in sorted(names, key=len):  # a parent before its children
            path = self._paths.get(name) or (self._search(name) if self._new else None)
            above = compiled_policy.parent(name)
            if path is not None and self._name_of(path) == _last(name, above):
                found[name] = path
            elif path is not None or (self._new and above is not None):
                return None
        return found

    def _search(self, name: str) -> str | None:
        """Look through the directories that are not known yet, the newest first."""
        above = compiled_policy.parent(name)
        if above is not None and above not in self._paths:
            return None
        directory = self._top if above is None else f"{self._paths[above]}/profiles"
        for entry in self._listed(directory):
            path = f"{directory}/{entry}"
            if path in self._directories:
                continue
            found = self._name_of(path) if above is None else f"{above}//{self._name_of(path)}"
            self._directories.add(path)
            self._paths[found] = path
            if found == name:
                return path
        return None


def _last(name: str, above: str | None) -> str:
    """Return what the `name` file of a name's directory says: a hat's or child's last part."""
    return name if above is None else name[len(above) + 2 :]
