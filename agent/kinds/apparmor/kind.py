"""The AppArmor kind: check, look, put, remove.

Rule 1: what was checked is what is loaded, byte for byte. Rule 2: nothing compiled without this
kernel's features is put. Rule 3: no parser, no kernel and no right are answers, never exceptions.
"""

import contextlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.core.model import (
    Blind,
    Blob,
    Evidence,
    Fact,
    Id,
    Inspected,
    Observed,
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
    parser,
    policy,
    processes,
    text,
    trouble,
)
from agent.kinds.apparmor.cache import Cache, Compiled

_BATCH: Final = 50  # texts between two looks whether parser and includes are what they were
_Target = tuple[tuple[str, ...], str]  # the options that name the features, the context's digest


class AppArmor:
    """AppArmor on one host; fulfils agent.core.ports.Kind.

    parser: the path of apparmor_parser on this machine, or "" to look for it. checking: compile
    against a features file instead of this kernel, and accept without a kernel. remember: write
    what the parser said below state_dir/cache. abi: the features file for checking, or "" for the
    newest of include_dir/abi.
    """

    def __init__(  # noqa: PLR0913 - each is an option of its own
        self,
        *,
        host: Host,
        parser: str = "",
        timeout_seconds: float = 30.0,
        state_dir: str = "/var/lib/profile-loader",
        deny_names: Collection[str] = judge.DENY_NAMES,
        allow_attachments: bool = False,
        allow_unconfined_mode: bool = False,
        checking: bool = False,
        remember: bool = True,
        abi: str = "",
        include_dir: str = "/etc/apparmor.d",
        probes: access.Probes = access.Probes(),  # noqa: B008 - frozen
    ) -> None:
        self.host = host
        self.access = access.Access(host, probes)
        self.kernel = kernel.Kernel(host, probes)
        self.processes = processes.Processes(host)
        remember = remember and not checking
        self.objects = objects.Objects(host, state_dir, write=remember)
        self.changes = change.Changes(self.access, self.kernel, self.processes, self.objects)
        self.parser = _parser(host, parser, timeout_seconds, include_dir)
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
        self._prepared: dict[bytes, _Ready] = {}  # for the next inspects, by text
        self._compiling = False  # one more parser beside those may be too much for the memory

    @property
    def name(self) -> Literal["apparmor"]:
        """Return the kind's name."""
        return "apparmor"

    @property
    def abi(self) -> str:
        """Return the features file that profiles are checked against, or nothing."""
        return self._abi or self.parser.abi()

    # --- check -----------------------------------------------------------------------------------

    def prepare(self, blobs: Sequence[Blob], meanwhile: Callable[[], None]) -> None:
        """Compile what will be inspected next, a few texts at a time."""
        self._prepared = {}
        absent = self._absent()
        texts = dict.fromkeys(blob.content for blob in blobs if not self._refusals(blob.content))
        if not texts or self.parser.missing():
            return
        with contextlib.suppress(HostError, parser.ParserError):  # each inspect finds and says it
            target = self._target(absent)
            left = self._remembered(texts, absent, target)
            for begin in range(0, len(left), _BATCH):
                some = left[begin : begin + _BATCH]
                target = self._prepare(some, absent, target, meanwhile)

    def _refusals(self, content: bytes) -> tuple[Problem, ...]:
        """Return why a text must not reach the parser.

        The sandbox contains an undecided text, so without a sandbox such a text is rejected.
        """
        problems = text.refusals(content)
        undecided = () if problems else text.undecided(content)
        try:
            return undecided if undecided and self.parser.unsandboxed() else problems
        except parser.ParserError:  # compiling raises it again, and does not start the parser
            return problems

    def _remembered(self, texts: Iterable[bytes], absent: str, target: _Target) -> list[bytes]:
        """Prepare what was compiled before; return what was not."""
        features, context = target
        left = []
        for content in texts:
            found = self.cache.find(_key(context, content)) if features else None
            if found is None:
                left.append(content)
            else:
                self._prepared[content] = _Ready(compiled=found, context=context, absent=absent)
        return left

    def _prepare(
        self, texts: Sequence[bytes], absent: str, target: _Target, meanwhile: Callable[[], None]
    ) -> _Target:
        """Compile texts for a target; return the target as it is after that."""
        features, context = target
        if not features:
            return target
        fresh: dict[bytes, Compiled] = {}
        made = self._compile(texts, target, fresh, meanwhile)
        self._compiling = True
        try:
            with contextlib.closing(made):
                for content, compiled in zip(texts, made, strict=True):
                    ready = _Ready(compiled=compiled, context=context, absent=absent)
                    self._prepared[content] = ready
        finally:
            self._compiling = False
        if not fresh:
            return target
        after = self._target(absent)
        if after == target:
            for content, compiled in fresh.items():
                self.cache.store(_key(context, content), compiled)
        return after

    def inspect(self, blob: Blob) -> Inspected:
        """Check one key without touching the node."""
        id_ = Id(kind="apparmor", origin=blob.origin, key=blob.key)
        ready: _Ready | str | None = self._prepared.get(blob.content)
        if ready is None or self._compiling:
            problems = self._refusals(blob.content)
            if problems:
                return Rejection(id=id_, problems=problems)
            ready = self._made(blob.content)
        if isinstance(ready, str):
            return trouble.unchecked(id_, f"The profile cannot be checked: {ready}.")
        if not ready.compiled.killed:
            self._prepared.pop(blob.content, None)  # the cache has it for another key
        judged = self._judge(id_, blob, ready)
        if ready.absent and isinstance(judged, Profile):
            why = f"The profile compiles, but cannot be put: {ready.absent}."
            return trouble.unchecked(id_, why)
        if isinstance(judged, Profile):
            self.changes.checked |= dict.fromkeys(judged.version.provides, judged.body)
        return judged

    def _made(self, content: bytes) -> "_Ready | str":
        """Return what the parser makes of one text, or why that cannot be had."""
        why = "others are being compiled" if self._compiling else self.parser.missing()
        if why:
            return why
        absent = self._absent()
        try:
            self._prepare((content,), absent, self._target(absent), lambda: None)
        except (HostError, parser.ParserError) as error:
            return str(error)
        return self._prepared.get(content) or absent or "no features file to compile against"

    def _absent(self) -> str:
        """Return why there is no kernel to compile for, or nothing."""
        return "" if self.checking else self.access.missing()

    def sandbox(self) -> Sandbox | None:
        """Return whether the parser can open only its includes and configuration."""
        if self.parser.missing():
            return None
        try:
            why = self.parser.unsandboxed()
        except parser.ParserError as error:
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

    def _target(self, absent: str) -> _Target:
        """Return the options that name the features to compile for, and the context's digest."""
        inputs = self.parser.inputs()
        if self.checking or absent:
            abi = self.abi
            if not abi:
                return (), ""
            content = parser.content(abi)
            return ("--kernel-features", abi), f"{_features(content)}:{digest(inputs.encode())}"
        if self._features is None:
            self._features = self.access.features()  # they cannot change while the kernel runs
        path = str(self.host.path(f"{access.ROOT}/features"))
        context = f"{_features(self._features)}:{digest(inputs.encode())}"
        return ("--kernel-features", path), context

    def _compile(
        self,
        texts: Sequence[bytes],
        target: _Target,
        fresh: dict[bytes, Compiled],
        meanwhile: Callable[[], None],
    ) -> Generator[Compiled, None, None]:
        """Give what the parser makes of each text, from the cache where it is there.

        fresh is filled with what it made anew, to be cached if the target is still the same.
        """
        features, context = target
        known: dict[bytes, Compiled] = {}
        killed: dict[bytes, int] = {}
        limits = f"{context}:{self.parser.limits()}"  # what was too much may not be with more
        for content in texts:
            found = self.cache.find(_key(context, content))
            found = found or self.cache.find(_key(limits, content))
            if found is not None and (not found.killed or found.times >= trouble.KILLS):
                known[content] = found
            elif found is not None:
                killed[content] = found.times
        left = (one for one in texts if one not in known)
        with contextlib.closing(self.parser.compile_all(left, features, meanwhile)) as made:
            for content in texts:
                compiled = known.get(content) or next(made)
                if content not in known and compiled.killed:
                    times = killed.get(content, 0) + 1
                    compiled = Compiled(killed=compiled.killed, times=times)
                    self.cache.store(_key(limits, content), compiled)
                elif content not in known:
                    fresh[content] = compiled
                yield compiled

    def _judge(self, id_: Id, blob: Blob, ready: "_Ready") -> Profile | Rejection:
        compiled = ready.compiled
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
            context=ready.context,
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
        own = self.objects.own(self.kernel.objects(facts), self.kernel.looked)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """What the parser made of a text. absent: why there is no kernel that it could be put into."""

    compiled: Compiled
    context: str
    absent: str


def _key(context: str, content: bytes) -> str:
    """Return under which key the cache has what the parser made of a text in a context."""
    return digest(context.encode() + b"\0" + content)


def _features(content: bytes) -> str:
    """Return the part of a context that says for which kernel features a policy was made."""
    return digest(b"features\0" + content)


def _parser(host: Host, path: str, timeout_seconds: float, include_dir: str) -> parser.Parser:
    return parser.Parser(host, path, timeout_seconds=timeout_seconds, include_dir=include_dir)
