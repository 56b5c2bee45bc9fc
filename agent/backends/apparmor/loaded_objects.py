"""The record of the policy objects that this agent loaded since the machine started.

The kernel shows each loaded profile in a separate directory. A replaced profile keeps its
directory, and a profile that is loaded again gets a directory with a new number. The kernel uses no
number twice before the next boot (Linux, security/apparmor/apparmorfs.c: __aafs_profile_mkdir,
__aafs_profile_migrate_dents). So the boot ID and the directory identify the object. The boot ID and
the directory distinguish a profile of the agent from a profile that another program loaded with the
same bytes.

The record is a file of JSON lines in the state directory. Each line is appended without fsync: the
record must survive the process, but is worthless after a crash of the machine. A profile without a
line counts as foreign, so a lost record never leads to a removal.
"""

import contextlib
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from agent.core.findings import Finding
from agent.core.model import Evidence, ObservedProfile
from agent.host.filesystem import Host, HostError

FILE: Final = "objects.jsonl"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_LIMIT: Final = 64 << 20
_MOST_LINES: Final = 4096
"""The maximum size; a longer file is replaced by a file with a single line for all objects."""


class _Line(msgspec.Struct, omit_defaults=True):
    """One line of the record."""

    boot: str = ""
    """The boot that the record belongs to; only in the first line."""

    loaded: dict[str, str] = {}
    """Name -> directory below policy/profiles."""

    loading: dict[str, list[str]] = {}
    """The names that are about to be loaded, with the evidence of their content."""

    revision: int = -1
    """The policy revision right before the load of the names in `loading`."""


class LoadedObjects:
    """The loaded objects that are agent-owned. Only one agent at a time writes the record."""

    def __init__(self, host: Host, state_dir: str, *, may_write: bool) -> None:
        self.host = host
        self.state_dir = state_dir
        self.may_write = may_write
        self._boot = ""
        self._own: dict[str, str] = {}
        """Name -> directory."""

        self._pending = _Line()
        """A load of an earlier process that was interrupted."""

        self._lines = 0
        """Number of lines in the file; 0 if the next write must replace the whole file."""

        self._problem: Finding | None = None

    def own(
        self, found: Mapping[str, str], revision: int, profiles: Mapping[str, ObservedProfile]
    ) -> frozenset[str]:
        """Return the names whose loaded profiles come from this agent.

        If an earlier process ended between a load and its record, the load counts as the agent's
        under two conditions. First, the load must have been the only change of policy; each change
        increments the revision. Second, if the kernel shows content, the loaded content must be the
        content that the agent was about to load. If either condition fails, another program may
        have loaded the name.

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
        """Record that names are about to be loaded, with their evidence, at a policy revision."""
        self._open()
        loading = {name: sorted(evidence) for name, evidence in sorted(names.items())}
        self._pending = _Line(loading=loading, revision=revision)
        self._append(self._pending)

    def record(self, loaded: Mapping[str, str]) -> None:
        """Record which object this agent loaded under each name, and that the load is finished."""
        self._open()
        self._own |= loaded
        self._pending = _Line()
        self._append(_Line(loaded=dict(loaded)))

    def finding(self) -> Finding | None:
        """Try to write the record if the last write failed; return an error if the record still
        cannot be written.
        """
        if self._problem is not None:
            self._append(self._pending)
        return self._problem

    def _append(self, line: _Line) -> None:
        """Append a line, or write the whole record; if that fails, the record stays in memory."""
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
            self.host.write_file(self.state_dir, FILE, content, mode=0o600, durable=False)
        except HostError as error:
            self._problem = Finding(
                code="write_failed",
                location=f"{self.state_dir}/{FILE}",
                message=f"The record of loaded profiles cannot be written ({error}). After a "
                "restart of the agent, the profiles that it has loaded since then count as "
                "foreign.",
                hint="Free space in the state directory, and check its permissions.",
            )
            return
        self._problem = None
        self._lines = len(lines)

    def _open(self) -> None:
        """Read the record once; a damaged record, or a record from another boot, counts as
        empty.
        """
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
        # If a full disk cut off the last line, the next line must not be appended to the incomplete
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
