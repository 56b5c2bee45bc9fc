"""Checks profiles without changing the node, for CI jobs and pre-commit hooks.

The command uses the AppArmor parser and its include files of this machine, and writes nothing.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.seccomp import releases
from agent.backends.seccomp.backend import SeccompBackend
from agent.config import Config
from agent.core import classify, desired, report_builder
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import Emptied, Inspected, KeyId, ProfileKind, Snapshot, SourceKey, Unreadable
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileState, Reason
from agent.host.filesystem import Host
from agent.sources import limits, source_spec

_MANIFESTS = (".yaml", ".yml")
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
    """A row for every key."""
    abi: str
    """The AppArmor ABI that the profiles were compiled against; empty without AppArmor profiles."""
    skipped: tuple[str, ...]
    """A sentence about each file or key that was not checked."""


def check(
    config: Config,
    paths: Sequence[str],
    arch: str,
    kernel: str,
    progress: Callable[[int, int], None],
) -> Checked:
    """Check all keys in files, directories and manifests.

    Args:
        config: the options of this run.
        paths: the files, directories and manifests.
        arch: the machine to check for; if it is empty, this machine.
        kernel: the kernel version to check for; if it is empty, the running kernel.
        progress: called with the number of compiled texts and the number of all texts.
    """
    files_by_directory, others = _split(paths)
    sets = [snapshot for path in others for snapshot in _read_source(path)]
    directories = [
        snapshot
        for directory, files in files_by_directory.items()
        for snapshot in _read_files(directory, files)
    ]
    # Files that are passed individually may be for different nodes. Only files from the same
    # directory are compared with each other.
    groups = [sets, *([snapshot] for snapshot in directories)]
    apparmor = _apparmor(config)
    results = _inspect(config, groups, apparmor, _seccomp(config, arch, kernel), progress)
    rows = [row for result in results for row in _rows(result)]
    if rows:  # Files without a profile, such as a README, are accepted together with profiles.
        directories = [item for item in directories if not isinstance(item, Emptied)]
    snapshots = [*sets, *directories]
    has_apparmor = any(row.kind == "apparmor" for row in rows)
    unread = (_unread(snapshot) for snapshot in snapshots)
    findings = [finding for finding in unread if finding is not None]
    findings += report_builder.sandbox_findings([apparmor.sandbox()]) if has_apparmor else ()
    report = Report(
        profiles=tuple(sorted(rows, key=lambda row: (row.profile_set, row.key, row.name))),
        profile_sets=tuple(report_builder.profile_set_status(snapshot) for snapshot in snapshots),
        kind_support={},
        findings=tuple(findings),
    )
    skipped = (*_skipped_files(files_by_directory, others), *_skipped_keys(results))
    return Checked(report=report, abi=apparmor.abi if has_apparmor else "", skipped=skipped)


def _apparmor(config: Config) -> AppArmorBackend:
    return AppArmorBackend(
        host=Host("/"),
        parser=config.apparmor_parser,
        cpu_limit=config.parser_timeout,
        deny_names=config.deny_name,
        allow_attachments=config.allow_attachments,
        allow_unconfined_mode=config.allow_unconfined_mode,
        checking=True,
    )


def _seccomp(config: Config, arch: str, kernel: str) -> SeccompBackend:
    return SeccompBackend(
        host=Host("/"),
        prefix=config.seccomp_prefix,
        format=config.seccomp_format,
        allow_unknown_syscalls=config.allow_unknown_syscalls,
        machine=arch or platform.machine(),
        kernel=kernel,
        floor=releases.parse(config.runtime_floor),
    )


def _inspect(
    config: Config,
    groups: Sequence[Sequence[Snapshot]],
    apparmor: AppArmorBackend,
    seccomp: SeccompBackend,
    progress: Callable[[int, int], None],
) -> list[desired.Desired]:
    """Inspect the keys of each group, and wait until all texts are compiled."""

    def inspect(kind: ProfileKind, key: SourceKey) -> Inspected:
        return apparmor.inspect(key) if kind == "apparmor" else seccomp.inspect(key)

    kinds: frozenset[ProfileKind] = frozenset(
        kind for kind in ("apparmor", "seccomp") if kind in config.kinds
    )
    results = [desired.join(group, inspect, kinds) for group in groups]
    while any(result.pending for result in results) and apparmor.wait(progress):
        apparmor.begin_pass()
        results = [desired.join(group, inspect, kinds) for group in groups]
    return results


def _split(paths: Sequence[str]) -> tuple[dict[Path, list[str]], list[str]]:
    """Return the paths of individual files by directory, and all other paths."""
    files_by_directory: dict[Path, list[str]] = {}
    others: list[str] = []
    by_full_path = {os.path.abspath(path): path for path in reversed(paths)}  # noqa: PTH100 - removes `..`
    for full_path, path in reversed(by_full_path.items()):
        # If the directory is not accessible, pathlib raises an error; the later read reports it.
        if os.path.isfile(path) and Path(path).suffix not in _MANIFESTS:  # noqa: PTH113 - see above
            files_by_directory.setdefault(Path(full_path).parent, []).append(path)
        else:
            others.append(path)
    return files_by_directory, others


def _skipped_files(
    files_by_directory: Mapping[Path, Sequence[str]], others: Sequence[str]
) -> Iterator[str]:
    for files in files_by_directory.values():
        for path in files:
            if classify.classify(path, b"") is None:
                yield f"{path} was skipped, since its name is not that of a profile"
    for path in others:
        names = [name for _, _, names in os.walk(path) for name in names]
        count = sum(name.endswith(_MANIFESTS) for name in names)
        if count:
            files = "a .yaml file was" if count == 1 else f"{count} .yaml files were"
            yield f"{path}: {files} skipped. Pass the path of a manifest to check it"


def _skipped_keys(results: Sequence[desired.Desired]) -> Iterator[str]:
    for result in results:
        for profile_set, count in result.left_out.items():
            if count:
                keys = "1 key was" if count == 1 else f"{count} keys were"
                yield f"{profile_set}: {keys} skipped because of --kinds"


def _read_source(path: str) -> tuple[Snapshot, ...]:
    """Read a directory or a manifest."""
    spec = source_spec.parse_source(path)
    # The command-line parser has already rejected ConfigMaps of the API server.
    if isinstance(spec, source_spec.ConfigMapSpec):
        return ()
    return source_spec.local_source(spec).read()


def _read_files(directory: Path, files: Sequence[str]) -> tuple[Snapshot, ...]:
    """Read several files of one directory. The key of a file is its path on the command line.

    If no file contains a profile, the result has one snapshot for each file instead of one for the
    directory.
    """
    unreadable: list[Snapshot] = []
    without_profile: list[Snapshot] = []
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
            without_profile.append(Emptied(profile_set=path, revision=""))
    if not keys and not refused:
        return (*unreadable, *without_profile)
    return (*unreadable, limits.snapshot(profile_set, keys, refused))


def _unread(snapshot: Snapshot) -> Finding | None:
    """Return why a path provides no profiles, with a hint for this command.

    If the path provides profiles, the result is None.
    """
    finding = report_builder.source_finding(snapshot)
    return replace(finding, hint=_HINTS[finding.code]) if finding is not None else None


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
