"""Plans a pass: a pure function turns desired keys, ledger entries and observations into actions.

This package reads and changes nothing, and the same input always results in the same plan. A
profile is replaced or removed only if the ledger proves that this agent installed it. A profile
name that a current key provides is never removed. `agent.executor` carries out the actions.

| profile set | desired       | ledger        | on the node           | action                     |
| ----------- | ------------- | ------------- | --------------------- | -------------------------- |
| read        | desired       | -             | absent                | Install (new)              |
| read        | desired       | -             | same content          | Adopt                      |
| read        | desired       | -             | other content         | Hold (foreign)             |
| read        | desired       | this version  | same content          | Keep                       |
| read        | desired       | this version  | other content or mode | Restore (drifted)          |
| read        | desired       | adopted       | other content or mode | Hold (foreign)             |
| read        | desired       | this version  | foreign, same content | Keep                       |
| read        | desired       | this version  | foreign, other        | Hold (foreign)             |
| read        | desired       | this version  | absent                | Restore (went missing)     |
| read        | desired       | other version | agent-owned or absent | Replace (changed)          |
| read        | desired       | staged only   | staged version        | Replace (unfinished)       |
| read        | desired       | staged only   | foreign, same content | Adopt                      |
| read        | desired       | other staged  | staged version        | Replace (unfinished)       |
| read        | desired       | other version | foreign, same content | Adopt                      |
| read        | fewer names   | installed     | dropped name present  | Remove the dropped name    |
| read        | fewer names   | staged        | dropped name present  | Remove the dropped name    |
| read        | rejected      | installed     | same content          | Hold (rejected)            |
| read        | rejected      | installed     | absent or other       | Restore last good version  |
| read        | rejected      | installed     | foreign, other        | Hold (foreign)             |
| read        | rejected      | staged only   | any                   | Hold (rejected)            |
| read        | pending       | -             | any                   | Hold (pending)             |
| read        | pending       | installed     | same content          | Hold (pending)             |
| read        | pending       | installed     | absent or other       | Restore last good version  |
| read        | may conflict  | -             | absent                | Hold (pending)             |
| read        | not desired   | installed     | present, not in use   | Remove                     |
| read        | not desired   | installed     | in use, or unknown    | Hold (in_use, use_unknown) |
| read        | not desired   | installed     | label or grace period | Hold (label_pending)       |
| read        | not desired   | installed     | other content         | Release (foreign)          |
| read        | not desired   | installed     | foreign, same content | Release (foreign)          |
| read        | other pending | any           | present               | Hold (pending)             |
| read        | not desired   | adopted       | present               | Release (adopted)          |
| read        | not desired   | installed     | absent                | Release (absent)           |
| read        | not desired   | staged only   | staged version        | Remove                     |
| read        | not desired   | staged only   | other or foreign      | Release (foreign)          |
| read        | not desired   | staged only   | absent                | Release (never installed)  |
| read        | not desired   | installed     | owned by another key  | Release (moved)            |
| read        | not desired   | installed     | rejected key needs it | Hold (still needed)        |
| not read    | unknown       | installed     | same content          | Hold (source unavailable)  |
| not read    | unknown       | installed     | absent or other       | Restore last good version  |
| not read    | unknown       | staged only   | staged version        | Hold (source unavailable)  |
| missing     | unknown       | installed     | owned by another key  | Release (moved)            |
| unrelated   | any           | any           | any                   | no action                  |
| any         | any           | any           | unobservable          | Hold                       |

Profile set: a set that is missing, empty or unreadable was "not read"; a set that no configured
source provides is "unrelated". Desired: the accepted version of a key is "desired". A key also
counts as "rejected" if it conflicts with another key, or if this node cannot check it. A version
"may conflict" if a pending key may declare a profile name that the version adds. Ledger: the
installed version in the ledger entry of the key. A "staged" version belongs to an installation that
did not finish; "other staged" means a staged version in the ledger entry of another key. A staged
version that is not desired is removed or held under the same conditions as an installed version. On
the node: "same content" is the content of the desired version, or of the installed version if no
version is desired. A "foreign" object was created by another program. "Replace (changed)" includes
versions that were compiled again from the same source.
"""

from collections.abc import Iterable, Mapping

from agent.core.actions import Action
from agent.core.desired import Desired
from agent.core.model import KeyId, LedgerEntry, Observation, Observed, ProfileKind
from agent.core.ownership import is_installed_by_agent, owned_names, recorded_names
from agent.core.plan.claims import claimed_names
from agent.core.plan.context import PlanContext
from agent.core.plan.desired_keys import DesiredKeyPlanner
from agent.core.plan.last_good import plan_without_version
from agent.core.plan.options import PlanOptions
from agent.core.plan.undesired_names import UndesiredNamePlanner
from agent.core.plan.unobservable import plan_unobservable
from agent.core.ports import Capabilities
from agent.core.vocabulary import ProfileState, PruneMode, Reason

__all__ = ["PlanOptions", "plan", "removal_candidates"]


def removal_candidates(
    desired: Desired, entries: Mapping[KeyId, LedgerEntry], options: PlanOptions
) -> frozenset[str]:
    """Return the profile names that the plan may remove. The caller then observes whether these
    profiles are in use.
    """
    claimed = claimed_names(desired, entries)
    return frozenset(
        name
        for entry in entries.values()
        if options.prune != PruneMode.NEVER and entry.id.profile_set in desired.profile_sets
        for name in recorded_names(entry)
        if (entry.id.kind, name) not in claimed
        and (is_installed_by_agent(entry, name) or name not in owned_names(entry))
    )


def plan(
    desired: Desired,
    entries: Mapping[KeyId, LedgerEntry],
    observed: Mapping[ProfileKind, Observed],
    options: PlanOptions,
    capabilities: Mapping[ProfileKind, Capabilities],
) -> tuple[Action, ...]:
    """Return the actions of a pass; for each kind, installations come first and removals come
    last.
    """
    actions: list[Action] = []
    for kind, observation in observed.items():
        if isinstance(observation, Observation):
            context = PlanContext(
                kind=kind,
                capabilities=capabilities[kind],
                options=options,
                desired=desired,
                entries={id_: entry for id_, entry in entries.items() if id_.kind == kind},
                observation=observation,
            )
            actions += _plan_kind(context)
        else:
            actions += plan_unobservable(kind, desired, entries, observation)
    return tuple(actions)


def _plan_kind(context: PlanContext) -> Iterable[Action]:
    """Return the actions for one kind that was observed."""
    planner = DesiredKeyPlanner(context)
    yield from planner.actions()
    yield from _plan_unaccepted_keys(context)
    yield from UndesiredNamePlanner(context, planner.claims()).actions()


def _plan_unaccepted_keys(context: PlanContext) -> Iterable[Action]:
    """Decide whether to hold or restore the last good versions of rejected, unchecked and pending
    keys.
    """
    desired = context.desired
    for id_ in context.sorted_keys(desired.rejections):
        yield plan_without_version(
            context,
            id_,
            Reason.REJECTED,
            ProfileState.REJECTED,
            desired.rejections[id_].findings,
        )
    for id_ in context.sorted_keys(desired.unchecked):
        yield plan_without_version(
            context,
            id_,
            Reason.UNCHECKED,
            ProfileState.UNSUPPORTED,
            (desired.unchecked[id_].finding,),
        )
    for id_ in context.sorted_keys(desired.pending):
        yield plan_without_version(
            context, id_, Reason.PENDING, ProfileState.PENDING, desired.pending[id_].findings
        )
