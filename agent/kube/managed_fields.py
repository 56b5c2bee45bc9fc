"""Finds and releases forged field ownership in `metadata.managedFields`.

Every client that may patch a Node can also write its managedFields. A server-side apply removes
each field that managedFields attributes to its field manager but that the apply does not contain.
With forged entries, an apply could remove taints and foreign labels. The admission policy prevents
anyone with the agent's token from forging entries, but it does not restrict an administrator.
Therefore, the agent gives up the ownership of such fields before an apply, without changing their
values.
"""

from collections.abc import Mapping, Sequence

from agent.core import labels
from agent.kube.client import FIELD_MANAGER
from agent.kube.responses import Json


def is_forged(metadata: Mapping[str, object]) -> bool:
    """Return whether managedFields attributes any field except the agent's labels to the agent."""
    return any(_own_fields(fields) != fields for _, fields in _entries(metadata))


def repair(metadata: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the JSON patch that gives up the ownership of all fields except the agent's labels."""
    patch: list[Mapping[str, object]] = []
    for index, fields in _entries(metadata):
        own = _own_fields(fields)
        if own != fields:
            path = f"/metadata/managedFields/{index}/fieldsV1"
            patch.append({"op": "test", "path": path, "value": fields})
            patch.append({"op": "replace", "path": path, "value": own})
    return patch


def _entries(metadata: Mapping[str, object]) -> Sequence[tuple[int, Json]]:
    """Return the index and the fields of each entry that the agent's server-side apply created."""
    entries = metadata.get("managedFields")
    return [
        (index, entry["fieldsV1"])
        for index, entry in enumerate(entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and entry.get("manager") == FIELD_MANAGER
        and entry.get("operation") == "Apply"
        and isinstance(entry.get("fieldsV1"), dict)
    ]


def _own_fields(fields: Json) -> Json:
    """Return the labels of a FieldsV1 set that have the format of the agent's labels (KEP-555).

    The result includes labels in every domain, because an apply must still be able to remove the
    labels of a previous domain.
    """
    metadata = fields.get("f:metadata")
    owned = metadata.get("f:labels") if isinstance(metadata, dict) else None
    if not isinstance(owned, dict):
        return {}
    own = {
        key: value
        for key, value in owned.items()
        if key == "." or labels.has_agent_label_form(str(key).removeprefix("f:"))
    }
    return {"f:metadata": {"f:labels": own}}
