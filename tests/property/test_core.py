"""Property tests of the planning and the execution of passes, for any history of a node."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace

import hypothesis.strategies._internal.strategies
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core.actions import Adopt, Hold, Install, Keep
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import Emptied, Missing, Read, Snapshot, SourceKey, Unobservable, Unreadable
from agent.core.ownership import owned_names, recorded_names
from agent.core.vocabulary import Provenance
from tests.narrowing import not_none
from tests.world import Killed, Node, Steps, final_state, run_pass, token

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


def read(keys: dict[str, bytes], origin: str = "dir /p") -> Read:
    source_keys = tuple(
        SourceKey(profile_set=origin, key=key, content=content)
        for key, content in sorted(keys.items())
    )
    return Read(profile_set=origin, revision="r", source_keys=source_keys)


SETS = st.dictionaries(KEYS, TEXTS, min_size=1, max_size=3)


def snapshots(origin: str) -> hypothesis.strategies._internal.strategies.OneOfStrategy:
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
    snapshots("dir /p").map(lambda snapshot: [snapshot]),
    st.tuples(snapshots("dir /p"), snapshots("dir /q")).map(list),
)
FOREIGN = st.dictionaries(NAMES, st.sampled_from([b"foreign", b"compiled a:x"]), max_size=2)
CHANGES = st.one_of(
    st.tuples(st.just("unload"), NAMES),
    st.tuples(st.just("use"), NAMES),
    st.tuples(st.just("free"), NAMES),
    st.tuples(st.just("reboot"), st.just("")),
    # Other programs load the same content or different content, with or without a removal of the
    # profile before.
    st.tuples(st.just("load"), NAMES),
    st.tuples(st.just("replace"), NAMES),
    st.tuples(st.just("reload"), NAMES),
    st.tuples(st.just("stranger"), st.just("z")),
)
HISTORY = st.lists(st.tuples(SNAPSHOTS, st.lists(CHANGES, max_size=2)), min_size=1, max_size=5)
TEXTS_WITH_NODE_REJECTIONS = st.one_of(
    TEXTS, st.sets(NAMES, min_size=1, max_size=2).map(lambda n: f"{','.join(sorted(n))}:?".encode())
)
# The history includes rejections by the node and failed writes of the ledger.
EMPTIED = Emptied(profile_set="dir /p", revision="")
# A key moves to a profile set that is not read any more when the key returns.
MOVED_AND_BACK = [
    ([read({"one.profile": b"a:x"})], []),
    ([EMPTIED, read({"one.profile": b"a,b:x"}, "dir /q")], []),
    ([read({"one.profile": b"a:x"})], []),
]
HISTORY_WITH_FAILURES = st.lists(
    st.tuples(
        st.dictionaries(KEYS, TEXTS_WITH_NODE_REJECTIONS, max_size=3).map(read),
        st.lists(CHANGES),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def apply_changes(node: Node, changes: list[tuple[str, str]]) -> None:
    for change, name in changes:
        content = node.loaded.get(name)
        if change == "unload":
            node.unload(name)
        elif change == "use":
            node.used.add(name)
        elif change == "free":
            node.used.discard(name)
        elif change == "reboot":
            node.reboot()
        elif change == "load":
            node.unload(name)
            node.write({name: b"foreign"})
        elif change == "replace" and content is not None:
            node.write({name: b"foreign"})
        elif change == "reload" and content is not None:
            node.unload(name)
            node.write({name: content})
        elif change == "stranger":
            node.write({name: b"stranger"})


def passes_with_failures(
    history: list[tuple[Read, list[tuple[str, str]], bool]], foreign: dict[str, bytes]
) -> Iterator[tuple[Node, Read]]:
    """Yield the node and the snapshots before each pass of a history that contains failures."""
    node = Node(loaded=dict(foreign))
    for snapshot, changes, full in history:
        apply_changes(node, changes)
        node.full = full
        yield node, snapshot


def owned(node: Node) -> set[str]:
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
def test_a_repeated_pass_changes_nothing(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    foreign: dict[str, bytes],
    readable: bool,
) -> None:
    """If neither the node nor the sources change, another pass has no effect."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, changes in history:
        apply_changes(node, changes)
        run_pass(node, snapshot)
        run_pass(node, snapshot)
        before = copy.deepcopy((node.loaded, node.entries))
        steps = Steps()
        run_pass(node, snapshot, steps=steps)
        assert (before, 0) == ((node.loaded, node.entries), steps.count)


