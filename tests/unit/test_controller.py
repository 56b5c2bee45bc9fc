"""Specification of agent.controller, on a node in memory beside an API server in memory."""

import contextlib
import queue
import threading

import pytest

from agent import controller
from agent.controller import FIGHT_REPAIRS, LONGEST_SECONDS, Controller
from agent.core import plan
from agent.core.findings import Finding
from agent.core.model import Missing, Pending, SourceKey, Unobservable, Unreadable
from agent.core.ports import Failed
from agent.core.report import Report
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from agent.kube import publisher
from agent.kube.errors import UnreachableError
from agent.kube.node_labels import NodeLabeler, NodeOptions
from agent.kube.publisher import Publisher
from agent.reconciler import Reconciler
from agent.sources import limits
from tests.api_server import BOOT_ID, NAME, ApiServer, WatchedNode
from tests.reports import SET, D, report, row
from tests.world import MemoryKind, Node, Steps

DOWN = UnreachableError("no answer in time")
GRACE = 60.0
RESYNC = 300.0


class Clock:
    """Stands for the module time; it moves by hand."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + 1e9


class CheapKind(MemoryKind):
    """A kind that gives the very same answer while its node did not change."""

    def __init__(self, node):
        super().__init__(node, Steps())
        self.last = None
        self.left = None

    def _state(self):
        return (dict(self.node.loaded), set(self.node.used))

    def observe(self, names, removal_candidates):
        asked = (self._state(), set(names), set(removal_candidates))
        if self.last is None or self.last[0] != asked:
            self.last = (asked, super().observe(names, removal_candidates))
        self.left = self._state()
        return self.last[1]

    def install(self, profile, body, *, replaceable, foreign=()):
        answer = super().install(profile, body, replaceable=replaceable)
        self.left = self._state()
        return answer

    def remove(self, names, evidence, *, require_unused):
        answer = super().remove(names, evidence, require_unused=require_unused)
        self.left = self._state()
        return answer

    def is_unchanged(self):
        return self.left == self._state()

    def invalidate(self):
        self.last = None


class Keys:
    """A source of one set whose keys a test sets: a dictionary, or another snapshot."""

    watched_path = None

    def __init__(self, origin, keys):
        self.origin = origin
        self.keys = keys
        self.forgotten = 0

    def read(self):
        if not isinstance(self.keys, dict):
            return (self.keys,)
        blobs = [
            SourceKey(profile_set=self.origin, key=key, content=text.encode())
            for key, text in sorted(self.keys.items())
        ]
        return (limits.snapshot(self.origin, blobs, []),)

    def invalidate(self):
        self.forgotten += 1

    def explain_absence(self, set_):
        return None


class Ear:
    """Remembers what was told."""

    def __init__(self):
        self.heard = []

    def on_report(self, report, at, *, passed):
        self.heard.append((passed, tuple(one.code for one in report.findings)))


class Reports:
    """Keeps the reports of passes."""

    def __init__(self):
        self.heard = []

    def on_report(self, report, at, *, passed):
        assert passed
        self.heard.append(report)


class RecordingPublisher(Publisher):
    """A publisher that records the reports it publishes."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.posted = []

    def post(self, report):
        self.posted.append(report)
        super().post(report)


class World:
    """A daemon, its node, its sources, its publisher without a thread, and its API server."""

    def __init__(self, clock, path, *, published=True):
        self.clock = clock
        self.path = path
        self.node = Node()
        self.kind = CheapKind(self.node)
        self.keys = Keys(SET, {"web": "web:1", "old": "old:1"})
        self.other = Keys("dir /p", {"third": "third:1"})
        self.wake = controller.WakeQueue()
        self.server = ApiServer()
        self.watch = WatchedNode(self.server)
        self.watch.deliver()
        self.ear = Ear()
        self.nodes = {"pool": "a"}
        self.pods = None
        own = NodeLabeler(self.server, NodeOptions(name=NAME, domain=D), lambda: BOOT_ID)
        self.publisher = RecordingPublisher(
            own, self.server, store=self.watch, on_change=lambda: self.wake.put("labels")
        )
        (path / "state").mkdir()
        self.daemon = Controller(
            Reconciler(
                sources=[self.keys, self.other],
                backends={"apparmor": self.kind},
                ledger=FileLedger(Host(str(path)), "/state"),
                options=plan.PlanOptions(grace_seconds=GRACE),
            ),
            wake=self.wake,
            resync=RESYNC,
            teller=self.publisher if published else None,
            domain=D,
            nodes=lambda: self.nodes,
            pods=lambda: self.pods,
            audience=[self.ear],
        )

    def turn(self):
        """Make one pass, and let everything be published and arrive."""
        found = self.daemon.step()
        self.publish()
        return found

    def publish(self):
        self.publisher.step()
        self.watch.deliver()

    def labels(self):
        return {key.partition("/")[2] for key in self.server.labels if key.startswith("apparmor.")}

    def loaded(self):
        return set(self.node.loaded)

    def words(self):
        found = []
        while not self.wake.empty():
            found.append(self.wake.get())
        return found


