"""Tests of the whole command, with seccomp profiles in a temporary host root."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.__main__ import main
from tests.json_object import JsonObject
from tests.narrowing import not_none

ALLOW = '{"defaultAction": "SCMP_ACT_LOG"}'
DENY = '{"defaultAction": "SCMP_ACT_ERRNO"}'
SECCOMP = "var/lib/kubelet/seccomp"
STATE = "var/lib/profile-loader"
# The result of a run: the exit status, and the JSON report or else the printed text.
Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Return a directory that contains a source with one profile and an empty host root."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/audit.json").write_text(ALLOW)
    (tmp_path / "root").mkdir()
    return tmp_path


@pytest.fixture
def run(top: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and returns its exit status and its report."""

    def call(
        *arguments: str, command: tuple[str, ...] = ("--oneshot",), source: bool = True
    ) -> tuple[int, Any]:
        argv = [*command, f"--host-root={top}/root", "--kinds=seccomp", "--output=json"]
        if source:
            argv.append(f"--source=dir:{top}/source")
        status = main([*argv, *arguments])
        output = capsys.readouterr().out
        return status, json.loads(output) if output.startswith("{") else output

    return call


def states(report: JsonObject) -> dict[str, tuple[str, str]]:
    return {row["name"] or row["key"]: (row["state"], row["why"]) for row in report["profiles"]}


