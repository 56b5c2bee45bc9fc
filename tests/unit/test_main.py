"""The command as a whole, on seccomp profiles below a host root of its own."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import main

ALLOW = '{"defaultAction": "SCMP_ACT_LOG"}'
DENY = '{"defaultAction": "SCMP_ACT_ERRNO"}'
SECCOMP = "var/lib/kubelet/seccomp"
STATE = "var/lib/profile-loader"


@pytest.fixture
def top(tmp_path):
    """Give a directory with a source of one profile and an empty host root."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/audit.json").write_text(ALLOW)
    (tmp_path / "root").mkdir()
    return tmp_path


@pytest.fixture
def run(top, capsys):
    """Give a function that runs the command and returns exit status and report."""

    def call(*arguments, command=("--oneshot",), source=True):
        argv = [*command, f"--host-root={top}/root", "--kinds=seccomp", "--output=json"]
        if source:
            argv.append(f"--source=dir:{top}/source")
        status = main([*argv, *arguments])
        told = capsys.readouterr().out
        return status, json.loads(told) if told.startswith("{") else told

    return call


def states(report):
    return {one["name"] or one["key"]: (one["state"], one["why"]) for one in report["profiles"]}


def tree(path):
    return {
        str(one.relative_to(path)): (one.read_bytes(), one.stat().st_mtime_ns)
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }


def test_a_first_pass_installs_and_ends_with_0(run, top):
    """The file is where a kubelet looks for it, readable, in canonical form."""
    status, report = run()
    assert (status, states(report)) == (0, {"audit.json": ("installed", "new")})
    written = json.loads((top / "root" / SECCOMP / "audit.json").read_text())
    assert written["defaultAction"] == "SCMP_ACT_LOG"


def test_a_second_pass_writes_nothing(run, top):
    """An unchanged source and node leave every file, its time included, alone."""
    run()
    before = tree(top / "root")
    status, report = run()
    assert (status, states(report)) == (0, {"audit.json": ("installed", "unchanged")})
    assert tree(top / "root") == before


def test_a_dry_run_changes_nothing(run, top):
    """Not even a directory is made."""
    status, report = run("--dry-run")
    assert (status, states(report)) == (0, {"audit.json": ("planned", "new")})
    assert list((top / "root").rglob("*")) == []


def test_a_foreign_file_is_held_and_may_be_taken_over(run, top):
    """What somebody else wrote stays until an operator says otherwise."""
    path = top / "root" / SECCOMP / "audit.json"
    path.parent.mkdir(parents=True)
    path.write_text(DENY)
    status, report = run()
    assert (status, states(report)["audit.json"][0], path.read_text()) == (1, "foreign", DENY)
    status, report = run("--take-over=audit.json")
    assert (status, states(report)["audit.json"]) == (0, ("installed", "taken over"))
    assert path.read_text() != DENY


def test_a_file_of_the_same_meaning_is_adopted_unchanged(run, top):
    """Another spelling of the same profile stays as it is, and is never removed."""
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


def test_what_is_no_longer_desired_is_held_or_pruned(run, top):
    """A seccomp file's use cannot be known, so it stays unless --prune=always."""
    (top / "source/other.json").write_text(DENY)
    run()
    (top / "source/other.json").unlink()
    status, report = run()
    assert (status, states(report)["other.json"]) == (0, ("held", "use_unknown"))
    status, report = run("--prune=always")
    assert (status, states(report)["other.json"]) == (0, ("removed", "not desired"))
    assert sorted(one.name for one in (top / "root" / SECCOMP).iterdir()) == ["audit.json"]


def test_a_refused_update_keeps_the_last_good_version(run, top):
    """The file stays as it was, and the exit status says that something was refused."""
    run()
    before = (top / "root" / SECCOMP / "audit.json").read_bytes()
    (top / "source/audit.json").write_text("{}")
    status, report = run()
    assert (status, states(report)["audit.json"]) == (1, ("outdated", "rejected"))
    assert (top / "root" / SECCOMP / "audit.json").read_bytes() == before


