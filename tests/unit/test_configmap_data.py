"""Tests of agent.sources.configmap_data."""

import base64
from collections.abc import Mapping
from dataclasses import replace

import pytest

from agent.core import selector
from agent.core.model import SourceKey
from agent.sources import configmap_data, limits
from agent.sources.configmap_data import ConfigMapData, MalformedError
from tests.json_object import JsonObject

D = "example.org"
ORIGIN = "configmap ns/web"
PLAIN = b'{"defaultAction": "SCMP_ACT_ALLOW"}'
NOTHING = ConfigMapData(
    name="web",
    namespace="ns",
    source_keys=(),
    rejected=(),
    allow_empty=False,
    node_selector=selector.Selector(),
)


def document(
    data: object = None,
    binary: object = None,
    annotations: Mapping[str, object] | None = None,
    **metadata: object,
) -> JsonObject:
    result: JsonObject = {"metadata": {"name": "web", "namespace": "ns", **metadata}}
    if annotations is not None:
        result["metadata"]["annotations"] = {
            f"{D}/{key}": annotation for key, annotation in annotations.items()
        }
    return (
        result
        | ({"data": data} if data is not None else {})
        | ({"binaryData": binary} if binary is not None else {})
    )


def read(result: JsonObject, *, qualified: bool = False) -> configmap_data.ConfigMapData:
    return configmap_data.parse(result, profile_set=ORIGIN, domain=D, qualified=qualified)


def blob(key: str, content: bytes = PLAIN, **more: str) -> SourceKey:
    return SourceKey(profile_set=ORIGIN, key=key, content=content, **more)


def test_data_and_binary_data_are_keys_in_the_order_of_their_names() -> None:
    """The keys of data and binaryData are sorted by name, and their content is unchanged. The
    base64 text may contain line breaks.
    """
    wrapped = base64.encodebytes(b"profile web {}\n" * 9).decode()
    result = read(document({"b.json": PLAIN.decode()}, {"a.profile": wrapped}))
    assert result == replace(
        NOTHING, source_keys=(blob("a.profile", b"profile web {}\n" * 9), blob("b.json"))
    )


@pytest.mark.parametrize(("data", "binary"), [(None, None), ({}, {}), ({}, None)])
def test_missing_and_empty_fields_contain_no_key(
    data: JsonObject | None, binary: JsonObject | None
) -> None:
    """A ConfigMap with missing or empty fields has no keys."""
    assert read(document(data, binary)) == NOTHING


def test_a_null_field_contains_no_key() -> None:
    """A field with the value null contains no key, as in kubectl."""
    assert read({**document(), "data": None, "binaryData": None}) == NOTHING


def test_keys_that_are_not_profiles_are_ignored() -> None:
    """A key that is not a profile, for example a README, is ignored and not an error."""
    assert read(
        document({"README.md": "x", "..x.json": "{", "a.json": PLAIN.decode()})
    ).source_keys == (blob("a.json"),)


def test_annotations_set_prefix_allow_empty_and_node_selector() -> None:
    """The agent reads only annotations with its own domain."""
    result = document(
        {"a.json": PLAIN.decode()},
        annotations={"seccomp-prefix": "team/", "allow-empty": "true", "node-selector": "pool=a"},
    )
    result["metadata"]["annotations"]["other.org/seccomp-prefix"] = "no/"
    assert read(result) == replace(
        NOTHING,
        source_keys=(blob("a.json", prefix="team/"),),
        allow_empty=True,
        node_selector=selector.parse("pool=a"),
    )


def test_keys_of_several_configmaps_are_qualified_and_keep_their_paths() -> None:
    """Two ConfigMaps in one manifest may have the same key, because each key is qualified with its
    ConfigMap.
    """
    result = read(document({"a.json": PLAIN.decode()}), qualified=True)
    assert result.source_keys == (blob("ns/web/a.json", name="a.json"),)


def test_a_configmap_without_a_namespace_is_in_default() -> None:
    """A ConfigMap without a namespace is in the namespace default, as in kubectl."""
    assert read(document(namespace=None)).namespace == "default"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("a/b.json", "a/b.json"),
        ("a\nb.json", "a\\nb.json"),
        ("ü.json", "\\xfc.json"),
        ("a" * 249 + ".json", "a" * 249 + ".json"),
    ],
)
def test_only_a_key_with_an_invalid_name_is_rejected(key: str, shown: str) -> None:
    """A key with an invalid name is rejected, and the other keys are read."""
    result = read(document({key: "{}", "a.json": PLAIN.decode()}))
    assert result.source_keys == (blob("a.json"),)
    assert result.rejected == ((shown, limits.unsafe(shown, "is not a ConfigMap key")),)


def test_only_a_key_that_is_too_large_is_rejected() -> None:
    """If one key exceeds the maximum size of a ConfigMap, only this key is rejected."""
    most = "{" + " " * (limits.KEY_BYTES - 1)
    result = read(document({"a.json": most, "b.json": most + " "}))
    assert result.source_keys == (blob("a.json", most.encode()),)
    assert result.rejected == (("b.json", limits.too_large("b.json")),)


@pytest.mark.parametrize(
    ("document_", "reason"),
    [
        ({}, "no metadata.name"),
        ({"metadata": {"name": ""}}, "no metadata.name"),
        ({"metadata": {"name": 1}}, "no metadata.name"),
        ({"metadata": {"name": "web", "namespace": 1}}, "no metadata.name"),
        ({"metadata": "web"}, "metadata of a ConfigMap is not a mapping"),
        ({"metadata": {1: "web"}}, "metadata of a ConfigMap is not a mapping"),
        (document(data=["a"]), "data of a ConfigMap is not a mapping"),
        (document(binary="a"), "binaryData of a ConfigMap is not a mapping"),
        (document(data={"a.json": 1}), "ns/web: the value of 'a.json' is not a string"),
        (document(data={"a.json": None}), "ns/web: the value of 'a.json' is not a string"),
        (document({"a.json": "x"}, {"a.json": "eA=="}), "'a.json' in data and in binaryData"),
        (document(binary={"a.json": "x"}), "binaryData 'a.json' is not base64"),
        (document(binary={"a.json": "eA==eA=="}), "binaryData 'a.json' is not base64"),
        (document(binary={"a.json": "ü"}), "binaryData 'a.json' is not base64"),
        (document(annotations={"seccomp-prefix": 1}), "an annotation with an invalid value"),
        (document(annotations={"node-selector": 1}), "an annotation with an invalid value"),
        (document(annotations={"allow-empty": "yes"}), "an annotation with an invalid value"),
        (document(annotations={"allow-empty": True}), "an annotation with an invalid value"),
        (document(annotations={"node-selector": "a b"}), "annotation node-selector"),
    ],
)
def test_a_malformed_configmap_has_no_content(document_: JsonObject, reason: str) -> None:
    """A malformed ConfigMap has no content, so the agent uses none of its keys."""
    with pytest.raises(MalformedError, match=reason):
        read(document_)


def test_the_keys_of_one_config_map_have_a_limit() -> None:
    """The number of keys in one ConfigMap is limited. Keys that are not profiles do not count."""
    most = {f"{number:06}": "x" for number in range(limits.SET_KEYS)}
    assert len(read(document({**most, "README.md": "x"})).source_keys) == limits.SET_KEYS
    with pytest.raises(configmap_data.TooManyKeysError, match="more than 5000 keys"):
        read(document({f"{number:06}": "" for number in range(100_000)}))
