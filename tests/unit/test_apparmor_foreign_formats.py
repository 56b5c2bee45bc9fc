"""Tests of AppArmor keys that contain a text in another format."""

import pytest

from agent.backends.apparmor import source_checks

SECCOMP = b'{\n "defaultAction": "SCMP_ACT_ALLOW",\n "syscalls": []\n}\n'
RESOURCE = b"# why\n---\napiVersion: x/v1beta1\nkind: SeccompProfile\nspec: {}\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (SECCOMP, "a seccomp profile in JSON", "ends in .json"),
        (b"\xef\xbb\xbf" + SECCOMP, "a seccomp profile in JSON", "ends in .json"),
        (b'{"a": 1}', "The text is JSON", "ends in .json"),
        (b"{}", "The text is JSON", "ends in .json"),
        (b'[{"a": 1}]', "The text is JSON", "ends in .json"),
        (RESOURCE, "(SeccompProfile) in YAML", "profile-loader convert FILE"),
        (b"kind: ConfigMap\napiVersion: v1\n", "(ConfigMap) in YAML", "ends in .yaml"),
        (b"apiVersion: v1\nkind: Pod\n", "(Pod) in YAML", "remove this key"),
    ],
)
def test_another_format_is_one_error_with_the_next_step(
    text: bytes, message: str, hint: str
) -> None:
    """A text in another format causes exactly one error, with a next step, and never reaches the
    parser.
    """
    (error,) = source_checks.errors(text)
    assert (error.code, error.location) == ("not_a_profile", "line 1")
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    "text",
    [
        b"profile web { }\n",
        b"# kind: Pod\nprofile web {\n  # apiVersion: v1\n}\n",
        b"@{x}=/a\nprofile web { /x r, }\n",
        b"/bin/{a,b} { }\n",
        b"",
    ],
)
def test_an_apparmor_text_is_not_mistaken_for_another_format(text: bytes) -> None:
    """Only the beginning of a text determines its format, so an AppArmor text may contain parts
    that look like another format.
    """
    assert source_checks.errors(text) == ()
