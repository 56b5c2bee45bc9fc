"""The seccomp kind: check, look, put, remove.

Rule 1: what is written is the canonical form of what was checked, never the original bytes.
Rule 2: nobody can tell whether a file is in use: every runtime reads it again at each start of a
container, and a running one keeps no trace of its path. Rule 3: a file that is not what the
ledger says is somebody else's, and stays.
"""

import errno
import itertools
import platform
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agent.backends.seccomp import canonical, rules, syntax
from agent.core.findings import Finding, Severity, limit_findings
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
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host import stat_signature
from agent.host.filesystem import Host, HostError
from agent.host.stat_signature import Signature

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LONGEST_SEGMENT: Final = 200  # a file name has 255 bytes
_LONGEST_PATH: Final = 1024
_NOT_COMPARABLE: Final = frozenset(
    {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENXIO}
)
# What some runtime reads otherwise than its canonical form says: such a file is no equal of it.
_READ_OTHERWISE: Final = frozenset({"name_rewritten", "expanded_for_arch", "rule_added"})
_WHY: Final = "a runtime reads the file at every start of a container, and leaves no trace of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What a file held, its signature then, and when that was (Unix nanoseconds)."""

    sign: Signature
    read_ns: int
    fact: ObservedProfile

    @property
    def lasting(self) -> bool:
        """Return whether any later write shows in the signature."""
        return stat_signature.is_settled(self.sign, self.read_ns)


