"""Helpers for tests of backends, which wait for checks in the background."""

from collections.abc import Callable, Sequence

from agent.backends.apparmor import factory, memory_budget
from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.apparmor.compile_target import TargetReader
from agent.backends.apparmor.compile_worker import CompileWorker
from agent.backends.apparmor.inspector import Inspector
from agent.backends.apparmor.kernel_access import KernelAccess, Probes
from agent.backends.apparmor.parser import INCLUDE_DIR, Parser, ParserLimits
from agent.backends.apparmor.policy_cache import PolicyCache
from agent.backends.apparmor.validation import ValidationRules
from agent.core.model import Pending
from agent.host.filesystem import Host

REAL_PROBES = Probes()


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
    free_memory: Callable[[], int] = memory_budget.available_bytes,
    probes: Probes = REAL_PROBES,
    **rules: bool | Sequence[str],
) -> AppArmorBackend:
    """Build the AppArmor backend with parts that a test may replace."""
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
    )
    return factory.connect(inspector, state_dir=state_dir, may_write=not checking)


def inspected(kind, *source_keys):
    """Inspect keys, wait for the checks in the background, and return the results."""
    results = [kind.inspect(key) for key in source_keys]
    while any(isinstance(result, Pending) for result in results) and kind.wait(no_progress):
        kind.begin_pass()
        results = [kind.inspect(key) for key in source_keys]
    return results


def install(kind, profile, replaceable=()):
    """Install a profile that the backend inspected, and return the result."""
    return kind.install(profile, kind.body(profile), replaceable=replaceable)


def compiled(parser, text, features):
    """Return the outcome of one run of the parser with generous limits."""
    run = parser.run(
        text,
        features,
        limits=ParserLimits(cpu_seconds=60.0, memory_bytes=1 << 30),
        is_quick=True,
        is_cancelled=lambda: False,
    )
    return run.outcome


def no_progress(_finished, _total):
    """Ignore the progress of the compilation."""
