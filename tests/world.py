"""Simulates a node in memory with one backend and one ledger, for properties of the core.

The text of a profile has the form `NAME[,NAME]:CONTENT`. The backend rejects a text that begins
with `!`, and the node rejects the content `?`.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.core import model, plan
from agent.core.actions import Outcome
from agent.core.desired import join
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    InUse,
    KeyId,
    LedgerEntry,
    Observation,
    ObservedProfile,
    Profile,
    ProfileKind,
    Rejection,
    UnknownUse,
    Unused,
    Version,
)
from agent.core.ownership import recorded_names
from agent.core.ports import (
    Capabilities,
    Failed,
    Installed,
    InstalledForm,
    ProfileBackend,
    Removed,
    Source,
    StillInUse,
)
from agent.executor import Executor
from agent.heartbeat import Heartbeat
from agent.host.ledger import FileLedger
from agent.reconciler import Reconciler


class Killed(BaseException):
    """Simulates the end of the process by SIGKILL."""


@dataclass
class Steps:
    """Counts effects, and stops the process before the effect with the number `fatal`."""

    fatal: int = -1
    count: int = 0

    def __call__(self) -> None:
        if self.count == self.fatal:
            raise Killed
        self.count += 1


def token(content: bytes) -> model.Evidence:
    return frozenset({f"raw:{model.digest(content)}"})


@dataclass
class Node:
    """The state that remains when the agent exits: loaded profiles, their users and the ledger."""

    loaded: dict[str, bytes] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    readable: bool = True  # Whether the node shows the content of loaded profiles.
    # For each name, the number of the loaded object.
    objects: dict[str, int] = field(default_factory=dict)
    # For each name, the number of its last write.
    stamps: dict[str, int] = field(default_factory=dict)
    count: int = 0  # The number of objects and writes so far.
    # For each name, the number in the agent's record of its objects.
    own: dict[str, int] = field(default_factory=dict)
    # the names of a load that was not recorded, and the count before it
    loading: tuple[frozenset[str], int] = (frozenset(), 0)
    # The agent does not know the following facts.
    # The objects that this agent loaded or overwrote.
    created: set[int] = field(default_factory=set)
    # The name, the object and the content for each overwrite by this agent.
    touched: list[tuple[str, int, bytes]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # The objects that this agent removed.
    entries: dict[KeyId, LedgerEntry] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    # For each name, the content that this agent loaded last.
    last_loaded: dict[str, bytes] = field(default_factory=dict)
    full: bool = False  # Whether the disk is full, so that no entry can be written.

    def number(self) -> None:
        """Assign numbers to the loaded objects. Each new object gets a new number."""
        for name in self.objects.keys() - self.loaded.keys():
            del self.objects[name]
        for name in sorted(self.loaded.keys() - self.objects.keys()):
            self.count += 1
            self.objects[name] = self.stamps[name] = self.count

    def evidence(self, name: str) -> model.Evidence:
        """Return the evidence that the node shows for a loaded profile."""
        if self.readable:
            return token(self.loaded[name])
        return frozenset({f"object:{self.objects[name]}:{self.stamps[name]}"})

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Load or replace profiles in one step, as another program on the node does."""
        self.number()
        self.count += 1
        for name, content in contents.items():
            self.loaded[name] = content
            self.objects.setdefault(name, self.count * 100 + len(self.objects))
            self.stamps[name] = self.count

    def unload(self, name: str) -> None:
        """Remove a profile as another program on the node does."""
        self.loaded.pop(name, None)
        self.count += 1
        self.number()

    def install(self, contents: Mapping[str, bytes]) -> None:
        """Load profiles as this agent does, but without a ledger entry."""
        self.write(contents)
        self.own |= {name: self.objects[name] for name in contents}
        self.created |= {self.objects[name] for name in contents}

    def reboot(self) -> None:
        """Discard the state that does not survive a reboot of the machine."""
        self.loaded.clear()
        self.used.clear()
        self.own.clear()
        self.loading = (frozenset(), 0)
        self.number()

    def finish_record(self) -> None:
        """Complete the record of a killed agent's load, unless a profile was loaded or removed
        afterwards.
        """
        names, count = self.loading
        self.loading = (frozenset(), 0)
        if self.count == count + 1:
            self.own |= {name: self.objects[name] for name in names if name in self.objects}

    def is_own(self, name: str) -> bool:
        """Return whether this agent loaded the current object of the name."""
        return name in self.own and self.own[name] == self.objects[name]


