"""Tests of agent.sources.configmap and agent.sources.source_spec."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.core.model import (
    Emptied,
    InstalledSize,
    KeyId,
    LedgerEntry,
    Missing,
    Read,
    Snapshot,
    SourceKey,
    Unreadable,
    Version,
    digest,
)
from agent.core.vocabulary import Provenance, UnreadableCause
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from agent.kube.reflector import Store
from agent.sources import configmap, limits, source_spec
from agent.sources.configmap import ConfigMapSource
from agent.sources.limits import KEY_OVERHEAD
from agent.sources.source_spec import ConfigMapSpec
from tests.narrowing import instance_of, not_none

D = "example.org"
PLAIN = '{"defaultAction": "SCMP_ACT_ALLOW"}'
ONE = ConfigMapSpec(namespace="ns", name="web")
SEVERAL = ConfigMapSpec(namespace="ns", selector="use=profiles")
ALL = ConfigMapSpec(namespace="ns")


ConfigMaps = Store[configmap.ConfigMapEntry]


def config_map(
    name: str = "web", data: dict[str, str] | None = None, **annotations: str
) -> tuple[str, configmap.ConfigMapEntry]:
    """Return the name and the entry of a ConfigMap."""
    keys = {"a.json": PLAIN} if data is None else data
    own = {f"{D}/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return name, configmap.entry_for(D)(
        {"metadata": {"name": name, "namespace": "ns", "annotations": own}, "data": keys}
    )


def source(
    spec: source_spec.ConfigMapSpec, store: ConfigMaps, labels: dict[str, str] | None = None
) -> configmap.ConfigMapSource:
    return ConfigMapSource(spec, store=lambda: store, node_labels=lambda: labels)


def read(
    spec: source_spec.ConfigMapSpec, store: ConfigMaps, labels: dict[str, str] | None = None
) -> tuple[Snapshot, ...]:
    return source(spec, store, labels).read()


def expected_snapshot(name: str, *keys: str, allow_empty: bool = False) -> Snapshot:
    profile_set = f"configmap ns/{name}"
    source_keys = [
        SourceKey(profile_set=profile_set, key=key, content=PLAIN.encode()) for key in keys
    ]
    return limits.snapshot(profile_set, source_keys, [], allow_empty=allow_empty)


def stored(*entries: tuple[str, configmap.ConfigMapEntry], **more: Any) -> ConfigMaps:
    return Store(objects=dict(entries), **more)


FORBIDDEN: ConfigMaps = Store(objects=None, reason="403 Forbidden: no", status=403)


def test_each_configmap_is_a_separate_profile_set() -> None:
    """Each ConfigMap is a separate profile set. The profile sets are sorted by name."""
    store = stored(config_map("web"), config_map("api", {"b.json": PLAIN}))
    assert read(SEVERAL, store) == (
        expected_snapshot("api", "b.json"),
        expected_snapshot("web", "a.json"),
    )
    assert read(ONE, store) == (expected_snapshot("web", "a.json"),)


def test_a_configmap_without_profiles_is_emptied_unless_an_annotation_allows_it() -> None:
    """A ConfigMap without profiles counts as emptied, unless it has the annotation allow-empty."""
    emptied, allowed = config_map(data={}), config_map(data={}, allow_empty="true")
    assert isinstance(read(ONE, stored(emptied))[0], Emptied)
    assert read(ONE, stored(allowed)) == (expected_snapshot("web", allow_empty=True),)


def test_a_configmap_that_does_not_exist_is_missing() -> None:
    """A ConfigMap is missing if a confirmed list does not contain it."""
    assert read(ONE, Store(objects={})) == (
        Missing(profile_set="configmap ns/web", reason="there is no ConfigMap ns/web"),
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "the API server denied the read request: because"),
        (403, "the API server denied the read request: because"),
        (404, "the API server responded with an error: because"),
        (429, "the API server responded with an error: because"),
        (500, "the API server responded with an error: because"),
        (0, "the API server sent no usable response: because"),
    ],
)
@pytest.mark.parametrize("objects", [None, {}, dict([config_map()])])
def test_a_configmap_that_is_not_confirmed_is_unreadable(
    objects: dict[str, configmap.ConfigMapEntry] | None, status: int, expected: str
) -> None:
    """While the store is unconfirmed, every ConfigMap is unreadable, even if the store
    contains it.
    """
    store = Store(objects=objects, reason="because", status=status)
    assert read(ONE, store) == (Unreadable(profile_set="configmap ns/web", reason=expected),)


@pytest.mark.parametrize(
    "store", [FORBIDDEN, Store(objects={}, reason="403 Forbidden: no", status=403)]
)
@pytest.mark.parametrize(
    ("spec", "profile_set"), [(SEVERAL, "configmaps ns?use=profiles"), (ALL, "configmaps ns")]
)
def test_a_selector_without_a_confirmed_list_is_unreadable(
    spec: source_spec.ConfigMapSpec, profile_set: str, store: ConfigMaps
) -> None:
    """Until a list is confirmed, a source with a selector counts as unreadable and not as empty."""
    assert read(spec, store) == (
        Unreadable(
            profile_set=profile_set,
            reason="the API server denied the read request: 403 Forbidden: no",
        ),
    )


def test_a_selector_is_unreadable_before_the_first_list() -> None:
    """Until the first list response arrives, a source with a selector counts as unreadable."""
    store: ConfigMaps = Store(objects=None, reason="not read yet", tried=False)
    assert [type(snapshot) for snapshot in read(SEVERAL, store)] == [Unreadable]


def test_a_selector_without_matches_is_a_missing_source() -> None:
    """A selector without matches is reported as a missing source, as a misspelt name is, so that
    the startup taint stays.
    """
    assert read(SEVERAL, Store(objects={})) == (
        Missing(profile_set="configmaps ns?use=profiles", reason="there is no such ConfigMap"),
    )


def test_each_known_configmap_that_is_not_confirmed_is_unreadable() -> None:
    """Every known ConfigMap that is not confirmed is unreadable, so its profiles stay on
    the node.
    """
    store = stored(config_map("web"), config_map("api"), reason="no response in time")
    reason = "the API server sent no usable response: no response in time"
    assert read(SEVERAL, store) == (
        Unreadable(profile_set="configmap ns/api", reason=reason),
        Unreadable(profile_set="configmap ns/web", reason=reason),
    )


def test_a_malformed_configmap_is_unreadable_and_the_others_are_read() -> None:
    """A malformed ConfigMap is unreadable, because its profiles may still be desired. All other
    ConfigMaps are read.
    """
    odd = configmap.entry_for(D)({"metadata": {"name": "odd", "namespace": "ns"}, "data": ["x"]})
    store = Store(objects={"odd": odd, **dict([config_map()])})
    assert read(SEVERAL, store) == (
        Unreadable(
            profile_set="configmap ns/odd",
            reason="the field data of a ConfigMap is not a mapping with string keys",
            cause=UnreadableCause.INVALID,
        ),
        expected_snapshot("web", "a.json"),
    )


def test_an_object_without_metadata_is_malformed() -> None:
    """If an object has no metadata, its entry contains the reason why it is malformed."""
    assert (
        configmap.entry_for(D)({"metadata": None}).malformed == "a ConfigMap has no metadata.name"
    )


def bounded(
    installed: dict[str, int] | None = None,
    *,
    byte_limit: int = limits.SOURCE_BYTES,
    config_map_limit: int = limits.SOURCE_CONFIG_MAPS,
) -> configmap.ConfigMapBounds:
    """Return bounds. `installed` contains the size of the installed keys of each profile set."""
    sizes = {} if installed is None else installed

    def installed_size(profile_set: str) -> InstalledSize:
        if profile_set not in sizes:
            return InstalledSize()
        return InstalledSize(key_count=1, content_bytes=sizes[profile_set] - KEY_OVERHEAD)

    return configmap.ConfigMapBounds(
        installed_size=installed_size, byte_limit=byte_limit, config_map_limit=config_map_limit
    )


def aged(number: int, size: int = 100, **more: Any) -> tuple[str, configmap.ConfigMapEntry]:
    """Return the name and the entry of a ConfigMap with the given creation second."""
    content = configmap.entry_for(D)(
        {"metadata": {"name": f"m{number}", "namespace": "ns"}}
    ).content
    created = f"2026-01-01T00:00:{number:02}Z"
    return f"m{number}", configmap.ConfigMapEntry(
        profile_set=f"configmap ns/m{number}", content=content, created=created, size=size, **more
    )


def dropped(objects: Mapping[str, configmap.ConfigMapEntry]) -> list[str]:
    return sorted(name for name, entry in objects.items() if entry.is_dropped)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 100, 100], []),
        ([100, 100, 101], ["m2"]),
        ([100, 201, 1], ["m1", "m2"]),
        ([301, 1], ["m0", "m1"]),
        ([0] * 10, []),
        ([0] * 12, ["m10", "m11"]),
        ([], []),
    ],
)
def test_without_installed_versions_the_oldest_configmaps_have_room(
    sizes: list[int], expected: list[str]
) -> None:
    """Without installed versions, the oldest ConfigMaps are stored first, in whatever order they
    become known.
    """
    bounds = bounded(byte_limit=300, config_map_limit=10)
    entries = [aged(number, size) for number, size in enumerate(sizes)]
    for order in (entries, entries[::-1]):
        whole = bounds.within(dict(order))
        assert (dropped(whole), len(whole)) == (expected, len(sizes))
        assert bounds.within(whole) == whole
        paged: Mapping[str, configmap.ConfigMapEntry] = {}
        for name, entry in order:
            paged = bounds.within({**paged, name: entry})
        assert paged == whole
        assert bounds.has_room(whole) is False


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, ["m3"]),
        ({"m3": 100}, ["m2"]),
        ({"m3": 1}, ["m2"]),
        ({"m3": 100, "m2": 100}, ["m1"]),
        ({"m0": 99, "m1": 100, "m2": 100, "m3": 100}, ["m0"]),
        ({"m0": 1, "m1": 1, "m2": 2, "m3": 99}, ["m1"]),
        ({"m0": 200, "m1": 100, "m2": 100, "m3": 100}, ["m3"]),
    ],
)
def test_installed_configmaps_that_grew_least_have_room_first(
    installed: dict[str, int], expected: list[str]
) -> None:
    """Installed ConfigMaps that grew least are stored first. No new or larger ConfigMap displaces
    them.
    """
    sizes = {f"configmap ns/{name}": size for name, size in installed.items()}
    bounds = bounded(sizes, byte_limit=300, config_map_limit=10)
    entries = [aged(number) for number in range(4)]
    for order in (entries, entries[::-1]):
        kept: Mapping[str, configmap.ConfigMapEntry] = {}
        for name, entry in order:
            kept = bounds.within({**kept, name: entry})
        assert (dropped(kept), bounds.has_room(kept)) == (expected, False)


def test_older_configmaps_that_grow_do_not_stop_an_update_of_a_younger_one() -> None:
    """If 20 ConfigMaps grow from a small size to 1 MiB, a small change of a younger ConfigMap is
    still read.
    """
    growing = [aged(number, 1 << 20) for number in range(20)]
    young = aged(20, 310)
    sizes = {f"configmap ns/{name}": 300 for name, _ in (*growing, young)}
    kept = bounded(sizes).within(dict((*growing, young)))
    assert dropped(kept) == ["m15", "m16", "m17", "m18", "m19"]


def test_an_installed_configmap_has_not_grown(tmp_path: Path) -> None:
    """An installed ConfigMap has not grown, because the ledger and the bounds measure its content
    in the same way.
    """
    _, entry = config_map("web", {"a.json": "ä", "b.json": "{}"})
    ledger = FileLedger(Host(str(tmp_path)), "/state")
    for source_key in not_none(entry.content).source_keys:
        ledger.store_content(source_key.content)
        id_ = KeyId(kind="seccomp", profile_set=source_key.profile_set, key=source_key.key)
        version = Version(
            names=(source_key.key,), source_digest=digest(source_key.content), body_digest="b"
        )
        ledger.write(LedgerEntry(id=id_, provenance=Provenance.INSTALLED, installed=version))
    installed = ledger.installed_keys.size(entry.profile_set)
    assert entry.size == installed.content_bytes + installed.key_count * KEY_OVERHEAD


def test_a_configmap_whose_versions_are_known_late_gets_room() -> None:
    """A ConfigMap that was left out because of the size limit is read as soon as its installed
    versions are known.
    """
    sizes: dict[str, int] = {}
    bounds = bounded(sizes, byte_limit=200, config_map_limit=10)
    kept = bounds.within(dict(aged(number) for number in range(3)))
    sizes["configmap ns/m2"] = 100
    assert (dropped(kept), bounds.has_room(kept)) == (["m2"], True)


def test_a_dropped_configmap_is_read_when_room_becomes_free() -> None:
    """If a ConfigMap is deleted or becomes smaller, another ConfigMap that was left out because of
    the size limit is read again.
    """
    bounds = bounded(byte_limit=300, config_map_limit=10)
    kept = bounds.within(dict(aged(number, 150) for number in range(3)))
    assert dropped(kept) == ["m2"]
    left = {name: entry for name, entry in kept.items() if name != "m0"}
    assert bounds.has_room(left) is True
    assert bounds.has_room({**kept, "m0": aged(0, 0)[1]}) is True


def test_the_number_of_stored_configmap_names_is_limited() -> None:
    """The number of stored names is limited: the oldest names are stored, and the newest names are
    left out.
    """
    bounds = bounded(byte_limit=300, config_map_limit=2)
    kept = bounds.within(dict(aged(number, 0) for number in range(9)))
    assert (sorted(kept), dropped(kept)) == (["m0", "m1", "m2", "m3"], ["m2", "m3"])


def test_configmaps_above_the_limits_are_rejected_separately() -> None:
    """A ConfigMap above a limit is rejected, all other ConfigMaps are read, and none counts as
    missing.
    """
    name, old = config_map("old")
    store = Store(
        objects={name: old, "young": aged(5)[1], "huge": configmap.ConfigMapEntry(created="x")}
    )
    several = source(ALL, store)
    causes = {snapshot.profile_set: getattr(snapshot, "cause", "") for snapshot in several.read()}
    assert causes == {
        "configmap ns/old": "",
        "configmap ns/young": "",
        "configmap ns/huge": "over_limit",
    }
    assert several.explain_absence("configmap ns/gone") == Missing(
        profile_set="configmap ns/gone", reason='there is no ConfigMap ns/gone that matches ""'
    )
    more = source(ALL, Store(objects={name: old}, partial=True))
    assert [getattr(snapshot, "cause", "") for snapshot in more.read()] == ["", "over_limit"]
    absence = instance_of(more.explain_absence("configmap ns/gone"), Unreadable)
    assert absence.cause == "over_limit"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"pool": "a"}, expected_snapshot("web", "a.json")),
        ({"pool": "b"}, expected_snapshot("web", allow_empty=True)),
        ({}, expected_snapshot("web", allow_empty=True)),
        (
            None,
            Unreadable(
                profile_set="configmap ns/web",
                reason="it has a node selector, and the labels of this Node are not known",
            ),
        ),
    ],
)
def test_a_node_selector_decides_which_nodes_a_configmap_is_for(
    labels: dict[str, str] | None, expected: Snapshot
) -> None:
    """If the node selector of a ConfigMap does not match, its profile set is empty. If the labels
    of the Node are unknown, the set is unreadable.
    """
    assert read(ONE, stored(config_map(node_selector="pool=a")), labels) == (expected,)


def test_without_a_node_selector_the_node_labels_are_not_needed() -> None:
    """A ConfigMap without a node selector is read even if the labels of the Node are unknown."""
    assert isinstance(read(ONE, stored(config_map()))[0], Read)


def test_an_unchanged_configmap_has_the_same_snapshot_object() -> None:
    """An unchanged ConfigMap has the same snapshot object, so a pass calculates no digest."""
    stores = [stored(config_map())]
    reader = ConfigMapSource(ONE, store=lambda: stores[0], node_labels=lambda: None)
    first = reader.read()[0]
    assert reader.read()[0] is first
    stores[0] = stored(config_map(data={"b.json": PLAIN}))
    assert reader.read() == (expected_snapshot("web", "b.json"),)


def test_the_keys_of_a_deleted_configmap_are_removed_from_memory() -> None:
    """The keys of deleted ConfigMaps are removed from memory, because they would fill it."""
    stores = [stored(config_map("web-1"))]
    reader = ConfigMapSource(SEVERAL, store=lambda: stores[0], node_labels=lambda: None)
    reader.read()
    assert keys_in_memory("configmap ns/web-1") == 1
    stores[0] = stored(config_map("web-2"))
    reader.read()
    gc.collect()
    assert keys_in_memory("configmap ns/web-1") == 0


def keys_in_memory(profile_set: str) -> int:
    return sum(
        isinstance(value, SourceKey) and value.profile_set == profile_set
        for value in gc.get_objects()
    )


@pytest.mark.parametrize(
    ("spec", "profile_set", "expected"),
    [
        (
            SEVERAL,
            "configmap ns/gone",
            Missing(
                profile_set="configmap ns/gone",
                reason='there is no ConfigMap ns/gone that matches "use=profiles"',
            ),
        ),
        (SEVERAL, "configmap other/gone", None),
        (SEVERAL, "configmap ns2/gone", None),
        (SEVERAL, "dir /ns/gone", None),
        (ONE, "configmap ns/gone", None),
    ],
)
def test_a_deleted_set_is_missing_only_for_its_own_source(
    spec: source_spec.ConfigMapSpec, profile_set: str, expected: Missing | None
) -> None:
    """A deleted profile set counts as missing only for its own source."""
    assert source(spec, stored(config_map())).explain_absence(profile_set) == expected


def test_a_set_of_the_ledger_is_unreadable_before_the_first_list() -> None:
    """Before the first list, a profile set in the ledger is unreadable and does not count as
    missing.
    """
    assert source(SEVERAL, FORBIDDEN).explain_absence("configmap ns/web") == Unreadable(
        profile_set="configmap ns/web",
        reason="the API server denied the read request: 403 Forbidden: no",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("configmap:ns/web", ONE),
        ("configmap:ns/web.v1", ConfigMapSpec(namespace="ns", name="web.v1")),
        ("configmaps:ns", ALL),
        ("configmaps:ns?", ALL),
        ("configmaps:ns?use=profiles", SEVERAL),
        ("configmaps:ns?a in (b,c),!d", ConfigMapSpec(namespace="ns", selector="a in (b,c),!d")),
    ],
)
def test_a_source_text_selects_configmaps(text: str, expected: source_spec.ConfigMapSpec) -> None:
    """A source text contains a name, or a selector in the syntax of kubectl."""
    assert source_spec.parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "configmap:",
        "configmap:ns",
        "configmap:ns/",
        "configmap:/web",
        "configmap:ns/a/b",
        "configmap:ns/../x",
        "configmap:NS/web",
        "configmap:n.s/web",
        "configmap:ns/web?x",
        "configmap:" + "n" * 64 + "/web",
        "configmap:ns/" + "w" * 254,
        "configmaps:",
        "configmaps:?a=b",
        "configmaps:ns/web",
        "configmaps:ns?a b",
        "configmaps:ns?a=b&watch=true",
    ],
)
def test_an_invalid_source_text_is_an_error(text: str) -> None:
    """An invalid source text is an error, and never becomes another API path or a selector that
    matches all objects.
    """
    with pytest.raises(ValueError, match="configmap"):
        source_spec.parse_source(text)


@pytest.mark.parametrize(
    ("spec", "query"),
    [
        (ONE, (("fieldSelector", "metadata.name=web"),)),
        (SEVERAL, (("labelSelector", "use=profiles"),)),
        (ALL, ()),
    ],
)
def test_one_configmap_is_listed_by_its_name(
    spec: source_spec.ConfigMapSpec, query: tuple[tuple[str, str], ...]
) -> None:
    """The agent lists a single ConfigMap by its name, so the permission to read this ConfigMap is
    sufficient.
    """
    assert (spec.path, spec.query) == ("/api/v1/namespaces/ns/configmaps", query)
