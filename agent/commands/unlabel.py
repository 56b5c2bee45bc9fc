"""Removes the agent's labels from a Node, before an uninstall."""

from agent import app
from agent.config import Config


def unlabel(config: Config) -> str:
    """Remove the labels, and return a message. Raises agent.kube.errors.KubeError."""
    connections = app.connect(config)
    if connections is None or connections.own_node is None:
        return ""
    connections.own_node.labeler.remove_labels()
    return f"node {config.node_name}: the labels of profile-loader were removed\n"
