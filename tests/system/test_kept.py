"""Tests that several processes that need the same cached file build it only once."""

import re
import subprocess
import sys
import threading
from pathlib import Path

from tests.system import kept

BUILD = """
import sys
import threading
from pathlib import Path
from tests.system import go_build
go_build.CACHE = Path(sys.argv[1])
print(go_build.program(Path(sys.argv[2]), "controlplane"))
"""
LOOK = """
import sys
import threading
from pathlib import Path
from tests.system import kept
with kept.locked(Path(sys.argv[1])):
    print("in")
"""


def tiny(folder, number=0):
    """Write a small Go module whose build takes one or two seconds, and return its directory."""
    module = folder / "tiny"
    module.mkdir(exist_ok=True)
    (module / "go.mod").write_text("module tiny\n\ngo 1.21\n")
    (module / "go.sum").write_text("")
    (module / "main.go").write_text(f"package main\n\nfunc main() {{}} // {number}\n")
    return module


def at_once(script, *arguments):
    """Run a script in two processes at the same time, and return their outputs."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [item.communicate()[0] for item in both]
    assert [item.returncode for item in both] == [0, 0], outputs
    return outputs


def test_two_processes_build_a_control_plane_once(tmp_path):
    """If two processes need the same program, the second process waits and uses the result of the
    first process.
    """
    outputs = at_once(BUILD, tmp_path / "kept", tiny(tmp_path))
    (path,) = {item.splitlines()[-1] for item in outputs}
    subprocess.run([path], check=True)
    assert sum("the build usually takes" in item for item in outputs) == 1, outputs


def test_the_number_of_cached_builds_is_limited(tmp_path):
    """The cache keeps two builds, because another checkout may use the second build. Older builds
    are deleted.
    """
    actual = []
    for number in range(3):
        command = [sys.executable, "-c", BUILD, tmp_path / "kept", tiny(tmp_path, number)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        actual.append(Path(result.stdout.splitlines()[-1]).exists())
    assert actual == [True] * 3
    assert len([*(tmp_path / "kept/tiny").iterdir()]) == 2


def test_one_process_at_a_time_uses_a_folder(tmp_path):
    """A process that waits for a folder reports this, and continues when the other process has
    finished.
    """
    command = [sys.executable, "-c", LOOK, str(tmp_path / "folder")]
    with kept.locked(tmp_path / "folder"):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert (
            other.stdout.readline() == "folder: another process is already building it; waiting\n"
        )
        assert other.poll() is None
    assert (other.communicate()[0], other.returncode) == ("in\n", 0)


def test_a_long_build_is_announced_and_reports_its_progress(capsys):
    """The output shows which result is being built, how long the build usually takes, and its
    progress.
    """
    progress_requested = threading.Event()

    def progress():
        progress_requested.set()
        return "(3 of 4 parts)"

    with kept.reporting_progress("cake", "an hour", progress, every=0.01):
        assert capsys.readouterr().out.startswith("cake: the build usually takes an hour\n")
        progress_requested.wait()
    *reports, end = re.sub(r"\d+ s", "N s", capsys.readouterr().out).splitlines()
    assert set(reports) == {"cake: the build is still running after N s (3 of 4 parts)"}
    assert end == "cake: made in N s"
