"""Tests of agent.kube.publisher. The tests call the methods of the publisher directly, without a
thread.
"""

from typing import Any

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import ProfileSetStatus, ProfileStatus
from agent.core.vocabulary import ProfileSetState
from agent.kube import event_outbox, events, label_contention, publisher
from agent.kube.errors import KubeError, StatusError, UnreachableError
from agent.kube.event_outbox import EventOutbox
from agent.kube.event_sender import EventSender
from agent.kube.node_labels import NodeLabeler
from agent.kube.own_node import NodeOptions
from agent.kube.publisher import FIRST_SECONDS, LONGEST_SECONDS, Publisher
from agent.kube.reflector import Store
from tests.api_server import BOOT_ID, NAME, ApiServer, WatchedNode
from tests.narrowing import not_none
from tests.reports import SET, D, report, row
from tests.system.guest.pace import until

A, B = f"seccomp.{D}/a.json", f"seccomp.{D}/b.json"
READY = f"set.{D}/ns__web"
DOWN = UnreachableError("no response in time")
BAD = (Finding(code=FindingCode.NOT_JSON, location="line 1", message="The key is not JSON."),)


class Clock:
    """A clock that only advances when a test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A publisher, its API server, and a record of the calls to its callbacks."""

    def __init__(self, clock: Clock, server: ApiServer | None = None, **options: Any) -> None:
        self.clock = clock
        self.server = server or ApiServer()
        self.node = WatchedNode(self.server)
        self.changes: list[frozenset[str] | None] = []
        self.dropped = 0
        labeler = NodeLabeler(
            self.server, NodeOptions(name=NAME, domain=D, **options), lambda: BOOT_ID
        )
        self.publisher = Publisher(
            labeler=labeler,
            events=EventSender(self.server, EventOutbox(clock, clock), on_drop=self._on_drop),
            store=self.node,
            on_change=lambda: self.changes.append(self.publisher.labels_on_node()),
            clock=clock,
        )

    def _on_drop(self, number: int) -> None:
        self.dropped += number

    def codes(self) -> list[FindingCode]:
        return [finding.code for finding in self.publisher.findings]

    def is_due(self) -> bool:
        return self.publisher.seconds_until_due() == 0

    def run_until_idle(self) -> None:
        """Run the steps of the publisher's thread without waiting."""
        for _ in range(100):
            if not self.is_due():
                return
            self.publisher.step()
            self.node.deliver()
        raise AssertionError("the publisher never becomes idle")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    """A publisher whose Node has been read."""
    world = World(clock)
    world.node.deliver()
    return world


def publish(world: World, *rows: ProfileStatus, **more: Any) -> None:
    """Post a report, and run the steps that are due."""
    world.publisher.post(report(*rows, **more))
    world.run_until_idle()


def test_the_labels_of_a_report_are_set_on_the_node(world: World) -> None:
    """The publisher sets the labels of a report on the Node. An identical report causes no
    request.
    """
    publish(world, row())
    assert world.server.labels == {A: "installed", READY: "ready"}
    assert world.publisher.labels_on_node() == {A, READY}
    assert world.publisher.labels() == {A: "installed", READY: "ready"}
    world.server.requests()
    publish(world, row())
    assert (world.server.requests(), world.publisher.findings) == ([], ())


def test_before_the_first_report_no_request_is_sent(world: World) -> None:
    """Before its first report, a restarted agent sends no request and removes no label."""
    world.server.set_label(A, "installed", "profile-loader")
    world.node.deliver()
    world.publisher.notify()
    world.run_until_idle()
    assert (world.server.requests(), world.server.labels) == ([], {A: "installed"})


def test_before_the_node_was_read_no_label_is_known(clock: Clock) -> None:
    """Until the Node has been read, no label is known and no request is sent."""
    world = World(clock)
    world.publisher.post(report(row()))
    world.publisher.step()
    assert (world.publisher.labels_on_node(), world.publisher.labels(), world.codes()) == (
        None,
        {},
        ["node_unreachable"],
    )
    assert "not read yet" in world.publisher.findings[0].message
    assert world.server.requests() == []


