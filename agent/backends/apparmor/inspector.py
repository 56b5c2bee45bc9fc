"""Checks AppArmor profile texts with the parser, and decides whether the result may be installed.

An inspection never waits for the parser: if a profile text has no result, the text is queued and
its key is pending. Only a policy that was compiled for the features of this kernel is accepted for
installation. If the parser or the kernel support is missing, an inspection returns a result with
the reason instead of raising an exception. `compile_worker` runs the parser; `source_checks`,
`validation` and `escape_rules` contain the rules for profile texts and policies.
"""

import contextlib
from collections.abc import Callable, Sequence

from agent.backends.apparmor import (
    compiled_policy,
    container_checks,
    diagnostics,
    escape_rules,
    network_addresses,
    parser_hints,
    parser_messages,
    source_checks,
    validation,
)
from agent.backends.apparmor.compile_target import CompileTarget, TargetReader
from agent.backends.apparmor.compile_worker import CompileWorker
from agent.backends.apparmor.compiled_policy import DeclaredProfile
from agent.backends.apparmor.parser import ParserError, RunFailure
from agent.backends.apparmor.policy_cache import ParserResult, PolicyCache
from agent.core.findings import Finding, limit_findings
from agent.core.model import (
    Inspected,
    KeyId,
    Pending,
    Profile,
    Rejection,
    SourceKey,
    Unchecked,
    Version,
    digest,
)
from agent.core.ports import Sandbox
from agent.host.filesystem import HostError


