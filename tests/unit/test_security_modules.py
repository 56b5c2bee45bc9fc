"""Tests of the modes of security modules for which the agent installs nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.backends import security_modules
from agent.core.ports import ModuleState
from agent.core.vocabulary import ModuleMode
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from agent.reporting import json_report, table
from tests.daemon_world import RevisionBackend
from tests.narrowing import not_none
from tests.world import Node, build_reconciler

DIRECTORY = "sys/fs/selinux"


def reconciler_with(folder, observe_modules):
    """Return a reconciler that has no sources and uses the given function to observe security
    modules.
    """
    (folder / "state/entries").mkdir(parents=True)
    ledger = FileLedger(Host(folder), "/state")
    return build_reconciler([], RevisionBackend(Node()), ledger, observe_modules=observe_modules)


@pytest.mark.parametrize(
    ("content", "expected"), [("1", "enforcing"), ("0", "permissive"), ("0\n", "permissive")]
)
def test_the_kernel_shows_the_mode_of_selinux(tmp_path: Path, content, expected) -> None:
    """The file `enforce` contains 1 or 0."""
    (tmp_path / DIRECTORY).mkdir(parents=True)
    (tmp_path / DIRECTORY / "enforce").write_text(content)
    states = security_modules.states(Host(tmp_path))
    assert states == {"selinux": ModuleState(mode=ModuleMode(expected))}


def test_without_the_directory_selinux_is_disabled(tmp_path: Path) -> None:
    """The kernel creates the directory only if SELinux was enabled at boot."""
    states = security_modules.states(Host(tmp_path))
    assert states == {"selinux": ModuleState(mode=ModuleMode.DISABLED)}


@pytest.mark.parametrize("content", [None, "", "2", "directory"])
def test_an_unreadable_mode_is_unknown(tmp_path: Path, content) -> None:
    """A directory without a readable mode does not mean that SELinux is disabled."""
    (tmp_path / DIRECTORY).mkdir(parents=True)
    enforce = tmp_path / DIRECTORY / "enforce"
    if content == "directory":
        enforce.mkdir()
    elif content is not None:
        enforce.write_text(content)
    state = security_modules.states(Host(tmp_path))["selinux"]
    assert state.mode == ModuleMode.UNKNOWN
    assert not_none(state.finding).code == "module_unobservable"


def test_a_directory_that_cannot_be_found_is_unknown(tmp_path: Path) -> None:
    """An error other than a missing directory does not mean that SELinux is disabled."""
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys/fs").symlink_to("fs")
    state = security_modules.states(Host(tmp_path))["selinux"]
    assert state.mode == ModuleMode.UNKNOWN


def test_a_change_of_the_mode_is_reported(tmp_path: Path) -> None:
    """A changed mode is a change of the node, and the next pass makes a new report."""
    modes = [ModuleState(mode=ModuleMode.ENFORCING)]
    reconciler = reconciler_with(tmp_path, lambda: {"selinux": modes[0]})
    first = reconciler.run()
    assert first.security_modules == {"selinux": ModuleMode.ENFORCING}
    assert reconciler.is_unchanged()
    assert reconciler.run(full=False).pass_number == first.pass_number
    modes[0] = security_modules.states(Host(tmp_path / "missing"))["selinux"]
    assert not reconciler.is_unchanged()
    second = reconciler.run(full=False)
    assert second.pass_number == first.pass_number + 1
    assert second.security_modules == {"selinux": ModuleMode.DISABLED}


def test_reports_contain_the_mode(tmp_path: Path) -> None:
    """The JSON report and the table contain the mode. The table also contains the notice."""
    (tmp_path / DIRECTORY).mkdir(parents=True)
    reconciler = reconciler_with(tmp_path, lambda: security_modules.states(Host(tmp_path)))
    report = reconciler.run()
    document = json.loads(json_report.document(report, exit_status=0))
    assert document["security_modules"] == {"selinux": {"mode": "unknown"}}
    public = json_report.public_document(report, exit_status=0, domain="example.org")
    assert json.loads(public)["security_modules"] == {"selinux": {"mode": "unknown"}}
    assert [item["code"] for item in document["problems"]] == ["module_unobservable"]
    text = table.table(report, width=80, domain="example.org")
    assert "selinux: unknown" in text.splitlines()
    assert "notice: module_unobservable: selinux" in text
    assert report.converged
    assert replace(report, findings=()).converged