@pytest.fixture
def clock(monkeypatch):
    """Give the time of daemon and publisher."""
    clock = Clock()
    monkeypatch.setattr(controller, "time", clock)
    monkeypatch.setattr(publisher, "time", clock)
    return clock


@pytest.fixture
def world(clock, tmp_path):
    """Give a daemon that has put and labelled three profiles."""
    world = World(clock, tmp_path)
    for _ in range(4):
        world.turn()
    assert world.labels() == world.loaded() == {"web", "old", "third"}
    world.words()
    world.ear.heard.clear()
    return world


def why(world, name="old"):
    return next(one.reason for one in world.daemon.report.profiles if one.name == name)


# --- removals that wait for their label -----------------------------------------------------------


def test_a_removal_is_label_off_then_grace_then_removal(world, clock):
    """In this order; the last pass comes by itself when the grace is over."""
    del world.keys.keys["old"]
    world.daemon.step()
    assert (world.labels(), world.loaded()) == ({"web", "old", "third"},) * 2
    assert why(world) == "label_pending"
    world.publish()
    assert world.labels() == {"web", "third"}
    assert [world.daemon._concerns(word) for word in world.words()] == [True]
    world.turn()
    assert world.daemon._next_pass == clock.now + GRACE
    clock.now += GRACE - 1.0
    world.turn()
    assert (why(world), world.loaded()) == ("label_pending", {"web", "old", "third"})
    clock.now = world.daemon._next_pass
    world.turn()
    assert world.loaded() == {"web", "third"}
    assert world.node.removed == ["old"]


def test_a_removal_is_done_when_it_is_due_whatever_the_clock_says(world, clock):
    """A sum of two times, less the one, may be less than the other."""
    del world.keys.keys["old"]
    clock.now = 1000.004
    world.daemon._next_full_resync = 1e9
    assert (clock.now + GRACE) - clock.now < GRACE
    world.turn()
    world.turn()
    clock.now = world.daemon._next_pass
    world.turn()
    assert world.loaded() == {"web", "third"}


def test_while_its_label_cannot_be_taken_off_nothing_is_removed(world, clock):
    """However long the API server is away."""
    del world.keys.keys["old"]
    for _ in range(5):
        world.server.errors = [DOWN]
        world.turn()
        clock.now += 10 * GRACE
    assert (world.labels(), world.loaded()) == ({"web", "old", "third"},) * 2


def test_an_answer_that_was_lost_is_no_confirmation(world, clock):
    """A new profile is taken back while its label may be on, and the watch is silent."""
    world.keys.keys["new"] = "new:1"
    world.daemon.step()
    world.server.lost = [DOWN]
    world.publisher.step()
    assert "new" in world.labels()
    del world.keys.keys["new"]
    for _ in range(3):
        world.server.errors = [DOWN]
        world.daemon.step()
        world.publisher.step()
        clock.now += 10 * GRACE
    assert {"new"} <= world.loaded() & world.labels()


def test_what_was_confirmed_stays_so_while_the_api_server_is_away(world, clock):
    """The grace goes on, and so does the removal."""
    del world.keys.keys["old"]
    world.turn()
    world.daemon.step()
    world.watch.fail()
    clock.now += GRACE
    world.daemon.step()
    assert (world.publisher.labels_on_node(), world.loaded()) == (None, {"web", "third"})


def test_what_was_never_confirmed_is_not_while_the_api_server_is_away(world, clock):
    """Not knowing is not the same as off."""
    world.watch.fail()
    del world.keys.keys["old"]
    for _ in range(4):
        world.daemon.step()
        clock.now += 10 * GRACE
    assert world.loaded() == {"web", "old", "third"}


def test_a_label_that_comes_back_begins_the_grace_anew(world, clock):
    """Whoever put it there, a pod may be on its way."""
    del world.keys.keys["old"]
    world.turn()
    world.daemon.step()
    clock.now += GRACE - 1.0
    world.server.set_label(f"apparmor.{D}/old", "enforce", "profile-loader")
    world.watch.deliver()
    assert world.daemon._concerns("labels") is True
    world.daemon.step()
    world.publish()
    world.daemon.step()
    clock.now += 2.0
    world.turn()
    assert (world.labels(), world.loaded()) == ({"web", "third"}, {"web", "old", "third"})
    clock.now += GRACE
    world.turn()
    assert world.loaded() == {"web", "third"}


def test_a_name_that_is_desired_again_is_labelled_again_and_waits_anew(world, clock):
    """What was confirmed before is forgotten."""
    del world.keys.keys["old"]
    world.turn()
    world.daemon.step()
    world.keys.keys["old"] = "old:1"
    world.turn()
    assert "old" in world.labels()
    clock.now += GRACE
    del world.keys.keys["old"]
    world.daemon.step()
    assert why(world) == "label_pending"
    world.publish()
    world.daemon.step()
    assert world.loaded() == {"web", "old", "third"}


