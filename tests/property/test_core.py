"""Properties of planning and executing passes, for arbitrary histories of a node."""

import contextlib
import copy
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core.actions import Adopt, Hold, Install, Keep
from agent.core.findings import Finding
from agent.core.model import Emptied, Missing, Read, SourceKey, Unobservable, Unreadable
from agent.core.ownership import owned_names
from tests.world import Killed, Node, Steps, settled, token, turn

NAMES = st.sampled_from(["a", "b", "c"])
KEYS = st.sampled_from(["one.profile", "two.profile", "three.profile"])
TEXTS = st.one_of(
    st.builds(
        lambda names, content: f"{','.join(sorted(names))}:{content}".encode(),
        st.sets(NAMES, min_size=1, max_size=2),
        st.sampled_from(["x", "y"]),
    ),
    st.just(b"!bad"),
)


def read(keys, origin="dir /p"):
    blobs = tuple(
        SourceKey(profile_set=origin, key=key, content=content)
        for key, content in sorted(keys.items())
    )
    return Read(profile_set=origin, revision="r", source_keys=blobs)


SETS = st.dictionaries(KEYS, TEXTS, min_size=1, max_size=3)


def snapshots(origin):
    """Return a strategy for the results of reading one profile set."""
    return st.one_of(
        SETS.map(lambda keys: read(keys, origin)),
        SETS.map(lambda keys: read(keys, origin)),
        SETS.map(lambda keys: read(keys, origin)),
        st.just(Emptied(profile_set=origin, revision="")),
        st.just(Missing(profile_set=origin, reason="gone")),
        st.just(Unreadable(profile_set=origin, reason="EIO")),
    )


SNAPSHOTS = st.one_of(
    snapshots("dir /p").map(lambda one: [one]),
    st.tuples(snapshots("dir /p"), snapshots("dir /q")).map(list),
)
FOREIGN = st.dictionaries(NAMES, st.sampled_from([b"foreign", b"compiled a:x"]), max_size=2)
OUTSIDE = st.one_of(
    st.tuples(st.just("unload"), NAMES),
    st.tuples(st.just("use"), NAMES),
    st.tuples(st.just("free"), NAMES),
    st.tuples(st.just("reboot"), st.just("")),
    # Other programs load any content, or the same content, with or without a removal before.
    st.tuples(st.just("load"), NAMES),
    st.tuples(st.just("replace"), NAMES),
    st.tuples(st.just("reload"), NAMES),
    st.tuples(st.just("stranger"), st.just("z")),
)
HISTORY = st.lists(st.tuples(SNAPSHOTS, st.lists(OUTSIDE, max_size=2)), min_size=1, max_size=5)
REFUSABLE = st.one_of(
    TEXTS, st.sets(NAMES, min_size=1, max_size=2).map(lambda n: f"{','.join(sorted(n))}:?".encode())
)
HARD = st.lists(  # includes rejections by the node and failed writes of the ledger
    st.tuples(
        st.dictionaries(KEYS, REFUSABLE, max_size=3).map(read), st.lists(OUTSIDE), st.booleans()
    ),
    min_size=1,
    max_size=6,
)


def meddle(node, deeds):
    for deed, name in deeds:
        there = node.loaded.get(name)
        if deed == "unload":
            node.unload(name)
        elif deed == "use":
            node.used.add(name)
        elif deed == "free":
            node.used.discard(name)
        elif deed == "reboot":
            node.reboot()
        elif deed == "load":
            node.unload(name)
            node.write({name: b"foreign"})
        elif deed == "replace" and there is not None:
            node.write({name: b"foreign"})
        elif deed == "reload" and there is not None:
            node.unload(name)
            node.write({name: there})
        elif deed == "stranger":
            node.write({name: b"stranger"})


def hardly(history, foreign):
    """Yield the node and the snapshots before each pass of a history with failures."""
    node = Node(loaded=dict(foreign))
    for snapshot, deeds, full in history:
        meddle(node, deeds)
        node.full = full
        yield node, snapshot


def mine(node):
    return {name for entry in node.entries.values() for name in owned_names(entry)}


