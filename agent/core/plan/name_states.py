"""Determines the state of each name of an accepted profile from the ledger and the node."""

from dataclasses import dataclass, field

from agent.core.model import Evidence, KeyId, LedgerEntry, ObservedProfile, Profile
from agent.core.ownership import evidence_of, has_same_content, is_agent_owned, is_staged
from agent.core.plan.context import PlanContext


@dataclass(slots=True)
class NameStates:
    """The names of one profile, grouped by their states. Each name is in exactly one of the
    collections.
    """

    intact: dict[str, Evidence] = field(default_factory=dict)
    """Profile names that the ledger owns and that are on the node with the recorded content."""

    drifted: list[str] = field(default_factory=list)
    """Profile names that the ledger owns and whose profile was changed on the node."""

    missing: list[str] = field(default_factory=list)
    """Profile names that the ledger owns and that are absent from the node."""

    new: list[str] = field(default_factory=list)
    """Profile names that the ledger does not own and that are absent from the node."""

    same_content: dict[str, Evidence] = field(default_factory=dict)
    """Profile names that the ledger does not own, but that are on the node with the desired
    content."""

    unfinished: list[str] = field(default_factory=list)
    """Profile names that are on the node because of an installation that did not finish."""

    taken_over: list[str] = field(default_factory=list)
    """Names of foreign profiles for which `--take-over` permits a replacement."""

    foreign: list[str] = field(default_factory=list)

    @property
    def replaceable(self) -> frozenset[str]:
        """The names under which the content on the node may be replaced."""
        return frozenset([*self.intact, *self.drifted, *self.unfinished, *self.taken_over])


def name_states(context: PlanContext, profile: Profile) -> NameStates:
    """Group the names of a profile by state."""
    sorter = _NameSorter(context, profile)
    for name in profile.version.names:
        sorter.sort(name)
    states = sorter.states
    if len(states.same_content) < len(profile.version.names):
        # The profile is adopted only if all of its names can be adopted.
        states.foreign += states.same_content
        states.same_content.clear()
    return states


class _NameSorter:
    """Groups the names of one profile by state."""

    def __init__(self, context: PlanContext, profile: Profile) -> None:
        self.context = context
        self.profile = profile
        self.states = NameStates()

    def sort(self, name: str) -> None:
        """Add one profile name to the collection of its state."""
        observed = self.context.observed(name)
        owner = _owner(self.context, self.profile.id, name)
        if observed is not None:
            self._sort_present(name, observed, owner)
        elif owner is None:
            self.states.new.append(name)
        else:
            self.states.missing.append(name)

    def _sort_present(
        self, name: str, observed: ObservedProfile, owner: LedgerEntry | None
    ) -> None:
        """Add one name that is on the node to the collection of its state."""
        states = self.states
        take_over = name in self.context.options.take_over
        match = self.context.matching_entry(owner, name, observed) if owner is not None else None
        if match is not None and not (take_over and observed.is_agent_object is False):
            states.intact[name] = evidence_of(match, name)
        elif self._is_staged(name, observed):
            (states.unfinished if owner is None else states.drifted).append(name)
        elif owner is not None and is_agent_owned(owner, name, observed):
            states.drifted.append(name)
        elif take_over:
            states.taken_over.append(name)
        elif self._has_desired_content(name, observed):
            states.same_content[name] = observed.evidence
        else:
            states.foreign.append(name)

    def _is_staged(self, name: str, observed: ObservedProfile) -> bool:
        """Return whether the profile is on the node because of an unfinished installation of any
        key.
        """
        entries = self.context.staging.get(name, ())
        return any(is_staged(entry.staged, name, observed) for entry in entries)

    def _has_desired_content(self, name: str, observed: ObservedProfile) -> bool:
        version = self.profile.version
        evidence = version.evidence.get(name, frozenset())
        return has_same_content(evidence, observed, version.modes.get(name, ""))


def _owner(context: PlanContext, id_: KeyId, name: str) -> LedgerEntry | None:
    """Return a ledger entry that owns a profile name, preferably the key's own entry."""
    owners = context.owners_of(name)
    return min(owners, key=lambda entry: (entry.id != id_, entry.provenance), default=None)
