"""Sets the labels of the agent's own Node, and removes the startup taint.

The agent changes only its own Node. This Node has the configured name, the boot ID of this kernel,
and the uid to which the token is bound. All labels are set in one server-side apply, and only if
they differ from the labels on the Node. The agent never changes a label that another field manager
owns. A label that the API server rejects does not affect the other labels. After such a rejection,
the agent still removes the outdated labels and sets all accepted labels.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from agent.core import labels
from agent.core.findings import Finding
from agent.core.report import Report
from agent.kube import label_changes, managed_fields, node_findings, startup_taint
from agent.kube.client import JSON_PATCH, Api
from agent.kube.errors import StatusError
from agent.kube.label_changes import Change
from agent.kube.own_node import (
    NodeIdentity,
    NodeMetadata,
    NodeOptions,
    node_metadata,
)

# The largest number of requests in one attempt to find the rejected labels.
REFUSAL_REQUESTS: Final = 24
UNLABEL_ATTEMPTS: Final = 5
# The API server responds with one of these statuses if it rejects the content of a request. The
# validation of the API server returns 400 and 422, an admission policy returns 403 and 422, and a
# Node that would be too large results in 413.
_CONTENT_STATUSES: Final = frozenset({400, 403, 413, 422})


class NodeLabeler:
    """Labels one Node. Only one thread may use this object."""

    def __init__(self, api: Api, options: NodeOptions, boot_id: Callable[[], str]) -> None:
        """Create a labeler without sending a request.

        Args:
            api: the client.
            options: the Node and the settings for its labels.
            boot_id: returns the boot id of this kernel; empty if the file cannot be read.
        """
        self.api = api
        self.options = options
        self.identity = NodeIdentity(api, options, boot_id)
        self.foreign_labels: frozenset[str] = frozenset()
        """Labels with the agent's prefixes that another field manager owns."""
        self.refused: frozenset[Change] = frozenset()
        """The changes that the API server rejected in the last attempt."""
        self.refusals = 0
        """The number of attempts in which the API server rejected changes."""
        self._refusal_reason = ""
        # The changes that the API server rejected even in a request with no other change.
        self._suspects: set[Change] = set()
        self._untainted_uid = ""
        # Whether an apply whose response was lost may have succeeded.
        self._is_doubtful = False

    def read(self) -> NodeMetadata:
        """Read the Node. Raises KubeError."""
        return node_metadata(self.api.get(self.options.path))

    def desired_labels(self, report: Report, node: NodeMetadata | None) -> labels.Labels:
        """Return the labels that the Node should have according to a report."""
        return labels.labels_for(
            report,
            domain=self.options.domain,
            digest=self.options.digest,
            limit=self.options.limit,
            present=self.own_labels(node) if node is not None else {},
        )

    def prefixed_labels(self, node: NodeMetadata) -> frozenset[str]:
        """Return all labels with the agent's prefixes, regardless of their field manager."""
        return frozenset(
            key for key in node.labels if labels.is_agent_label(key, self.options.domain)
        )

    def own_labels(self, node: NodeMetadata) -> dict[str, str]:
        """Return the labels with the agent's prefixes that no other field manager owns."""
        return {key: node.labels[key] for key in self.prefixed_labels(node) - self.foreign_labels}

    def allowed_labels(self, node: NodeMetadata, desired: Mapping[str, str]) -> dict[str, str]:
        """Return the desired labels without the changes that the API server rejected."""
        allowed = {key: value for key, value in desired.items() if (key, value) not in self.refused}
        present = self.own_labels(node)
        kept = {key: value for key, value in present.items() if (key, None) in self.refused}
        return kept | allowed

    def retry_refused(self) -> None:
        """Make the next `publish` send the rejected changes again."""
        self.refused, self._refusal_reason = frozenset(), ""

    def publish(self, node: NodeMetadata, desired: Mapping[str, str]) -> NodeMetadata:
        """Set the desired labels that the API server allows, and return the Node from the response.

        After the call, `refused` contains the rejected changes. Raises WrongNodeError. Raises
        KubeError if the API server allows no change, or if no response arrived.
        """
        self.foreign_labels = self.foreign_labels.intersection(node.labels)
        target = self.allowed_labels(node, desired)
        if self.own_labels(node) == target and not self._is_doubtful:
            return node
        self.identity.require_own_node(node)
        if node.is_forged:
            node = self._release_forged_fields()
        try:
            return self._apply(node, target)
        except StatusError as error:
            if error.status not in _CONTENT_STATUSES:
                raise
            return self._apply_parts(node, desired, error)

    def _apply_parts(
        self, node: NodeMetadata, desired: Mapping[str, str], error: StatusError
    ) -> NodeMetadata:
        """Apply the allowed changes, after the API server has rejected the complete set of labels.

        The method raises the passed error if the API server rejects even the labels that are
        already on the Node.
        """
        state = self.own_labels(node)
        try:
            node = self._apply(node, state)
        except StatusError:
            raise error from None
        parts = deque(label_changes.in_parts(state, desired, self._suspects))
        # Changes that are likely to be rejected come last.
        additions = label_changes.additions(state, desired)
        suspects = [change for change in additions if change in self._suspects]
        halves: list[tuple[Change, ...]] = [tuple(suspects)]
        for _ in range(REFUSAL_REQUESTS):
            part = parts.popleft() if parts else halves.pop() if halves else ()
            if not part:
                break
            target = label_changes.changed(state, part)
            try:
                node, state = self._apply(node, target), target
                self._suspects.difference_update(part)
            except StatusError as part_error:
                if part_error.status not in _CONTENT_STATUSES:
                    raise
                error = part_error
                self._suspects.update(part if len(part) == 1 else ())
                half = len(part) // 2
                # The next request removes the other outdated labels.
                if half and part[0][1] is None:
                    parts.extendleft([part[half:], part[:half]])
                elif half:
                    halves += [part[half:], part[:half]]
        remaining = label_changes.in_parts(state, desired, ())
        self.refused = frozenset(change for part in remaining for change in part)
        self._suspects &= self.refused
        self._refusal_reason = str(error)
        self.refusals += 1
        return node

    def _release_forged_fields(self) -> NodeMetadata:
        """Give up the ownership of fields that are falsely attributed to the agent, and return the
        changed Node.
        """
        item = self.api.get(self.options.path)
        metadata = item.get("metadata")
        patch = managed_fields.repair(metadata if isinstance(metadata, dict) else {})
        if not patch:
            return node_metadata(item)
        return node_metadata(
            self.api.send("PATCH", self.options.path, patch, content_type=JSON_PATCH)
        )

    def _apply(self, node: NodeMetadata, target: Mapping[str, str]) -> NodeMetadata:
        # Without the uid, an apply would create a missing Node.
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.options.name, "uid": node.uid, "labels": dict(target)},
        }
        was_doubtful, self._is_doubtful = self._is_doubtful, True
        try:
            response = node_metadata(self.api.apply(self.options.path, body))
        except StatusError as error:
            # A request with a status 4xx had no effect. A request with the status 504 may have had
            # an effect.
            self._is_doubtful = was_doubtful or error.is_server_error
            raise
        self._is_doubtful = False
        self.foreign_labels = self.prefixed_labels(response) - target.keys()
        return response

    def remove_startup_taint(self, node: NodeMetadata, report: Report) -> None:
        """Remove the startup taint when every accepted profile is installed.

        Raises WrongNodeError and KubeError.
        """
        if not self.options.taint or self._untainted_uid == node.uid:
            return
        if not startup_taint.is_removable(report):
            return
        self.identity.require_own_node(node)
        patch = startup_taint.removal_patch(self.api.get(self.options.path), self.options.taint)
        if patch:
            self.api.send("PATCH", self.options.path, patch, content_type=JSON_PATCH)
        self._untainted_uid = node.uid

    def remove_labels(self) -> None:
        """Remove all labels with the agent's prefixes, and change nothing else.

        The JSON patch removes each label only if its value has not changed. This method uses no
        server-side apply. An apply without labels would also remove fields that
        metadata.managedFields falsely attributes to the agent, for example taints. Raises
        KubeError, for example if the Node does not exist.
        """
        for attempt in range(1, UNLABEL_ATTEMPTS + 1):
            node = self.read()
            present = {key: node.labels[key] for key in self.prefixed_labels(node)}
            patch = label_changes.removal_patch(node.uid, present)
            if not patch:
                return
            try:
                self.api.send("PATCH", self.options.path, patch, content_type=JSON_PATCH)
            except StatusError as error:
                # The status is Conflict, or it is Unprocessable because a test of the patch failed.
                has_changed = error.status in (409, 422)
                if not has_changed or attempt == UNLABEL_ATTEMPTS:
                    raise
            else:
                return

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings about the labels of the Node."""
        node = self.options.name
        refused: tuple[Finding, ...] = ()
        if self.refused:
            refused = (node_findings.refused_labels(self.refused, self._refusal_reason, node),)
        foreign = (node_findings.foreign_label(key, node) for key in sorted(self.foreign_labels))
        return (*refused, *foreign)
