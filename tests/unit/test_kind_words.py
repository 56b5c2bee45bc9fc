"""Tests that the shared packages do not mention profile kinds, because the backends declare how
kinds differ.
"""

import re
from pathlib import Path

import agent

ROOT = Path(agent.__file__).parent
SHARED = ("core", "host", "kube", "reporting", "controller.py", "reconciler.py", "executor.py")
WORDS = re.compile(r"apparmor|seccomp|selinux", re.IGNORECASE)
ALLOWED = {
    # The public names of the profile kinds and of SELinux.
    "core/model.py": 3,
    # File names that users rely on, and fields and annotations of the Kubernetes API.
    "core/kind_rules.py": 8,
}


def counted() -> dict[str, int]:
    """Return the number of words for kinds in each module of the shared packages."""
    paths = [path for name in SHARED for path in modules(ROOT / name)]
    words = {
        str(path.relative_to(ROOT)): len(WORDS.findall(path.read_text(encoding="utf-8")))
        for path in paths
    }
    return {path: count for path, count in words.items() if count}


def modules(path: Path) -> list[Path]:
    """Return the Python files of a package, or the file itself."""
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def test_shared_packages_do_not_mention_profile_kinds() -> None:
    """The shared packages contain only the allowed public names of kinds. The allowed counts may
    only decrease.
    """
    assert counted() == ALLOWED