def test_a_missing_node_is_reported(clock: Clock) -> None:
    """If the Node is missing, the publisher reports this and does not create the Node."""
    world = World(clock)
    world.server.node = None
    world.node.deliver()
    world.publisher.post(report(row()))
    world.publisher.step()
    assert (world.publisher.labels_on_node(), world.codes(), world.server.requests()) == (
        None,
        ["node_unknown"],
        [],
    )


def test_an_unread_node_without_a_reason_is_reported(world: World) -> None:
    """If the Node was not read for an unknown reason, the publisher reports this."""
    world.node.store = Store(objects=None, revision=world.node.store.revision + 1)
    world.publisher.post(report(row()))
    world.publisher.step()
    assert "the Node was not read yet" in world.publisher.findings[0].message


def test_a_label_counts_as_set_until_the_api_server_confirms_its_removal(world: World) -> None:
    """A label counts as set until the API server confirms its removal."""
    publish(world, row(), row("b.json"))
    world.publisher.post(report(row()))
    assert world.publisher.labels_on_node() == {A, B, READY}
    world.server.errors = [DOWN]
    world.publisher.step()
    assert world.publisher.labels_on_node() == {A, B, READY}
    assert world.codes() == ["node_unreachable"]
    world.publisher.step()
    assert world.publisher.labels_on_node() == {A, READY}
    assert world.codes() == []


def test_a_label_that_may_have_been_set_counts_as_set(world: World) -> None:
    """If a response is lost, a label that may have been set counts as set."""
    world.publisher.post(report(row()))
    world.publisher.labeler.identity.require_own_node(not_none(world.node.store.objects)[NAME])
    world.server.lost = [DOWN]
    world.publisher.step()
    assert world.server.labels == {A: "installed", READY: "ready"}
    world.publisher.post(report())
    world.publisher.step()
    assert (world.publisher.labels_on_node(), world.server.labels) == (frozenset(), {})


def test_a_report_during_a_request_does_not_remove_pending_labels(world: World) -> None:
    """If a new report arrives during a request, the pending labels still count as set."""

    def overtake() -> None:
        world.server.during = lambda: None
        world.publisher.post(report())

    world.publisher.labeler.identity.require_own_node(not_none(world.node.store.objects)[NAME])
    world.publisher.post(report(row()))
    world.server.during = overtake
    world.publisher.step()
    assert world.publisher.labels_on_node() == {A, READY}
    world.run_until_idle()
    assert (world.publisher.labels_on_node(), world.server.labels) == (frozenset(), {})


def test_the_labels_of_a_report_during_a_request_may_soon_be_set(world: World) -> None:
    """If a new report arrives during a request, the labels of this report count as possibly set."""

    def overtake() -> None:
        world.server.during = lambda: None
        world.publisher.post(report(row("b.json")))

    world.publisher.labeler.identity.require_own_node(not_none(world.node.store.objects)[NAME])
    world.publisher.post(report(row()))
    world.server.during = overtake
    world.publisher.step()
    assert world.publisher.labels_on_node() == {A, B, READY}


def test_an_event_of_the_watch_during_a_request_is_kept(world: World) -> None:
    """If the watch delivers an event during a request, the publisher does not lose the event."""

    def event() -> None:
        world.server.during = lambda: None
        world.server.set_label("pool", "a")
        world.node.deliver()
        assert world.publisher.labels_on_node() == {A, READY}  # The main loop calls this method.

    world.publisher.labeler.identity.require_own_node(not_none(world.node.store.objects)[NAME])
    world.publisher.post(report(row()))
    world.server.during = event
    world.publisher.step()
    assert world.publisher.labels_on_node() == {A, READY}
    assert world.publisher.labels() == {}
    world.node.deliver()
    assert world.publisher.labels() == {A: "installed", READY: "ready"}


