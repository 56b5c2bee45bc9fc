"""Tests of the release workflow, of the workflow for users and of the hooks.

The release workflow needs services that are not available to tests. Therefore, these tests check
the structure of the workflow and run the script that it calls.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from agent.command_help import COMMANDS, options_of
from agent.core import classify

RELEASE = Path(".github/workflows/release.yaml")
HOOKS = Path(".pre-commit-hooks.yaml")
PAGE = Path("docs/ci.md")
SCRIPT = Path("scripts/release-notes")
# An action is pinned by a commit, with its version as a comment, or by a version tag.
ACTION = re.compile(r"[\w-]+/[\w-]+@(?:[0-9a-f]{40} # v\d+\.\d+\.\d+|v\d+)")


def workflows() -> dict[str, str]:
    """Return the texts of the release workflow and of the workflow for users."""
    (example,) = re.findall(
        r"^```yaml\n(name: .*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return {"release": RELEASE.read_text(), "users": example}


@pytest.mark.parametrize("name", ["release", "users"])
def test_a_workflow_has_jobs_with_steps_and_few_rights(name: str) -> None:
    """A workflow may read the repository, and only single jobs have more rights."""
    workflow = yaml.safe_load(workflows()[name])
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-24.04"
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert set(job.get("needs", "").split()) <= workflow["jobs"].keys()


@pytest.mark.parametrize("name", ["release", "users"])
def test_each_action_has_a_version(name: str) -> None:
    """Each action has a commit or a version tag as its version, and never the name of a branch."""
    actions = re.findall(r"uses: (.*)", workflows()[name])
    assert actions
    assert [action for action in actions if not ACTION.fullmatch(action)] == []


def commands(text: str) -> list[str]:
    """Return the shell commands of a workflow."""
    jobs = yaml.safe_load(text)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_each_path_of_the_release_workflow_exists() -> None:
    """Each script, chart and build file that the release workflow uses exists in this
    repository.
    """
    text = RELEASE.read_text()
    scripts = re.findall(r"\bsh (scripts/[\w-]+)", "\n".join(commands(text)))
    assert set(scripts) == {"scripts/test", "scripts/release-notes"}
    paths = {*scripts, *re.findall(r"(?:manifests/[\w/-]+|Containerfile)", text)}
    assert [path for path in paths if not Path(path).exists()] == []
    arguments = set(re.findall(r"^ +([A-Z]+)=\$\{\{", text, re.MULTILINE))
    declared = set(re.findall(r"^ARG ([A-Z]+)", Path("Containerfile").read_text(), re.MULTILINE))
    assert arguments == {"VERSION", "REVISION"}
    assert arguments <= declared


@pytest.mark.parametrize("command", commands(RELEASE.read_text()))
def test_each_step_is_valid_shell(command: str) -> None:
    """The shell can parse each command of the release workflow."""
    result = subprocess.run(
        ["bash", "-n"], input=command, text=True, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_commands_of_the_user_workflow_have_known_options() -> None:
    """Each command and each option in the workflow for users exists."""
    used = [shlex.split(command) for command in commands(workflows()["users"])]
    assert [words[:2] for words in used] == [["$LOADER", "check"], ["$LOADER", "render"]]
    for _, command, *words in used:
        known = {f"--{option.name}" for option in options_of(command)}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_hooks_run_known_commands() -> None:
    """The entry of each hook is a command of profile-loader."""
    hooks = yaml.safe_load(HOOKS.read_text())
    entries = [hook["entry"].split() for hook in hooks]
    assert [(program, command in COMMANDS) for program, command in entries] == [
        ("profile-loader", True),
        ("profile-loader", True),
    ]
    assert [hook["id"] for hook in hooks] == ["-".join(entry) for entry in entries]


PROFILES = ["a.json", "web.profile", "web", "a.aa", "xREADME", "a.md.json", "c.txt.profile"]
OTHERS = ["README", "README.txt", "a.md", "b.yaml", "b.yml", "web~", "web.bak", ".hidden"]


@pytest.mark.parametrize("name", [*PROFILES, *OTHERS])
def test_the_check_hook_skips_the_files_that_the_agent_skips(name: str) -> None:
    """The check hook skips the files that the agent skips, so that a commit of only such files is
    accepted.
    """
    (check, _) = yaml.safe_load(HOOKS.read_text())
    assert re.search(check["files"], f"profiles/{name}")
    is_skipped = re.search(check["exclude"], f"profiles/{name}") is not None
    assert is_skipped == (classify.classify(name, b"{}") is None) == (name in OTHERS)


CHANGELOG = """# Changelog

## 1.3.0 (not yet released)

- New.

## 1.2.0 - 2026-01-02

### Added

- A feature.

## 1.1.0 - 2026-01-01

- Old.

## 1.0.0 - 2025-01-01
"""


@pytest.mark.parametrize(
    ("version", "status", "output"),
    [
        ("1.2.0", 0, "\n### Added\n\n- A feature.\n"),
        ("1.1.0", 0, "\n- Old.\n"),
        ("1.3.0", 1, ""),
        ("1.0.0", 1, ""),
        ("1.2", 1, ""),
        ("1-2.0", 1, ""),
    ],
)
def test_the_release_notes_are_the_section_of_the_version(
    tmp_path: Path, version: str, status: int, output: str
) -> None:
    """The release notes are the changelog section of the version. Without a date or changes in this
    section, the release fails.
    """
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / SCRIPT)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    command = ["sh", str(tmp_path / SCRIPT), version]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (status, output)
    assert bool(result.stderr) == bool(status)
