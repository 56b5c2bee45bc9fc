"""Tests that agent.core.dns_names applies the same rules as the Kubernetes API server."""

import pytest

from agent.core.dns_names import is_dns_label, is_dns_subdomain, is_qualified_name


@pytest.mark.parametrize(
    ("text", "is_label", "is_subdomain", "is_qualified"),
    [
        ("a", True, True, True),
        ("a-1", True, True, True),
        ("a.b", False, True, True),
        ("a..b", False, False, True),
        ("-a", False, False, False),
        ("a-", False, False, False),
        ("A_b", False, False, True),
        ("", False, False, False),
        ("a" * 63, True, True, True),
        ("a" * 64, False, True, False),
        ("a" * 254, False, False, False),
        ("a.org/b", False, False, True),
        ("A.org/b", False, False, False),
        ("/b", False, False, False),
        ("a.org/", False, False, False),
        ("a\n", False, False, False),
    ],
)
def test_each_type_of_name_has_its_own_rule(
    text: str, is_label: bool, is_subdomain: bool, is_qualified: bool
) -> None:
    """A namespace is a DNS label, a Node name is a DNS subdomain, and a taint is a qualified
    name.
    """
    result = (is_dns_label(text), is_dns_subdomain(text), is_qualified_name(text))
    assert result == (is_label, is_subdomain, is_qualified)
