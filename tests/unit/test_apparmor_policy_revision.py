"""Tests of agent.backends.apparmor.policy_revision."""

import os
import queue
from pathlib import Path

from agent.backends.apparmor.policy_revision import PolicyRevisionWatcher

SECONDS = 60.0


def test_changes_before_and_after_the_file_was_opened_are_reported(tmp_path: Path) -> None:
    """The watcher reports changes before and after it opened the file. The watcher always reports a
    first change, because its first read may hide a change.
    """
    os.mkfifo(tmp_path / "revision")
    writer = os.open(tmp_path / "revision", os.O_RDWR)
    changes: queue.SimpleQueue[str] = queue.SimpleQueue()
    os.write(writer, b"7")
    PolicyRevisionWatcher(tmp_path / "revision", lambda: changes.put("changed")).start()
    assert changes.get(timeout=SECONDS) == "changed"
    os.write(writer, b"8")
    assert changes.get(timeout=SECONDS) == "changed"
    os.close(writer)
