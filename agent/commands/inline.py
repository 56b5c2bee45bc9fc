"""Expands the include rules of AppArmor profiles, for the commands that have `--include`.

The agent itself never expands include rules, because a key can include only files on the node.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agent.backends.apparmor import include_expansion, source_checks
from agent.backends.apparmor.include_expansion import ExpansionError, Origin
from agent.backends.apparmor.include_files import IncludeDirectories
from agent.core import classify
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import SourceKey
from agent.sources import limits

_LINE: Final = re.compile(r"line (\d{1,9})")
_LINE_IN_MESSAGE: Final = re.compile(r"(?<!\S) at line (\d{1,9})\b|(?<=error) at line (\d{1,9})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlined:
    """A key after the expansion of its include rules."""

    source_key: SourceKey
    origins: tuple[Origin, ...] = ()
    """The origin of each line; empty if the text is unchanged."""

    def located(self, finding: Finding) -> Finding:
        """Return a finding whose line numbers refer to the original text and its includes."""
        line = _LINE.fullmatch(finding.location)
        location = self._origin(line[1]) if line is not None else None
        message = _LINE_IN_MESSAGE.sub(self._place, finding.message)
        return replace(finding, location=str(location or finding.location), message=message)

    def _origin(self, number: str) -> Origin | None:
        index = int(number) - 1
        return self.origins[index] if 0 <= index < len(self.origins) else None

    def _place(self, match: re.Match[str]) -> str:
        origin = self._origin(match[1] or match[2])
        if origin is None:
            return match[0]
        file = f" in {origin.file}" if origin.file else ""
        return f"{file} at line {origin.line}"


class Inliner:
    """Inserts included files from the given directories into the texts of AppArmor keys."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._files = IncludeDirectories(directories, max_bytes=limits.KEY_BYTES)

    def inline(self, source_key: SourceKey) -> Inlined | tuple[Finding, ...]:
        """Return a key with an expanded text, or the errors that prevented the expansion.

        A key that is not an AppArmor profile is returned unchanged.
        """
        if classify.classify(source_key.path, source_key.content) != "apparmor":
            return Inlined(source_key=source_key)
        errors = source_checks.errors(source_key.content)
        if errors:
            return errors
        text = source_key.content.decode("utf-8")
        try:
            expanded = include_expansion.expand(text, self._files, max_characters=limits.KEY_BYTES)
        except ExpansionError as error:
            return (_not_expanded(error),)
        content = expanded.text.encode("utf-8")
        return Inlined(source_key=replace(source_key, content=content), origins=expanded.origins)


def missing_directories(directories: Sequence[str]) -> list[str]:
    """Return a message for each include directory that does not exist."""
    return [f"--include {path}: not a directory" for path in directories if not Path(path).is_dir()]


def _not_expanded(error: ExpansionError) -> Finding:
    return Finding(
        code=FindingCode.INCLUDE_REFUSED,
        location=str(error.origin),
        message=f"The includes in the text cannot be expanded: {error}.",
        hint=error.hint,
    )
