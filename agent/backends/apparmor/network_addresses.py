"""Warns about addresses and ports in network rules that the parser drops from the policy.

This module performs no I/O, and examines only the text of the profile itself. If the kernel or the
abi does not have the feature `network_v8/af_inet`, apparmor_parser 4.1 to 5.0 drop the conditions
`ip=` and `port=` without a message (network.cc: gen_net_rule), so that the rule applies to every
address and port.
"""

import re
from collections.abc import Iterator
from typing import Final

from agent.backends.apparmor.profile_text import LineCounter, without_comments
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding, limit_findings

# The names of the feature: in the kernel's files (kernel_access.py), and in a features file.
_KERNEL_FEATURE: Final = b"/features/network_v8/af_inet\0"
_FEATURE: Final = re.compile(rb"\bnetwork_v8 \{(?:[^{}]|\{[^{}]*\})*?\baf_inet \{yes")
_RULE: Final = re.compile(
    r"(?:^|[\s{},])network\b(?P<conditions>[^,#]*?\b(?:ip|port)[ \t]*=)", re.MULTILINE
)
_ABI: Final = re.compile(r"(?:^|[\s,])abi\s*<\s*\"?(?P<path>abi/\w[\w.-]*)\"?\s*>\s*,")


def are_mediated(features: bytes) -> bool:
    """Return whether the given features support addresses and ports in network rules."""
    return _KERNEL_FEATURE in features or _FEATURE.search(features) is not None


def abi_path(source: str) -> str:
    """Return the path of the first abi rule of a profile text; empty if the text has no abi
    rule.
    """
    rule = _ABI.search(without_comments(source))
    return rule["path"] if rule is not None else ""


def has_conditions(source: str) -> bool:
    """Return whether a network rule of a profile text has an address or a port."""
    return "network" in source and _RULE.search(without_comments(source)) is not None


def dropped(source: str) -> tuple[Finding, ...]:
    """Return a warning for each network rule whose addresses and ports are not enforced."""
    return limit_findings(_dropped(without_comments(source)))


def _dropped(bare: str) -> Iterator[Finding]:
    counter = LineCounter(bare)
    for rule in _RULE.finditer(bare):
        yield Finding(
            code=FindingCode.RULE_NOT_ENFORCED,
            location=counter.line(rule.start("conditions")),
            message="The address and the port of this network rule are not enforced, because the "
            "kernel or the abi does not have the feature network_v8/af_inet. The rule applies to "
            "every address and port.",
            hint="Restrict addresses with a NetworkPolicy, and remove the conditions from the "
            "rule.",
        )