def test_a_name_in_use_loses_its_label_at_once_and_stays(world, clock):
    """The scheduler sends no more pods; the running ones keep their profile."""
    world.node.used = {"old"}
    del world.keys.keys["old"]
    for _ in range(3):
        world.turn()
        clock.now += GRACE
    assert (world.labels(), world.loaded()) == ({"web", "third"}, {"web", "old", "third"})
    world.node.used = set()
    world.turn()
    assert world.loaded() == {"web", "third"}


def test_a_label_that_went_does_not_come_back_because_some_source_is_away(world, clock):
    """Labels do not flap: what is on stays on, what is off stays off."""
    world.node.used = {"old"}
    del world.keys.keys["old"]
    world.turn()
    world.turn()
    world.other.keys = Unreadable(profile_set="dir /p", reason="no permission")
    clock.now += GRACE
    world.turn()
    world.node.used = set()
    clock.now += GRACE
    world.turn()
    assert (world.labels(), world.loaded()) == ({"web", "third"}, {"web", "old", "third"})


def test_a_label_on_its_way_off_stays_when_a_source_goes_away_first(world):
    """It may be desired there."""
    del world.keys.keys["old"]
    world.daemon.step()
    world.other.keys = Unreadable(profile_set="dir /p", reason="no permission")
    world.turn()
    assert world.labels() == {"web", "old", "third"}


@pytest.mark.parametrize(
    "gone", [Missing(profile_set=SET, reason="gone"), Unreadable(profile_set=SET, reason="403"), {}]
)
def test_a_source_that_is_away_takes_no_label_and_no_profile(world, clock, gone):
    """Missing, unreadable and emptied alike."""
    world.keys.keys = gone
    world.server.requests()
    for _ in range(3):
        world.turn()
        clock.now += GRACE
    assert world.labels() == world.loaded() == {"web", "old", "third"}
    assert world.server.requests() == []


def test_without_a_teller_a_removal_waits_for_the_grace_alone(clock, tmp_path):
    """No label names it; but what is being started may still ask for it."""
    world = World(clock, tmp_path, published=False)
    world.daemon.step()
    del world.keys.keys["old"]
    world.daemon.step()
    assert (why(world), world.loaded()) == ("label_pending", {"web", "old", "third"})
    assert world.daemon._next_pass == clock.now + GRACE
    clock.now = world.daemon._next_pass
    world.daemon.step()
    assert world.loaded() == {"web", "third"}


def test_a_pod_that_names_a_profile_holds_it(world, clock):
    """Asked anew in each pass."""
    world.pods = {("apparmor", "old"): ("ns/pod",)}
    del world.keys.keys["old"]
    for _ in range(3):
        world.turn()
        clock.now += GRACE
    assert "old" in world.loaded()
    world.pods = {}
    world.turn()
    assert "old" not in world.loaded()


# --- which words call for a pass ------------------------------------------------------------------


def test_a_change_of_the_nodes_other_labels_calls_for_a_pass(world):
    """Heartbeats and our own labels do not."""
    assert world.daemon._concerns("node") is False
    world.nodes = {"pool": "b"}
    assert world.daemon._concerns("node") is True
    world.daemon.step()
    assert world.daemon._concerns("node") is False


def test_pods_call_for_a_pass_while_a_removal_waits(world):
    """Otherwise nobody asks about them."""
    assert world.daemon._concerns("pods") is False
    world.keys.keys = Unreadable(profile_set=SET, reason="403")
    world.turn()
    assert world.daemon._concerns("pods") is False
    world.keys.keys = {"web": "web:1"}
    world.turn()
    assert world.daemon._concerns("pods") is True


@pytest.mark.parametrize("word", ["kernel", "files"])
def test_the_agents_own_writes_call_for_no_pass(world, word):
    """Only a node that is not as the last pass left it does."""
    assert world.daemon._concerns(word) is False
    del world.node.loaded["web"]
    assert world.daemon._concerns(word) is True
    world.turn()
    assert "web" in world.loaded()
    assert world.daemon._concerns(word) is False


def test_any_other_word_calls_for_a_pass(world):
    """When in doubt, look."""
    assert [world.daemon._concerns(word) for word in ("source", "new word")] == [True, True]


def test_labels_of_one_removal_for_those_of_another_call_for_a_pass(world):
    """As many wait as before, but not the same."""
    world.node.used = {"web"}
    world.keys.keys = {"stays": "stays:1"}
    world.turn()
    world.daemon.step()
    assert set(world.daemon._label_absent_since) == {("apparmor", "web"), ("apparmor", "old")}
    key = f"apparmor.{D}/old"
    world.server.set_label(key, "enforce", "profile-loader")
    world.watch.deliver()
    assert world.daemon._concerns("labels") is True
    world.server.drop_label(key)
    world.server.set_label(f"apparmor.{D}/web", "enforce", "profile-loader")
    world.watch.deliver()
    assert world.daemon._concerns("labels") is True


