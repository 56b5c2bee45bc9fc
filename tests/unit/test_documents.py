"""The documents list what the program contains, and name tests and files that exist."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agent
from agent.backends.apparmor import compiled_policy
from agent.config import OPTIONS
from agent.core import labels, plan
from agent.core.findings import CODES
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import SupportState
from agent.reporting import json_report

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]


def test_the_runbook_has_one_heading_for_each_code():
    """Every code has a heading, and every heading of this form is a code."""
    headings = re.findall(r"^### ([a-z0-9_]+)$", Path("docs/runbook.md").read_text(), re.MULTILINE)
    assert sorted(CODES) == sorted(headings)


def test_the_runbook_has_the_severity_of_each_code():
    """The entry of a warning or a notice begins with that word, and no other entry does."""
    text = Path("docs/runbook.md").read_text().partition("## Alerts")[0]
    first_words = dict(re.findall(r"^### ([a-z0-9_]+)\n(\S+)", text, re.MULTILINE))
    words = {"Warning:": "warning", "Notice:": "notice"}
    assert {code: words.get(first, "error") for code, first in first_words.items()} == CODES


def test_the_readme_is_short():
    """The README has at most 150 lines."""
    assert len(Path("README.md").read_text().splitlines()) <= 150


def test_the_reference_page_is_generated_from_the_declarations():
    """docs/reference.md is the output of scripts/reference.py. Run the script after a change."""
    command = [sys.executable, "scripts/reference.py", "--print"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert Path("docs/reference.md").read_text() == generated
    assert [name for name in OPTIONS if f"### --{name}\n" not in generated] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_have_a_target(page):
    """The file of each relative link exists, and contains the heading of the link."""
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    dead = []
    for path, heading in links:
        target = page.parent / path if path else page
        if "://" in path:
            continue
        if not target.exists() or (heading and heading not in anchors(target)):
            dead.append(f"{path}#{heading}")
    assert dead == []


def anchors(page):
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_the_architecture_page_lists_every_module():
    """In docs/architecture.md each module and package is in the row of its folder."""
    rows = dict(table(Path("docs/architecture.md").read_text(), "folder"))
    root = Path(agent.__file__).parent
    inner = [one for one in root.glob("*/*") if one.suffix == ".py" or (one / "kind.py").exists()]
    missing = [
        f"{one.parent.name}/{one.name}"
        for one in inner
        if one.stem != "__init__"
        and not re.search(rf"\b{one.stem}\b", rows[f"`agent/{one.parent.name}`"])
    ]
    missing += [
        one.name
        for one in root.glob("*.py")
        if one.stem != "__init__" and one.name not in str(rows)
    ]
    assert missing == []


@pytest.mark.parametrize("page", sorted(Path("docs/adr").glob("*.md")), ids=lambda one: one.stem)
def test_a_decision_has_its_number_and_its_status(page):
    """The number in the heading is that of the file name."""
    lines = page.read_text().splitlines()
    assert lines[0].startswith(f"# {int(page.stem[:4])}. ")
    assert lines[1:4] == ["", "Status: accepted", ""]


def test_the_decision_table_is_that_of_the_code():
    """docs/architecture.md has the rows of agent/core/plan.py, each with its test."""
    documented = [row[:-1] for row in table(Path("docs/architecture.md").read_text(), "its set")]
    assert documented == table(plan.__doc__, "its set")


def table(text, first):
    """Return the cells of the rows of the table whose first column has a heading."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(n for n, line in enumerate(lines) if re.match(rf"\| {first} *\|", line))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


OPERATIONS = Path("docs/operations.md")


def coded(cell):
    """Return the texts between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_labels_is_complete():
    """docs/operations.md lists exactly the labels of a report with the examples of the table."""
    told = {coded(key)[0]: value for _, _, key, value in table(OPERATIONS.read_text(), "label of")}
    set_ = ProfileSetStatus(
        profile_set="configmap profile-loader/my-profiles", state="read", keys=2
    )
    shared = {
        "profile_set": set_.profile_set,
        "key": "",
        "localhost_profile": "",
        "state": "installed",
    }
    shared |= {"action": "keep", "reason": "", "source_digest": "0123456789abcdef" * 4}
    report = Report(
        profiles=(
            ProfileStatus(kind="apparmor", name="web", mode="enforce", **shared),
            ProfileStatus(kind="seccomp", name="profiles/audit.json", **shared),
        ),
        profile_sets=(set_,),
        kind_support={
            "apparmor": KindSupport(state="enabled"),
            "seccomp": KindSupport(state="enabled"),
        },
    )
    made = labels.labels_for(report, domain="DOMAIN", digest=True, present={}).labels
    assert told.keys() == made.keys()
    told = {key: coded(value) for key, value in told.items() if "-digest" not in key}
    assert all(made[key] in values for key, values in told.items())
    assert told["apparmor.DOMAIN/web"] == list(compiled_policy.MODES.values())
    states = [state.value for state in SupportState]
    assert told["DOMAIN/apparmor"] == told["DOMAIN/seccomp"] == states


def test_the_table_of_names_has_the_label_of_each_name():
    """docs/operations.md shows how a name becomes the last part of a label's key."""
    rows = [[coded(cell)[0] for cell in row] for row in table(OPERATIONS.read_text(), "name")]
    assert len(rows) == 6
    assert [[name, labels.name(name)] for name, _ in rows] == rows


TESTS = Path(__file__).parents[1]
NAMED = re.compile(
    r"`((?:unit|property|contract|system|system/node)/test_\w+\.py)::(test_\w+)(?:\[(\w+)\])?`"
)


def test_every_test_that_a_page_references_exists():
    """The file, the function and the case of each reference exist."""
    named = {(str(page), *one) for page in PAGES for one in re.findall(NAMED, page.read_text())}
    assert named
    gone = [one for one in sorted(named) if not exists(*one[1:])]
    assert gone == []
    loose = [
        (str(page), one)
        for page in PAGES
        for one in re.findall(r"\S*test_\w+\.py::\S*|`test_\w+`", page.read_text())
        if not re.search(NAMED, f"`{one.strip('`.,;|()')}`")
    ]
    assert loose == []


def exists(file, function, case):
    """Return whether a test exists. The cases of a test in a guest are functions in the guest."""
    path = TESTS / file
    if not path.exists() or f"\ndef {function}(" not in path.read_text():
        return False
    beside = [*(TESTS / "system/guest").glob("*.py"), TESTS / "system/apparmor_guest.py"]
    guest = "".join(one.read_text() for one in beside) if file.startswith("system/") else ""
    return not case or re.search(rf"\b{case}\b", path.read_text() + guest) is not None


def test_the_schema_page_lists_every_field_of_the_report():
    """docs/report.md and the JSON report have the same fields."""
    import json

    row = ProfileStatus(
        kind="seccomp", profile_set="", key="", name="", localhost_profile="", state="held",
        action="hold", reason="",
    )  # fmt: skip
    made = json.loads(
        json_report.document(
            Report(profiles=(row,), profile_sets=(), kind_support={}), exit_status=0
        )
    )
    text = Path("docs/report.md").read_text()
    told = [
        re.split(r"[\[.]", name)[0] for name in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    ]
    assert told == [*made, *made["profiles"][0]]


def test_every_code_is_used():
    """The program reports each code somewhere."""
    root = Path(agent.__file__).parent
    code = "".join(one.read_text() for one in root.rglob("*.py") if one.name != "problems.py")
    sources = {f"source_{why}" for why in ("missing", "unreadable", "emptied", "over_limit")}
    assert [one for one in CODES if f'"{one}"' not in code and one not in sources] == []
