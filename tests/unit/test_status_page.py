"""The status page: its text, its structure, and that markup in names is escaped."""

import re
from html.parser import HTMLParser

import pytest

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
    """Return a view with something in every part of the page."""
    finding = Finding(
        code="not_json", location="b.json", message="line 1: no JSON", hint="Mend it."
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
    """Reads a page: its tags, whether they are balanced, and what each table says."""

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


def test_a_problem_is_told_for_each_profile_that_has_it():
    """The same remark about two profiles is two lines, each with its profile."""
    bad = Finding(code="not_enforcing", location="defaultAction", message="It logs only.")
    rows = (row("a.json", findings=(bad,)), row("b.json", findings=(bad,)))
    made = page(view(report=Report(profiles=rows, profile_sets=(), kind_support={})))
    assert [line[0] for line in Structure(made).tables[1]] == [
        "Where",
        "a.json: defaultAction",
        "b.json: defaultAction",
    ]


def test_the_page_tells_everything_of_the_last_pass():
    """Profiles, problems, sources, labels and the last passes, the newest first."""
    none = "—"
    assert Structure(page(view())).tables == [
        [
            ["Name", "Kind", "State", "Mode", "Why", "Source"],
            ["a.json", "seccomp", "installed", none, "unchanged", "a.json in configmap ns/web"],
            ["web", "apparmor", "installed", "enforce", "drifted", "web in configmap ns/web"],
            ["b.json", "seccomp", "rejected", none, none, "b.json in configmap ns/web"],
        ],
        [
            ["Where", "Code", "What", "What to do"],
            ["b.json", "not_json", "line 1: no JSON", "Mend it."],
        ],
        [["Set", "State", "Keys", "Why"], ["configmap ns/web", "read", "3", none]],
        [["Label", "Value"], ["seccomp.example.org/a.json", "installed"]],
        [
            ["Ended", "Took", "Result"],
            ["2027-01-15 08:05:00 UTC", "1.500 s", "not in place"],
            ["2027-01-15 08:00:00 UTC", "0.250 s", "in place"],
        ],
    ]
    assert "Not everything is in place." in page(view())
    assert "The last pass ended at 2027-01-15 08:05:01 UTC." in page(view())


def test_before_the_first_pass_the_page_says_so():
    """And has no table."""
    text = page(StatusView(version="1", node="n", report=None))
    assert "No pass has ended yet." in text
    assert Structure(text).tables == []


def everywhere(text):
    """Return a view that has a text wherever a text can be."""
    finding = Finding(code="not_json", location=text, message=text, hint=text)
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


def test_a_hostile_name_is_text_wherever_it_stands():
    """In no place does it make a tag, an attribute or a control character."""
    text = page(everywhere(EVIL))
    assert [tag for tag, _ in Structure(text).tags] == [
        tag for tag, _ in Structure(page(everywhere("fine"))).tags
    ]
    assert text.count(SHOWN) == page(everywhere("fine")).count("fine")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)


def test_the_page_is_one_file_without_a_script():
    """No script, no handler, no file to load; the only link is to the metrics."""
    tags = Structure(page(view())).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "form", "base"})
    names = {name for _, attributes in tags for name in attributes}
    assert {name for name in names if name.startswith("on") or name in ("src", "style")} == set()
    assert [one["href"] for tag, one in tags if tag == "a"] == ["metrics"]
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_the_page_can_be_read_by_a_machine_that_reads_aloud():
    """Language, title, one h1, headings in order, tables with caption and scopes."""
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
    assert viewport["content"] == "width=device-width,initial-scale=1"  # may be enlarged


def luminance(colour):
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(one * weight for one, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


# Chromium's canvas of the two colour schemes.
@pytest.mark.parametrize(("scheme", "ground"), [(0, "#ffffff"), (1, "#121212")])
def test_colours_have_enough_contrast(scheme, ground):
    """Each coloured text has 4.5:1 to the ground, each line 3:1 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    for name, least in (("bad", 4.5), ("good", 4.5), ("line", 3.0)):
        colour = re.findall(rf"--{name}:(#[0-9a-f]{{6}})", STYLE)[scheme]
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (name, scheme)


def test_a_state_is_told_by_its_word_and_not_by_colour_alone():
    """The colour of a cell only repeats it."""
    text = page(view())
    assert re.findall(r'class="(good|bad) short" data-name="State">(\w+)<', text) == [
        ("good", "installed"),
        ("good", "installed"),
        ("bad", "rejected"),
    ]


def test_the_page_is_bounded_and_shows_first_what_is_not_as_it_should_be():
    """However many profiles and problems a report has, the page has a largest size."""
    finding = Finding(code="not_json", location="b.json", message="<" * 400, hint="&" * 400)
    rows = [row(f"good-{one}-{'&' * 150}.json") for one in range(10_000)]
    rows += [row(f"bad-{one}.json", "rejected", findings=(finding,) * 20) for one in range(500)]
    text = page(view(report=Report(profiles=tuple(rows), profile_sets=(), kind_support={})))
    assert len(text) < 4 * TABLE_BYTES + 100_000
    assert "bad-499.json" in text
    assert re.findall(r"<p>(\d+) more are not shown here; the log has them.</p>", text)[0] > "7500"


def test_2500_profiles_are_shown_whole():
    """A node with many profiles of usual names needs no omission."""
    rows = tuple(row(f"profiles/audit-{one}.json", reason="unchanged") for one in range(2500))
    text = page(view(report=Report(profiles=rows, profile_sets=(), kind_support={})))
    assert ("profiles/audit-2499.json" in text, "not shown here" in text) == (True, False)
