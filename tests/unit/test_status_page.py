"""Tests of agent.reporting.status_page: its text, its structure and its escaping."""

import re
from html.parser import HTMLParser

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.reporting.status_page import STYLE, TABLE_BYTES, PassSummary, StatusView, page

EVIL = "</title><script>alert(1)</script>\"'>\x1b[31m\u202e"
SHOWN = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&gt;\\x1b[31m\\u202e"
VOID = {"meta", "br", "link"}


def row(name, state="installed", **more):
    fields = {
        "kind": "seccomp",
        "profile_set": "configmap ns/web",
        "key": name,
        "reason": "",
        **more,
    }
    return ProfileStatus(name=name, localhost_profile=name, state=state, action="keep", **fields)


def view(**more):
    """Return a view with content for every part of the page."""
    finding = Finding(
        code=FindingCode.NOT_JSON, location="b.json", message="line 1: no JSON", hint="Correct it."
    )
    fields = {
        "version": "1.2.3",
        "node": "node-1",
        "report": Report(
            profiles=(
                row("a.json", reason="unchanged"),
                row("web", kind="apparmor", mode="enforce", reason="drifted"),
                row("b.json", "rejected", findings=(finding,)),
            ),
            profile_sets=(ProfileSetStatus(profile_set="configmap ns/web", state="read", keys=3),),
            kind_support={"seccomp": KindSupport(state="enabled")},
        ),
        "labels": {"seccomp.example.org/a.json": "installed"},
        "passes": (
            PassSummary(at=1_800_000_000.0, seconds=0.25, converged=True),
            PassSummary(at=1_800_000_300.0, seconds=1.5, converged=False),
        ),
        "at": 1_800_000_301.0,
    }
    return StatusView(**{**fields, **more})


class Structure(HTMLParser):
    """Collects the tags of a page and the cells of its tables. The parser fails if a tag is not
    closed.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data


def test_a_finding_has_a_row_for_each_profile_that_has_it():
    """If two profiles have the same finding, it has two rows, each with its profile."""
    bad = Finding(code=FindingCode.NOT_ENFORCING, location="defaultAction", message="It logs only.")
    rows = (row("a.json", findings=(bad,)), row("b.json", findings=(bad,)))
    text = page(view(report=Report(profiles=rows, profile_sets=(), kind_support={})))
    assert [line[0] for line in Structure(text).tables[0]] == [
        "Where",
        "a.json: defaultAction",
        "b.json: defaultAction",
    ]


def test_findings_are_sorted_by_severity():
    """Errors come before warnings, and warnings come before notices."""
    codes = {"not_enforcing": "warning", "parser_not_sandboxed": "notice", "not_json": "error"}
    findings = tuple(Finding(code=FindingCode(code), location="x", message="m") for code in codes)
    report = Report(profiles=(), profile_sets=(), kind_support={}, findings=findings)
    rows = Structure(page(view(report=report))).tables[0][1:]
    assert [line[1] for line in rows] == ["not_json", "not_enforcing", "parser_not_sandboxed"]


def test_the_page_shows_everything_about_the_last_pass():
    """The order of the page is: summary, problems, profiles, sources, labels, last passes."""
    none = "—"
    assert Structure(page(view())).tables == [
        [
            ["Where", "Code", "What", "What to do"],
            ["b.json", "not_json", "line 1: no JSON", "Correct it."],
        ],
        [
            ["Name", "Kind", "State", "Mode", "Why", "Source"],
            ["b.json", "seccomp", "rejected", none, none, "b.json in configmap ns/web"],
            ["a.json", "seccomp", "installed", none, "unchanged", "a.json in configmap ns/web"],
            ["web", "apparmor", "installed", "enforce", "drifted", "web in configmap ns/web"],
        ],
        [["Set", "State", "Keys", "Why"], ["configmap ns/web", "read", "3", none]],
        [["Label", "Value"], ["seccomp.example.org/a.json", "installed"]],
        [
            ["Ended", "Took", "Result"],
            ["2027-01-15 08:05:00 UTC", "1.500 s", "not in place"],
            ["2027-01-15 08:00:00 UTC", "0.250 s", "in place"],
        ],
    ]
    assert "Not every profile is in place." in page(view())
    ended = "The last pass ended at 2027-01-15 08:05:01 UTC."
    assert f"<p>2 installed, 1 rejected. {ended}</p>" in page(view())


def test_before_the_first_pass_the_page_has_no_table():
    """The page reports that no pass has ended yet."""
    text = page(StatusView(version="1", node="n", report=None))
    assert "No pass has ended yet." in text
    assert Structure(text).tables == []


def everywhere(text):
    """Return a view in which every field contains the same text."""
    finding = Finding(code=FindingCode.NOT_JSON, location=text, message=text, hint=text)
    return StatusView(
        version=text,
        node=text,
        report=Report(
            profiles=(
                row(text, reason=text, key=text, profile_set=text, mode=text, findings=(finding,)),
            ),
            profile_sets=(ProfileSetStatus(profile_set=text, state="unreadable", reason=text),),
            kind_support={"seccomp": KindSupport(state="unknown", finding=finding)},
        ),
        labels={text: text},
    )


def test_a_malicious_name_is_escaped_in_every_place():
    """A malicious name never becomes a tag, an attribute or a control character."""
    text = page(everywhere(EVIL))
    assert [tag for tag, _ in Structure(text).tags] == [
        tag for tag, _ in Structure(page(everywhere("fine"))).tags
    ]
    assert text.count(SHOWN) == page(everywhere("fine")).count("fine")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)


def test_the_page_is_one_file_without_a_script():
    """The page has no script, handler or resource, and its only link leads to the metrics."""
    tags = Structure(page(view())).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "form", "base"})
    names = {name for _, attributes in tags for name in attributes}
    assert {name for name in names if name.startswith("on") or name in ("src", "style")} == set()
    assert [one["href"] for tag, one in tags if tag == "a"] == ["metrics"]
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_a_screen_reader_can_read_the_page():
    """The page has a language, a title, ordered headings, and tables with captions and scopes."""
    tags = Structure(page(view())).tags
    names = [tag for tag, _ in tags]
    assert ("html", {"lang": "en"}) in tags
    assert "<title>profile-loader on node-1</title>" in page(view())
    assert [one for one in names if re.fullmatch("h[1-6]", one)] == ["h1", *["h2"] * 5]
    assert names.count("main") == 1
    assert names.count("caption") == names.count("table") == 5
    assert {one.get("scope") for tag, one in tags if tag == "th"} == {"row", "col"}
    roles = {tag: {one.get("role") for name, one in tags if name == tag} for tag in set(names)}
    assert {tag: found for tag, found in roles.items() if found != {None}} == {
        "table": {"table"},
        "thead": {"rowgroup"},
        "tbody": {"rowgroup"},
        "tr": {"row"},
        "th": {"columnheader", "rowheader"},
        "td": {"cell"},
    }
    viewport = next(one for tag, one in tags if one.get("name") == "viewport")
    # This text may be larger than the others.
    assert viewport["content"] == "width=device-width,initial-scale=1"


def luminance(color):
    """Return the relative luminance of a color `#rrggbb` (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    weights = (0.2126, 0.7152, 0.0722)
    return sum(part * weight for part, weight in zip(linear, weights, strict=True))


# These are the background colors of Chromium in its two color schemes.
@pytest.mark.parametrize(("scheme", "background"), [(0, "#ffffff"), (1, "#121212")])
def test_colors_have_enough_contrast(scheme, background):
    """The contrast is 4.5:1 for text and 3:1 for lines (WCAG 2.2, 1.4.3 and 1.4.11)."""
    for name, least in (("bad", 4.5), ("good", 4.5), ("line", 3.0)):
        color = re.findall(rf"--{name}:(#[0-9a-f]{{6}})", STYLE)[scheme]
        light, dark = sorted((luminance(color), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (name, scheme)


def test_a_state_is_shown_as_a_word_and_not_only_as_a_color():
    """The color of a cell only repeats the state that the cell contains as a word."""
    text = page(view())
    assert re.findall(r'class="(good|bad) short" data-name="State">(\w+)<', text) == [
        ("bad", "rejected"),
        ("good", "installed"),
        ("good", "installed"),
    ]


def test_the_size_of_the_page_is_limited_and_failures_come_first():
    """The page for 10,500 profiles and 10,000 findings has a limited size."""
    finding = Finding(
        code=FindingCode.NOT_JSON, location="b.json", message="<" * 400, hint="&" * 400
    )
    rows = [row(f"good-{one}-{'&' * 150}.json") for one in range(10_000)]
    rows += [row(f"bad-{one}.json", "rejected", findings=(finding,) * 20) for one in range(500)]
    text = page(view(report=Report(profiles=tuple(rows), profile_sets=(), kind_support={})))
    assert len(text) < 4 * TABLE_BYTES + 100_000
    assert "bad-499.json" in text
    omitted = re.findall(r"<p>(\d+) more are not shown here. The log contains them.</p>", text)
    assert int(omitted[-1]) > 7500


def test_a_page_of_2500_profiles_omits_nothing():
    """For 2,500 profiles with ordinary names, the page omits nothing."""
    rows = tuple(row(f"profiles/audit-{one}.json", reason="unchanged") for one in range(2500))
    text = page(view(report=Report(profiles=rows, profile_sets=(), kind_support={})))
    assert ("profiles/audit-2499.json" in text, "not shown here" in text) == (True, False)
