"""What `metadata.managedFields` attributes to the agent, and the repair of what was forged there.

Whoever may patch a Node can write its managedFields. A server-side apply removes every field that
they attribute to its manager and that it no longer contains: taints and foreign labels, too. With
the agent's own token the admission policy refuses that; an administrator's credentials have no such
limit. So the agent gives up forged fields, which changes none of them, before it applies.
"""

from collections.abc import Mapping, Sequence

from agent.core import labels
from agent.kube.client import FIELD_MANAGER
from agent.kube.responses import Json


def is_forged(metadata: Mapping[str, object]) -> bool:
    """Return whether the agent's applies are said to own more than labels of the agent's form."""
    return any(_own_part(fields) != fields for _, fields in _entries(metadata))


def repair(metadata: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the JSON patch that takes everything else from the agent's applies."""
    patch: list[Mapping[str, object]] = []
    for index, fields in _entries(metadata):
        own = _own_part(fields)
        if own != fields:
            path = f"/metadata/managedFields/{index}/fieldsV1"
            patch.append({"op": "test", "path": path, "value": fields})
            patch.append({"op": "replace", "path": path, "value": own})
    return patch


def _entries(metadata: Mapping[str, object]) -> Sequence[tuple[int, Json]]:
    """Return the fields of the agent's applies, with the place of each entry."""
    entries = metadata.get("managedFields")
    return [
        (index, entry["fieldsV1"])
        for index, entry in enumerate(entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and entry.get("manager") == FIELD_MANAGER
        and entry.get("operation") == "Apply"
        and isinstance(entry.get("fieldsV1"), dict)
    ]


def _own_part(fields: Json) -> Json:
    """Return of a set of fields (KEP-555, FieldsV1) the labels of the agent's form.

    In any domain: those of a former domain are still to be removed by an apply.
    """
    metadata = fields.get("f:metadata")
    found = metadata.get("f:labels") if isinstance(metadata, dict) else None
    if not isinstance(found, dict):
        return {}
    own = {
        key: value
        for key, value in found.items()
        if key == "." or labels.has_own_form(str(key).removeprefix("f:"))
    }
    return {"f:metadata": {"f:labels": own}}