@example(
    [
        ([read({"one.profile": b"a:y", "three.profile": b"b:x"})], []),
        ([read({"one.profile": b"b,c:x", "two.profile": b"a:x", "three.profile": b"!bad"})], []),
    ],
    {},
    True,
)
@example(
    [
        ([read({"one.profile": b"a:x"})], []),
        (
            [Missing(profile_set="dir /p", reason="gone"), read({"one.profile": b"a:y"}, "dir /q")],
            [],
        ),
    ],
    {},
    True,
)
@example(
    [
        ([read({"one.profile": b"a:x"})], []),
        ([read({"one.profile": b"!bad", "two.profile": b"a:x"})], [("unload", "a")]),
    ],
    {},
    False,
)
@given(HISTORY, FOREIGN, st.booleans())
def test_a_pass_settles(history, foreign, readable):
    """A second pass over the same node and the same sources changes neither node nor ledger."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, deeds in history:
        meddle(node, deeds)
        turn(node, snapshot)
        turn(node, snapshot)
        before = copy.deepcopy((node.loaded, node.entries))
        steps = Steps()
        turn(node, snapshot, steps=steps)
        assert (before, 0) == ((node.loaded, node.entries), steps.count)


@given(HISTORY, FOREIGN)
def test_foreign_profiles_are_never_changed(history, foreign):
    """Foreign content is neither replaced nor removed in any history."""
    node = Node(loaded=dict(foreign))
    for snapshot, _ in history:
        theirs = {
            name: content
            for name, content in node.loaded.items()
            if name not in mine(node)
            or any(
                entry.provenance == "adopted" and name in owned_names(entry)
                for entry in node.entries.values()
            )
        }
        node.removed.clear()
        adopted = {
            n for e in node.entries.values() if e.provenance == "adopted" for n in owned_names(e)
        }
        turn(node, snapshot)
        still = {name: node.loaded.get(name) for name in theirs if name not in adopted}
        assert {name: theirs[name] for name in still} == still
        assert not set(node.removed) & set(theirs)


@settings(max_examples=300)
@given(HISTORY, FOREIGN, st.booleans())
@example([([read({"k": b"a:x"})], []), ([read({"l": b"b:x"})], [("reload", "a")])], {}, True)
@example([([read({"k": b"a:x"})], []), ([read({"l": b"b:x"})], [("load", "a")])], {}, False)
def test_no_object_of_another_program_is_removed(history, foreign, readable):
    """A profile that another program loaded with the same bytes after a removal stays too."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, deeds in history:
        meddle(node, deeds)
        turn(node, snapshot)
        assert node.created.issuperset(node.lost)


@settings(max_examples=300)
@given(HISTORY, FOREIGN, st.booleans())
def test_only_known_content_of_another_program_is_overwritten(history, foreign, readable):
    """Only foreign content that was adopted, or equal to the agent's own, is replaced (ADR 7)."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, deeds in history:
        meddle(node, deeds)
        known = {
            (name, one)
            for entry in node.entries.values()
            for name, evidence in owned_names(entry).items()
            for one in evidence
        }
        created = set(node.created)
        node.touched.clear()
        turn(node, snapshot)
        for name, number, content in node.touched:
            assert number in created or (
                readable and {(name, one) for one in token(content)} & known
            )


@example(
    [
        ([read({"three.profile": b"a:x", "two.profile": b"b,c:y"})], []),
        ([read({"three.profile": b"b,c:y", "two.profile": b"!bad"})], [("load", "a")]),
        ([read({"one.profile": b"a,b:x"})], []),
    ],
    {},
    False,
)
@example(
    [
        ([read({"three.profile": b"a:x", "two.profile": b"b,c:y"})], []),
        ([read({"three.profile": b"b,c:y", "two.profile": b"!bad"})], [("load", "a")]),
        ([read({"two.profile": b"a:x"})], []),
    ],
    {},
    False,
)
@settings(max_examples=300)
@given(HISTORY, FOREIGN, st.booleans())
def test_a_profile_that_this_agent_loaded_is_removed_eventually(history, foreign, readable):
    """A profile that the agent loaded last is removed once no key desires it."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, deeds in history:
        meddle(node, deeds)
        turn(node, snapshot)
    node.used.clear()
    last = [read({"other.profile": b"other:x"}, origin) for origin in ("dir /p", "dir /q")]
    turn(node, last)
    turn(node, last)
    left = {
        name
        for name, content in node.loaded.items()
        if node.objects[name] in node.created and node.put.get(name) == content
    }
    assert left <= {"other"}


@settings(max_examples=300)
@given(HARD, FOREIGN)
def test_a_profile_that_this_agent_loaded_stays_agent_owned(history, foreign):
    """Despite rejections and failed writes, the ledger has each profile that the agent loaded."""
    for node, snapshot in hardly(history, foreign):
        turn(node, [snapshot])
        node.number()
        there = {
            name
            for name, content in node.loaded.items()
            if node.put.get(name) == content and node.objects[name] in node.created
        }
        assert there <= mine(node)


@settings(max_examples=300)
@given(HARD, FOREIGN)
def test_every_profile_that_is_reported_as_installed_is_on_the_node(history, foreign):
    """At the end of a pass, each reported profile is on the node with the reported content."""
    for node, snapshot in hardly(history, foreign):
        for outcome in turn(node, [snapshot]):
            action = outcome.action
            if outcome.result == "done" and isinstance(action, Install | Keep | Adopt):
                told = outcome.version.evidence
                assert all(token(node.loaded[one]) & told[one] for one in action.names)
            elif isinstance(action, Hold) and action.state in ("held", "outdated"):
                assert node.loaded.keys() >= set(action.names)


