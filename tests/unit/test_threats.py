"""Claims of docs/security.md that no other test shows."""

import json

import pytest

from agent.__main__ import main
from agent.backends.seccomp.backend import SeccompBackend
from agent.core.model import Profile, Rejection, SourceKey
from agent.host.filesystem import Host

SECRET = "hunter2-hunter2"  # noqa: S105 - a mark to look for


@pytest.mark.parametrize(
    "prefix", ["../", "/etc/", "a/../../", "..", ".hidden/", "a//", "a\0/", "a\n/", "%2e%2e/"]
)
def test_the_prefix_of_a_configmap_leads_no_file_elsewhere(tmp_path, prefix):
    """Whoever writes the annotation chooses a directory below the kubelet's, and no other."""
    content = b'{"defaultAction": "SCMP_ACT_LOG"}'
    blob = SourceKey(profile_set="configmap ns/x", key="a.json", content=content, prefix=prefix)
    found = SeccompBackend(host=Host(tmp_path), machine="x86_64").inspect(blob)
    assert isinstance(found, Rejection)
    assert "path_unsafe" in {one.code for one in found.findings}
    plain = SeccompBackend(host=Host(tmp_path), machine="x86_64").inspect(
        SourceKey(profile_set="configmap ns/x", key="a.json", content=content, prefix="team/")
    )
    assert isinstance(plain, Profile)


@pytest.mark.parametrize("form", ["table", "json"])
def test_no_output_shows_a_profiles_body(tmp_path, capsys, form):
    """Neither the result nor the log has the text of a profile, accepted or refused."""
    source = tmp_path / "source"
    source.mkdir()
    good = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "comment": SECRET}],
    }
    (source / "good.json").write_text(json.dumps(good))
    (source / "bad.json").write_text(json.dumps({**good, "syscalls": good["syscalls"] + [None]}))
    status = main(
        ["--oneshot", "--kinds=seccomp", f"--host-root={tmp_path}", f"--source=dir:{source}",
         f"--output={form}", "--log-format=json", "--log-level=debug"]
    )  # fmt: skip
    told = capsys.readouterr()
    assert (status, "good.json" in told.out, "bad.json" in told.out) == (1, True, True)
    assert SECRET not in told.out + told.err
