"""Specification of agent.sources.configmap and opening, and of a reflector's pauses."""

import pytest

from agent.core.model import Emptied, Missing, Read, SourceKey, Unreadable
from agent.kube.reflector import Store
from agent.sources import configmap, limits, source_spec
from agent.sources.configmap import ConfigMapSource
from agent.sources.source_spec import ConfigMapSpec

D = "example.org"
PLAIN = '{"defaultAction": "SCMP_ACT_ALLOW"}'
ONE = ConfigMapSpec(namespace="ns", name="web")
SEVERAL = ConfigMapSpec(namespace="ns", selector="use=profiles")
ALL = ConfigMapSpec(namespace="ns")


def config_map(name="web", data=None, **annotations):
    keys = {"a.json": PLAIN} if data is None else data
    own = {f"{D}/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return name, configmap.keep(D)(
        {"metadata": {"name": name, "namespace": "ns", "annotations": own}, "data": keys}
    )


def source(which, copy, labels=None):
    return ConfigMapSource(which, copy=lambda: copy, node_labels=lambda: labels)


def read(which, copy, labels=None):
    return source(which, copy, labels).read()


def as_read(name, *keys, empty=False):
    origin = f"configmap ns/{name}"
    blobs = [SourceKey(profile_set=origin, key=key, content=PLAIN.encode()) for key in keys]
    return limits.snapshot(origin, blobs, [], empty=empty)


def known(*found, **more):
    return Store(objects=dict(found), **more)


FORBIDDEN = Store(objects=None, reason="403 Forbidden: no", status=403)


def test_each_configmap_is_a_set_of_its_own():
    """In the order of their names, one missing nothing of the other."""
    copy = known(config_map("web"), config_map("api", {"b.json": PLAIN}))
    assert read(SEVERAL, copy) == (as_read("api", "b.json"), as_read("web", "a.json"))
    assert read(ONE, copy) == (as_read("web", "a.json"),)


def test_a_configmap_without_profiles_is_emptied_unless_it_says_that_it_may_be():
    """Emptying is a wish only where the annotation says so."""
    emptied, wish = config_map(data={}), config_map(data={}, allow_empty="true")
    assert isinstance(read(ONE, known(emptied))[0], Emptied)
    assert read(ONE, known(wish)) == (as_read("web", empty=True),)


def test_a_configmap_that_does_not_exist_is_missing():
    """A confirmed answer without it; not the same as no answer."""
    assert read(ONE, Store(objects={})) == (
        Missing(profile_set="configmap ns/web", reason="there is no ConfigMap ns/web"),
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "the API server forbids to read it: because"),
        (403, "the API server forbids to read it: because"),
        (404, "the API server refused: because"),
        (429, "the API server refused: because"),
        (500, "the API server refused: because"),
        (0, "the API server gave no usable answer: because"),
    ],
)
@pytest.mark.parametrize("objects", [None, {}, {"web": config_map()}])
def test_what_the_api_server_does_not_confirm_is_unreadable(objects, status, expected):
    """Neither an old copy nor an empty one is an answer."""
    copy = Store(objects=objects, reason="because", status=status)
    assert read(ONE, copy) == (Unreadable(profile_set="configmap ns/web", reason=expected),)


@pytest.mark.parametrize(
    "copy", [FORBIDDEN, Store(objects={}, reason="403 Forbidden: no", status=403)]
)
@pytest.mark.parametrize(
    ("which", "origin"), [(SEVERAL, "configmaps ns?use=profiles"), (ALL, "configmaps ns")]
)
def test_several_configmaps_of_which_none_is_known_are_unreadable_not_none(which, origin, copy):
    """A node that was never told its profiles is not one that has none."""
    assert read(which, copy) == (
        Unreadable(
            profile_set=origin, reason="the API server forbids to read it: 403 Forbidden: no"
        ),
    )


def test_before_the_first_answer_several_configmaps_are_unreadable():
    """The first pass may come before it."""
    copy = Store(objects=None, reason="not read yet", tried=False)
    assert [type(one) for one in read(SEVERAL, copy)] == [Unreadable]


