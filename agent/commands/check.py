"""Check profiles without touching the host: for CI jobs and pre-commit.

Rule 1: nothing of the host is read but the AppArmor includes to compile with; nothing is written.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.core import account, desired, recognise
from agent.core.model import Blob, Emptied, Id, Inspected, KindName, Snapshot, Unreadable
from agent.core.problems import Problem
from agent.core.report import PENDING, Report, Row, State
from agent.doors.host import Host
from agent.kinds.apparmor.kind import AppArmor
from agent.kinds.seccomp.kind import Seccomp
from agent.settings import Settings
from agent.sources import limits, opening

_MANIFESTS = (".yaml", ".yml")
_HINTS = {
    "source_missing": "Name a file, a directory or a manifest.",
    "source_unreadable": "Name a file or directory that can be read and is well-formed.",
    "source_emptied": "A profile's name ends in .json, .profile, .apparmor, .aa or nothing known.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A report of every key; the AppArmor ABI compiled against, or nothing; what was left out."""

    report: Report
    abi: str
    skipped: tuple[str, ...]


def check(
    settings: Settings, paths: Sequence[str], arch: str, progress: Callable[[int, int], None]
) -> Checked:
    """Check every key below the paths. progress: see `agent.core.ports.Kind.wait`."""
    host = Host("/")
    apparmor = AppArmor(
        host=host,
        parser=settings.apparmor_parser,
        cpu_limit=settings.parser_timeout,
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

    kinds: frozenset[KindName] = frozenset(
        kind for kind in ("apparmor", "seccomp") if kind in settings.kinds
    )
    singles, others = _sorted(paths)
    sets = [one for path in others for one in _source(path)]
    folders = [one for folder, files in singles.items() for one in _folder(folder, files)]
    # Single files of two directories may never come together: they are not compared.
    groups = [sets, *([one] for one in folders)]

    def join() -> list[desired.Desired]:
        return [desired.join(group, inspect, kinds) for group in groups]

    joined = join()
    while any(one.pending for one in joined) and apparmor.wait(progress):
        apparmor.begin()
        joined = join()
    rows = [row for one in joined for row in _rows(one)]
    if rows:  # a README among the files is no mistake, if it is not all there is
        folders = [one for one in folders if not isinstance(one, Emptied)]
    snapshots = [*sets, *folders]
    compiled = any(row.kind == "apparmor" for row in rows)
    report = Report(
        rows=tuple(sorted(rows, key=lambda row: (row.origin, row.key, row.name))),
        sets=tuple(account.status(one) for one in snapshots),
        supports={},
        problems=(
            *(one for one in map(_unread, snapshots) if one is not None),
            *(account.unsandboxed([apparmor.sandbox()]) if compiled else ()),
        ),
    )
    skipped = [
        f"{path} was not looked at: by its name it is no profile"
        for files in singles.values()
        for path in files
        if recognise.kind_of(path, b"") is None
    ]
    skipped += [one for path in others for one in _manifests(path)]
    skipped += [
        f"{origin}: --kinds leaves out {count} of its keys, which were not looked at"
        for one in joined
        for origin, count in one.left_out.items()
        if count
    ]
    return Checked(report=report, abi=apparmor.abi if compiled else "", skipped=tuple(skipped))


def _sorted(paths: Sequence[str]) -> tuple[dict[Path, list[str]], list[str]]:
    """Return the files that are one key each, by their directory; and all other paths."""
    singles: dict[Path, list[str]] = {}
    others: list[str] = []
    whole = {os.path.abspath(path): path for path in reversed(paths)}  # noqa: PTH100 - without `..`
    for full, path in reversed(whole.items()):
        # pathlib raises where nobody may look; there reading says why.
        if os.path.isfile(path) and Path(path).suffix not in _MANIFESTS:  # noqa: PTH113 - see above
            singles.setdefault(Path(full).parent, []).append(path)
        else:
            others.append(path)
    return singles, others


def _manifests(path: str) -> list[str]:
    """Return that manifests in a directory are no profiles, if there are any."""
    count = sum(file.endswith(_MANIFESTS) for _, _, files in os.walk(path) for file in files)
    what = (
        f"{count} .yaml files below {path} were" if count > 1 else f"a .yaml file below {path} was"
    )
    return [f"{what} not looked at: name a manifest itself"] if count else []


def _source(path: str) -> tuple[Snapshot, ...]:
    """Read a directory or a manifest."""
    source = opening.open_source(path)
    # The command line has refused ConfigMaps of the API server.
    return () if isinstance(source, opening.Wanted) else source.read()


def _folder(folder: Path, files: Sequence[str]) -> tuple[Snapshot, ...]:
    """Read the given files of one directory; the key of each is its path on the command line.

    If no file provides a key, each file is reported by its own path, and the directory is not.
    """
    unread: list[Snapshot] = []
    unnamed: list[Snapshot] = []
    blobs: list[Blob] = []
    refused: list[tuple[str, Problem]] = []
    origin = f"dir {folder}"
    for path in files:
        try:
            with Path(path).open("rb") as file:
                content = file.read(limits.KEY_BYTES + 1)
        except OSError as error:
            unread.append(Unreadable(origin=path, why=f"{path}: {error.strerror}"))
            continue
        if len(content) > limits.KEY_BYTES:
            refused.append((path, limits.too_large(path)))
        elif recognise.kind_of(path, content) is not None:
            name = Path(path).name
            blobs.append(Blob(origin=origin, key=path, name=name, content=content))
        else:
            unnamed.append(Emptied(origin=path, revision=""))
    if not blobs and not refused:
        return (*unread, *unnamed)
    return (*unread, limits.snapshot(origin, blobs, refused))


def _unread(snapshot: Snapshot) -> Problem | None:
    """Return why a path gave no profiles, with what to do about it here, where nothing is kept."""
    problem = account.unread(snapshot)
    return replace(problem, hint=_HINTS[problem.code]) if problem is not None else None


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
        rows.append(replace(_row(id_, "rejected", "", rejection.problems), action="reject"))
    for id_, unchecked in joined.unchecked.items():
        rows.append(_row(id_, "unsupported", "", (unchecked.problem,)))
    for id_, pending in joined.pending.items():
        rows.append(_row(id_, "pending", PENDING, pending.problems))
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
