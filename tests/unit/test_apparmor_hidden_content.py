"""Tests of installations while other programs change the policy, on a kernel that shows no
content.
"""

import errno
import os
from pathlib import Path

import pytest

from agent.backends.apparmor import kernel_access
from agent.core.model import KeyId, Observation, ObservedProfile, Profile, Version, digest
from agent.core.ports import Failed, Installed
from agent.host.filesystem import Host, HostError
from tests.narrowing import instance_of
from tests.property.test_apparmor_policy import profile as compiled
from tests.unit.test_apparmor_faults import apparmor_backend, loaded, node, write

BODY = compiled("web")
DIRECTORY = "web.1"
PROFILE = Profile(
    id=KeyId(kind="apparmor", profile_set="dir test", key="key"),
    version=Version(names=("web",), source_digest=digest(b""), body_digest=digest(BODY)),
    source=b"",
    body_size=len(BODY),
)


class Kernel(Host):
    """A fake kernel that loads one profile, while other programs load other profiles."""

    disturbed = 0
    """The number of next writes during which another program changes the policy."""

    revision = 5

    accepts = 99
    """The number of writes that the kernel accepts. The kernel rejects every later write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[str] = []

    def write_kernel(self, path: str, content: bytes) -> None:
        assert content == BODY
        self.writes.append(path.rpartition("/")[2])
        if len(self.writes) > self.accepts:
            raise HostError(path, OSError(errno.ENOMEM, "no memory"))
        loaded(self.root, DIRECTORY, "web")
        mode = self.path(f"{kernel_access.ROOT}/policy/profiles/{DIRECTORY}/mode")
        os.utime(mode, ns=(1, len(self.writes)))
        self.revision += 1 + (self.disturbed > 0)
        self.disturbed -= 1
        write(self.root, f"{kernel_access.ROOT}/revision", f"{self.revision}\n")


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    """Return a host with a kernel that shows no content and has loaded no profiles."""
    node(tmp_path, revision="5\n")
    write(tmp_path, "/proc/sys/kernel/random/boot_id", "b-o-o-t\n")
    (tmp_path / "var/lib/profile-loader").mkdir(parents=True)
    return Kernel(tmp_path)


def observed(host: Kernel) -> ObservedProfile:
    """Return the observation of the profile by a new agent."""
    return instance_of(apparmor_backend(host).observe(["web"], []), Observation).profiles["web"]


@pytest.mark.parametrize("disturbed", [0, 1, 4])
def test_a_load_is_repeated_until_it_is_the_only_change(host: Kernel, disturbed: int) -> None:
    """The agent repeats a load until no other program changes the policy at the same time.

    A repeated load keeps the object.
    """
    host.disturbed = disturbed
    result = apparmor_backend(host).install(PROFILE, BODY, replaceable=())
    path = f"{kernel_access.ROOT}/policy/profiles/{DIRECTORY}"
    evidence = frozenset({f"object:b-o-o-t:{path}:{disturbed + 1}"})
    assert result == Installed(evidence={"web": evidence}, modes={"web": "enforce"})
    assert host.writes == [".load"] + [".replace"] * disturbed
    assert observed(host) == ObservedProfile(
        evidence=evidence, mode="enforce", is_agent_object=True, is_readable=False
    )


def test_a_load_that_is_always_disturbed_is_verified_by_the_next_pass(host: Kernel) -> None:
    """If another program changes the policy during every load, the installation counts as failed,
    but the agent owns the object.
    """
    host.disturbed = 99
    failed = apparmor_backend(host).install(PROFILE, BODY, replaceable=())
    assert isinstance(failed, Failed)
    assert failed.finding.code == "verify_failed"
    assert len(host.writes) == 5
    assert observed(host).is_agent_object is True
    host.disturbed = 0
    assert isinstance(apparmor_backend(host).install(PROFILE, BODY, replaceable=["web"]), Installed)


def test_a_loaded_policy_whose_repeated_load_is_rejected_is_not_verified(host: Kernel) -> None:
    """If the kernel rejects only the repeated load, the profile counts as loaded but not verified.

    With another code, the ledger would lose the record of the profile.
    """
    host.disturbed, host.accepts = 1, 1
    failed = apparmor_backend(host).install(PROFILE, BODY, replaceable=())
    assert isinstance(failed, Failed)
    assert (failed.finding.code, host.writes) == ("verify_failed", [".load", ".replace"])
    assert "ENOMEM" in failed.finding.message
    assert observed(host).is_agent_object is True


def test_a_rejected_first_load_is_reported_as_rejected(host: Kernel) -> None:
    """If the kernel rejects the first load, the finding has the code `kernel_refused`."""
    host.accepts = 0
    failed = apparmor_backend(host).install(PROFILE, BODY, replaceable=())
    assert isinstance(failed, Failed)
    assert (failed.finding.code, host.writes) == ("kernel_refused", [".load"])


def test_a_foreign_object_stays_foreign_when_the_agent_replaces_it(host: Kernel) -> None:
    """If the agent replaces a foreign object with the same name, the object stays foreign."""
    host.write_kernel(".load", BODY)
    assert isinstance(
        apparmor_backend(host).install(PROFILE, BODY, replaceable=["web"], foreign=["web"]),
        Installed,
    )
    assert observed(host).is_agent_object is False
