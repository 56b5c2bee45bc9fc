"""Tests of warnings that an operator acknowledges for one version of a profile."""

from pathlib import Path

import pytest

from agent.core import model
from agent.core.acknowledgements import SHIPPED, acknowledge, parse
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.model import KeyId, Pending, Profile, Version
from tests.narrowing import instance_of

DIGEST = "0123456789abcdef" * 4
ID = KeyId(kind="seccomp", profile_set="dir /p", key="a.json")
PROFILES = Path(__file__).parents[2] / "profiles"


def finding(code: FindingCode) -> Finding:
    """Return a finding with a code."""
    return Finding(code=code, location="a", message="text")


def profile(*codes: FindingCode) -> model.Profile:
    """Return an accepted profile with one finding per code."""
    version = Version(names=("a",), source_digest=DIGEST, body_digest="")
    findings = tuple(finding(code) for code in codes)
    return Profile(id=ID, version=version, source=b"", body_size=0, findings=findings)


def acknowledged(inspected: model.Profile) -> list[bool]:
    """Return whether each finding is acknowledged."""
    return [item.is_acknowledged for item in inspected.findings]


@pytest.mark.parametrize("prefix", [DIGEST, DIGEST[:12]])
def test_a_warning_is_acknowledged_by_its_code_and_a_digest(prefix: str) -> None:
    """An acknowledgement applies only to the warnings with its code and its digest."""
    inspected = profile(FindingCode.NOT_ENFORCING, FindingCode.ABI_MISSING)
    result = instance_of(acknowledge(inspected, {("not_enforcing", prefix)}), model.Profile)
    assert acknowledged(result) == [True, False]


def test_an_acknowledgement_does_not_apply_to_another_version() -> None:
    """When a profile has changed, its warning is no longer acknowledged."""
    inspected = profile(FindingCode.NOT_ENFORCING)
    assert acknowledge(inspected, {("not_enforcing", "f" * 64)}) is inspected


def test_only_warnings_are_marked() -> None:
    """Errors and notices are never marked as acknowledged."""
    inspected = profile(FindingCode.RULE_ADDED)
    assert acknowledged(
        instance_of(acknowledge(inspected, {("rule_added", DIGEST)}), model.Profile)
    ) == [False]


def test_an_unfinished_check_is_returned_unchanged() -> None:
    """A pending key has no digest, so its result stays unchanged."""
    pending = Pending(id=ID, source=b"")
    assert acknowledge(pending, {("not_enforcing", DIGEST)}) is pending


@pytest.mark.parametrize("text", [f"abi_missing@{DIGEST}", f"abi_missing@sha256:{DIGEST}"])
def test_the_prefix_sha256_is_optional(text: str) -> None:
    """A digest may have the prefix sha256:, which registries use and sha256sum does not print."""
    assert parse(text) == ("abi_missing", DIGEST)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"fails_open@{DIGEST}", "of severity error"),
        (f"in_use@{DIGEST}", "of severity notice"),
        (f"unconfined_exec@{DIGEST}", "about an escape rule"),
        (f"other@{DIGEST}", "not the code of a finding"),
        ("abi_missing", "must be CODE@DIGEST"),
        ("abi_missing@0123456789a", "must be CODE@DIGEST"),
        (f"abi_missing@{DIGEST}0", "must be CODE@DIGEST"),
        ("abi_missing@0123456789AB", "must be CODE@DIGEST"),
    ],
)
def test_other_texts_are_rejected_as_acknowledgements(text: str, answer: str) -> None:
    """An acknowledgement requires a digest, and cannot contain the code of an error, a notice or an
    escape rule.
    """
    with pytest.raises(ValueError, match=answer):
        parse(text)


def test_the_built_in_acknowledgements_are_valid_and_about_shipped_profiles() -> None:
    """Each built-in acknowledgement is about the current version of a shipped profile."""
    files = [path for path in PROFILES.rglob("*") if path.is_file()]
    digests = {model.digest(path.read_bytes()) for path in files}
    assert {digest for _, digest in SHIPPED} <= digests
    assert {parse(f"{code}@{digest}") for code, digest in SHIPPED} == SHIPPED
