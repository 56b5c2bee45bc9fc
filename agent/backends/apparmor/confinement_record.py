"""Stores on disk which threads run under which profiles, so that a restart of the agent preserves
this information.

A record is valid only for one boot, because the kernel assigns PIDs and directory numbers again
after the next boot. The record is written without fsync, because it is useless after a machine
crash.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Final

from agent.backends.apparmor.confinement_state import ConfinementState
from agent.backends.apparmor.thread_reader import Thread
from agent.core import common_findings
from agent.core.findings import Finding
from agent.host.file_role import FileRole
from agent.host.filesystem import Host, HostError

FILE: Final = "confinement.json"
RECORDED_THREADS: Final = 20_000
"""The maximum number of threads in a record; each thread needs about 20 bytes."""

_SCHEMA: Final = 1
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_RECORD_BYTES: Final = 8 << 20


class ConfinementRecord:
    """Stores the record of confined threads in a state directory."""

    def __init__(self, host: Host, state_dir: str, *, may_write: bool) -> None:
        self.host = host
        self.state_dir = state_dir
        self.may_write = may_write
        self.problem: Finding | None = None
        """The error of the last write, or None if it succeeded."""

        self._boot_id = ""
        self._content = b""
        """The content that the file had when the agent last read or wrote it."""

    def load(self) -> ConfinementState:
        """Return the state that an earlier process of the agent recorded in this boot.

        If the record is missing, damaged or from another boot, this method returns an empty state.
        """
        try:
            boot_id = self.host.read(_BOOT_ID, limit=64)
            self._boot_id = boot_id.decode("ascii", "replace").strip()
            content = self.host.read_regular(self.state_dir, FILE, limit=_RECORD_BYTES) or b""
        except HostError:
            return ConfinementState()
        state = _decoded(content, self._boot_id)
        if state is None:
            return ConfinementState()
        self._content = content
        return state

    def save(self, state: ConfinementState) -> None:
        """Write the state to disk, if it has changed."""
        content = encoded(self._boot_id, state)
        is_empty = not state.directories and not self._content
        if not self.may_write or not self._boot_id or is_empty or content == self._content:
            return
        try:
            self.host.write_file(self.state_dir, FILE, content, role=FileRole.TRANSIENT)
        except HostError as error:
            self.problem = common_findings.write_failed(
                path=f"{self.state_dir}/{FILE}",
                subject="The record of confined threads",
                error=str(error),
                consequence="After a restart, the agent does not know which threads lost their "
                "confinement.",
            )
            return
        self.problem = None
        self._content = content


def encoded(boot_id: str, state: ConfinementState) -> bytes:
    """Return a record of at most RECORDED_THREADS threads; unconfined threads come first.

    The record contains the threads of the last two observations, because a profile may be removed
    during the last observation.
    """
    confined = {**state.previous, **state.confined}
    lost_threads = sorted(state.lost.items())[:RECORDED_THREADS]
    confined_threads = sorted(confined.items())[: RECORDED_THREADS - len(lost_threads)]
    record = {
        "schema": _SCHEMA,
        "boot": boot_id,
        "places": dict(sorted(state.directories.items())),
        "confined": _grouped(confined_threads),
        "lost": _grouped(lost_threads),
    }
    return json.dumps(record, separators=(",", ":")).encode()


def _grouped(threads: Iterable[tuple[Thread, str]]) -> dict[str, list[list[int]]]:
    groups: dict[str, list[list[int]]] = {}
    for thread, text in threads:
        groups.setdefault(text, []).append(list(thread))
    return groups


def _decoded(content: bytes, boot_id: str) -> ConfinementState | None:
    """Return the state in a record, or None if it is damaged, missing or from another boot."""
    try:
        record = json.loads(content)
        if record["schema"] != _SCHEMA or record["boot"] != boot_id or not boot_id:
            return None
        directories = {str(name): str(path) for name, path in record["places"].items()}
        return ConfinementState(
            directories=directories,
            confined=_ungrouped(record["confined"]),
            lost=_ungrouped(record["lost"]),
        )
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _ungrouped(groups: Mapping[str, Iterable[Iterable[int]]]) -> dict[Thread, str]:
    return {
        Thread(*map(int, thread)): str(text)
        for text, threads in groups.items()
        for thread in threads
    }
