"""An API server in memory: one Node with field managers, and Events.

Server-side apply behaves as in a real API server. If a field manager stops applying a label, the
server removes the label, unless another manager also owns it. A forced apply removes the field from
all other managers. If a request applies the same labels again, the Node does not change. A request
with a wrong uid results in a conflict. A request for a missing Node is forbidden, because it would
create the Node.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.kube.client import FIELD_MANAGER, JSON_PATCH, Api, Query
from agent.kube.errors import StatusError
from agent.kube.own_node import NodeMetadata, node_metadata
from agent.kube.reflector import Store
from tests.json_object import JsonObject

NAME = "worker"
UID = "uid-1"
NO_LABELS: Mapping[str, str] = {}
BOOT_ID = "7d0c6a2e-0000-4000-8000-000000000001"


class ApiServer(Api):
    """A fake with the methods of agent.kube.client.Api, which records each request in `asked`.

    Tests set these attributes:
        errors: the errors of the next requests, one for each request; these requests have no
            effect.
        lost: the errors that the next requests raise after their effect.
        bound: the uid of the Node that the client's token contains.
        policy: a function of the labels before and after a change; it returns why the change is
            denied.
        during: a function that the server calls before each request.
    """

    def __init__(
        self,
        labels: Mapping[str, str] = NO_LABELS,
        *,
        taints: Sequence[Mapping[str, str]] = (),
        boot_id: str = BOOT_ID,
        bound: str = "",
    ) -> None:
        self.bound = bound
        self.asked: list[str] = []
        self.events: list[JsonObject] = []
        self.errors: list[Exception] = []
        self.lost: list[Exception] = []
        self.policy: Callable[[dict[str, str], dict[str, str]], str] = lambda _before, _after: ""
        self.during: Callable[[], object] = lambda: None
        self.version = 0
        self.owners: dict[str, set[str]] = {}
        self.node: JsonObject | None = None
        self.make(dict(labels), uid=UID, taints=taints, boot_id=boot_id)

    def make(
        self,
        labels: Mapping[str, str] = NO_LABELS,
        *,
        uid: str,
        taints: Sequence[Mapping[str, str]] = (),
        boot_id: str = BOOT_ID,
    ) -> None:
        """Create the Node as a kubelet would."""
        self.version += 1
        self.owners = {key: {"kubelet"} for key in labels}
        self.node = {
            "metadata": {"name": NAME, "uid": uid, "labels": dict(labels)},
            "spec": {"taints": [dict(taint) for taint in taints]},
            "status": {"nodeInfo": {"bootID": boot_id}},
        }

    @property
    def existing(self) -> JsonObject:
        """The Node, in a test that has not deleted it."""
        assert self.node is not None
        return self.node

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.existing["metadata"]["labels"]
        return labels

    def set_label(self, key: str, value: str, manager: str = "admin") -> None:
        """Set a label as another client would. A new value removes the field from all other
        managers.
        """
        self.version += 1
        shared = self.owners.get(key, set()) if self.labels.get(key) == value else set()
        self.owners[key] = shared | {manager}
        self.labels[key] = value

    def drop_label(self, key: str) -> None:
        """Remove a label as another client would."""
        self.version += 1
        self.owners.pop(key, None)
        del self.labels[key]

    # --- the calls of Api -------------------------------------------------------------------------

    def get(
        self, path: str, query: Query = (), *, accept: str = "", byte_limit: int = 0
    ) -> JsonObject:
        self._begin("GET", path)
        return self._end(self.snapshot())

    def apply(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        self._begin("APPLY", path)
        if self.node is None:
            raise StatusError(403, "Forbidden", "nodes is forbidden: cannot create")
        expected = body["metadata"]["labels"]
        if body["metadata"].get("uid") not in (None, self.existing["metadata"]["uid"]):
            raise StatusError(409, "Conflict", "Precondition failed: UID")
        before = (dict(self.labels), copy.deepcopy(self.owners))
        for key, value in expected.items():
            shared = self.owners.get(key, set()) if self.labels.get(key) == value else set()
            self.owners[key] = shared | {FIELD_MANAGER}
            self.labels[key] = value
        for key in [key for key, owners in self.owners.items() if FIELD_MANAGER in owners]:
            if key not in expected:
                self.owners[key] -= {FIELD_MANAGER}
                if not self.owners[key]:
                    del self.owners[key], self.labels[key]
        denied = self.policy(before[0], self.labels)
        if denied:
            self.existing["metadata"]["labels"], self.owners = before
            raise StatusError(403, "Forbidden", denied)
        self.version += before != (self.labels, self.owners)
        return self._end(self.snapshot())

    def send(
        self,
        method: str,
        path: str,
        body: Any,
        query: Query = (),
        *,
        content_type: str = "",
    ) -> JsonObject:
        self._begin(method, path)
        if method == "POST":
            self.events.append(body)
            return self._end({})
        assert content_type == JSON_PATCH
        if all(operation["path"].startswith("/metadata/") for operation in body):
            return self._end(self._patch_metadata(body))
        taints = list(self.existing["spec"]["taints"])
        for operation in body:
            index = int(operation["path"].removeprefix("/spec/taints/"))
            if operation["op"] == "test" and taints[index] != operation["value"]:
                raise StatusError(422, "Invalid", "the test failed")
            if operation["op"] == "remove":
                del taints[index]
        self.version += 1
        self.existing["spec"]["taints"] = taints
        return self._end(self.snapshot())

    def _patch_metadata(self, patch: list[JsonObject]) -> JsonObject:
        """Apply a JSON patch to the metadata, either completely or not at all."""
        node = self.snapshot()
        for operation in patch:
            parts = [
                part.replace("~1", "/").replace("~0", "~")
                for part in operation["path"].split("/")[1:]
            ]
            parent: Any = node
            for part in parts[:-1]:
                parent = parent[int(part) if isinstance(parent, list) else part]
            if operation["op"] == "test" and parent.get(parts[-1]) != operation["value"]:
                raise StatusError(422, "Invalid", "the test failed")
            if operation["op"] == "remove":
                del parent[parts[-1]]
            if operation["op"] == "replace":
                parent[parts[-1]] = operation["value"]
        self.existing["metadata"]["managedFields"] = node["metadata"].get("managedFields", [])
        for key in self.labels.keys() - node["metadata"]["labels"].keys():
            self.drop_label(key)
        return self.snapshot()

    def token_node_uid(self) -> str:
        return self.bound

    def _begin(self, method: str, path: str) -> None:
        self.asked.append(f"{method} {path}")
        self.during()
        if self.errors:
            raise self.errors.pop(0)

    def _end(self, answer: JsonObject) -> JsonObject:
        if self.lost:
            raise self.lost.pop(0)
        return answer

    def snapshot(self) -> JsonObject:
        """Return a copy of the Node. Raises StatusError if the Node does not exist."""
        if self.node is None:
            raise StatusError(404, "NotFound", "not found")
        return copy.deepcopy(self.node)

    def requests(self) -> list[str]:
        """Return the methods of all requests since the last call."""
        methods = [request.partition(" ")[0] for request in self.asked]
        self.asked = []
        return methods


class WatchedNode:
    """The store of a Node reflector. Only `deliver` and `fail` change the store."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.store: Store[NodeMetadata] = Store(objects=None, reason="not read yet", tried=False)

    def __call__(self) -> Store[NodeMetadata]:
        return self.store

    def deliver(self) -> None:
        """Update the store with the current state of the server."""
        objects: dict[str, NodeMetadata] = {}
        if self.server.node is not None:
            objects = {NAME: node_metadata(copy.deepcopy(self.server.node))}
        self._replace(Store(objects=objects))

    def fail(self, reason: str = "no response in time", status: int = 0) -> None:
        """Make the store unconfirmed."""
        self._replace(Store(objects=self.store.objects, reason=reason, status=status))

    def _replace(self, store: Store[NodeMetadata]) -> None:
        if store != self.store:
            self.store = dataclasses.replace(store, revision=self.store.revision + 1)
