"""Tests that actionlint accepts the workflows, with the build from tests/system/actionlint.

actionlint checks the syntax, the expressions, the contexts and the inputs of known actions.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.system import go_build

MODULE = Path(__file__).parent / "actionlint"
PACKAGE = "github.com/rhysd/actionlint/cmd/actionlint"
RELEASE = Path(".github/workflows/release.yaml").read_text()


def problems(workflow):
    """Return the problems that actionlint finds, without the problems from shellcheck and
    pyflakes.
    """
    program = go_build.program(MODULE, "actionlint", PACKAGE, usual="half a minute")
    words = [program, "-oneline", "-shellcheck=", "-pyflakes=", "-"]
    result = subprocess.run(words, input=workflow, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr
    return result.stdout.splitlines()


def example():
    """Return the example workflow for users."""
    page = Path("docs/ci.md").read_text()
    (workflow,) = re.findall(r"^```yaml\n(name: .*?)^```$", page, re.DOTALL | re.MULTILINE)
    return workflow


@pytest.mark.parametrize("workflow", [RELEASE, example()], ids=["release", "users"])
def test_actionlint_finds_no_problem(workflow):
    """The linter accepts the release workflow and the example for users."""
    assert problems(workflow) == []


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("needs: test", "needs: missing"),
        ("steps.image.outputs.digest", "steps.missing.outputs.digest"),
        ("          registry: ghcr.io", "          registri: ghcr.io"),
        ("github.sha", "github.shaa"),
    ],
)
def test_actionlint_finds_a_mistake(correct, wrong):
    """The linter reports an unknown job, step, input or property."""
    assert correct in RELEASE
    assert problems(RELEASE.replace(correct, wrong)) != []
