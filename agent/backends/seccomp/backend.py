"""Checks, observes, installs and removes the seccomp files of a node.

The backend writes the canonical form of a checked profile, and never the original bytes. The
backend cannot observe whether a file is in use, because a runtime reads the file only when it
starts a container, and a running container does not show the path. If the content of a file differs
from the ledger, another program wrote the file, and the backend does not change it. The module
`inspection` checks profiles.
"""

import errno
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agent.backends.seccomp import (
    decoding,
    fields,
    file_evidence,
    inspection,
    profile_path,
    releases,
    resolve,
)
from agent.core import common_findings
from agent.core.findings import Finding
from agent.core.model import (
    Evidence,
    Inspected,
    KeyId,
    Observation,
    Observed,
    ObservedProfile,
    Profile,
    Rejection,
    SourceKey,
    UnknownUse,
    Unobservable,
    Use,
    Version,
    digest,
)
from agent.core.ports import Capabilities, Failed, Installed, InstalledForm, Removed, StillInUse
from agent.host import stat_signature
from agent.host.filesystem import Host, HostError
from agent.host.stat_signature import Signature

_NOT_COMPARABLE: Final = frozenset(
    {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENXIO}
)
_USE_UNKNOWN: Final = (
    "a runtime reads the file at every start of a container, and leaves no trace of the access"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedFile:
    """The cached observation of a file, which is valid while the file's stat signature is
    unchanged.
    """

    signature: Signature
    read_ns: int  # The time at which the file was read, in Unix nanoseconds.
    fact: ObservedProfile

    @property
    def is_lasting(self) -> bool:
        """Whether every later write to the file would change its stat signature."""
        return stat_signature.is_settled(self.signature, self.read_ns)


class SeccompBackend:
    """The seccomp files in one directory of a node; implements agent.core.ports.ProfileBackend.

    Only the main thread uses the backend.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, and each parameter is an option
        self,
        *,
        host: Host,
        directory: str = "/var/lib/kubelet/seccomp",
        prefix: str = "",
        format: Literal["oci", "docker"] = "oci",  # noqa: A002 - the option's name
        allow_unknown_syscalls: bool = False,
        machine: str = "",
        kernel: str = "",
        floor: releases.RuntimeFloor = releases.LOWEST,
        clock_ns: Callable[[], int],
    ) -> None:
        """Create the backend.

        Args:
            host: the node's file system.
            directory: the kubelet's seccomp directory.
            prefix: the first part of a profile's path, unless the profile set defines another
                prefix.
            format: `oci` for fields that every runtime reads in the same way, or `docker` for CRI-O
                only.
            allow_unknown_syscalls: whether to accept names of calls that a node may not know.
            machine: the machine name in the form of `uname -m`; by default, the name of this
                machine.
            kernel: a version such as 6.1; by default, the version of the running kernel.
            floor: the oldest releases of libseccomp and of the runtimes on the nodes.
            clock_ns: returns the Unix time in nanoseconds, like the times of files.
        """
        self._host = host
        self._directory = directory
        self._prefix = prefix
        self._clock_ns = clock_ns
        self._files: dict[str, _CachedFile] = {}
        self._observation: Observation | None = None
        self._options = fields.Options(
            format=format,
            allow_unknown_syscalls=allow_unknown_syscalls,
            machine=machine or platform.machine(),
            kernel=resolve.kernel(kernel or platform.release()) or (0, 0),
            floor=floor,
        )

    @property
    def name(self) -> Literal["seccomp"]:
        """The name of the profile kind."""
        return "seccomp"

    @property
    def capabilities(self) -> Capabilities:
        """The properties in which seccomp differs from other profile kinds."""
        return Capabilities(removal_unconfines=False, installed_form=InstalledForm.FILE)

    # --- inspect ---------------------------------------------------------------------------------

    def check(self, content: bytes) -> tuple[bytes, tuple[Finding, ...]]:
        """Return the canonical JSON of a profile and the findings; the JSON is empty if the profile
        is rejected.
        """
        checked = inspection.check(content, self._options)
        return checked.body, checked.findings

    def begin_pass(self) -> None:
        """Do nothing, because every check ends before the pass continues."""

    def wait(self, _progress: Callable[[int, int], None], /) -> bool:
        """Return False, because no check runs in the background."""
        return False

    def body(self, profile: Profile) -> bytes | None:
        """Create the canonical form of a profile from its source again.

        The checks are not repeated, because the digest proves that this form was accepted earlier.
        """
        body = inspection.unchecked_form(profile.source, self._options)
        return body if digest(body) == profile.version.body_digest else None

    def discard(self, profile: Profile) -> None:
        """Do nothing, because `inspect` stores no results."""

    def inspect(self, blob: SourceKey) -> Inspected:
        """Check one key without changing the node."""
        id_ = KeyId(kind="seccomp", profile_set=blob.profile_set, key=blob.key)
        prefix = blob.prefix or self._prefix
        path = prefix + (blob.name or blob.key)
        checked = inspection.check(blob.content, self._options)
        unsafe = profile_path.error(id_, path)
        if unsafe is not None:
            return Rejection(id=id_, findings=(*checked.errors, unsafe), names=())
        if checked.errors:
            return Rejection(id=id_, findings=checked.findings, names=(path,))
        body_digest = digest(checked.body)
        version = Version(
            names=(path,),
            source_digest=digest(blob.content),
            body_digest=body_digest,
            evidence={path: file_evidence.expected(body_digest)},
            context=self._kernel_context if checked.depends_on_kernel else "",
        )
        return Profile(
            id=id_,
            version=version,
            source=blob.content,
            body_size=len(checked.body),
            findings=checked.findings,
            prefix=blob.prefix,
        )

    @property
    def _kernel_context(self) -> str:
        return "linux " + ".".join(map(str, self._options.kernel))

    def accepts_context(self, context: str) -> bool:
        """Return whether a canonical form with this context is valid on this node.

        The canonical form depends on the machine, which does not change. For some profiles, the
        canonical form also depends on the kernel version.
        """
        return context in ("", self._kernel_context)

    # --- observe ---------------------------------------------------------------------------------

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Return the content of the existing files, and whether the removal candidates are in
        use.
        """
        facts: dict[str, ObservedProfile] = {}
        try:
            if self._host.exists(self._directory):
                self._host.names(self._directory)
        except HostError as error:
            return _unobservable(self._directory, error)
        signatures = self._host.signatures(self._directory, names) or {}
        for name in names:
            signature = signatures.get(name)
            cached = self._files.pop(name, None)
            if cached is not None and cached.signature == signature and cached.is_lasting:
                facts[name], self._files[name] = cached.fact, cached
                continue
            read_ns = self._clock_ns()
            try:
                fact = self._observed_file(name)
            except HostError as error:
                if error.errno not in _NOT_COMPARABLE:
                    return _unobservable(f"{self._directory}/{name}", error)
                fact = ObservedProfile(evidence=frozenset())
            if fact is not None:
                facts[name] = fact
                self._cache(name, signature, read_ns, facts[name])
        uses: dict[str, Use] = {
            name: UnknownUse(reason=_USE_UNKNOWN) for name in removal_candidates if name in facts
        }
        observation = Observation(profiles=facts, uses=uses)
        if observation != self._observation:
            self._observation = observation
        return self._observation

    def _cache(
        self, name: str, signature: Signature | None, read_ns: int, fact: ObservedProfile
    ) -> bool:
        """Cache an observed file if it did not change during the read; return whether it was
        cached.
        """
        if signature is None or self._signature(name) != signature:
            return False
        self._files[name] = _CachedFile(signature=signature, read_ns=read_ns, fact=fact)
        return True

    def _signature(self, name: str) -> Signature | None:
        return self._host.signature(f"{self._directory}/{name}")

    def sandbox(self) -> None:
        """Return None, because the agent starts no program to read seccomp files."""

    def is_unchanged(self) -> bool:
        """Return whether every observed file has the same signature as before.

        Two writes within one clock tick can result in the same signature. Therefore, a file that
        was written shortly before it was read counts as changed at the next check, so that it is
        read again.
        """
        if self._observation is None or not self._observation.profiles.keys() <= self._files.keys():
            return False
        signatures = self._host.signatures(self._directory, self._files) or {}
        now = self._clock_ns()
        return all(
            signatures.get(name) == cached.signature
            and (cached.is_lasting or now - cached.read_ns <= stat_signature.SETTLE_NS)
            for name, cached in self._files.items()
        )

    def invalidate(self) -> None:
        """Clear the cache, so that the next pass reads every file again."""
        self._files.clear()
        self._observation = None

    def _observed_file(self, name: str) -> ObservedProfile | None:
        """Return the observation of a file, or None if the file is absent. Raises HostError."""
        content = self._host.read_regular(self._directory, name, limit=decoding.MOST_BYTES)
        if content is None:
            return None
        if self._host.is_loose(f"{self._directory}/{name}"):
            # The content proves nothing, because other users can change the file at any time.
            return ObservedProfile(evidence=frozenset())
        return file_evidence.observed(content, self._options)

    # --- change ----------------------------------------------------------------------------------

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),  # noqa: ARG002 - no record of objects is kept
    ) -> Installed | Failed:
        """Write the file atomically, and read it again to verify its content."""
        path = profile.version.names[0]
        where = f"{self._directory}/{path}"
        try:
            self._host.write_file(self._directory, path, body, new=path not in replaceable)
        except HostError as error:
            if error.errno == errno.EEXIST and path not in replaceable:
                finding = common_findings.foreign_profile(
                    path, observed=None, blocked_key=profile.id
                )
            else:
                finding = common_findings.write_failed(
                    where, "The profile", str(error), "The next pass tries again."
                )
            return Failed(finding=finding)
        signature, read_ns = self._signature(path), self._clock_ns()
        try:
            content = self._host.read_regular(self._directory, path, limit=decoding.MOST_BYTES * 8)
        except HostError as error:
            reason = f"the file cannot be read ({error})"
            return Failed(finding=common_findings.verify_failed(where, reason))
        if content != body:
            reason = "the file has other content"
            return Failed(finding=common_findings.verify_failed(where, reason))
        fact = file_evidence.installed(body)
        # With this signature in the cache, the agent's own write does not trigger a pass.
        if not self._cache(path, signature, read_ns, fact):
            # Another process changed the file, so the next pass reads it again.
            self._observation = None
        return Installed(evidence={path: fact.evidence}, modes={})

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove files after a final check of their content.

        A file with the same meaning but different bytes is foreign. With `require_unused`, the
        backend removes nothing, because it cannot prove that a file is unused.
        """
        present = []
        for name in names:
            try:
                observed = self._observed_file(name)
            except HostError as error:
                if error.errno in _NOT_COMPARABLE:
                    return _foreign(name)
                reason = f"the file cannot be read ({error})"
                return Failed(finding=common_findings.remove_failed(name, reason))
            if observed is None:
                continue
            if observed.evidence.isdisjoint(evidence.get(name, frozenset())):
                return _foreign(name)
            present.append(name)
        if require_unused and present:
            return StillInUse(uses={name: UnknownUse(reason=_USE_UNKNOWN) for name in present})
        for name in present:
            try:
                self._host.remove_file(self._directory, name)
            except HostError as error:
                return Failed(finding=common_findings.remove_failed(name, str(error)))
            self._forget(name)
        return Removed()

    def _forget(self, name: str) -> None:
        """Remove a file from the cache and from the last observation."""
        self._files.pop(name, None)
        if self._observation is not None:
            facts = {key: fact for key, fact in self._observation.profiles.items() if key != name}
            self._observation = Observation(profiles=facts, uses=self._observation.uses)


def _unobservable(where: str, error: HostError) -> Unobservable:
    hint = "Check the directory in --seccomp-dir and the permissions of the agent."
    return Unobservable(
        finding=common_findings.kind_unobservable(where, "The seccomp files", str(error), hint)
    )


def _foreign(name: str) -> Failed:
    """Return the result for a file that this agent did not write, or that was changed later."""
    finding = common_findings.foreign_profile(name, observed=None, blocked_key=None)
    return Failed(finding=finding)
