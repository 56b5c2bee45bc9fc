"""Tests of the admission policy while the manifests are installed, renamed and removed."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from agent.kube import client, errors
from tests.system import kustomize
from tests.system.cluster import MERGE_PATCH, NAMESPACE, Cluster, until

ROOT = Path(__file__).parents[2] / "manifests"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
OWN = f"seccomp.{DOMAIN}/a.json"
POLICIES = "validatingadmissionpolicies,validatingadmissionpolicybindings"


@pytest.fixture(scope="module", params=["current", pytest.param("older", marks=pytest.mark.older)])
def cluster(request):
    """A control plane that also deletes the content of namespaces."""
    with Cluster(older=request.param == "older") as one:
        one.start_controllers("namespace-controller")
        for name in ("own", "other"):
            one.node(name)
        yield one


@pytest.fixture
def folder(cluster, tmp_path):
    """A copy of the manifests. After the test, the applied objects are deleted."""
    shutil.copytree(ROOT, tmp_path / "manifests")
    yield tmp_path / "manifests"
    cluster.kubectl(
        "delete", "clusterrolebindings", "-l", "app.kubernetes.io/part-of=profile-loader"
    )
    cluster.kubectl("delete", POLICIES, "--all")
    for namespace in (NAMESPACE, "other"):
        end_pod(cluster, namespace)
        cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found")


def end_pod(cluster, namespace=NAMESPACE):
    """Delete the agent's pod completely, as a kubelet does."""
    words = ["--force", "--grace-period=0", "--ignore-not-found"]
    cluster.kubectl("-n", namespace, "delete", "pod", "agent", *words)


def applied(cluster, folder):
    """Apply a folder with the documented command."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", folder)


def token_of(cluster, account="profile-loader", namespace=NAMESPACE):
    """Return a token of the agent's pod on the Node `own`."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "namespace": namespace},
        "spec": {
            "nodeName": "own",
            "serviceAccountName": account,
            "containers": [{"name": "agent", "image": "agent"}],
        },
    }
    cluster.apply(pod)
    words = ["--bound-object-kind", "Pod", "--bound-object-name", "agent"]
    return cluster.kubectl("-n", namespace, "create", "token", account, *words).strip()


def api(cluster, token):
    return client.Api(kubeconfig=str(cluster.write_kubeconfig("as-agent", token)))


def labelled(agent, node, key=OWN, value="installed"):
    """Set a label. Return the reason if the API server denies the request, or ""."""
    body = {"metadata": {"labels": {key: value}}}
    try:
        agent.send("PATCH", f"/api/v1/nodes/{node}", body, content_type=MERGE_PATCH)
    except errors.StatusError as error:
        return error.message
    return ""


def limited(agent):
    """Wait until the agent may set its labels, and return the reasons with which all other changes
    are denied.
    """
    until(lambda: labelled(agent, "own") == "", lambda: labelled(agent, "own"))
    until(lambda: labelled(agent, "other"), "a policy")
    return [labelled(agent, "own", "mine", "x"), labelled(agent, "other")]


def is_by_policy(message):
    return "ValidatingAdmissionPolicy" in message


def test_the_policy_is_effective_after_uninstall_and_install(cluster, folder):
    """After an uninstallation and a new installation, the policy works without a restart of the API
    server.
    """
    for _ in range(3):
        applied(cluster, folder / "base")
        refusals = limited(api(cluster, token_of(cluster)))
        assert [is_by_policy(refusal) for refusal in refusals] == [True, True], refusals
        cluster.kubectl("-n", NAMESPACE, "delete", "daemonset", "profile-loader")
        end_pod(cluster)
        cluster.kubectl("delete", "clusterrolebinding", "profile-loader")
        cluster.kubectl("delete", "-k", folder / "base", "--ignore-not-found")


def test_a_policy_that_is_applied_again_is_effective(cluster, folder):
    """If an administrator deleted only the policy, it is effective again after the manifests are
    applied.
    """
    applied(cluster, folder / "base")
    agent = api(cluster, token_of(cluster))
    limited(agent)
    cluster.kubectl("delete", POLICIES, "--all")
    until(lambda: labelled(agent, "other") == "", "the end of the policy")
    applied(cluster, folder / "base")
    refusals = limited(agent)
    assert [is_by_policy(refusal) for refusal in refusals] == [True, True], refusals


