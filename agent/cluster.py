"""The connections to the API server, and the last known state of its objects.

This module is imported only by commands that need the API server, because the API client uses much
memory. No request is sent while the connections are built. Requests are sent only by a reflector's
method `list` and by its thread.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.config import Config
from agent.core.labels import is_agent_label
from agent.core.model import InstalledSize, ProfileKind
from agent.core.pod_references import ProfileReferences, referenced_profiles
from agent.host.filesystem import Host, HostError
from agent.kube.client import Api
from agent.kube.lister import Resource
from agent.kube.node_labels import NodeLabeler
from agent.kube.own_node import NodeMetadata, NodeOptions, node_metadata
from agent.kube.reflector import Reflector, new_backoff
from agent.sources import configmap, limits
from agent.sources.configmap import ConfigMapEntry, ConfigMapSource
from agent.sources.source_spec import ConfigMapSpec
from agent.version import version
from agent.wake_queue import WakeReason

if TYPE_CHECKING:
    from agent.kube.publisher import Publisher

AnyReflector = Reflector[ConfigMapEntry] | Reflector[NodeMetadata] | Reflector[ProfileReferences]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCallbacks:
    """The functions that are called after changes and for measurements. Other threads call these
    functions.
    """

    changed: Callable[[WakeReason], None]
    """Called after objects of the API server have changed."""

    request_ended: Callable[[str, str, float], None]
    """Called after each request with its verb, its result and its duration in seconds."""

    watch_restarted: Callable[[str], None]
    """Called with the kind of object whose watch was restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConnections:
    """The reflectors of the Node and of its pods; they exist only with --node-name."""

    labeler: NodeLabeler
    node: Reflector[NodeMetadata]
    pods: Reflector[ProfileReferences] | None
    """The pods of this node; None without --pod-aware."""

    def metadata(self) -> NodeMetadata | None:
        """Return the metadata of the Node, or None if it is unknown."""
        return (self.node.store.objects or {}).get(self.labeler.options.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConnections:
    """All connections of one process to the API server. Implements agent.controller.ClusterView."""

    api: Api
    config_maps: Mapping[ConfigMapSpec, Reflector[ConfigMapEntry]]
    own_node: NodeConnections | None

    def reflectors(self) -> list[AnyReflector]:
        """Return all reflectors of this connection."""
        found: list[AnyReflector] = [*self.config_maps.values()]
        if self.own_node is not None:
            found.append(self.own_node.node)
            if self.own_node.pods is not None:
                found.append(self.own_node.pods)
        return found

    def source(self, spec: ConfigMapSpec) -> ConfigMapSource:
        """Return a source for the selected ConfigMaps, which reads the copy that their reflector
        keeps.
        """
        reflector = self.config_maps[spec]
        return ConfigMapSource(spec, store=lambda: reflector.store, node_labels=self.node_labels)

    def publisher(
        self, *, changed: Callable[[], None], events_dropped: Callable[[int], None]
    ) -> "Publisher | None":
        """Return a publisher that labels this node, or None without --node-name.

        Args:
            changed: called when the publisher's findings or the labels on the Node have changed.
            events_dropped: called with the number of Events that were discarded.
        """
        if self.own_node is None:
            return None
        from agent.kube.event_outbox import EventOutbox
        from agent.kube.event_sender import EventSender
        from agent.kube.publisher import Publisher

        node = self.own_node.node
        outbox = EventOutbox(time.monotonic, time.time)
        return Publisher(
            labeler=self.own_node.labeler,
            events=EventSender(self.api, outbox, on_drop=events_dropped),
            store=lambda: node.store,
            on_change=changed,
            clock=time.monotonic,
        )

    def has_answered(self) -> bool:
        """Return whether the first request of each reflector has succeeded or failed."""
        stores = [reflector.store for reflector in self.reflectors()]
        return all(store.objects is not None or store.tried for store in stores)

    def node_labels(self) -> Mapping[str, str] | None:
        """Return the Node's labels that the agent does not own, or None if they are unknown."""
        if self.own_node is None:
            return None
        metadata = self.own_node.metadata()
        if metadata is None:
            return None
        domain = self.own_node.labeler.options.domain
        return {
            key: value for key, value in metadata.labels.items() if not is_agent_label(key, domain)
        }

    def pods_by_profile(self) -> dict[tuple[ProfileKind, str], tuple[str, ...]] | None:
        """Return the pods of this node that reference each profile, or None if the pods are
        unknown.

        While no watch is running, the pods count as unknown. If the pods counted as known, the
        agent could remove the profile of a new pod that its copy does not contain yet.
        """
        pods = self.own_node.pods if self.own_node is not None else None
        if pods is None or not pods.is_live:
            return None
        store = pods.store
        if store.objects is None or store.reason:
            return None
        by_profile: dict[tuple[ProfileKind, str], tuple[str, ...]] = {}
        for pod, profiles in sorted(store.objects.items()):
            for profile in profiles:
                by_profile[profile] = (*by_profile.get(profile, ()), pod)
        return by_profile


def connect(
    config: Config,
    host: Host,
    config_maps: list[ConfigMapSpec],
    installed_size: Callable[[str], InstalledSize],
    callbacks: ClusterCallbacks,
) -> ClusterConnections:
    """Return the connections that the options require.

    Args:
        config: the options of this run.
        host: the file system of the host.
        config_maps: the sources to read.
        installed_size: see ConfigMapBounds.
        callbacks: the functions to call.

    Raises:
        agent.kube.errors.NoClusterError: no configuration of the API client was found.
    """
    api = Api(kubeconfig=config.kubeconfig, version=version(), on_request=callbacks.request_ended)
    reflectors = {
        spec: Reflector(
            api,
            Resource(path=spec.path, query=spec.query),
            keep=configmap.entry_for(config.label_domain),
            on_change=lambda: callbacks.changed(WakeReason.SOURCE),
            on_restart=lambda: callbacks.watch_restarted("configmaps"),
            backoff=new_backoff(),
            bounds=configmap.ConfigMapBounds(
                installed_size=installed_size,
                byte_limit=limits.SOURCE_BYTES,
                config_map_limit=limits.SOURCE_CONFIG_MAPS,
            ),
        )
        for spec in config_maps
    }
    own_node = _connect_node(config, host, api, callbacks) if config.node_name else None
    return ClusterConnections(api=api, config_maps=reflectors, own_node=own_node)


def _connect_node(
    config: Config, host: Host, api: Api, callbacks: ClusterCallbacks
) -> NodeConnections:
    labeler = NodeLabeler(
        api,
        NodeOptions(
            name=config.node_name,
            domain=config.label_domain,
            digest=config.label_digest,
            limit=int(config.label_limit),
            taint=config.startup_taint,
        ),
        boot_id=lambda: _boot_id(host),
    )
    node = Reflector(
        api,
        Resource(
            path="/api/v1/nodes",
            query=(("fieldSelector", f"metadata.name={config.node_name}"),),
            object_path=labeler.options.path,
            metadata_only=True,
        ),
        keep=node_metadata,
        on_change=lambda: callbacks.changed(WakeReason.NODE),
        on_restart=lambda: callbacks.watch_restarted("node"),
        backoff=new_backoff(),
    )
    pods = Reflector(
        api,
        Resource(
            path="/api/v1/pods",
            query=(("fieldSelector", f"spec.nodeName={config.node_name}"),),
        ),
        keep=referenced_profiles,
        on_change=lambda: callbacks.changed(WakeReason.PODS),
        on_restart=lambda: callbacks.watch_restarted("pods"),
        backoff=new_backoff(),
    )
    return NodeConnections(labeler=labeler, node=node, pods=pods if config.pod_aware else None)


def _boot_id(host: Host) -> str:
    try:
        return host.read("/proc/sys/kernel/random/boot_id", limit=64).decode("ascii").strip()
    except (HostError, UnicodeDecodeError):
        return ""
