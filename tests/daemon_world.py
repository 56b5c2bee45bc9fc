"""Simulates a daemon on a node in memory, with an API server in memory and a clock for tests.

The controller, the reconciler, the file ledger and the publisher are the real objects of the agent.
The publisher has no thread; the method `publish` runs one of its steps. The wake queue moves the
clock instead of sleeping.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypedDict, Unpack

from agent.control.confinement_checks import ConfinementChecks
from agent.control.label_absence import ProfileName
from agent.controller import Controller
from agent.core import plan
from agent.core.findings import Finding
from agent.core.model import (
    Evidence,
    Inspected,
    KeyId,
    LedgerEntry,
    Observed,
    Pending,
    Profile,
    ProfileKind,
    Snapshot,
    SourceKey,
    Unobservable,
)
from agent.core.ports import ConfinementTracker, Failed, Installed, Removed, StillInUse
from agent.core.report import Report
from agent.heartbeat import Heartbeat
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from agent.kube.errors import UnreachableError
from agent.kube.event_outbox import EventOutbox
from agent.kube.event_sender import EventSender
from agent.kube.node_labels import NodeLabeler
from agent.kube.own_node import NodeOptions
from agent.kube.publisher import Publisher
from agent.sources import limits
from agent.wake_queue import WakeQueue, WakeReason
from tests.api_server import BOOT_ID, NAME, ApiServer, WatchedNode
from tests.reports import SET, D
from tests.world import MemoryKind, Node, Steps, build_reconciler

UNREACHABLE = UnreachableError("no answer in time")
GRACE_SECONDS = 60.0
RESYNC_SECONDS = 300.0


class Clock:
    """A clock that advances only when a test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


class IdleError(Exception):
    """Raised when the controller would wait, because no reason requires a pass."""


class ScriptedQueue(WakeQueue):
    """A WakeQueue for tests. A wait on the queue advances the clock, or ends the wait of
    the test.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reasons: list[WakeReason] = []
        self.waits: list[float] = []  # The seconds of each wait during which no reason arrived.
        self.bursts = 0  # How often further reasons were discarded.
        self.is_sleeping = True  # Whether an empty queue moves the clock.
        self.later: list[WakeReason] = []  # The reasons that arrive one after another during waits.
        self.later_seconds = 0.0  # The time between these reasons.

    def put(self, reason: WakeReason) -> None:
        self.reasons.append(reason)

    def wait(self, seconds: float) -> frozenset[WakeReason]:
        if self.later and not self.reasons:
            self.clock.now += self.later_seconds
            self.reasons.append(self.later.pop(0))
        if self.reasons:
            reasons, self.reasons = frozenset(self.reasons), []
            return reasons
        if not self.is_sleeping:
            raise IdleError
        self.waits.append(seconds)
        self.clock.now += seconds
        return frozenset()

    def discard_burst(self) -> None:
        self.bursts += 1
        self.reasons.clear()


_State = tuple[dict[str, bytes], set[str]]
_Question = tuple[_State, set[str], set[str]]


class RevisionBackend(MemoryKind):
    """A backend that observes the node again only after a change of the node.

    The check of each text in `slow_texts` stays pending. The backend counts all inspections,
    observations and checks.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node, Steps())
        self.slow_texts: frozenset[str] = frozenset()
        self.failure: Failed | None = None  # The result of the next installations.
        self.unobservable: Unobservable | None = None  # The result of the next observations.
        self.inspections = 0
        self.checks = 0
        self.during_install: Callable[[], object] = lambda: None
        self.during_inspect: Callable[[], object] = lambda: None
        self._last: tuple[_Question, Observed] | None = None
        self._state_left: _State | None = None

    def inspect(self, source_key: SourceKey) -> Inspected:
        self.inspections += 1
        self.during_inspect()
        inspected = super().inspect(source_key)
        if source_key.content.decode() in self.slow_texts:
            return Pending(id=inspected.id, source=source_key.content)
        return inspected

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        if self.unobservable is not None:
            return self.unobservable
        question = (self._state(), set(names), set(removal_candidates))
        if self._last is None or self._last[0] != question:
            self._last = (question, super().observe(names, removal_candidates))
        self._state_left = self._state()
        return self._last[1]

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        self.during_install()
        if self.failure is not None:
            return self.failure
        installed = super().install(profile, body, replaceable=replaceable, foreign=foreign)
        self._state_left = self._state()
        return installed

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        removed = super().remove(names, evidence, require_unused=require_unused)
        self._state_left = self._state()
        return removed

    def is_unchanged(self) -> bool:
        self.checks += 1
        return self.unobservable is None and self._state_left == self._state()

    def invalidate(self) -> None:
        self._last = None

    def _state(self) -> _State:
        return (dict(self.node.loaded), set(self.node.used))


class KeysSource:
    """A source with one profile set, which consists of the texts in `keys`."""

    watched_path = None
    snapshot: Snapshot | None = None
    """The result of reads instead of the keys, unless it is None."""

    def __init__(self, profile_set: str, keys: dict[str, str]) -> None:
        self.profile_set = profile_set
        self.keys = keys
        self.full_reads = 0

    def read(self) -> tuple[Snapshot, ...]:
        if self.snapshot is not None:
            return (self.snapshot,)
        source_keys = [
            SourceKey(profile_set=self.profile_set, key=key, content=text.encode())
            for key, text in sorted(self.keys.items())
        ]
        return (limits.snapshot(self.profile_set, source_keys, []),)

    def invalidate(self) -> None:
        self.full_reads += 1

    def explain_absence(self, profile_set: str) -> None:
        return None


class SwitchableLedger(FileLedger):
    """A ledger whose entries cannot be read while `failure` is set."""

    failure: Finding | None = None

    def entries(self) -> Mapping[KeyId, LedgerEntry] | Finding:
        return super().entries() if self.failure is None else self.failure