def test_a_label_that_went_while_nobody_knew_counts_once_it_is_known(world):
    """The publisher's own word came before: while the copy was in doubt it said nothing."""
    world.watch.fail()
    del world.keys.keys["old"]
    world.daemon.step()
    world.publisher.step()
    assert (world.labels(), world.publisher.labels_on_node()) == ({"web", "third"}, None)
    assert [world.daemon._concerns(word) for word in world.words()] == []
    world.watch.deliver()
    assert (world.daemon._concerns("node"), world.daemon._concerns("node")) == (True, False)
    assert world.daemon._label_absent_since.keys() == {("apparmor", "old")}


def test_a_wait_ends_by_a_word_that_concerns_and_swallows_the_storm(world):
    """Many reasons at once are one reason; the others go on waiting."""
    for word in ("node", "files", "source", "source", "source"):
        world.wake.put(word)
    world.daemon._wait()
    assert (world.words(), world.clock.now) == ([], 1000.0)


def test_many_equal_words_are_one_reason_to_look(world, monkeypatch):
    """What a pass wrote itself is looked at once, however many words it left, before the news."""
    looks = []
    monkeypatch.setattr(world.kind, "is_unchanged", lambda: looks.append(1) or True)
    world.daemon._next_check = world.clock.now + 10.0
    for word in ("files", "kernel", *["files"] * 30, "source"):
        world.wake.put(word)
    world.daemon._wait()
    assert (len(looks), world.words()) == (2, [])


def test_a_wait_ends_when_it_is_time(world):
    """At once where it was time before."""
    world.clock.now = world.daemon._next_pass
    world.wake.put("source")
    world.daemon._wait()
    assert world.words() == ["source"]


def waits(world):
    """Let a wait begin whose end is 35 seconds away, and no word come; return how long it took."""
    begin = world.clock.now
    world.daemon._next_pass = begin + 35.0
    world.daemon.wake = Timed(world.clock)
    world.daemon._wait()
    return world.clock.now - begin


def test_a_change_of_the_node_without_a_word_calls_for_a_pass(world):
    """A wake-up may get lost: the node is looked at every ten seconds."""
    world.daemon._next_check = world.clock.now + 10.0
    del world.node.loaded["web"]
    assert waits(world) == 10.0
    world.turn()
    assert "web" in world.loaded()
    assert waits(world) == 35.0


def test_a_pass_that_could_not_look_is_not_called_for_by_the_node(world, monkeypatch):
    """What cannot be looked at is never untouched; it is tried again less and less often."""
    finding = Finding(code="kind_unobservable", location="/sys", message="no")
    monkeypatch.setattr(
        world.kind, "observe", lambda names, removal_candidates: Unobservable(finding=finding)
    )
    monkeypatch.setattr(world.kind, "is_unchanged", lambda: False)
    world.turn()
    assert waits(world) == 35.0


class Timed:
    """A queue that gives its words, and then keeps silent for as long as it is asked to wait."""

    def __init__(self, clock, words=(), seconds=0.0):
        self.clock, self.seconds = clock, seconds
        self.words = list(words)
        self.waited = []

    def get(self, timeout):
        if self.words:
            self.clock.now += self.seconds
            return self.words.pop(0)
        self.waited.append(timeout)
        self.clock.now += timeout
        raise queue.Empty

    def qsize(self):
        return 0  # its words come one after the other, none waits


def test_a_long_wait_beats_all_the_while(world, clock):
    """Liveness does not depend on anything happening."""
    world.daemon._next_pass = clock.now + 70.0
    world.daemon.wake = Timed(clock)
    world.daemon._wait()
    assert world.daemon.wake.waited == [10.0] * 7
    assert world.daemon.last_heartbeat == clock.now


def test_a_storm_that_does_not_end_is_answered_all_the_same(world, clock):
    """After a quarter of a second at the latest."""
    world.daemon.wake = Timed(clock, ["source"] * 1000, seconds=0.05)
    begin = clock.now
    world.daemon._wait()
    assert clock.now - begin <= 2 * controller.STORM_SECONDS


def test_the_first_loss_of_policy_is_answered_at_once(world, clock):
    """No container that names a profile starts until it is back."""
    world.turn()
    clock.now += controller.STORM_SECONDS
    world.daemon._glance()  # what looks by itself has just looked
    world.daemon.wake = Timed(clock, ["kernel"])
    world.node.loaded.clear()
    begin = clock.now
    world.daemon._wait()
    assert (clock.now - begin, world.daemon.wake.waited) == (0.0, [])


@pytest.mark.parametrize(("after", "words"), [(0.1, ["kernel"]), (1.0, ["source", "kernel"])])
def test_what_may_be_one_of_a_storm_is_waited_for(world, clock, after, words):
    """A pass soon after another, or of a source whose files come one by one, waits for silence."""
    world.turn()
    clock.now += after
    world.daemon._glance()
    world.daemon.wake = Timed(clock, words)
    world.node.loaded.clear()
    world.daemon._wait()
    assert world.daemon.wake.waited == [controller.QUIET_SECONDS]


