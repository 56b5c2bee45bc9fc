"""Builds findings about the labels of the Node."""

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.kube.errors import KubeError
from agent.kube.label_changes import Change

_SHOWN_KEYS: Final = 5


def wrong_node(reason: str, node: str) -> Finding:
    """Report that the Node object does not belong to this machine, or does not belong to it yet."""
    return Finding(
        code=FindingCode.NODE_UNKNOWN,
        location=f"node {node}",
        message=f"No label was changed: {reason}.",
        hint="The agent tries again. If the finding stays, compare --node-name with `kubectl get "
        "nodes`.",
    )


def unreachable(error: KubeError, node: str) -> Finding:
    """Report that the API server was not reached, or rejected a request."""
    return Finding(
        code=FindingCode.NODE_UNREACHABLE,
        location=f"node {node}",
        message=f"The Node's labels could not be updated: {error}.",
        hint=f"The agent tries again. {_next_step(error.status)}",
    )


def labels_not_set(reason: str, status: int, node: str) -> Finding:
    """Report that a single run could not change the labels, which is an error of that run.

    Args:
        reason: the reason.
        status: the HTTP status of the response; 0 without a response.
        node: the name of the Node.
    """
    return Finding(
        code=FindingCode.NODE_UNREACHABLE,
        location=f"node {node}",
        message=f"The Node's labels were not updated: {reason}.",
        hint=f"{_next_step(status)} Then run the command again.",
        is_escalated=True,
    )


def _next_step(status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "Compare --node-name with the names that `kubectl get nodes` prints."
    if status == HTTPStatus.UNAUTHORIZED:
        return "Check the credentials in the kubeconfig or in the pod's token."
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "Check the load and the log of the API server."
    if status:
        return "Check RBAC and the admission policy."
    return "Check the address of the API server, and the network."


def contended(node: str) -> Finding:
    """Report that another client repeatedly removes the agent's labels."""
    return Finding(
        code=FindingCode.LABEL_FOUGHT,
        location=f"node {node}",
        message="Another client repeatedly removes the agent's labels. The agent restores them "
        "with increasing delays.",
        hint="`kubectl get node NODE --show-managed-fields -o yaml` shows the other field manager.",
    )


def foreign_label(key: str, node: str) -> Finding:
    """Report a label with the agent's prefix that another field manager owns."""
    return Finding(
        code=FindingCode.LABEL_FOREIGN,
        location=key,
        message="The label has the agent's prefix, and another field manager owns it. The agent "
        "does not change this label, which describes no profile on this node.",
        hint=f"kubectl label node {node} {key}-",
    )


def refused_labels(changes: Collection[Change], reason: str, node: str) -> Finding:
    """Report the labels that the API server rejects."""
    keys = sorted({key for key, _ in changes})
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return Finding(
        code=FindingCode.LABEL_REFUSED,
        location=f"node {node}",
        message=f"The API server rejects {len(keys)} of the agent's labels: "
        f"{', '.join(keys[:_SHOWN_KEYS])}{more}: {reason}. All other labels are correct.",
        hint="Apply the admission policy of this release. The agent then tries again "
        "automatically.",
    )
