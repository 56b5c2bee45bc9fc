"""Field ownership in `metadata.managedFields`: finding and releasing forged entries.

Every client that may patch a Node can write its managedFields. A server-side apply removes each
field that managedFields attributes to its field manager and that the apply does not contain, for
example taints and foreign labels. The admission policy denies forged entries to the agent's own
token, but not to an administrator's credentials. Therefore, the agent releases forged fields before
an apply, without changing the values of the fields.
"""

from collections.abc import Mapping, Sequence

from agent.core import labels
from agent.kube.client import FIELD_MANAGER
from agent.kube.responses import Json


def is_forged(metadata: Mapping[str, object]) -> bool:
    """Return whether managedFields attributes fields to the agent that are not agent labels."""
    return any(_own_fields(fields) != fields for _, fields in _entries(metadata))


def repair(metadata: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the JSON patch that releases all fields except agent labels."""
    patch: list[Mapping[str, object]] = []
    for index, fields in _entries(metadata):
        own = _own_fields(fields)
        if own != fields:
            path = f"/metadata/managedFields/{index}/fieldsV1"
            patch.append({"op": "test", "path": path, "value": fields})
            patch.append({"op": "replace", "path": path, "value": own})
    return patch


def _entries(metadata: Mapping[str, object]) -> Sequence[tuple[int, Json]]:
    """Return the index and the fields of each entry for the agent's applies."""
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
    """Return the labels in a FieldsV1 set that have the agent's format (KEP-555).

    The domain of the labels does not matter: an apply still has to remove the labels of a previous
    domain.
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
