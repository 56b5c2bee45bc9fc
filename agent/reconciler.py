"""Runs one pass, which reads, inspects, observes, plans, executes and reports.

The reconciler runs these steps once, in this order, on the main thread. agent.core.plan makes the
decisions, and agent.executor carries out the actions. If the ledger is unreadable, a pass changes
nothing on the node, because the agent does not know which profiles it owns. agent.controller
decides when a pass runs.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent import executor
from agent.core import actions, desired, model, ownership, plan, ports, report_builder
from agent.core.acknowledgements import SHIPPED, Acknowledgements
from agent.core.findings import Finding
from agent.core.model import KeyId, LedgerEntry, Observed, ProfileKind, Unobservable, Unreadable
from agent.core.report import ProfileStatus, Report, merge_reports, repeats_source_state
from agent.core.report_builder import PassResult
from agent.core.vocabulary import ProfileState, Reason
from agent.heartbeat import Heartbeat
from agent.host.ledger import FileLedger
from agent.inspector import Inspector

_LedgerContent = Mapping[KeyId, LedgerEntry] | Finding
_ReadSnapshots = Callable[[_LedgerContent], Sequence[model.Snapshot]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalConditions:
    """The state of the cluster that determines when a profile may be removed."""

    label_absent_seconds: Mapping[tuple[ProfileKind, str], float] | None = None
    """How long the label of each name has been known to be absent; None if removals ignore labels.
    """

    pods_by_profile: Mapping[tuple[ProfileKind, str], tuple[str, ...]] | None = None
    """The pods on this node that reference each profile; None if the pods are unknown."""


class Reconciler:
    """Runs passes over one node. Only the main thread uses this class."""

    def __init__(  # noqa: PLR0913 - the parts of a pass
        self,
        *,
        sources: Sequence[ports.Source],
        backends: Mapping[ProfileKind, ports.ProfileBackend],
        ledger: FileLedger,
        options: plan.PlanOptions,
        allow_empty: bool,
        heartbeat: Heartbeat,
        observe_modules: Callable[[], ports.ModuleStates],
        acknowledged: Acknowledgements = SHIPPED,
    ) -> None:
        """Build a reconciler. The constructor neither reads nor changes the node.

        Args:
            sources: the sources of profiles.
            backends: the code of each profile kind, in the order of the plan.
            ledger: the record of what the agent installed.
            options: the operator's settings for removals and ownership.
            allow_empty: whether the agent removes the profiles of an emptied profile set.
            heartbeat: records a beat between keys and between actions.
            observe_modules: returns the states of the security modules that are only reported.
            acknowledged: the warnings that the operator accepts.
        """
        self.sources = _Sources(sources, allow_empty=allow_empty)
        self.backends = backends
        self.ledger = ledger
        self.options = options
        self.heartbeat = heartbeat
        self.modules = _Modules(observe_modules)
        self.inspector = Inspector(backends, heartbeat, acknowledged)
        self._pass_number = 0
        self._converged: tuple[_PassInputs, Report] | None = None
        self._observed_names: _ObservedNames | None = None

    def run(
        self,
        *,
        dry_run: bool = False,
        full: bool = True,
        conditions: RemovalConditions = RemovalConditions(),
    ) -> Report:
        """Run one pass.

        Args:
            dry_run: report the planned actions without changing the node.
            full: read everything again. Any other pass trusts stat signatures and revisions, and
                returns the report of the previous pass if the node and the sources are unchanged.
            conditions: the cluster conditions that must be met before a profile is removed.
        """
        if full:
            self._invalidate()
        options = replace(
            self.options,
            label_absent_seconds=conditions.label_absent_seconds,
            pods_by_profile=conditions.pods_by_profile,
        )
        return self._reconcile(self.sources.read, options, dry_run=dry_run)

    def restore(self, *, dry_run: bool = False) -> Report:
        """Reinstall the profiles in the ledger without reading any source, and remove nothing."""
        report = self._reconcile(_unread_sources, self.options, dry_run=dry_run)
        return replace(
            report,
            profiles=tuple(_restored(row) for row in report.profiles),
            profile_sets=(),
            findings=tuple(
                finding for finding in report.findings if not repeats_source_state(finding)
            ),
            desired_names={},
        )

    def run_to_completion(self, run: Callable[[], Report]) -> Report:
        """Run passes until no key is pending, and return the combined report.

        Args:
            run: runs one pass.
        """

        def compiled(finished: int, total: int) -> None:
            self.heartbeat.progress("profile texts compiled", finished, total)

        report = run()
        while report.pending and any(backend.wait(compiled) for backend in self.backends.values()):
            report = merge_reports(report, run())
        return report

    def is_unchanged(self) -> bool:
        """Return whether signatures and revisions show that the node is unchanged since the last
        pass.
        """
        backends = self.backends.values()
        return (
            all(backend.is_unchanged() for backend in backends)
            and self.ledger.is_unchanged()
            and self.modules.is_unchanged()
        )

    def _reconcile(
        self, read: _ReadSnapshots, options: plan.PlanOptions, *, dry_run: bool
    ) -> Report:
        """Run the steps of a pass. If the inputs of the steps are unchanged, return the previous
        report.
        """
        timer = _StepTimer(self.heartbeat)
        for backend in self.backends.values():
            backend.begin_pass()
        with timer.step("read"):
            ledger = self.ledger.entries()
            entries = {} if isinstance(ledger, Finding) else ledger
            snapshots = read(ledger)
        with timer.step("inspect"):
            wanted = self.inspector.desired(snapshots, entries)
        capabilities = {kind: backend.capabilities for kind, backend in self.backends.items()}
        with timer.step("observe"):
            observed = self._observe(wanted, ledger, options)
            modules = self.modules.observe()
        inputs = _PassInputs(revisions=self._revisions(options), observed=observed, modules=modules)
        if self._converged is not None and self._converged[0] == inputs:
            return self._converged[1]
        planned = plan.plan(wanted, entries, observed, options, capabilities)
        with timer.step("act"):
            outcomes = self._execute(planned, entries, dry_run=dry_run)
        self._pass_number += 1
        report = report_builder.build_report(
            PassResult(
                desired=wanted,
                observed=observed,
                capabilities=capabilities,
                sandboxes={kind: backend.sandbox() for kind, backend in self.backends.items()},
                outcomes=outcomes,
                modules=modules,
                findings=(
                    *self.ledger.findings,
                    *_ledger_finding(ledger),
                    *(state.finding for state in modules.values() if state.finding),
                ),
                dry_run=dry_run,
                pass_number=self._pass_number,
                seconds=timer.seconds,
            )
        )
        is_final = _changed_nothing(planned, report) and not report.pending and not dry_run
        self._converged = (inputs, report) if is_final else None
        return report

    def _invalidate(self) -> None:
        """Discard signatures, revisions and earlier results before the next pass."""
        self._converged = None
        self._observed_names = None
        self.inspector.invalidate()
        self.ledger.invalidate()
        self.sources.invalidate()
        for backend in self.backends.values():
            backend.invalidate()

    # --- observe and execute ---------------------------------------------------------------------

    def _revisions(self, options: plan.PlanOptions) -> "_Revisions":
        return _Revisions(
            desired=self.inspector.revision, ledger=self.ledger.revision, options=options
        )

    def _observe(
        self, wanted: desired.Desired, ledger: _LedgerContent, options: plan.PlanOptions
    ) -> dict[ProfileKind, Observed]:
        """Observe every desired and every recorded profile on the node."""
        if isinstance(ledger, Finding):
            return {kind: Unobservable(finding=ledger) for kind in self.backends}
        revisions = self._revisions(options)
        names = self._observed_names
        if names is None or names.revisions != revisions:
            names = _names_to_observe(wanted, ledger, revisions, frozenset(self.backends))
            self._observed_names = names
        return {
            kind: backend.observe(names.names[kind], names.removal_candidates[kind])
            for kind, backend in self.backends.items()
        }

    def _execute(
        self,
        planned: Sequence[actions.Action],
        entries: Mapping[KeyId, LedgerEntry],
        *,
        dry_run: bool,
    ) -> tuple[actions.Outcome, ...]:
        """Carry out the plan, and delete stored content that no ledger entry needs any longer."""
        runner = executor.Executor(
            backends=self.backends,
            ledger=self.ledger,
            entries=entries,
            clock=self.heartbeat.beat,
            progress=self.heartbeat.progress,
        )
        outcomes = runner.execute(planned, dry_run=dry_run)
        if not dry_run and runner.entries != entries:
            self.ledger.sweep(runner.entries)
        return outcomes


class _Sources:
    """The sources of profiles, which a pass reads together."""

    def __init__(self, sources: Sequence[ports.Source], *, allow_empty: bool) -> None:
        self.sources = sources
        self.allow_empty = allow_empty

    def invalidate(self) -> None:
        """Read the content of every source at the next `read`."""
        for source in self.sources:
            source.invalidate()

    def read(self, ledger: _LedgerContent) -> list[model.Snapshot]:
        """Return every profile set that the sources provide, and the state of each recorded set
        that they do not provide.
        """
        snapshots = [
            self._as_intended(snapshot) for source in self.sources for snapshot in source.read()
        ]
        if not isinstance(ledger, Finding):
            recorded = {id_.profile_set for id_ in ledger}
            snapshots += self._absent(recorded - {one.profile_set for one in snapshots})
        return snapshots

    def _as_intended(self, snapshot: model.Snapshot) -> model.Snapshot:
        """If --allow-empty is set, treat an emptied profile set as completely read."""
        if not self.allow_empty or not isinstance(snapshot, model.Emptied):
            return snapshot
        return model.Read(
            profile_set=snapshot.profile_set, revision=snapshot.revision, source_keys=()
        )

    def _absent(self, profile_sets: set[str]) -> list[model.Snapshot]:
        """Return the state of profile sets that no source provided."""
        snapshots: list[model.Snapshot] = []
        for profile_set in sorted(profile_sets):
            answers = [source.explain_absence(profile_set) for source in self.sources]
            known = [answer for answer in answers if answer is not None]
            # A set that one source cannot read, and that another source does not have, counts as
            # unreadable.
            known.sort(key=lambda answer: not isinstance(answer, Unreadable))
            snapshots += known[:1]
        return snapshots


class _Modules:
    """The security modules that are only reported, and their states in the last pass."""

    def __init__(self, read: Callable[[], ports.ModuleStates]) -> None:
        self.read = read
        self.states: ports.ModuleStates = {}

    def observe(self) -> ports.ModuleStates:
        """Return the current states."""
        self.states = self.read()
        return self.states

    def is_unchanged(self) -> bool:
        """Return whether the states are the same as in the last pass."""
        return self.read() == self.states


@dataclass(frozen=True, slots=True, kw_only=True)
class _Revisions:
    """The inputs that determine the profile names to observe."""

    desired: int
    ledger: int
    options: plan.PlanOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class _PassInputs:
    """The inputs that determine the report of a pass."""

    revisions: _Revisions
    observed: Mapping[ProfileKind, Observed]
    modules: ports.ModuleStates


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObservedNames:
    """The profile names to observe for each backend."""

    revisions: _Revisions
    names: Mapping[ProfileKind, frozenset[str]]
    removal_candidates: Mapping[ProfileKind, frozenset[str]]


def _names_to_observe(
    wanted: desired.Desired,
    entries: Mapping[KeyId, LedgerEntry],
    revisions: _Revisions,
    kinds: frozenset[ProfileKind],
) -> _ObservedNames:
    """Return the names of all desired and recorded profiles, and the candidates for a removal."""
    names: dict[ProfileKind, set[str]] = {kind: set() for kind in kinds}
    recorded: dict[ProfileKind, set[str]] = {kind: set() for kind in kinds}
    for id_, profile in wanted.profiles.items():
        names[id_.kind].update(profile.version.names)
    for entry in entries.values():
        if entry.id.kind in recorded:
            recorded[entry.id.kind].update(ownership.recorded_names(entry))
    candidates = plan.removal_candidates(wanted, entries, revisions.options)
    return _ObservedNames(
        revisions=revisions,
        names={kind: frozenset(names[kind] | recorded[kind]) for kind in kinds},
        removal_candidates={kind: frozenset(candidates & recorded[kind]) for kind in kinds},
    )


def _changed_nothing(planned: Sequence[actions.Action], report: Report) -> bool:
    """Return whether a pass changed nothing and left no work for a later pass."""
    return all(isinstance(action, actions.Keep | actions.Hold) for action in planned) and all(
        row.state not in (ProfileState.FAILED, ProfileState.UNOBSERVABLE) and row.desired
        for row in report.profiles
    )


def _ledger_finding(ledger: _LedgerContent) -> tuple[Finding, ...]:
    """Return the finding about a ledger that cannot be read."""
    return (ledger,) if isinstance(ledger, Finding) else ()


def _unread_sources(ledger: _LedgerContent) -> list[model.Snapshot]:
    """Return every profile set in the ledger as unreadable, so that its profiles stay on the
    node.
    """
    profile_sets = set() if isinstance(ledger, Finding) else {id_.profile_set for id_ in ledger}
    return [
        Unreadable(profile_set=profile_set, reason="restore reads no source")
        for profile_set in sorted(profile_sets)
    ]


def _restored(row: ProfileStatus) -> ProfileStatus:
    """Return rows without the reason "source unavailable", because `restore` reads no sources."""
    if row.state != ProfileState.HELD or not row.desired or row.reason == Reason.SOURCE_UNREADABLE:
        return row
    reason = Reason.NONE if row.reason == Reason.SOURCE_UNAVAILABLE else row.reason
    return replace(row, state=ProfileState.INSTALLED, reason=reason)


class _StepTimer:
    """Measures how many seconds each step of a pass takes."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record how many seconds the block takes."""
        begin = self.heartbeat.beat()
        yield
        self.seconds[name] = self.heartbeat.beat() - begin
