"""What may be decided about one key: plain data, for reconcile to act on and account to tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agent.core.model import Evidence, Id, Profile
from agent.core.problems import Problem
from agent.core.report import State

MOVED: Final = "moved"  # another key has the name, once its entry says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Install profile (the desired one), or the entry's installed version when it is None.

    ours: the names whose content on the node may be replaced. others are written as new. foreign:
    those of ours that another program installed with this very content; they stay foreign. former:
    the entries that own any of the names now. back: what to put instead if this one fails, since
    the node lacks the last good version.
    """

    id: Id
    why: str
    names: tuple[str, ...]
    profile: Profile | None
    ours: frozenset[str]
    foreign: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()
    former: frozenset[Id] = frozenset()
    back: "Put | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Track content that is on the node already; it stays somebody else's."""

    id: Id
    why: str
    names: tuple[str, ...]
    profile: Profile
    evidence: Mapping[str, Evidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Nothing to do on the node. inherited: what is known of names that other keys had."""

    id: Id
    why: str
    names: tuple[str, ...]
    profile: Profile
    evidence: Mapping[str, Evidence]
    how: Literal["put", "adopted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Leave the node as it is, for a reason that people should see."""

    id: Id
    why: str
    names: tuple[str, ...]
    state: State
    problems: tuple[Problem, ...] = ()
    desired: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Remove names that are ours and no longer desired; prove: only if nobody uses them."""

    id: Id
    why: str
    names: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    prove: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Forget names; the node stays as it is."""

    id: Id
    why: str
    names: tuple[str, ...]


Action = Put | Adopt | Keep | Hold | Remove | Release
