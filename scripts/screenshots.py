"""Draw the pictures of the status page in docs/ with Chromium, and record their digests.

A test compares the recorded digest of the page with the current page, so that no picture is
outdated. Run this script after a change of the page, and look at each picture.

usage: .venv/bin/python scripts/screenshots.py [FOLDER]
"""  # noqa: INP001 - a script

import hashlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.status_page_example import html
from tests.system.browser import Browser

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTHS = (1400, 400)
SCHEMES = ("light", "dark")
HEIGHT = 900
VIEWS = {"status-page": "", "status-page-profiles": "#show-installed"}
"""The part of the page that each group of pictures shows."""


def draw(folder: Path) -> None:
    """Write the pictures, and the file with the digests of the pictures and of their page."""
    page = html().encode()
    digests = {"the page in the pictures": hashlib.sha256(page).hexdigest()}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "page.html")
        file.write_bytes(page)
        for width in WIDTHS:
            for scheme in SCHEMES:
                work = Path(temporary, f"{width}-{scheme}")
                with Browser(work, width=width, height=HEIGHT, scheme=scheme) as browser:
                    for view, anchor in VIEWS.items():
                        browser.open(file.as_uri() + anchor)
                        name = f"{view}-{width}-{scheme}.png"
                        picture = browser.picture()
                        (folder / name).write_bytes(picture)
                        digests[name] = hashlib.sha256(picture).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    (folder / "status-page.sha256").write_text("".join(lines))


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else DOCS)
