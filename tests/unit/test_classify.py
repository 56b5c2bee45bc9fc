"""Tests of agent.core.classify."""

import pytest

from agent.core import classify


@pytest.mark.parametrize(
    ("key", "content", "kind"),
    [
        ("audit.json", b"", "seccomp"),
        ("profiles/audit.json", b"profile x {}", "seccomp"),
        ("web.profile", b"{", "apparmor"),
        ("web.apparmor", b"", "apparmor"),
        ("web.aa", b"", "apparmor"),
        ("prevent-chmod", b' \n\t{"defaultAction": ""}', "seccomp"),
        ("list", b"[1]", "seccomp"),
        ("bom", b"\xef\xbb\xbf{}", "seccomp"),
        ("usr.sbin.nginx", b"#include <tunables/global>", "apparmor"),
        ("nothing", b"", "apparmor"),
        ("notes.md", b"{}", None),
        ("notes.txt", b"{}", None),
        ("set.yaml", b"{}", None),
        ("set.yml", b"{}", None),
        ("web.profile~", b"", None),
        ("web.bak", b"", None),
        ("README", b"", None),
        ("README.json", b"{}", None),
        ("sub/.hidden.json", b"{}", None),
        (".hidden", b"", None),
        (".", b"", "apparmor"),
        ("", b"", "apparmor"),
    ],
)
def test_the_kind_of_a_key_follows_from_its_name_or_its_first_character(
    key: str, content: bytes, kind: str | None
) -> None:
    """The extension of a key determines its kind. With an unknown extension, content that begins
    like JSON is a seccomp profile.
    """
    assert classify.classify(key, content) == kind
