"""Computes the changes between two sets of labels, as values and as JSON patches."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

# A change consists of the key of a label and its new value, which is None to remove the label.
Change = tuple[str, str | None]
JsonPatch = list[Mapping[str, object]]


def in_parts(
    observed: Mapping[str, str], desired: Mapping[str, str], excluded: Collection[Change]
) -> list[tuple[Change, ...]]:
    """Return the changes from the observed to the desired labels, in several parts.

    The first part removes outdated labels, including labels whose value has changed. The parts
    after the first one add labels. Additions are grouped by prefix and value, because the admission
    policy of another release may reject some prefixes or values. The result omits the additions
    that the caller excludes.
    """
    removals: list[Change] = [
        (key, None) for key, value in sorted(observed.items()) if desired.get(key) != value
    ]
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for key, value in additions(observed, desired):
        prefix = key.partition("/")[0]
        if (key, value) not in excluded:
            groups[prefix, "" if "-digest." in prefix else value].append((key, value))
    return [tuple(part) for part in (removals, *groups.values()) if part]


def additions(observed: Mapping[str, str], desired: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the desired labels that are missing on the Node or have another value there."""
    return [(key, value) for key, value in sorted(desired.items()) if observed.get(key) != value]


def changed(labels: Mapping[str, str], changes: Iterable[Change]) -> dict[str, str]:
    """Return the labels after the given changes."""
    result: dict[str, str | None] = {**labels, **dict(changes)}
    return {key: value for key, value in result.items() if value is not None}


def removal_patch(uid: str, labels: Mapping[str, str]) -> JsonPatch:
    """Return the JSON patch that removes labels from a Node if their values have not changed."""
    patch: JsonPatch = []
    for key, value in sorted(labels.items()):
        path = "/metadata/labels/" + key.replace("~", "~0").replace("/", "~1")
        patch.append({"op": "test", "path": path, "value": value})
        patch.append({"op": "remove", "path": path})
    return [{"op": "test", "path": "/metadata/uid", "value": uid}, *patch] if patch else []
