"""The command as a whole, on seccomp profiles below a host root of its own."""

import fcntl
import json
import os
import signal
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
    assert (status, states(report)) == (3, {"audit.json": ("held", "went missing")})
    assert (top / "root" / SECCOMP / "audit.json").exists()


def test_an_emptied_source_removes_nothing_unless_allowed(run, top):
    """Emptied is 1 and a hold; with --allow-empty it is a wish."""
    run()
    (top / "source/audit.json").unlink()
    status, report = run("--prune=always")
    assert (status, states(report)) == (1, {"audit.json": ("held", "source unavailable")})
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
    assert (status, states(report)) == (0, {"audit.json": ("installed", "installed")})
    (top / "root" / SECCOMP / "audit.json").write_text(DENY)
    before = tree(top / "root")
    status, report = run(command=("status",), source=False)
    assert (status, states(report)["audit.json"]) == (1, ("failed", "other content on the node"))
    (top / "root" / SECCOMP / "audit.json").unlink()
    _, report = run(command=("status",), source=False)
    assert states(report)["audit.json"] == ("failed", "absent on the node")
    assert set(tree(top / "root")) < set(before)


def test_bytes_that_somebody_removed_are_kept_again(run, top):
    """Without them nothing could be put back while the source cannot be read."""
    run()
    bodies = top / "root" / STATE / "bodies"
    before = tree(bodies).keys()
    for path in bodies.iterdir():
        path.unlink()
    assert (run()[0], tree(bodies).keys()) == (0, before)


def test_restore_needs_no_source_and_removes_nothing(run, top):
    """What the ledger holds is put back; what is there stays."""
    run()
    (top / "root" / SECCOMP / "audit.json").unlink()
    status, report = run("--output=json", command=("restore",), source=False)
    assert (status, states(report)) == (0, {"audit.json": ("installed", "went missing")})
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


