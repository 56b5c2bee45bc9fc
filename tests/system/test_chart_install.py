"""Tests that helm installs, upgrades, rolls back and uninstalls the chart on a real API server.

A real agent runs during the whole test, with a token of the chart's service account. The name of
this account differs from the name of the chart. During the whole test, the labels of the agent's
Node stay, and the admission policy limits the token.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time

import pytest

from agent.core import labels
from agent.kube import client, errors
from tests.system import charts, kustomize
from tests.system.cluster import NAMESPACE, Cluster, until
from tests.system.test_policy_install import (
    ENFORCED_SECONDS,
    Attempts,
    api,
    end_pod,
    is_by_policy,
    labelled,
    limited,
    token_of,
)

BOOT_ID = "11111111-2222-3333-4444-555555555555"
ACCOUNT = "renamed"
PROFILES = {
    f"seccomp.{labels.DOMAIN}/prevent-chmod": "installed",
    f"seccomp.{labels.DOMAIN}/profiles__audit.json": "installed",
    f"seccomp.{labels.DOMAIN}/profiles__fine-grained.json": "installed",
    f"seccomp.{labels.DOMAIN}/profiles__violation.json": "installed",
}
POLICY = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/profile-loader"
BINDING = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/profile-loader"
WAIT = ("--atomic", "--timeout", "2m")


@pytest.fixture(scope="module")
def cluster():
    """A control plane with two Nodes and the controllers that an installation needs."""
    with Cluster() as one:
        one.start_controllers(
            "daemonset-controller", "namespace-controller", "serviceaccount-controller"
        )
        for name in ("own", "other"):
            one.node(name, BOOT_ID)
        yield one


@pytest.fixture(scope="module")
def chart(tmp_path_factory):
    """Return a copy of the chart that the API server of the tests accepts."""
    return charts.without_version(tmp_path_factory.mktemp("chart"))


def helm(cluster, *words, user="admin", check=True):
    """Run helm in the agent's namespace."""
    kubeconfig = cluster.folder / f"{user}.kubeconfig"
    words = (*words, "--namespace", NAMESPACE)
    return charts.run("helm", *words, kubeconfig=kubeconfig, check=check)


def profile_labels(cluster):
    """Return the labels of the profiles on the agent's Node."""
    return {
        key: value
        for key, value in cluster.labels("own").items()
        if key.startswith(f"seccomp.{labels.DOMAIN}/")
    }


