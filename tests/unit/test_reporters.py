"""Tests of the table, the JSON report and the log."""

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.core import diagnostics, labels
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileSetState, ProfileState, Reason, SupportState
from agent.kube import events
from agent.reporting import json_report, logs, table
from agent.reporting.metrics import Metrics
from tests.reports import D, status_store
from tests.reports import report as report_of

BAD = Finding(
    code=FindingCode.PARSER_REJECTED,
    location="line 7",
    message="unexpected TOK_ID.",
    hint="Correct the text.",
)
NONE = Finding(
    code=FindingCode.KIND_UNSUPPORTED,
    location="kernel",
    message="No AppArmor here.",
    hint="Boot it.",
)


def row(
    name: str = "profiles/audit.json", state: str = "installed", **more: bool | str | tuple[Finding]
) -> ProfileStatus:
    fields = {
        "kind": "seccomp",
        "profile_set": "dir /p",
        "key": "audit.json",
        "localhost_profile": name,
        "action": "install",
        "reason": "new",
    }
    return ProfileStatus(name=name, state=state, **{**fields, **more})


REPORT = Report(
    profiles=(
        row(source_digest="1" * 64, installed="2" * 64),
        row(name="", key="web.profile", kind="apparmor", state="rejected", findings=(BAD,)),
    ),
    profile_sets=(
        ProfileSetStatus(profile_set="dir /p", state=ProfileSetState.READ, keys=2),
        ProfileSetStatus(
            profile_set="dir /q", state=ProfileSetState.MISSING, reason="/q does not exist"
        ),
    ),
    kind_support={"apparmor": KindSupport(state=SupportState.DISABLED, finding=NONE)},
    findings=(
        Finding(
            code=FindingCode.SOURCE_MISSING,
            location="dir /q",
            message="The source is missing: /q does not exist.",
            hint="Check it.",
        ),
    ),
    seconds={"read": 0.25},
)


def test_the_table_contains_profiles_findings_and_a_summary() -> None:
    """The table shows the state of each profile, each finding, and the next step."""
    assert table.table(REPORT, width=80) == (
        "KIND      PROFILE              STATE      WHY\n"
        "seccomp   profiles/audit.json  installed  new\n"
        "apparmor  web.profile          rejected   parser_rejected\n"
        "\n"
        "error: parser_rejected: web.profile at line 7\n"
        "  unexpected TOK_ID. Correct the text.\n"
        "error: source_missing: dir /q\n"
        "  The source is missing: /q does not exist. Check it.\n"
        "\n"
        "apparmor: No AppArmor here. Boot it.\n"
        "\n"
        "1 installed, 1 rejected.\n"
    )


@pytest.mark.parametrize("width", [40, 80])
def test_only_the_states_are_colored(width: int) -> None:
    """Only the states are colored. Colors do not change the layout or any other word."""
    plain = table.table(REPORT, width=width)
    colored = table.table(REPORT, width=width, has_colors=True)
    assert re.sub("\x1b\\[[0-9]+m", "", colored) == plain
    assert re.findall("\x1b\\[([0-9]+)m(\\w+)\x1b\\[0m", colored) == [
        ("32", "installed"),
        ("31", "rejected"),
    ]


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_table_fits_the_terminal(width: int) -> None:
    """No line is wider than the terminal."""
    long = row(
        name="k8s-apparmor-example", reason_text="a reason of many words that does not fit at all"
    )
    text = table.table(Report(profiles=(long,), profile_sets=(), kind_support={}), width=width)
    assert [line for line in text.splitlines() if len(line) > width] == []


def test_a_name_that_is_too_long_has_a_line_of_its_own() -> None:
    """A name that is too long is on a line of its own, so that the layout of other rows does not
    change.
    """
    long = row(name="x" * 90, state="rejected", reason_text="bad")
    text = table.table(
        Report(profiles=(*REPORT.profiles, long), profile_sets=(), kind_support={}), width=80
    )
    assert text.splitlines()[:6] == [
        *table.table(REPORT, width=80).splitlines()[:3],
        "x" * 90,
        "  seccomp, rejected",
        "    bad",
    ]


def test_a_full_stop_is_added_between_a_message_and_its_hint() -> None:
    """If a message has no full stop, as in the output of the parser, a full stop is added between
    the message and the hint.
    """
    bad = Finding(
        code=FindingCode.PARSER_REJECTED,
        location="",
        message="unexpected TOK_ID",
        hint="Correct it.",
    )
    text = table.table(
        Report(profiles=(), profile_sets=(), kind_support={}, findings=(bad,)), width=80
    )
    assert "  unexpected TOK_ID. Correct it.\n" in text


def test_no_control_character_reaches_the_terminal() -> None:
    """A malicious name cannot forge a line or a color on the terminal, because control characters
    are escaped.
    """
    evil = row(
        name="a\x1b[31m\nb",
        findings=(Finding(code=FindingCode.BAD_VALUE, location="\x07", message="\x00x"),),
    )
    text = table.table(Report(profiles=(evil,), profile_sets=(), kind_support={}), width=80)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "a\\x1b[31m\\nb" in text


