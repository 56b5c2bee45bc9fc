"""Checks whether a name has the syntax that the API server requires.

Source: kubernetes, apimachinery/pkg/util/validation/validation.go (IsDNS1123Label,
IsDNS1123Subdomain, IsQualifiedName).
"""

import re
from typing import Final

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL: Final = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}")
_DNS_SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_QUALIFIED_NAME: Final = re.compile(r"(?=.{1,63}\Z)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def is_dns_label(text: str) -> bool:
    """Return whether a text can be the name of a namespace."""
    return _DNS_LABEL.fullmatch(text) is not None


def is_dns_subdomain(text: str) -> bool:
    """Return whether a text can be the name of a Node or ConfigMap, or a label key domain."""
    return _DNS_SUBDOMAIN.fullmatch(text) is not None


def is_qualified_name(text: str) -> bool:
    """Return whether a text can be the key of a label or of a taint."""
    domain, slash, name = text.rpartition("/")
    return _QUALIFIED_NAME.fullmatch(name) is not None and (not slash or is_dns_subdomain(domain))
