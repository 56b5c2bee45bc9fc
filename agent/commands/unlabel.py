"""Take the agent's labels off a Node: the last step of an uninstall."""

from agent import wiring
from agent.settings import Settings


def unlabel(settings: Settings) -> str:
    """Take them off and say so. Raises agent.doors.kube.KubeError."""
    found = wiring.cluster(settings, lambda _: None)
    if found is None or found.own is None:
        return ""
    found.own.unlabel()
    return f"node {settings.node_name}: the labels of profile-loader are off\n"
