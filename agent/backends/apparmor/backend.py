"""The AppArmor kind: check, look, put, remove.

Rule 1: what was checked is what is loaded, byte for byte. Rule 2: nothing compiled without this
kernel's features is put. Rule 3: no parser, no kernel and no right are answers, never exceptions.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal

from agent.backends.apparmor import (
    compiled_policy,
    diagnostics,
    escape_rules,
    kernel,
    kernel_access,
    loaded_objects,
    memory_budget,
    parser_hints,
    parser_messages,
    policy_changes,
    policy_references,
    processes,
    source_checks,
    validation,
)
from agent.backends.apparmor import parser as apparmor_parser
from agent.backends.apparmor.compile_worker import CompileWorker
from agent.backends.apparmor.parser import RunFailure
from agent.backends.apparmor.policy_cache import ParserResult, PolicyCache
from agent.core.findings import Finding, limit_findings
from agent.core.model import (
    Evidence,
    Inspected,
    KeyId,
    Observation,
    Observed,
    ObservedProfile,
    Pending,
    Profile,
    Rejection,
    SourceKey,
    Unobservable,
    Version,
    digest,
)
from agent.core.ports import (
    Capabilities,
    Failed,
    Installed,
    InstalledForm,
    Removed,
    Sandbox,
    StillInUse,
)
from agent.host.filesystem import Host, HostError

_Target = tuple[tuple[str, ...], str]  # the options that name the features, the context's digest


class AppArmorBackend:
    """AppArmor on one host; fulfils agent.core.ports.Kind.

    parser: the path of apparmor_parser on this machine, or "" to look for it. checking: compile
    against a features file instead of this kernel, and accept without a kernel. remember: write
    what the parser said below state_dir/cache. abi: the features file for checking, or "" for the
    newest of include_dir/abi. cpu_limit: seconds of CPU time that the parser may use for one text.
    completed: called from another thread whenever a text has been compiled. None: nobody waits for
    single results, and slow texts are compiled without pauses.
    """

    def __init__(  # noqa: PLR0913 - each is an option of its own
        self,
        *,
        host: Host,
        parser: str = "",
        parser_ran: Callable[[float], None] = lambda _: None,
        cpu_limit: float = 30.0,
        state_dir: str = "/var/lib/profile-loader",
        deny_names: Collection[str] = validation.DENY_NAMES,
        allow_attachments: bool = False,
        allow_unconfined_mode: bool = False,
        checking: bool = False,
        remember: bool = True,
        abi: str = "",
        include_dir: str = "/etc/apparmor.d",
        completed: Callable[[], None] | None = None,
        free_memory: Callable[[], int] = memory_budget.available_bytes,
        probes: kernel_access.Probes = kernel_access.Probes(),  # noqa: B008 - frozen
    ) -> None:
        self.host = host
        self.access = kernel_access.KernelAccess(host, probes)
        self.kernel = kernel.Kernel(host, probes)
        self.processes = processes.Processes(host, shows_pending_exec=probes.shows_pending_exec)
        remember = remember and not checking
        self.objects = loaded_objects.LoadedObjects(host, state_dir, write=remember)
        self.changes = policy_changes.PolicyChanges(
            self.access,
            self.kernel,
            self.processes,
            self.objects,
            policy_references.PolicyReferences(host, self.kernel, probes),
        )
        self.parser = apparmor_parser.Parser(parser, include_dir=include_dir, ran=parser_ran)
        self.cpu_limit = cpu_limit
        self.worker = CompileWorker(
            self.parser,
            cpu_limit=cpu_limit,
            pauses_slow_texts=completed is not None,
            completed=completed or (lambda: None),
            free_memory=free_memory,
        )
        self.cache = PolicyCache(host, state_dir, write=remember)
        self.rules = validation.ValidationRules(
            deny_names=tuple(deny_names),
            allow_attachments=allow_attachments,
            allow_unconfined_mode=allow_unconfined_mode,
        )
        self.checking = checking
        self._abi = abi
        self._features: bytes | None = None
        self._asked: frozenset[str] = frozenset()
        self._seen: Observation | None = None
        self._target: _Target | None = None  # of this pass
        self._awaited: set[str] = set()  # keys of the texts that this pass waits for

    @property
    def name(self) -> Literal["apparmor"]:
        """Return the kind's name."""
        return "apparmor"

    @property
    def capabilities(self) -> Capabilities:
        """Return how this kind differs from others."""
        return Capabilities(removal_unconfines=True, installed_form=InstalledForm.POLICY)

    @property
    def abi(self) -> str:
        """Return the features file that profiles are checked against, or nothing."""
        return self._abi or self.parser.newest_features_file()

    # --- check -----------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Begin a pass: use the results of finished parser runs from now on.

        Texts that the previous pass did not ask for are not compiled any more.
        """
        self._target = None
        self.worker.retain(self._awaited)
        self._awaited = set()
        results = self.worker.collect()
        if not results:
            return
        # Each inspection reports it.
        with contextlib.suppress(HostError, apparmor_parser.ParserError):
            _, context = self._current_target()
            for result in results:
                # An include that changed in the meantime: the text is compiled again.
                if result.context == context:
                    key = (
                        self._condemned(result.key) if result.result.exceeded_limit else result.key
                    )
                    self.cache.store(key, result.result)

    def _refusals(self, content: bytes) -> tuple[Finding, ...]:
        """Return why a text must not reach the parser.

        The sandbox contains an undecided text, so without a sandbox such a text is rejected.
        """
        findings = source_checks.errors(content)
        undecided = () if findings else source_checks.undecided_includes(content)
        try:
            return undecided if undecided and self.parser.unsandboxed_reason() else findings
        except apparmor_parser.ParserError:  # the worker reports it, and does not start the parser
            return findings

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until no text is being compiled; return whether inspections may say more."""
        return self.worker.wait(progress)

    def inspect(self, blob: SourceKey) -> Inspected:
        """Check one key without touching the node; a text that is not compiled yet is pending."""
        id_ = KeyId(kind="apparmor", profile_set=blob.profile_set, key=blob.key)
        findings = self._refusals(blob.content)
        if findings:
            return Rejection(id=id_, findings=findings)
        absent = self._absent()
        why = self.parser.unavailable_reason()
        try:
            features, context = ((), "") if why else self._current_target()
        except (HostError, apparmor_parser.ParserError) as error:
            why, features, context = str(error), (), ""
        if not features:
            why = why or absent or "no features file to compile against"
            return diagnostics.cannot_check(id_, f"The profile cannot be checked: {why}.")
        key = _key(context, blob.content)
        compiled = self.cache.find(key) or self.cache.find(self._condemned(key))
        if compiled is None:
            self._awaited.add(key)
            failure = self.worker.submit(
                key=key,
                text=blob.content,
                features=features,
                context=context,
                origin=blob.profile_set,
            )
            if failure is not None and failure.outcome is RunFailure.NOT_STARTED:
                return diagnostics.cannot_check(
                    id_, f"The profile cannot be checked: {failure.detail}."
                )
            retry = (
                (diagnostics.compiled_again_later(id_, failure.detail),)
                if failure is not None
                else ()
            )
            return Pending(id=id_, source=blob.content, findings=retry)
        judged = self._judge(id_, blob, compiled, context)
        if absent and isinstance(judged, Profile):
            return diagnostics.cannot_check(
                id_, f"The profile compiles, but cannot be put: {absent}."
            )
        if isinstance(judged, Profile):
            self.changes.checked |= dict.fromkeys(judged.version.names, judged.version.body_digest)
        return judged

    def body(self, profile: Profile) -> bytes | None:
        """Return the compiled policy of a profile, or None if it must be compiled again."""
        policy = self.cache.policy(_key(profile.version.context, profile.source))
        is_whole = policy is not None and digest(policy) == profile.version.body_digest
        return policy if is_whole else None

    def discard(self, profile: Profile) -> None:
        """Remove the result of a check from memory; the cache on disk keeps it."""
        self.cache.discard(_key(profile.version.context, profile.source))
        for name in profile.version.names:
            if self.changes.checked.get(name) == profile.version.body_digest:
                del self.changes.checked[name]

    def _absent(self) -> str:
        """Return why there is no kernel to compile for, or nothing."""
        return "" if self.checking else self.access.missing()

    def sandbox(self) -> Sandbox | None:
        """Return whether the parser can open only its includes and configuration."""
        if self.parser.unavailable_reason():
            return None
        try:
            why = self.parser.unsandboxed_reason()
        except apparmor_parser.ParserError as error:
            why = str(error)
        return Sandbox(finding=diagnostics.parser_not_sandboxed(why) if why else None)

    def accepts_context(self, context: str) -> bool:
        """Return whether a body of that context was made for this kernel's features.

        Parser and includes may have changed since, or be gone: what was verified once is still
        the last good version.
        """
        if self.access.missing():
            return False
        try:
            return context.partition(":")[0] == _features(self.access.features())
        except HostError:
            return False

    def _current_target(self) -> _Target:
        """Return the target that this pass compiles for. Raises HostError and ParserError."""
        if self._target is None:
            self._target = self._read_target()
        return self._target

    def _read_target(self) -> _Target:
        inputs = self.parser.input_digest()
        if self.checking or self.access.missing():
            abi = self.abi
            if not abi:
                return (), ""
            content = apparmor_parser.file_content(abi)
            return ("--kernel-features", abi), f"{_features(content)}:{digest(inputs.encode())}"
        if self._features is None:
            self._features = self.access.features()  # they cannot change while the kernel runs
        path = str(self.host.path(f"{kernel_access.ROOT}/features"))
        context = f"{_features(self._features)}:{digest(inputs.encode())}"
        return ("--kernel-features", path), context

    def _condemned(self, key: str) -> str:
        """Return the cache key that says that a text exceeds today's limits of the parser."""
        return digest(f"{key} {self.cpu_limit:g} {memory_budget.limit_bytes()}".encode())

    def _judge(
        self, id_: KeyId, blob: SourceKey, compiled: ParserResult, context: str
    ) -> Profile | Rejection:
        source = blob.content.decode("utf-8", "replace")
        if compiled.exceeded_limit:
            return Rejection(id=id_, findings=(diagnostics.parser_killed(compiled),))
        if compiled.error:
            return Rejection(
                id=id_,
                findings=(
                    diagnostics.parser_rejected(
                        id_,
                        line=parser_messages.line_reference(compiled.error, source),
                        message=compiled.error,
                        hint=parser_hints.hint(compiled.error, source, self.parser.include_dir),
                    ),
                ),
            )
        try:
            declared = compiled.declared or compiled_policy.read(compiled.policy)
        except compiled_policy.PolicyError as error:
            return Rejection(id=id_, findings=(diagnostics.policy_unreadable(id_, error),))
        findings = source_checks.variable_names(source) + validation.errors(
            declared, source, self.rules
        )
        if not declared:
            findings += (diagnostics.no_profile(id_),)
        provides = tuple(sorted(one.name for one in declared))
        if findings:
            return Rejection(id=id_, findings=findings, names=provides)
        version = Version(
            names=provides,
            source_digest=digest(blob.content),
            body_digest=compiled.sha256 or digest(compiled.policy),
            context=context,
            modes={one.name: one.mode for one in declared},
            evidence={one.name: one.evidence for one in declared},
        )
        return Profile(
            id=id_,
            version=version,
            source=blob.content,
            body_size=compiled.size or len(compiled.policy),
            findings=validation.warnings(declared, source)
            + escape_rules.warnings(source)
            + limit_findings(
                diagnostics.rule_not_enforced(
                    id_, parser_messages.weaker_rule_line(warning, source), warning
                )
                for warning in compiled.warnings
            ),
            prefix=blob.prefix,
        )

    # --- look ------------------------------------------------------------------------------------

    def observe(self, names: Collection[str], removal_candidates: Collection[str]) -> Observed:
        """Look at the node: facts for every one of names that is there; uses for suspects."""
        barrier = self.access.barrier()
        if barrier is not None:
            return barrier
        asked = frozenset(names)
        if self._seen is None or asked != self._asked or not self.is_unchanged():
            facts = self.kernel.observe(names, whole=True)
            if isinstance(facts, Unobservable):
                self._seen = None
                return facts
            self._asked, self._seen = asked, self._with_owners(facts)
        loaded = [name for name in removal_candidates if name in self._seen.profiles]
        if not loaded:
            return self._seen
        return replace(self._seen, uses=self.processes.uses(loaded))

    def _with_owners(self, facts: Mapping[str, ObservedProfile]) -> Observation:
        """Add to what was seen which objects this agent loaded."""
        own = self.objects.own(self.kernel.objects(facts), self.kernel.looked, facts)
        hidden = not all(fact.is_readable for fact in facts.values())
        hidden = hidden or (not facts and self.access.hides_content())
        return Observation(
            profiles={
                name: replace(fact, is_agent_object=name in own) for name, fact in facts.items()
            },
            findings=(diagnostics.content_unverifiable(),) if hidden else (),
        )

    def is_unchanged(self) -> bool:
        """Return whether the policy revision is the one of the last look or write."""
        return self.kernel.is_unchanged() if not self.access.missing() else True

    def invalidate(self) -> None:
        """Compare the whole content at the next look; keep nothing that is not asked for again."""
        self._seen = None
        self.kernel.invalidate()
        self.cache.drop_unused()
        self.changes.checked = {}  # each inspect of the full pass adds its own

    # --- change ----------------------------------------------------------------------------------

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        """Load or replace in one write, and verify by content."""
        self._seen = None
        return self.changes.install(profile, body, replaceable=replaceable, foreign=foreign)

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, require_unused: bool
    ) -> Removed | StillInUse | Failed:
        """Remove names after a last look at their content, and with prove at their use."""
        self._seen = None
        return self.changes.remove(names, evidence, require_unused=require_unused)


def _key(context: str, content: bytes) -> str:
    """Return the cache key of the policy that the parser makes of a text in a context."""
    return digest(context.encode() + b"\0" + content)


def _features(content: bytes) -> str:
    """Return the part of a context that says for which kernel features a policy was made."""
    return digest(b"features\0" + content)
