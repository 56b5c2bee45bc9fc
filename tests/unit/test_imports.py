"""Tests that each command imports only the libraries that it needs, because imports take memory and
time.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("kubernetes", "urllib3", "prometheus_client", "watchdog", "yaml")
RUN = """
import json, sys
from agent.__main__ import main
main(sys.argv[2:])
print("\\n" + json.dumps([name for name in sys.argv[1].split() if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "command", ["--oneshot --source=dir:{0}", "check {0}", "restore", "status"]
)
def test_commands_without_a_cluster_import_no_client(tmp_path: Path, command: str) -> None:
    """Commands without a cluster import neither the API client nor libraries of the daemon."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    words = command.format(tmp_path / "set").split()
    if words[0] != "check":
        words += [f"--host-root={tmp_path}"]
    argv = [sys.executable, "-c", RUN, " ".join(HEAVY), *words, "--kinds=seccomp"]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == []
