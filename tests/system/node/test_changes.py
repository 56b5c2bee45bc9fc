"""Tests that update, break and remove profiles while pods use them."""

import time

import pytest

from tests.system.guest import pace
from tests.system.node.lab import until
from tests.system.node.node import MIN_OBSERVATIONS
from tests.system.node.pods import SLEEP, enforced, pod, refusing_mkdir, text

LABEL_SECONDS = 15.0  # the time from the removal of a key to the removal of its label
WRITER = (
    "while true; do echo x 2> /dev/null > /tmp/x && echo could || echo could not; sleep 1; done"
)


def test_an_update_applies_to_running_pods(lab, node):
    """During an update, a running process stays confined, and the new AppArmor rule applies to it.

    A container keeps its seccomp filter until it restarts, and then uses the new file.
    """
    lab.config_map("update", {"pl-update": text("pl-update")})
    lab.config_map("update-2", {"update.json": refusing_mkdir(95)})
    lab.cluster.apply(
        pod("writer", WRITER, apparmor="pl-update", selector=enforced("pl-update")),
        pod("filtered", f"trap 'exit 0' TERM; {SLEEP} & wait", seccomp="update.json"),
    )
    for name in ("writer", "filtered"):
        lab.until_running(name)
    until(lambda: node.log("writer").endswith("could\n"), "writer writes")
    assert "Operation not supported" in node.execute("filtered", "mkdir /tmp/d")
    writer, filtered = node.pid("writer"), node.pid("filtered")

    with node.recorded_labels(writer) as seen:
        lab.config_map("update", {"pl-update": text("pl-update", "deny /tmp/** w")})
        lab.config_map("update-2", {"update.json": refusing_mkdir(1)})
        until(lambda: node.log("writer").endswith("could not\n"), "the new rule holds")
        until(lambda: node.errno("update.json") == 1, "the new file")
    assert set(seen) == {f"{writer} pl-update (enforce)"}
    assert min(seen.values()) >= MIN_OBSERVATIONS
    assert node.pid("writer") == writer

    assert "Operation not supported" in node.execute("filtered", "mkdir /tmp/d")
    node.run(f"kill {filtered}")

    def restarted():
        (status,) = lab.pod("filtered")["status"]["containerStatuses"]
        return status["restartCount"] == 1 and status["ready"]

    until(restarted, "filtered is restarted")
    assert "Operation not permitted" in node.execute("filtered", "mkdir /tmp/d")


def test_a_broken_update_changes_nothing_for_pods(lab, node):
    """If an update is broken, running pods stay confined, and new pods use the last good version.

    An Event and the metrics show the rejected profile with the reason.
    """
    lab.config_map("broken", {"pl-broken": text("pl-broken", "deny /tmp/** w")})
    lab.cluster.apply(pod("old", apparmor="pl-broken", selector=enforced("pl-broken")))
    lab.until_running("old")
    old = node.pid("old")

    def rejections():
        notes = [note for reason, note in lab.events() if reason == "ProfileRejected"]
        return [note for note in notes if '"pl-broken"' in note]

    with node.recorded_labels(old) as seen:
        lab.config_map("broken", {"pl-broken": "profile pl-broken { fil, }"})
        (note,) = until(rejections, "the Event")
        lab.cluster.apply(pod("new", apparmor="pl-broken", selector=enforced("pl-broken")))
        lab.until_running("new")
    assert set(seen) == {f"{old} pl-broken (enforce)"}
    assert min(seen.values()) >= MIN_OBSERVATIONS
    assert node.pid("old") == old
    assert node.attribute(node.pid("new")) == "pl-broken (enforce)"
    for name in ("old", "new"):
        assert "Permission denied" in node.execute(name, "touch /tmp/x")
    assert note.startswith(
        'apparmor profile "pl-broken" of configmap profile-loader/broken: outdated'
    )
    assert "the last good version stays" in note
    metrics = lab.metrics()
    assert metrics['profile_loader_profiles{kind="apparmor",state="outdated"}'] == 1
    assert metrics['profile_loader_problems{code="parser_rejected"}'] == 1
    lab.config_map("broken", {"pl-broken": text("pl-broken", "deny /tmp/** w")})
    refused = 'profile_loader_problems{code="parser_rejected"}'
    until(lambda: lab.metrics().get(refused, 0.0) == 0.0, "no key is rejected any more")


def test_a_removed_profile_stays_until_its_pod_is_gone(lab, node):
    """If a key is removed, the agent removes the label of the profile immediately.

    The agent removes the profile after the pod has stopped. Continuous observation on the node
    shows that the pod is never unconfined.
    """
    lab.config_map("removed", {"pl-stays": text("pl-stays"), "pl-goes": text("pl-goes")})
    lab.cluster.apply(pod("user", apparmor="pl-goes", selector=enforced("pl-goes")))
    lab.until_running("user")
    user = node.pid("user")
    begin = time.monotonic()
    with node.recorded_labels(user) as seen:
        lab.config_map("removed", {"pl-stays": text("pl-stays")})
        until(lambda: not enforced("pl-goes").items() <= lab.labels().items(), "the label goes")
        unlabelled = time.monotonic() - begin
        assert pace.in_time(unlabelled, LABEL_SECONDS)
        until(lambda: lab.metrics().get('profile_loader_problems{code="in_use"}') == 1, "in use")
        held = time.monotonic() - begin
        assert node.loaded("pl-goes")
        lab.delete("user")
    assert set(seen) - {f"{user} ended"} == {f"{user} pl-goes (enforce)"}
    assert seen[f"{user} pl-goes (enforce)"] >= MIN_OBSERVATIONS
    start = time.monotonic()
    until(lambda: not node.loaded("pl-goes"), "it goes")
    print(
        f"\na removal: label removed after {unlabelled:.1f} s, held for a pod after {held:.1f} s, "
        f"profile removed {time.monotonic() - start:.1f} s after the pod"
    )
    assert node.loaded("pl-stays")


@pytest.fixture(autouse=True)
def _tidy(lab):
    """Delete the pods of a test."""
    yield
    lab.delete("writer", "filtered", "old", "new", "user", wait=False)
