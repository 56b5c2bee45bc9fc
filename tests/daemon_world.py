"""Simulates a daemon on a node in memory, with an API server in memory and a clock for tests.

The controller, the reconciler, the file ledger and the publisher are the real objects of the agent.
The publisher has no thread; the method `publish` runs one of its steps. The wake queue moves the
clock instead of sleeping.
"""

from agent.control.confinement_checks import ConfinementChecks
from agent.controller import Controller
from agent.core import plan
from agent.core.model import Pending, SourceKey
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
from agent.wake_queue import WakeReason
from tests.api_server import BOOT_ID, NAME, ApiServer, WatchedNode
from tests.reports import SET, D
from tests.world import MemoryKind, Node, Steps, build_reconciler

UNREACHABLE = UnreachableError("no answer in time")
GRACE_SECONDS = 60.0
RESYNC_SECONDS = 300.0


class Clock:
    """A clock that advances only when a test advances it."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + 1e9


class IdleError(Exception):
    """Raised when the controller would wait, because no reason requires a pass."""


class ScriptedQueue:
    """A WakeQueue for tests. A wait on the queue advances the clock, or ends the wait of
    the test.
    """

    def __init__(self, clock):
        self.clock = clock
        self.reasons = []
        self.waits = []  # The seconds of each wait during which no reason arrived.
        self.bursts = 0  # How often further reasons were discarded.
        self.is_sleeping = True  # Whether an empty queue moves the clock.
        self.later = []  # The reasons that arrive one after another during waits.
        self.later_seconds = 0.0  # The time between these reasons.

    def put(self, reason):
        self.reasons.append(reason)

    def wait(self, seconds):
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

    def discard_burst(self):
        self.bursts += 1
        self.reasons.clear()


class RevisionBackend(MemoryKind):
    """A backend that observes the node again only after a change of the node.

    The check of each text in `slow_texts` stays pending. The backend counts all inspections,
    observations and checks.
    """

    def __init__(self, node):
        super().__init__(node, Steps())
        self.slow_texts = frozenset()
        self.failure = None  # The result of the next installations.
        self.unobservable = None  # The result of the next observations.
        self.inspections = 0
        self.checks = 0
        self.during_install = lambda: None
        self.during_inspect = lambda: None
        self._last = None
        self._state_left = None

    def inspect(self, source_key):
        self.inspections += 1
        self.during_inspect()
        inspected = super().inspect(source_key)
        if source_key.content.decode() in self.slow_texts:
            return Pending(id=inspected.id, source=source_key.content)
        return inspected

    def observe(self, names, removal_candidates):
        if self.unobservable is not None:
            return self.unobservable
        question = (self._state(), set(names), set(removal_candidates))
        if self._last is None or self._last[0] != question:
            self._last = (question, super().observe(names, removal_candidates))
        self._state_left = self._state()
        return self._last[1]

    def install(self, *args, **options):
        self.during_install()
        if self.failure is not None:
            return self.failure
        installed = super().install(*args, **options)
        self._state_left = self._state()
        return installed

    def remove(self, names, evidence, *, require_unused):
        removed = super().remove(names, evidence, require_unused=require_unused)
        self._state_left = self._state()
        return removed

    def is_unchanged(self):
        self.checks += 1
        return self.unobservable is None and self._state_left == self._state()

    def invalidate(self):
        self._last = None

    def _state(self):
        return (dict(self.node.loaded), set(self.node.used))


class KeysSource:
    """A source with one profile set. The attribute `keys` is a dictionary of texts or a
    snapshot.
    """

    watched_path = None

    def __init__(self, profile_set, keys):
        self.profile_set = profile_set
        self.keys = keys
        self.full_reads = 0

    def read(self):
        if not isinstance(self.keys, dict):
            return (self.keys,)
        source_keys = [
            SourceKey(profile_set=self.profile_set, key=key, content=text.encode())
            for key, text in sorted(self.keys.items())
        ]
        return (limits.snapshot(self.profile_set, source_keys, []),)

    def invalidate(self):
        self.full_reads += 1

    def explain_absence(self, profile_set):
        return None


class SwitchableLedger(FileLedger):
    """A ledger whose entries cannot be read while `failure` is set."""

    failure = None

    def entries(self):
        return super().entries() if self.failure is None else self.failure


class RecordingSink:
    """Records for each report whether a pass ended, and the codes of its findings."""

    def __init__(self):
        self.received = []
        self.on_each = lambda: None

    def on_report(self, report, at, *, passed):
        self.received.append((passed, tuple(finding.code for finding in report.findings)))
        self.on_each()


class ScriptedCluster:
    """The state of the node in the API server."""

    def __init__(self):
        self.labels = {"pool": "a"}
        self.pods = None
        # whether the API server has responded to the first request of each type
        self.answers = []

    def has_answered(self):
        return self.answers.pop(0) if self.answers else True

    def node_labels(self):
        return self.labels

    def pods_by_profile(self):
        return self.pods


class RecordingTracker:
    """A confinement tracker that records its calls."""

    def __init__(self):
        self.calls = []
        self.problems = ()
        self.in_use = frozenset()

    def observe(self, names):
        self.calls.append(("observe", tuple(names)))

    def record_removals(self, names):
        self.calls.append(("removed", tuple(names)))

    def names_in_use(self):
        return self.in_use

    def findings(self):
        return self.problems

    def count(self):
        return len(self.problems)


class DaemonWorld:
    """A daemon with its node, its sources, its publisher and its API server."""

    def __init__(self, path, *, is_published=True, resync_seconds=RESYNC_SECONDS, trackers=None):
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
    def report(self):
        return self.controller.reports.report

    def run_pass(self):
        """Run a pass, publish the labels of the pass on the Node, and deliver the changed Node to
        the agent.
        """
        report = self.controller.run_pass()
        self.publish()
        return report

    def publish(self):
        self.publisher.step()
        self.watch.deliver()

    def calls_for_pass(self, *reasons):
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

    def sleep(self):
        """Wait until a pass is due, and return the number of seconds that the wait took."""
        begin = self.clock.now
        self.queue.reasons.clear()
        self.controller.wait()
        return round(self.clock.now - begin, 6)

    def labels(self):
        return {key.partition("/")[2] for key in self.server.labels if key.startswith("apparmor.")}

    def loaded(self):
        return set(self.node.loaded)

    def reason(self, name="old"):
        return next(row.reason for row in self.report.profiles if row.name == name)

    def rows(self):
        return {
            row.name or row.key: (row.state, row.action, row.reason) for row in self.report.profiles
        }


def converged_world(path, **options):
    """Return a daemon that has installed and labelled three profiles."""
    world = DaemonWorld(path, **options)
    for _ in range(4):
        world.run_pass()
    assert world.labels() == world.loaded() == {"web", "old", "third"}
    world.queue.reasons.clear()
    world.sink.received.clear()
    return world
