"""An API server in memory: one Node with field managers, and Events.

Server-side apply as a real one does it: what a manager no longer applies goes, unless another
owns it too; a forced value takes the field from the others; an apply of the same set writes
nothing; a wrong uid is a conflict; a Node that is not there would have to be created: forbidden.
"""

import copy as copies

from agent.kube import node_labels
from agent.kube.client import FIELD_MANAGER, JSON_PATCH
from agent.kube.errors import StatusError
from agent.kube.reflector import Store

NAME = "worker"
UID = "uid-1"
BOOT_ID = "7d0c6a2e-0000-4000-8000-000000000001"


class ApiServer:
    """What it was asked stands in `asked`. The calls are those of agent.kube.client.Api.

    errors: raised by the next requests, one each, which are not carried out. lost: raised by the
    next ones after they were carried out. bound: the Node uid in the caller's token. policy: says
    why it denies a change of the labels, from before to after, or nothing.
    """

    def __init__(self, labels=(), *, taints=(), boot_id=BOOT_ID, bound=""):
        self.bound = bound
        self.asked = []
        self.events = []
        self.errors = []
        self.lost = []
        self.policy = lambda before, after: ""
        self.during = lambda: None  # called before a request is carried out
        self.version = 0
        self.owners = {}
        self.node = None
        self.make(dict(labels), uid=UID, taints=taints, boot_id=boot_id)

    def make(self, labels=(), *, uid, taints=(), boot_id=BOOT_ID):
        """Put a Node there, as a kubelet does."""
        self.version += 1
        self.owners = {key: {"kubelet"} for key in dict(labels)}
        self.node = {
            "metadata": {"name": NAME, "uid": uid, "labels": dict(labels)},
            "spec": {"taints": [dict(one) for one in taints]},
            "status": {"nodeInfo": {"bootID": boot_id}},
        }

    @property
    def labels(self):
        return self.node["metadata"]["labels"]

    def set_label(self, key, value, manager="admin"):
        """Somebody else sets a label: of another value it takes the field from all others."""
        self.version += 1
        shared = self.owners.get(key, set()) if self.labels.get(key) == value else set()
        self.owners[key] = shared | {manager}
        self.labels[key] = value

    def drop_label(self, key):
        """Somebody else takes a label off, whoever owns it."""
        self.version += 1
        self.owners.pop(key, None)
        del self.labels[key]

    # --- the calls of Api -------------------------------------------------------------------------

    def get(self, path, query=(), *, accept=""):
        self._begin("GET", path)
        return self._end(self._node())

    def apply(self, path, body):
        self._begin("APPLY", path)
        if self.node is None:
            raise StatusError(403, "Forbidden", "nodes is forbidden: cannot create")
        wanted = body["metadata"]["labels"]
        if body["metadata"].get("uid") not in (None, self.node["metadata"]["uid"]):
            raise StatusError(409, "Conflict", "Precondition failed: UID")
        before = (dict(self.labels), copies.deepcopy(self.owners))
        for key, value in wanted.items():
            shared = self.owners.get(key, set()) if self.labels.get(key) == value else set()
            self.owners[key] = shared | {FIELD_MANAGER}
            self.labels[key] = value
        for key in [key for key, owners in self.owners.items() if FIELD_MANAGER in owners]:
            if key not in wanted:
                self.owners[key] -= {FIELD_MANAGER}
                if not self.owners[key]:
                    del self.owners[key], self.labels[key]
        denied = self.policy(before[0], self.labels)
        if denied:
            self.node["metadata"]["labels"], self.owners = before
            raise StatusError(403, "Forbidden", denied)
        self.version += before != (self.labels, self.owners)
        return self._end(self._node())

    def send(self, method, path, body, query=(), *, content_type=""):
        self._begin(method, path)
        if method == "POST":
            self.events.append(body)
            return self._end({})
        assert content_type == JSON_PATCH
        if all(one["path"].startswith("/metadata/") for one in body):
            return self._end(self._unlabelled(body))
        taints = list(self.node["spec"]["taints"])
        for one in body:
            index = int(one["path"].removeprefix("/spec/taints/"))
            if one["op"] == "test" and taints[index] != one["value"]:
                raise StatusError(422, "Invalid", "the test failed")
            if one["op"] == "remove":
                del taints[index]
        self.version += 1
        self.node["spec"]["taints"] = taints
        return self._end(self._node())

    def _unlabelled(self, patch):
        """Carry out a patch that tests and removes labels, or nothing of it."""
        node = self._node()
        for one in patch:
            parts = [
                part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]
            ]
            holder = node
            for part in parts[:-1]:
                holder = holder[int(part) if isinstance(holder, list) else part]
            if one["op"] == "test" and holder.get(parts[-1]) != one["value"]:
                raise StatusError(422, "Invalid", "the test failed")
            if one["op"] == "remove":
                del holder[parts[-1]]
            if one["op"] == "replace":
                holder[parts[-1]] = one["value"]
        self.node["metadata"]["managedFields"] = node["metadata"].get("managedFields", [])
        for key in self.labels.keys() - node["metadata"]["labels"].keys():
            self.drop_label(key)
        return self._node()

    def token_node_uid(self):
        return self.bound

    def _begin(self, method, path):
        self.asked.append(f"{method} {path}")
        self.during()
        if self.errors:
            raise self.errors.pop(0)

    def _end(self, answer):
        if self.lost:
            raise self.lost.pop(0)
        return answer

    def _node(self):
        if self.node is None:
            raise StatusError(404, "NotFound", "not found")
        return copies.deepcopy(self.node)

    def requests(self):
        """Return what was asked since the last time, by method."""
        asked, self.asked = [one.partition(" ")[0] for one in self.asked], []
        return asked


class Watched:
    """The copy of the Node that a reflector would hold; it changes by `deliver` and `fail`."""

    def __init__(self, server):
        self.server = server
        self.copy = Store(objects=None, reason="not read yet", tried=False)

    def __call__(self):
        return self.copy

    def deliver(self):
        """Let everything that happened on the server arrive."""
        found = self.server.node
        self._take(
            Store(objects={} if found is None else {NAME: node_labels.keep(copies.deepcopy(found))})
        )

    def fail(self, reason="no answer in time", status=0):
        """Let the copy be unconfirmed from now on."""
        self._take(Store(objects=self.copy.objects, reason=reason, status=status))

    def _take(self, new):
        if new != self.copy:
            self.copy = new
