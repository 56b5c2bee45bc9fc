"""Check profiles without touching the host: for CI jobs and pre-commit.

Rule 1: nothing of the host is read but the AppArmor includes to compile with; nothing is written.
"""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from agent.core import account, desired
from agent.core.model import Blob, Id, Inspected, KindName, Read, Snapshot, Unreadable
from agent.core.problems import Problem
from agent.core.report import Report, Row, State
from agent.doors.host import Host
from agent.kinds.apparmor.kind import AppArmor
from agent.kinds.seccomp.kind import Seccomp
from agent.settings import Settings
from agent.sources import limits, opening

_MANIFESTS = (".yaml", ".yml")


def check(settings: Settings, paths: Sequence[str], arch: str) -> tuple[Report, str]:
    """Return a report of every key below the paths, and the AppArmor ABI compiled against."""
    host = Host("/")
    apparmor = AppArmor(
        host=host,
        parser=settings.apparmor_parser,
        timeout_seconds=settings.parser_timeout,
        deny_names=settings.deny_name,
        allow_attachments=settings.allow_attachments,
        allow_unconfined_mode=settings.allow_unconfined_mode,
        checking=True,
    )
    seccomp = Seccomp(
        host=host,
        prefix=settings.seccomp_prefix,
        format=settings.seccomp_format,
        allow_unknown_syscalls=settings.allow_unknown_syscalls,
        machine=arch or platform.machine(),
    )

    def inspect(kind: KindName, blob: Blob) -> Inspected:
        return apparmor.inspect(blob) if kind == "apparmor" else seccomp.inspect(blob)

    above = _above(paths)
    snapshots = [one for path in paths for one in _read(path, above)]
    kinds: frozenset[KindName] = frozenset(
        kind for kind in ("apparmor", "seccomp") if kind in settings.kinds
    )
    joined = desired.join(snapshots, inspect, kinds)
    rows = _rows(joined)
    told = any(row.kind == "apparmor" for row in rows)
    report = Report(
        rows=tuple(sorted(rows, key=lambda row: (row.origin, row.key, row.name))),
        sets=tuple(account.status(one) for one in snapshots),
        supports={},
        problems=tuple(one for one in map(account.unread, snapshots) if one is not None),
    )
    return report, apparmor.abi if told else ""


def _single(path: str) -> bool:
    """Return whether a path is a file that is one key."""
    return Path(path).is_file() and Path(path).suffix not in _MANIFESTS


def _full(path: str) -> Path:
    """Return the whole path without `..`; symbolic links keep their names."""
    return Path(os.path.normpath(Path(path).absolute()))


def _above(paths: Sequence[str]) -> str:
    """Return the directory that the single files have in common: their keys are relative to it."""
    directories = [str(_full(path).parent) for path in paths if _single(path)]
    return os.path.commonpath(directories) if directories else ""


def _read(path: str, above: str) -> tuple[Snapshot, ...]:
    """Read a directory, a manifest, or a single file as one key of the directory above."""
    one = Path(path)
    if not _single(path):
        source = opening.open_source(path)
        # The command line has refused ConfigMaps of the API server.
        return () if isinstance(source, opening.Wanted) else source.read()
    origin, key = f"dir {above}", str(_full(path).relative_to(above))
    try:
        with one.open("rb") as file:
            content = file.read(limits.KEY_BYTES + 1)
    except OSError as error:
        return (Unreadable(origin=path, why=f"{path}: {error.strerror}"),)
    if len(content) > limits.KEY_BYTES:
        refused = ((key, limits.too_large(path)),)
        return (Read(origin=origin, revision="", blobs=(), refused=refused),)
    blob = Blob(origin=origin, key=key, content=content)
    return (Read(origin=origin, revision="", blobs=(blob,)),)


def _rows(joined: desired.Desired) -> list[Row]:
    rows: list[Row] = []
    for id_, profile in joined.profiles.items():
        version = profile.version
        rows += [
            Row(
                kind=id_.kind,
                origin=id_.origin,
                key=id_.key,
                name=name,
                localhost_profile=name,
                state="accepted",
                action="keep",
                why="",
                source=version.source,
                mode=version.modes.get(name, ""),
                problems=profile.remarks * (index == 0),
            )
            for index, name in enumerate(version.provides)
        ]
    for id_, first in joined.same.items():
        rows += [_row(id_, "accepted", f'same content as "{first.key}"', ())]
    for id_, rejection in joined.rejections.items():
        rows.append(_row(id_, "rejected", "", rejection.problems))
    for id_, unchecked in joined.unchecked.items():
        rows.append(_row(id_, "unsupported", "", (unchecked.problem,)))
    return rows


def _row(id_: Id, state: State, why: str, problems: tuple[Problem, ...]) -> Row:
    return Row(
        kind=id_.kind,
        origin=id_.origin,
        key=id_.key,
        name="",
        localhost_profile="",
        state=state,
        action="keep",
        why=why,
        problems=problems,
    )
