"""Records the profiles that this agent has loaded into the kernel since the machine started.

The kernel shows each loaded profile in a separate directory. A replaced profile keeps its
directory, and a profile that is loaded again gets a directory with a new number. The kernel never
uses the same number twice in one boot (Linux, security/apparmor/apparmorfs.c: __aafs_profile_mkdir,
__aafs_profile_migrate_dents). Therefore, the boot ID and the directory together identify a loaded
profile. The boot ID and the directory also distinguish the agent's profile from a profile with the
same bytes that another program loaded.

The record is a file of JSON lines in the state directory. Each line is appended without fsync,
because the record must survive the end of the process, but is useless after a machine crash. A
profile that is not in the record counts as foreign, so the loss of the record never causes a
removal.
"""

import contextlib
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from agent.core import common_findings
from agent.core.findings import Finding
from agent.core.model import Evidence, ObservedProfile
from agent.host.file_role import FileRole
from agent.host.filesystem import Host, HostError

FILE: Final = "objects.jsonl"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_LIMIT: Final = 64 << 20
_MOST_LINES: Final = 4096
"""A file that is longer than this is replaced by a file with a single line for all objects."""


class _Line(msgspec.Struct, omit_defaults=True):
    """The data in one line of the record."""

    boot: str = ""
    """The ID of the boot to which the record belongs, in the first line only."""

    loaded: dict[str, str] = {}
    """Maps the name of a profile to its directory below policy/profiles."""

    loading: dict[str, list[str]] = {}
    """The names of the profiles that the agent is about to load, with the evidence of their
    content."""

    revision: int = -1
    """The policy revision right before the profiles named in `loading` were loaded."""


class LoadedObjects:
    """Records which of the loaded profiles this agent owns. Only one agent at a time may write the
    record.
    """

    def __init__(self, host: Host, state_dir: str, *, may_write: bool) -> None:
        self.host = host
        self.state_dir = state_dir
        self.may_write = may_write
        self._boot = ""
        self._own: dict[str, str] = {}
        """Maps the name of a profile to its directory."""

        self._pending = _Line()
        """The last load of an earlier process, if that process ended before it recorded the
        load."""

        self._lines = 0
        """The number of lines in the file, or 0 if the next write must replace the whole file."""

        self._problem: Finding | None = None

    def own(
        self, found: Mapping[str, str], revision: int, profiles: Mapping[str, ObservedProfile]
    ) -> frozenset[str]:
        """Return the names of the loaded profiles that this agent loaded.

        If an earlier process ended after a load but before the record of this load, the agent owns
        the loaded profile only under two conditions. The first condition is that the load was the
        only change of policy; each change increments the revision. The second condition is that the
        kernel shows either the content that the agent intended to load, or no content at all. If
        one condition is not met, another program may have loaded the profile.

        Args:
            found: the directory of each name.
            revision: the policy revision at which the directories were read.
            profiles: the observed profile of each name.
        """
        self._open()
        pending, self._pending = self._pending, _Line()
        if pending.loading:
            is_only_change = revision == pending.revision + 1
            loaded = {
                name: found[name]
                for name, evidence in pending.loading.items()
                if is_only_change and name in found and _is_expected(profiles.get(name), evidence)
            }
            self.record(loaded)
        return frozenset(
            name for name, directory in found.items() if self._own.get(name) == directory
        )

    def begin(self, names: Mapping[str, Evidence], revision: int) -> None:
        """Record that the agent is about to load profiles with this evidence, at this policy
        revision.
        """
        self._open()
        loading = {name: sorted(evidence) for name, evidence in sorted(names.items())}
        self._pending = _Line(loading=loading, revision=revision)
        self._append(self._pending)

    def record(self, loaded: Mapping[str, str]) -> None:
        """Record that the load is finished, with the directory of each loaded profile."""
        self._open()
        self._own |= loaded
        self._pending = _Line()
        self._append(_Line(loaded=dict(loaded)))

    def finding(self) -> Finding | None:
        """If the last write failed, write the record again. Return an error if the repeated write
        fails.
        """
        if self._problem is not None:
            self._append(self._pending)
        return self._problem

    def _append(self, line: _Line) -> None:
        """Append a line or write the whole record. If the write fails, the record stays in
        memory.
        """
        if not self.may_write:
            return
        if 0 < self._lines < _MOST_LINES:
            with contextlib.suppress(HostError):
                self.host.append_file(self.state_dir, FILE, msgspec.json.encode(line) + b"\n")
                self._lines += 1
                return
        self._lines = 0
        lines = [_Line(boot=self._boot, loaded=self._own), line]
        content = b"".join(msgspec.json.encode(each) + b"\n" for each in lines)
        try:
            self.host.write_file(self.state_dir, FILE, content, role=FileRole.TRANSIENT)
        except HostError as error:
            self._problem = common_findings.write_failed(
                path=f"{self.state_dir}/{FILE}",
                subject="The record of loaded profiles",
                error=str(error),
                consequence="After a restart of the agent, the profiles that it has loaded since "
                "then count as foreign.",
            )
            return
        self._problem = None
        self._lines = len(lines)

    def _open(self) -> None:
        """Read the record once; a record that is damaged or from another boot counts as empty."""
        if self._boot:
            return
        content = b""
        with contextlib.suppress(HostError):
            self._boot = self.host.read(_BOOT_ID, limit=4096).strip().decode("ascii", "replace")
            content = self.host.read_regular(self.state_dir, FILE, limit=_LIMIT) or b""
        lines = [_decoded(line) for line in content.splitlines()]
        if not lines or not self._boot or lines[0].boot != self._boot:
            return
        for line in lines:
            self._own |= line.loaded
            self._pending = line
        # A full disk may have cut off the last line, and no line must be appended to an incomplete
        # line.
        self._lines = len(lines) if content.endswith(b"\n") else 0


def _is_expected(profile: ObservedProfile | None, evidence: Collection[str]) -> bool:
    """Return whether the kernel shows the expected content, or shows no content at all."""
    if profile is None:
        return False
    return not profile.is_readable or not profile.evidence.isdisjoint(evidence)


def _decoded(line: bytes) -> _Line:
    """Return a line of the record; a damaged line counts as empty."""
    try:
        return msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Line()
