"""Specification of agent.kube.publisher: called directly, without its thread."""

from collections import deque

import pytest

from agent.core.findings import Finding
from agent.core.report import ProfileSetStatus
from agent.kube import events, publisher
from agent.kube.errors import StatusError, UnreachableError
from agent.kube.node_labels import NodeLabeler, Options
from agent.kube.publisher import FIRST_SECONDS, LAST_SECONDS, Publisher
from tests.api_server import BOOT_ID, NAME, ApiServer, Watched
from tests.reports import SET, D, report, row

A, B = f"seccomp.{D}/a.json", f"seccomp.{D}/b.json"
READY = f"set.{D}/ns__web"
DOWN = UnreachableError("no answer in time")
BAD = (Finding(code="not_json", location="line 1", message="it is no JSON"),)


class Clock:
    """Stands for the module time; it moves by hand."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


class World:
    """A publisher, the API server it tells, and what it said."""

    def __init__(self, clock, server=None, **options):
        self.clock = clock
        self.server = server or ApiServer()
        self.node = Watched(self.server)
        self.changes = []
        self.lost = 0
        own = NodeLabeler(self.server, Options(name=NAME, domain=D, **options), lambda: BOOT_ID)
        self.told = Publisher(
            own,
            self.server,
            copy=self.node,
            changed=lambda: self.changes.append(self.told.labels_on_node()),
            dropped=self._dropped,
        )

    def _dropped(self, number):
        self.lost += number

    def codes(self):
        return [one.code for one in self.told.findings]

    def settle(self):
        """Step as long as the thread would without waiting."""
        for _ in range(100):
            if not self.told._due():
                return
            self.told._dirty = False
            self.told.step()
            self.node.deliver()
        raise AssertionError("it never rests")


@pytest.fixture
def clock(monkeypatch):
    """Give the publisher's time."""
    clock = Clock()
    monkeypatch.setattr(publisher, "time", clock)
    return clock


@pytest.fixture
def world(clock):
    """Give a publisher whose Node was read."""
    world = World(clock)
    world.node.deliver()
    return world


def labelled(world, *rows, **more):
    world.told.post(report(*rows, **more))
    world.settle()


def test_what_a_report_earns_is_put_on_the_node(world):
    """And is known to be on; a second report of the same asks for nothing."""
    labelled(world, row())
    assert world.server.labels == {A: "installed", READY: "ready"}
    assert world.told.labels_on_node() == {A, READY}
    assert world.told.labels() == {A: "installed", READY: "ready"}
    world.server.requests()
    labelled(world, row())
    assert (world.server.requests(), world.told.findings) == ([], ())


def test_before_the_first_report_nothing_is_asked(world):
    """A restart takes no label off before it has looked."""
    world.server.set_label(A, "installed", "profile-loader")
    world.node.deliver()
    world.told.poke()
    world.settle()
    assert (world.server.requests(), world.server.labels) == ([], {A: "installed"})


def test_before_the_node_was_read_nothing_is_known(clock):
    """Neither which labels are on, nor which Node it is."""
    world = World(clock)
    world.told.post(report(row()))
    world.told.step()
    assert (world.told.labels_on_node(), world.told.labels(), world.codes()) == (
        None,
        {},
        ["node_unreachable"],
    )
    assert "not read yet" in world.told.findings[0].message
    assert world.server.requests() == []


def test_a_node_that_does_not_exist_is_told_as_such(clock):
    """It is no failure of the API server, and nothing is created."""
    world = World(clock)
    world.server.node = None
    world.node.deliver()
    world.told.post(report(row()))
    world.told.step()
    assert (world.told.labels_on_node(), world.codes(), world.server.requests()) == (
        None,
        ["node_unknown"],
        [],
    )


def test_an_unread_node_without_a_reason_is_told_too(world):
    """A copy that was never asked for has no reason yet."""
    world.node.copy = type(world.node.copy)(objects=None)
    world.told.post(report(row()))
    world.told.step()
    assert "the Node was not read yet" in world.told.findings[0].message


def test_a_label_counts_as_on_until_the_api_server_has_confirmed_it_gone(world):
    """Neither the wish nor a failed request takes it off."""
    labelled(world, row(), row("b.json"))
    world.told.post(report(row()))
    assert world.told.labels_on_node() == {A, B, READY}
    world.server.errors = [DOWN]
    world.told.step()
    assert world.told.labels_on_node() == {A, B, READY}
    assert world.codes() == ["node_unreachable"]
    world.told.step()
    assert world.told.labels_on_node() == {A, READY}
    assert world.codes() == []


