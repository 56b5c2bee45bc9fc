"""ConfigMaps of the API server: one by its name, or several by a label selector.

Rule 1: each ConfigMap is a set of its own. Missing, emptied, malformed and not confirmed by the
API server are four answers, judged for each. Rule 2: nothing is asked here; the copy that a
reflector keeps is read, once per pass. Rule 3: a ConfigMap whose node selector does not match is
read and provides nothing here; where the Node's labels are not known it is unreadable. Rule 4: what
is kept of all ConfigMaps is bounded; the youngest that exceed the bounds are refused one by one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agent.core import selector
from agent.core.model import Missing, Snapshot, Unreadable
from agent.core.vocabulary import UnreadableCause
from agent.kube.reflector import Store
from agent.kube.responses import Json
from agent.sources import configmap_data, limits
from agent.sources.configmap_data import Content
from agent.sources.source_spec import ConfigMapSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapEntry:
    """What is remembered of one ConfigMap.

    content: what it says; None: it is malformed, or beyond the bounds. malformed: what is wrong
    with it. has_too_many_keys: it is malformed because it has more keys than a profile set may
    have. created: its creationTimestamp, which the API server sets. size: bytes of its content.
    """

    content: Content | None = None
    malformed: str = ""
    has_too_many_keys: bool = False
    created: str = ""
    size: int = 0

    @property
    def is_let_go(self) -> bool:
        """Return whether its content was too much to be kept."""
        return self.content is None and not self.malformed


class ConfigMapBounds:
    """How many ConfigMaps of one source are kept, and how many bytes. Fulfils reflect.Bounds.

    A ConfigMap has room if it and all that are older fit together: which ones have room depends on
    the ConfigMaps alone, and a new one takes no room from those that were there before. For as
    many again, only the names are kept; beyond that, nothing.
    """

    def __init__(
        self,
        *,
        most_bytes: int = limits.SOURCE_BYTES,
        most_config_maps: int = limits.SOURCE_CONFIG_MAPS,
    ) -> None:
        self.most_bytes = most_bytes
        self.most_config_maps = most_config_maps

    def within(self, objects: Mapping[str, ConfigMapEntry]) -> Mapping[str, ConfigMapEntry]:
        """Return the ConfigMaps that fit; of the next ones their names."""
        fitting = self._fitting(objects)
        if fitting == len(objects):
            return objects
        oldest = _by_age(objects)[: 2 * self.most_config_maps]
        return {
            name: objects[name] if number < fitting else replace(objects[name], content=None)
            for number, name in enumerate(oldest)
        }

    def has_room(self, objects: Mapping[str, ConfigMapEntry]) -> bool:
        """Return whether a ConfigMap that was let go would fit again."""
        oldest = _by_age(objects)[: self._fitting(objects)]
        return any(objects[name].is_let_go for name in oldest)

    def _fitting(self, objects: Mapping[str, ConfigMapEntry]) -> int:
        """Return how many of the ConfigMaps fit, the oldest first."""
        size = 0
        for number, name in enumerate(_by_age(objects)):
            size += objects[name].size
            if size > self.most_bytes or number == self.most_config_maps:
                return number
        return len(objects)


def _by_age(objects: Mapping[str, ConfigMapEntry]) -> list[str]:
    return sorted(objects, key=lambda name: (objects[name].created, name))


def _size(content: Content) -> int:
    """Return about how many bytes of memory the keys of a ConfigMap take."""
    keys = sum(
        len(blob.key) + len(blob.content) + limits.KEY_OVERHEAD for blob in content.source_keys
    )
    return keys + limits.KEY_OVERHEAD * len(content.refused)


def origin(namespace: str, name: str) -> str:
    """Return what identifies a ConfigMap as a set, for people and in the ledger."""
    return f"configmap {namespace}/{name}"


def keep(domain: str) -> Callable[[Json], ConfigMapEntry]:
    """Return what makes of a ConfigMap what is remembered of it: its content alone."""

    def kept(found: Json) -> ConfigMapEntry:
        metadata = found.get("metadata")
        named = metadata if isinstance(metadata, dict) else {}
        set_ = origin(str(named.get("namespace", "")), str(named.get("name", "")))
        created = str(named.get("creationTimestamp", ""))
        try:
            content = configmap_data.content(found, origin=set_, domain=domain, qualified=False)
        except configmap_data.TooManyKeysError as error:
            return ConfigMapEntry(malformed=str(error), has_too_many_keys=True, created=created)
        except configmap_data.MalformedError as error:
            return ConfigMapEntry(malformed=str(error), created=created)
        return ConfigMapEntry(content=content, created=created, size=_size(content))

    return kept


class ConfigMapSource:
    """The ConfigMaps that Wanted says. Fulfils agent.core.ports.Source.

    copy: what is known of them. node_labels: the labels of the own Node, None where unknown.
    """

    def __init__(
        self,
        which: ConfigMapSpec,
        *,
        copy: Callable[[], Store[ConfigMapEntry]],
        node_labels: Callable[[], Mapping[str, str] | None],
    ) -> None:
        self.which = which
        self.copy = copy
        self.node_labels = node_labels
        self.watched_path = None  # the API server wakes by itself
        self._made: dict[str, tuple[Content, Snapshot]] = {}

    def invalidate(self) -> None:
        """Do nothing: what is known of the ConfigMaps is what the API server said."""

    def read(self) -> tuple[Snapshot, ...]:
        """Return a snapshot of every ConfigMap that is known."""
        copy = self.copy()
        if not self.which.name and not copy.objects:
            chosen = f"?{self.which.selector}" if self.which.selector else ""
            asked = f"configmaps {self.which.namespace}{chosen}"
            if copy.objects is None or copy.reason:
                # Which there are is not known: that is not the same as none.
                return (Unreadable(profile_set=asked, reason=_failure(copy)),)
            return (Missing(profile_set=asked, reason="there is no such ConfigMap"),)
        names = [self.which.name] if self.which.name else sorted(copy.objects or {})
        self._made = {name: self._made[name] for name in names if name in self._made}
        found = tuple(self._snapshot(name, copy) for name in names)
        return (*found, _more(f"configmaps {self.which.namespace}")) if copy.partial else found

    def explain_absence(self, set_: str) -> Snapshot | None:
        """Return what is known of a set that `read` did not give; None: not of this source."""
        prefix = origin(self.which.namespace, "")
        if self.which.name or not set_.startswith(prefix):
            return None
        return self._snapshot(set_.removeprefix(prefix), self.copy())

    def _snapshot(self, name: str, copy: Store[ConfigMapEntry]) -> Snapshot:
        set_ = origin(self.which.namespace, name)
        if copy.objects is None or copy.reason:
            return Unreadable(profile_set=set_, reason=_failure(copy))
        if name not in copy.objects and copy.partial:
            return _more(set_)
        if name not in copy.objects:
            selected = f' that "{self.which.selector}" selects' if not self.which.name else ""
            why = f"there is no ConfigMap {self.which.namespace}/{name}{selected}"
            return Missing(profile_set=set_, reason=why)
        kept = copy.objects[name]
        if kept.malformed:
            is_too_large = kept.has_too_many_keys
            cause = UnreadableCause.OVER_LIMIT if is_too_large else UnreadableCause.INVALID
            return Unreadable(profile_set=set_, reason=kept.malformed, cause=cause)
        if kept.content is None:
            return _over_limit(set_)
        return self._of_content(set_, name, kept.content, kept.created)

    def _of_content(self, set_: str, name: str, found: Content, created: str) -> Snapshot:
        if found.node_selector.terms:
            labels = self.node_labels()
            if labels is None:
                why = "it is for some nodes only, and the labels of this Node are not known"
                return Unreadable(profile_set=set_, reason=why)
            if not selector.selects(found.node_selector, labels):
                return limits.snapshot(set_, [], [], empty=True)
        if name not in self._made or self._made[name][0] is not found:
            snapshot = limits.snapshot(
                set_, found.source_keys, found.refused, empty=found.allow_empty, created=created
            )
            self._made[name] = (found, snapshot)
        return self._made[name][1]


def _over_limit(set_: str) -> Unreadable:
    why = (
        f"together with the older ConfigMaps it exceeds {limits.SOURCE_BYTES} bytes or "
        f"{limits.SOURCE_CONFIG_MAPS} ConfigMaps, the limits of a source"
    )
    return Unreadable(profile_set=set_, reason=why, cause=UnreadableCause.OVER_LIMIT)


def _more(set_: str) -> Unreadable:
    """Report that there are more ConfigMaps than are kept."""
    why = f"there are more than {2 * limits.SOURCE_CONFIG_MAPS} ConfigMaps, and the youngest are "
    return Unreadable(
        profile_set=set_, reason=why + "not looked at", cause=UnreadableCause.OVER_LIMIT
    )


def _failure(copy: Store[ConfigMapEntry]) -> str:
    match copy.status:
        case 401 | 403:
            return f"the API server forbids to read it: {copy.reason}"
        case 0:
            return f"the API server gave no usable answer: {copy.reason}"
        case _:
            return f"the API server refused: {copy.reason}"