def test_a_selector_that_selects_none_is_a_missing_source():
    """A misspelt selector is told, as a misspelt name is, and keeps the startup taint on."""
    assert read(SEVERAL, Store(objects={})) == (
        Missing(profile_set="configmaps ns?use=profiles", reason="there is no such ConfigMap"),
    )


def test_known_configmaps_that_are_not_confirmed_are_unreadable_each():
    """So each of them keeps what it provided."""
    copy = known(config_map("web"), config_map("api"), reason="no answer in time")
    why = "the API server gave no usable answer: no answer in time"
    assert read(SEVERAL, copy) == (
        Unreadable(profile_set="configmap ns/api", reason=why),
        Unreadable(profile_set="configmap ns/web", reason=why),
    )


def test_a_malformed_configmap_is_unreadable_and_the_others_are_read():
    """Its keys may still be desired."""
    odd = configmap.keep(D)({"metadata": {"name": "odd", "namespace": "ns"}, "data": ["x"]})
    copy = Store(objects={"odd": odd, **dict([config_map()])})
    assert read(SEVERAL, copy) == (
        Unreadable(
            profile_set="configmap ns/odd",
            reason="data of a ConfigMap is no mapping of strings",
            cause="invalid",
        ),
        as_read("web", "a.json"),
    )


def test_an_object_without_metadata_is_malformed_not_a_crash():
    """What is kept of it is what is wrong with it."""
    assert configmap.keep(D)({"metadata": None}).malformed == "a ConfigMap has no metadata.name"


def aged(number, size=100, **more):
    """Return a ConfigMap that was created in that second."""
    content = configmap.keep(D)({"metadata": {"name": f"m{number}", "namespace": "ns"}}).content
    created = f"2026-01-01T00:00:{number:02}Z"
    return f"m{number}", configmap.ConfigMapEntry(
        content=content, created=created, size=size, **more
    )


def let_go(objects):
    return sorted(name for name, one in objects.items() if one.is_let_go)


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
def test_the_oldest_configmaps_have_room(sizes, expected):
    """The order in which they become known does not matter, nor how often it is decided."""
    bounds = configmap.ConfigMapBounds(most_bytes=300, most_config_maps=10)
    found = [aged(number, size) for number, size in enumerate(sizes)]
    for order in (found, found[::-1]):
        whole = bounds.within(dict(order))
        assert (let_go(whole), len(whole)) == (expected, len(sizes))
        assert bounds.within(whole) == whole
        paged = {}
        for name, one in order:
            paged = bounds.within({**paged, name: one})
        assert paged == whole
        assert bounds.has_room(whole) is False


def test_room_that_becomes_free_is_noticed():
    """A deleted or smaller ConfigMap leaves room for one that was let go."""
    bounds = configmap.ConfigMapBounds(most_bytes=300, most_config_maps=10)
    found = bounds.within(dict(aged(number, 150) for number in range(3)))
    assert let_go(found) == ["m2"]
    left = {name: one for name, one in found.items() if name != "m0"}
    assert bounds.has_room(left) is True
    assert bounds.has_room({**found, "m0": aged(0, 0)[1]}) is True


def test_of_too_many_configmaps_not_even_the_names_are_remembered():
    """The newest ConfigMaps are left out; the oldest ones are remembered."""
    bounds = configmap.ConfigMapBounds(most_bytes=300, most_config_maps=2)
    found = bounds.within(dict(aged(number, 0) for number in range(9)))
    assert (sorted(found), let_go(found)) == (["m0", "m1", "m2", "m3"], ["m2", "m3"])


