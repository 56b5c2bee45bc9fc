"""Tests in which another program removes a profile, and tests of the alerts in a real
Prometheus.
"""

import contextlib
import tempfile
from pathlib import Path

import yaml

from tests.system.node.lab import until
from tests.system.node.pods import enforced, pod, text
from tests.system.test_prometheus import Prometheus

# The script reads the kernel's list until the list contains the profile again. During this loop,
# the script starts no process.
UNLOADED = """
pause=$(mktemp -u); mkfifo $pause; exec 9<> $pause; rm $pause
list=/sys/kernel/security/apparmor/profiles
echo -n NAME > /sys/kernel/security/apparmor/.remove
gone=$(date +%s%N)
found=
while [ -z "$found" ]; do
    while read -r name _; do [ "$name" = NAME ] && found=1; done < $list
    [ -n "$found" ] || read -r -t 0.01 -u 9
done
echo $(( ($(date +%s%N) - gone) / 1000000 ))
"""


def unloaded(node, name):
    """Remove a profile as another program would, and return the milliseconds until the agent has
    restored it.
    """
    return int(node.run(UNLOADED.replace("NAME", name), seconds=30))


def provide_and_wait(lab, name):
    """Add a profile to a ConfigMap, and wait for the label of the profile.

    The pass that sets the label also records the confined processes. Between passes, the agent
    records confined processes every few seconds.
    """
    more = f"{name}-2"
    lab.config_map(name, {name: text(name), more: text(more)})
    until(lambda: enforced(more).items() <= lab.labels().items(), "another pass")


def container(lab, name):
    """Return the first 12 digits of the ID of a pod's container."""
    (status,) = lab.pod(name)["status"]["containerStatuses"]
    return status["containerID"].partition("://")[2][:12]


def test_an_unloaded_profile_is_restored_and_the_unconfined_pod_is_reported(lab, node):
    """If another program removes a profile, the agent restores it. An Event contains the name of
    the unconfined pod, and a restarted pod is confined.
    """
    lab.config_map("pl-out", {"pl-out": text("pl-out")})
    lab.cluster.apply(pod("victim", apparmor="pl-out", selector=enforced("pl-out")))
    lab.until_running("victim")
    pid = node.pid("victim")
    provide_and_wait(lab, "pl-out")
    with node.recorded_labels(pid) as looks:
        milliseconds = unloaded(node, "pl-out")
    print(f"\nan unloaded profile: back after {milliseconds} ms")
    # On an idle machine, the restoration in an emulated guest takes hundreds of milliseconds.
    assert milliseconds < 2_000
    # This assertion proves that the observations in the other tests would detect an unconfined
    # process.
    assert (node.attribute(pid), f"{pid} unconfined" in looks) == ("unconfined", True)

    def losses():
        notes = [note for reason, note in lab.events() if reason == "ConfinementLost"]
        return [note for note in notes if '"pl-out"' in note]

    (note,) = until(losses, "the Event")
    uid = lab.pod("victim")["metadata"]["uid"]
    assert f"pid {pid} (pod {uid}, container {container(lab, 'victim')})" in note

    lab.delete("victim")
    lab.cluster.apply(pod("victim", apparmor="pl-out", selector=enforced("pl-out")))
    lab.until_running("victim")
    assert node.attribute(node.pid("victim")) == "pl-out (enforce)"
    lab.delete("victim")


@contextlib.contextmanager
def scraping(lab, node, folder):
    """Yield a Prometheus server that uses the shipped rules and scrapes the agent's pod."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    made = yaml.safe_load(Path("manifests/monitoring/prometheusrule.yaml").read_text())
    (folder / "rules.yaml").write_text(yaml.safe_dump(made["spec"]))
    with node.relayed(lab.until_agent()["status"]["podIP"]) as address:
        one = Prometheus(folder, address)
        try:
            yield one
        finally:
            one.stop()


def until_alerts(prometheus, *expected):
    """Wait until Prometheus has exactly these alerts in these states."""

    def alerts():
        result = [dict(item) for item in prometheus.query("ALERTS")]
        return {(item["alertname"], item["alertstate"]) for item in result}

    until(lambda: alerts() == set(expected), lambda: f"{expected}, but {alerts()}")


def test_prometheus_alerts_on_a_rejected_update_and_lost_confinement(lab, node, tmp_path):
    """A rejected update and lost confinement raise the expected alerts, and no alert remains after
    the fault.
    """
    lab.config_map("pl-seen", {"pl-seen": text("pl-seen")})
    lab.cluster.apply(pod("seen", apparmor="pl-seen", selector=enforced("pl-seen")))
    lab.until_running("seen")
    with scraping(lab, node, tmp_path) as prometheus:
        prometheus.until('up{job="profile-loader"}', [1.0])
        prometheus.until("profile_loader_converged", [1.0])
        until_alerts(prometheus)

        # One alert fires 5 minutes and the other alert 15 minutes after the beginning of the fault.
        lab.config_map("pl-seen", {"pl-seen": "profile pl-seen { fil, }"})
        until_alerts(
            prometheus,
            ("ProfileLoaderProfileRejected", "pending"),
            ("ProfileLoaderNotConverged", "pending"),
        )
        lab.config_map("pl-seen", {"pl-seen": text("pl-seen")})
        until_alerts(prometheus)

        provide_and_wait(lab, "pl-seen")
        unloaded(node, "pl-seen")
        until_alerts(
            prometheus,
            ("ProfileLoaderConfinementLost", "firing"),
            # The alert about lost confinement stays active until the pod is restarted.
            ("ProfileLoaderNotConverged", "pending"),
        )
        lab.delete("seen")
        until_alerts(prometheus)
