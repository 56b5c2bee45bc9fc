"""Identifies the content of seccomp files.

Only the exact content proves that the agent wrote a file. All files with the same meaning have the
same canonical form, so that files of other programs can be adopted.
"""

from agent.backends.seccomp import fields, inspection
from agent.core.model import Evidence, ObservedProfile, digest


def expected(body_digest: str) -> Evidence:
    """Return the evidence of files that contain the canonical form with this digest."""
    return _exact(body_digest) | _equivalent(body_digest)


def installed(body: bytes) -> ObservedProfile:
    """Return the observation of a file into which the agent wrote a canonical form."""
    body_digest = digest(body)
    return ObservedProfile(
        evidence=_exact(body_digest), equivalent_evidence=_equivalent(body_digest)
    )


def observed(content: bytes, options: fields.Options) -> ObservedProfile:
    """Return the observation of a file that may have any content."""
    form = inspection.canonical_form(content, options)
    return ObservedProfile(
        evidence=_exact(digest(content)),
        equivalent_evidence=_equivalent(digest(form)) if form else frozenset(),
    )


def _exact(content_digest: str) -> Evidence:
    return frozenset({f"bytes:{content_digest}"})


def _equivalent(form_digest: str) -> Evidence:
    return frozenset({f"canonical:{form_digest}"})
