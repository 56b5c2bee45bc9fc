"""Tests of the seccomp files on a node after the agent was killed before or after it wrote
a file.
"""

import json
import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.model import Profile, Read, Snapshot, SourceKey
from agent.core.plan import PlanOptions
from agent.core.ports import Failed, Installed
from agent.core.vocabulary import ActionName, PruneMode, Reason
from agent.host.filesystem import Host
from agent.host.ledger import FileLedger
from tests.json_object import JsonObject
from tests.world import Killed, build_reconciler

PROFILE_SET = "configmap ns/web"
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}],
}
SAME_MEANING = json.dumps(PROFILE, indent=8).encode()


class KilledBackend(SeccompBackend):
    """A backend that is killed before it writes a file."""

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        raise Killed


class WritingBackend(SeccompBackend):
    """A backend that is killed after it has written a file."""

    def install(
        self,
        profile: Profile,
        body: bytes,
        *,
        replaceable: Collection[str],
        foreign: Collection[str] = (),
    ) -> Installed | Failed:
        super().install(profile, body, replaceable=replaceable, foreign=foreign)
        raise Killed


class OneSource:
    """A source with one profile set."""

    watched_path = None

    def __init__(self, snapshot: Read) -> None:
        self.snapshot = snapshot

    def read(self) -> tuple[Read]:
        return (self.snapshot,)

    def explain_absence(self, profile_set: str) -> Snapshot | None:
        return None

    def invalidate(self) -> None:
        pass


def snapshot_of(content: bytes | JsonObject, key: str = "a.json", name: str = "a.json") -> Read:
    """Return the snapshot of a ConfigMap with one key."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    source_key = SourceKey(profile_set=PROFILE_SET, key=key, content=text, name=name)
    return Read(profile_set=PROFILE_SET, revision=repr(source_key), source_keys=(source_key,))


WITHOUT_KEY = snapshot_of({"defaultAction": "SCMP_ACT_LOG"}, "b.json", "b.json")


class SeccompNode:
    """A directory with the state and the seccomp files of a node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = Path(root, "seccomp/a.json")
        for directory in ("state", "seccomp"):
            Path(root, directory).mkdir()

    def run(
        self, snapshot: Read, backend: type[SeccompBackend] = SeccompBackend
    ) -> dict[str, tuple[ActionName, Reason]]:
        """Run one pass of a new agent, and return its actions by key."""
        host = Host(str(self.root))
        reconciler = build_reconciler(
            [OneSource(snapshot)],
            backend(host=host, clock_ns=time.time_ns, directory="/seccomp", machine="x86_64"),
            FileLedger(host, "/state"),
            PlanOptions(prune=PruneMode.ALWAYS),
        )
        return {row.key: (row.action, row.reason) for row in reconciler.run().profiles}

    def write(self, content: bytes) -> None:
        """Write the file as an administrator does."""
        self.path.write_bytes(content)
        os.utime(self.path, (1, 1))


@pytest.fixture
def node(tmp_path: Path) -> SeccompNode:
    return SeccompNode(tmp_path)


@pytest.fixture
def killed_node(node: SeccompNode) -> SeccompNode:
    """Return a node on which an administrator wrote the file after the agent had been killed."""
    with pytest.raises(Killed):
        node.run(snapshot_of(PROFILE), KilledBackend)
    node.write(SAME_MEANING)
    return node


def test_a_foreign_file_with_the_meaning_of_an_unfinished_installation_is_not_removed(
    killed_node: SeccompNode,
) -> None:
    """A foreign file with the meaning of the staged profile is not removed, because the agent never
    wrote it.
    """
    assert killed_node.run(WITHOUT_KEY)["a.json"] == ("release", "foreign")
    assert killed_node.path.read_bytes() == SAME_MEANING


@pytest.mark.parametrize("key", ["a.json", "renamed.json"])
def test_a_foreign_file_with_the_meaning_of_an_unfinished_installation_is_adopted(
    killed_node: SeccompNode, key: str
) -> None:
    """The key or a renamed key adopts the foreign file. The file stays after the key is deleted."""
    assert killed_node.run(snapshot_of(PROFILE, key))[key][0] == "adopt"
    assert killed_node.path.read_bytes() == SAME_MEANING
    killed_node.run(WITHOUT_KEY)
    assert killed_node.path.read_bytes() == SAME_MEANING


@pytest.mark.parametrize("key", ["a.json", "renamed.json"])
def test_an_update_does_not_replace_a_file_that_an_unfinished_installation_did_not_write(
    killed_node: SeccompNode, key: str
) -> None:
    """An update of the key or of a renamed key does not replace the foreign file."""
    update = snapshot_of(PROFILE | {"defaultAction": "SCMP_ACT_LOG"}, key)
    assert killed_node.run(update)[key] == ("hold", "foreign")
    assert killed_node.path.read_bytes() == SAME_MEANING


def test_an_adopted_file_is_not_removed_after_an_unfinished_restoration(node: SeccompNode) -> None:
    """If the agent is killed while it restores an adopted file, and an administrator restores the
    file, the agent does not remove it.
    """
    node.write(SAME_MEANING)
    node.run(snapshot_of(PROFILE))
    node.path.unlink()
    with pytest.raises(Killed):
        node.run(snapshot_of(PROFILE), KilledBackend)
    node.write(SAME_MEANING)
    node.run(WITHOUT_KEY)
    assert node.path.read_bytes() == SAME_MEANING


def test_a_file_that_an_unfinished_installation_wrote_is_removed(node: SeccompNode) -> None:
    """A file that an unfinished installation wrote is removed, because its exact content proves
    that the agent wrote it.
    """
    with pytest.raises(Killed):
        node.run(snapshot_of(PROFILE), WritingBackend)
    assert node.path.exists()
    node.run(WITHOUT_KEY)
    assert not node.path.exists()