def test_labels_are_unknown_while_the_store_is_not_confirmed(world: World) -> None:
    """While the store is not confirmed, the labels are unknown."""
    publish(world, row())
    world.node.fail()
    assert world.publisher.labels_on_node() is None
    world.node.deliver()
    assert world.publisher.labels_on_node() == {A, READY}


def test_a_label_that_another_client_removed_is_restored(world: World) -> None:
    """If another client removed a label, one request restores it."""
    publish(world, row())
    world.server.drop_label(A)
    world.node.deliver()
    world.server.requests()
    world.publisher.notify()
    world.run_until_idle()
    assert world.server.labels == {A: "installed", READY: "ready"}
    assert world.server.requests() == ["APPLY"]


def test_labels_stay_while_a_source_or_the_node_cannot_be_read(world: World) -> None:
    """While a source or the Node cannot be read, every label stays."""
    publish(world, row(), seccomp="enabled")
    before = dict(world.server.labels)
    world.server.requests()
    away = (
        ProfileSetStatus(profile_set=SET, state=ProfileSetState.UNREADABLE, reason="forbidden"),
    )
    publish(world, row(state="held", reason="source unavailable"), sets=away, seccomp="enabled")
    publish(world, row(state="unobservable"), seccomp="enabled")
    publish(world, row(), seccomp="enabled")
    assert (world.server.labels, world.server.requests()) == (before, [])


def test_another_node_with_the_same_name_is_reported_and_not_labelled(clock: Clock) -> None:
    """If another Node has the same name, the publisher reports this, and sends neither labels nor
    Events.
    """
    world = World(clock, ApiServer(boot_id="another"))
    world.node.deliver()
    world.publisher.post(report(row(action="install", reason="new")))
    for _ in range(10):
        world.run_until_idle()
        clock.now += LONGEST_SECONDS
    assert world.codes() == ["node_unknown"]
    assert (world.server.labels, world.server.events) == ({}, [])
    assert world.server.requests() == ["GET"] * 10


def test_the_delay_after_a_failure_grows(world: World, clock: Clock) -> None:
    """The delay after a failure grows to at most a minute. New reports and changes of the store do
    not shorten it.
    """
    delays = []
    for _ in range(12):
        world.server.errors = [DOWN]
        world.publisher.post(report(row()))
        world.publisher.notify()
        world.publisher.step()
        delays.append(world.publisher.seconds_until_due())
        assert not world.is_due()
        clock.now += delays[-1]
        assert world.is_due()
    longest = [min(LONGEST_SECONDS, FIRST_SECONDS * 2**index) for index in range(12)]
    assert all(limit / 2 <= delay <= limit for delay, limit in zip(delays, longest, strict=True)), (
        delays
    )
    world.publisher.step()
    assert (world.codes(), world.publisher.seconds_until_due()) == ([], None)


def test_retry_after_makes_the_delay_longer(world: World) -> None:
    """The delay is at least as long as the header Retry-After of the API server requires."""
    world.server.errors = [StatusError(429, "TooManyRequests", "slow down", retry_after=600.0)]
    world.publisher.post(report(row()))
    world.publisher.step()
    assert world.publisher.seconds_until_due() == 600.0


def test_each_change_is_reported_once(world: World) -> None:
    """Each change of the labels or of the findings is reported once."""
    publish(world, row())
    assert world.changes == []  # Labels that may have been set count as set.
    world.publisher.post(report())
    world.server.errors = [DOWN, DOWN]
    world.publisher.step()
    world.publisher.step()
    assert world.changes == [{A, READY}]
    world.publisher.step()
    world.publisher.step()
    assert world.changes == [{A, READY}, frozenset()]


