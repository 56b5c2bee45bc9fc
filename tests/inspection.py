"""Helpers for backend tests. These helpers wait for the checks that run in the background."""

from collections.abc import Callable, Collection, Sequence
from typing import TypedDict, Unpack

from agent.backends.apparmor import factory
from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.apparmor.compile_target import TargetReader
from agent.backends.apparmor.compile_worker import CompileWorker
from agent.backends.apparmor.inspector import Inspector
from agent.backends.apparmor.kernel_access import SYSTEM_PROBES, KernelAccess, Probes
from agent.backends.apparmor.memory_budget import OWN_CGROUP
from agent.backends.apparmor.parser import INCLUDE_DIR, Parser, ParserLimits, RunFailure
from agent.backends.apparmor.policy_cache import ParserResult, PolicyCache
from agent.backends.apparmor.validation import ValidationRules
from agent.core.model import Inspected, Pending, Profile, SourceKey
from agent.core.ports import Failed, Installed, ProfileBackend
from agent.host.filesystem import Host


class Rules(TypedDict, total=False):
    """The fields of ValidationRules."""

    deny_names: Sequence[str]
    allow_attachments: bool
    allow_unconfined_mode: bool


def apparmor_backend(  # noqa: PLR0913 - each test replaces other parts
    host: Host,
    *,
    parser: str = "",
    parser_ran: Callable[[float], None] = lambda _seconds: None,
    include_dir: str = INCLUDE_DIR,
    cpu_limit: float = 30.0,
    checking: bool = False,
    state_dir: str = "/var/lib/profile-loader",
    completed: Callable[[], None] | None = None,
    free_memory: Callable[[], int] = OWN_CGROUP.available_bytes,
    probes: Probes = SYSTEM_PROBES,
    **rules: Unpack[Rules],
) -> AppArmorBackend:
    """Build the AppArmor backend. A test may replace some parts of the backend."""
    program = Parser(parser, include_dir=include_dir, ran=parser_ran)
    inspector = Inspector(
        targets=TargetReader(KernelAccess(host, probes), program, checks_only=checking),
        worker=CompileWorker(
            program,
            cpu_limit=cpu_limit,
            pauses_slow_texts=completed is not None,
            completed=completed or (lambda: None),
            free_memory=free_memory,
        ),
        cache=PolicyCache(host, state_dir, write=not checking),
        rules=ValidationRules(**rules),
        cpu_limit=cpu_limit,
        memory_limit=OWN_CGROUP.limit_bytes,
    )
    return factory.connect(inspector, state_dir=state_dir, may_write=not checking)


def inspected(backend: ProfileBackend, *source_keys: SourceKey) -> list[Inspected]:
    """Inspect keys, wait for the checks in the background, and return the results."""
    results = [backend.inspect(key) for key in source_keys]
    while any(isinstance(result, Pending) for result in results) and backend.wait(no_progress):
        backend.begin_pass()
        results = [backend.inspect(key) for key in source_keys]
    return results


def install(
    backend: ProfileBackend, profile: Profile, replaceable: Collection[str] = ()
) -> Installed | Failed:
    """Install a profile that the backend inspected, and return the result."""
    body = backend.body(profile)
    assert body is not None
    return backend.install(profile, body, replaceable=replaceable)


def compiled(parser: Parser, text: bytes, features: Sequence[str]) -> ParserResult | RunFailure:
    """Return the outcome of one run of the parser with generous limits."""
    run = parser.run(
        text,
        features,
        limits=ParserLimits(cpu_seconds=60.0, memory_bytes=1 << 30),
        is_quick=True,
        is_cancelled=lambda: False,
    )
    return run.outcome


def no_progress(_finished: int, _total: int) -> None:
    """Ignore the progress of the compilation."""
