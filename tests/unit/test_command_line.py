"""Tests of the output that a user sees. The installed command runs in a separate process."""

import fcntl
import http.server
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.json_object import JsonObject
from tests.narrowing import not_none

COMMAND = str(Path(sys.executable).with_name("profile-loader"))
PROFILES = Path(__file__).parents[2] / "profiles"
AUDIT = (PROFILES / "profiles/audit.json").read_text()
BAD = '{"defaultAction": "SCMP_ACT_ALOW"}'
LIMIT_SECONDS = 200
NO_VARIABLES: Mapping[str, str] = {}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs the command in a directory with profiles."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/audit.json").write_text(AUDIT)
    (tmp_path / "root").mkdir()

    def call(
        *arguments: str,
        columns: int = 80,
        prefix: tuple[str, ...] = (),
        env: Mapping[str, str] = NO_VARIABLES,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "COLUMNS": str(columns)}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [*prefix, COMMAND, *arguments], cwd=tmp_path, env={**environment, **env},
            capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS, **options,
        )  # fmt: skip
        return done

    return call


ONESHOT = ("--oneshot", "--kinds=seccomp", "--host-root=root", "--source=source")


def words(text: str) -> str:
    """Return a text without its line breaks, which depend on the width."""
    return " ".join(text.split())


# --- what is printed ------------------------------------------------------------------------------