def test_a_label_that_may_have_been_put_on_counts_as_on(world):
    """Its request was carried out, its answer lost, and the watch has not told yet."""
    world.told.post(report(row()))
    world.told.labeler.prove(world.node.copy.objects[NAME])
    world.server.lost = [DOWN]
    world.told.step()
    assert world.server.labels == {A: "installed", READY: "ready"}
    world.told.post(report())
    world.told.step()
    assert (world.told.labels_on_node(), world.server.labels) == (frozenset(), {})


def test_a_wish_that_came_during_a_request_is_not_forgotten(world):
    """What the older report asked for is on until the newer one was published."""

    def overtake():
        world.server.during = lambda: None
        world.told.post(report())

    world.told.labeler.prove(world.node.copy.objects[NAME])
    world.told.post(report(row()))
    world.server.during = overtake
    world.told.step()
    assert world.told.labels_on_node() == {A, READY}
    world.settle()
    assert (world.told.labels_on_node(), world.server.labels) == (frozenset(), {})


def test_a_new_wish_that_came_during_a_request_may_soon_be_on(world):
    """The answer to the older report says nothing about it."""

    def overtake():
        world.server.during = lambda: None
        world.told.post(report(row("b.json")))

    world.told.labeler.prove(world.node.copy.objects[NAME])
    world.told.post(report(row()))
    world.server.during = overtake
    world.told.step()
    assert world.told.labels_on_node() == {A, B, READY}


def test_news_of_the_watch_during_a_request_outweigh_its_answer(world):
    """Whichever is newer is not known; the watch goes on, the answer is the end of its story."""

    def news():
        world.server.during = lambda: None
        world.server.set_label("pool", "a")
        world.node.deliver()
        assert world.told.labels_on_node() == {A, READY}  # the agent's loop looks at them

    world.told.labeler.prove(world.node.copy.objects[NAME])
    world.told.post(report(row()))
    world.server.during = news
    world.told.step()
    assert world.told.labels_on_node() == {A, READY}
    assert world.told.labels() == {}
    world.node.deliver()
    assert world.told.labels() == {A: "installed", READY: "ready"}


def test_while_the_copy_is_not_confirmed_nobody_knows_what_is_on(world):
    """Not even right after an answer: somebody else may have changed it since."""
    labelled(world, row())
    world.node.fail()
    assert world.told.labels_on_node() is None
    world.node.deliver()
    assert world.told.labels_on_node() == {A, READY}


def test_a_label_taken_off_by_somebody_else_is_put_back(world):
    """One request, after the watch has told."""
    labelled(world, row())
    world.server.drop_label(A)
    world.node.deliver()
    world.server.requests()
    world.told.poke()
    world.settle()
    assert world.server.labels == {A: "installed", READY: "ready"}
    assert world.server.requests() == ["APPLY"]


def test_labels_do_not_flap_while_a_source_is_away_or_a_kind_is_blind(world):
    """No request is made, and every label stays."""
    labelled(world, row(), seccomp="enabled")
    before = dict(world.server.labels)
    world.server.requests()
    away = (ProfileSetStatus(profile_set=SET, state="unreadable", reason="forbidden"),)
    labelled(world, row(state="held", reason="source unavailable"), sets=away, seccomp="enabled")
    labelled(world, row(state="unobservable"), seccomp="enabled")
    labelled(world, row(), seccomp="enabled")
    assert (world.server.labels, world.server.requests()) == (before, [])


def test_another_node_of_the_same_name_is_told_and_not_labelled(clock):
    """Neither labels nor Events; it is asked again later and later, never in a storm."""
    world = World(clock, ApiServer(boot_id="another"))
    world.node.deliver()
    world.told.post(report(row(action="install", reason="new")))
    for _ in range(10):
        world.settle()
        clock.now += LAST_SECONDS
    assert world.codes() == ["node_unknown"]
    assert (world.server.labels, world.server.events) == ({}, [])
    assert world.server.requests() == ["GET"] * 10