@settings(max_examples=300)
@given(HARD, FOREIGN)
def test_passes_over_an_unchanged_node_come_to_rest(history, foreign):
    """Even if every pass has a rejection, no profile is installed repeatedly."""
    for node, snapshot in hardly(history, foreign):
        for _ in range(4):
            turn(node, [snapshot])
        before = dict(node.loaded)
        outcomes = turn(node, [snapshot])
        put = [one for one in outcomes if isinstance(one.action, Install) and one.result == "done"]
        assert (put, node.loaded) == ([], before)


@settings(max_examples=300)
@given(HARD, FOREIGN)
def test_no_name_of_a_current_key_is_removed(history, foreign):
    """This holds even if the node or the agent rejects the key, or if it conflicts with another."""
    for node, snapshot in hardly(history, foreign):
        node.removed.clear()
        turn(node, [snapshot])
        texts = [blob.content.decode() for blob in snapshot.source_keys if blob.content != b"!bad"]
        wanted = {name for text in texts for name in text.split(":")[0].split(",")}
        assert wanted.isdisjoint(node.removed)


@given(HISTORY, FOREIGN, SNAPSHOTS)
def test_a_blind_kind_is_left_alone(history, foreign, last):
    """If a kind is unobservable, neither the node nor the ledger changes."""
    node = Node(loaded=dict(foreign))
    for snapshot, deeds in history:
        meddle(node, deeds)
        turn(node, snapshot)
    before = copy.deepcopy((node.loaded, node.entries))
    blind = Unobservable(
        finding=Finding(code="kind_unobservable", location="kernel", message="EACCES")
    )
    turn(node, last, observed=blind)
    assert before == (node.loaded, node.entries)


@given(HISTORY)
def test_nothing_in_use_is_removed(history):
    """A profile that confines a process is never removed, whether or not a source desires it."""
    node = Node()
    for snapshot, deeds in history:
        meddle(node, deeds)
        node.removed.clear()
        turn(node, snapshot)
        assert not node.used & set(node.removed)


@given(SETS, KEYS)
def test_a_rejected_update_keeps_the_last_good_version(keys, broken):
    """If an update of a key is rejected, all its profiles stay on the node unchanged."""
    node = Node()
    turn(node, [read(keys)])
    before = dict(node.loaded)
    node.removed.clear()
    changed = {**keys, broken: b"!bad"}
    if broken in keys:
        turn(node, [read(changed)])
        assert before == {name: node.loaded[name] for name in before}
        assert node.removed == []


@given(SETS, st.permutations(["one.profile", "two.profile", "three.profile"]))
def test_renamed_keys_keep_their_profiles(keys, order):
    """Renaming keys neither removes nor reloads their profiles."""
    node = Node()
    turn(node, [read(keys)])
    loaded = dict(node.loaded)
    renamed = {
        f"renamed-{order.index(key)}.profile": text for key, text in keys.items() if text != b"!bad"
    }
    if not renamed:
        return
    node.removed.clear()
    outcomes = turn(node, [read(renamed)])
    puts = [one for one in outcomes if isinstance(one.action, Install)]
    assert (loaded, [], []) == (node.loaded, node.removed, puts)


@settings(max_examples=300)
@given(HISTORY, FOREIGN, st.integers(0, 12))
@example([([read({"one.profile": b"a:x"})], [])], {}, 3)
@example(
    [([read({"one.profile": b"b:x"})], []), ([read({"one.profile": b"a:x"})], [])],
    {"a": b"compiled a:x"},
    3,
)
@example(
    [
        ([read({"one.profile": b"a:x"})], []),
        ([read({"one.profile": b"!bad", "two.profile": b"b:x"})], [("reboot", "")]),
    ],
    {"a": b"compiled a:x"},
    7,
)
def test_a_kill_at_any_step_ends_in_the_same_state(history, foreign, step):
    """After a kill at any effect, the next passes reach the same state as an undisturbed pass.

    The exception are adopted profiles that are restored after a reboot. After a kill it is unknown
    whether the agent restored such a profile or another program loaded it. The profile then stays
    adopted, and is never removed.
    """
    node = Node(loaded=dict(foreign))
    for snapshot, deeds in history[:-1]:
        meddle(node, deeds)
        turn(node, snapshot)
    snapshot, deeds = history[-1]
    meddle(node, deeds)
    undisturbed = copy.deepcopy(node)
    turn(undisturbed, snapshot)
    turn(undisturbed, snapshot)
    with contextlib.suppress(Killed):
        turn(node, snapshot, steps=Steps(fatal=step))
    turn(node, snapshot)
    turn(node, snapshot)
    loaded, entries = settled(node)
    expected = settled(undisturbed)[1]
    for id_, entry in entries.items():
        if entry.provenance == "adopted" and id_ in expected:
            expected[id_] = replace(expected[id_], provenance="adopted")
    assert (undisturbed.loaded, expected) == (loaded, entries)