@contextlib.contextmanager
def running_agent(kubeconfig, root, log):
    """Run an agent for the Node `own`."""
    boot = root / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text(BOOT_ID)
    command = [
        sys.executable, "-m", "agent", "--kinds", "seccomp", "--http-address", "off",
        "--source", f"configmaps:{NAMESPACE}?profile-loader.io/profiles=true",
        "--node-name", "own", "--kubeconfig", str(kubeconfig), "--host-root", str(root),
        "--removal-grace", "1",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


class Observer:
    """Reads the labels of the Node repeatedly, and records each distinct set of labels."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.different = []
        self.reads = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.done.wait(0.1):
            self.reads += 1
            result = profile_labels(self.cluster)
            if result != PROFILES:
                self.different.append(result)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def may_list_pods(agent):
    """Return whether the agent's token may list pods."""
    try:
        agent.get("/api/v1/pods")
    except errors.StatusError:
        return False
    return True


def test_the_life_of_a_release(cluster, chart, tmp_path):
    """After every step in the life of a Helm release, the labels are still set, and the policy
    restricts the renamed account.
    """
    helm(
        cluster, "install", charts.RELEASE, chart, *WAIT,
        "--set", f"serviceAccount.name={ACCOUNT}",
    )  # fmt: skip
    kubeconfig = cluster.write_kubeconfig("agent", cluster.agent_token("own", account=ACCOUNT))
    agent = client.Api(kubeconfig=str(kubeconfig))
    refusals = limited(agent)
    assert [is_by_policy(refusal) for refusal in refusals] == [True, True], refusals
    root = tmp_path / "host"
    assert labelled(agent, "own", f"seccomp.{labels.DOMAIN}/a.json", None) == ""
    with running_agent(kubeconfig, root, tmp_path / "log"):
        until(lambda: profile_labels(cluster) == PROFILES, lambda: profile_labels(cluster))
        with Observer(cluster) as observer, Attempts(agent) as attempts:
            words = ("--set", f"serviceAccount.name={ACCOUNT},podAware=true,image.tag=next")
            taint = "startupTaint=profile-loader.io/startup"
            helm(cluster, "upgrade", charts.RELEASE, chart, *WAIT, *words, "--set", taint)
            until(lambda: may_list_pods(agent), "the right of the component")
            variables = json.dumps(cluster.get(POLICY)["spec"]["variables"])
            assert "profile-loader.io/startup" in variables
            helm(cluster, "rollback", charts.RELEASE, "1", "--wait", "--timeout", "2m")
            until(lambda: not may_list_pods(agent), "the removal of the right")
            assert "profile-loader.io/startup" not in json.dumps(cluster.get(POLICY)["spec"])
            helm(cluster, "uninstall", charts.RELEASE, "--wait")
            reads = observer.reads + 10
            until(lambda: observer.reads >= reads, "more reads of the Node")
    assert (observer.different, observer.reads > 10) == ([], True)
    assert (attempts.allowed, attempts.refused_by_policy > 10) == (0, True)
    print(f"{attempts.refused_by_policy} attempts were refused by the policy")
    # Helm removes every object of the chart. The profiles, their labels and the ledger stay.
    assert profile_labels(cluster) == PROFILES
    assert (root / "var/lib/kubelet/seccomp/prevent-chmod").exists()
    kinds = "all,configmap,sa,role,rolebinding,clusterrole,clusterrolebinding,resourcequota"
    kinds += ",validatingadmissionpolicy,validatingadmissionpolicybinding"
    words = ("-l", "app.kubernetes.io/part-of=profile-loader", "-o", "name")
    assert cluster.kubectl("get", kinds, "-A", *words) == ""


ACCOUNT_OF_THE_RELEASE = {
    "apiVersion": "v1",
    "kind": "ServiceAccount",
    "metadata": {
        "name": charts.RELEASE,
        "namespace": NAMESPACE,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {
            "meta.helm.sh/release-name": charts.RELEASE,
            "meta.helm.sh/release-namespace": NAMESPACE,
        },
    },
}


@pytest.mark.parametrize("first", ["policy", "everything"])
def test_an_installation_with_an_existing_token(cluster, chart, tmp_path, first):
    """If the policy of the chart is applied first, helm adopts it, and an existing token can never
    patch another Node. The other case only shows how many patches are possible without this step.
    """
    cluster.apply(ACCOUNT_OF_THE_RELEASE)
    agent = api(cluster, token_of(cluster, charts.RELEASE))
    applied = None
    if first == "policy":
        words = ("template", charts.RELEASE, chart, "--show-only", "templates/policy.yaml")
        policy = tmp_path / "policy.yaml"
        policy.write_text(helm(cluster, *words).stdout)
        cluster.kubectl("apply", "--server-side", "-f", policy)
        applied = cluster.get(POLICY)["metadata"]["uid"]
        enforced = time.monotonic() + ENFORCED_SECONDS
        until(lambda: time.monotonic() > enforced, "some seconds")
    try:
        with Attempts(agent) as attempts:
            helm(cluster, "install", charts.RELEASE, chart, *WAIT)
            until(lambda: attempts.refused_by_policy, "a denial by the policy")
        print(f"{first} first: {attempts.allowed} foreign patches in {attempts.seconds():.2f} s")
        assert attempts.allowed == 0 or first == "everything"
        assert applied in (None, cluster.get(POLICY)["metadata"]["uid"])
        helm(cluster, "upgrade", charts.RELEASE, chart, *WAIT, "--set", "podAware=true")
    finally:
        end_pod(cluster)
        helm(cluster, "uninstall", charts.RELEASE, "--wait")
    assert cluster.get(POLICY) is None


def test_a_failed_policy_leaves_no_rights(cluster, chart):
    """If a user may not create the policy, `helm install --atomic` fails and removes the
    permissions that it created.
    """
    groups = '"", apps, rbac.authorization.k8s.io, events.k8s.io, profile-loader.io'
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "without-policies"},
        "rules": [
            {
                "apiGroups": [group.strip('" ') for group in groups.split(",")],
                "resources": ["*"],
                "verbs": ["*"],
            }
        ],
    }
    cluster.apply(role)
    cluster.kubectl("-n", "default", "create", "serviceaccount", "limited")
    words = ("--clusterrole=without-policies", "--serviceaccount=default:limited")
    cluster.kubectl("create", "clusterrolebinding", "limited", *words)
    token = cluster.kubectl("-n", "default", "create", "token", "limited").strip()
    cluster.write_kubeconfig("limited", token)
    words = ("install", charts.RELEASE, chart, *WAIT)
    result = helm(cluster, *words, user="limited", check=False)
    assert result.returncode != 0
    assert "validatingadmissionpolicies" in result.stderr
    assert cluster.get(BINDING) is None
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/profile-loader"
    assert cluster.get(path) is None


def test_the_chart_takes_over_an_installation_of_kustomize(cluster, chart, tmp_path):
    """With `--take-ownership`, helm takes over an installation of kustomize without deleting an
    object.
    """
    folder = kustomize.write(tmp_path / "cluster")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", folder)
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/profile-loader"
    uids = [cluster.get(place)["metadata"]["uid"] for place in (path, POLICY, BINDING)]
    helm(cluster, "install", charts.RELEASE, chart, *WAIT, "--take-ownership")
    after = [cluster.get(place)["metadata"] for place in (path, POLICY, BINDING)]
    assert [item["uid"] for item in after] == uids
    assert {item["labels"]["app.kubernetes.io/managed-by"] for item in after} == {"Helm"}
    helm(cluster, "uninstall", charts.RELEASE)
    assert cluster.get(BINDING) is None
