"""ConfigMaps of the API server: one by its name, or several by a label selector.

Rule 1: each ConfigMap is a set of its own. Missing, emptied, malformed and not confirmed by the
API server are four answers, judged for each. Rule 2: nothing is asked here; the copy that a
reflector keeps is read, once per pass. Rule 3: a ConfigMap whose node selector does not match is
read and provides nothing here; where the Node's labels are not known it is unreadable.
"""

from collections.abc import Callable, Mapping

from agent.core import selector
from agent.core.model import Missing, Snapshot, Unreadable
from agent.doors.kube import Json
from agent.doors.reflect import Copy
from agent.sources import config_map, limits
from agent.sources.config_map import Content
from agent.sources.opening import Wanted

Kept = Content | str  # what a ConfigMap says, or what is malformed in it


def origin(namespace: str, name: str) -> str:
    """Return what identifies a ConfigMap as a set, for people and in the ledger."""
    return f"configmap {namespace}/{name}"


def keep(domain: str) -> Callable[[Json], Kept]:
    """Return what makes of a ConfigMap what is remembered of it: its content alone."""

    def kept(found: Json) -> Kept:
        metadata = found.get("metadata")
        named = metadata if isinstance(metadata, dict) else {}
        set_ = origin(str(named.get("namespace", "")), str(named.get("name", "")))
        try:
            return config_map.content(found, origin=set_, domain=domain, qualified=False)
        except config_map.Malformed as error:
            return str(error)

    return kept


class ConfigMaps:
    """The ConfigMaps that Wanted says. Fulfils agent.core.ports.Source.

    copy: what is known of them. node_labels: the labels of the own Node, None where unknown.
    """

    def __init__(
        self,
        which: Wanted,
        *,
        copy: Callable[[], Copy[Kept]],
        node_labels: Callable[[], Mapping[str, str] | None],
    ) -> None:
        self.which = which
        self.copy = copy
        self.node_labels = node_labels
        self.watched = None  # the API server wakes by itself
        self._made: dict[str, tuple[Content, Snapshot]] = {}

    def forget(self) -> None:
        """Do nothing: what is known of the ConfigMaps is what the API server said."""

    def read(self) -> tuple[Snapshot, ...]:
        """Return a snapshot of every ConfigMap that is known."""
        copy = self.copy()
        if not self.which.name and not copy.objects:
            chosen = f"?{self.which.selector}" if self.which.selector else ""
            asked = f"configmaps {self.which.namespace}{chosen}"
            if copy.objects is None or copy.why:
                # Which there are is not known: that is not the same as none.
                return (Unreadable(origin=asked, why=_failure(copy)),)
            return (Missing(origin=asked, why="there is no such ConfigMap"),)
        names = [self.which.name] if self.which.name else sorted(copy.objects or {})
        self._made = {name: self._made[name] for name in names if name in self._made}
        return tuple(self._snapshot(name, copy) for name in names)

    def absent(self, set_: str) -> Snapshot | None:
        """Return what is known of a set that `read` did not give; None: not of this source."""
        prefix = origin(self.which.namespace, "")
        if self.which.name or not set_.startswith(prefix):
            return None
        return self._snapshot(set_.removeprefix(prefix), self.copy())

    def _snapshot(self, name: str, copy: Copy[Kept]) -> Snapshot:
        set_ = origin(self.which.namespace, name)
        if copy.objects is None or copy.why:
            return Unreadable(origin=set_, why=_failure(copy))
        if name not in copy.objects:
            selected = f' that "{self.which.selector}" selects' if not self.which.name else ""
            why = f"there is no ConfigMap {self.which.namespace}/{name}{selected}"
            return Missing(origin=set_, why=why)
        found = copy.objects[name]
        if isinstance(found, str):
            return Unreadable(origin=set_, why=found)
        if found.node_selector.terms:
            labels = self.node_labels()
            if labels is None:
                why = "it is for some nodes only, and the labels of this Node are not known"
                return Unreadable(origin=set_, why=why)
            if not selector.selects(found.node_selector, labels):
                return limits.snapshot(set_, [], [], empty=True)
        if name not in self._made or self._made[name][0] is not found:
            snapshot = limits.snapshot(
                set_, list(found.blobs), list(found.refused), empty=found.allow_empty
            )
            self._made[name] = (found, snapshot)
        return self._made[name][1]


def _failure(copy: Copy[Kept]) -> str:
    match copy.status:
        case 401 | 403:
            return f"the API server forbids to read it: {copy.why}"
        case 0:
            return f"the API server cannot be reached: {copy.why}"
        case _:
            return f"the API server refused: {copy.why}"
