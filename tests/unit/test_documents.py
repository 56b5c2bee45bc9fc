"""Tests that the documents match the program: codes, labels, options, modules and tests."""

import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import agent
from agent.backends.apparmor import compiled_policy
from agent.config import OPTIONS
from agent.core import labels
from agent.core.finding_codes import FindingCode
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import (
    ActionName,
    ModuleMode,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
)
from agent.reporting import json_report
from tests import document_blocks
from tests.json_object import JsonObject
from tests.narrowing import not_none

DOCS = Path("docs")
PAGES = [
    *map(Path, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *map(Path, ("manifests/README.md", "profiles/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
EVIDENCE = Path("tests/evidence.toml")
OPERATIONS = DOCS / "operations.md"
TESTS = Path(__file__).parents[1]
CELL_LIMIT = 120
# The beginning of a command line. Commands must be in a block that is marked as sh.
COMMAND = re.compile(
    r"^\s*([$#] |(sudo|sh|kubectl|helm|profile-loader|podman|docker|git|curl|cd) \S)", re.MULTILINE
)
CODE_SPAN = re.compile(r"`([^`]+)`")
TEST_NAME = re.compile(
    r"((?:unit|property|contract|system|system/node)/test_\w+\.py)::(test_\w+)(?:\[(\w+)\])?"
)


def table(text: str, first: str) -> list[list[str]]:
    """Return the cells of each row in the table whose first column has this heading."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(n for n, line in enumerate(lines) if re.match(rf"\| {first} *\|", line))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [cells(row) for row in rows]


def cells(line: str) -> list[str]:
    """Return the cells of a table row."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_runbook_has_one_heading_for_each_code() -> None:
    """The headings of the runbook are exactly the codes of findings."""
    headings = re.findall(r"^### ([a-z0-9_]+)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(FindingCode) == sorted(headings)


def test_the_runbook_names_the_severity_of_each_code() -> None:
    """In the runbook, only the entries of warnings and notices begin with their severity."""
    text = (DOCS / "runbook.md").read_text().partition("## Alerts")[0]
    first_words = dict(re.findall(r"^### ([a-z0-9_]+)\n\n?(\S+)", text, re.MULTILINE))
    severities = {"Warning:": "warning", "Notice:": "notice"}
    documented = {code: severities.get(word, "error") for code, word in first_words.items()}
    assert documented == {code: code.severity for code in FindingCode}


def test_the_readme_is_short_and_begins_with_the_most_important_parts() -> None:
    """The README has at most 150 lines. The first 60 lines contain the outcome, the diagram, the
    commands with their output, the evidence, the supported versions and the comparison.
    """
    lines = Path("README.md").read_text().splitlines()
    assert len(lines) <= 150
    beginning = "\n".join(lines[:60])
    assert lines[2].startswith("**profile-loader ")
    assert beginning.count("```sh\n") == 2
    parts = (
        "docs/waiting-pod.svg", "KIND      PROFILE", "PREVENT-CHMOD", "| evidence |",
        "Kubernetes 1.30 or newer", "docs/platforms.md", "docs/comparison.md",
    )  # fmt: skip
    assert [part for part in parts if part not in beginning] == []


@pytest.mark.parametrize("page", document_blocks.PAGES)
def test_every_command_block_runs_or_is_listed_with_its_reason(page: str) -> None:
    """A block is written so that test_documents.py finds it, and each entry of NOT_RUN is one
    block.
    """
    text = Path(page).read_text()
    fenced = document_blocks.fenced_blocks(page)
    assert len(re.findall("```|~~~", text)) == 2 * len(fenced)
    assert {(block.indent, block.language) for block in fenced} <= {
        ("", "sh"),
        ("", "yaml"),
        ("", ""),
    }
    assert [block for block in fenced if not block.language and COMMAND.search(block.text)] == []
    first_lines = [(page, block.splitlines()[0]) for block in document_blocks.blocks(page)]
    listed = [entry for entry in document_blocks.NOT_RUN if entry[0] == page]
    assert [first_lines.count(entry) for entry in listed] == [1] * len(listed)
    assert all(document_blocks.NOT_RUN[entry] for entry in listed)
    assert len(document_blocks.runs(page)) + len(listed) == len(first_lines)


def test_every_page_with_commands_runs_or_is_listed_with_its_reason() -> None:
    """OTHER_PAGES lists exactly the pages with commands that test_documents.py does not run."""
    pages = {str(page) for page in PAGES if document_blocks.blocks(str(page))}
    assert pages == {*document_blocks.PAGES, *document_blocks.OTHER_PAGES}
    assert {page for page, _ in document_blocks.NOT_RUN} <= set(document_blocks.PAGES)
    assert all(document_blocks.OTHER_PAGES.values())


def test_the_reference_page_is_generated_from_the_declarations() -> None:
    """docs/reference.md matches the output of scripts/reference.py. Run the script after a
    change.
    """
    command = [sys.executable, "scripts/reference.py", "--print"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (DOCS / "reference.md").read_text() == generated
    assert [name for name in OPTIONS if f"### --{name}\n" not in generated] == []


@pytest.mark.parametrize("page", ["docs/evidence.md", "docs/architecture.md"])
def test_the_generated_pages_are_current(page: str) -> None:
    """Both pages match the output of scripts/evidence.py. Run the script after a change."""
    command = [sys.executable, "scripts/evidence.py", "--print", page]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert Path(page).read_text() == generated


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_have_a_target(page: Path) -> None:
    """Each relative link on a page leads to an existing file and to an existing heading."""
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    dead = []
    for path, heading in links:
        target = page.parent / path if path else page
        if "://" in path:
            continue
        if not target.exists() or (heading and heading not in anchors(target)):
            dead.append(f"{path}#{heading}")
    assert dead == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_table_cells_are_short(page: Path) -> None:
    """No cell of a table shows more than 120 characters. A longer text belongs in a paragraph."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    shown = [re.sub(r"\]\([^)]*\)", "", cell) for row in rows for cell in cells(row)]
    assert [cell for cell in shown if len(cell.replace("[", "")) > CELL_LIMIT] == []


def test_the_architecture_page_names_every_module() -> None:
    """docs/architecture.md names each module in the row or the section of its folder."""
    text = (DOCS / "architecture.md").read_text()
    rows = dict(table(text, "folder or module"))
    sections = dict(re.findall(r"^### (agent/\w+)\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL))
    root = Path(agent.__file__).parent
    modules = [path for path in root.glob("*/*.py") if path.stem != "__init__"]
    modules += [path.parent for path in root.glob("*/*/backend.py")]
    missing = [
        f"{path.parent.name}/{path.name}"
        for path in modules
        if not re.search(
            rf"\b{path.stem}\b",
            rows[f"`agent/{path.parent.name}`"] + sections.get(f"agent/{path.parent.name}", ""),
        )
    ]
    missing += [
        path.name
        for path in root.glob("*.py")
        if path.stem != "__init__" and path.name not in str(rows)
    ]
    assert missing == []


@pytest.mark.parametrize("page", sorted((DOCS / "adr").glob("*.md")), ids=lambda page: page.stem)
def test_a_decision_has_a_number_and_a_status(page: Path) -> None:
    """A decision record begins with the number from its file name, and with its status."""
    lines = page.read_text().splitlines()
    assert lines[0].startswith(f"# {int(page.stem[:4])}. ")
    assert lines[1:4] == ["", "Status: accepted", ""]


def code_spans(cell: str) -> list[str]:
    """Return the texts between backticks in a cell."""
    return CODE_SPAN.findall(cell)


def test_the_table_of_labels_lists_the_labels_of_a_node() -> None:
    """The table in docs/operations.md lists exactly the labels that its example profiles cause."""
    documented = {
        code_spans(key)[0]: value for _, _, key, value in table(OPERATIONS.read_text(), "label of")
    }
    profile_set = ProfileSetStatus(
        profile_set="configmap profile-loader/my-profiles", state=ProfileSetState.READ, keys=2
    )
    shared: JsonObject = {
        "profile_set": profile_set.profile_set,
        "key": "",
        "localhost_profile": "",
        "state": ProfileState.INSTALLED,
    }
    shared |= {
        "action": ActionName.KEEP,
        "reason": Reason.NONE,
        "source_digest": "0123456789abcdef" * 4,
    }
    report = Report(
        profiles=(
            ProfileStatus(kind="apparmor", name="web", mode="enforce", **shared),
            ProfileStatus(kind="seccomp", name="profiles/audit.json", **shared),
        ),
        profile_sets=(profile_set,),
        kind_support={
            "apparmor": KindSupport(state=SupportState.ENABLED),
            "seccomp": KindSupport(state=SupportState.ENABLED),
        },
        security_modules={"selinux": ModuleMode.DISABLED},
    )
    actual = labels.labels_for(report, domain="DOMAIN", digest=True, present={}).labels
    assert documented.keys() == actual.keys()
    values = {key: code_spans(cell) for key, cell in documented.items() if "-digest" not in key}
    assert all(actual[key] in expected for key, expected in values.items())
    assert values["apparmor.DOMAIN/web"] == list(compiled_policy.MODES.values())
    states = [state.value for state in SupportState]
    modes = [mode.value for mode in ModuleMode if mode != ModuleMode.UNKNOWN]
    assert values["DOMAIN/selinux"] == modes
    assert values["DOMAIN/apparmor"] == values["DOMAIN/seccomp"] == states


def test_the_table_of_label_names_matches_the_code() -> None:
    """The table in docs/operations.md shows how a profile name becomes the last part of a label
    key.
    """
    rows = [[code_spans(cell)[0] for cell in row] for row in table(OPERATIONS.read_text(), "name")]
    assert len(rows) == 6
    assert [[name, labels.label_name(name)] for name, _ in rows] == rows


def test_every_test_in_the_evidence_exists() -> None:
    """For each test in tests/evidence.toml, the file, the function and the case exist."""
    names = evidence()
    assert names
    assert [name for name in names if not TEST_NAME.fullmatch(name)] == []
    assert [
        name for name in names if not exists(*not_none(TEST_NAME.fullmatch(name)).groups())
    ] == []


def evidence() -> list[str]:
    """Return the names of all tests in tests/evidence.toml."""
    document = tomllib.loads(EVIDENCE.read_text())
    claims = [claim for section in document["sections"] for claim in section["claims"]]
    return [*document["decisions"], *(test for claim in claims for test in claim["tests"])]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_guides_contain_no_test_names(page: Path) -> None:
    """Only the evidence page contains the names of test functions."""
    expected = page == DOCS / "evidence.md"
    assert bool(re.search(r"test_\w+\.py::|`test_\w+`", page.read_text())) == expected


def exists(file: str, function: str, case: str | None) -> bool:
    """Return whether a test exists. Each case of a test in the virtual machine is a function in the
    guest.
    """
    path = TESTS / file
    if not path.exists() or f"\ndef {function}(" not in path.read_text():
        return False
    guest_files = [*(TESTS / "system/guest").glob("*.py"), TESTS / "system/apparmor_guest.py"]
    guest = "".join(path.read_text() for path in guest_files) if file.startswith("system/") else ""
    return not case or re.search(rf"\b{case}\b", path.read_text() + guest) is not None


def test_the_report_page_names_every_field() -> None:
    """docs/report.md lists the fields of the JSON document in the order of the document."""
    row = ProfileStatus(
        kind="seccomp", profile_set="", key="", name="", localhost_profile="",
        state=ProfileState.HELD, action=ActionName.HOLD, reason=Reason.NONE,
    )  # fmt: skip
    report = Report(profiles=(row,), profile_sets=(), kind_support={})
    document = json.loads(json_report.document(report, exit_status=0))
    text = (DOCS / "report.md").read_text().partition("## States")[0]
    documented = [
        re.split(r"[\[.]", name)[0] for name in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    ]
    assert documented == [*document, *document["profiles"][0]]


def test_each_answer_to_a_common_question_needs_at_most_two_files() -> None:
    """For each question, the architecture page lists at most two files, and these files exist."""
    text = (DOCS / "architecture.md").read_text().partition("## Answers to common questions")[2]
    rows = table(text, "question")
    files = [re.findall(r"`([^`]+)`", row[2]) for row in rows]
    assert {len(paths) for paths in files} == {1, 2}
    # The tests can also run with an installed agent, without its directory in the checkout.
    package = Path(agent.__file__).parent.parent
    missing = [
        path
        for path in {path for paths in files for path in paths}
        if not ((package if path.startswith("agent/") else DOCS.parent) / path).exists()
    ]
    assert missing == []


def test_every_code_is_used() -> None:
    """Each code of a finding is used outside the module that declares the codes."""
    root = Path(agent.__file__).parent
    modules = (path for path in root.rglob("*.py") if path.name != "finding_codes.py")
    used = set(re.findall(r"FindingCode\.(\w+)", "".join(path.read_text() for path in modules)))
    assert used == set(FindingCode.__members__)
