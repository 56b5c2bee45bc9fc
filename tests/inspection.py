"""Helpers for tests of a backend: inspections that wait for background checks."""

from agent.core.model import Pending


def inspected(kind, *blobs):
    """Return the results of all inspections, once no text is being compiled."""
    results = [kind.inspect(blob) for blob in blobs]
    while any(isinstance(result, Pending) for result in results) and kind.wait(no_progress):
        kind.begin_pass()
        results = [kind.inspect(blob) for blob in blobs]
    return results


def install(kind, profile, replaceable=()):
    """Install a profile that the backend inspected; return the result."""
    return kind.install(profile, kind.body(profile), replaceable=replaceable)


def compiled(parser, text, features):
    """Return the outcome of one run of the parser without narrow limits."""
    run = parser.run(
        text,
        features,
        cpu_seconds=60.0,
        memory_bytes=1 << 30,
        is_quick=True,
        is_cancelled=lambda: False,
    )
    return run.outcome


def no_progress(_finished, _total):
    """Ignore how many texts were compiled."""