@given(HISTORY, FOREIGN)
def test_foreign_profiles_are_never_changed(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]], foreign: dict[str, bytes]
) -> None:
    """In every history, foreign content is neither replaced nor removed, unless it was adopted."""
    node = Node(loaded=dict(foreign))
    for snapshot, _ in history:
        foreign_profiles = {
            name: content
            for name, content in node.loaded.items()
            if name not in owned(node)
            or any(
                entry.provenance == "adopted" and name in owned_names(entry)
                for entry in node.entries.values()
            )
        }
        node.removed.clear()
        adopted = {
            n for e in node.entries.values() if e.provenance == "adopted" for n in owned_names(e)
        }
        run_pass(node, snapshot)
        unchanged = {
            name: node.loaded.get(name) for name in foreign_profiles if name not in adopted
        }
        assert {name: foreign_profiles[name] for name in unchanged} == unchanged
        assert not set(node.removed) & set(foreign_profiles)


@settings(max_examples=300)
@given(HISTORY, FOREIGN, st.booleans())
@example([([read({"k": b"a:x"})], []), ([read({"l": b"b:x"})], [("reload", "a")])], {}, True)
@example([([read({"k": b"a:x"})], []), ([read({"l": b"b:x"})], [("load", "a")])], {}, False)
def test_no_object_of_another_program_is_removed(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    foreign: dict[str, bytes],
    readable: bool,
) -> None:
    """The agent does not remove a profile that another program reloaded with the same bytes."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, changes in history:
        apply_changes(node, changes)
        run_pass(node, snapshot)
        assert node.created.issuperset(node.lost)


@settings(max_examples=300)
@given(HISTORY, FOREIGN, st.booleans())
def test_only_recorded_content_of_another_program_is_replaced(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    foreign: dict[str, bytes],
    readable: bool,
) -> None:
    """Foreign content is replaced only if the ledger has evidence of the same content (ADR 7)."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, changes in history:
        apply_changes(node, changes)
        known = {
            (name, part)
            for entry in node.entries.values()
            for name, evidence in owned_names(entry).items()
            for part in evidence
        }
        created = set(node.created)
        node.touched.clear()
        run_pass(node, snapshot)
        for name, number, content in node.touched:
            assert number in created or (
                readable and {(name, part) for part in token(content)} & known
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
def test_a_profile_that_this_agent_loaded_is_removed_eventually(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    foreign: dict[str, bytes],
    readable: bool,
) -> None:
    """A profile that the agent loaded is removed after its key no longer exists."""
    node = Node(loaded=dict(foreign), readable=readable)
    for snapshot, changes in history:
        apply_changes(node, changes)
        run_pass(node, snapshot)
    node.used.clear()
    last = [read({"other.profile": b"other:x"}, origin) for origin in ("dir /p", "dir /q")]
    run_pass(node, last)
    run_pass(node, last)
    left = {
        name
        for name, content in node.loaded.items()
        if node.objects[name] in node.created and node.last_loaded.get(name) == content
    }
    assert left <= {"other"}


@settings(max_examples=300)
@given(HISTORY_WITH_FAILURES, FOREIGN)
def test_a_profile_that_this_agent_loaded_stays_agent_owned(
    history: list[tuple[Read, list[tuple[str, str]], bool]], foreign: dict[str, bytes]
) -> None:
    """Even after rejections and failed writes, the ledger contains each profile that the agent
    loaded.
    """
    for node, snapshot in passes_with_failures(history, foreign):
        run_pass(node, [snapshot])
        node.number()
        loaded_by_agent = {
            name
            for name, content in node.loaded.items()
            if node.last_loaded.get(name) == content and node.objects[name] in node.created
        }
        assert loaded_by_agent <= owned(node)


@settings(max_examples=300)
@given(HISTORY_WITH_FAILURES, FOREIGN)
def test_every_profile_that_is_reported_as_installed_is_on_the_node(
    history: list[tuple[Read, list[tuple[str, str]], bool]], foreign: dict[str, bytes]
) -> None:
    """After a pass, the node contains each profile that the pass reports as installed, with the
    reported content.
    """
    for node, snapshot in passes_with_failures(history, foreign):
        for outcome in run_pass(node, [snapshot]):
            action = outcome.action
            if outcome.result == "done" and isinstance(action, Install | Keep | Adopt):
                evidence = not_none(outcome.version).evidence
                assert all(token(node.loaded[name]) & evidence[name] for name in action.names)
            elif isinstance(action, Hold) and action.state in ("held", "outdated"):
                assert node.loaded.keys() >= set(action.names)


@settings(max_examples=300)
@given(HISTORY_WITH_FAILURES, FOREIGN)
def test_the_version_of_every_labelled_profile_is_known(
    history: list[tuple[Read, list[tuple[str, str]], bool]], foreign: dict[str, bytes]
) -> None:
    """If a profile has a mode, its label contains the mode."""
    for node, snapshot in passes_with_failures(history, foreign):
        for outcome in run_pass(node, [snapshot]):
            action = outcome.action
            is_labelled = isinstance(action, Install | Keep | Adopt) or (
                isinstance(action, Hold) and action.desired and action.state in ("held", "outdated")
            )
            if is_labelled and outcome.result in ("done", "held"):
                assert set(action.names) <= set(not_none(outcome.version).names)


@settings(max_examples=300)
@given(HISTORY_WITH_FAILURES, FOREIGN)
def test_passes_over_an_unchanged_node_stop_installing(
    history: list[tuple[Read, list[tuple[str, str]], bool]], foreign: dict[str, bytes]
) -> None:
    """Even if every pass rejects a key, later passes do not install the same profiles again."""
    for node, snapshot in passes_with_failures(history, foreign):
        for _ in range(4):
            run_pass(node, [snapshot])
        before = dict(node.loaded)
        outcomes = run_pass(node, [snapshot])
        installed = [
            outcome
            for outcome in outcomes
            if isinstance(outcome.action, Install) and outcome.result == "done"
        ]
        assert (installed, node.loaded) == ([], before)


@settings(max_examples=300)
@given(HISTORY_WITH_FAILURES, FOREIGN)
def test_no_name_of_a_current_key_is_removed(
    history: list[tuple[Read, list[tuple[str, str]], bool]], foreign: dict[str, bytes]
) -> None:
    """The profiles of a current key stay on the node, even if the key is rejected or conflicts with
    another key.
    """
    for node, snapshot in passes_with_failures(history, foreign):
        node.removed.clear()
        run_pass(node, [snapshot])
        texts = [key.content.decode() for key in snapshot.source_keys if key.content != b"!bad"]
        desired_names = {name for text in texts for name in text.split(":")[0].split(",")}
        assert desired_names.isdisjoint(node.removed)


@given(HISTORY, FOREIGN, SNAPSHOTS)
def test_an_unobservable_kind_is_not_changed(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    foreign: dict[str, bytes],
    last: list[Snapshot],
) -> None:
    """If the agent cannot observe a kind, neither the node nor the ledger changes."""
    node = Node(loaded=dict(foreign))
    for snapshot, changes in history:
        apply_changes(node, changes)
        run_pass(node, snapshot)
    before = copy.deepcopy((node.loaded, node.entries))
    unobservable = Unobservable(
        finding=Finding(code=FindingCode.KIND_UNOBSERVABLE, location="kernel", message="EACCES")
    )
    run_pass(node, last, observed=unobservable)
    assert before == (node.loaded, node.entries)


@given(HISTORY)
def test_no_profile_in_use_is_removed(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
) -> None:
    """A profile that confines a process is never removed, even if it is in no source."""
    node = Node()
    for snapshot, changes in history:
        apply_changes(node, changes)
        node.removed.clear()
        run_pass(node, snapshot)
        assert not node.used & set(node.removed)


@given(SETS, KEYS)
def test_a_rejected_update_keeps_the_last_good_version(
    keys: dict[str, bytes], rejected_key: str
) -> None:
    """If the agent rejects an update of a key, all profiles of the key stay unchanged on
    the node.
    """
    node = Node()
    run_pass(node, [read(keys)])
    before = dict(node.loaded)
    node.removed.clear()
    changed = {**keys, rejected_key: b"!bad"}
    if rejected_key in keys:
        run_pass(node, [read(changed)])
        assert before == {name: node.loaded[name] for name in before}
        assert node.removed == []


@given(SETS, st.permutations(["one.profile", "two.profile", "three.profile"]))
def test_renamed_keys_keep_their_profiles(keys: dict[str, bytes], order: list[str]) -> None:
    """If keys are renamed, their profiles are neither removed nor loaded again."""
    node = Node()
    run_pass(node, [read(keys)])
    loaded = dict(node.loaded)
    renamed = {
        f"renamed-{order.index(key)}.profile": text for key, text in keys.items() if text != b"!bad"
    }
    if not renamed:
        return
    node.removed.clear()
    outcomes = run_pass(node, [read(renamed)])
    installations = [outcome for outcome in outcomes if isinstance(outcome.action, Install)]
    assert (loaded, [], []) == (node.loaded, node.removed, installations)


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
def test_an_agent_that_is_killed_at_any_step_reaches_the_same_state(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    foreign: dict[str, bytes],
    step: int,
) -> None:
    """If the agent is killed at any step, the next passes reach the state of an uninterrupted
    agent.

    The only exceptions are adopted profiles that the agent restores after a reboot. If the agent is
    killed during the restoration, it cannot know whether it loaded the profile itself. Such a
    profile stays adopted, and is never removed.
    """
    node = Node(loaded=dict(foreign))
    for snapshot, changes in history[:-1]:
        apply_changes(node, changes)
        run_pass(node, snapshot)
    snapshot, changes = history[-1]
    apply_changes(node, changes)
    undisturbed = copy.deepcopy(node)
    run_pass(undisturbed, snapshot)
    run_pass(undisturbed, snapshot)
    with contextlib.suppress(Killed):
        run_pass(node, snapshot, steps=Steps(fatal=step))
    run_pass(node, snapshot)
    run_pass(node, snapshot)
    loaded, entries = final_state(node)
    expected = final_state(undisturbed)[1]
    for id_, entry in entries.items():
        if entry.provenance == "adopted" and id_ in expected:
            expected[id_] = replace(expected[id_], provenance=Provenance.ADOPTED)
    assert (undisturbed.loaded, expected) == (loaded, entries)


@settings(max_examples=500)
@given(HISTORY, st.integers(0, 12), SNAPSHOTS, st.booleans())
@example([([read({"one.profile": b"a:x"})], [])], 4, [read({"two.profile": b"a:y"})], True)
@example([([read({"one.profile": b"a:x"})], [])], 4, [read({"two.profile": b"a:y"})], False)
@example(
    [([read({"one.profile": b"a:x"})], []), ([read({"one.profile": b"a,b:y"})], [])],
    5,
    [read({"one.profile": b"a:x"})],
    True,
)
@example(MOVED_AND_BACK, 3, [EMPTIED], True)
@example(MOVED_AND_BACK, 3, [EMPTIED], False)
def test_a_profile_of_an_unfinished_installation_is_removed_eventually(
    history: list[tuple[list[Snapshot], list[tuple[str, str]]]],
    step: int,
    last: list[Snapshot],
    readable: bool,
) -> None:
    """If the agent is killed at any step and the keys change afterwards, no agent-owned profile
    stays on the node.
    """
    node = Node(readable=readable)
    for snapshot, changes in history[:-1]:
        apply_changes(node, changes)
        run_pass(node, snapshot)
    snapshot, changes = history[-1]
    apply_changes(node, changes)
    adopted = adopted_names(node)
    with contextlib.suppress(Killed):
        run_pass(node, snapshot, steps=Steps(fatal=step))
    node.used.clear()
    other = [read({"other.profile": b"other:x"}, origin) for origin in ("dir /p", "dir /q")]
    for snapshot in (last, other, other):
        run_pass(node, snapshot)
        adopted |= adopted_names(node)
    left = {
        name
        for name, content in node.loaded.items()
        if node.objects[name] in node.created and node.last_loaded.get(name) == content
    }
    assert left - adopted <= {"other"}
    assert {name for id_ in node.entries for name in recorded_names(node.entries[id_])} <= {"other"}


def adopted_names(node: Node) -> set[object]:
    """Return the profile names in ledger entries that have an adopted version."""
    return {
        name
        for entry in node.entries.values()
        if entry.provenance == "adopted"
        for name in owned_names(entry)
    }