def tree(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_a_first_pass_installs_the_profile_and_exits_with_0(run: Run, top: Path) -> None:
    """A first pass installs the profile in the kubelet's directory in canonical form, and exits
    with status 0.
    """
    status, report = run()
    assert (status, states(report)) == (0, {"audit.json": ("installed", "new")})
    written = json.loads((top / "root" / SECCOMP / "audit.json").read_text())
    assert written["defaultAction"] == "SCMP_ACT_LOG"


def test_a_second_pass_writes_nothing(run: Run, top: Path) -> None:
    """If the source and the node are unchanged, a second pass writes no file."""
    run()
    before = tree(top / "root")
    status, report = run()
    assert (status, states(report)) == (0, {"audit.json": ("installed", "unchanged")})
    assert tree(top / "root") == before


def test_a_dry_run_changes_nothing(run: Run, top: Path) -> None:
    """A dry run does not even create a directory."""
    status, report = run("--dry-run")
    assert (status, states(report)) == (0, {"audit.json": ("planned", "new")})
    assert list((top / "root").rglob("*")) == []


def test_a_foreign_file_stays_until_it_is_taken_over(run: Run, top: Path) -> None:
    """The agent replaces the file of another program only with --take-over."""
    path = top / "root" / SECCOMP / "audit.json"
    path.parent.mkdir(parents=True)
    path.write_text(DENY)
    status, report = run()
    assert (status, states(report)["audit.json"][0], path.read_text()) == (1, "foreign", DENY)
    status, report = run("--take-over=audit.json")
    assert (status, states(report)["audit.json"]) == (0, ("installed", "taken over"))
    assert path.read_text() != DENY


def test_a_file_with_the_same_meaning_is_adopted_unchanged(run: Run, top: Path) -> None:
    """A foreign file with the same rules in another format is adopted unchanged, and is never
    removed.
    """
    run()
    canonical = (top / "root" / SECCOMP / "audit.json").read_text()
    (top / "root" / STATE / "entries").rename(top / "entries")
    spelling = json.dumps(json.loads(canonical), indent=7)
    (top / "root" / SECCOMP / "audit.json").write_text(spelling)
    status, report = run()
    assert (status, states(report)) == (0, {"audit.json": ("installed", "same content")})
    (top / "source/audit.json").unlink()
    (top / "source/other.json").write_text(ALLOW)
    _, report = run("--prune=always")
    assert states(report)["audit.json"] == ("released", "adopted")
    assert (top / "root" / SECCOMP / "audit.json").read_text() == spelling


def test_an_undesired_file_stays_unless_prune_is_always(run: Run, top: Path) -> None:
    """A file that is in no source stays unless --prune=always is set, because the agent cannot tell
    whether it is in use.
    """
    (top / "source/other.json").write_text(DENY)
    run()
    (top / "source/other.json").unlink()
    status, report = run()
    assert (status, states(report)["other.json"]) == (0, ("held", "use_unknown"))
    status, report = run("--prune=always")
    assert (status, states(report)["other.json"]) == (0, ("removed", "not desired"))
    assert sorted(path.name for path in (top / "root" / SECCOMP).iterdir()) == ["audit.json"]


def test_a_rejected_update_keeps_the_last_good_version(run: Run, top: Path) -> None:
    """If an update is rejected, the installed file stays unchanged, and the exit status is 1."""
    run()
    before = (top / "root" / SECCOMP / "audit.json").read_bytes()
    (top / "source/audit.json").write_text("{}")
    status, report = run()
    assert (status, states(report)["audit.json"]) == (1, ("outdated", "rejected"))
    assert (top / "root" / SECCOMP / "audit.json").read_bytes() == before


def test_profiles_of_a_missing_source_are_restored(run: Run, top: Path) -> None:
    """If a source is missing, its missing profiles are restored, and the exit status is 3."""
    run()
    (top / "root" / SECCOMP / "audit.json").unlink()
    (top / "source").rename(top / "away")
    status, report = run()
    assert (status, states(report)) == (3, {"audit.json": ("held", "went missing")})
    assert (top / "root" / SECCOMP / "audit.json").exists()


def test_an_emptied_source_removes_no_profile_unless_allowed(run: Run, top: Path) -> None:
    """If a source is emptied, its profiles are removed only with --allow-empty."""
    run()
    (top / "source/audit.json").unlink()
    status, report = run("--prune=always")
    assert (status, states(report)) == (1, {"audit.json": ("held", "source unavailable")})
    status, report = run("--prune=always", "--allow-empty")
    assert (status, states(report)) == (0, {"audit.json": ("removed", "not desired")})
    assert report["problems"] == []


def test_a_second_agent_exits_with_4(run: Run, top: Path) -> None:
    """While another process holds the lock, the command changes nothing and exits with status 4."""
    run()
    (top / "source/audit.json").write_text(DENY)
    before = tree(top / "root")
    fd = os.open(top / "root" / STATE / "lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        assert run() == (4, "")
    finally:
        os.close(fd)
    assert tree(top / "root") == before


def test_a_ledger_of_a_newer_version_stops_every_change(run: Run, top: Path) -> None:
    """If the ledger contains an entry of a newer version, the agent changes nothing."""
    run()
    (path,) = (top / "root" / STATE / "entries").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    (top / "source/audit.json").write_text(DENY)
    before = tree(top / "root")
    status, report = run("--prune=always")
    assert (status, [finding["code"] for finding in report["problems"]]) == (1, ["ledger_newer"])
    assert tree(top / "root") == before


def test_status_reports_changed_and_missing_files_without_a_lock(run: Run, top: Path) -> None:
    """The command `status` reports changed and missing files, takes no lock and writes no file."""
    run()
    status, report = run(command=("status",), source=False)
    assert (status, states(report)) == (0, {"audit.json": ("installed", "installed")})
    (top / "root" / SECCOMP / "audit.json").write_text(DENY)
    before = tree(top / "root")
    status, report = run(command=("status",), source=False)
    assert (status, states(report)["audit.json"]) == (1, ("failed", "other content on the node"))
    (top / "root" / SECCOMP / "audit.json").unlink()
    _, report = run(command=("status",), source=False)
    assert states(report)["audit.json"] == ("failed", "absent on the node")
    assert set(tree(top / "root")) < set(before)


def test_a_file_of_an_unfinished_installation_is_reported_and_removed_with_its_key(
    run: Run, top: Path
) -> None:
    """If the agent was killed between writing a file and recording the installation, the file is
    reported, and is removed with its key.
    """
    run()
    (path,) = (top / "root" / STATE / "entries").iterdir()
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"installed": None, "staged": stored["installed"]}))
    _, report = run(command=("status",), source=False)
    assert states(report) == {"audit.json": ("held", "unfinished")}
    (top / "source/audit.json").rename(top / "source/other.json")
    status, report = run("--prune=always")
    assert (status, states(report)["audit.json"]) == (0, ("removed", "not desired"))
    assert [file.name for file in (top / "root" / SECCOMP).iterdir()] == ["other.json"]