def test_a_single_run_prints_the_table_and_logs_nothing(
    run: Run,
) -> None:
    """A single run prints the table with every finding, and logs no finding."""
    result = run(*ONESHOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[:2] == [
        "KIND     PROFILE     STATE      WHY",
        "seccomp  audit.json  installed  new",
    ]


def test_verbose_shows_changes_sources_and_acknowledged_warnings(
    run: Run,
) -> None:
    """With --verbose, the log contains the actions, and the table contains the digests for
    acknowledgements.
    """
    result = run(*ONESHOT, "-v", "--log-format=json")
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events == ["profile_installed", "pass_finished"]
    assert 'audit.json: key "audit.json" of dir ' in result.stdout
    assert "sha256 73300c7ea05b" in result.stdout
    assert "acknowledged warning: not_enforcing: audit.json" in result.stdout


def test_a_log_level_adds_the_findings_to_the_log(run: Run, tmp_path: Path) -> None:
    """With --log-level, the log also contains the findings."""
    (tmp_path / "source/bad.json").write_text(BAD)
    result = run(*ONESHOT, "--log-level=error", "--log-format=json")
    assert [json.loads(line)["key"] for line in result.stderr.splitlines()] == ["bad.json"]


@pytest.mark.parametrize(
    "command", [ONESHOT, ("check", "source"), ("check", "source", "--output=json")]
)
def test_quiet_prints_only_errors(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    """With --quiet, the command prints only errors."""
    result = run(*command, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    (tmp_path / "source/bad.json").write_text(BAD)
    result = run(*command, "-q")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: bad_value: bad.json at defaultAction\n")
    assert "warning" not in result.stderr


def test_quiet_and_verbose_exclude_each_other(
    run: Run,
) -> None:
    """The options --quiet and --verbose exclude each other, and the error message contains both."""
    result = run("check", "source", "-q", "-v")
    assert result.returncode == 2
    assert (
        "--verbose and --quiet cannot be combined. Pass only one of the two flags." in result.stderr
    )


def test_the_daemon_logs_that_it_starts_and_stops(tmp_path: Path) -> None:
    """The first line of the log contains the version, the revision, the sources, the addresses
    and the backends.
    """
    (tmp_path / "root").mkdir()
    (tmp_path / "audit.json").write_text(AUDIT)
    process = subprocess.Popen(
        [COMMAND, "--source", str(tmp_path), f"--host-root={tmp_path}/root", "--kinds=seccomp",
         "--http-address=127.0.0.1:0", "--log-format=json"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines: list[JsonObject] = []
    while not lines or lines[-1]["event"] != "pass_finished":
        lines.append(json.loads(not_none(process.stderr).readline()))
    process.send_signal(signal.SIGTERM)
    rest = [json.loads(line) for line in process.communicate(timeout=LIMIT_SECONDS)[1].splitlines()]
    started = {"sources": [str(tmp_path)], "http_address": "127.0.0.1:0", "backends": ["seccomp"]}
    assert lines[0]["event"] == "agent_started"
    assert {name: lines[0][name] for name in started} == started
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", lines[0]["version"])
    assert lines[0]["revision"] == "unknown"
    assert (rest[-1]["event"], rest[-1]["signal"]) == ("agent_stopped", "SIGTERM")
    assert process.returncode == 0


# --- exit statuses --------------------------------------------------------------------------------


def test_a_dry_run_with_pending_changes_is_not_converged(
    run: Run,
) -> None:
    """A dry run with planned changes exits with status 0, or with status 5 if --detailed-exitcode
    is passed.
    """
    for more, status in (((), 0), (("--detailed-exitcode",), 5)):
        result = run(*ONESHOT, "--dry-run", "--output=json", *more)
        document = json.loads(result.stdout)
        assert (result.returncode, document["exit_status"]) == (status, status)
        assert document["converged"] is False
    run(*ONESHOT)
    result = run(*ONESHOT, "--dry-run", "--detailed-exitcode", "--output=json")
    assert (result.returncode, json.loads(result.stdout)["converged"]) == (0, True)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (("--source=missing",), 3),
        (("--source=bad",), 1),
        (("--prune=sometimes",), 2),
    ],
)
def test_other_statuses_take_precedence_over_pending_changes(
    run: Run,
    tmp_path: Path,
    more: tuple[str],
    status: int,
) -> None:
    """Other exit statuses have priority over status 5, so status 5 means pending changes without an
    error.
    """
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/bad.json").write_text(BAD)
    assert run(*ONESHOT, "--dry-run", "--detailed-exitcode", *more).returncode == status


def test_a_dry_run_needs_no_lock(run, tmp_path: Path) -> None:
    """Status 4 never meets status 5: while another agent holds the lock, a dry run still shows the
    pending changes, and any other run exits with status 4.
    """
    state = tmp_path / "root/var/lib/profile-loader"
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(*ONESHOT, "--dry-run", "--detailed-exitcode").returncode == 5
        assert run(*ONESHOT).returncode == 4


def test_the_detailed_status_needs_a_dry_run(
    run: Run,
) -> None:
    """The option --detailed-exitcode is rejected without --dry-run, because only a dry run leaves
    changes pending.
    """
    result = run(*ONESHOT, "--detailed-exitcode")
    assert (result.returncode, "--detailed-exitcode needs --dry-run" in result.stderr) == (2, True)


# --- states and reasons ---------------------------------------------------------------------------


def test_each_state_has_its_reason(run: Run, tmp_path: Path) -> None:
    """A profile that went missing has the state "restored", and a profile with a changed source has
    the state "replaced".
    """
    run(*ONESHOT)
    (tmp_path / "root/var/lib/kubelet/seccomp/audit.json").unlink()
    assert "seccomp  audit.json  installed  restored: went missing\n" in run(*ONESHOT).stdout
    (tmp_path / "source/audit.json").write_text('{"defaultAction": "SCMP_ACT_ERRNO"}')
    assert "seccomp  audit.json  installed  replaced: changed\n" in run(*ONESHOT).stdout
    (tmp_path / "source").rename(tmp_path / "other")
    moved = run(*ONESHOT[:-1], "--source=other")
    assert "seccomp  audit.json  installed  source moved\n" in moved.stdout
    status = run("status", "--kinds=seccomp", "--host-root=root").stdout
    assert status.splitlines()[1] == "seccomp  audit.json  installed"


# --- acknowledged warnings ------------------------------------------------------------------------

LOGS_ALL = '{"defaultAction": "SCMP_ACT_LOG", "architectures": ["SCMP_ARCH_X86_64"]}'


def test_an_acknowledged_warning_is_only_in_the_json_report(run: Run, tmp_path: Path) -> None:
    """Only the JSON report contains an acknowledged warning. The acknowledgement becomes invalid as
    soon as the profile changes.
    """
    path = tmp_path / "own.json"
    path.write_text(LOGS_ALL)
    row = json.loads(run("check", "own.json", "--output=json").stdout)["profiles"][0]
    assert "not_enforcing" in run("check", "own.json").stdout
    flag = f"--acknowledge-warning=not_enforcing@{row['digests']['source'][:12]}"
    result = run("check", "own.json", flag)
    assert "not_enforcing" not in result.stdout
    assert "1 acknowledged warning is hidden; -v shows more." in result.stdout
    document = json.loads(run("check", "own.json", flag, "--output=json").stdout)
    states = {item["code"]: item["acknowledged"] for item in document["profiles"][0]["problems"]}
    assert (states["not_enforcing"], states["dangerous_syscalls"]) == (True, False)
    path.write_text(LOGS_ALL + "\n")
    assert "not_enforcing" in run("check", "own.json", flag).stdout


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("fails_open@123456789abc", '"fails_open" is of severity error'),
        ("unconfined_exec@123456789abc", '"unconfined_exec" is about an escape rule'),
        ("unconfined_transition@123456789abc", '"unconfined_transition" is about an escape rule'),
        ("in_use@123456789abc", '"in_use" is of severity notice'),
        ("nothing@123456789abc", '"nothing" is not the code of a finding'),
        ("not_enforcing", "must be CODE@DIGEST"),
        ("not_enforcing@1234", "must be CODE@DIGEST"),
    ],
)
def test_only_a_warning_about_one_version_can_be_acknowledged(
    run: Run, value: str, answer: str
) -> None:
    """Errors, escape rules and all versions of a profile together cannot be acknowledged."""
    result = run("check", "source", "--acknowledge-warning", value)
    assert (result.returncode, answer in result.stderr) == (2, True)


def test_the_shipped_profiles_cause_no_warning_about_their_purpose(
    run: Run,
) -> None:
    """The shipped profiles cause no warnings about what they do on purpose. For example, one
    shipped profile denies all calls on purpose.
    """
    text = run("check", str(PROFILES), "--kinds=seccomp").stdout
    warnings = re.findall(r"^warning: (\w+): ", text, re.MULTILINE)
    assert not {"not_enforcing", "dangerous_syscalls", "start_impossible"} & set(warnings)


# --- wrong inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "answer"),
    [
        (("--resync", "-5"), 2, '--resync: "-5" must be a time such as 30s'),
        (("--label-limit", "-1"), 2, '--label-limit: "-1" must be a whole number from 0'),
        (("--prune=never", "--prune=always"), 2, '--prune has two values: "never" and "always"'),
        (("--source=empty",), 1, "The source is empty: it contains no profile. Check --source"),
        (("--source=docs",), 1, "it contains no profile. 1 key was skipped because of its name"),
        (
            ("--source=service.yaml",),
            1,
            "The source is empty: it contains no ConfigMap. 1 resource",
        ),
        (("--source=bad.yaml",), 3, "bad.yaml: line 2, column 1: "),
        (("--source=bad.yaml",), 3, "Correct the source. Until then, no profile is removed."),
        (("--onshot",), 2, "--onshot is unknown. Did you mean --oneshot?"),
        (("--source=",), 2, "--source: the value must not be empty"),
        (("--source",), 2, "--source needs a value: --source SOURCE"),
        (("--output=yaml",), 2, '--output: "yaml" must be one of: table, json.'),
        (("--http-address=99999",), 2, '"99999" must be HOST:PORT, :PORT or off'),
        (("--source=dangling",), 1, 'is a link, and its target "/nowhere" does not exist'),
        (("--source=dangling",), 1, 'is a link, and its target "/\\udcff" does not exist'),
        (
            ("--source=large",),
            1,
            "Check that the key is a profile. A larger profile must",
        ),
        (("--config=bad.yaml",), 2, "content. Correct the file."),
        (
            ("--config=none.yaml",),
            2,
            "none.yaml: No such file or directory. Pass the path of a",
        ),
        (("--config=oneshot.yaml",), 2, 'oneshot.yaml: "oneshot" cannot be a key of this file.'),
        (("--source=configmap:a/b",), 2, "does not run in a pod of a cluster"),
        (("--node-name=a",), 2, "Pass --kubeconfig FILE."),
    ],
)
def test_a_wrong_input_of_a_run_is_explained(
    run: Run,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    answer: str,
) -> None:
    """The message about invalid input to `run` contains the location, the cause and the next step,
    and no text of a library.
    """
    wrong_inputs(tmp_path)
    result = run(*ONESHOT, *arguments)
    text = words(result.stdout + result.stderr)
    assert (result.returncode, answer in text) == (status, True), text
    assert "unicode string" not in text
    assert "emptied:" not in text.replace("source_emptied:", "")


