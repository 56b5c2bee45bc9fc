"""Defines the part of a Node that the agent stores, and checks that a Node belongs to this machine.

This module changes no Node. node_labels.py changes the labels, but only after this check.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from agent.core import labels
from agent.kube import managed_fields
from agent.kube.client import Api
from agent.kube.errors import UnreachableError
from agent.kube.responses import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetadata:
    """The part of a Node that the agent stores."""

    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    is_forged: bool = False
    """Whether a server-side apply by the agent would change more than the agent's labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """The name of the Node, and the settings for its labels."""

    name: str
    domain: str = labels.DOMAIN
    digest: bool = False
    """Whether to also set labels with the digest of each profile."""
    limit: int = labels.DEFAULT_LIMIT
    taint: str = ""
    """The key of the startup taint; empty if no startup taint is used."""

    @property
    def path(self) -> str:
        """The path of the Node in the API of the cluster."""
        return f"/api/v1/nodes/{quote(self.name)}"


class WrongNodeError(Exception):
    """Raised if the Node object does not belong to this machine, or does not belong to it yet."""


def node_metadata(item: Json) -> NodeMetadata:
    """Return the part of a Node that the agent stores, without its conditions and heartbeats.

    Raises UnreachableError if the metadata has the wrong type, because unreadable labels must not
    count as missing labels.
    """
    metadata = item.get("metadata") or {}
    present = metadata.get("labels") or {} if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(present, dict):
        raise UnreachableError("the Node's metadata or labels are not a mapping")
    return NodeMetadata(
        uid=str(metadata.get("uid", "")),
        labels={str(key): str(value) for key, value in present.items()},
        is_forged=managed_fields.is_forged(metadata),
    )


class NodeIdentity:
    """Proves that a Node belongs to this machine. Only one thread may use this object."""

    def __init__(self, api: Api, options: NodeOptions, boot_id: Callable[[], str]) -> None:
        self.api = api
        self.options = options
        self.boot_id = boot_id
        """Returns the boot id of this kernel; empty if the file cannot be read."""
        self._proven_uid: str | None = None

    def is_proven(self, node: NodeMetadata | None) -> bool:
        """Return whether it is proven that the Node belongs to this machine."""
        return node is not None and self._proven_uid == node.uid

    def require_own_node(self, node: NodeMetadata) -> None:
        """Raise WrongNodeError if the Node does not belong to this machine. Raises KubeError."""
        if self._proven_uid == node.uid:
            return
        name = self.options.name
        bound_uid = self.api.token_node_uid()
        if bound_uid and bound_uid != node.uid:
            raise WrongNodeError(
                f"the Node {name} was created again (uid {node.uid}), and the agent's token is "
                f"still bound to the previous Node (uid {bound_uid})"
            )
        status = self.api.get(self.options.path).get("status")
        info = status.get("nodeInfo") if isinstance(status, dict) else None
        node_boot_id = info.get("bootID") if isinstance(info, dict) else None
        boot_id = self.boot_id()
        if not boot_id:
            raise WrongNodeError("the boot id of this kernel cannot be read")
        if node_boot_id != boot_id:
            raise WrongNodeError(
                f"the Node {name} has the boot id {node_boot_id or 'none yet'}, and this kernel "
                f"has {boot_id}"
            )
        self._proven_uid = node.uid
