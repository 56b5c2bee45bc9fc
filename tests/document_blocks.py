"""The command blocks of the documents, and the blocks and pages that no test runs.

tests/system/test_documents.py runs the blocks. A unit test proves that each block runs or is listed
here.
"""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
IMAGE = f"docker.io/library/profile-loader:{VERSION}"
# The operations page uninstalls the agent. The Helm page, which runs later, installs the agent
# again.
PAGES = [
    "README.md", "docs/quickstart.md", "docs/how-to.md", "docs/operations.md", "docs/platforms.md",
    "docs/helm.md",
]  # fmt: skip
SAVE = f"podman save --format oci-archive -o profile-loader.tar {IMAGE}"
NOT_RUN = {  # These are the reasons, by page and first line of a block.
    ("README.md", "sh scripts/test --install"): "the block runs this test",
    ("docs/quickstart.md", f"podman build -t {IMAGE} ."): "test_image.py uses buildah",
    ("docs/quickstart.md", "kind create cluster"): "the test environment has no kind",
    (
        "docs/quickstart.md",
        "minikube start --driver=kvm2 --container-runtime=containerd",
    ): "the test environment has no minikube",
    ("docs/quickstart.md", SAVE): "the test environment has no podman and no k3s",
    (
        "docs/how-to.md",
        SAVE,
    ): "the test environment has no podman and no containerd; test_image.py uses buildah",
    (
        "docs/operations.md",
        "pod=$(kubectl -n profile-loader get pods --field-selector spec.nodeName=node-a -o name)",
    ): "the block needs a kubelet; node/test_base.py runs status in the agent's pod",
}
OTHER_PAGES = {  # The pages with commands that test_documents.py does not run, with the reasons.
    "CONTRIBUTING.md": "its commands set up the tests and run them",
    "docs/image.md": "test_image.py and test_image_push.py run the commands that work here",
    "docs/metrics.md": "test_prometheus.py uses the manifests of its command",
    "docs/node.md": "its command runs the tests with a kubelet",
    "docs/performance.md": "its command runs the benchmark",
    "docs/reference.md": "it is generated, and its examples have placeholders",
    "docs/report.md": "it needs a running agent and jq",
    "docs/runbook.md": "its commands have placeholders",
    "docs/seccomp.md": "its commands need the reader's own profiles",
    "docs/security.md": "its command traces the system calls of the agent for minutes",
    "manifests/README.md": "its commands change the services of the host",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    indent: str
    language: str
    text: str


def fenced_blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page, including indented ones."""
    fence = r"^(?P<indent>[ \t>]*)(?P<fence>```+|~~~+)(?P<language>.*)\n(?P<text>(?:.*\n)*?)"
    pattern = re.compile(fence + r"(?P=indent)(?P=fence)$", re.MULTILINE)
    return [
        Block(found["indent"], found["language"], found["text"])
        for found in pattern.finditer(Path(page).read_text())
    ]


def blocks(page: str) -> list[str]:
    """Return the sh blocks of a page."""
    return [block.text for block in fenced_blocks(page) if block.language == "sh"]


def runs(page: str) -> list[str]:
    """Return the blocks of a page that run."""
    return [block for block in blocks(page) if (page, block.splitlines()[0]) not in NOT_RUN]
