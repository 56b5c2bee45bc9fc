"""Specification of agent.sources.configmap_data."""

import base64
from dataclasses import replace

import pytest

from agent.core import selector
from agent.core.model import SourceKey
from agent.sources import configmap_data, limits
from agent.sources.configmap_data import Content, MalformedError

D = "example.org"
ORIGIN = "configmap ns/web"
PLAIN = b'{"defaultAction": "SCMP_ACT_ALLOW"}'
NOTHING = Content(
    name="web",
    namespace="ns",
    source_keys=(),
    refused=(),
    allow_empty=False,
    node_selector=selector.Selector(),
)


def document(data=None, binary=None, annotations=None, **metadata):
    found = {"metadata": {"name": "web", "namespace": "ns", **metadata}}
    if annotations is not None:
        found["metadata"]["annotations"] = {f"{D}/{key}": one for key, one in annotations.items()}
    return (
        found
        | ({"data": data} if data is not None else {})
        | ({"binaryData": binary} if binary is not None else {})
    )


def read(found, *, qualified=False):
    return configmap_data.content(found, origin=ORIGIN, domain=D, qualified=qualified)


def blob(key, content=PLAIN, **more):
    return SourceKey(profile_set=ORIGIN, key=key, content=content, **more)


def test_keys_of_data_and_binary_data_are_blobs_in_the_order_of_their_names():
    """Byte for byte; base64 may be broken into lines."""
    wrapped = base64.encodebytes(b"profile web {}\n" * 9).decode()
    found = read(document({"b.json": PLAIN.decode()}, {"a.profile": wrapped}))
    assert found == replace(
        NOTHING, source_keys=(blob("a.profile", b"profile web {}\n" * 9), blob("b.json"))
    )


@pytest.mark.parametrize(("data", "binary"), [(None, None), ({}, {}), ({}, None)])
def test_absent_and_empty_fields_hold_no_key(data, binary):
    """The API server leaves an empty field out."""
    assert read(document(data, binary)) == NOTHING


def test_a_null_field_holds_no_key():
    """As kubectl takes it."""
    assert read({**document(), "data": None, "binaryData": None}) == NOTHING


def test_keys_that_are_no_profiles_are_passed_over():
    """A README beside the profiles is no mistake."""
    assert read(
        document({"README.md": "x", "..x.json": "{", "a.json": PLAIN.decode()})
    ).source_keys == (blob("a.json"),)


def test_annotations_say_prefix_emptiness_and_nodes():
    """Those of the agent's domain; others say nothing."""
    found = document(
        {"a.json": PLAIN.decode()},
        annotations={"seccomp-prefix": "team/", "allow-empty": "true", "node-selector": "pool=a"},
    )
    found["metadata"]["annotations"]["other.org/seccomp-prefix"] = "no/"
    assert read(found) == replace(
        NOTHING,
        source_keys=(blob("a.json", prefix="team/"),),
        allow_empty=True,
        node_selector=selector.parse("pool=a"),
    )


def test_in_a_set_of_several_each_key_is_qualified_and_keeps_its_path():
    """Two ConfigMaps of one manifest may have the same key."""
    found = read(document({"a.json": PLAIN.decode()}), qualified=True)
    assert found.source_keys == (blob("ns/web/a.json", name="a.json"),)


def test_without_a_namespace_it_is_in_default():
    """As kubectl takes a manifest."""
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
def test_an_odd_key_is_refused_alone(key, shown):
    """What no API server accepts names no path here; the others are read."""
    found = read(document({key: "{}", "a.json": PLAIN.decode()}))
    assert found.source_keys == (blob("a.json"),)
    assert found.refused == ((shown, limits.unsafe(shown, "is not a ConfigMap key")),)


def test_a_key_that_is_too_large_is_refused_alone():
    """One byte more than a whole ConfigMap may hold."""
    most = "{" + " " * (limits.KEY_BYTES - 1)
    found = read(document({"a.json": most, "b.json": most + " "}))
    assert found.source_keys == (blob("a.json", most.encode()),)
    assert found.refused == (("b.json", limits.too_large("b.json")),)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "no metadata.name"),
        ({"metadata": {"name": ""}}, "no metadata.name"),
        ({"metadata": {"name": 1}}, "no metadata.name"),
        ({"metadata": {"name": "web", "namespace": 1}}, "no metadata.name"),
        ({"metadata": "web"}, "metadata of a ConfigMap is no mapping"),
        ({"metadata": {1: "web"}}, "metadata of a ConfigMap is no mapping"),
        (document(data=["a"]), "data of a ConfigMap is no mapping"),
        (document(binary="a"), "binaryData of a ConfigMap is no mapping"),
        (document(data={"a.json": 1}), "ns/web: the value of 'a.json' is no string"),
        (document(data={"a.json": None}), "ns/web: the value of 'a.json' is no string"),
        (document({"a.json": "x"}, {"a.json": "eA=="}), "'a.json' in data and in binaryData"),
        (document(binary={"a.json": "x"}), "binaryData 'a.json' is not base64"),
        (document(binary={"a.json": "eA==eA=="}), "binaryData 'a.json' is not base64"),
        (document(binary={"a.json": "ü"}), "binaryData 'a.json' is not base64"),
        (document(annotations={"seccomp-prefix": 1}), "an annotation of a wrong value"),
        (document(annotations={"node-selector": 1}), "an annotation of a wrong value"),
        (document(annotations={"allow-empty": "yes"}), "an annotation of a wrong value"),
        (document(annotations={"allow-empty": True}), "an annotation of a wrong value"),
        (document(annotations={"node-selector": "a b"}), "annotation node-selector"),
    ],
)
def test_what_is_not_well_formed_is_no_content_at_all(found, why):
    """Its keys may still be desired, so nothing is concluded from the part that can be read."""
    with pytest.raises(MalformedError, match=why):
        read(found)


def test_the_keys_of_one_config_map_have_a_limit():
    """Keys beyond the limit of a profile set are not built; keys that are no profiles are free."""
    most = {f"{number:06}": "x" for number in range(limits.SET_KEYS)}
    assert len(read(document({**most, "README.md": "x"})).source_keys) == limits.SET_KEYS
    with pytest.raises(configmap_data.TooManyKeysError, match="more than 5000 keys"):
        read(document({f"{number:06}": "" for number in range(100_000)}))
