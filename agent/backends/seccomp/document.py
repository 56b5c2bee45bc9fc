"""Defines the parts of a seccomp profile, and the normal form of an action.

A document contains the same fields as the JSON of the profile. `syntax` reads documents from bytes,
`resolve` removes the conditions that depend on the node, and `meaning` determines the kernel's
response to each call.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

# These numbers rank the actions in the order of seccomp(2). An action with a larger number is
# stricter.
STRICTNESS: Final = {
    "SCMP_ACT_ALLOW": 0,
    "SCMP_ACT_LOG": 1,
    "SCMP_ACT_TRACE": 2,
    "SCMP_ACT_ERRNO": 3,
    "SCMP_ACT_TRAP": 4,
    "SCMP_ACT_KILL": 5,
    "SCMP_ACT_KILL_THREAD": 5,
    "SCMP_ACT_KILL_PROCESS": 6,
}
# The fields of a profile that at least one runtime reads.
LISTENER_FIELDS: Final = ("listenerPath", "listenerMetadata")
FIELDS: Final = frozenset(
    {
        *("defaultAction", "defaultErrnoRet", "defaultErrno", "architectures", "archMap"),
        *("syscalls", "flags", "comment", *LISTENER_FIELDS),
    }
)
PERMISSIVE: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"})
WITH_ERRNO: Final = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})
_EPERM: Final = 1  # runc and crun use this error number if errnoRet is missing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The kernel's response to a system call, in a normal form.

    In the normal form, SCMP_ACT_KILL becomes SCMP_ACT_KILL_THREAD, and SCMP_ACT_ERRNO without a
    number becomes EPERM.
    """

    action: str
    errno: int = 0  # The number of SCMP_ACT_ERRNO or SCMP_ACT_TRACE; other actions have no number.

    @property
    def is_permissive(self) -> bool:
        """Whether the kernel runs the system call."""
        return self.action in PERMISSIVE

    @property
    def strictness(self) -> int:
        """The rank of the action; a larger number is stricter."""
        return STRICTNESS.get(self.action, 0)


@functools.lru_cache(maxsize=1024)
def answer(action: str, errno_ret: int | None) -> Answer:
    """Return the normal form of an action and its errnoRet."""
    if action in WITH_ERRNO:
        return Answer(action=action, errno=_EPERM if errno_ret is None else errno_ret)
    return Answer(action="SCMP_ACT_KILL_THREAD" if action == "SCMP_ACT_KILL" else action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A comparison of one argument, as an entry of `args`."""

    index: int
    value: int
    value_two: int
    op: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """The content of `includes` or `excludes`, which selects the nodes and pods of a rule."""

    arches: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    min_kernel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry in the field `syscalls`."""

    where: str  # The path of the field in messages, for example syscalls[4].
    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    # The error number as CRI-O writes it: a name such as ENOSYS, or digits.
    errno: str = ""
    args: tuple[Condition, ...] = ()
    includes: Only = field(default_factory=Only)
    excludes: Only = field(default_factory=Only)

    @property
    def answer(self) -> Answer:
        """The kernel's response if the rule applies."""
        return answer(self.action, self.errno_ret)

    @property
    def depends_on_capabilities(self) -> bool:
        """Whether the rule applies only to some pods."""
        return bool(self.includes.caps or self.excludes.caps)

    def applies_with(self, capabilities: Collection[str]) -> bool:
        """Return whether the rule applies to a pod with these capabilities."""
        return set(self.includes.caps) <= set(capabilities) and set(self.excludes.caps).isdisjoint(
            capabilities
        )

    def may_meet(self, other: "Rule") -> bool:
        """Return whether there are capabilities of a pod with which both rules apply."""
        needed = {*self.includes.caps, *other.includes.caps}
        return needed.isdisjoint((*self.excludes.caps, *other.excludes.caps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole profile."""

    default_action: str
    default_errno_ret: int | None = None
    default_errno: str = ""
    architectures: tuple[str, ...] = ()
    arch_map: tuple[tuple[str, tuple[str, ...]], ...] = ()
    has_arch_map: bool = False
    flags: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def default(self) -> Answer:
        """The kernel's response to a system call that no rule matches."""
        return answer(self.default_action, self.default_errno_ret)

    @property
    def effective_rules(self) -> tuple[Rule, ...]:
        """The rules whose action differs from the default action. runc and crun pass only these
        rules to libseccomp.
        """
        default = self.default
        return tuple(rule for rule in self.rules if rule.answer != default)