# --- news and the loop ----------------------------------------------------------------------------


def test_news_of_the_teller_are_told_once_without_a_pass(world):
    """A problem that begins, and the end of it."""
    world.daemon.step()
    world.ear.heard.clear()
    world.publisher.findings = (Finding(code="node_unreachable", location="n", message="x"),)
    assert [world.daemon._concerns("labels") for _ in range(3)] == [False] * 3
    assert world.ear.heard == [(False, ("node_unreachable",))]
    assert [one.code for one in world.daemon.report.findings] == ["node_unreachable"]
    world.publisher.findings = ()
    assert world.daemon._concerns("labels") is False
    assert world.ear.heard[1:] == [(False, ())]
    world.daemon.step()
    assert world.ear.heard[2:] == [(True, ())]


def test_before_the_first_pass_there_are_no_news(clock, tmp_path):
    """There is no report to which they could be added."""
    world = World(clock, tmp_path)
    world.publisher.findings = (Finding(code="node_unreachable", location="n", message="x"),)
    assert world.daemon._concerns("labels") is False
    world.daemon._tell(passed=False)
    assert world.ear.heard == []


def test_a_pass_over_an_unchanged_node_posts_nothing(world):
    """And so the API server is asked for nothing."""
    world.turn()
    world.server.requests()
    posted = len(world.publisher.posted)
    for _ in range(3):
        world.turn()
    assert len(world.publisher.posted) == posted
    assert world.server.requests() == []


def test_a_report_without_changes_is_told_all_the_same(world):
    """Liveness and metrics want to know that a pass ended."""
    world.daemon.step()
    assert [passed for passed, _ in world.ear.heard] == [True]


def test_everything_is_looked_at_anew_every_resync(world, clock):
    """Before its time, so that nodes do not all come at once; cheap signs stand in between."""
    full = []
    run = world.daemon.reconciler.run
    world.daemon.reconciler.run = lambda *, full: seen(full) or run(full=full)

    def seen(one):
        full.append(one)

    world.turn()
    assert full == [False]
    assert 0.9 * RESYNC <= world.daemon._next_full_resync - 1000.0 <= RESYNC
    assert world.daemon._next_pass == world.daemon._next_full_resync
    before = world.keys.forgotten
    clock.now = world.daemon._next_pass
    world.turn()
    assert full == [False, True]
    assert world.keys.forgotten == before + 1
    assert world.daemon._next_full_resync - clock.now >= 0.9 * RESYNC


def test_a_requested_full_pass_is_made_once_even_if_its_word_is_lost(world):
    """SIGHUP requests it; the next pass trusts no signature, the one after that does again."""
    world.turn()
    before = world.keys.forgotten
    world.daemon.request_full_pass()
    world.daemon.wake.get()
    world.turn()
    world.turn()
    assert world.keys.forgotten == before + 1


def test_what_failed_is_tried_again_less_and_less_often(world, clock):
    """Up to the resync, and from the beginning after a success."""
    fail = world.kind.install
    finding = Finding(code="write_failed", location="new", message="no")
    world.kind.install = lambda *_, **__: Failed(finding=finding)
    world.keys.keys["new"] = "new:1"
    waits = []
    for _ in range(4):
        world.daemon._next_full_resync = clock.now + RESYNC
        world.daemon.step()
        waits.append(world.daemon._next_pass - clock.now)
        clock.now = world.daemon._next_pass
    assert waits == [2.0, 4.0, 8.0, 16.0]
    world.kind.install = fail
    world.turn()
    assert (world.daemon._failures, "new" in world.loaded()) == (0, True)


def test_another_failure_is_tried_again_soon_however_long_the_first_lasts(world, clock):
    """A source that is away for hours does not make a full disk wait for the resync."""
    world.other.keys = Unreadable(profile_set="dir /p", reason="no")
    for _ in range(9):
        world.daemon._next_full_resync = clock.now + RESYNC
        world.daemon.step()
    assert world.daemon._next_pass == world.daemon._next_full_resync
    finding = Finding(code="write_failed", location="new", message="no")
    world.kind.install = lambda *_, **__: Failed(finding=finding)
    world.keys.keys["new"] = "new:1"
    world.daemon.step()
    assert world.daemon._next_pass - clock.now == 2.0


def test_a_ledger_that_cannot_be_read_is_tried_again_soon(world, clock, monkeypatch):
    """Nothing says that it can be read again, such as a free descriptor."""
    finding = Finding(code="kind_unobservable", location="/state", message="no")
    monkeypatch.setattr(world.daemon.reconciler.ledger, "entries", lambda: finding)
    for source in (world.keys, world.other):
        source.keys = Missing(profile_set=source.origin, reason="no")
    report = world.daemon.step()
    assert (report.profiles, world.daemon._next_pass - clock.now) == ((), 2.0)


