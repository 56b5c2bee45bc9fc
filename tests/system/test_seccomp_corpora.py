"""Tests of the command `check` with each seccomp profile in Debian's packages.

The command apt-get downloads the packages once, into ~/.cache/profile-loader.
"""

import json
import re
import time
from pathlib import Path

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.commands import convert
from agent.core.model import SourceKey
from agent.host.filesystem import Host
from tests.system import kept
from tests.system.seccomp_filter import generator
from tests.system.seccomp_filter.runtimes import for_pod
from tests.system.seccomp_filter.search import Outcome, compare_filters

PROFILES = Path("profiles")
SHIPPED = (
    "prevent-chmod",
    *(f"profiles/{name}.json" for name in ("audit", "fine-grained", "violation")),
)
GO = "usr/share/gocode/src/github.com"
PACKAGES = (
    "flatpak",
    "golang-github-containers-common",
    "golang-github-docker-docker-dev",
    "golang-github-opencontainers-runc-dev",
    "oci-seccomp-bpf-hook",
)
DOCKER = f"golang-github-docker-docker-dev/{GO}/docker/docker/profiles/seccomp"
RUNC = f"golang-github-opencontainers-runc-dev/{GO}/opencontainers/runc/tests/integration/testdata"
# The outcomes with --seccomp-format oci and with --seccomp-format docker, by profile.
EXPECTED = {
    # Docker's default profile in flatpak has rules that depend on capabilities and on the kernel.
    "flatpak/usr/share/doc/flatpak/examples/flatpak-docker-seccomp.json": (
        {"not_portable"},
        {"accepted", "expanded_for_arch", "expanded_for_kernel"},
    ),
    # Podman's default profile has capabilities and names of error numbers.
    "golang-github-containers-common/usr/share/containers/seccomp.json": (
        {"not_portable"},
        {"accepted", "errno_rewritten", "expanded_for_arch"},
    ),
    # The file contains Docker's default profile.
    f"{DOCKER}/default.json": (
        {"not_portable"},
        {"accepted", "expanded_for_arch", "expanded_for_kernel"},
    ),
    f"{DOCKER}/fixtures/conditional_include.json": ({"not_portable"}, {"accepted"}),
    # The rules use the old field `name`, so containerd would read them as rules without names.
    f"{DOCKER}/fixtures/default-old-format.json": ({"accepted", "name_rewritten"},) * 2,
    f"{DOCKER}/fixtures/example.json": ({"accepted", "name_rewritten"},) * 2,
    # The profile has two conditions on one argument. runc requires one of the conditions, and crun
    # requires both conditions.
    f"{RUNC}/seccomp_syscall_test1.json": ({"fails_open"},) * 2,
    f"{RUNC}/seccomp_syscall_test2.json": ({"accepted"},) * 2,
    # The file describes a hook. If the file were installed as a profile, containerd and CRI-O would
    # run containers without a filter.
    "oci-seccomp-bpf-hook/usr/share/containers/oci/hooks.d/oci-seccomp-bpf-hook.json": (
        {"not_a_profile"},
    )
    * 2,
}


@pytest.fixture(scope="module")
def tree():
    """Return the folder of the unpacked packages."""
    for package in PACKAGES:
        kept.package(package)
    return kept.PACKAGES


def outcome(path, form):
    kind = SeccompBackend(
        host=Host("/nowhere"), clock_ns=time.time_ns, format=form, machine="x86_64", kernel="6.1"
    )
    result = kind.inspect(SourceKey(profile_set="dir x", key=path.name, content=path.read_bytes()))
    findings = result.findings
    codes = {item.code for item in findings if item.severity == "error"}
    return codes or {"accepted"} | {item.code for item in findings if item.severity == "notice"}


@pytest.mark.parametrize("path", EXPECTED)
def test_the_outcome_of_each_profile_is_as_recorded(tree, path):
    """In both formats, each profile has the outcome that the table contains."""
    assert (outcome(tree / path, "oci"), outcome(tree / path, "docker")) == EXPECTED[path]


@pytest.mark.parametrize("path", [path for path in EXPECTED if "accepted" in EXPECTED[path][1]])
def test_each_accepted_profile_is_compiled_correctly(tree, path):
    """For each set of capabilities, every libseccomp builds a filter that follows the rules of the
    accepted profile.
    """
    kind = SeccompBackend(
        host=Host("/nowhere"), clock_ns=time.time_ns, format="docker", machine="x86_64"
    )
    body, _ = kind.check((tree / path).read_bytes())
    every = set(re.findall("CAP_[A-Z_]+", body.decode()))
    for capabilities in (set(), {"CAP_AUDIT_WRITE"}, every - {"CAP_AUDIT_WRITE"}, every):
        profile = json.dumps(for_pod(json.loads(body), capabilities))
        verdict = compare_filters(profile, "0", "x86_64")
        assert verdict.outcome is Outcome.RIGHT, verdict


@pytest.mark.parametrize(
    "path", [path for path in EXPECTED if EXPECTED[path][0] == {"not_portable"}]
)
@pytest.mark.parametrize("capabilities", [(), ("CAP_SYS_ADMIN", "CAP_AUDIT_WRITE")])
def test_the_command_in_the_hint_converts_each_profile_with_capabilities(tree, path, capabilities):
    """The command in the hint converts each profile that depends on capabilities. The output is
    accepted, and every libseccomp compiles it correctly.
    """
    result = convert.convert(
        str(tree / path), arch="x86_64", kernel="6.1", capabilities=capabilities
    )
    assert not result.has_errors, result.findings
    kind = SeccompBackend(host=Host("/nowhere"), clock_ns=time.time_ns, machine="x86_64")
    assert kind.check(result.text.encode())[0].decode() == result.text
    verdict = compare_filters(result.text, "0", "x86_64")
    assert verdict.outcome is Outcome.RIGHT, verdict


@pytest.mark.parametrize("key", SHIPPED)
def test_each_shipped_profile_is_compiled_correctly(key):
    """For every machine, the filters of the profiles in profiles/ follow the rules of the
    profiles.
    """
    for machine in generator.MACHINES:
        kind = SeccompBackend(host=Host("/nowhere"), clock_ns=time.time_ns, machine=machine)
        body, findings = kind.check((PROFILES / key).read_bytes())
        assert body, findings
        verdict = compare_filters(body.decode(), "0", machine)
        assert verdict.outcome is Outcome.RIGHT, verdict


def test_every_profile_of_the_packages_is_in_the_table(tree):
    """The table contains all seccomp files of these packages."""
    result = {
        str(item.relative_to(tree))
        for package in PACKAGES
        for item in (tree / package).rglob("*.json")
        if "seccomp" in str(item)
    }
    assert result == set(EXPECTED)
