"""Checks profiles without changing the node, for CI jobs and pre-commit hooks.

The command uses the AppArmor parser and include files on this machine, and writes nothing.
"""

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent import app
from agent.backends.parts import CheckerParts, CheckTarget
from agent.commands.inline import Inlined, Inliner
from agent.config import Config
from agent.core import classify, desired, left_out, report_builder
from agent.core.acknowledgements import acknowledge
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import (
    Emptied,
    Inspected,
    KeyId,
    Missing,
    Pending,
    Profile,
    ProfileKind,
    Read,
    Rejection,
    Snapshot,
    SourceKey,
    Unreadable,
)
from agent.core.ports import Progress
from agent.core.report import ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ActionName, LeftOutReason, ProfileState, Reason
from agent.sources import limits, source_spec
from agent.sources.directory import DirectorySource

_HINTS = {
    FindingCode.SOURCE_MISSING: "Pass an existing file, directory or manifest.",
    FindingCode.SOURCE_UNREADABLE: "Pass a file or directory that can be read and is well-formed.",
    FindingCode.SOURCE_EMPTIED: (
        "The name of a profile ends in .json, .profile, .apparmor or .aa, or has no known ending."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of a check."""

    report: Report
    """The report, which has a row for each key."""
    abi: str
    """The AppArmor ABI against which the profiles were compiled; empty if there are no AppArmor
    profiles."""


def check(
    config: Config,
    paths: Sequence[str],
    target: CheckTarget,
    include: Sequence[str],
    progress: Progress,
) -> Checked:
    """Check all keys in files, directories and manifests.

    Args:
        config: the options of this run.
        paths: the files, directories and manifests.
        target: the node to check for.
        include: directories whose files replace the include rules; empty to use this machine's.
        progress: shows the numbers of checked keys and of compiled texts.
    """
    files_by_directory, others = _split(paths)
    sets = [snapshot for path in others for snapshot in _read_source(path)]
    directories = [
        snapshot
        for directory, files in files_by_directory.items()
        for snapshot in _read_files(directory, files)
    ]
    # Files that the user passes individually may be for different nodes. Therefore, only files from
    # the same directory are compared with each other.
    groups = [sets, *([snapshot] for snapshot in directories)]
    inspectors = _Inspectors(app.checkers(config, target), include)
    results = _inspect(config, groups, inspectors, progress)
    rows = [row for result in results for row in _rows(result)]
    skipped: list[Finding] = []
    # A file that is not a profile, such as a README, is accepted if the directory also contains
    # profiles.
    if rows:
        emptied = [item for item in directories if isinstance(item, Emptied)]
        directories = [item for item in directories if item not in emptied]
        skipped = [left_out.finding(item.profile_set, item.left_out) for item in emptied]
    snapshots = [*sets, *directories]
    used = inspectors.used_for(rows)
    report = Report(
        profiles=tuple(sorted(rows, key=lambda row: (row.profile_set, row.key, row.name))),
        profile_sets=tuple(_profile_sets(snapshots, results)),
        kind_support={},
        findings=(
            *filter(None, map(_unread, snapshots)),
            *report_builder.sandbox_findings(parts.checker.sandbox() for parts in used),
            *(notice for result in results for notice in report_builder.left_out_findings(result)),
            *skipped,
        ),
    )
    return Checked(report=report, abi=_features_files(used))


def _features_files(used: Sequence[CheckerParts]) -> str:
    """Return the files with the kernel features for which the texts were compiled."""
    return ", ".join(parts.features_file() for parts in used if parts.features_file is not None)


def _profile_sets(
    snapshots: Sequence[Snapshot], results: Sequence[desired.Desired]
) -> Iterator[ProfileSetStatus]:
    inputs = {origin: items for result in results for origin, items in result.left_out.items()}
    for snapshot in snapshots:
        status = report_builder.profile_set_status(snapshot)
        yield replace(status, left_out=inputs.get(snapshot.profile_set, ()))


class _Inspectors:
    """Maps each profile kind to the function that inspects its keys."""

    def __init__(
        self, checkers: Mapping[ProfileKind, CheckerParts], include: Sequence[str]
    ) -> None:
        self.checkers = {kind: parts.checker for kind, parts in checkers.items()}
        self._parts = checkers
        self._inliner = Inliner(include) if include else None
        self._inlined: dict[SourceKey, Inlined | tuple[Finding, ...]] = {}

    def inspect(self, kind: ProfileKind, key: SourceKey) -> Inspected:
        """Inspect one key. With include directories, the text of an AppArmor key no longer has
        include rules.
        """
        checker = self.checkers[kind]
        if kind != "apparmor" or self._inliner is None:
            return checker.inspect(key)
        if key not in self._inlined:
            self._inlined[key] = self._inliner.inline(key)
        inlined = self._inlined[key]
        if isinstance(inlined, Inlined):
            return _located(checker.inspect(inlined.source_key), inlined)
        id_ = KeyId(kind=kind, profile_set=key.profile_set, key=key.key)
        return Rejection(id=id_, findings=inlined)

    def used_for(self, rows: Sequence[ProfileStatus]) -> list[CheckerParts]:
        """Return the checkers of the kinds that have a row."""
        kinds = {row.kind for row in rows}
        return [parts for kind, parts in self._parts.items() if kind in kinds]


def _located(result: Inspected, inlined: Inlined) -> Inspected:
    """Return the result with findings that refer to the lines of the original text."""
    if isinstance(result, Profile | Rejection | Pending):
        return replace(result, findings=tuple(map(inlined.located, result.findings)))
    return result


def _inspect(
    config: Config,
    groups: Sequence[Sequence[Snapshot]],
    inspectors: _Inspectors,
    progress: Progress,
) -> list[desired.Desired]:
    """Inspect the keys of each group, and wait until all texts are compiled."""
    snapshots = itertools.chain.from_iterable(groups)
    total = sum(len(item.source_keys) for item in snapshots if isinstance(item, Read))
    numbers = itertools.count()
    acknowledged = app.acknowledgements(config)

    def compiled(finished: int, all_texts: int) -> None:
        progress("profile texts compiled", finished, all_texts)

    def inspect(kind: ProfileKind, key: SourceKey) -> Inspected:
        progress("keys checked", min(next(numbers), total), total)
        return acknowledge(inspectors.inspect(kind, key), acknowledged)

    checkers = inspectors.checkers
    kinds = frozenset(checkers)
    results = [desired.join(group, inspect, kinds) for group in groups]
    while any(result.pending for result in results):
        if not any(checker.wait(compiled) for checker in checkers.values()):
            break
        for checker in checkers.values():
            checker.begin_pass()
        results = [desired.join(group, inspect, kinds) for group in groups]
    return results


def _split(paths: Sequence[str]) -> tuple[dict[Path, list[str]], list[str]]:
    """Return the paths of individual files, grouped by directory, and all other paths."""
    files_by_directory: dict[Path, list[str]] = {}
    others: list[str] = []
    by_full_path = {os.path.abspath(path): path for path in reversed(paths)}  # removes `..`
    for full_path, path in reversed(by_full_path.items()):
        # If a directory is not accessible, pathlib raises an error, which the later read reports.
        if os.path.isfile(path) and Path(path).suffix not in limits.MANIFESTS:
            files_by_directory.setdefault(Path(full_path).parent, []).append(path)
        else:
            others.append(path)
    return files_by_directory, others


def _read_source(path: str) -> tuple[Snapshot, ...]:
    """Read a directory or a manifest."""
    if os.path.islink(path) and not os.path.exists(path):
        reason = f'{path} is a link, and its target "{Path(path).readlink()}" does not exist'
        return (Missing(profile_set=path, reason=reason),)
    spec = source_spec.parse_source(path)
    # The command-line parser has already rejected ConfigMaps from the API server.
    if isinstance(spec, source_spec.ConfigMapSpec):
        return ()
    if not isinstance(spec, source_spec.DirectorySpec):
        return source_spec.local_source(spec).read()
    directory = DirectorySource(spec.path, clock_ns=time.time_ns, skips_unreadable=True)
    snapshots: tuple[Snapshot, ...] = directory.read()
    unreadable = tuple(
        Unreadable(profile_set=f"{path}/{key}", reason=f"{path}/{key}: {reason}")
        for key, reason in directory.unreadable_keys
    )
    if unreadable and isinstance(snapshots[0], Emptied):
        return unreadable
    return (*snapshots, *unreadable)


def _read_files(directory: Path, files: Sequence[str]) -> tuple[Snapshot, ...]:
    """Read several files of one directory. The key of each file is its path on the command line.

    If no file contains a profile, the result has one snapshot for each file instead of a single
    snapshot.
    """
    unreadable: list[Snapshot] = []
    skipped: list[str] = []
    keys: list[SourceKey] = []
    refused: list[tuple[str, Finding]] = []
    profile_set = f"dir {directory}"
    for path in files:
        try:
            with Path(path).open("rb") as file:
                content = file.read(limits.KEY_BYTES + 1)
        except OSError as error:
            unreadable.append(Unreadable(profile_set=path, reason=f"{path}: {error.strerror}"))
            continue
        if len(content) > limits.KEY_BYTES:
            refused.append((path, limits.too_large(path)))
        elif classify.classify(path, content) is not None:
            name = Path(path).name
            keys.append(SourceKey(profile_set=profile_set, key=path, name=name, content=content))
        else:
            skipped.append(path)
    if not keys and not refused:
        return (*unreadable, *map(_without_profile, skipped))
    snapshot = limits.snapshot(profile_set, keys, refused)
    return (*unreadable, limits.with_left_out(snapshot, limits.skipped_by_name(skipped)))


def _without_profile(path: str) -> Emptied:
    return Emptied(profile_set=path, revision="", left_out=limits.skipped_by_name([path]))


def _unread(snapshot: Snapshot) -> Finding | None:
    """Return the finding that a path provides no profiles, with a hint for this command.

    The result is None if the path provides profiles.
    """
    finding = report_builder.source_finding(snapshot)
    if finding is None:
        return None
    items = snapshot.left_out if isinstance(snapshot, Emptied) else ()
    if not items:
        return replace(finding, hint=_HINTS[finding.code])
    inputs, hint = left_out.text(items)
    has_resources_only = all(item.reason == LeftOutReason.RESOURCE for item in items)
    return Finding(
        code=FindingCode.NOT_A_PROFILE if has_resources_only else finding.code,
        location=finding.location,
        message=f"This path provides no profile. {inputs}",
        hint=hint,
    )


def _rows(result: desired.Desired) -> list[ProfileStatus]:
    """Return one row for each name of an accepted key, and one row for each other key."""
    rows: list[ProfileStatus] = []
    for id_, profile in result.profiles.items():
        version = profile.version
        for index, name in enumerate(version.names):
            row = _row(id_, ProfileState.ACCEPTED, findings=profile.findings * (index == 0))
            mode, digest = version.modes.get(name, ""), version.source_digest
            named = replace(row, name=name, localhost_profile=name, mode=mode, source_digest=digest)
            rows.append(named)
    for id_, first in result.duplicates.items():
        row = _row(id_, ProfileState.ACCEPTED, Reason.SAME_CONTENT)
        rows.append(replace(row, reason_text=f'same content as "{first.key}"'))
    for id_, rejection in result.rejections.items():
        row = _row(id_, ProfileState.REJECTED, findings=rejection.findings)
        rows.append(replace(row, action=ActionName.REJECT))
    for id_, unchecked in result.unchecked.items():
        rows.append(_row(id_, ProfileState.UNSUPPORTED, findings=(unchecked.finding,)))
    for id_, pending in result.pending.items():
        rows.append(_row(id_, ProfileState.PENDING, Reason.PENDING, pending.findings))
    return rows


def _row(
    id_: KeyId,
    state: ProfileState,
    reason: Reason = Reason.NONE,
    findings: tuple[Finding, ...] = (),
) -> ProfileStatus:
    return ProfileStatus(
        kind=id_.kind,
        profile_set=id_.profile_set,
        key=id_.key,
        name="",
        localhost_profile="",
        state=state,
        action=ActionName.KEEP,
        reason=reason,
        findings=findings,
    )
