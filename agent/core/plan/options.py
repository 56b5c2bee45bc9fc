"""Defines the operator's settings and the cluster's state that affect removals and ownership."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.model import ProfileKind
from agent.core.vocabulary import PruneMode


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The settings and the state that one plan uses."""

    prune: PruneMode = PruneMode.UNUSED
    take_over: frozenset[str] = frozenset()
    """Names of foreign profiles that may be replaced."""

    grace_seconds: float = 0.0
    """The seconds that a removal waits after the profile's label was removed from the Node."""

    label_absent_seconds: Mapping[tuple[ProfileKind, str], float] | None = None
    """How long each profile has verifiably had no label.

    None if removals do not wait for labels.
    """

    pods_by_profile: Mapping[tuple[ProfileKind, str], tuple[str, ...]] | None = None
    """The pods on this node that reference each profile; None if the pods are unknown."""

    pod_aware: bool = False
    """Whether no profile is removed while the pods on this node are unknown."""
