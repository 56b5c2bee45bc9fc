"""Tests of the claims in docs/security.md that no other test covers."""

import json
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.backends.seccomp.backend import SeccompBackend
from agent.core.model import Profile, Rejection, SourceKey
from agent.host.filesystem import Host
from tests.json_object import JsonObject

SECRET = "hunter2-hunter2"  # noqa: S105 - the tests search the output for it


@pytest.mark.parametrize(
    "prefix", ["../", "/etc/", "a/../../", "..", ".hidden/", "a//", "a\0/", "a\n/", "%2e%2e/"]
)
def test_the_prefix_of_a_configmap_cannot_leave_the_seccomp_directory(
    tmp_path: Path, prefix: str
) -> None:
    """The prefix annotation of a ConfigMap can select only a directory in the kubelet's seccomp
    directory.
    """
    content = b'{"defaultAction": "SCMP_ACT_LOG"}'
    key = SourceKey(profile_set="configmap ns/x", key="a.json", content=content, prefix=prefix)
    result = SeccompBackend(host=Host(tmp_path), clock_ns=time.time_ns, machine="x86_64").inspect(
        key
    )
    assert isinstance(result, Rejection)
    assert "path_unsafe" in {finding.code for finding in result.findings}
    plain = SeccompBackend(host=Host(tmp_path), clock_ns=time.time_ns, machine="x86_64").inspect(
        SourceKey(profile_set="configmap ns/x", key="a.json", content=content, prefix="team/")
    )
    assert isinstance(plain, Profile)


@pytest.mark.parametrize("form", ["table", "json"])
def test_no_output_shows_a_profiles_body(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Neither the report nor the log contains the text of a profile."""
    source = tmp_path / "source"
    source.mkdir()
    good: JsonObject = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "comment": SECRET}],
    }
    (source / "good.json").write_text(json.dumps(good))
    (source / "bad.json").write_text(json.dumps({**good, "syscalls": good["syscalls"] + [None]}))
    status = main(
        ["--oneshot", "--kinds=seccomp", f"--host-root={tmp_path}", f"--source=dir:{source}",
         f"--output={form}", "--log-format=json", "--log-level=debug"]
    )  # fmt: skip
    output = capsys.readouterr()
    assert (status, "good.json" in output.out, "bad.json" in output.out) == (1, True, True)
    assert SECRET not in output.out + output.err
