"""Tests of the reports about inputs that a source does not read as profiles."""

import json
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.core import left_out
from agent.core.vocabulary import LeftOutReason
from agent.sources import limits
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource

PROFILE = json.dumps(
    {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}],
    }
)
RESOURCE = """
apiVersion: security-profiles-operator.x-k8s.io/v1beta1
kind: SeccompProfile
metadata: {name: web, namespace: shop}
spec: {defaultAction: SCMP_ACT_ERRNO}
"""
CONFIG_MAP = f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: web}}
data:
  web.json: '{PROFILE}'
  notes.txt: text
"""


def problems(capsys: pytest.CaptureFixture[str]) -> list[dict[str, bool | str]]:
    return json.loads(capsys.readouterr().out)["problems"]


def test_a_directory_reports_every_file_that_is_skipped_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One notice lists all skipped files, and the JSON report counts them."""
    names = ["README-web", "apparmor.txt", "audit.txt", "nginx.bak", "web.yaml"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "good.json").write_text(PROFILE)
    (tmp_path / ".hidden.json").write_text("x")
    assert main(["check", "--output=json", str(tmp_path)]) == 0
    output = json.loads(capsys.readouterr().out)
    (notice,) = output["problems"]
    assert (notice["code"], notice["severity"]) == ("input_skipped", "notice")
    assert notice["what"] == f"5 keys were skipped because of their names: {', '.join(names)}."
    assert "ends in .json, .profile" in notice["hint"]
    assert "use its path" in notice["hint"]
    (profile_set,) = output["sets"]
    assert profile_set["left_out"] == 5
    assert profile_set["left_out_inputs"] == [{"reason": "name", "count": 5, "names": names}]


def test_the_table_of_a_check_contains_the_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of a check shows the notice about skipped inputs, as the JSON report does."""
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "good.json").write_text(PROFILE)
    assert main(["check", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "notice: input_skipped:" in output
    assert "README.md" in output


def test_oneshot_reports_skipped_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --oneshot, each profile set has one notice that lists the reasons for skipped keys."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/README.md").write_text("x")
    (tmp_path / "source/good.json").write_text(PROFILE)
    (tmp_path / "source/web.profile").write_text("profile web {}")
    words = ["--oneshot", "--kinds=seccomp", "--output=json", f"--source={tmp_path}/source"]
    words += [f"--seccomp-dir={tmp_path}/seccomp", f"--state-dir={tmp_path}/state"]
    assert main(words) == 0
    (notice,) = [item for item in problems(capsys) if item["code"] == "input_skipped"]
    assert notice["what"] == (
        "1 key was skipped because of its name: README.md. "
        "1 key was skipped because of --kinds: web.profile."
    )


def test_a_manifest_reports_resources_that_are_not_configmaps(tmp_path: Path) -> None:
    """The notice about a manifest lists resources with their kind and namespace, and keys with
    their ConfigMap.
    """
    path = tmp_path / "all.yaml"
    path.write_text(f"{CONFIG_MAP}---{RESOURCE}---\nkind: Pod\nmetadata: {{name: x}}\n")
    (snapshot,) = ManifestSource(str(path)).read()
    assert [(item.reason, item.names) for item in snapshot.left_out] == [
        ("name", ("default/web/notes.txt",)),
        ("resource", ("SeccompProfile shop/web", "Pod x")),
    ]
    assert "profile-loader convert FILE" in snapshot.left_out[1].hint


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        (RESOURCE, "SeccompProfile shop/web", "in its spec: run `profile-loader convert FILE`"),
        (
            "apiVersion: x/v1\nkind: AppArmorProfile\nmetadata: {name: y}\nspec: {}\n",
            "AppArmorProfile y",
            "ConfigMap",
        ),
    ],
)
def test_a_manifest_without_configmaps_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str, hint: str
) -> None:
    """A manifest without ConfigMaps causes one error, which describes the content of the file and
    contains the next step.
    """
    path = tmp_path / "web.yaml"
    path.write_text(text)
    assert main(["check", "--output=json", str(path)]) == 1
    (error,) = problems(capsys)
    assert (error["code"], error["where"]) == ("not_a_profile", f"manifest {path}")
    assert error["what"] == (
        "This path provides no profile. "
        f"1 resource was skipped, because only ConfigMaps provide profiles: {name}."
    )
    assert hint in error["hint"]


def test_an_emptied_directory_describes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error about an emptied directory also describes the skipped files, so that one mistake
    causes one message.
    """
    (tmp_path / "web.txt").write_text(PROFILE)
    assert main(["check", "--output=json", str(tmp_path)]) == 1
    (error,) = problems(capsys)
    assert error["code"] == "source_emptied"
    assert "1 key was skipped because of its name: web.txt." in error["what"]


def test_a_new_readme_changes_the_snapshot_of_a_directory(tmp_path: Path) -> None:
    """A new README changes the snapshot of a directory. An unchanged directory has an equal
    snapshot.
    """
    (tmp_path / "good.json").write_text(PROFILE)
    source = DirectorySource(str(tmp_path), clock_ns=time.time_ns)
    before = source.read()
    assert source.read() == before
    (tmp_path / "README.md").write_text("x")
    (after,) = source.read()
    assert left_out.count(after.left_out) == 1


def test_a_message_contains_the_first_names_only() -> None:
    """A message contains only the first names. Control characters are escaped, because names are
    untrusted.
    """
    (item,) = limits.skipped_by_name([f"{number}\n.txt" for number in range(12)])
    assert (item.count, len(item.names)) == (12, 10)
    assert item.message.endswith(r"9\n.txt and 2 more.")
    assert item.message.startswith(r"12 keys were skipped because of their names: 0\n.txt, ")
    (item,) = left_out.of(LeftOutReason.RESOURCE, ["x" * 500])
    assert len(item.names[0]) == 100