def test_a_damaged_entry_that_was_replaced_is_told_for_seconds_only(world, clock):
    """The pass that tells of it tracks the profile anew; the next, soon after, finds it whole."""
    for path in sorted((world.path / "state/entries").iterdir())[:1]:
        path.write_bytes(b"{")
    report = world.daemon.step()
    assert [one.code for one in report.findings] == ["ledger_damaged"]
    assert world.daemon._next_pass - clock.now == 2.0
    assert world.daemon.step().findings == ()
    assert (world.daemon._failures, world.loaded()) == (0, {"web", "old", "third"})


def fight(world, seconds):
    """Let somebody undo every repair at once; return how many there were."""
    passes, end = 0, world.clock.now + seconds
    while world.clock.now < end:
        world.node.loaded["web"] = b"somebody else's"
        if not world.daemon._concerns("kernel"):
            world.clock.now = world.daemon._next_pass
        world.turn()
        passes += 1
    return passes


def test_a_fight_over_a_profile_is_told_and_waited_out(world, clock):
    """Repairs go on, later and later; the fight is over when nothing happened for a while."""
    for _ in range(FIGHT_REPAIRS):
        world.node.loaded["web"] = b"somebody else's"
        assert world.daemon._concerns("kernel") is True
        world.turn()
        assert world.node.loaded["web"] == b"compiled web:1"
    world.node.loaded["web"] = b"somebody else's"
    assert world.daemon._concerns("kernel") is False
    assert world.daemon._next_pass == world.daemon._repairs_paused_until == clock.now + 1.0
    fight(world, 10.0)
    told = [one for one in world.daemon.report.findings if one.code == "drift_fought"]
    assert [one.location for one in told] == ["web"]
    assert fight(world, 600.0) < 10 * FIGHT_REPAIRS
    for _ in range(2):
        clock.now += controller.FIGHT_SECONDS + LONGEST_SECONDS
        world.turn()
    assert world.daemon.report.findings == ()
    world.node.loaded["web"] = b"somebody else's"
    assert world.daemon._concerns("kernel") is True


def test_a_fight_over_very_many_profiles_is_seen_too(world, clock):
    """Each name is counted by itself, however many are undone at once."""
    rows = [
        row(name=f"p{number}", action="restore", reason="went missing") for number in range(1500)
    ]
    for _ in range(FIGHT_REPAIRS):
        world.daemon._fought(report(*rows))
    assert len(world.daemon._fights()) == 1500
    assert world.daemon._repairs_paused_until == clock.now + 1.0
    clock.now += controller.FIGHT_SECONDS
    assert (world.daemon._fights(), world.daemon._repairs) == ((), {})


def test_a_fight_that_ended_is_told_no_longer_than_its_window(world, clock):
    """A pass comes by itself when it is over, long before the resync, and tells that."""
    world.daemon._next_full_resync = clock.now + RESYNC
    began = clock.now
    for _ in range(FIGHT_REPAIRS):
        world.node.loaded["web"] = b"somebody else's"
        world.turn()
    clock.now = world.daemon._next_pass
    world.turn()
    assert [one.code for one in world.daemon.report.findings] == ["drift_fought"]
    assert world.daemon._next_pass == began + controller.FIGHT_SECONDS
    world.words()
    world.ear.heard.clear()
    clock.now = world.daemon._next_pass
    world.turn()
    assert world.ear.heard == [(True, ())]
    assert (world.daemon.report.converged, world.daemon._next_pass) == (
        True,
        world.daemon._next_full_resync,
    )


def stay(world, clock):
    """Withdraw a profile that somebody uses, and let its grace time pass."""
    del world.keys.keys["old"]
    world.node.used.add("old")
    world.turn()
    world.turn()
    clock.now += GRACE
    world.turn()


