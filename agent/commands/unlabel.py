"""Removes the agent's labels from a Node, before an uninstall."""

from agent import app
from agent.config import Config
from agent.core.findings import Finding


def unlabel(config: Config) -> Finding | None:
    """Remove the labels. If the API server does not carry out a request, return the finding.

    Raises:
        agent.kube.errors.NoClusterError: no configuration of the API client was found.
    """
    connections = app.connect(config)
    if connections is None or connections.own_node is None:
        return None
    from agent.kube import node_findings
    from agent.kube.errors import KubeError

    try:
        connections.own_node.labeler.remove_labels()
    except KubeError as error:
        return node_findings.labels_not_set(str(error), error.status, config.node_name)
    return None
