"""Tests of agent.backends.apparmor.network_addresses."""

import pytest

from agent.backends.apparmor import network_addresses

WITH_ADDRESSES = (
    b"/sys/kernel/security/apparmor/features/network_v8/af_inet\0yes\n\0",
    b"network_v8 {af_inet {yes\n}\n\naf_mask {unspec unix\n}\n}\n",
    b"network_v8 {af_mask {unspec unix\n}\naf_inet {yes\n}\n}\n",
)
WITHOUT_ADDRESSES = (
    b"/sys/kernel/security/apparmor/features/network_v8/af_mask\0unspec\n\0",
    b"network_v8 {af_mask {unspec unix\n}\n}\nnetwork_v9 {af_inet {yes\n}\n}\n",
    b"",
)
CONDITIONS = (
    "profile web {\n  network inet tcp ip=10.0.0.1,\n}\n",
    "profile web {\n  deny network (bind) inet port = 80,\n}\n",
    "profile web {\n  network inet tcp peer=(ip=::1 port=443),\n}\n",
    "profile web {\n  network\n    inet port=80,\n}\n",
)
NO_CONDITIONS = (
    "profile web {\n  network inet tcp,\n}\n",
    "profile web {\n  network inet tcp, # port=80\n}\n",
    "profile web {\n  /srv/network/port=80 r,\n}\n",
    "profile web {\n  network, set rlimit nofile <= 10,\n}\n",
)


def test_features_show_whether_addresses_are_mediated() -> None:
    """The files of the kernel and a features file both show whether the kernel mediates
    addresses.
    """
    assert all(map(network_addresses.are_mediated, WITH_ADDRESSES))
    assert not any(map(network_addresses.are_mediated, WITHOUT_ADDRESSES))


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_rule_with_an_address_or_a_port_has_a_warning_with_its_line(text: str) -> None:
    """A network rule with an address or a port causes a warning that contains the line of
    the rule.
    """
    assert network_addresses.has_conditions(text)
    (finding,) = network_addresses.dropped(text)
    assert (finding.code, finding.location) == ("rule_not_enforced", "line 2")


@pytest.mark.parametrize("text", NO_CONDITIONS)
def test_a_text_without_addresses_has_no_warning(text: str) -> None:
    """Comments and paths that look like network addresses cause no warning."""
    assert not network_addresses.has_conditions(text)
    assert network_addresses.dropped(text) == ()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("abi <abi/4.0>,\nprofile web {\n}\n", "abi/4.0"),
        ("# abi <abi/3.0>,\nabi <abi/4.0>,\nabi <abi/5.0>,\n", "abi/4.0"),
        ("abi <../../etc/passwd>,\n", ""),
        ("profile web {\n}\n", ""),
    ],
)
def test_the_first_abi_rule_decides(text: str, path: str) -> None:
    """Only the first abi rule selects the features, as in the parser. A path outside the directory
    of features is ignored.
    """
    assert network_addresses.abi_path(text) == path