def test_a_missing_source_restores_what_it_provided(run, top):
    """Everything stays, what went missing is put back, and the exit status is 3."""
    run()
    (top / "root" / SECCOMP / "audit.json").unlink()
    (top / "source").rename(top / "away")
    status, report = run()
    assert (status, states(report)) == (3, {"audit.json": ("held", "missing")})
    assert (top / "root" / SECCOMP / "audit.json").exists()


def test_an_emptied_source_removes_nothing_unless_allowed(run, top):
    """Emptied is 1 and a hold; with --allow-empty it is a wish."""
    run()
    (top / "source/audit.json").unlink()
    status, report = run("--prune=always")
    assert (status, states(report)) == (1, {"audit.json": ("held", "source gone")})
    status, report = run("--prune=always", "--allow-empty")
    assert (status, states(report)) == (0, {"audit.json": ("removed", "not desired")})
    assert report["problems"] == []


def test_a_second_agent_is_refused(run, top):
    """While the lock is held, nothing is done and the exit status is 4."""
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


def test_a_ledger_of_a_newer_version_stops_everything(run, top):
    """What a newer version wrote is not damage, and nothing is touched."""
    run()
    (path,) = (top / "root" / STATE / "entries").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    (top / "source/audit.json").write_text(DENY)
    before = tree(top / "root")
    status, report = run("--prune=always")
    assert (status, [one["code"] for one in report["problems"]]) == (1, ["ledger_newer"])
    assert tree(top / "root") == before


def test_status_tells_what_is_there_without_a_lock(run, top):
    """A changed or missing file is told; nothing is written."""
    run()
    status, report = run(command=("status",), source=False)
    assert (status, states(report)) == (0, {"audit.json": ("installed", "put")})
    (top / "root" / SECCOMP / "audit.json").write_text(DENY)
    before = tree(top / "root")
    status, report = run(command=("status",), source=False)
    assert (status, states(report)["audit.json"]) == (1, ("failed", "other content on the node"))
    (top / "root" / SECCOMP / "audit.json").unlink()
    _, report = run(command=("status",), source=False)
    assert states(report)["audit.json"] == ("failed", "absent on the node")
    assert set(tree(top / "root")) < set(before)


def test_restore_needs_no_source_and_removes_nothing(run, top):
    """What the ledger holds is put back; what is there stays."""
    run()
    (top / "root" / SECCOMP / "audit.json").unlink()
    status, report = run("--output=json", command=("restore",), source=False)
    assert (status, states(report)) == (0, {"audit.json": ("installed", "missing")})
    assert report["problems"] == []
    assert (top / "root" / SECCOMP / "audit.json").exists()