class Inspector:
    """Checks the profile texts of one agent. Only the main thread uses an inspector."""

    def __init__(  # noqa: PLR0913 - keyword-only, and each parameter is a part or an option
        self,
        *,
        targets: TargetReader,
        worker: CompileWorker,
        cache: PolicyCache,
        rules: validation.ValidationRules,
        cpu_limit: float,
        memory_limit: Callable[[], int | None],
    ) -> None:
        self.targets = targets
        self.parser = targets.parser
        self.worker = worker
        self.cache = cache
        self.rules = rules
        self.cpu_limit = cpu_limit
        self._memory_limit = memory_limit
        """Returns the memory limit of this process in bytes; None without a known limit."""

        self._target: CompileTarget | None = None
        """The compile target of this pass; None until the target is read."""

        self._awaited: set[str] = set()
        """The cache keys of the results for which keys of this pass are pending."""

    def begin_pass(self) -> None:
        """Begin a pass, and collect the results of all parser runs that have ended.

        Profile texts that the previous pass did not inspect are removed from the queue.
        """
        self._target = None
        self.worker.retain(self._awaited)
        self._awaited = set()
        finished = self.worker.collect()
        if not finished:
            return
        # Each inspection reports this error.
        with contextlib.suppress(HostError, ParserError):
            context = self._current_target().context
            for each in finished:
                # If an include file changed during the parser run, the profile text is compiled
                # again.
                if each.context == context:
                    exceeded = each.result.exceeded_limit
                    key = self._exceeded_key(each.key) if exceeded else each.key
                    self.cache.store(key, each.result)

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until no profile text is being compiled, and return whether there are new
        results.
        """
        return self.worker.wait(progress)

    def inspect(self, source_key: SourceKey) -> Inspected:
        """Check one key, which is pending while its profile text has not been compiled."""
        id_ = KeyId(kind="apparmor", profile_set=source_key.profile_set, key=source_key.key)
        findings = self._text_errors(source_key.content)
        if findings:
            return Rejection(id=id_, findings=findings)
        unsupported = self.targets.unsupported_reason()
        target = self._usable_target(id_)
        if isinstance(target, Unchecked):
            return target
        key = _cache_key(target.context, source_key.content)
        result = self.cache.find(key) or self.cache.find(self._exceeded_key(key))
        if result is None:
            return self._submit(id_, source_key, key, target)
        judged = self._judge(id_, source_key, result, target)
        if unsupported and isinstance(judged, Profile):
            return diagnostics.cannot_check(
                id_,
                f"The profile compiles, but it cannot be installed: {unsupported}.",
                diagnostics.BOOT_APPARMOR,
            )
        return judged

    def body(self, profile: Profile) -> bytes | None:
        """Return the compiled policy of a profile, or None if the profile must be compiled
        again.
        """
        policy = self.cache.policy(_cache_key(profile.version.context, profile.source))
        is_same = policy is not None and digest(policy) == profile.version.body_digest
        return policy if is_same else None

    def discard(self, profile: Profile) -> None:
        """Remove the result of a check from memory; the copy in the cache on disk stays."""
        self.cache.discard(_cache_key(profile.version.context, profile.source))

    def invalidate(self) -> None:
        """Remove results from memory if the next full pass does not use them."""
        self.cache.drop_unused()

    def sandbox(self) -> Sandbox | None:
        """Return whether the parser runs in a sandbox that limits the files it can open."""
        if self.parser.unavailable_reason():
            return None
        try:
            reason = self.parser.unsandboxed_reason()
        except ParserError as error:
            reason = str(error)
        return Sandbox(finding=diagnostics.parser_not_sandboxed(reason) if reason else None)

    def _text_errors(self, content: bytes) -> tuple[Finding, ...]:
        """Return the errors that prevent a profile text from being passed to the parser.

        If the check is inconclusive, the text is accepted only with a sandbox, which protects the
        node. Without a sandbox, such a profile text is rejected.
        """
        findings = source_checks.errors(content)
        undecided = () if findings else source_checks.undecided_includes(content)
        try:
            return undecided if undecided and self.parser.unsandboxed_reason() else findings
        except ParserError:  # The worker reports this error instead of starting the parser.
            return findings

    def _usable_target(self, id_: KeyId) -> CompileTarget | Unchecked:
        """Return the compile target of this pass, or the reason why a key cannot be checked."""
        reason = self.parser.unavailable_reason()
        if reason:
            return diagnostics.not_checkable(id_, reason, diagnostics.INSTALL_PARSER)
        try:
            target = self._current_target()
        except HostError as error:
            hint = diagnostics.MAKE_FEATURES_READABLE
            return diagnostics.not_checkable(id_, str(error), hint)
        except ParserError as error:
            return diagnostics.not_checkable(id_, str(error), diagnostics.START_PARSER)
        if target.options:
            return target
        missing = f"{self.parser.include_dir}/abi contains no features file"
        if unsupported := self.targets.unsupported_reason():
            reason = f"{unsupported}, and {missing}"
            return diagnostics.not_checkable(id_, reason, diagnostics.BOOT_APPARMOR)
        return diagnostics.not_checkable(id_, missing, diagnostics.INSTALL_FEATURES)

    def _submit(
        self, id_: KeyId, source_key: SourceKey, key: str, target: CompileTarget
    ) -> Pending | Unchecked:
        """Queue a profile text for the parser. Return a pending result, or the reason why this node
        cannot check the profile text.
        """
        self._awaited.add(key)
        failure = self.worker.submit(
            key=key,
            text=source_key.content,
            features=target.options,
            context=target.context,
            origin=source_key.profile_set,
        )
        if failure is None:
            return Pending(id=id_, source=source_key.content)
        if failure.outcome is RunFailure.NOT_STARTED:
            return diagnostics.not_checkable(id_, failure.detail, diagnostics.START_PARSER)
        retried = diagnostics.compiled_again_later(id_, failure)
        return Pending(id=id_, source=source_key.content, findings=(retried,))

    def _current_target(self) -> CompileTarget:
        """Return the compile target of this pass.

        Raises:
            HostError: the features of the kernel cannot be read.
            ParserError: an input of the parser cannot be read.
        """
        if self._target is None:
            self._target = self.targets.read()
        return self._target

    def _exceeded_key(self, key: str) -> str:
        """Return the cache key that records whether a profile text exceeds the current limits."""
        return digest(f"{key} {self.cpu_limit:g} {self._memory_limit()}".encode())

    def _judge(
        self, id_: KeyId, source_key: SourceKey, result: ParserResult, target: CompileTarget
    ) -> Profile | Rejection:
        """Decide from the parser's result whether a profile text is accepted."""
        text = source_key.content.decode("utf-8", "replace")
        if result.exceeded_limit:
            return Rejection(id=id_, findings=(diagnostics.parser_killed(result),))
        if result.error:
            finding = diagnostics.parser_rejected(
                id_,
                line=parser_messages.line_reference(result.error, text),
                message=result.error,
                hint=self._next_step(id_, result.error, text),
            )
            return Rejection(id=id_, findings=(finding,))
        try:
            declared = result.declared or compiled_policy.read(result.policy)
        except compiled_policy.NameEncodingError as error:
            return Rejection(id=id_, findings=(validation.name_not_utf8(id_.key, error),))
        except compiled_policy.PolicyError as error:
            return Rejection(id=id_, findings=(diagnostics.policy_unreadable(id_, error),))
        errors = source_checks.variable_names(text)
        errors += validation.errors(declared, text, self.rules)
        if not declared:
            errors += (diagnostics.no_profile(id_),)
        names = tuple(sorted(each.name for each in declared))
        if errors:
            return Rejection(id=id_, findings=errors, names=names)
        version = Version(
            names=names,
            source_digest=digest(source_key.content),
            body_digest=result.sha256 or digest(result.policy),
            context=target.context,
            modes={each.name: each.mode for each in declared},
            evidence={each.name: each.evidence for each in declared},
        )
        return Profile(
            id=id_,
            version=version,
            source=source_key.content,
            body_size=result.size or len(result.policy),
            findings=_warnings(id_, declared, text, result) + self._dropped_addresses(text, target),
            prefix=source_key.prefix,
        )

    def _next_step(self, id_: KeyId, error: str, text: str) -> str:
        """Return the next step for an error of the parser, or an empty string."""
        missing = parser_hints.missing_file(error)
        if missing is None:
            return parser_hints.hint(error, text)
        if missing.path and self.parser.has_include(missing.path):
            return diagnostics.UNREADABLE_INCLUDE
        return parser_hints.missing_file_hint(
            missing,
            id_.key,
            include_dir=self.parser.include_dir,
            parser_version=self.parser.version(),
            abis=[path.name for path in self.parser.features_files()],
        )

    def _dropped_addresses(self, text: str, target: CompileTarget) -> tuple[Finding, ...]:
        """Return the warnings about network rules whose addresses the policy does not contain."""
        if not network_addresses.has_conditions(text):
            return ()
        features = self.parser.policy_features(network_addresses.abi_path(text))
        is_in_abi = not features or network_addresses.are_mediated(features)
        return () if target.mediates_addresses and is_in_abi else network_addresses.dropped(text)


def _warnings(
    id_: KeyId, declared: Sequence[DeclaredProfile], text: str, result: ParserResult
) -> tuple[Finding, ...]:
    """Return the findings about an accepted profile text."""
    weaker_rules = limit_findings(
        diagnostics.rule_not_enforced(id_, parser_messages.weaker_rule_line(warning, text), warning)
        for warning in result.warnings
    )
    return (
        *validation.warnings(declared, text),
        *container_checks.warnings(declared, text),
        *escape_rules.warnings(text),
        *weaker_rules,
    )


def _cache_key(context: str, content: bytes) -> str:
    """Return the cache key for the result of a profile text in a context."""
    return digest(context.encode() + b"\0" + content)