RENAMED = {
    "prefix": ({"namePrefix": "a-"}, "a-profile-loader", NAMESPACE),
    "suffix": ({"nameSuffix": "-b"}, "profile-loader-b", NAMESPACE),
    "namespace": ({"namespace": "other"}, "profile-loader", "other"),
    "settings": (
        {
            "components": ["../components/settings"],
            "configMapGenerator": [
                {
                    "name": "profile-loader-settings",
                    "behavior": "merge",
                    "literals": ["namespace=other"],
                }
            ],
        },
        "profile-loader",
        "other",
    ),
    "all": (
        {"namePrefix": "a-", "nameSuffix": "-b", "namespace": "other"},
        "a-profile-loader-b",
        "other",
    ),
}


@pytest.mark.parametrize("how", RENAMED)
def test_a_renamed_agent_is_limited(cluster, folder, how):
    """If a user renames the account and the policy with kustomize, the policy still limits the
    account.
    """
    change, account, namespace = RENAMED[how]
    applied(cluster, kustomize.write(folder / "renamed", root=folder, **change))
    agent = api(cluster, token_of(cluster, account, namespace))
    refusals = limited(agent)
    assert [is_by_policy(refusal) for refusal in refusals] == [True, True], refusals
    taint = {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}
    with pytest.raises(errors.StatusError, match="ValidatingAdmissionPolicy"):
        agent.send("PATCH", "/api/v1/nodes/other", taint, content_type=MERGE_PATCH)


def test_other_accounts_are_not_limited(cluster, folder):
    """The policy restricts neither administrators nor other accounts that may patch Nodes."""
    applied(cluster, folder / "base")
    limited(api(cluster, token_of(cluster)))
    cluster.kubectl("create", "clusterrole", "patches", "--verb=get,patch", "--resource=nodes")
    for account, role in (("patches", "patches"), ("everything", "cluster-admin")):
        cluster.kubectl("-n", "default", "create", "serviceaccount", account)
        words = [f"--clusterrole={role}", f"--serviceaccount=default:{account}"]
        cluster.kubectl("create", "clusterrolebinding", account, *words)
        other = api(cluster, cluster.kubectl("-n", "default", "create", "token", account).strip())
        until(lambda other=other: labelled(other, "other", "theirs", "x") == "", "the role")
        cluster.kubectl("label", "node", "other", "theirs-")


class Attempts:
    """Repeated patches of another Node with the agent's token."""

    def __init__(self, agent):
        self.agent = agent
        self.done = threading.Event()
        self.allowed = 0
        self.allowed_at = []
        self.refused_by_policy = 0
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        number = 0
        while not self.done.is_set():
            number += 1
            message = labelled(self.agent, "other", "mine", str(number))
            if not message:
                self.allowed += 1
                self.allowed_at.append(time.monotonic())
            self.refused_by_policy += is_by_policy(message)

    def seconds(self):
        """Return the time between the first and the last patch that was allowed."""
        return self.allowed_at[-1] - self.allowed_at[0] if self.allowed_at else 0.0

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


ENFORCED_SECONDS = 5.0  # The API server reads new policies once per second.


@pytest.mark.parametrize("first", ["policy", "everything"])
def test_the_policy_exists_before_the_permissions(cluster, folder, first):
    """If a user applies the policy first, an existing token never gets the permission to patch
    another Node.

    If a user applies all manifests at once, the API server stores the policy before the
    permissions, and enforces the policy at most a second later.
    """
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("-n", NAMESPACE, "create", "serviceaccount", "profile-loader")
    agent = api(cluster, token_of(cluster))
    with Attempts(agent) as attempts:
        if first == "policy":
            cluster.kubectl("apply", "--server-side", "-f", folder / "base/policy.yaml")
            enforced = time.monotonic() + ENFORCED_SECONDS
            until(lambda: time.monotonic() > enforced, "some seconds")
        applied(cluster, folder / "base")
        until(lambda: attempts.refused_by_policy, "a denial by the policy")
    seconds = attempts.seconds()
    print(f"{first} applied first: {attempts.allowed} patches of a foreign Node in {seconds:.2f} s")
    assert attempts.allowed == 0 or first == "everything"
    order = [
        json.loads(cluster.kubectl("get", kind, "profile-loader", "-o", "json"))["metadata"]
        for kind in (*POLICIES.split(","), "clusterrolebinding")
    ]
    versions = [int(item["resourceVersion"]) for item in order]
    assert versions == sorted(versions)