def test_check_reports_a_parser_that_runs_without_a_sandbox(top, capsys, monkeypatch):
    """On a laptop the parser may be a script; profiles are compiled, and a notice says so."""
    monkeypatch.chdir(top)
    (top / "parser").write_text('#!/bin/sh\nexec apparmor_parser "$@"\n')
    (top / "parser").chmod(0o755)
    (top / "web.profile").write_text("profile web { file, }\n")
    options = ["--apparmor-parser", str(top / "parser"), "--output=json"]
    assert main(["check", "web.profile", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in report["problems"]] == ["parser_not_sandboxed"]
    assert main(["check", "source/audit.json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_checked_files_are_judged_by_their_own_names(top, capsys, monkeypatch):
    """Wherever they lie, and though others have the same name: where they will go is not known."""
    monkeypatch.chdir(top / "source")
    (top / ".hidden/two words").mkdir(parents=True)
    (top / ".hidden/two words/audit.json").write_text(DENY)
    files = ["../.hidden/two words/audit.json", f"{top}/source/audit.json", "audit.json"]
    assert main(["check", *files, "--output=json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["key"], one["localhostProfile"], one["state"]) for one in told["profiles"]] == [
        ("../.hidden/two words/audit.json", "audit.json", "accepted"),
        (f"{top}/source/audit.json", "audit.json", "accepted"),
    ]
    assert [one["origin"] for one in told["sets"]] == [
        f"dir {top}/.hidden/two words",
        f"dir {top}/source",
    ]


def test_a_check_reports_skipped_files(top, capsys):
    """Without any checked profile the exit status is 1."""
    (top / "source/README.md").write_text("read me")
    (top / "source/more.yaml").write_text("kind: List")
    (top / "README.md").write_text("read me")
    named = [f"{top}/README.md", f"{top}/source/README.md", f"{top}/source/audit.json"]
    assert main(["check", *named]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"profile-loader: {path} was skipped, since its name is not that of a profile"
        for path in named[:2]
    ]
    assert main(["check", f"{top}/source"]) == 0
    assert capsys.readouterr().err == (
        f"profile-loader: {top}/source: a .yaml file was skipped. Pass the path of a manifest to "
        "check it\n"
    )
    assert main(["check", f"{top}/source/README.md"]) == 1
    told = capsys.readouterr().out
    assert (
        told.startswith("error: source_emptied:"),
        told.endswith("Nothing was checked.\n"),
    ) == (
        True,
        True,
    )


def test_a_file_that_gives_no_profile_is_reported_by_its_own_path(top, capsys):
    """A file without a profile name, and an unreadable file, are one finding each."""
    ignored = f"{top}/source/README.md"
    Path(ignored).write_text("read me")
    assert main(["check", "--output=json", ignored]) == 1
    findings = json.loads(capsys.readouterr().out)["problems"]
    assert [(one["code"], one["where"]) for one in findings] == [("source_emptied", ignored)]
    assert main(["check", "--output=json", "/proc/self/mem"]) == 3
    findings = json.loads(capsys.readouterr().out)["problems"]
    assert [(one["code"], one["where"]) for one in findings] == [
        ("source_unreadable", "/proc/self/mem")
    ]


def test_a_check_that_skips_every_key_fails(top, capsys):
    """A CI job that checks nothing must not pass."""
    path = f"{top}/source/audit.json"
    assert main(["check", "--kinds=apparmor", path]) == 1
    assert capsys.readouterr().err == (
        f"profile-loader: dir {top}/source: 1 key was skipped because of --kinds\n"
    )


def test_an_unreadable_file_hides_no_other(top, capsys):
    """The others of its directory are checked; it is 3 all the same."""
    (top / "source/loop.json").symlink_to("loop.json")
    bad = top / "source/bad.json"
    bad.write_text("{}")
    files = [str(bad), f"{top}/source/audit.json"]
    assert main(["check", *files, f"{top}/source/loop.json", "--output=json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert {one["key"]: one["state"] for one in told["profiles"]} == {
        files[0]: "rejected",
        files[1]: "accepted",
    }


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + ".yaml", "shut/x.json"])
def test_a_path_that_cannot_be_looked_at_is_unreadable_and_no_bug(top, capsys, path):
    """Checked or as a source it is 3, as every source that cannot be read."""
    (top / "shut").symlink_to("shut")
    for command in (
        ["check"],
        ["--oneshot", "--kinds=seccomp", f"--host-root={top}/root", "--source"],
    ):
        assert main([*command, f"{top}/{path}"]) == 3
        assert "this is a bug" not in capsys.readouterr().err


def test_a_host_root_that_cannot_be_looked_at_is_a_mistake(top, capsys):
    """The option is named, with what the system said."""
    assert main(["status", f"--host-root={top}/{'x' * 300}"]) == 2
    assert capsys.readouterr().err == (
        f"profile-loader: --host-root {top}/{'x' * 300}: File name too long\n"
    )


@pytest.mark.parametrize("more", [[], ["--tls-key=/no/key"]])
def test_an_unreadable_certificate_is_reported_with_its_option(top, more):
    """The exit status is 2, and nothing was changed."""
    serve = ["--http-address=off", "--https-address=127.0.0.1:0", "--tls-cert=/no/cert", *more]
    done = subprocess.run(
        [sys.executable, "-m", "agent", f"--host-root={top}/root", "--source=/p", *serve],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "profile-loader: --tls-cert /no/cert: No such file or directory\n",
    )


def test_an_interrupt_ends_it_without_a_word(tmp_path):
    """Ctrl-C is no bug: 130, as shells have it; what was started ends too."""
    os.mkfifo(tmp_path / "began")
    parser = tmp_path / "parser"
    parser.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/began\nexec sleep 600\n")
    parser.chmod(0o755)
    (tmp_path / "x.profile").write_text("profile x {}\n")
    command = [sys.executable, "-m", "agent", "check", f"{tmp_path}/x.profile"]
    with subprocess.Popen(
        [*command, f"--apparmor-parser={parser}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as one:
        started = int((tmp_path / "began").read_text())
        while one.poll() is None and len([*Path(f"/proc/{one.pid}/task").iterdir()]) == 1:
            pass  # not yet at waiting for it
        one.send_signal(signal.SIGINT)
        assert (one.wait(200), one.stdout.read()) == (130, b"")
    assert not Path(f"/proc/{started}").exists()


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
        assert capsys.readouterr().err.endswith("none is not a directory\n")
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
    assert ("--nonsense is unknown" in told.err, told.out.startswith("Usage:")) == (True, True)


@pytest.mark.parametrize(
    ("text", "status"),
    [("prune: never\n", 0), ("prune: [", 2), ("a: 1\n---\nb: 2\n", 2), ("!!bool foo", 2)],
)
def test_a_configuration_file_is_read(run, top, text, status):
    """A file that is well-formed counts; any other is a mistake, never a crash."""
    (top / "config.yaml").write_text(text)
    assert run(f"--config={top}/config.yaml")[0] == status
