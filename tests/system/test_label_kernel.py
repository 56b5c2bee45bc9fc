"""Tests that a change on the API server reaches a real kernel and the label within a second."""

import pytest

from tests.system import busy
from tests.system.cluster import NAMESPACE
from tests.system.label_kernel import ABSENT, CHANGES, DOMAIN, RESTORES, expected, measured

SECONDS = 1.0


@pytest.fixture(scope="module")
def seen():
    """Return the measurements of one run for all tests."""
    return measured()


def median(seconds):
    return sorted(seconds)[len(seconds) // 2]


def test_a_changed_profile_is_in_the_kernel_and_on_the_label_within_a_second(seen):
    """Less than a second passes between the response of the API server and the new digest label on
    the Node.
    """
    assert len(seen.label) == len(seen.kernel) == CHANGES
    most = busy.within(SECONDS, seen.waiting_fractions)  # An emulated guest needs its own CPU.
    assert median(seen.kernel) < most, sorted(seen.kernel)
    assert median(seen.label) < most, sorted(seen.label)


def test_the_label_follows_the_kernel(seen):
    """A label appears only after the kernel has loaded the version that the label describes."""
    early = [pair for pair in zip(seen.kernel, seen.label, strict=True) if pair[0] >= pair[1]]
    assert early == []


def test_mode_and_digest_change_together(seen):
    """No change removes the labels, or combines the mode of one version with the digest of another
    version.
    """
    assert seen.labels == [expected(item) for item in range(CHANGES + 2)]


def test_the_kernel_changes_from_each_version_to_the_next(seen):
    """No observed state of the kernel mixes two versions. Without an API server, the agent restores
    the last version.
    """
    away = [ABSENT, seen.versions[CHANGES]] * (RESTORES + 1)
    assert seen.kernels == [*seen.versions[: CHANGES + 1], *away, seen.versions[CHANGES + 1]]


def test_the_profiles_of_the_manifests_are_installed(seen):
    """The agent also installs the other profile sets of the manifests."""
    sets = {key: value for key, value in seen.shipped.items() if key.startswith("set.")}
    names = ("node-profiles", "node-profiles-2", "web")
    assert sets == {f"set.{DOMAIN}/{NAMESPACE}__{name}": "ready" for name in names}
    assert seen.shipped[f"{DOMAIN}/apparmor"] == "enabled"


def test_without_an_api_server_a_removed_profile_is_restored(seen):
    """Without an API server, the agent restores a removed profile from its ledger, and the labels
    stay.

    A change during the outage is installed as soon as the API server responds.
    """
    assert median(seen.restored) < busy.within(SECONDS, seen.away_short), sorted(seen.restored)
    assert seen.away == [expected(CHANGES)] * (RESTORES + 1)
    assert seen.caught_up < 60.0
