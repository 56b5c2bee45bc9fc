"""Tests of agent.reporting.status_page: the text, the structure and the escaping of the page."""

import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ActionName, ProfileSetState, SupportState
from agent.reporting.status_page import MAX_BYTES, STYLE, PassSummary, StatusView
from agent.reporting.status_page import page as parts_of
from tests import status_page_example
from tests.json_object import JsonObject
from tests.narrowing import not_none

DOCS = Path("docs")
EVIL = "</title><script>alert(1)</script>\"'>\x1b[31m\u202e"
SHOWN = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&gt;\\x1b[31m\\u202e"
ENDED = 1_800_000_301.0
VOID = {"meta", "br", "link"}


def row(name: str, state: str = "installed", **more: str | tuple[Finding]) -> ProfileStatus:
    fields = {
        "kind": "seccomp",
        "profile_set": "configmap ns/web",
        "key": name,
        "reason": "",
        **more,
    }
    return ProfileStatus(
        name=name, localhost_profile=name, state=state, action=ActionName.KEEP, **fields
    )


def view(**more: Report | str | dict[str, str]) -> StatusView:
    """Return a view with content for every part of the page."""
    finding = Finding(
        code=FindingCode.NOT_JSON, location="b.json", message="line 1: no JSON", hint="Correct it."
    )
    fields: JsonObject = {
        "version": "1.2.3",
        "node": "node-1",
        "report": Report(
            profiles=(
                row("a.json", reason="unchanged"),
                row("web", kind="apparmor", mode="enforce", reason="drifted"),
                row("b.json", "rejected", findings=(finding,)),
            ),
            profile_sets=(
                ProfileSetStatus(
                    profile_set="configmap ns/web", state=ProfileSetState.READ, keys=3
                ),
            ),
            kind_support={"seccomp": KindSupport(state=SupportState.ENABLED)},
        ),
        "labels": {"seccomp.example.org/a.json": "installed", "example.org/seccomp": "enabled"},
        "passes": (
            PassSummary(at=1_800_000_000.0, seconds=0.25, converged=True),
            PassSummary(at=1_800_000_300.0, seconds=1.5, converged=False),
        ),
        "at": ENDED,
        "domain": "example.org",
    }
    return StatusView(**{**fields, **more})


def page(view: StatusView, age: float = 12.0) -> str:
    """Return the page that a client receives some seconds after the last pass."""
    parts = parts_of(view)
    return parts.opening(view.at + age) + parts.ending


class Structure(HTMLParser):
    """A parser that collects the tags of a page and the cells of its tables. The parser fails if a
    tag is not closed.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"th", "td"}.isdisjoint(self.open):
            self.tables[-1][-1][-1] += data


def test_a_finding_has_a_row_for_each_profile_that_has_it() -> None:
    """A finding of two profiles has two rows, each with one of the profiles."""
    bad = Finding(code=FindingCode.NOT_ENFORCING, location="defaultAction", message="It logs only.")
    rows = (row("a.json", findings=(bad,)), row("b.json", findings=(bad,)))
    text = page(view(report=Report(profiles=rows, profile_sets=(), kind_support={})))
    assert [line[2] for line in Structure(text).tables[0]] == [
        "Where",
        "a.json: defaultAction",
        "b.json: defaultAction",
    ]


def test_findings_are_sorted_by_severity() -> None:
    """Findings are sorted by severity: errors, warnings, notices."""
    codes = (
        FindingCode.NOT_ENFORCING,  # a warning
        FindingCode.PARSER_NOT_SANDBOXED,  # a notice
        FindingCode.NOT_JSON,  # an error
    )
    findings = tuple(Finding(code=code, location="x", message="m") for code in codes)
    report = Report(profiles=(), profile_sets=(), kind_support={}, findings=findings)
    rows = Structure(page(view(report=report))).tables[0][1:]
    assert [line[1] for line in rows] == ["not_json", "not_enforcing", "parser_not_sandboxed"]


def test_the_page_shows_everything_about_the_last_pass() -> None:
    """The page contains, in this order, the summary, the findings, the profiles, the sources, other
    labels and the last passes.
    """
    none = ""  # The style sheet shows a dash.
    source = "configmap ns/web"
    assert Structure(page(view())).tables == [
        [
            ["Severity", "Code", "Where", "What", "What to do"],
            ["error", "not_json", "b.json", "line 1: no JSON", "Correct it."],
        ],
        [
            ["Name", "Kind", "State", "Mode", "Why", "Source", "Label", "For the pod"],
            ["b.json", "seccomp", "rejected", none, "not_json", source, none, "b.json"],
            ["a.json", "seccomp", "installed", none, "unchanged", source, "set",
             "a.jsonseccomp.example.org/a.json: installed"],
            ["web", "apparmor", "installed", "enforce", "drifted", source, "not set",
             "webapparmor.example.org/web: enforce"],
        ],
        [["Set", "State", "Keys", "Why"], [source, "read", "3", none]],
        [["Key", "Value"], ["example.org/seccomp", "enabled"]],
        [
            ["Ended", "Took", "Result"],
            ["2027-01-15 08:05:00 UTC", "1.500 s", "not converged"],
            ["2027-01-15 08:00:00 UTC", "0.250 s", "converged"],
        ],
    ]  # fmt: skip
    assert "Not converged: " in page(view())
    assert "The last pass ended at 2027-01-15 08:05:01 UTC." in page(view())


@pytest.mark.parametrize(
    ("age", "shown"), [(-5, "0 s"), (12, "12 s"), (150, "2 min"), (7100, "118 min"), (9000, "2 h")]
)
def test_the_page_begins_with_a_summary(age: int, shown: str) -> None:
    """The page begins with the number of profiles in each state and the age of the report."""
    answer = f'<p class="answer bad">2 installed, 1 rejected, last pass {shown} ago.</p>'
    assert f"profile-loader on node-1</h1>{answer}" in page(view(), age)


def test_a_code_is_a_link_to_its_entry_in_the_runbook() -> None:
    """A code is a link to its entry in the runbook. Without an address of the runbook, the code is
    plain text.
    """
    url = "https://wiki.example.org/runbook?a=1&b=2"
    tags = Structure(page(view(runbook_url=url))).tags
    addresses = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert f"{url}#not_json" in addresses
    without = page(view())
    assert "Each code is a heading of docs/runbook.md" in without
    assert "http" not in without


def test_every_code_is_a_heading_of_the_runbook() -> None:
    """Every code of a finding is a heading of the runbook, so that its link has a target."""
    headings = re.findall(r"^### (\w+)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)
    assert set(FindingCode) <= set(headings)


@pytest.mark.parametrize(
    ("present", "shown"),
    [("complain", "outdated"), ("enforce", "set"), (None, "not set")],
)
def test_the_label_of_a_profile_is_compared_with_its_mode(present: str | None, shown: str) -> None:
    """The page compares the label of a profile with its mode. The label counts as set only if its
    value is the value in the nodeSelector.
    """
    labels = {} if present is None else {"apparmor.example.org/web": present}
    lines = Structure(page(view(labels=labels))).tables[1]
    assert [line[6] for line in lines if line[0] == "web"] == [shown]


def test_a_label_of_a_rejected_profile_is_shown() -> None:
    """If the Node still has the label of a profile that is not installed, the page shows this."""
    lines = Structure(page(view(labels={"seccomp.example.org/b.json": "installed"}))).tables[1]
    assert [line[6] for line in lines if line[0] == "b.json"] == ["set"]


def test_each_filter_is_a_link_to_an_anchor_with_a_rule() -> None:
    """Each filter is a link to an anchor. The style sheet hides the other rows, so filters need no
    script and no request.
    """
    tags = Structure(page(view())).tags
    anchors = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    filters = {link for link in links if not_none(link).startswith("#show-")}
    states = {"#show-failures", "#show-installed", "#show-rejected"}
    assert filters == {*states, "#show-apparmor", "#show-seccomp"}
    assert {not_none(link)[1:] for link in links if not_none(link).startswith("#")} <= anchors
    for link in filters:
        assert f"{link}:target~.profiles tbody>:not(" in STYLE
    classes = [attributes.get("class") for tag, attributes in tags if tag == "tr"]
    assert list(filter(None, classes)) == [
        "bad rejected seccomp",
        "good installed seccomp",
        "good installed apparmor",
    ]


def test_before_the_first_pass_the_page_has_no_table() -> None:
    """Before the first pass, the page has no table, and reports that no pass has finished yet."""
    text = page(StatusView(version="1", node="n", report=None))
    assert "No pass has ended yet." in text
    assert Structure(text).tables == []


def everywhere(text: str) -> StatusView:
    """Return a view in which every field contains the same text."""
    finding = Finding(code=FindingCode.NOT_JSON, location=text, message=text, hint=text)
    return StatusView(
        version=text,
        node=text,
        report=Report(
            profiles=(
                row(
                    text,
                    "failed",
                    reason=text,
                    key=f"{text}.json",
                    profile_set=text,
                    mode=text,
                    findings=(finding,),
                ),
            ),
            profile_sets=(
                ProfileSetStatus(profile_set=text, state=ProfileSetState.UNREADABLE, reason=text),
            ),
            kind_support={"seccomp": KindSupport(state=SupportState.UNKNOWN, finding=finding)},
        ),
        labels={text: text},
    )


def test_a_malicious_name_is_escaped_in_every_place() -> None:
    """A malicious name never becomes a tag, an attribute or a control character."""
    text = page(everywhere(EVIL))
    assert [tag for tag, _ in Structure(text).tags] == [
        tag for tag, _ in Structure(page(everywhere("fine"))).tags
    ]
    assert text.count(SHOWN) == page(everywhere("fine")).count("fine")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)


def test_the_page_is_one_file_without_a_script() -> None:
    """The page contains no script, no event handler and no external resource. The links of the page
    lead only to its own parts and to other pages of the server.
    """
    tags = Structure(page(view())).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "form", "base"})
    names = {name for _, attributes in tags for name in attributes}
    assert {name for name in names if name.startswith("on") or name in ("src", "style")} == set()
    links = [item["href"] for tag, item in tags if tag == "a"]
    assert {link for link in links if not_none(link)[0] != "#"} == {"metrics", "report.json"}
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_a_screen_reader_can_read_the_page() -> None:
    """For screen readers, the page has a language, a title, ordered headings, and tables with
    captions and scopes.
    """
    tags = Structure(page(view())).tags
    names = [tag for tag, _ in tags]
    assert ("html", {"lang": "en"}) in tags
    assert "<title>profile-loader on node-1</title>" in page(view())
    assert [item for item in names if re.fullmatch("h[1-6]", item)] == ["h1", *["h2"] * 5]
    assert names.count("main") == 1
    assert names.count("caption") == names.count("table") == 5
    assert {item.get("scope") for tag, item in tags if tag == "th"} == {"row", "col"}
    roles = {tag: {item.get("role") for name, item in tags if name == tag} for tag in set(names)}
    assert {tag: result for tag, result in roles.items() if result != {None}} == {
        "table": {"table"},
        "thead": {"rowgroup"},
        "tbody": {"rowgroup"},
        "tr": {"row"},
        "th": {"columnheader", "rowheader"},
        "td": {"cell"},
    }
    viewport = next(item for tag, item in tags if item.get("name") == "viewport")
    # This text may be larger than the other texts.
    assert viewport["content"] == "width=device-width,initial-scale=1"


def test_the_pictures_in_the_guide_show_the_current_page() -> None:
    """The recorded digests match the page and the pictures. After a change of the page, run
    scripts/screenshots.py, and look at each picture.
    """
    lines = (DOCS / "status-page.sha256").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    pictures = {path.name: path.read_bytes() for path in DOCS.glob("status-page*.png")}
    contents = {"the page in the pictures": status_page_example.html().encode(), **pictures}
    assert recorded == {name: sha256(content).hexdigest() for name, content in contents.items()}
    assert len(pictures) == 8
    guide = (DOCS / "operations.md").read_text()
    assert [name for name in pictures if f"({name})" not in guide] == []


def luminance(color: str) -> float:
    """Return the relative luminance of a color `#rrggbb` (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    weights = (0.2126, 0.7152, 0.0722)
    return sum(part * weight for part, weight in zip(linear, weights, strict=True))


# The background colors of Chromium in both color schemes.
@pytest.mark.parametrize(("scheme", "background"), [(0, "#ffffff"), (1, "#121212")])
def test_colors_have_enough_contrast(scheme: int, background: str) -> None:
    """The contrast of the colors is at least 4.5:1 for text and 3:1 for lines (WCAG 2.2, 1.4.3 and
    1.4.11).
    """
    for name, least in (("bad", 4.5), ("good", 4.5), ("line", 3.0)):
        color = re.findall(rf"--{name}:(#[0-9a-f]{{6}})", STYLE)[scheme]
        light, dark = sorted((luminance(color), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (name, scheme)


def test_the_size_of_the_page_is_limited_and_failures_precede_other_rows() -> None:
    """The size of the page is limited, even with 10,500 profiles, 10,000 findings and 10,000
    labels. Failures precede other rows.
    """
    finding = Finding(
        code=FindingCode.NOT_JSON, location="b.json", message="<" * 400, hint="&" * 400
    )
    rows = [row(f"good-{item}-{'&' * 150}.json") for item in range(10_000)]
    rows += [row(f"bad-{item}.json", "rejected", findings=(finding,) * 20) for item in range(500)]
    sets = tuple(
        ProfileSetStatus(profile_set=f"{item}{'<' * 200}", state=ProfileSetState.READ, keys=1)
        for item in range(10_000)
    )
    labels = {f"{item}.example.org/{'&' * 60}": "installed" for item in range(10_000)}
    report = Report(profiles=tuple(rows), profile_sets=sets, kind_support={})
    text = page(view(report=report, labels=labels))
    assert 3_000_000 < len(text.encode()) < MAX_BYTES < 4 << 20
    assert "bad-499.json" in text
    omitted = re.findall(r"<p>(\d+) more are not shown here. The log contains them.</p>", text)
    assert int(omitted[1]) > 7500


def test_a_page_with_3000_profiles_is_complete() -> None:
    """The page contains all rows of 3,000 profiles with ordinary names."""
    rows = tuple(row(f"profiles/audit-{item}.json", reason="unchanged") for item in range(3000))
    text = page(view(report=Report(profiles=rows, profile_sets=(), kind_support={})))
    assert ("profiles/audit-2999.json" in text, "not shown here" in text) == (True, False)
