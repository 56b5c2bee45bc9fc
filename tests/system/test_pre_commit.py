"""Tests that run the hooks in .pre-commit-hooks.yaml with pre-commit in a sample repository.

The program pre-commit installs the hooks from a repository with the files of this checkout. pip
installs the versions in requirements-run.lock from a directory, without a network.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import agent

PAGE = Path("docs/ci.md")
LOG = '{"defaultAction": "SCMP_ACT_LOG"}\n'
RENDER = ["render", "profiles", "--name", "web", "--namespace", "profile-loader"]


def run(folder, *command, **environ):
    """Run a command in a folder, and return its exit status and its output."""
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, **environ}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout


def commit(folder):
    """Create a git repository with all files of a folder, and return its commit."""
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")
    for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "add files")):
        status, output = run(folder, "git", *words)
        assert status == 0, output
    return run(folder, "git", "rev-parse", "HEAD")[1].strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that contains the packages for the hooks and the repository of the hooks."""
    folder = tmp_path_factory.mktemp("hooks")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q")
    lock = ("--no-deps", "--require-hashes", "--only-binary=:all:", "-r", "requirements-run.lock")
    status, output = run(Path.cwd(), *pip, *lock, "-d", str(folder / "wheels"))
    assert status == 0, output
    project = folder / "project"
    project.mkdir()
    for name in (".pre-commit-hooks.yaml", "pyproject.toml", "README.md"):
        shutil.copy(name, project / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(agent.__file__).parent, project / "agent", ignore=ignored)
    commit(project)
    return folder


@pytest.fixture
def sample(folder, tmp_path):
    """A repository with one profile, its ConfigMap, and the configuration from the documentation
    page.
    """
    (block,) = re.findall(
        r"^```yaml\n(repos:\n.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    config = yaml.safe_load(block)
    config["repos"][0]["repo"] = str(folder / "project")
    config["repos"][0]["rev"] = run(folder / "project", "git", "rev-parse", "HEAD")[1].strip()
    sample = tmp_path / "sample"
    (sample / "profiles").mkdir(parents=True)
    (sample / "profiles/audit.json").write_text(LOG)
    (sample / "profiles/README.md").write_text("The profiles of the sample.\n")
    (sample / "package.json").write_text("{}\n")
    (sample / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    render(sample)
    commit(sample)
    return sample


def render(sample):
    """Write the ConfigMap of the sample."""
    status, output = run(sample, sys.executable, "-m", "agent", *RENDER)
    assert status == 0, output
    (sample / "web.yaml").write_text(output)


def pre_commit(folder, sample):
    """Run all hooks on all files. Return the exit status, the result of each hook, and the
    output.
    """
    status, output = run(
        sample, sys.executable, "-m", "pre_commit", "run", "--all-files", "--color=never",
        PRE_COMMIT_HOME=str(folder / "cache"), PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(folder / "wheels"),
    )  # fmt: skip
    results = re.findall(r"^[a-zA-Z ]+\.+(?:\(.*\))?(Passed|Failed|Skipped)$", output, re.MULTILINE)
    return status, results, output


def test_the_hooks_accept_a_repository_without_mistakes(folder, sample):
    """Both hooks succeed, and the first hook reads only profiles."""
    status, results, output = pre_commit(folder, sample)
    assert (status, results) == (0, ["Passed", "Passed"]), output


def test_the_hooks_reject_a_profile_that_the_agent_would_reject(folder, sample):
    """The first hook fails for an invalid profile, and prints the file and the name that is not an
    action.
    """
    (sample / "profiles/audit.json").write_text(LOG.replace("LOG", "LOGG"))
    render(sample)
    status, results, output = pre_commit(folder, sample)
    assert (status, results) == (1, ["Failed", "Passed"]), output
    assert "profiles/audit.json" in output
    assert "SCMP_ACT_LOGG" in output


def test_the_hooks_reject_a_config_map_that_was_not_rendered_again(folder, sample):
    """The second hook fails for an outdated ConfigMap, and its output is the difference. After a
    new `render`, the second hook accepts the ConfigMap.
    """
    (sample / "profiles/audit.json").write_text(LOG.replace("LOG", "ALLOW"))
    status, results, output = pre_commit(folder, sample)
    assert (status, results) == (1, ["Passed", "Failed"]), output
    assert (
        '-    {"defaultAction": "SCMP_ACT_LOG"}\n+    {"defaultAction": "SCMP_ACT_ALLOW"}' in output
    )
    render(sample)
    status, results, output = pre_commit(folder, sample)
    assert (status, results) == (0, ["Passed", "Passed"]), output
