"""Tests of `profile-loader convert`, which prints a profile that all runtimes read in the
same way.
"""

import json
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.backends.seccomp.backend import SeccompBackend
from agent.host.filesystem import Host
from tests.json_object import JsonObject

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
    ],
    "syscalls": [
        {"names": ["read", "execve"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
        {"names": ["acct"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_BPF"]}},
    ],
}
PLAIN = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": []}],
}
RESOURCE = """
apiVersion: security-profiles-operator.x-k8s.io/v1beta1
kind: SeccompProfile
metadata: {name: web}
spec:
  defaultAction: SCMP_ACT_ERRNO
  syscalls:
  - action: SCMP_ACT_ALLOW
    names: [personality]
    args:
    - {index: 0, value: 8, op: SCMP_CMP_EQ}
"""


def written(tmp_path: Path, content: str | JsonObject, name: str = "profile.json") -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def converted(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["convert", *words])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.mark.parametrize(
    ("flags", "architectures", "names"),
    [
        (
            ["--caps=CAP_BPF", "--arch=x86_64", "--kernel=6.1"],
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            [["read", "execve"], ["ptrace"], ["bpf"]],
        ),
        (
            ["--caps=", "--arch=aarch64", "--kernel=4.7"],
            ["SCMP_ARCH_AARCH64"],
            [["read", "execve"], ["acct"]],
        ),
    ],
)
def test_conditions_are_resolved(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    architectures: list[str],
    names: list[list[str]],
) -> None:
    """The converted profile contains no conditions, and standard error lists the resolved
    conditions.
    """
    status, output, notices = converted(capsys, written(tmp_path, PROFILE), *flags)
    tree = json.loads(output)
    assert (status, tree["architectures"]) == (0, architectures)
    assert [rule["names"] for rule in tree["syscalls"]] == names
    for code in ("expanded_for_arch", "expanded_for_kernel", "expanded_for_caps"):
        assert f"notice: {code}: " in notices


def test_the_output_is_accepted_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent accepts the converted profile and writes it unchanged."""
    _, output, _ = converted(capsys, written(tmp_path, PROFILE), "--caps=", "--arch=x86_64")
    body, _ = SeccompBackend(host=Host("/"), clock_ns=time.time_ns, machine="x86_64").check(
        output.encode()
    )
    assert body.decode() == output


def test_capabilities_must_be_stated_if_the_profile_depends_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a profile depends on capabilities that the caller does not pass, the message lists them,
    and no profile is printed.
    """
    status, output, message = converted(capsys, written(tmp_path, PROFILE))
    assert (status, output) == (1, "")
    assert "--caps" in message
    assert "The profile depends on CAP_BPF." in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"kind": "SeccompProfile", "apiVersion": "x/v1", "spec": PLAIN}, "resource.json"),
        ({"ociVersion": "1.0.2", "linux": {"seccomp": PLAIN}}, "config.json"),
        (RESOURCE, "resource.yaml"),
        (RESOURCE, "resource"),
        (f"# why\n---{RESOURCE}", "resource.json"),
        (f"{RESOURCE}---\nkind: ConfigMap\napiVersion: v1\n", "mixed.yaml"),
        (f"{RESOURCE}  disabled: false\n", "disabled.yaml"),
    ],
)
def test_a_profile_is_extracted_from_other_formats(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | dict[str, str | JsonObject],
    name: str,
) -> None:
    """`convert` extracts a profile from a SeccompProfile resource and from a runtime's
    config.json.
    """
    status, output, _ = converted(capsys, written(tmp_path, content, name))
    assert status == 0
    assert json.loads(output)["syscalls"][0]["names"] == ["personality"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ({"ociVersion": "1.0.2"}, "config.json", "contains no seccomp profile"),
        ("a: 1\n---\nb: 1\n", "two.yaml", "0 seccomp profiles"),
        (f"{RESOURCE}---{RESOURCE}", "two.yaml", "2 seccomp profiles instead of a single one: web"),
        (f"{RESOURCE}  baseProfileName: runc-v1.1\n", "base.yaml", "extends the profile runc-v1.1"),
        ("{", "broken.json", "not_json"),
        ("a: [", "broken.yaml", "This is not YAML"),
        (PLAIN | {"syscalls": [{"names": ["x y"], "action": "X"}]}, "bad.json", "bad_value"),
    ],
)
def test_a_file_without_a_profile_is_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | JsonObject,
    name: str,
    message: str,
) -> None:
    """If a file contains no profile, the exit status is 1, and standard output is empty."""
    status, output, errors = converted(capsys, written(tmp_path, content, name))
    assert (status, output) == (1, "")
    assert message in errors


def test_a_missing_file_has_its_own_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a file is missing, the exit status is 3, as for other commands."""
    status, output, errors = converted(capsys, str(tmp_path / "missing"))
    assert (status, output) == (3, "")
    assert "No such file" in errors