def test_a_failure_waits_longer_than_the_one_before_whatever_happens(world, clock):
    """Reports and pokes do not shorten the wait, and it ends at a minute."""
    waits = []
    for _ in range(12):
        world.server.errors = [DOWN]
        world.told.post(report(row()))
        world.told.poke()
        world.told.step()
        waits.append(world.told._retry - clock.now)
        assert not world.told._due()
        assert world.told._patience() == waits[-1]
        clock.now = world.told._retry
        assert world.told._due()
    world.told._dirty = False
    tops = [min(LAST_SECONDS, FIRST_SECONDS * 2**index) for index in range(12)]
    assert all(top / 2 <= wait <= top for wait, top in zip(waits, tops, strict=True)), waits
    world.told.step()
    assert (world.codes(), world.told._due(), world.told._patience()) == ([], False, None)


def test_the_api_server_may_ask_for_a_longer_wait(world, clock):
    """Retry-After is the least."""
    world.server.errors = [StatusError(429, "TooManyRequests", "slow down", retry_after=600.0)]
    world.told.post(report(row()))
    world.told.step()
    assert world.told._retry == clock.now + 600.0


def test_changes_are_told_once(world):
    """What is on, and what is wrong; not each step."""
    labelled(world, row())
    assert world.changes == []  # wished for and on are one for who waits
    world.told.post(report())
    world.server.errors = [DOWN, DOWN]
    world.told.step()
    world.told.step()
    assert world.changes == [{A, READY}]
    world.told.step()
    world.told.step()
    assert world.changes == [{A, READY}, frozenset()]


def test_events_follow_their_labels_one_at_a_time(world):
    """The Node has its label before anybody hears of the profile."""
    world.told.post(
        report(row(action="install", reason="new"), row("b.json", action="install", reason="new"))
    )
    world.told.step()
    assert world.server.requests() == ["GET", "APPLY", "POST"]
    world.settle()
    assert [one["reason"] for one in world.server.events] == ["ProfileLoaded", "ProfileLoaded"]
    assert len({one["metadata"]["name"] for one in world.server.events}) == 2
    assert world.lost == 0


def test_an_event_that_is_refused_is_dropped_and_counted(world):
    """It would be refused again; labels do not wait for it."""
    labelled(world, row())
    refused = StatusError(403, "Forbidden", "events is forbidden")
    world.server.during = lambda: _refuse_posts(world, refused)
    labelled(world, row(), row("b.json", action="install", reason="new"))
    assert world.server.labels == {A: "installed", B: "installed", READY: "ready"}
    assert (world.server.events, world.lost, world.codes()) == ([], 1, [])


@pytest.mark.parametrize("error", [DOWN, StatusError(429, "TooManyRequests", "slow", 30.0)])
def test_an_event_that_found_no_ear_waits_and_does_not_speak_ill_of_the_labels(world, clock, error):
    """A busy API server is not asked for the next one at once; the labels are up to date."""
    labelled(world, row())
    world.server.requests()
    many = [row(f"{index}.json", "rejected", findings=BAD) for index in range(20)]
    world.told.post(report(row(), *many))
    world.server.during = lambda: _refuse_posts(world, error)
    world.settle()
    assert world.server.requests() == ["APPLY", "POST"]
    assert (world.codes(), world.lost) == ([], 0)
    world.server.during = lambda: None
    world.server.errors = []
    clock.now += LAST_SECONDS
    world.settle()
    assert (len(world.server.events), world.lost) == (20, 0)


def _refuse_posts(world, error):
    world.server.errors = [error] if world.server.asked[-1].startswith("POST") else []


def test_an_event_whose_answer_was_lost_is_sent_again_as_the_same(world, clock):
    """Under its first name and time; that it is there already is as good as an answer."""
    labelled(world)
    world.server.requests()
    world.told.post(report(row("bad.json", "rejected", findings=BAD)))
    world.server.lost = [DOWN]
    world.settle()
    clock.now += 100.0
    world.server.errors = [StatusError(409, "AlreadyExists", "there is one of this name")]
    world.settle()
    assert world.server.requests() == ["POST", "POST"]
    assert (len(world.server.events), world.lost, world.told._outbox) == (1, 0, deque())
    clock.now += 100.0
    world.server.lost = [DOWN]
    world.told.post(report(row("worse.json", "rejected", findings=BAD)))
    world.settle()
    clock.now += 100.0
    world.settle()
    first, *again = world.server.events[1:]
    assert again == [first]


def test_events_are_sent_while_labels_are_refused(world, clock):
    """A policy that denies a label does not make the node silent."""
    labelled(world, row())
    world.server.requests()
    world.server.errors = [StatusError(403, "Forbidden", "the policy denies it")] * 2
    world.told.post(report(row(), row("b.json"), row("bad.json", "rejected", findings=BAD)))
    world.settle()
    assert world.server.requests() == ["APPLY", "APPLY", "POST"]
    assert world.codes() == ["node_unreachable"]


