"""Decides whether the startup taint can be removed, and builds the JSON patch that removes the
taint.

The functions of this module are pure; node_labels.py sends the patch.
"""

from collections.abc import Mapping
from typing import Final

from agent.core.report import Report
from agent.core.vocabulary import (
    ON_NODE,
    ProfileSetState,
    ProfileState,
    SupportState,
    UnreadableCause,
)
from agent.kube.label_changes import JsonPatch
from agent.kube.responses import Json

# A rejected key does not keep the taint, because a single rejected key would then keep the taint
# on new nodes forever.
_SETTLED: Final = ON_NODE | {
    ProfileState.REJECTED,
    ProfileState.REMOVED,
    ProfileState.RELEASED,
}


def is_removable(report: Report) -> bool:
    """Return whether every profile set was read and every accepted profile is installed.

    The taint is removed even if the node does not support a profile kind, but it stays while a kind
    cannot be observed. A profile set that is rejected as a whole, because of its node selector or
    its size, is treated like a rejected key, because waiting would not help. An emptied profile set
    counts as complete only if its profiles were installed earlier, because on a new node the
    ConfigMap may be filled later.
    """
    if report.pending:
        return False
    unsupported = {
        kind
        for kind, support in report.kind_support.items()
        if support.state == SupportState.DISABLED
    }
    installed = {row.profile_set for row in report.profiles if row.name and row.state in ON_NODE}
    return all(
        status.state == ProfileSetState.READ
        or (status.state == ProfileSetState.EMPTIED and status.profile_set in installed)
        or status.cause in (UnreadableCause.INVALID, UnreadableCause.OVER_LIMIT)
        for status in report.profile_sets
    ) and all(
        row.state in _SETTLED or (row.state == ProfileState.UNSUPPORTED and row.kind in unsupported)
        for row in report.profiles
    )


def removal_patch(node: Json, key: str) -> JsonPatch:
    """Return the JSON patch that removes all effects of a taint, or [] if the taint is absent.

    The admission policy requires all effects in one request. The patch begins at the end of the
    list, so that no removal changes the indexes of the later removals.
    """
    spec = node.get("spec")
    taints = spec.get("taints") if isinstance(spec, dict) else None
    patch: list[Mapping[str, object]] = []
    for index, taint in reversed(list(enumerate(taints if isinstance(taints, list) else []))):
        if isinstance(taint, dict) and taint.get("key") == key:
            path = f"/spec/taints/{index}"
            patch.append({"op": "test", "path": path, "value": taint})
            patch.append({"op": "remove", "path": path})
    return patch