def test_removed_content_of_the_ledger_is_stored_again(run: Run, top: Path) -> None:
    """If the stored content of a version is deleted, the next pass stores it again."""
    run()
    bodies = top / "root" / STATE / "bodies"
    before = tree(bodies).keys()
    for path in bodies.iterdir():
        path.unlink()
    assert (run()[0], tree(bodies).keys()) == (0, before)


def test_restore_needs_no_source_and_removes_nothing(run: Run, top: Path) -> None:
    """The command `restore` reinstalls the profiles in the ledger without a source, and removes no
    profile.
    """
    run()
    (top / "root" / SECCOMP / "audit.json").unlink()
    status, report = run("--output=json", command=("restore",), source=False)
    assert (status, states(report)) == (0, {"audit.json": ("installed", "went missing")})
    assert report["problems"] == []
    assert (top / "root" / SECCOMP / "audit.json").exists()


def test_check_reports_each_file(
    top: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command `check` accepts files and directories. The worst result determines the exit
    status.
    """
    monkeypatch.chdir(top)
    (top / "bad.json").write_text("{}")
    assert main(["check", "source", "source/audit.json", "--output=json"]) == 0
    capsys.readouterr()
    assert main(["check", "source", "bad.json", "--output=json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {row["key"]: row["state"] for row in report["profiles"]} == {
        "audit.json": "accepted",
        "bad.json": "rejected",
    }
    assert main(["check", "absent", "--output=json"]) == 3


def test_check_reports_a_parser_that_runs_without_a_sandbox(
    top: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the parser is a script and runs without a sandbox, `check` still compiles profiles, and
    prints a notice.
    """
    monkeypatch.chdir(top)
    (top / "parser").write_text('#!/bin/sh\nexec apparmor_parser "$@"\n')
    (top / "parser").chmod(0o755)
    (top / "web.profile").write_text("profile web { file, }\n")
    options = ["--apparmor-parser", str(top / "parser"), "--output=json"]
    assert main(["check", "web.profile", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in report["problems"]] == ["parser_not_sandboxed"]
    assert main(["check", "source/audit.json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_check_uses_the_files_of_include_directories(
    top: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With include directories, the line in a finding refers to the original text or to an included
    file.
    """
    monkeypatch.chdir(top)
    (top / "d/abstractions").mkdir(parents=True)
    (top / "d/abstractions/web").write_text("  /srv/** r,\n  /opt/tool ux,\n")
    (top / "d/abstractions/bad").write_text("  # a comment\n  nonsense,\n")
    text = "profile {0} {{\n  include <abstractions/{0}>\n  signal,\n  /bin/tool ux,\n}}\n"
    for name in ("web", "bad", "absent"):
        (top / f"{name}.profile").write_text(text.format(name))
    names = ["web.profile", "bad.profile", "absent.profile"]
    assert main(["check", *names, "--include=d", "--output=json"]) == 1
    report = json.loads(capsys.readouterr().out)
    findings = {
        row["key"]: [(each["code"], each["where"]) for each in row["problems"]]
        for row in report["profiles"]
    }
    assert findings == {
        "web.profile": [
            ("unconfined_exec", "abstractions/web line 2"),
            ("unconfined_exec", "line 4"),
        ],
        "bad.profile": [("parser_rejected", "abstractions/bad line 2")],
        "absent.profile": [("include_refused", "line 2")],
    }
    (bad,) = [row for row in report["profiles"] if row["key"] == "bad.profile"]
    assert "error in abstractions/bad at line 2: " in bad["problems"][0]["what"]
    assert main(["check", *names, "--include=absent"]) == 3
    assert capsys.readouterr().err == "profile-loader: --include absent: not a directory\n"


def test_checked_files_are_checked_under_their_base_names(
    top: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is checked alone has its base name as its key."""
    monkeypatch.chdir(top / "source")
    (top / ".hidden/two words").mkdir(parents=True)
    (top / ".hidden/two words/audit.json").write_text(DENY)
    files = ["../.hidden/two words/audit.json", f"{top}/source/audit.json", "audit.json"]
    assert main(["check", *files, "--output=json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert [(row["key"], row["localhostProfile"], row["state"]) for row in output["profiles"]] == [
        ("../.hidden/two words/audit.json", "audit.json", "accepted"),
        (f"{top}/source/audit.json", "audit.json", "accepted"),
    ]
    assert [row["origin"] for row in output["sets"]] == [
        f"dir {top}/.hidden/two words",
        f"dir {top}/source",
    ]


def skipped_inputs(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the messages about skipped inputs in the JSON output, by profile set or path."""
    problems = json.loads(capsys.readouterr().out)["problems"]
    return {item["where"]: item["what"] for item in problems if item["code"] == "input_skipped"}


def test_a_check_reports_skipped_files(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command `check` reports skipped files. If the command checked no profile, the exit status
    is 1.
    """
    (top / "source/README.md").write_text("read me")
    (top / "source/more.yaml").write_text("kind: List")
    (top / "README.md").write_text("read me")
    named = [f"{top}/README.md", f"{top}/source/README.md", f"{top}/source/audit.json"]
    assert main(["check", "--output=json", *named]) == 0
    assert skipped_inputs(capsys) == {
        f"dir {top}/source": f"1 key was skipped because of its name: {named[1]}.",
        named[0]: f"1 key was skipped because of its name: {named[0]}.",
    }
    assert main(["check", "--output=json", f"{top}/source"]) == 0
    assert skipped_inputs(capsys) == {
        f"dir {top}/source": "2 keys were skipped because of their names: README.md, more.yaml."
    }
    assert main(["check", f"{top}/source/README.md"]) == 1
    output = capsys.readouterr().out
    assert (
        output.startswith("error: source_emptied:"),
        output.endswith("Nothing was checked.\n"),
    ) == (
        True,
        True,
    )


def test_a_file_without_a_profile_is_reported_by_its_own_path(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without a profile and an unreadable file each cause one finding with the path of the
    file.
    """
    ignored = f"{top}/source/README.md"
    Path(ignored).write_text("read me")
    assert main(["check", "--output=json", ignored]) == 1
    findings = json.loads(capsys.readouterr().out)["problems"]
    assert [(finding["code"], finding["where"]) for finding in findings] == [
        ("source_emptied", ignored)
    ]
    assert main(["check", "--output=json", "/proc/self/mem"]) == 3
    findings = json.loads(capsys.readouterr().out)["problems"]
    assert [(finding["code"], finding["where"]) for finding in findings] == [
        ("source_unreadable", "/proc/self/mem")
    ]


def test_a_check_that_skips_every_key_fails(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that skips every key fails, so that a CI job does not pass by mistake."""
    path = f"{top}/source/audit.json"
    assert main(["check", "--kinds=apparmor", "--output=json", path]) == 1
    assert skipped_inputs(capsys) == {
        f"dir {top}/source": f"1 key was skipped because of --kinds: {path}."
    }


def test_an_unreadable_file_does_not_hide_other_files(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If one file is unreadable, the other files are checked, and the exit status is 3."""
    (top / "source/loop.json").symlink_to("loop.json")
    bad = top / "source/bad.json"
    bad.write_text("{}")
    files = [str(bad), f"{top}/source/audit.json"]
    assert main(["check", *files, f"{top}/source/loop.json", "--output=json"]) == 3
    output = json.loads(capsys.readouterr().out)
    assert {row["key"]: row["state"] for row in output["profiles"]} == {
        files[0]: "rejected",
        files[1]: "accepted",
    }


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + ".yaml", "shut/x.json"])
def test_an_impossible_path_is_an_unreadable_source(
    top: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    """An impossible path counts as an unreadable source, so the exit status is 3."""
    (top / "shut").symlink_to("shut")
    for command in (
        ["check"],
        ["--oneshot", "--kinds=seccomp", f"--host-root={top}/root", "--source"],
    ):
        assert main([*command, f"{top}/{path}"]) == 3
        assert "this is a bug" not in capsys.readouterr().err


def test_an_impossible_host_root_is_a_usage_error(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For an impossible host root, the usage error contains the option and the error of the
    system.
    """
    assert main(["status", f"--host-root={top}/{'x' * 300}"]) == 2
    assert capsys.readouterr().err == (
        f"profile-loader: --host-root {top}/{'x' * 300}: File name too long\n"
    )


@pytest.mark.parametrize("more", [[], ["--tls-key=/no/key"]])
def test_an_unreadable_certificate_is_reported_with_its_option(top: Path, more: list[str]) -> None:
    """For an unreadable certificate, the error contains the option, the exit status is 2, and the
    node is unchanged.
    """
    serve = ["--http-address=off", "--https-address=127.0.0.1:0", "--tls-cert=/no/cert", *more]
    result = subprocess.run(
        [sys.executable, "-m", "agent", f"--host-root={top}/root", "--source=/p", *serve],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (
        2,
        (
            "profile-loader: --tls-cert /no/cert: No such file or directory. Pass the path of a "
            "readable file\n"
        ),
    )


def test_an_interrupt_ends_a_command_silently(tmp_path: Path) -> None:
    """If the user presses Ctrl-C, the command prints no error, the parser is stopped too, and the
    exit status is 130.
    """
    os.mkfifo(tmp_path / "began")
    parser = tmp_path / "parser"
    parser.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/began\nexec sleep 600\n")
    parser.chmod(0o755)
    (tmp_path / "x.profile").write_text("profile x {}\n")
    command = [sys.executable, "-m", "agent", "check", f"{tmp_path}/x.profile"]
    with subprocess.Popen(
        [*command, f"--apparmor-parser={parser}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as command_process:
        started = int((tmp_path / "began").read_text())
        pid = command_process.pid
        while command_process.poll() is None and len([*Path(f"/proc/{pid}/task").iterdir()]) == 1:
            pass  # At this time, the command does not yet wait for the parser.
        command_process.send_signal(signal.SIGINT)
        assert (command_process.wait(200), not_none(command_process.stdout).read()) == (130, b"")
    assert not Path(f"/proc/{started}").exists()


def test_the_same_name_in_two_checked_files_is_a_conflict(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If two checked files declare the same profile name, `check` reports a conflict, as the agent
    on a node does.
    """
    (top / "more").mkdir()
    (top / "more/audit.json").write_text(DENY)
    assert main(["check", f"{top}/source", f"{top}/more", "--output=json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {finding["code"] for row in report["profiles"] for finding in row["problems"]} == {
        "name_conflict"
    }


def test_render_prints_config_maps(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command `render` prints ConfigMaps as YAML. If the directory is unreadable, the exit
    status is 3.
    """
    arguments = ["--name=n", "--namespace=ns"]
    assert main(["render", f"{top}/source", *arguments]) == 0
    assert "kind: ConfigMap" in capsys.readouterr().out
    assert main(["render", f"{top}/absent", *arguments]) == 3


def test_render_compares_a_file_with_its_output(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the file differs, `render --check` prints a diff and exits with status 1. If the file is
    missing, the status is 3.
    """
    render = ["render", f"{top}/source", "--name=n", "--namespace=ns"]
    assert main(render) == 0
    text = capsys.readouterr().out
    committed = top / "n.yaml"
    assert main([*render, f"--check={committed}"]) == 3
    assert capsys.readouterr() == ("", f"profile-loader: {committed}: No such file or directory\n")
    committed.write_text(text)
    assert main([*render, f"--check={committed}"]) == 0
    assert capsys.readouterr() == ("", "")
    committed.write_text(text.replace("name: n\n", "name: \x1bold\n"))
    assert main([*render, f"--check={committed}"]) == 1
    output, messages = capsys.readouterr()
    assert "-  name: \\x1bold\n+  name: n\n" in output
    assert messages == (
        f"profile-loader: {committed} differs from the output. Write the output to this file "
        "again.\n"
    )
    assert committed.read_text() == text.replace("name: n\n", "name: \x1bold\n")


def test_render_does_not_compare_an_incomplete_output(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If an input cannot be part of the output, `render --check` reports only this input and no
    diff.
    """
    (top / "source/a b.json").write_text("{}")
    arguments = ["--name=n", "--namespace=ns", f"--check={top}/absent"]
    assert main(["render", f"{top}/source", *arguments]) == 1
    output, messages = capsys.readouterr()
    assert (output, '"a b.json"' in messages) == ("", True)


def test_render_prints_one_profile_without_include_rules(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command `render` prints one profile with expanded includes. If the profile cannot be
    rendered, the exit status is 1. If the directory is missing, the exit status is 3.
    """
    (top / "web").write_text("profile web {\n  include if exists <local/web>\n  file,\n}\n")
    (top / "d").mkdir()
    inline = ["render", f"{top}/web", "--inline"]
    assert main([*inline, f"--include={top}/d"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "# local/web does not exist"
    (top / "web").write_text("include <local/web>\n")
    assert main([*inline, f"--include={top}/d"]) == 1
    assert main([*inline, f"--include={top}/none"]) == 3


def test_a_file_in_place_of_the_state_directory_is_a_usage_error(
    run: Run, top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a file is at the path of the state directory, the usage error does not claim that another
    agent runs.
    """
    (top / "root" / STATE).parent.mkdir(parents=True)
    (top / "root" / STATE).write_text("")
    assert run() == (2, "")
    (top / "root" / STATE).unlink()
    for more in ([], ["--dry-run"]):
        command = ["--oneshot", f"--source=dir:{top}/source", f"--host-root={top}/none", *more]
        assert main(command) == 2
        assert capsys.readouterr().err.endswith(". Pass the root of the host's files\n")
    assert not (top / "none").exists()


def test_foreign_files_in_the_state_directory_stay(run: Run, top: Path) -> None:
    """The agent removes only content that it stored itself and no longer needs."""
    run()
    bodies = top / "root" / STATE / "bodies"
    (bodies / "mine.txt").write_text("")
    (bodies / ("0" * 64)).write_text("")
    (top / "source/audit.json").write_text(DENY)
    run()
    assert (bodies / "mine.txt").exists()
    assert not (bodies / ("0" * 64)).exists()


def test_restore_reports_a_retired_file_as_held(run: Run, top: Path) -> None:
    """The command `restore` reports that a file with a previous prefix is held."""
    run("--seccomp-prefix=a/")
    run("--seccomp-prefix=b/")
    status, report = run("--output=json", command=("restore",), source=False)
    assert (status, {name: state for name, (state, _) in states(report).items()}) == (
        0,
        {"a/audit.json": "held", "b/audit.json": "installed"},
    )


COMMAND = [sys.executable, "-m", "agent", "check", "--kinds=seccomp"]


def test_unwritable_output_is_reported(top: Path) -> None:
    """If standard output is on a full device, the exit status is 1."""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*COMMAND, f"{top}/source"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (
        1,
        "profile-loader: standard output cannot be written: No space left on device\n",
    )


def test_closed_streams_do_not_change_the_exit_status(top: Path) -> None:
    """If standard output and standard error are closed, the exit status does not change."""
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        command = f'"$@" {closed}'
        result = subprocess.run(
            ["sh", "-c", command, "sh", *COMMAND, f"{top}/source"], check=False, capture_output=True
        )
        assert (result.returncode, result.stderr) == (0, b"")


def test_a_configuration_file_without_an_end_is_a_usage_error(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the configuration file is a FIFO or a device, the command does not wait for it."""
    os.mkfifo(top / "fifo")
    for path in (f"{top}/fifo", "/dev/zero"):
        assert main(["--oneshot", "--source=x", f"--config={path}"]) == 2
        assert capsys.readouterr().err.startswith(
            f"profile-loader: --config {path}: not a regular file"
        )


def test_a_usage_error_exits_with_2_and_help_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are printed to standard error, and help is printed to standard output."""
    assert (main(["--nonsense"]), main(["--help"])) == (2, 0)
    output = capsys.readouterr()
    assert ("--nonsense is unknown" in output.err, output.out.startswith("Usage:")) == (True, True)


@pytest.mark.parametrize(
    ("text", "status"),
    [("prune: never\n", 0), ("prune: [", 2), ("a: 1\n---\nb: 2\n", 2), ("!!bool foo", 2)],
)
def test_a_configuration_file_is_read(run: Run, top: Path, text: str, status: int) -> None:
    """A malformed configuration file is a usage error."""
    (top / "config.yaml").write_text(text)
    assert run(f"--config={top}/config.yaml")[0] == status