def test_events_follow_their_labels_one_at_a_time(world: World) -> None:
    """The publisher sets the label of a profile before it sends the Event about the profile. The
    publisher sends Events one at a time.
    """
    world.publisher.post(
        report(row(action="install", reason="new"), row("b.json", action="install", reason="new"))
    )
    world.publisher.step()
    assert world.server.requests() == ["GET", "APPLY", "POST"]
    world.run_until_idle()
    assert [event["reason"] for event in world.server.events] == ["ProfileLoaded", "ProfileLoaded"]
    assert len({event["metadata"]["name"] for event in world.server.events}) == 2
    assert world.dropped == 0


def test_an_event_that_is_rejected_is_dropped_and_counted(world: World) -> None:
    """If the API server rejects an Event, the Event is dropped and counted."""
    publish(world, row())
    denied = StatusError(403, "Forbidden", "events is forbidden")
    world.server.during = lambda: _fail_posts(world, denied)
    publish(world, row(), row("b.json", action="install", reason="new"))
    assert world.server.labels == {A: "installed", B: "installed", READY: "ready"}
    assert (world.server.events, world.dropped, world.codes()) == ([], 1, [])


@pytest.mark.parametrize("error", [DOWN, StatusError(429, "TooManyRequests", "slow", 30.0)])
def test_an_event_that_could_not_be_sent_waits_and_causes_no_finding(
    world: World, clock: Clock, error: KubeError
) -> None:
    """An Event that could not be sent stays queued, and causes no finding."""
    publish(world, row())
    world.server.requests()
    many = [row(f"{index}.json", "rejected", findings=BAD) for index in range(20)]
    world.publisher.post(report(row(), *many))
    world.server.during = lambda: _fail_posts(world, error)
    world.run_until_idle()
    assert world.server.requests() == ["APPLY", "POST"]
    assert (world.codes(), world.dropped) == ([], 0)
    world.server.during = lambda: None
    world.server.errors = []
    clock.now += LONGEST_SECONDS
    world.run_until_idle()
    assert (len(world.server.events), world.dropped) == (20, 0)


def _fail_posts(world: World, error: KubeError) -> None:
    world.server.errors = [error] if world.server.asked[-1].startswith("POST") else []


def test_an_event_whose_response_was_lost_is_sent_again_unchanged(
    world: World, clock: Clock
) -> None:
    """An Event whose response was lost is sent again with the same name and time. If the second
    request results in a Conflict, the Event counts as sent.
    """
    publish(world)
    world.server.requests()
    world.publisher.post(report(row("bad.json", "rejected", findings=BAD)))
    world.server.lost = [DOWN]
    world.run_until_idle()
    clock.now += 100.0
    world.server.errors = [StatusError(409, "AlreadyExists", "the name exists")]
    world.run_until_idle()
    assert world.server.requests() == ["POST", "POST"]
    assert (len(world.server.events), world.dropped) == (1, 0)
    assert world.publisher.seconds_until_due() is None
    clock.now += 100.0
    world.server.lost = [DOWN]
    world.publisher.post(report(row("worse.json", "rejected", findings=BAD)))
    world.run_until_idle()
    clock.now += 100.0
    world.run_until_idle()
    first, *repeated = world.server.events[1:]
    assert repeated == [first]


def test_events_are_sent_while_labels_are_rejected(world: World, clock: Clock) -> None:
    """If a policy denies a label, Events are still sent."""
    publish(world, row())
    world.server.requests()
    world.server.errors = [StatusError(403, "Forbidden", "the policy denies it")] * 2
    world.publisher.post(report(row(), row("b.json"), row("bad.json", "rejected", findings=BAD)))
    world.run_until_idle()
    assert world.server.requests() == ["APPLY", "APPLY", "POST"]
    assert world.codes() == ["node_unreachable"]


