"""Provides profiles from one named ConfigMap, or from ConfigMaps that match a selector.

Each ConfigMap is a separate profile set. The result of a read distinguishes missing, emptied,
malformed and unconfirmed ConfigMaps. This module sends no request: a read uses the store of a
reflector. A ConfigMap whose node selector does not match provides no profiles on this node. While
the labels of the Node are unknown, such a ConfigMap is unreadable. The memory for all ConfigMaps of
a source is limited. ConfigMaps with installed versions have priority over all others.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from agent.core import selector
from agent.core.model import InstalledSize, Missing, Snapshot, Unreadable
from agent.core.vocabulary import UnreadableCause
from agent.kube.reflector import Store
from agent.kube.responses import Json
from agent.sources import configmap_data, limits
from agent.sources.configmap_data import ConfigMapData
from agent.sources.source_spec import ConfigMapSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapEntry:
    """The part of a ConfigMap that is stored in memory."""

    profile_set: str = ""
    content: ConfigMapData | None = None
    """The content of the ConfigMap; None if the ConfigMap is malformed or exceeds the limit."""
    malformed: str = ""
    """The reason why the ConfigMap is malformed; empty if it is well-formed."""
    has_too_many_keys: bool = False
    """Whether the ConfigMap is malformed because it has more keys than a profile set may have."""
    created: str = ""
    """The creationTimestamp, which the API server sets."""
    size: int = 0
    """The approximate memory for the content, in bytes, even if the content was dropped."""

    @property
    def is_dropped(self) -> bool:
        """Return whether the content was not stored because it exceeded the limit."""
        return self.content is None and not self.malformed


class ConfigMapBounds:
    """Limits the number and the size of the ConfigMaps of one source. Implements lister.Bounds.

    A ConfigMap is stored if it fits together with all ConfigMaps of a higher rank. ConfigMaps with
    installed versions have the highest rank. Among these, the ConfigMaps that have grown least
    since their installation come first. ConfigMaps that are equal in these respects are ordered by
    age, with the oldest first. Therefore, an installed ConfigMap only loses its place to installed
    ConfigMaps that have not grown more. In particular, an installed ConfigMap that has not grown
    keeps its place if other ConfigMaps get new keys or larger contents. Nevertheless, installed
    versions can use the whole limit, so that no ConfigMap can grow. For ConfigMaps above the limit,
    only the names are stored. The number of stored names has the same limit as the number of stored
    ConfigMaps.
    """

    def __init__(
        self,
        *,
        installed_size: Callable[[str], InstalledSize],
        byte_limit: int,
        config_map_limit: int,
    ) -> None:
        """Create the bounds.

        Args:
            installed_size: returns the size of the installed keys of a profile set. The thread of
                the reflector calls this function.
            byte_limit: the largest size of all contents together.
            config_map_limit: the largest number of ConfigMaps with content.
        """
        self._installed_size = installed_size
        self.byte_limit = byte_limit
        self.config_map_limit = config_map_limit

    def within(self, objects: Mapping[str, ConfigMapEntry]) -> Mapping[str, ConfigMapEntry]:
        """Return the ConfigMaps that are within the limit, and the following ConfigMaps without
        their content.
        """
        if self._is_within(objects.values()):
            return objects
        ranked = self._ranked(objects)
        fitting = self._count_fitting(objects, ranked)
        return {
            name: objects[name] if number < fitting else replace(objects[name], content=None)
            for number, name in enumerate(ranked[: 2 * self.config_map_limit])
        }

    def has_room(self, objects: Mapping[str, ConfigMapEntry]) -> bool:
        """Return whether a ConfigMap that is stored without content would now be within the
        limit.
        """
        if not any(entry.is_dropped for entry in objects.values()):
            return False
        ranked = self._ranked(objects)
        fitting = ranked[: self._count_fitting(objects, ranked)]
        return any(objects[name].is_dropped for name in fitting)

    def _is_within(self, entries: Collection[ConfigMapEntry]) -> bool:
        size = sum(entry.size for entry in entries)
        return size <= self.byte_limit and len(entries) <= self.config_map_limit

    def _count_fitting(self, objects: Mapping[str, ConfigMapEntry], ranked: list[str]) -> int:
        """Return how many ConfigMaps are within the limit, in the order of their ranks."""
        size = 0
        for number, name in enumerate(ranked):
            size += objects[name].size
            if size > self.byte_limit or number == self.config_map_limit:
                return number
        return len(ranked)

    def _ranked(self, objects: Mapping[str, ConfigMapEntry]) -> list[str]:
        """Return the names of the ConfigMaps, beginning with the highest rank."""

        def rank(name: str) -> tuple[bool, int, str, str]:
            entry = objects[name]
            installed = self._installed_size(entry.profile_set)
            is_new = installed.key_count == 0
            overhead = installed.key_count * limits.KEY_OVERHEAD
            growth = entry.size - installed.content_bytes - overhead
            return (is_new, 0 if is_new else max(0, growth), entry.created, name)

        return sorted(objects, key=rank)


def _size(content: ConfigMapData) -> int:
    """Return the approximate number of bytes that the keys of a ConfigMap need in memory."""
    keys = sum(
        len(source_key.key) + len(source_key.content) + limits.KEY_OVERHEAD
        for source_key in content.source_keys
    )
    return keys + limits.KEY_OVERHEAD * len(content.rejected)


def profile_set_of(namespace: str, name: str) -> str:
    """Return the profile set of a ConfigMap, for messages and for the ledger."""
    return f"configmap {namespace}/{name}"


def entry_for(domain: str) -> Callable[[Json], ConfigMapEntry]:
    """Return a function that turns a ConfigMap into its entry.

    Args:
        domain: the domain of the annotations.
    """

    def entry(item: Json) -> ConfigMapEntry:
        value = item.get("metadata")
        metadata = value if isinstance(value, dict) else {}
        name, namespace = str(metadata.get("name", "")), str(metadata.get("namespace", ""))
        profile_set = profile_set_of(namespace, name)
        entry = ConfigMapEntry(
            profile_set=profile_set, created=str(metadata.get("creationTimestamp", ""))
        )
        try:
            content = configmap_data.parse(
                item, profile_set=profile_set, domain=domain, qualified=False
            )
        except configmap_data.TooManyKeysError as error:
            return replace(entry, malformed=str(error), has_too_many_keys=True)
        except configmap_data.MalformedError as error:
            return replace(entry, malformed=str(error))
        return replace(entry, content=content, size=_size(content))

    return entry


class ConfigMapSource:
    """The ConfigMaps of one `--source`. Implements agent.core.ports.Source."""

    def __init__(
        self,
        spec: ConfigMapSpec,
        *,
        store: Callable[[], Store[ConfigMapEntry]],
        node_labels: Callable[[], Mapping[str, str] | None],
    ) -> None:
        self.spec = spec
        self.store = store
        """Returns the store of the reflector."""
        self.node_labels = node_labels
        """Returns the labels of the agent's own Node; None if the labels are unknown."""
        # No path has to be watched, because the reflector wakes the agent.
        self.watched_path = None
        self._snapshots: dict[str, tuple[ConfigMapData, Snapshot]] = {}

    def invalidate(self) -> None:
        """Do nothing, because the store contains the last response of the API server."""

    def read(self) -> tuple[Snapshot, ...]:
        """Return a snapshot of each known ConfigMap."""
        store = self.store()
        spec = self.spec
        if not spec.name and not store.objects:
            query = f"?{spec.selector}" if spec.selector else ""
            profile_set = f"configmaps {spec.namespace}{query}"
            if store.objects is None or store.reason:
                # The source must not count as empty while its ConfigMaps are unknown.
                return (Unreadable(profile_set=profile_set, reason=_failure(store)),)
            return (Missing(profile_set=profile_set, reason="there is no such ConfigMap"),)
        names = [spec.name] if spec.name else sorted(store.objects or {})
        self._snapshots = {name: self._snapshots[name] for name in names if name in self._snapshots}
        snapshots = tuple(self._snapshot(name, store) for name in names)
        if store.partial:
            return (*snapshots, _too_many(f"configmaps {spec.namespace}"))
        return snapshots

    def explain_absence(self, profile_set: str) -> Snapshot | None:
        """Return the snapshot of a profile set that `read` did not return.

        If the profile set does not belong to this source, the result is None.
        """
        prefix = profile_set_of(self.spec.namespace, "")
        if self.spec.name or not profile_set.startswith(prefix):
            return None
        return self._snapshot(profile_set.removeprefix(prefix), self.store())

    def _snapshot(self, name: str, store: Store[ConfigMapEntry]) -> Snapshot:
        profile_set = profile_set_of(self.spec.namespace, name)
        if store.objects is None or store.reason:
            return Unreadable(profile_set=profile_set, reason=_failure(store))
        if name not in store.objects and store.partial:
            return _too_many(profile_set)
        if name not in store.objects:
            matching = f' that matches "{self.spec.selector}"' if not self.spec.name else ""
            reason = f"there is no ConfigMap {self.spec.namespace}/{name}{matching}"
            return Missing(profile_set=profile_set, reason=reason)
        entry = store.objects[name]
        if entry.malformed:
            is_too_large = entry.has_too_many_keys
            cause = UnreadableCause.OVER_LIMIT if is_too_large else UnreadableCause.INVALID
            return Unreadable(profile_set=profile_set, reason=entry.malformed, cause=cause)
        if entry.content is None:
            return _over_limit(profile_set)
        return self._snapshot_of_content(profile_set, name, entry.content, entry.created)

    def _snapshot_of_content(
        self, profile_set: str, name: str, content: ConfigMapData, created: str
    ) -> Snapshot:
        if content.node_selector.terms:
            labels = self.node_labels()
            if labels is None:
                reason = "it has a node selector, and the labels of this Node are not known"
                return Unreadable(profile_set=profile_set, reason=reason)
            if not selector.matches(content.node_selector, labels):
                return limits.snapshot(profile_set, [], [], allow_empty=True)
        if name not in self._snapshots or self._snapshots[name][0] != content:
            snapshot = limits.snapshot(
                profile_set,
                content.source_keys,
                content.rejected,
                allow_empty=content.allow_empty,
                created=created,
            )
            skipped = limits.skipped_by_name(content.skipped)
            self._snapshots[name] = (content, limits.with_left_out(snapshot, skipped))
        return self._snapshots[name][1]


def _over_limit(profile_set: str) -> Unreadable:
    reason = (
        f"together with ConfigMaps of higher priority it exceeds {limits.SOURCE_BYTES} bytes or "
        f"{limits.SOURCE_CONFIG_MAPS} ConfigMaps, the limits of a source"
    )
    return Unreadable(profile_set=profile_set, reason=reason, cause=UnreadableCause.OVER_LIMIT)


def _too_many(profile_set: str) -> Unreadable:
    """Report that the source has more ConfigMaps than the agent stores."""
    number = 2 * limits.SOURCE_CONFIG_MAPS
    reason = f"there are more than {number} ConfigMaps, and not all of them are read"
    return Unreadable(profile_set=profile_set, reason=reason, cause=UnreadableCause.OVER_LIMIT)


def _failure(store: Store[ConfigMapEntry]) -> str:
    match store.status:
        case 401 | 403:
            return f"the API server denied the read request: {store.reason}"
        case 0:
            return f"the API server sent no usable response: {store.reason}"
        case _:
            return f"the API server responded with an error: {store.reason}"