def body(profile: model.Profile) -> bytes:
    """Return the bytes that MemoryKind installs for a profile."""
    return b"compiled " + profile.source


CAPABILITIES: dict[ProfileKind, Capabilities] = {
    "apparmor": Capabilities(removal_unconfines=True, installed_form=InstalledForm.POLICY),
    "seccomp": Capabilities(removal_unconfines=False, installed_form=InstalledForm.FILE),
}


class MemoryKind:
    """A backend whose node is a dictionary.

    All names of a key are loaded together, as by a kernel.
    """

    name: ProfileKind = "apparmor"
    capabilities = CAPABILITIES[name]

    def __init__(self, node: Node, steps: Steps) -> None:
        self.node, self.steps = node, steps

    def accepts_context(self, context: str) -> bool:
        return context == ""

    def begin_pass(self) -> None:
        pass

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        return False

    def inspect(self, blob: model.SourceKey) -> model.Inspected:
        id_ = KeyId(kind=self.name, profile_set=blob.profile_set, key=blob.key)
        if blob.content.startswith(b"!"):
            finding = Finding(
                code=FindingCode.PARSER_REJECTED, location=blob.key, message="refused"
            )
            return Rejection(id=id_, findings=(finding,))
        names = tuple(sorted(set(blob.content.split(b":")[0].decode().split(","))))
        version = Version(
            names=names,
            source_digest=model.digest(blob.content),
            body_digest=model.digest(b"compiled " + blob.content),
            evidence={name: token(b"compiled " + blob.content) for name in names},
        )
        size = len(b"compiled " + blob.content)
        return Profile(id=id_, version=version, source=blob.content, body_size=size)

    def body(self, profile: model.Profile) -> bytes | None:
        made = body(profile)
        return made if model.digest(made) == profile.version.body_digest else None

    def discard(self, profile: model.Profile) -> None:
        pass

    def is_unchanged(self) -> bool:
        return False

    def invalidate(self) -> None:
        pass

    def sandbox(self) -> None:
        return None

    def observe(
        self, names: Collection[str], removal_candidates: Collection[str]
    ) -> model.Observed:
        node = self.node
        node.number()
        node.finish_record()
        facts = {
            name: ObservedProfile(
                evidence=node.evidence(name),
                is_agent_object=node.is_own(name),
                is_readable=node.readable,
            )
            for name in names
            if name in node.loaded
        }
        uses = {
            name: InUse(pids=(1,)) if name in self.node.used else Unused()
            for name in removal_candidates
        }
        return Observation(profiles=facts, uses=uses)

    def install(
        self,
        profile: model.Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        names = profile.version.names
        if body.endswith(b":?"):
            return Failed(
                finding=Finding(
                    code=FindingCode.KERNEL_REFUSED, location=names[0], message="EPROTO"
                )
            )
        for name in names:
            if name in self.node.loaded and name not in replaceable:
                finding = Finding(
                    code=FindingCode.FOREIGN_NAME, location=name, message="appeared meanwhile"
                )
                return Failed(finding=finding)
        node = self.node
        node.number()
        mine = frozenset(names) - frozenset(foreign)
        self.steps()
        node.loading = (mine, node.count)
        self.steps()
        for name in names:
            if node.loaded.get(name, body) != body:
                node.touched.append((name, node.objects[name], node.loaded[name]))
        # A kernel that stores the bytes of profiles skips a profile with equal bytes.
        there = [item for item in names if node.readable and node.loaded.get(item) == body]
        node.write({name: body for name in names if name not in there})
        node.created |= {node.objects[name] for name in mine}
        node.last_loaded |= dict.fromkeys(names, body)
        self.steps()
        node.own |= {name: node.objects[name] for name in mine}
        node.loading = (frozenset(), 0)
        self.steps()
        return Installed(evidence={name: node.evidence(name) for name in names}, modes={})

    def remove(
        self,
        names: Collection[str],
        evidence: Mapping[str, model.Evidence],
        *,
        require_unused: bool,
    ) -> Removed | StillInUse | Failed:
        if require_unused and self.node.used & set(names):
            return StillInUse(uses={name: UnknownUse(reason="used") for name in names})
        for name in names:
            if name not in self.node.loaded:
                continue
            self.node.number()
            if not self.node.evidence(name) & evidence[name] or not self.node.is_own(name):
                return Failed(
                    finding=Finding(
                        code=FindingCode.FOREIGN_NAME, location=name, message="replaced"
                    )
                )
        self.steps()
        for name in names:
            self.node.lost += [self.node.objects[name]] if name in self.node.loaded else []
            self.node.unload(name)
            self.node.removed.append(name)
        return Removed()


FULL = Finding(code=FindingCode.WRITE_FAILED, location="ledger", message="ENOSPC")


class MemoryLedger(FileLedger):
    """A ledger in memory, which passes the same contract tests as the file ledger."""

    def __init__(self, node: Node, steps: Steps) -> None:
        self.node, self.steps = node, steps
        self.findings = []
        self.revision = 0

    def invalidate(self) -> None:
        pass

    def sweep(self, entries: Mapping[KeyId, LedgerEntry]) -> None:
        pass

    def entries(self) -> Mapping[KeyId, LedgerEntry] | Finding:
        self.revision += 1
        return dict(self.node.entries)

    def write(self, entry: LedgerEntry) -> Finding | None:
        if self.node.full:
            return FULL
        self.steps()
        self.node.entries[entry.id] = entry
        return None

    def delete(self, id_: KeyId) -> Finding | None:
        self.steps()
        self.node.entries.pop(id_, None)
        return None

    def store_content(self, content: bytes) -> Finding | None:
        if self.node.full:
            return FULL
        if model.digest(content) not in self.node.bodies:
            self.steps()
            self.node.bodies[model.digest(content)] = content
        return None

    def has_content(self, digest: str) -> bool:
        return digest in self.node.bodies

    def content(self, digest: str) -> bytes | None:
        return self.node.bodies.get(digest)


def run_pass(
    node: Node,
    snapshots: Sequence[model.Snapshot],
    *,
    steps: Steps | None = None,
    observed: model.Observed | None = None,
    options: plan.PlanOptions | None = None,
) -> tuple[Outcome, ...]:
    """Run one pass over the node, and return the outcomes of its actions."""
    steps = steps or Steps()
    options = options or plan.PlanOptions()
    kind, ledger = MemoryKind(node, steps), MemoryLedger(node, steps)
    desired = join(snapshots, lambda _, key: kind.inspect(key), frozenset({kind.name}))
    entries = ledger.entries()
    assert not isinstance(entries, Finding)
    names = {name for profile in desired.profiles.values() for name in profile.version.names}
    names |= {name for entry in entries.values() for name in recorded_names(entry)}
    candidates = plan.removal_candidates(desired, entries, options)
    observation = observed or kind.observe(names, candidates)
    actions = plan.plan(desired, entries, {kind.name: observation}, options, CAPABILITIES)
    executor = Executor(
        backends={kind.name: kind}, ledger=ledger, entries=entries, clock=lambda: 0.0
    )
    return executor.execute(actions)


def final_state(node: Node) -> tuple[dict[str, bytes], dict[KeyId, LedgerEntry]]:
    """Return the part of the state that does not depend on the sequence of passes."""
    return (
        dict(node.loaded),
        {id_: replace(entry, staged=None) for id_, entry in node.entries.items()},
    )


def build_reconciler(
    sources: Sequence[Source],
    backend: ProfileBackend,
    ledger: FileLedger,
    options: plan.PlanOptions | None = None,
    **more: Any,
) -> Reconciler:
    """Return a reconciler with one backend on a node without other security modules."""
    return Reconciler(
        sources=sources,
        backends={backend.name: backend},
        ledger=ledger,
        options=options or plan.PlanOptions(),
        allow_empty=False,
        **{"heartbeat": Heartbeat(time.monotonic), "observe_modules": dict, **more},
    )
