"""The record of the policy objects that this agent loaded since the machine started.

The kernel shows each loaded profile in a directory of its own. It keeps the directory when the
profile is replaced, and numbers a new one when the profile is loaded again; no number is used twice
before the next boot (Linux, security/apparmor/apparmorfs.c: __aafs_profile_mkdir,
__aafs_profile_migrate_dents). So the boot ID and the directory identify the object. They
distinguish the agent's own profile from one that another program loaded with the same bytes.

The record is a file of JSON lines in the state directory. Each line is appended without fsync,
because the record must survive the process, but is worthless after a crash of the machine. A
profile without a line counts as foreign, so a lost record never leads to a removal.
"""

import contextlib
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from agent.core.model import Evidence, ObservedProfile
from agent.host.filesystem import Host, HostError

FILE: Final = "objects.jsonl"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_LIMIT: Final = 64 << 20
_MOST_LINES: Final = 4096  # more are rewritten as one


class _Line(msgspec.Struct, omit_defaults=True):
    """One line of the record.

    boot: the boot that the record belongs to, in the first line only.
    loaded: the directory below policy/profiles by name.
    loading: the names that are about to be loaded, with the evidence of the content.
    revision: the policy revision right before that load.
    """

    boot: str = ""
    loaded: dict[str, str] = {}
    loading: dict[str, list[str]] = {}
    revision: int = -1


class LoadedObjects:
    """Which loaded objects are this agent's own. One agent at a time writes the record."""

    def __init__(self, host: Host, state_dir: str, *, write: bool) -> None:
        self.host = host
        self.state_dir = state_dir
        self.write = write
        self._boot = ""
        self._own: dict[str, str] = {}  # name -> directory
        self._pending = _Line()  # an interrupted load of an earlier process
        self._lines = 0  # number of lines in the file; 0: write the file from the start

    def own(
        self, found: Mapping[str, str], revision: int, facts: Mapping[str, ObservedProfile]
    ) -> frozenset[str]:
        """Return the names whose objects this agent loaded.

        found: the directories of all names, at a policy revision. facts: what the kernel shows of
        these names. If the agent ended between a load and its record, the load counts as the
        agent's under two conditions: it was the only change of policy, since each change increments
        the revision; and where the kernel shows content, the content is what the agent was about to
        load. Otherwise another program loaded the name before the agent could.
        """
        self._open()
        pending, self._pending = self._pending, _Line()
        if pending.loading:
            alone = revision == pending.revision + 1
            loaded = {
                name: found[name]
                for name, evidence in pending.loading.items()
                if alone and name in found and _is_expected(facts.get(name), evidence)
            }
            self.record(loaded)
        return frozenset(name for name, at in found.items() if self._own.get(name) == at)

    def begin(self, names: Mapping[str, Evidence], revision: int) -> None:
        """Record that names are about to be loaded, with their evidence, at a policy revision."""
        self._open()
        loading = {name: sorted(evidence) for name, evidence in sorted(names.items())}
        self._pending = _Line(loading=loading, revision=revision)
        self._append(self._pending)

    def record(self, loaded: Mapping[str, str]) -> None:
        """Record which object this agent loaded under each name, and that no load is unfinished."""
        self._open()
        self._own |= loaded
        self._pending = _Line()
        self._append(_Line(loaded=dict(loaded)))

    def _append(self, line: _Line) -> None:
        """Append a line, or write the whole record; if that fails, the record stays in memory."""
        if not self.write:
            return
        if 0 < self._lines < _MOST_LINES:
            with contextlib.suppress(HostError):
                self.host.append_file(self.state_dir, FILE, msgspec.json.encode(line) + b"\n")
                self._lines += 1
                return
        self._lines = 0
        whole = [_Line(boot=self._boot, loaded=self._own), line]
        content = b"".join(msgspec.json.encode(one) + b"\n" for one in whole)
        with contextlib.suppress(HostError):
            self.host.write_file(self.state_dir, FILE, content, mode=0o600, durable=False)
            self._lines = len(whole)

    def _open(self) -> None:
        """Read the record once; a damaged record, or a record of another boot, counts as empty."""
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
        # If a full disk cut off the last line, the next line must not be appended to it.
        self._lines = len(lines) if content.endswith(b"\n") else 0


def _is_expected(fact: ObservedProfile | None, evidence: Collection[str]) -> bool:
    """Return whether the kernel shows the expected content, or shows no content at all."""
    if fact is None:
        return False
    return not fact.is_readable or not fact.evidence.isdisjoint(evidence)


def _decoded(line: bytes) -> _Line:
    """Return a line of the record; a damaged line counts as empty."""
    try:
        return msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Line()
