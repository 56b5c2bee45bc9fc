"""A change from the API server is in a real kernel, and on the label, within a second."""

import pytest

from tests.system import busy
from tests.system.cluster import NAMESPACE
from tests.system.label_kernel import ABSENT, AWAY, CHANGES, DOMAIN, expected, measured

SECONDS = 1.0


@pytest.fixture(scope="module")
def seen():
    """Give what was measured, once for all tests."""
    return measured()


def median(seconds):
    return sorted(seconds)[len(seconds) // 2]


def test_a_changed_profile_is_in_the_kernel_and_on_the_label_within_a_second(seen):
    """From the API server's answer to the policy in the kernel and its digest on the Node."""
    assert len(seen.label) == len(seen.kernel) == CHANGES
    most = busy.within(SECONDS, seen.short)  # an emulated guest needs a CPU of its own
    assert median(seen.kernel) < most, sorted(seen.kernel)
    assert median(seen.label) < most, sorted(seen.label)


def test_the_label_follows_the_kernel(seen):
    """No label is seen before the kernel holds what it says: verified first, told then."""
    early = [pair for pair in zip(seen.kernel, seen.label, strict=True) if pair[0] >= pair[1]]
    assert early == []


def test_mode_and_digest_change_together_and_never_go(seen):
    """No change takes the labels off, or shows the mode of one version with another's digest."""
    assert seen.labels == [expected(one) for one in range(CHANGES + 2)]


def test_the_kernel_goes_from_each_version_to_the_next(seen):
    """Nothing lies between two versions; while the API is away, what goes is the last again."""
    away = [ABSENT, seen.held[CHANGES]] * (AWAY + 1)
    assert seen.kernels == [*seen.held[: CHANGES + 1], *away, seen.held[CHANGES + 1]]


def test_the_profiles_of_the_manifests_are_there_too(seen):
    """The sets beside the one that changes are ready, by the rights of the manifests alone."""
    sets = {key: value for key, value in seen.shipped.items() if key.startswith("set.")}
    names = ("node-profiles", "node-profiles-2", "web")
    assert sets == {f"set.{DOMAIN}/{NAMESPACE}__{name}": "ready" for name in names}
    assert seen.shipped[f"{DOMAIN}/apparmor"] == "enabled"


def test_without_an_api_server_what_is_taken_away_comes_back(seen):
    """The last good version is restored, also by an agent that has but its ledger; labels stay.

    The change that was made meanwhile comes when the API server is back.
    """
    assert median(seen.restored) < busy.within(SECONDS, seen.away_short), sorted(seen.restored)
    assert seen.away == [expected(CHANGES)] * (AWAY + 1)
    assert seen.caught_up < 60.0