class SeccompBackend:
    """Seccomp files below one directory of a host; fulfils agent.core.ports.Kind.

    prefix: put before the path of a profile whose set has no prefix of its own. format: `oci`
    for what every runtime understands, `docker` for CRI-O only. machine: as uname -m says it.
    """

    def __init__(  # noqa: PLR0913 - each is an option of its own
        self,
        *,
        host: Host,
        directory: str = "/var/lib/kubelet/seccomp",
        prefix: str = "",
        format: Literal["oci", "docker"] = "oci",  # noqa: A002 - the option's name
        allow_unknown_syscalls: bool = False,
        machine: str = "",
    ) -> None:
        self.host = host
        self.directory = directory
        self.prefix = prefix
        self.machine = machine or platform.machine()
        self._known: dict[str, _Known] = {}
        self._seen: Observation | None = None
        self.options = rules.Options(
            format=format, allow_unknown_syscalls=allow_unknown_syscalls, machine=self.machine
        )

    @property
    def name(self) -> Literal["seccomp"]:
        """Return the kind's name."""
        return "seccomp"

    # --- check -----------------------------------------------------------------------------------

    def check(self, content: bytes) -> tuple[bytes, tuple[Finding, ...]]:
        """Return the canonical form, or nothing with at least one error; and the problems."""
        body, findings, _ = self._check(content)
        return body, findings

    def _check(self, content: bytes) -> tuple[bytes, tuple[Finding, ...], frozenset[str]]:
        """Return what check does, and the codes of every problem of what has a canonical form."""
        if self.machine not in canonical.MACHINES:
            known = ", ".join(sorted(canonical.MACHINES))
            what = f"The architecture {self.machine[:40]} is not among {known}."
            return (
                b"",
                (Finding(code="not_portable", location="profile", message=what),),
                frozenset(),
            )
        document, found = syntax.read(content)
        if document is None:
            return b"", limit_findings(found), frozenset()
        after, remarks = canonical.expand(document, self.machine)
        codes: set[str] = set()
        findings = limit_findings(
            _noted(
                itertools.chain(
                    found,
                    rules.written(document, self.options),
                    remarks,
                    rules.expanded(after, self.options),
                ),
                codes,
            )
        )
        if any(finding.severity == Severity.ERROR for finding in findings):
            return b"", findings, frozenset()
        body = canonical.encode(after)
        if len(body) > syntax.MOST_BYTES:
            what = f"The canonical form has {len(body)} bytes; at most {syntax.MOST_BYTES} fit."
            large = Finding(code="key_too_large", location="profile", message=what)
            return b"", (*findings, large), frozenset()
        return body, findings, frozenset(codes)

    def begin_pass(self) -> None:
        """Do nothing: every check ends within the pass."""

    def wait(self, progress: Callable[[int, int], None]) -> bool:  # noqa: ARG002 - the port's
        """Return False: no check runs in the background."""
        return False

    def body(self, profile: Profile) -> bytes | None:
        """Return the canonical form of a profile, which is made again from its source."""
        body, _ = self.check(profile.source)
        return body if digest(body) == profile.version.body_digest else None

    def discard(self, profile: Profile) -> None:
        """Do nothing: `inspect` keeps nothing."""

    def inspect(self, blob: SourceKey) -> Inspected:
        """Check one key without touching the node."""
        id_ = KeyId(kind="seccomp", profile_set=blob.profile_set, key=blob.key)
        prefix = blob.prefix or self.prefix
        path = prefix + (blob.name or blob.key)
        body, findings = self.check(blob.content)
        if why := _unsafe(path):
            hint = "Use letters, digits, dots, underscores and hyphens."
            findings += (Finding(code="path_unsafe", location=blob.key, message=why, hint=hint),)
        if any(finding.severity == Severity.ERROR for finding in findings):
            return Rejection(id=id_, findings=findings, names=() if why else (path,))
        version = Version(
            names=(path,),
            source_digest=digest(blob.content),
            body_digest=digest(body),
            evidence={path: frozenset({f"bytes:{digest(body)}", f"canonical:{digest(body)}"})},
        )
        return Profile(
            id=id_,
            version=version,
            source=blob.content,
            body_size=len(body),
            findings=findings,
            prefix=blob.prefix,
        )

    def accepts_context(self, context: str) -> bool:  # noqa: ARG002 - the protocol's signature
        """Return True: a canonical form depends on the machine only, which does not change."""
        return True

    # --- look ------------------------------------------------------------------------------------

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Look at the node: facts for every one of names that is there; uses for suspects."""
        facts: dict[str, ObservedProfile] = {}
        try:
            if self.host.exists(self.directory):
                self.host.names(self.directory)
        except HostError as error:
            what = f"The seccomp directory could not be looked at: {error}."
            where = self.directory
            return Unobservable(
                finding=Finding(code="kind_unobservable", location=where, message=what)
            )
        signs = self.host.signatures(self.directory, names) or {}
        for name in names:
            sign = signs.get(name)
            known = self._known.pop(name, None)
            if known is not None and known.sign == sign and known.lasting:
                facts[name], self._known[name] = known.fact, known
                continue
            at = time.time_ns()
            try:
                evidence = self._evidence(name)
            except HostError as error:
                if error.errno not in _NOT_COMPARABLE:
                    what = f"The seccomp files could not be looked at: {error}."
                    where = f"{self.directory}/{name}"
                    return Unobservable(
                        finding=Finding(code="kind_unobservable", location=where, message=what)
                    )
                evidence = frozenset()
            if evidence is not None:
                facts[name] = ObservedProfile(evidence=evidence)
                self._remember(name, sign, at, facts[name])
        uses: dict[str, Use] = {
            name: UnknownUse(reason=_WHY) for name in removal_candidates if name in facts
        }
        seen = Observation(profiles=facts, uses=uses)
        if seen != self._seen:
            self._seen = seen
        return self._seen

    def _remember(self, name: str, sign: Signature | None, at: int, fact: ObservedProfile) -> bool:
        """Remember what was read, if the file did not change from before until after that."""
        if sign is None or self._sign(name) != sign:
            return False
        self._known[name] = _Known(sign=sign, read_ns=at, fact=fact)
        return True

    def _sign(self, name: str) -> Signature | None:
        return self.host.signature(f"{self.directory}/{name}")

    def sandbox(self) -> None:
        """Return None: no program reads the files."""

    def is_unchanged(self) -> bool:
        """Return whether every file that was there has the signature it had.

        Not for a file that was young when it was read, once it is not: it has to be read again.
        """
        if self._seen is None or not self._seen.profiles.keys() <= self._known.keys():
            return False
        signs = self.host.signatures(self.directory, self._known) or {}
        now = time.time_ns()
        return all(
            signs.get(name) == one.sign
            and (one.lasting or now - one.read_ns <= stat_signature.SETTLE_NS)
            for name, one in self._known.items()
        )

    def invalidate(self) -> None:
        """Read every file again at the next look."""
        self._known.clear()
        self._seen = None

    def _evidence(self, name: str) -> Evidence | None:
        """Return the tokens of a file's content; None if it is absent. Raises HostError."""
        content = self.host.read_regular(self.directory, name, limit=syntax.MOST_BYTES)
        if content is None:
            return None
        if self.host.is_loose(f"{self.directory}/{name}"):
            return frozenset()  # anybody's by now
        body, _, codes = self._check(content)
        tokens = {f"bytes:{digest(content)}"}
        if body and _READ_OTHERWISE.isdisjoint(codes):
            tokens.add(f"canonical:{digest(body)}")
        return frozenset(tokens)

    # --- change ----------------------------------------------------------------------------------

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),  # noqa: ARG002 - no record of objects is kept
    ) -> Installed | Failed:
        """Write the file atomically, and verify by reading it back."""
        path = profile.version.names[0]
        where = f"{self.directory}/{path}"
        try:
            self.host.write_file(self.directory, path, body, new=path not in replaceable)
        except HostError as error:
            if error.errno == errno.EEXIST and path not in replaceable:
                return _foreign(where)
            what = f"The profile could not be written: {error}."
            return Failed(finding=Finding(code="write_failed", location=where, message=what))
        sign, at = self._sign(path), time.time_ns()
        try:
            content = self.host.read_regular(self.directory, path, limit=syntax.MOST_BYTES * 8)
        except HostError as error:
            what = f"The profile was written, but cannot be read back: {error}."
            return Failed(finding=Finding(code="verify_failed", location=where, message=what))
        if content != body:
            what = "The profile was written, but the file holds something else."
            return Failed(finding=Finding(code="verify_failed", location=where, message=what))
        token = f"bytes:{digest(body)}"
        # So that our own write wakes nobody.
        evidence = frozenset({token, f"canonical:{digest(body)}"})
        if not self._remember(path, sign, at, ObservedProfile(evidence=evidence)):
            self._seen = None  # somebody else wrote it meanwhile: look again
        return Installed(evidence={path: frozenset({token})}, modes={})

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove names after a last look at their content; with prove nothing is removed."""
        there = []
        for name in names:
            where = f"{self.directory}/{name}"
            try:
                found = self._evidence(name)
            except HostError as error:
                if error.errno in _NOT_COMPARABLE:
                    return _foreign(where)
                what = f"The profile could not be looked at: {error}."
                return Failed(finding=Finding(code="remove_failed", location=where, message=what))
            if found is None:
                continue
            if not found & evidence.get(name, frozenset()):
                return _foreign(where)
            there.append(name)
        if require_unused and there:
            return StillInUse(uses={name: UnknownUse(reason=_WHY) for name in there})
        for name in there:
            try:
                self.host.remove_file(self.directory, name)
            except HostError as error:
                what = f"The profile could not be removed: {error}."
                where = f"{self.directory}/{name}"
                return Failed(finding=Finding(code="remove_failed", location=where, message=what))
            self._known.pop(name, None)
            if self._seen is not None:
                facts = {one: fact for one, fact in self._seen.profiles.items() if one != name}
                self._seen = Observation(profiles=facts, uses=self._seen.uses)
        return Removed()


def _noted(findings: Iterable[Finding], codes: set[str]) -> Iterator[Finding]:
    for one in findings:
        codes.add(one.code)
        yield one


def _foreign(where: str) -> Failed:
    what = "The file there was not put by this agent, or was changed since; it stays."
    return Failed(finding=Finding(code="foreign_name", location=where, message=what))


def _unsafe(path: str) -> str:
    """Return why a pod may not name that path, or nothing."""
    if len(path) > _LONGEST_PATH:
        return f"The path has more than {_LONGEST_PATH} bytes."
    for segment in path.split("/"):
        if not _SEGMENT.fullmatch(segment) or len(segment) > _LONGEST_SEGMENT:
            return f"{ascii(segment)[:80]} cannot be a part of a seccomp profile's path."
        if ".." in segment:
            return "The API server refuses a localhostProfile with two dots in a row."
    return ""
