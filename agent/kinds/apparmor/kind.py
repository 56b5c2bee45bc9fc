"""The AppArmor kind: check, look, put, remove.

Rule 1: what was checked is what is loaded, byte for byte. Rule 2: nothing compiled without this
kernel's features is put. Rule 3: no parser, no kernel and no right are answers, never exceptions.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal

from agent.core.model import (
    Blind,
    Blob,
    Evidence,
    Fact,
    Id,
    Inspected,
    Observed,
    Pending,
    Profile,
    Rejection,
    Seen,
    Version,
    digest,
)
from agent.core.ports import Failed, Installed, Removed, Sandbox, StillUsed
from agent.core.problems import Problem, bounded
from agent.doors.host import Host, HostError
from agent.kinds.apparmor import (
    access,
    change,
    judge,
    kernel,
    leaving,
    messages,
    objects,
    policy,
    processes,
    references,
    room,
    text,
    trouble,
)
from agent.kinds.apparmor import parser as apparmor_parser
from agent.kinds.apparmor.cache import Cache, Compiled
from agent.kinds.apparmor.compile_worker import CompileWorker
from agent.kinds.apparmor.parser import Exceeded

_Target = tuple[tuple[str, ...], str]  # the options that name the features, the context's digest


class AppArmor:
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
        cpu_limit: float = 30.0,
        state_dir: str = "/var/lib/profile-loader",
        deny_names: Collection[str] = judge.DENY_NAMES,
        allow_attachments: bool = False,
        allow_unconfined_mode: bool = False,
        checking: bool = False,
        remember: bool = True,
        abi: str = "",
        include_dir: str = "/etc/apparmor.d",
        completed: Callable[[], None] | None = None,
        free_memory: Callable[[], int] = room.room,
        probes: access.Probes = access.Probes(),  # noqa: B008 - frozen
    ) -> None:
        self.host = host
        self.access = access.Access(host, probes)
        self.kernel = kernel.Kernel(host, probes)
        self.processes = processes.Processes(host, shows_pending_exec=probes.shows_pending_exec)
        remember = remember and not checking
        self.objects = objects.Objects(host, state_dir, write=remember)
        self.changes = change.Changes(
            self.access,
            self.kernel,
            self.processes,
            self.objects,
            references.References(host, self.kernel, probes),
        )
        self.parser = apparmor_parser.Parser(host, parser, include_dir=include_dir)
        self.cpu_limit = cpu_limit
        self.worker = CompileWorker(
            self.parser,
            cpu_limit=cpu_limit,
            rests=completed is not None,
            completed=completed or (lambda: None),
            free_memory=free_memory,
        )
        self.cache = Cache(host, state_dir, write=remember)
        self.rules = judge.Rules(
            deny_names=tuple(deny_names),
            allow_attachments=allow_attachments,
            allow_unconfined_mode=allow_unconfined_mode,
        )
        self.checking = checking
        self._abi = abi
        self._features: bytes | None = None
        self._asked: frozenset[str] = frozenset()
        self._seen: Seen | None = None
        self._target: _Target | None = None  # of this pass
        self._awaited: set[str] = set()  # keys of the texts that this pass waits for

    @property
    def name(self) -> Literal["apparmor"]:
        """Return the kind's name."""
        return "apparmor"

    @property
    def abi(self) -> str:
        """Return the features file that profiles are checked against, or nothing."""
        return self._abi or self.parser.abi()

    # --- check -----------------------------------------------------------------------------------

    def begin(self) -> None:
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
                    key = self._condemned(result.key) if result.compiled.killed else result.key
                    self.cache.store(key, result.compiled)

    def _refusals(self, content: bytes) -> tuple[Problem, ...]:
        """Return why a text must not reach the parser.

        The sandbox contains an undecided text, so without a sandbox such a text is rejected.
        """
        problems = text.refusals(content)
        undecided = () if problems else text.undecided(content)
        try:
            return undecided if undecided and self.parser.unsandboxed() else problems
        except apparmor_parser.ParserError:  # the worker reports it, and does not start the parser
            return problems

    def wait(self, progress: Callable[[int, int], None]) -> bool:
        """Wait until no text is being compiled; return whether inspections may say more."""
        return self.worker.wait(progress)

    def inspect(self, blob: Blob) -> Inspected:
        """Check one key without touching the node; a text that is not compiled yet is pending."""
        id_ = Id(kind="apparmor", origin=blob.origin, key=blob.key)
        problems = self._refusals(blob.content)
        if problems:
            return Rejection(id=id_, problems=problems)
        absent = self._absent()
        why = self.parser.missing()
        try:
            features, context = ((), "") if why else self._current_target()
        except (HostError, apparmor_parser.ParserError) as error:
            why, features, context = str(error), (), ""
        if not features:
            why = why or absent or "no features file to compile against"
            return trouble.unchecked(id_, f"The profile cannot be checked: {why}.")
        key = _key(context, blob.content)
        compiled = self.cache.find(key) or self.cache.find(self._condemned(key))
        if compiled is None:
            self._awaited.add(key)
            failure = self.worker.submit(
                key=key, text=blob.content, features=features, context=context, origin=blob.origin
            )
            if failure is not None and failure.outcome is Exceeded.NOT_STARTED:
                return trouble.unchecked(id_, f"The profile cannot be checked: {failure.detail}.")
            retry = (trouble.retried(id_, failure.detail),) if failure is not None else ()
            return Pending(id=id_, source=blob.content, problems=retry)
        judged = self._judge(id_, blob, compiled, context)
        if absent and isinstance(judged, Profile):
            return trouble.unchecked(id_, f"The profile compiles, but cannot be put: {absent}.")
        if isinstance(judged, Profile):
            self.changes.checked |= dict.fromkeys(judged.version.provides, judged.body)
        return judged

    def discard(self, profile: Profile) -> None:
        """Remove a compiled policy from memory; the cache on disk keeps it."""
        with contextlib.suppress(HostError, apparmor_parser.ParserError):
            self.cache.discard(_key(self._current_target()[1], profile.source))
        for name in profile.version.provides:
            if self.changes.checked.get(name) is profile.body:
                del self.changes.checked[name]

    def _absent(self) -> str:
        """Return why there is no kernel to compile for, or nothing."""
        return "" if self.checking else self.access.missing()

    def sandbox(self) -> Sandbox | None:
        """Return whether the parser can open only its includes and configuration."""
        if self.parser.missing():
            return None
        try:
            why = self.parser.unsandboxed()
        except apparmor_parser.ParserError as error:
            why = str(error)
        return Sandbox(problem=trouble.not_sandboxed(why) if why else None)

    def fits(self, context: str) -> bool:
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
        inputs = self.parser.inputs()
        if self.checking or self.access.missing():
            abi = self.abi
            if not abi:
                return (), ""
            content = apparmor_parser.content(abi)
            return ("--kernel-features", abi), f"{_features(content)}:{digest(inputs.encode())}"
        if self._features is None:
            self._features = self.access.features()  # they cannot change while the kernel runs
        path = str(self.host.path(f"{access.ROOT}/features"))
        context = f"{_features(self._features)}:{digest(inputs.encode())}"
        return ("--kernel-features", path), context

    def _condemned(self, key: str) -> str:
        """Return the cache key that says that a text exceeds today's limits of the parser."""
        return digest(f"{key} {self.cpu_limit:g} {room.limit()}".encode())

    def _judge(self, id_: Id, blob: Blob, compiled: Compiled, context: str) -> Profile | Rejection:
        source = blob.content.decode("utf-8", "replace")
        if compiled.killed:
            return Rejection(id=id_, problems=(trouble.killed(compiled),))
        if compiled.message:
            problem = Problem(
                code="parser_rejected",
                where=messages.place(compiled.message, source) or id_.key,
                what=compiled.message,
                hint="Mend the text; apparmor_parser -Q -K FILE says the same.",
            )
            return Rejection(id=id_, problems=(problem,))
        try:
            declared = compiled.declared or policy.read(compiled.policy)
        except policy.PolicyError as error:
            return Rejection(id=id_, problems=(trouble.unreadable(id_, error),))
        problems = text.variable_names(source) + judge.refusals(declared, source, self.rules)
        if not declared:
            problems += (
                Problem(
                    code="no_profile",
                    where=id_.key,
                    what="The text compiles, but declares no profile.",
                    hint="Begin a profile with: profile NAME {",
                ),
            )
        provides = tuple(sorted(one.name for one in declared))
        if problems:
            return Rejection(id=id_, problems=problems, provides=provides)
        version = Version(
            provides=provides,
            source=digest(blob.content),
            body=compiled.sha256 or digest(compiled.policy),
            context=context,
            modes={one.name: one.mode for one in declared},
            evidence={one.name: one.evidence for one in declared},
        )
        return Profile(
            id=id_,
            version=version,
            source=blob.content,
            body=compiled.policy,
            remarks=judge.warnings(declared, source)
            + leaving.warnings(source)
            + bounded(trouble.not_enforced(id_, note) for note in compiled.notes),
            prefix=blob.prefix,
        )

    # --- look ------------------------------------------------------------------------------------

    def observe(self, names: Collection[str], suspects: Collection[str]) -> Observed:
        """Look at the node: facts for every one of names that is there; uses for suspects."""
        barrier = self.access.barrier()
        if barrier is not None:
            return barrier
        asked = frozenset(names)
        if self._seen is None or asked != self._asked or not self.untouched():
            facts = self.kernel.look(names, whole=True)
            if isinstance(facts, Blind):
                self._seen = None
                return facts
            self._asked, self._seen = asked, self._with_owners(facts)
        loaded = [name for name in suspects if name in self._seen.facts]
        if not loaded:
            return self._seen
        return replace(self._seen, uses=self.processes.uses(loaded))

    def _with_owners(self, facts: Mapping[str, Fact]) -> Seen:
        """Add to what was seen which objects this agent loaded."""
        own = self.objects.own(self.kernel.objects(facts), self.kernel.looked, facts)
        hidden = not all(fact.is_readable for fact in facts.values())
        hidden = hidden or (not facts and self.access.hides_content())
        return Seen(
            facts={name: replace(fact, is_own=name in own) for name, fact in facts.items()},
            remarks=(trouble.unverifiable(),) if hidden else (),
        )

    def untouched(self) -> bool:
        """Return whether the policy revision is the one of the last look or write."""
        return self.kernel.untouched() if not self.access.missing() else True

    def forget(self) -> None:
        """Compare the whole content at the next look; keep nothing that is not asked for again."""
        self._seen = None
        self.kernel.forget()
        self.cache.forget()
        self.changes.checked = {}  # each inspect of the full pass adds its own

    # --- change ----------------------------------------------------------------------------------

    def put(
        self, profile: Profile, *, ours: Collection[str], foreign: Collection[str] = ()
    ) -> Installed | Failed:
        """Load or replace in one write, and verify by content."""
        self._seen = None
        return self.changes.put(profile, ours=ours, foreign=foreign)

    def remove(
        self, names: Collection[str], evidence: Mapping[str, Evidence], *, prove: bool
    ) -> Removed | StillUsed | Failed:
        """Remove names after a last look at their content, and with prove at their use."""
        self._seen = None
        return self.changes.remove(names, evidence, prove=prove)


def _key(context: str, content: bytes) -> str:
    """Return the cache key of the policy that the parser makes of a text in a context."""
    return digest(context.encode() + b"\0" + content)


def _features(content: bytes) -> str:
    """Return the part of a context that says for which kernel features a policy was made."""
    return digest(b"features\0" + content)
