"""A mode imports only what it needs: the rest costs memory and time on every node."""

import json
import subprocess
import sys

import pytest

HEAVY = ("kubernetes", "urllib3", "prometheus_client", "watchdog", "yaml")
RUN = """
import json, sys
from agent.__main__ import main
main(sys.argv[2:])
print("\\n" + json.dumps([one for one in sys.argv[1].split() if one in sys.modules]))
"""


@pytest.mark.parametrize(
    "command", ["--oneshot --source=dir:{0}", "check {0}", "restore", "status"]
)
def test_what_needs_no_cluster_imports_no_client(tmp_path, command):
    """Neither the API server's client, nor what only a daemon serves or watches with."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    words = command.format(tmp_path / "set").split()
    if words[0] != "check":
        words += [f"--host-root={tmp_path}"]
    argv = [sys.executable, "-c", RUN, " ".join(HEAVY), *words, "--kinds=seccomp"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
