"""Check profiles without touching the host: for CI jobs and pre-commit.

Rule 1: nothing of the host is read but the AppArmor includes to compile with; nothing is written.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.seccomp.backend import SeccompBackend
from agent.config import Config
from agent.core import classify, desired, report_builder
from agent.core.findings import Finding
from agent.core.model import Emptied, Inspected, KeyId, ProfileKind, Snapshot, SourceKey, Unreadable
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileState, Reason
from agent.host.filesystem import Host
from agent.sources import limits, source_spec

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
    settings: Config, paths: Sequence[str], arch: str, progress: Callable[[int, int], None]
) -> Checked:
    """Check every key below the paths. progress: see `agent.core.ports.Kind.wait`."""
    host = Host("/")
    apparmor = AppArmorBackend(
        host=host,
        parser=settings.apparmor_parser,
        cpu_limit=settings.parser_timeout,
        deny_names=settings.deny_name,
        allow_attachments=settings.allow_attachments,
        allow_unconfined_mode=settings.allow_unconfined_mode,
        checking=True,
    )
    seccomp = SeccompBackend(
        host=host,
        prefix=settings.seccomp_prefix,
        format=settings.seccomp_format,
        allow_unknown_syscalls=settings.allow_unknown_syscalls,
        machine=arch or platform.machine(),
    )

    def inspect(kind: ProfileKind, blob: SourceKey) -> Inspected:
        return apparmor.inspect(blob) if kind == "apparmor" else seccomp.inspect(blob)

    kinds: frozenset[ProfileKind] = frozenset(
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
        apparmor.begin_pass()
        joined = join()
    rows = [row for one in joined for row in _rows(one)]
    if rows:  # a README among the files is no mistake, if it is not all there is
        folders = [one for one in folders if not isinstance(one, Emptied)]
    snapshots = [*sets, *folders]
    compiled = any(row.kind == "apparmor" for row in rows)
    report = Report(
        profiles=tuple(sorted(rows, key=lambda row: (row.profile_set, row.key, row.name))),
        profile_sets=tuple(report_builder.profile_set_status(one) for one in snapshots),
        kind_support={},
        findings=(
            *(one for one in map(_unread, snapshots) if one is not None),
            *(report_builder.unsandboxed([apparmor.sandbox()]) if compiled else ()),
        ),
    )
    skipped = [
        f"{path} was not looked at: by its name it is no profile"
        for files in singles.values()
        for path in files
        if classify.classify(path, b"") is None
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
    source = source_spec.open_source(path)
    # The command line has refused ConfigMaps of the API server.
    return () if isinstance(source, source_spec.ConfigMapSpec) else source.read()


def _folder(folder: Path, files: Sequence[str]) -> tuple[Snapshot, ...]:
    """Read the given files of one directory; the key of each is its path on the command line.

    If no file provides a key, each file is reported by its own path, and the directory is not.
    """
    unread: list[Snapshot] = []
    unnamed: list[Snapshot] = []
    blobs: list[SourceKey] = []
    refused: list[tuple[str, Finding]] = []
    origin = f"dir {folder}"
    for path in files:
        try:
            with Path(path).open("rb") as file:
                content = file.read(limits.KEY_BYTES + 1)
        except OSError as error:
            unread.append(Unreadable(profile_set=path, reason=f"{path}: {error.strerror}"))
            continue
        if len(content) > limits.KEY_BYTES:
            refused.append((path, limits.too_large(path)))
        elif classify.classify(path, content) is not None:
            name = Path(path).name
            blobs.append(SourceKey(profile_set=origin, key=path, name=name, content=content))
        else:
            unnamed.append(Emptied(profile_set=path, revision=""))
    if not blobs and not refused:
        return (*unread, *unnamed)
    return (*unread, limits.snapshot(origin, blobs, refused))


def _unread(snapshot: Snapshot) -> Finding | None:
    """Return why a path gave no profiles, with what to do about it here, where nothing is kept."""
    finding = report_builder.unread_source(snapshot)
    return replace(finding, hint=_HINTS[finding.code]) if finding is not None else None


def _rows(joined: desired.Desired) -> list[ProfileStatus]:
    rows: list[ProfileStatus] = []
    for id_, profile in joined.profiles.items():
        version = profile.version
        rows += [
            ProfileStatus(
                kind=id_.kind,
                profile_set=id_.profile_set,
                key=id_.key,
                name=name,
                localhost_profile=name,
                state=ProfileState.ACCEPTED,
                action=ActionName.KEEP,
                reason=Reason.NONE,
                source_digest=version.source_digest,
                mode=version.modes.get(name, ""),
                findings=profile.findings * (index == 0),
            )
            for index, name in enumerate(version.names)
        ]
    for id_, first in joined.duplicates.items():
        row = _row(id_, ProfileState.ACCEPTED, Reason.SAME_CONTENT, ())
        rows.append(replace(row, reason_text=f'same content as "{first.key}"'))
    for id_, rejection in joined.rejections.items():
        row = _row(id_, ProfileState.REJECTED, Reason.NONE, rejection.findings)
        rows.append(replace(row, action=ActionName.REJECT))
    for id_, unchecked in joined.unchecked.items():
        rows.append(_row(id_, ProfileState.UNSUPPORTED, Reason.NONE, (unchecked.finding,)))
    for id_, pending in joined.pending.items():
        rows.append(_row(id_, ProfileState.PENDING, Reason.PENDING, pending.findings))
    return rows


def _row(
    id_: KeyId, state: ProfileState, why: Reason, findings: tuple[Finding, ...]
) -> ProfileStatus:
    return ProfileStatus(
        kind=id_.kind,
        profile_set=id_.profile_set,
        key=id_.key,
        name="",
        localhost_profile="",
        state=state,
        action=ActionName.KEEP,
        reason=why,
        findings=findings,
    )