def test_a_report_without_profiles_has_a_summary() -> None:
    """A report without profiles has a summary. In a dry run, the summary begins with "Dry run"."""
    assert (
        table.table(Report(profiles=(), profile_sets=(), kind_support={}), width=80)
        == "Nothing to do.\n"
    )
    dry = Report(profiles=(row(state="planned"),), profile_sets=(), kind_support={}, dry_run=True)
    assert table.table(dry, width=80).endswith("Dry run: 1 planned.\n")


def test_names_of_pods_are_in_the_log_and_reports_but_not_on_public_pages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The log and the reports contain the names of pods. Public pages, metrics and Events contain
    only their number.
    """
    held = diagnostics.referenced_by_pods("web", ("secret/pod-a", "secret/pod-b", "c/c", "d/d"))
    rows = (row("web", "held", kind="apparmor", reason="in_use", desired=False, findings=(held,)),)
    result = Report(profiles=rows, profile_sets=(), kind_support={})
    store = status_store(Metrics("1"))
    store.on_report(result, 1.0, passed=True)
    before = replace(result, profiles=(row("web", kind="apparmor"),))
    notes = [item.note for item in events.transitions(before, result)]
    public = [
        b"".join(store.status()).decode(),
        store.json().decode(),
        store.metrics("")[1].decode(),
        *notes,
    ]
    assert ["secret/pod-a" in text for text in public] == [False] * 4
    assert ["4 pod(s) on this node reference it" in text for text in public] == [
        True,
        True,
        False,
        True,
    ]
    logs.configure("json", "info")
    logs.log(result)
    private = [
        table.table(result, width=80),
        json_report.document(result, exit_status=0),
        capsys.readouterr().err,
    ]
    assert ["Pods: secret/pod-a, secret/pod-b, c/c, ..." in text for text in private] == [True] * 3


def test_the_served_report_has_the_fields_of_the_printed_report() -> None:
    """The served report has the fields of the printed report and the numbers of omitted objects.
    The served report lists failures first.
    """
    finding = Finding(code=FindingCode.NOT_JSON, location="b.json", message="m", detail="private")
    rows = (row("a.json"), row("b.json", "rejected", findings=(finding,)))
    full = report_of(*rows, findings=(finding,), seccomp="enabled")
    printed = json.loads(json_report.document(full, exit_status=1, domain=D))
    served = json.loads(json_report.public_document(full, exit_status=1, domain=D))
    assert served.pop("omitted") == {"sets": 0, "profiles": 0, "problems": 0}
    assert [profile["name"] for profile in served["profiles"]] == ["b.json", "a.json"]
    served["profiles"].reverse()
    for problem in (*printed["problems"], printed["profiles"][1]["problems"][0]):
        assert problem.pop("detail") == "private"
    for problem in (*served["problems"], served["profiles"][1]["problems"][0]):
        assert problem.pop("detail") == ""
    assert served == printed


def test_the_size_of_the_served_report_is_limited() -> None:
    """The size of the served report is limited, even with 10,500 profiles, long names and
    findings.
    """
    finding = Finding(code=FindingCode.NOT_JSON, location="b.json", message="<" * 400)
    control = "\x01" * 150
    rows = [row(f"good-{number}-{control}") for number in range(10_000)]
    rows += [row(f"bad-{number}", "rejected", findings=(finding,) * 20) for number in range(500)]
    sets = [
        ProfileSetStatus(profile_set=f"{number}{'<' * 200}", state=ProfileSetState.READ)
        for number in range(9000)
    ]
    full = report_of(*rows, sets=tuple(sets), findings=(finding,) * 9000)
    content = json_report.public_document(full, exit_status=1, domain=D)
    served = json.loads(content)
    lists = {"sets": 9000, "profiles": 10_500, "problems": 9000}
    assert 3_000_000 < len(content) < 4 << 20
    assert {name: len(served[name]) + served["omitted"][name] for name in lists} == lists
    assert {profile["state"] for profile in served["profiles"]} == {"rejected"}


@pytest.mark.parametrize("sandboxed", [True, False, None])
def test_the_state_of_the_sandbox_is_in_the_document_and_in_the_table(
    sandboxed: bool | None,
) -> None:
    """The JSON document and the table show whether the sandbox of the parser is active."""
    support = KindSupport(state=SupportState.ENABLED, sandboxed=sandboxed)
    report = Report(profiles=(), profile_sets=(), kind_support={"apparmor": support})
    document = json.loads(json_report.document(report, exit_status=0))
    assert document["support"]["apparmor"]["sandboxed"] is sandboxed
    line = "apparmor: the parser runs in a sandbox (Landlock)."
    text = table.table(report, width=80, domain=labels.DOMAIN)
    assert (line in text.splitlines()) == (sandboxed is True)
    assert line not in table.table(report, width=80)


def test_the_document_has_every_field() -> None:
    """The JSON document contains every field that the schema page lists."""
    document = json.loads(json_report.document(REPORT, exit_status=3))
    assert document["profiles"][0] == {
        "kind": "seccomp",
        "origin": "dir /p",
        "key": "audit.json",
        "name": "profiles/audit.json",
        "localhostProfile": "profiles/audit.json",
        "state": "installed",
        "action": "install",
        "why": "new",
        "digests": {"source": "1" * 64, "installed": "2" * 64, "policy": ""},
        "mode": "",
        "desired": True,
        "nodeSelector": {f"seccomp.{labels.DOMAIN}/profiles__audit.json": "installed"},
        "problems": [],
    }
    assert document["profiles"][1]["problems"] == [
        {
            "code": "parser_rejected",
            "severity": "error",
            "where": "line 7",
            "what": "unexpected TOK_ID.",
            "hint": "Correct the text.",
            "detail": "",
            "acknowledged": False,
        }
    ]
    assert (document["schema"], document["exit_status"], document["converged"]) == (
        "profile-loader/report/v1",
        3,
        False,
    )


@pytest.fixture
def root() -> Iterator[logging.RootLogger]:
    """Yield the root logger, and restore it afterwards."""
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = before
    logging.captureWarnings(capture=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, float | str]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_the_table_lists_the_node_selector_of_each_installed_profile_on_request() -> None:
    """On request, the table lists the nodeSelector of each installed profile on one line. A profile
    without a label has no nodeSelector.
    """
    rows = (
        ProfileStatus(
            kind="apparmor", profile_set="o", key="web.profile", name="web",
            localhost_profile="web", state=ProfileState.INSTALLED, action=ActionName.KEEP,
            reason=Reason.NONE, mode="complain",
        ),
        ProfileStatus(
            kind="seccomp", profile_set="o", key="a.json", name="p/a.json",
            localhost_profile="p/a.json", state=ProfileState.FAILED, action=ActionName.KEEP,
            reason=Reason.NONE,
        ),
    )  # fmt: skip
    report = Report(profiles=rows, profile_sets=(), kind_support={})
    assert "\n  apparmor.example.org/web: complain\n" in table.table(
        report, width=40, domain="example.org"
    )
    assert "nodeSelector" not in table.table(report, width=40)
    document = json.loads(json_report.document(report, exit_status=1, domain="example.org"))
    assert [profile["nodeSelector"] for profile in document["profiles"]] == [
        {"apparmor.example.org/web": "complain"},
        {},
    ]


@pytest.mark.usefixtures("root")
def test_the_log_has_a_line_for_each_change_and_finding_and_a_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The log contains one JSON object for each change and each finding, and a summary."""
    logs.configure("json", "debug")
    logs.log(REPORT)
    result = lines(capsys)
    assert [(line["event"], line["level"]) for line in result] == [
        ("profile_installed", "info"),
        ("profile_problem", "error"),
        ("kind_not_enabled", "warning"),
        ("profile_problem", "error"),
        ("pass_finished", "info"),
    ]
    assert result[1]["code"] == "parser_rejected"