@pytest.mark.parametrize(
    ("arguments", "status", "answer"),
    [
        (("empty",), 1, "The source is empty: it contains no profile. The name of a profile ends"),
        (("--source=empty",), 2, "--source is not an option of check, only of run."),
        ((), 2, "at least one PATH is required: profile-loader check profiles"),
        (("--hlep",), 2, "--hlep is unknown. Did you mean --help?"),
        (("no-json.json",), 1, "Remove the comma in front of the closing bracket."),
        (("binary.json",), 1, "The text is not UTF-8 (byte 1). Save the file as"),
        (("docs",), 1, "1 key was skipped because of its name: README.md."),
        (("service.yaml",), 1, "only ConfigMaps provide profiles: Service a."),
        (("bad.yaml",), 3, "bad.yaml: line 2, column 1: "),
        (("dangling/a.json",), 3, 'is a link, and its target "/nowhere" does not exist'),
        (("large",), 1, "Check that the key is a profile. A larger profile must"),
        (
            ("large/large.json",),
            1,
            "Check that the key is a profile. A larger profile must",
        ),
        (("none.json", "source"), 3, "none.json does not exist."),
        (("shipped", "--apparmor-parser=/none"), 1, "/none is not an executable file. Install"),
    ],
)
def test_a_wrong_input_of_a_check_is_explained(
    run: Run,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    answer: str,
) -> None:
    """The message about invalid input to `check` contains the location, the cause and the next
    step.
    """
    wrong_inputs(tmp_path)
    result = run("check", *arguments)
    text = words(result.stdout + result.stderr)
    assert (result.returncode, answer in text) == (status, True), text
    assert "boot a kernel" not in text


