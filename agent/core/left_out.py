"""Describes the files and keys of a source that are not read as profiles.

Sources report the files and keys that they leave out, so that the user notices a profile with an
unsuitable name. No source reports hidden files, whose names begin with a dot. This module
performs no I/O.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.vocabulary import LeftOutReason

_MOST_NAMES: Final = 10  # The largest number of names in one message.

_MESSAGES: Final = {
    LeftOutReason.NAME: (
        "{} was skipped because of its name: {}.",
        "{} were skipped because of their names: {}.",
        "key",
    ),
    LeftOutReason.RESOURCE: (
        "{} was skipped, because only ConfigMaps provide profiles: {}.",
        "{} were skipped, because only ConfigMaps provide profiles: {}.",
        "resource",
    ),
    LeftOutReason.KIND: (
        "{} was skipped because of --kinds: {}.",
        "{} were skipped because of --kinds: {}.",
        "key",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """The inputs of one profile set that are left out for the same reason."""

    reason: LeftOutReason
    count: int
    names: tuple[str, ...]
    """The first of the names; a message contains only these names."""

    hint: str = ""
    """The hint for a user who wants to install one of the inputs."""

    @property
    def message(self) -> str:
        """The sentence that a message contains about these inputs."""
        singular, plural, noun = _MESSAGES[self.reason]
        names = ", ".join(self.names)
        omitted = self.count - len(self.names)
        names += f" and {omitted} more" if omitted else ""
        if self.count == 1:
            return singular.format(f"1 {noun}", names)
        return plural.format(f"{self.count} {noun}s", names)


def of(reason: LeftOutReason, names: Sequence[str], hint: str = "") -> tuple[LeftOut, ...]:
    """Return a tuple with the description of the inputs; an empty tuple if there are no inputs."""
    if not names:
        return ()
    first = tuple(ascii(name)[1:-1][:100] for name in names[:_MOST_NAMES])
    return (LeftOut(reason=reason, count=len(names), names=first, hint=hint),)


def count(items: Iterable[LeftOut]) -> int:
    """Return the number of all inputs that are left out."""
    return sum(item.count for item in items)


def text(items: Iterable[LeftOut]) -> tuple[str, str]:
    """Return the sentences about all inputs, and the hints."""
    items = tuple(items)
    hints = dict.fromkeys(item.hint for item in items if item.hint)
    return " ".join(item.message for item in items), " ".join(hints)


def finding(profile_set: str, items: Sequence[LeftOut]) -> Finding:
    """Return a notice about the inputs of a profile set that are left out."""
    message, hint = text(items)
    return Finding(code=FindingCode.INPUT_SKIPPED, location=profile_set, message=message, hint=hint)