def test_labels_that_somebody_takes_off_again_and_again_are_put_back_less_and_less(world, clock):
    """A few times at once, then after a wait that grows, and it is told."""
    labelled(world, row())
    world.server.requests()
    applied = []
    for _ in range(600):
        if A in world.server.labels:
            world.server.drop_label(A)
            world.node.deliver()
            world.told.poke()
        world.settle()
        applied += world.server.requests()
        clock.now += 1.0
    assert publisher.FIGHTS < len(applied) < 25
    assert world.codes() == ["label_fought"]
    clock.now += publisher.FIGHT_SECONDS
    world.settle()
    world.told.poke()
    world.settle()
    assert (world.server.labels, world.codes()) == ({A: "installed", READY: "ready"}, [])


def test_more_events_than_the_bucket_holds_are_dropped_and_counted(world):
    """A node whose hundred profiles are new says what it may, warnings first."""
    rows = [row(f"{index}.json", action="install", reason="new") for index in range(100)]
    labelled(world, *rows, row("bad.json", "rejected", findings=BAD))
    reasons = [one["reason"] for one in world.server.events]
    assert reasons == ["ProfileRejected"] + ["ProfileLoaded"] * (events.BURST - 1)
    assert world.lost == 101 - events.BURST


def test_the_outbox_has_an_end(world, monkeypatch):
    """While nobody hears, the oldest news stay and the newest are counted."""
    monkeypatch.setattr(publisher, "OUTBOX", 3)
    world.told.post(report(*[row(f"{n}.json", action="install", reason="new") for n in range(5)]))
    assert (len(world.told._outbox), world.lost) == (3, 2)


def test_the_startup_taint_goes_after_the_labels(clock):
    """A pod that the taint kept away finds the label it asks for."""
    server = ApiServer(taints=[{"key": "start", "effect": "NoSchedule"}])
    world = World(clock, server, taint="start")
    world.node.deliver()
    labelled(world, row())
    assert server.requests() == ["GET", "APPLY", "GET", "PATCH"]
    assert server.node["spec"]["taints"] == []


def test_what_the_labels_could_not_say_is_told(clock):
    """Too many of them, and those of others."""
    world = World(clock, ApiServer({f"seccomp.{D}/x": "forged"}), limit=1)
    world.node.deliver()
    labelled(world, row(), row("b.json"))
    assert world.codes() == ["label_limit", "label_foreign"]


def test_stopping_changes_nothing(world):
    """The thread ends, and every label stays as it is."""
    labelled(world, row())
    world.told.start()
    world.told.stop()
    world.told._thread.join(100)
    assert not world.told._thread.is_alive()
    assert world.server.labels == {A: "installed", READY: "ready"}


def test_the_thread_publishes_what_is_posted(world):
    """A report wakes it; it then sleeps until the next."""
    world.clock.now = 0.0
    world.told.start()
    reached = world.changes
    world.told.post(report(row()))
    for _ in range(10_000):
        if world.server.labels:
            break
        world.told._thread.join(0.01)
    world.told.stop()
    world.told._thread.join(100)
    assert (world.server.labels, reached) == ({A: "installed", READY: "ready"}, [])


def test_refused_labels_are_tried_again_less_and_less_often(world, clock):
    """Other changes do not wait for them, and are no fight; success ends it."""
    world.server.policy = lambda before, after: "denied" if READY in after else ""
    labelled(world, row())
    assert (world.server.labels, world.codes()) == ({A: "installed"}, ["label_refused"])
    waits = []
    for _ in range(12):
        world.server.requests()
        begin = clock.now
        clock.now += world.told._patience() + 0.001
        world.settle()
        waits.append(clock.now - begin)
        assert world.server.requests()
    assert waits == sorted(waits[:9]) + waits[9:]
    assert max(waits) <= publisher.REFUSED_SECONDS + 1
    assert min(waits[10:]) >= publisher.REFUSED_SECONDS / 2
    labelled(world, row(), row("b.json"))
    assert world.server.labels == {A: "installed", B: "installed"}
    assert world.codes() == ["label_refused"]
    world.server.policy = lambda before, after: ""
    clock.now += world.told._patience() + 0.001
    world.settle()
    assert world.server.labels == {A: "installed", B: "installed", READY: "ready"}
    assert (world.codes(), world.told._patience()) == ([], None)