@pytest.mark.usefixtures("root")
def test_no_control_character_in_the_log_reaches_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The human-readable log escapes malicious names."""
    logs.configure("console", "debug")
    bad = Finding(code=FindingCode.BAD_VALUE, location="\x07", message="\x1b[2J")
    evil = row(name="a\x1b[31mb", key="k\x9b\nx", findings=(bad,))
    logs.log(Report(profiles=(evil,), profile_sets=(), kind_support={}))
    text = capsys.readouterr().err
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == 3


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variable(capsys: pytest.CaptureFixture[str], form: str) -> None:
    """A logged traceback does not contain the values of local variables."""
    logs.configure(form, "debug")

    def fail() -> None:
        # This text is only a value at run time, and does not occur in the source code.
        private = "what-nobody-may-see".upper()
        raise ValueError(len(private))

    try:
        fail()
    except ValueError:
        logging.getLogger("urllib3").exception("failed")
    text = capsys.readouterr().err
    assert ("failed" in text, "ValueError" in text, "WHAT-NOBODY" in text) == (True, True, False)


@pytest.mark.usefixtures("root")
def test_a_finding_is_logged_when_it_is_new_and_when_it_is_resolved(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A finding is logged once when it is new and once when it is resolved."""
    logs.configure("json", "info")
    logger = logs.ReportLogger()
    for report in (REPORT, REPORT, replace(REPORT, profiles=(), kind_support={}, findings=())):
        logger.on_report(report, 1.0, passed=False)
    events = [(line["event"], line.get("code")) for line in lines(capsys)]
    assert events == [
        ("profile_problem", "parser_rejected"),
        ("kind_not_enabled", None),
        ("profile_problem", "source_missing"),
        ("problem_over", "parser_rejected"),
        ("problem_over", "kind_unsupported"),
        ("problem_over", "source_missing"),
    ]


class Terminal(io.StringIO):
    """A stream that replaces standard error and counts as a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("variables", "has_colors"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_can_disable_colors(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], has_colors: bool
) -> None:
    """NO_COLOR and TERM=dumb disable colors."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    logs.configure("auto", "info")
    logs.log(REPORT)
    assert ("\x1b[" in terminal.getvalue()) == has_colors