class RecordingSink:
    """Records for each report whether a pass ended, and the codes of its findings."""

    def __init__(self) -> None:
        self.received: list[tuple[bool, tuple[str, ...]]] = []
        self.on_each: Callable[[], object] = lambda: None

    def on_report(self, report: Report, at: float, *, passed: bool) -> None:
        self.received.append((passed, tuple(finding.code for finding in report.findings)))
        self.on_each()


class ScriptedCluster:
    """The state of the node in the API server."""

    def __init__(self) -> None:
        self.labels: Mapping[str, str] | None = {"pool": "a"}
        self.pods: Mapping[ProfileName, tuple[str, ...]] | None = None
        # whether the API server has responded to the first request of each type
        self.answers: list[bool] = []

    def has_answered(self) -> bool:
        return self.answers.pop(0) if self.answers else True

    def node_labels(self) -> Mapping[str, str] | None:
        return self.labels

    def pods_by_profile(self) -> Mapping[ProfileName, tuple[str, ...]] | None:
        return self.pods


class RecordingTracker:
    """A confinement tracker that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.problems: tuple[Finding, ...] = ()
        self.in_use: frozenset[str] = frozenset()

    def observe(self, names: Collection[str]) -> None:
        self.calls.append(("observe", tuple(names)))

    def record_removals(self, names: Collection[str]) -> None:
        self.calls.append(("removed", tuple(names)))

    def names_in_use(self) -> frozenset[str]:
        return self.in_use

    def findings(self) -> tuple[Finding, ...]:
        return self.problems

    def count(self) -> int:
        return len(self.problems)


class DaemonWorld:
    """A daemon with its node, its sources, its publisher and its API server."""

    def __init__(
        self,
        path: Path,
        *,
        is_published: bool = True,
        resync_seconds: float = RESYNC_SECONDS,
        trackers: Mapping[ProfileKind, ConfinementTracker] | None = None,
    ) -> None:
        self.path = path
        self.clock = Clock()
        self.node = Node()
        self.backend = RevisionBackend(self.node)
        self.source = KeysSource(SET, {"web": "web:1", "old": "old:1"})
        self.other_source = KeysSource("dir /p", {"third": "third:1"})
        self.queue = ScriptedQueue(self.clock)
        self.server = ApiServer()
        self.watch = WatchedNode(self.server)
        self.watch.deliver()
        self.sink = RecordingSink()
        self.cluster = ScriptedCluster()
        self.publisher = Publisher(
            labeler=NodeLabeler(self.server, NodeOptions(name=NAME, domain=D), lambda: BOOT_ID),
            events=EventSender(self.server, EventOutbox(self.clock.monotonic, self.clock.time)),
            store=self.watch,
            on_change=lambda: self.queue.put(WakeReason.LABELS),
            clock=self.clock.monotonic,
        )
        (path / "state").mkdir()
        self.ledger = SwitchableLedger(Host(str(path)), "/state")
        self.heartbeat = Heartbeat(self.clock.monotonic)
        self.controller = Controller(
            reconciler=build_reconciler(
                [self.source, self.other_source],
                self.backend,
                self.ledger,
                plan.PlanOptions(grace_seconds=GRACE_SECONDS),
                heartbeat=self.heartbeat,
            ),
            wake_queue=self.queue,
            cluster=self.cluster,
            publisher=self.publisher if is_published else None,
            confinement=ConfinementChecks(trackers or {}),
            sinks=[self.sink],
            resync_seconds=resync_seconds,
            label_domain=D,
            heartbeat=self.heartbeat,
            clock=self.clock,
        )

    @property
    def report(self) -> Report:
        report = self.controller.reports.report
        assert report is not None
        return report

    def run_pass(self) -> Report:
        """Run a pass, publish the labels of the pass on the Node, and deliver the changed Node to
        the agent.
        """
        report = self.controller.run_pass()
        self.publish()
        return report

    def publish(self) -> None:
        self.publisher.step()
        self.watch.deliver()

    def calls_for_pass(self, *reasons: WakeReason) -> bool:
        """Return whether these reasons or the reasons in the queue require a pass now."""
        for reason in reasons:
            self.queue.put(reason)
        self.queue.is_sleeping = False
        try:
            self.controller.wait()
        except IdleError:
            return False
        finally:
            self.queue.is_sleeping = True
        return True

    def sleep(self) -> float:
        """Wait until a pass is due, and return the number of seconds that the wait took."""
        begin = self.clock.now
        self.queue.reasons.clear()
        self.controller.wait()
        return round(self.clock.now - begin, 6)

    def labels(self) -> set[str]:
        return {key.partition("/")[2] for key in self.server.labels if key.startswith("apparmor.")}

    def loaded(self) -> set[str]:
        return set(self.node.loaded)

    def reason(self, name: str = "old") -> str:
        return next(row.reason for row in self.report.profiles if row.name == name)

    def rows(self) -> dict[str, tuple[str, str, str]]:
        return {
            row.name or row.key: (row.state, row.action, row.reason) for row in self.report.profiles
        }


class WorldOptions(TypedDict, total=False):
    """The options of a daemon that tests set."""

    is_published: bool
    resync_seconds: float
    trackers: Mapping[ProfileKind, ConfinementTracker]


def converged_world(path: Path, **options: Unpack[WorldOptions]) -> DaemonWorld:
    """Return a daemon that has installed and labelled three profiles."""
    world = DaemonWorld(path, **options)
    for _ in range(4):
        world.run_pass()
    assert world.labels() == world.loaded() == {"web", "old", "third"}
    world.queue.reasons.clear()
    world.sink.received.clear()
    return world