def test_check_touches_nothing_and_tells_each_file(top, capsys, monkeypatch):
    """Single files, directories and manifests are checked; the worst decides."""
    monkeypatch.chdir(top)
    (top / "bad.json").write_text("{}")
    assert main(["check", "source", "source/audit.json", "--output=json"]) == 0
    capsys.readouterr()
    assert main(["check", "source", "bad.json", "--output=json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {one["key"]: one["state"] for one in report["profiles"]} == {
        "audit.json": "accepted",
        "bad.json": "rejected",
    }
    assert main(["check", "absent", "--output=json"]) == 3


def test_checked_files_are_keys_of_the_directory_that_they_share(top, capsys, monkeypatch):
    """Two files of one name in two directories are two profiles, as in a source."""
    monkeypatch.chdir(top)
    (top / "source/deep").mkdir()
    (top / "source/deep/audit.json").write_text(DENY)
    files = ["source/audit.json", f"{top}/source/deep/audit.json"]
    assert main(["check", *files, "--output=json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["localhostProfile"] for one in report["profiles"]] == [
        "audit.json",
        "deep/audit.json",
    ]


def test_files_above_the_working_directory_are_checked_under_their_names(top, capsys, monkeypatch):
    """A key never has a `..`, which would be refused."""
    (top / "other").mkdir()
    (top / "other/deny.json").write_text(DENY)
    monkeypatch.chdir(top / "source")
    assert main(["check", "../other/deny.json", "audit.json", "--output=json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in report["profiles"]] == ["other/deny.json", "source/audit.json"]


def test_the_same_name_in_two_checked_files_is_a_conflict(top, capsys):
    """What would be refused on a node is refused in a CI job."""
    (top / "more").mkdir()
    (top / "more/audit.json").write_text(DENY)
    assert main(["check", f"{top}/source", f"{top}/more", "--output=json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {code["code"] for one in report["profiles"] for code in one["problems"]} == {
        "name_conflict"
    }


def test_render_prints_config_maps(top, capsys):
    """The output is YAML; a directory that cannot be read is 3, as for every source."""
    arguments = ["--name=n", "--namespace=ns"]
    assert main(["render", f"{top}/source", *arguments]) == 0
    assert "kind: ConfigMap" in capsys.readouterr().out
    assert main(["render", f"{top}/absent", *arguments]) == 3


def test_a_state_directory_that_is_none_is_a_mistake(run, top, capsys):
    """What lies in its place is told, and not taken for another agent."""
    (top / "root" / STATE).parent.mkdir(parents=True)
    (top / "root" / STATE).write_text("")
    assert run() == (2, "")
    (top / "root" / STATE).unlink()
    for more in ([], ["--dry-run"]):
        command = ["--oneshot", f"--source=dir:{top}/source", f"--host-root={top}/none", *more]
        assert main(command) == 2
        assert capsys.readouterr().err.endswith("none is no directory\n")
    assert not (top / "none").exists()


def test_what_others_keep_beside_the_ledger_stays(run, top):
    """Only bytes that the agent wrote, and needs no more, are removed."""
    run()
    bodies = top / "root" / STATE / "bodies"
    (bodies / "mine.txt").write_text("")
    (bodies / ("0" * 64)).write_text("")
    (top / "source/audit.json").write_text(DENY)
    run()
    assert (bodies / "mine.txt").exists()
    assert not (bodies / ("0" * 64)).exists()


def test_restore_calls_nothing_installed_that_is_retired(run, top):
    """A file under a former prefix is held, whoever may still desire it."""
    run("--seccomp-prefix=a/")
    run("--seccomp-prefix=b/")
    status, report = run("--output=json", command=("restore",), source=False)
    assert (status, {name: state for name, (state, _) in states(report).items()}) == (
        0,
        {"a/audit.json": "held", "b/audit.json": "installed"},
    )


COMMAND = [sys.executable, "-m", "agent", "check", "--kinds=seccomp"]


def test_an_output_that_cannot_be_written_is_told_and_no_bug(top):
    """A full device under standard output is the operator's matter: 1, and why."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, f"{top}/source"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "profile-loader: standard output cannot be written: No space left on device\n",
    )


def test_closed_streams_change_nothing(top):
    """A caller that closed standard output or error gets the exit status all the same."""
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        command = f'"$@" {closed}'
        done = subprocess.run(
            ["sh", "-c", command, "sh", *COMMAND, f"{top}/source"], check=False, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_configuration_file_that_would_never_end_is_a_mistake(top, capsys):
    """A FIFO or device as --config is told; the command does not wait for it."""
    os.mkfifo(top / "fifo")
    for path in (f"{top}/fifo", "/dev/zero"):
        assert main(["--oneshot", "--source=x", f"--config={path}"]) == 2
        assert capsys.readouterr().err.startswith(
            f"profile-loader: --config {path}: not a regular file"
        )


def test_a_wrong_call_ends_with_2_and_help_with_0(capsys):
    """Usage goes to standard error, help to standard output."""
    assert (main(["--nonsense"]), main(["--help"])) == (2, 0)
    told = capsys.readouterr()
    assert ("--nonsense is unknown" in told.err, told.out.startswith("usage:")) == (True, True)


@pytest.mark.parametrize(
    ("text", "status"),
    [("prune: never\n", 0), ("prune: [", 2), ("a: 1\n---\nb: 2\n", 2), ("!!bool foo", 2)],
)
def test_a_configuration_file_is_read(run, top, text, status):
    """A file that is well-formed counts; any other is a mistake, never a crash."""
    (top / "config.yaml").write_text(text)
    assert run(f"--config={top}/config.yaml")[0] == status
