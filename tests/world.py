"""A node in memory, for properties of the core: one kind, one ledger, one source.

A profile's text is `NAME[,NAME]:CONTENT`; a text that begins with `!` is refused, and content that
is `?` is refused by the node.
"""

from dataclasses import dataclass, field, replace

from agent.core import model, plan
from agent.core.desired import join
from agent.core.model import (
    CannotTell,
    Fact,
    Id,
    InUse,
    Profile,
    Rejection,
    Seen,
    Unused,
    Version,
)
from agent.core.ownership import owned
from agent.core.ports import Failed, Installed, Removed, StillUsed
from agent.core.problems import Problem
from agent.core.reconcile import Reconciler


class Killed(BaseException):
    """The process ended here, as by kill -9."""


@dataclass
class Steps:
    """Counts effects; ends the process before the effect number `fatal`."""

    fatal: int = -1
    count: int = 0

    def __call__(self):
        if self.count == self.fatal:
            raise Killed
        self.count += 1


def token(content):
    return frozenset({f"raw:{model.digest(content)}"})


@dataclass
class Node:
    """What survives the agent: loaded content by name, who uses what, and the ledger's files."""

    loaded: dict = field(default_factory=dict)
    used: set = field(default_factory=set)
    entries: dict = field(default_factory=dict)
    bodies: dict = field(default_factory=dict)
    removed: list = field(default_factory=list)
    put: dict = field(default_factory=dict)  # name -> what this agent loaded last
    full: bool = False  # the ledger cannot be written; a file can be removed still


class MemoryKind:
    """A kind whose node is a dictionary. Loads of one key are atomic, as the kernel's are."""

    name = "apparmor"

    def __init__(self, node, steps):
        self.node, self.steps = node, steps

    def fits(self, context):
        return context == ""

    def prepare(self, blobs, meanwhile):
        pass

    def inspect(self, blob):
        id_ = Id(kind=self.name, origin=blob.origin, key=blob.key)
        if blob.content.startswith(b"!"):
            problem = Problem(code="parser_rejected", where=blob.key, what="refused")
            return Rejection(id=id_, problems=(problem,))
        names = tuple(sorted(set(blob.content.split(b":")[0].decode().split(","))))
        version = Version(
            provides=names,
            source=model.digest(blob.content),
            body=model.digest(b"compiled " + blob.content),
            evidence={name: token(b"compiled " + blob.content) for name in names},
        )
        return Profile(
            id=id_, version=version, source=blob.content, body=b"compiled " + blob.content
        )

    def sandbox(self):
        return None

    def observe(self, names, suspects):
        facts = {
            name: Fact(evidence=token(self.node.loaded[name]))
            for name in names
            if name in self.node.loaded
        }
        uses = {name: InUse(pids=(1,)) if name in self.node.used else Unused() for name in suspects}
        return Seen(facts=facts, uses=uses)

    def put(self, profile, *, ours):
        names = profile.version.provides
        if profile.body.endswith(b":?"):
            return Failed(problem=Problem(code="kernel_refused", where=names[0], what="EPROTO"))
        for name in names:
            if name in self.node.loaded and name not in ours:
                problem = Problem(code="foreign_name", where=name, what="appeared meanwhile")
                return Failed(problem=problem)
        self.steps()
        for name in names:
            self.node.loaded[name] = self.node.put[name] = profile.body
        self.steps()
        return Installed(evidence={name: token(profile.body) for name in names}, modes={})

    def remove(self, names, evidence, *, prove):
        if prove and self.node.used & set(names):
            return StillUsed(uses={name: CannotTell(why="used") for name in names})
        for name in names:
            if name in self.node.loaded and not token(self.node.loaded[name]) & evidence[name]:
                return Failed(problem=Problem(code="foreign_name", where=name, what="replaced"))
        self.steps()
        for name in names:
            self.node.loaded.pop(name, None)
            self.node.removed.append(name)
        return Removed()


FULL = Problem(code="write_failed", where="ledger", what="ENOSPC")


class MemoryLedger:
    """The ledger's contract over dictionaries; the file ledger passes the same contract tests."""

    def __init__(self, node, steps):
        self.node, self.steps = node, steps

    def entries(self):
        return dict(self.node.entries)

    def write(self, entry):
        if self.node.full:
            return FULL
        self.steps()
        self.node.entries[entry.id] = entry
        return None

    def drop(self, id_):
        self.steps()
        self.node.entries.pop(id_, None)

    def keep(self, content):
        if self.node.full:
            return FULL
        if model.digest(content) not in self.node.bodies:
            self.steps()
            self.node.bodies[model.digest(content)] = content
        return None

    def has(self, digest):
        return digest in self.node.bodies

    def body(self, digest):
        return self.node.bodies.get(digest)


def turn(node, snapshots, *, steps=None, observed=None, options=None):
    """Run one pass over the node; return its outcomes."""
    steps = steps or Steps()
    options = options or plan.Options()
    kind, ledger = MemoryKind(node, steps), MemoryLedger(node, steps)
    wanted = join(snapshots, lambda _, blob: kind.inspect(blob), frozenset({kind.name}))
    entries = ledger.entries()
    names = {n for profile in wanted.profiles.values() for n in profile.version.provides}
    names |= {n for entry in entries.values() for n in owned(entry)}
    seen = observed or kind.observe(names, plan.suspects(wanted, entries, options))
    actions = plan.plan(wanted, entries, {kind.name: seen}, options)
    runner = Reconciler(kinds={kind.name: kind}, ledger=ledger, entries=entries, clock=lambda: 0.0)
    return runner.run(actions)


def settled(node):
    """Return what must not differ between two ways to the same end."""
    return (
        dict(node.loaded),
        {id_: replace(entry, staged=None) for id_, entry in node.entries.items()},
    )