class Lost:
    """Remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.found = ()
        self.confined = frozenset()

    def names_in_use(self):
        return self.confined

    def observe(self, names):
        self.asked.append(("look", tuple(names)))

    def record_removals(self, names):
        self.asked.append(("removed", tuple(names)))

    def findings(self):
        return self.found


def test_who_lost_confinement_is_looked_for_before_who_has_it_now(world):
    """With what the pass found missing; what stays though nobody desires it is looked at too."""
    lost = world.daemon.confinement = Lost()
    lost.found = (Finding(code="confinement_lost", location="web", message="x"),)
    del world.node.loaded["web"]
    del world.keys.keys["old"]
    world.turn()
    assert lost.asked == [("removed", ("web",)), ("look", ("old", "third", "web"))]
    assert [one.code for one in world.daemon.report.findings] == ["confinement_lost"]
    assert "confinement_lost" in [one.code for one in world.publisher.posted[-1].findings]


def test_over_an_unchanged_node_processes_are_looked_at_every_resync_alone(world, clock):
    """To look is to read every process of the node."""
    lost = world.daemon.confinement = Lost()
    world.turn()
    assert lost.asked == []
    clock.now = world.daemon._next_full_resync
    world.turn()
    assert lost.asked == [("removed", ()), ("look", ("old", "third", "web"))]


def test_while_it_waits_processes_are_looked_at_every_ten_seconds(world, clock):
    """However many words come that call for no pass; who ended is told without one."""
    lost = world.daemon.confinement = Lost()
    lost.found = (Finding(code="confinement_lost", location="web", message="x"),)
    world.daemon._next_full_resync = clock.now
    world.turn()
    lost.asked.clear()
    world.words()
    world.ear.heard.clear()
    world.daemon._next_pass = clock.now + 35.0
    world.daemon.wake = Timed(clock, ["pods"] * 7, seconds=2.0)
    lost.found = ()
    world.daemon._wait()
    assert lost.asked == [("look", ("old", "third", "web"))] * 3
    assert world.ear.heard == [(False, ())]


def test_what_stayed_for_its_processes_goes_soon_after_them(world, clock):
    """One pass for it, whether or not it may go then; no resync has to come."""
    lost = world.daemon.confinement = Lost()
    lost.confined = frozenset({"old"})
    stay(world, clock)
    assert why(world) == "in_use"

    def glances():
        clock.now = world.daemon._next_check
        return world.daemon._glance()

    assert not glances()
    lost.confined = frozenset()
    assert [glances(), glances()] == [True, False]
    world.node.used.clear()
    world.turn()
    assert world.loaded() == {"web", "third"}


def test_nobody_is_looked_at_between_a_change_and_its_repair(world, clock):
    """Who lost confinement would be forgotten while a repair waits, as in a fight."""
    lost = world.daemon.confinement = Lost()
    world.daemon._next_full_resync = clock.now
    world.turn()
    lost.asked.clear()
    del world.node.loaded["web"]
    world.daemon._next_pass = world.daemon._repairs_paused_until = clock.now + 35.0
    world.daemon.wake = Timed(clock)
    world.daemon._wait()
    assert lost.asked == []
    assert clock.now == world.daemon._next_pass


@pytest.mark.parametrize(
    "changed",
    [
        {"action": "replace", "reason": "changed"},
        {"action": "install", "reason": "new"},
        {"action": "restore", "reason": "went missing", "state": "failed"},
        {"action": "hold", "reason": "drifted"},
    ],
)
def test_updates_and_failures_are_no_fight(world, changed):
    """Only a repair that succeeded and did not last is."""
    for _ in range(2 * FIGHT_REPAIRS):
        world.daemon._fought(report(row(**changed)))
    assert world.daemon._fights() == ()


def test_the_first_pass_waits_for_the_first_answers(world):
    """Every word is a reason to ask again; the end of patience is one to go on."""
    answers = [False, False, True]
    world.daemon.ready = lambda: answers.pop(0)
    world.wake.put("source")
    world.wake.put("source")
    world.wake.put("source")
    world.daemon._first()
    assert (answers, world.words()) == ([], ["source"])


def test_the_first_pass_waits_no_longer_than_its_patience(world, monkeypatch):
    """An API server that is away delays no restoring."""
    monkeypatch.setattr(controller, "PATIENCE_SECONDS", 0.01)
    world.daemon.ready = lambda: False
    world.daemon._first()
    assert world.clock.now == 1000.0


def test_the_beat_goes_on_within_a_pass(world, clock):
    """A long pass is no hanging one."""
    clock.now += 5.0
    world.daemon.reconciler.pulse()
    assert world.daemon.last_heartbeat == clock.now


def test_it_runs_until_its_process_ends(world):
    """First the sources, then a pass, then waiting, and so on."""

    class Ended(BaseException):
        pass

    def on_report(found, at, *, passed):
        assert isinstance(found, Report)
        passes.append(at)
        if len(passes) == 3:
            raise Ended
        world.wake.put("source")

    passes = []
    world.ear.on_report = on_report
    with pytest.raises(Ended):
        world.daemon.run()
    assert len(passes) == 3


# --- while keys are being checked -----------------------------------------------------------------


class SlowKind(CheapKind):
    """A kind whose checks of the texts in `slow` go on in the background."""

    slow: frozenset = frozenset()

    def inspect(self, blob):
        found = super().inspect(blob)
        if blob.content.decode() in self.slow:
            return Pending(id=found.id, source=blob.content)
        return found


@pytest.fixture
def slow(world):
    """Return a world with a new key that is still being checked, after one pass."""
    world.kind.__class__ = SlowKind
    world.kind.slow = frozenset({"new:1"})
    world.keys.keys["new"] = "new:1"
    world.turn()
    return world


def actions(report):
    return {row.name or row.key: (row.state, row.action, row.reason) for row in report.profiles}


KEPT = ("installed", "keep", "unchanged")


def test_a_slow_check_delays_nothing_else(slow):
    """Lost profiles return and other new keys are installed while one key is pending."""
    slow.keys.keys["fast"] = "fast:1"
    del slow.node.loaded["web"]
    slow.turn()
    assert actions(slow.daemon.report) == {
        "web": ("installed", "restore", "went missing"),
        "old": KEPT,
        "third": KEPT,
        "fast": ("installed", "install", "new"),
        "new": ("pending", "hold", "pending"),
    }
    assert slow.loaded() == {"web", "old", "third", "fast"}


def test_a_node_with_a_pending_key_is_not_converged(slow):
    """Nothing may rely on a profile that is not there yet."""
    assert (slow.daemon.report.pending, slow.daemon.report.converged) == (1, False)


def test_the_pass_after_the_check_installs_the_profile(slow):
    """The end of a check is one more reason for a pass."""
    slow.kind.slow = frozenset()
    assert slow.daemon._concerns("compiled")
    slow.turn()
    assert actions(slow.daemon.report)["new"] == ("installed", "install", "new")
    assert slow.daemon.report.converged


def test_the_last_good_version_stays_while_its_update_is_checked(slow):
    """The last good version is restored, too, if the node loses it."""
    slow.kind.slow = frozenset({"new:1", "web:2"})
    slow.keys.keys["web"] = "web:2"
    slow.turn()
    assert actions(slow.daemon.report)["web"] == ("outdated", "hold", "pending")
    del slow.node.loaded["web"]
    slow.turn()
    assert actions(slow.daemon.report)["web"] == ("outdated", "restore", "went missing")
    assert slow.node.loaded["web"] == b"compiled web:1"


def test_no_name_is_removed_while_a_key_is_pending(slow, clock):
    """The pending key may be the profile under a new key."""
    del slow.keys.keys["old"]
    slow.node.removed.clear()
    for _ in range(3):
        slow.turn()
        clock.now += GRACE
    assert actions(slow.daemon.report)["old"] == ("held", "hold", "pending")
    slow.kind.slow = frozenset()
    for _ in range(3):
        slow.turn()
        clock.now += GRACE
    assert slow.node.removed == ["old"]


def test_a_name_that_a_pending_key_may_declare_waits_for_it(slow):
    """If two keys declare one name, neither may win by being checked first."""
    slow.kind.slow = frozenset({"new,b:1"})
    slow.keys.keys |= {"new": "new,b:1", "other": "b:2"}
    slow.turn()
    assert actions(slow.daemon.report)["b"] == ("pending", "hold", "pending")
    slow.kind.slow = frozenset()
    slow.turn()
    states = {row.key: row.state for row in slow.daemon.report.profiles}
    assert (states["new"], states["other"]) == ("rejected", "rejected")
    assert "b" not in slow.node.loaded


def test_a_pass_over_a_pending_key_is_not_the_last_word(slow):
    """A node where a check goes on is looked at again by every pass."""
    first = slow.daemon.reconciler.run(full=False)
    second = slow.daemon.reconciler.run(full=False)
    assert first is not second


def test_a_removal_that_fell_due_while_a_pass_ran_is_done_at_once(world, clock):
    """No resync has to come for it."""
    del world.keys.keys["old"]
    world.daemon._next_full_resync = 1e9
    world.turn()
    world.turn()
    clock.now = world.daemon._next_pass - 1.0
    world.keys.keys["web"] = "web:2"
    put = world.kind.install

    def slowly(profile, body, *, replaceable, foreign=()):
        clock.now += 30.0
        return put(profile, body, replaceable=replaceable, foreign=foreign)

    world.kind.install = slowly
    world.turn()
    assert world.daemon._next_pass < clock.now
    world.turn()
    assert world.loaded() == {"web", "third"}


def test_who_loses_what_is_held_for_it_is_looked_for_too(world, clock):
    """Whoever removed it by hand unconfined the process that it stayed for."""
    lost = world.daemon.confinement = Lost()
    stay(world, clock)
    assert (why(world), lost.asked[-1]) == ("in_use", ("look", ("old", "third", "web")))
    lost.asked.clear()
    del world.node.loaded["old"]
    world.turn()
    assert lost.asked == [("removed", ("old",)), ("look", ("third", "web"))]


def test_threads_that_the_agents_own_removal_unconfined_are_looked_for(world, clock):
    """The proof of disuse may have been deceived."""
    lost = world.daemon.confinement = Lost()
    del world.keys.keys["old"]
    world.turn()
    world.turn()
    clock.now += GRACE
    lost.asked.clear()
    world.turn()
    assert "old" not in world.node.loaded
    assert lost.asked == [("removed", ("old",)), ("look", ("third", "web"))]


def test_a_wait_for_words_ends_though_one_came_right_before():
    """However short it is: a queue that then waits for ever is a daemon that does nothing more."""

    def wait():
        words = controller.WakeQueue()
        for _ in range(60_000):  # SimpleQueue of CPython 3.11: 4,000 to 60,000 until it hangs
            words.put("files")
            words.get()
            with contextlib.suppress(queue.Empty):
                words.get(timeout=2e-6)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(600)
    assert not waiting.is_alive()