def test_labels_that_another_client_keeps_removing_are_restored_with_growing_delays(
    world: World, clock: Clock
) -> None:
    """If another client keeps removing labels, the publisher reports this, and restores the labels
    with growing delays.
    """
    publish(world, row())
    world.server.requests()
    applied = []
    for _ in range(600):
        if A in world.server.labels:
            world.server.drop_label(A)
            world.node.deliver()
            world.publisher.notify()
        world.run_until_idle()
        applied += world.server.requests()
        clock.now += 1.0
    assert label_contention.CONTENTION_RESTORES < len(applied) < 25
    assert world.codes() == ["label_fought"]
    clock.now += label_contention.WINDOW_SECONDS
    world.run_until_idle()
    world.publisher.notify()
    world.run_until_idle()
    assert (world.server.labels, world.codes()) == ({A: "installed", READY: "ready"}, [])


def test_events_above_the_rate_limit_are_dropped_and_counted(world: World) -> None:
    """Events above the rate limit are dropped and counted. Warnings have priority."""
    rows = [row(f"{index}.json", action="install", reason="new") for index in range(100)]
    publish(world, *rows, row("bad.json", "rejected", findings=BAD))
    reasons = [event["reason"] for event in world.server.events]
    assert reasons == ["ProfileRejected"] + ["ProfileLoaded"] * (events.BURST - 1)
    assert world.dropped == 101 - events.BURST


def test_the_number_of_waiting_events_is_limited(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the queue is full, the oldest Events stay, and the newest Events are dropped and
    counted.
    """
    monkeypatch.setattr(event_outbox, "OUTBOX_LIMIT", 3)
    world.publisher.post(
        report(*[row(f"{n}.json", action="install", reason="new") for n in range(5)])
    )
    world.run_until_idle()
    assert (len(world.server.events), world.dropped) == (3, 2)


def test_the_startup_taint_is_removed_after_the_labels_are_set(clock: Clock) -> None:
    """The startup taint is removed after the labels are set."""
    server = ApiServer(taints=[{"key": "start", "effect": "NoSchedule"}])
    world = World(clock, server, taint="start")
    world.node.deliver()
    publish(world, row())
    assert server.requests() == ["GET", "APPLY", "GET", "PATCH"]
    assert not_none(server.node)["spec"]["taints"] == []


def test_labels_that_could_not_be_set_are_reported(clock: Clock) -> None:
    """Labels above the limit and labels of other field managers are reported."""
    world = World(clock, ApiServer({f"seccomp.{D}/x": "forged"}), limit=1)
    world.node.deliver()
    publish(world, row(), row("b.json"))
    assert world.codes() == ["label_limit", "label_foreign"]


def test_the_thread_publishes_a_posted_report(world: World) -> None:
    """A posted report wakes the thread of the publisher, which publishes the report."""
    world.publisher.start()
    world.publisher.post(report(row()))
    until(lambda: world.server.labels, "the labels")
    assert (world.server.labels, world.changes) == ({A: "installed", READY: "ready"}, [])


def test_rejected_labels_are_sent_again_with_growing_delays(world: World, clock: Clock) -> None:
    """The publisher sends rejected labels again with growing delays. Other labels do not wait for
    rejected labels.
    """
    world.server.policy = lambda before, after: "denied" if READY in after else ""
    publish(world, row())
    assert (world.server.labels, world.codes()) == ({A: "installed"}, ["label_refused"])
    delays = []
    for _ in range(12):
        world.server.requests()
        begin = clock.now
        clock.now += world.publisher.seconds_until_due() + 0.001
        world.run_until_idle()
        delays.append(clock.now - begin)
        assert world.server.requests()
    assert delays == sorted(delays[:9]) + delays[9:]
    assert max(delays) <= publisher.REFUSED_LONGEST_SECONDS + 1
    assert min(delays[10:]) >= publisher.REFUSED_LONGEST_SECONDS / 2
    publish(world, row(), row("b.json"))
    assert world.server.labels == {A: "installed", B: "installed"}
    assert world.codes() == ["label_refused"]
    world.server.policy = lambda before, after: ""
    clock.now += world.publisher.seconds_until_due() + 0.001
    world.run_until_idle()
    assert world.server.labels == {A: "installed", B: "installed", READY: "ready"}
    assert (world.codes(), world.publisher.seconds_until_due()) == ([], None)