def wrong_inputs(top: Path) -> None:
    """Create the files that a user could pass by mistake."""
    for name in ("empty", "docs", "dangling", "large", "shipped"):
        (top / name).mkdir()
    (top / "docs/README.md").write_text("text")
    (top / "service.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    (top / "bad.yaml").write_text("a: [\n")
    (top / "no-json.json").write_text('{"defaultAction": "SCMP_ACT_LOG",}')
    (top / "binary.json").write_bytes(b"{\xff}")
    (top / "oneshot.yaml").write_text("oneshot: true\n")
    (top / "dangling/a.json").symlink_to("/nowhere")
    (top / "dangling/b.json").symlink_to("/\udcff")  # a file name that is not UTF-8
    (top / "large/large.json").write_text(" " * 3_000_000)
    for number in range(6):
        (top / f"shipped/{number}.profile").write_text(f"profile p{number} {{ }}\n")


def test_a_finding_about_several_keys_is_printed_once(run: Run, tmp_path: Path) -> None:
    """If no parser can check six texts, one finding is printed for all of them."""
    wrong_inputs(tmp_path)
    text = run("check", "shipped", "--apparmor-parser=/none").stdout
    assert text.count("is not an executable file") == 1
    assert "kind_unsupported: 0.profile, 1.profile, 2.profile and 3 more" in words(text)


# Another user who may read all files, because the Python interpreter of the tests may be in a
# private directory.
AS_USER = (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
# Root without the capabilities that override file modes.
AS_RESTRICTED_ROOT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_an_unreadable_file_does_not_prevent_the_check_of_other_files(
    run: Run, tmp_path: Path
) -> None:
    """An unreadable file causes an error of its own and exit status 3. All other files are
    checked.
    """
    (tmp_path / "source/secret.json").write_text(AUDIT)
    (tmp_path / "source/secret.json").chmod(0)
    for paths in (("source",), ("source/secret.json", "source/audit.json")):
        result = run("check", *paths, prefix=AS_RESTRICTED_ROOT)
        text = words(result.stdout)
        assert (result.returncode, "audit.json accepted" in text) == (3, True), text
        assert "source/secret.json: Permission denied" in text


@pytest.mark.parametrize(
    "command",
    [ONESHOT, (*ONESHOT, "--dry-run"), ("status", "--host-root=root"),
     ("restore", "--host-root=root"), ("--host-root=root", "--source=source")],
)  # fmt: skip
def test_another_user_cannot_use_the_state_of_root(run: Run, command: tuple[str, ...]) -> None:
    """If another user runs the command, it stops before it reads or changes the state of root."""
    run(*ONESHOT)
    result = run(*command, prefix=AS_USER)
    assert (result.returncode, result.stdout) == (2, "")
    assert "cannot use the state directory" in result.stderr
    assert "Run the command as root" in result.stderr


def test_an_error_about_a_used_port_is_explained(run: Run) -> None:
    """The error about a port that is in use contains the command that shows the other process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run(*ONESHOT[1:], f"--http-address=127.0.0.1:{port}")
    assert (result.returncode, result.stderr) == (
        2,
        (
            f"profile-loader: --http-address 127.0.0.1:{port}: another process uses this port. "
            "Pass another address, or off. This command shows the process: "
            f"ss -ltnp 'sport = :{port}'\n"
        ),
    )


def test_a_certificate_without_key_is_explained(run: Run, tmp_path: Path) -> None:
    """The error about a certificate without a key contains the option for the key."""
    (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    result = run(*ONESHOT[1:], "--https-address=127.0.0.1:0", "--tls-cert=cert.pem")
    assert (
        result.returncode,
        "Pass the file that contains the private key as --tls-key" in result.stderr,
    ) == (2, True)


class NoNodes(http.server.BaseHTTPRequestHandler):
    """An API server without Nodes, which answers each request with the status 404."""

    def do_GET(self) -> None:
        message = 'nodes "misspelt" not found'
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
        body = json.dumps({**status, "reason": "NotFound", "message": message}).encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: a, user: {token: x}}]
"""


def test_an_unreachable_api_server_is_an_error_of_a_single_run(run: Run, tmp_path: Path) -> None:
    """If a single run cannot reach the API server, it installs the profiles and exits with status
    3.
    """
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    result = run(*ONESHOT, "--kubeconfig=kubeconfig", "--node-name=a")
    text = words(result.stdout)
    assert result.returncode == 3
    assert "audit.json installed new error: node_unreachable: node a" in text
    assert "Check the address of the API server, and the network." in text


@pytest.mark.parametrize("command", [ONESHOT, ("unlabel",)])
def test_an_unknown_node_is_explained(run, tmp_path: Path, command) -> None:
    """The next step is about the name of the Node, because the request itself was permitted."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoNodes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "kubeconfig").write_text(KUBECONFIG.replace("http://127.0.0.1:1", address))
        result = run(*command, "--kubeconfig=kubeconfig", "--node-name=misspelt")
        server.shutdown()
    text = words(result.stdout + result.stderr)
    assert result.returncode == 3
    assert "error: node_unreachable: node misspelt" in text
    assert "Compare --node-name with the names that `kubectl get nodes` prints." in text
    assert "RBAC" not in text


# --- terminals ------------------------------------------------------------------------------------


def on_terminal(
    command: tuple[str, str], cwd: Path, *, columns: int = 80, **environment: str
) -> str:
    """Return the output of a command on a pseudo-terminal."""
    master, slave = pty.openpty()
    variables = {"PATH": os.environ["PATH"], "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [COMMAND, *command], cwd=cwd, env=variables | environment, stdout=slave, stderr=slave
    )
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # Linux reports EIO after the last process has closed the terminal.
            break
        if not part:
            break
        output += part
    os.close(master)
    process.wait(LIMIT_SECONDS)
    return output.decode()


def test_states_are_colored_on_a_terminal(tmp_path: Path) -> None:
    """States are colored on a terminal. With NO_COLOR or TERM=dumb, the output contains no control
    characters.
    """
    (tmp_path / "audit.json").write_text(AUDIT)
    command = ("check", "audit.json")
    assert "\x1b[32maccepted\x1b[0m" in on_terminal(command, tmp_path)
    assert "\x1b" not in on_terminal(command, tmp_path, NO_COLOR="1")
    assert "\x1b" not in on_terminal(command, tmp_path, TERM="dumb")


def test_an_error_is_wrapped_at_the_width_of_the_terminal(tmp_path):
    """The terminal does not break a word of the message."""
    for command in (("--resync=x",), ("--source=a", "--node-name=b"), ("convert", "a.json")):
        (tmp_path / "a.json").write_text("text")
        lines = on_terminal(command, tmp_path, columns=50).splitlines()
        assert len(lines) > 1
        assert [line for line in lines if len(line) > 50] == []


@pytest.mark.parametrize(
    "command",
    [(), *((name,) for name in ("run", "check", "convert", "diff", "restore", "status"))],
)
def test_the_help_is_readable_at_50_columns(run: Run, command: tuple[str, ...]) -> None:
    """At 50 columns, no line of the help is too long, except for words that cannot be broken."""
    lines = run(*command, "--help", columns=50).stdout.splitlines()
    assert [line for line in lines if len(line) > 50 and " " in line.strip()] == []


def test_the_table_is_readable_at_50_columns(
    run: Run,
) -> None:
    """The table and its notes fit a terminal with 50 columns."""
    result = run(*ONESHOT, columns=50)
    assert [line for line in result.stdout.splitlines() if len(line) > 50] == []


# --- status ---------------------------------------------------------------------------------------

STATUS = ("status", "--kinds=seccomp", "--host-root=root")


def test_status_shows_the_rejections_of_the_last_pass(run: Run, tmp_path: Path) -> None:
    """The command `status` shows a rejected profile with its errors and the time of the
    last pass.
    """
    (tmp_path / "source/bad.json").write_text(BAD)
    assert run(*ONESHOT).returncode == 1
    result = run(*STATUS)
    assert result.returncode == 1
    assert result.stdout.splitlines()[:3] == [
        "KIND     PROFILE     STATE      WHY",
        "seccomp  audit.json  installed",
        "seccomp  bad.json    rejected   bad_value",
    ]
    assert "error: bad_value: bad.json at defaultAction" in result.stdout
    assert re.search(r"come from the pass at \d{4}-\d\d-\d\d .* UTC\.", result.stdout)
    assert "see the agent's log (kubectl logs, or journalctl)" in result.stdout


def test_status_shows_a_rejected_update_as_outdated(run: Run, tmp_path: Path) -> None:
    """The command `status` shows a rejected update as outdated, with the errors that prevent the
    update.
    """
    run(*ONESHOT)
    (tmp_path / "source/audit.json").write_text(BAD)
    run(*ONESHOT)
    document = json.loads(run(*STATUS, "--output=json").stdout)
    (row,) = document["profiles"]
    assert (row["state"], row["problems"][0]["code"]) == ("outdated", "bad_value")


def test_status_does_not_show_a_solved_problem(run: Run, tmp_path: Path) -> None:
    """The command `status` does not show a solved problem, because the next pass removes its
    record. A dry run does not change the record.
    """
    (tmp_path / "source/bad.json").write_text(BAD)
    run(*ONESHOT)
    record = tmp_path / "root/var/lib/profile-loader/problems.json"
    before = record.stat()
    run(*ONESHOT)
    after = record.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (tmp_path / "source/bad.json").unlink()
    run(*ONESHOT, "--dry-run")
    assert record.exists()
    run(*ONESHOT)
    assert not record.exists()
    assert run(*STATUS).returncode == 0


def test_status_lists_the_inputs_that_the_last_pass_skipped(run: Run, tmp_path: Path) -> None:
    """The table and the JSON report contain the inputs that are not read as profiles."""
    (tmp_path / "source/web.yaml").write_text("{}")
    assert run(*ONESHOT).returncode == 0
    result = run(*STATUS)
    assert result.returncode == 0
    assert "notice: input_skipped" in result.stdout
    assert "web.yaml" in result.stdout
    assert re.search(r"Skipped inputs come from the pass at \d{4}-\d\d-\d\d", result.stdout)
    document = json.loads(run(*STATUS, "--output=json").stdout)
    assert [(item["left_out"], item["left_out_inputs"]) for item in document["sets"]] == [
        (1, [{"reason": "name", "count": 1, "names": ["web.yaml"]}])
    ]
    (tmp_path / "source/web.yaml").unlink()
    assert run(*ONESHOT).returncode == 0
    assert "input_skipped" not in run(*STATUS).stdout


def test_a_damaged_record_is_ignored(
    run: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A damaged record of the last pass is ignored, and does not affect the ledger or a pass."""
    run(*ONESHOT)
    record = tmp_path / "root/var/lib/profile-loader/problems.json"
    record.write_text('{"rows": [{"kind": "other"}]}')
    assert run(*STATUS).returncode == 0
    assert run(*ONESHOT).returncode == 0
    assert not record.exists()
