"""Helpers for the tests of backends, which wait for background checks."""

from agent.backends.apparmor.parser import ParserLimits
from agent.core.model import Pending


def inspected(kind, *source_keys):
    """Inspect keys, wait for the background checks, and return the results."""
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
