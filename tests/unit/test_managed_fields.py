"""Tests of agent.kube.managed_fields."""

import pytest

from agent.kube import managed_fields
from tests.json_object import JsonObject

OWN = {"f:set.example.org/a__b": {}, "f:former.example/apparmor": {}}
FAIR = {"f:metadata": {"f:labels": OWN}}


def entry(
    fields: JsonObject | None, manager: str = "profile-loader", operation: str = "Apply"
) -> JsonObject:
    return {"manager": manager, "operation": operation, "fieldsV1": fields}


def applied(patch: list[JsonObject], entries: list[JsonObject]) -> list[JsonObject]:
    """Return managedFields after a JSON patch."""
    result = [dict(value) for value in entries]
    for item in patch:
        index, field = item["path"].removeprefix("/metadata/managedFields/").split("/")
        if item["op"] == "test":
            assert result[int(index)][field] == item["value"]
        else:
            result[int(index)][field] = item["value"]
    return result


@pytest.mark.parametrize(
    "entries",
    [
        None,
        "odd",
        [],
        [None, "odd", {}, entry(None)],
        [entry(FAIR)],
        [entry({"f:metadata": {"f:labels": {".": {}}}})],
        [entry({"f:spec": {"f:taints": {}}}, manager="kubelet")],
        [entry({"f:spec": {"f:taints": {}}}, operation="Update")],
    ],
)
def test_own_labels_and_entries_of_other_managers_are_not_forged(
    entries: str | list[str | JsonObject | None] | None,
) -> None:
    """The agent's labels and the entries of other managers do not count as forged, and neither do
    entries of the API server.
    """
    metadata = {"managedFields": entries}
    assert managed_fields.is_forged(metadata) is False
    assert managed_fields.repair(metadata) == []


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"f:spec": {"f:taints": {}}}, {}),
        ({**FAIR, "f:spec": {"f:unschedulable": {}}}, FAIR),
        ({"f:metadata": {"f:labels": {**OWN, "f:kubernetes.io/os": {}}}}, FAIR),
        ({"f:metadata": {"f:labels": OWN, "f:annotations": {}}}, FAIR),
        ({"f:metadata": "odd"}, {}),
    ],
)
def test_a_repair_keeps_the_labels_of_the_agents_form(
    fields: JsonObject, left: dict[str, dict[str, dict[str, dict[object, object]]]]
) -> None:
    """A repair releases all forged fields, and keeps the agent's labels and the entries of other
    managers.
    """
    entries = [entry(fields, manager="kubelet"), entry(fields), entry(FAIR)]
    metadata = {"managedFields": entries}
    assert managed_fields.is_forged(metadata) is True
    expected = [entries[0], entry(left), entries[2]]
    assert applied(managed_fields.repair(metadata), entries) == expected