def test_configmaps_beyond_the_bounds_are_refused_one_by_one():
    """All other ConfigMaps are read, none is missing, and the code is that of a limit."""
    name, old = config_map("old")
    copy = Store(
        objects={name: old, "young": aged(5)[1], "huge": configmap.ConfigMapEntry(created="x")}
    )
    known_by = source(ALL, copy)
    told = {one.profile_set: getattr(one, "cause", "") for one in known_by.read()}
    assert told == {
        "configmap ns/old": "",
        "configmap ns/young": "",
        "configmap ns/huge": "over_limit",
    }
    assert known_by.explain_absence("configmap ns/gone") == Missing(
        profile_set="configmap ns/gone", reason='there is no ConfigMap ns/gone that "" selects'
    )
    more = source(ALL, Store(objects={name: old}, partial=True))
    assert [getattr(one, "cause", "") for one in more.read()] == ["", "over_limit"]
    assert more.explain_absence("configmap ns/gone").cause == "over_limit"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"pool": "a"}, as_read("web", "a.json")),
        ({"pool": "b"}, as_read("web", empty=True)),
        ({}, as_read("web", empty=True)),
        (
            None,
            Unreadable(
                profile_set="configmap ns/web",
                reason="it is for some nodes only, and the labels of this Node are not known",
            ),
        ),
    ],
)
def test_a_node_selector_decides_for_which_nodes_a_configmap_is(labels, expected):
    """A selector that no longer matches is a wish; one that cannot be judged is none."""
    assert read(ONE, known(config_map(node_selector="pool=a")), labels) == (expected,)


def test_without_a_node_selector_the_node_labels_are_not_needed():
    """A directory of a host that is no Node has none."""
    assert isinstance(read(ONE, known(config_map()))[0], Read)


def test_a_configmap_that_did_not_change_gives_the_very_same_snapshot():
    """Nothing is digested again in a pass over unchanged sources."""
    copies = [known(config_map())]
    reader = ConfigMapSource(ONE, copy=lambda: copies[0], node_labels=lambda: None)
    first = reader.read()[0]
    assert reader.read()[0] is first
    copies[0] = known(config_map(data={"b.json": PLAIN}))
    assert reader.read() == (as_read("web", "b.json"),)


def test_a_configmap_that_is_gone_is_not_kept_in_memory():
    """Names that hold a hash come and go for months."""
    copies = [known(config_map("web-1"))]
    reader = ConfigMapSource(SEVERAL, copy=lambda: copies[0], node_labels=lambda: None)
    reader.read()
    copies[0] = known(config_map("web-2"))
    reader.read()
    assert reader._made.keys() == {"web-2"}


@pytest.mark.parametrize(
    ("which", "set_", "expected"),
    [
        (
            SEVERAL,
            "configmap ns/gone",
            Missing(
                profile_set="configmap ns/gone",
                reason='there is no ConfigMap ns/gone that "use=profiles" selects',
            ),
        ),
        (SEVERAL, "configmap other/gone", None),
        (SEVERAL, "configmap ns2/gone", None),
        (SEVERAL, "dir /ns/gone", None),
        (ONE, "configmap ns/gone", None),
    ],
)
def test_a_set_that_is_gone_is_missing_for_its_own_source_alone(which, set_, expected):
    """What another source provided is not this one's to judge."""
    assert source(which, known(config_map())).explain_absence(set_) == expected


def test_a_set_of_the_ledger_is_unreadable_while_nothing_is_known():
    """After a reboot in an outage it is not missing."""
    assert source(SEVERAL, FORBIDDEN).explain_absence("configmap ns/web") == Unreadable(
        profile_set="configmap ns/web",
        reason="the API server forbids to read it: 403 Forbidden: no",
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
def test_a_text_says_which_configmaps_are_wanted(text, expected):
    """One by its name, or several by kubectl's selectors."""
    assert source_spec.open_source(text, D) == expected


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
def test_a_text_that_names_no_configmap_is_a_mistake(text):
    """It never becomes another path of the API, nor a selector that selects all."""
    with pytest.raises(ValueError, match="configmap"):
        source_spec.open_source(text, D)


@pytest.mark.parametrize(
    ("which", "query"),
    [
        (ONE, (("fieldSelector", "metadata.name=web"),)),
        (SEVERAL, (("labelSelector", "use=profiles"),)),
        (ALL, ()),
    ],
)
def test_one_configmap_is_asked_for_by_its_name(which, query):
    """So that the right to read that one is enough."""
    assert (which.path, which.query) == ("/api/v1/namespaces/ns/configmaps", query)
