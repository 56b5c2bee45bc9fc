"""Tests of the permissions of the agent's token, with the manifests on a real API server."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from agent.backends.apparmor import compiled_policy
from agent.core import labels as core
from agent.kube import client, errors, node_labels
from agent.kube.own_node import NodeOptions, node_metadata
from tests.reports import report
from tests.system import kustomize
from tests.system.cluster import MERGE_PATCH, NAMESPACE, Cluster, until

ROOT = Path(__file__).parents[2] / "manifests"
DOMAIN = "profile-loader.node-restriction.kubernetes.io"
OWN = f"seccomp.{DOMAIN}/a.json"


@pytest.fixture(scope="module", params=["current", pytest.param("older", marks=pytest.mark.older)])
def cluster(request):
    """A control plane whose API server has either the newest or the oldest supported version."""
    with Cluster(older=request.param == "older") as one:
        one.kubectl("create", "priorityclass", "unused", "--value", "1")
        applied(one)
        for name in ("own", "other"):
            one.node(
                name,
                f"boot of {name}",
                labels={"kept": "yes", f"set.former.example/{name}": "ready"},
            )
        yield one


def applied(cluster, *components, root=ROOT):
    """Apply the base with components as a user would, and return the standard error of kubectl."""
    result = cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-",
        stdin=kustomize.text(*components, root=root), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stderr


def api(cluster, token, folder):
    path = folder / "kubeconfig"
    config = json.loads(cluster.write_kubeconfig("as-agent", token).read_text())
    path.write_text(json.dumps(config))
    return client.Api(kubeconfig=str(path))


@pytest.fixture(scope="module")
def agent(cluster, tmp_path_factory):
    """The client of an agent whose pod runs on the Node `own`."""
    own = api(cluster, cluster.agent_token("own"), tmp_path_factory.mktemp("own"))
    # The policy becomes effective shortly after its creation. Each attempt sets a different label
    # value, because the policy always allows a request that does not change the Node.
    tries = itertools.count()
    until(lambda: denial(lambda: labels(own, "own", early=str(next(tries)))), "the policy to hold")
    cluster.kubectl("label", "node", "own", "early-")
    return own


def labels(agent, node, **changes):
    """Merge labels into a Node. The value None removes a label."""
    body = {"metadata": {"labels": changes.pop("labels", changes)}}
    return agent.send("PATCH", f"/api/v1/nodes/{node}", body, content_type=MERGE_PATCH)


def merged(agent, body, node="own", below=""):
    return agent.send("PATCH", f"/api/v1/nodes/{node}{below}", body, content_type=MERGE_PATCH)


def refusal(call):
    with pytest.raises(errors.StatusError) as denial:
        call()
    return denial.value


def denial(call):
    """Return the message with which the API server denies a call, or "" if it allows the call."""
    try:
        call()
    except errors.StatusError as error:
        return error.message
    return ""


# --- the policy ----------------------------------------------------------------------------------


def test_the_agents_own_apply_is_allowed(cluster, agent):
    """The policy allows the agent to set, change and remove its labels, each with one apply."""
    path = "/api/v1/nodes/own"

    def apply(**wanted):
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "own", "labels": wanted}}
        until_enforced = agent.apply(path, body)
        return {
            key: value
            for key, value in until_enforced["metadata"]["labels"].items()
            if DOMAIN in key
        }

    wanted = {
        f"{DOMAIN}/apparmor": "enabled",
        OWN: "installed",
        f"apparmor.{DOMAIN}/web": "enforce",
        f"set.{DOMAIN}/profiles": "ready",
        f"seccomp-digest.{DOMAIN}/a.json": "0123456789ab",
    }
    assert apply(**wanted) == wanted
    changed = {**wanted, f"apparmor.{DOMAIN}/web": "complain"}
    assert apply(**changed) == changed
    for mode in compiled_policy.MODES.values():
        assert apply(**{f"apparmor.{DOMAIN}/web": mode}) == {f"apparmor.{DOMAIN}/web": mode}
    own = node_labels.NodeLabeler(
        agent, NodeOptions(name="own", domain=DOMAIN), lambda: "boot of own"
    )
    own.remove_labels()
    assert not [key for key in cluster.labels("own") if DOMAIN in key]
    assert cluster.labels("own")["kept"] == "yes"


DENIED = {
    "another Node": (lambda a: labels(a, "other", labels={OWN: "installed"}), "not to"),
    "a foreign label added": (lambda a: labels(a, "own", mine="x"), "added or changed"),
    "a foreign label changed": (lambda a: labels(a, "own", kept="no"), "added or changed"),
    "a foreign label removed": (lambda a: labels(a, "own", kept=None), "removed"),
    "every label removed": (lambda a: merged(a, {"metadata": {"labels": None}}), "removed"),
    "a prefix with the same beginning": (
        lambda a: labels(a, "own", labels={f"apparmor.{DOMAIN}.example.org/x": "enforce"}),
        "added or changed",
    ),
    "a key in the domain without a kind": (
        lambda a: labels(a, "own", labels={f"{DOMAIN}/apparmor-x": "enabled"}),
        "added or changed",
    ),
    "a prefix for names": (lambda a: merged(a, {"metadata": {"generateName": "x"}}), "annotations"),
    "a role": (
        lambda a: labels(a, "own", labels={"node-role.kubernetes.io/control-plane": ""}),
        "added or changed",
    ),
    "an invalid value": (lambda a: labels(a, "own", labels={OWN: "owned"}), "a value"),
    "a taint": (
        lambda a: merged(a, {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}),
        "spec",
    ),
    "cordoning": (lambda a: merged(a, {"spec": {"unschedulable": True}}), "spec"),
    "an annotation": (
        lambda a: merged(a, {"metadata": {"annotations": {"a": "b"}}}),
        "annotations",
    ),
    "a finalizer": (
        lambda a: merged(a, {"metadata": {"finalizers": ["example.org/x"]}}),
        "finalizers",
    ),
    "an owner": (
        lambda a: merged(
            a,
            {
                "metadata": {
                    "ownerReferences": [
                        {"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}
                    ]
                }
            },
        ),
        "finalizers and owners",
    ),
}


@pytest.mark.parametrize("what", DENIED)
def test_the_policy_denies_other_changes(agent, cluster, what):
    """Except for changes of the agent's labels on its own Node, the policy denies all changes with
    a reason.
    """
    call, why = DENIED[what]
    before = cluster.get("/api/v1/nodes/own")
    denial = refusal(lambda: call(agent))
    assert (denial.status, denial.reason) == (403, "Forbidden")
    assert "ValidatingAdmissionPolicy 'profile-loader'" in denial.message
    assert why in denial.message
    assert cluster.get("/api/v1/nodes/own") == before


def test_a_token_that_is_bound_to_no_pod_may_change_nothing(cluster, tmp_path):
    """A token that is not bound to a pod contains no Node name, so it cannot change any Node."""
    loose = api(cluster, cluster.agent_token("own", bound=False), tmp_path)
    denial = refusal(lambda: labels(loose, "own", labels={OWN: "installed"}))
    assert (denial.status, "bound to node" in denial.message) == (403, True)


def test_a_wider_role_does_not_bypass_the_policy(cluster, agent):
    """Even if its role grants all permissions on Nodes, the agent cannot create a Node or change
    its status.
    """
    cluster.kubectl(
        "create", "clusterrole", "wide", "--verb=*", "--resource=nodes,nodes/status,nodes/proxy"
    )
    who = f"--serviceaccount={NAMESPACE}:profile-loader"
    cluster.kubectl("create", "clusterrolebinding", "wide", "--clusterrole=wide", who)
    status = "/api/v1/nodes/own/status"
    own = {"metadata": {"labels": {OWN: "installed"}}}
    created = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "made"}}
    calls = (
        lambda: agent.send("PATCH", status, own, content_type=MERGE_PATCH),
        lambda: agent.send("POST", "/api/v1/nodes", created),
        lambda: agent.send("DELETE", "/api/v1/nodes/own", {}),
        lambda: agent.get("/api/v1/nodes/own/proxy/metrics"),
    )
    before = cluster.get("/api/v1/nodes/own")
    try:
        until(lambda: "cannot" not in denial(calls[0]), "the role to be read")
        reported = [denial(call) for call in calls]
    finally:
        cluster.kubectl("delete", "clusterrolebinding/wide", "clusterrole/wide")
    assert ["ValidatingAdmissionPolicy 'profile-loader'" in item for item in reported] == [
        True
    ] * 4, reported
    assert "only update Nodes themselves" in reported[0]
    assert cluster.get("/api/v1/nodes/own") == before
    until(lambda: "cannot" in denial(calls[0]), "the role to be gone")


def test_a_node_that_was_created_again_is_another_node(cluster, tmp_path):
    """When a Node has been deleted and created again, the policy denies the old token, because its
    claims contain the uid of the previous Node.
    """
    cluster.node("anew")
    agent = api(cluster, cluster.agent_token("anew"), tmp_path)
    labels(agent, "anew", labels={OWN: "installed"})
    cluster.kubectl("delete", "node", "anew")
    cluster.node("anew")
    denial = refusal(lambda: labels(agent, "anew", labels={OWN: "installed"}))
    assert "previous Node" in denial.message


def test_labels_of_a_previous_domain_can_be_removed_and_not_added(cluster, agent, tmp_path):
    """When the label domain has changed, the agent may remove its old labels, but may not add such
    labels.
    """
    shutil.copytree(ROOT, tmp_path / "manifests")
    settings = tmp_path / "manifests/base/settings.yaml"
    content = settings.read_text()
    assert 'former-label-domains: ""' in content
    former = "former-label-domains: old.example, former.example"
    settings.write_text(content.replace('former-label-domains: ""', former))
    applied(cluster, root=tmp_path / "manifests")
    removal = {"set.former.example/own": None}
    try:
        until(lambda: not denial(lambda: labels(agent, "own", labels=removal)), "the new policy")
        assert "set.former.example/own" not in cluster.labels("own")
        message = denial(lambda: labels(agent, "own", labels={"set.former.example/own": "ready"}))
        assert "added or changed" in message
    finally:
        applied(cluster)


@pytest.mark.parametrize("name", ["profiles__audit-{}.json", "x" * 42 + "-{:020}"])
def test_the_largest_number_of_labels_is_allowed(cluster, agent, name):
    """A Node with 800 agent labels and 1,000 foreign labels stays below the cost limit of the
    policy.
    """
    foreign = {f"foreign.example/label-{number}": "x" * 63 for number in range(1000)}
    body = json.dumps({"metadata": {"labels": foreign}})
    cluster.kubectl("patch", "node", "own", "--type=merge", "-p", body)
    own = node_labels.NodeLabeler(agent, NodeOptions(name="own"), lambda: "boot of own")
    expected = {
        f"seccomp.{DOMAIN}/{name.format(number)}": "installed" for number in range(core.MAX_LIMIT)
    }
    try:
        answer = own.publish(own.read(), expected)
        assert (own.own_labels(answer), own.refused) == (expected, frozenset())
        own.publish(answer, {})
        own.publish(own.read(), expected)
        own.remove_labels()
        assert not [key for key in cluster.labels("own") if DOMAIN in key]
    finally:
        body = json.dumps({"metadata": {"labels": dict.fromkeys(foreign)}})
        cluster.kubectl("patch", "node", "own", "--type=merge", "-p", body)


def narrowed(cluster, old, new):
    """Apply the policy of the manifests with a changed expression, as another release might contain
    it.
    """
    content = kustomize.text()
    assert old in content
    result = cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=content.replace(old, new)
    )
    assert result


OLDER_POLICIES = {
    # Each entry contains a change of the policy, and the label that the changed policy denies.
    "a prefix is unknown": ("''set.'', ''apparmor", "''apparmor", f"set.{DOMAIN}/ns__web", "ready"),
    "a value is unknown": ("|installed|ready|", "|installed|", f"set.{DOMAIN}/ns__web", "ready"),
    "a key is unknown": (
        ", variables.labelDomain + '/selinux']", "]", f"{DOMAIN}/selinux", "disabled",
    ),
    "a mode is unknown": ("|enforcing|permissive|", "|", f"{DOMAIN}/selinux", "enforcing"),
}  # fmt: skip


@pytest.mark.parametrize("how", OLDER_POLICIES)
def test_under_the_policy_of_another_release_every_other_label_is_correct(cluster, agent, how):
    """If the policy of another release denies a label, the agent reports this, and all other labels
    are correct.
    """
    old, new, key, value = OLDER_POLICIES[how]
    own = node_labels.NodeLabeler(agent, NodeOptions(name="own"), lambda: "boot of own")
    first = {OWN: "installed", f"seccomp.{DOMAIN}/untrue": "installed"}
    own.publish(own.read(), first)
    narrowed(cluster, old, new)

    def is_refused():
        if denial(lambda: labels(agent, "own", labels={key: value})):
            return True
        # The request would not change the label.
        cluster.kubectl("label", "node", "own", f"{key}-")
        return False

    try:
        until(is_refused, "the policy")
        expected = {OWN: "installed", f"seccomp.{DOMAIN}/new": "installed", key: value}
        answer = own.publish(own.read(), expected)
        assert own.own_labels(answer) == {item: expected[item] for item in expected if item != key}
        assert [(finding.code, key in finding.message) for finding in own.findings()] == [
            ("label_refused", True)
        ]
    finally:
        applied(cluster)
    until(lambda: not denial(lambda: labels(agent, "own", labels={key: value})), "the policy")
    own.retry_refused()
    assert own.own_labels(own.publish(own.read(), expected)) == expected
    assert own.findings() == ()
    own.remove_labels()


@pytest.mark.parametrize("how", ["unlabel", "publish"])
def test_forged_managed_fields_remove_no_other_field(cluster, agent, how):
    """If managed fields were forged, the agent removes no field of other managers, even with
    administrator credentials.
    """
    own = node_labels.NodeLabeler(agent, NodeOptions(name="own"), lambda: "boot of own")
    own.publish(own.read(), {OWN: "installed"})
    taint = {"key": "keep", "value": "", "effect": "NoSchedule"}
    restricted = "node-restriction.kubernetes.io/team"
    forged = {
        "f:metadata": {"f:labels": {f"f:{restricted}": {}, "f:kept": {}, f"f:{OWN}": {}}},
        "f:spec": {"f:taints": {}, "f:unschedulable": {}},
    }
    item = cluster.get("/api/v1/nodes/own")
    fields = [
        {**managedField, "fieldsV1": forged}
        if (managedField["manager"], managedField["operation"]) == (client.FIELD_MANAGER, "Apply")
        else managedField
        for managedField in item["metadata"]["managedFields"]
    ]
    assert fields != item["metadata"]["managedFields"]
    body = {
        "metadata": {"labels": {restricted: "a"}, "managedFields": fields},
        "spec": {"taints": [taint], "unschedulable": True},
    }
    cluster.kubectl("patch", "node", "own", "--type=merge", "-p", json.dumps(body))
    admin = client.Api(kubeconfig=str(cluster.folder / "admin.kubeconfig"))
    by_admin = node_labels.NodeLabeler(admin, NodeOptions(name="own"), lambda: "boot of own")
    try:
        {
            "unlabel": by_admin.remove_labels,
            "publish": lambda: by_admin.publish(by_admin.read(), {}),
        }[how]()
        after = cluster.get("/api/v1/nodes/own")
        assert after["spec"].get("unschedulable") is True
        assert {"key": "keep", "effect": "NoSchedule"} in after["spec"]["taints"]
        left = after["metadata"]["labels"]
        assert (left[restricted], left["kept"], OWN in left) == ("a", "yes", False)
    finally:
        body = {"metadata": {"labels": {restricted: None}}, "spec": None}
        cluster.kubectl("patch", "node", "own", "--type=merge", "-p", json.dumps(body))


def test_the_policy_has_no_type_warnings(cluster):
    """The type check of the API server's policy controller reports no warning."""
    cluster.start_controllers("validatingadmissionpolicy-status-controller")

    def checked():
        path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/profile-loader"
        status = cluster.get(path)["status"]
        return status if status.get("observedGeneration") else None

    status = until(checked, lambda: cluster.log("kube-controller-manager")[-2000:])
    assert status.get("typeChecking", {}).get("expressionWarnings", []) == []


# --- RBAC ----------------------------------------------------------------------------------------

CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
FORBIDDEN = {
    "list nodes": ("GET", "/api/v1/nodes"),
    "delete a node": ("DELETE", "/api/v1/nodes/own"),
    "create a node": ("POST", "/api/v1/nodes"),
    "replace a node": ("PUT", "/api/v1/nodes/own"),
    "status of a node": ("PATCH", "/api/v1/nodes/own/status"),
    "proxy to a node": ("GET", "/api/v1/nodes/own/proxy/metrics"),
    "change a ConfigMap": ("PATCH", f"{CONFIG_MAPS}/node-profiles"),
    "delete a ConfigMap": ("DELETE", f"{CONFIG_MAPS}/node-profiles"),
    "make a ConfigMap": ("POST", CONFIG_MAPS),
    "other ConfigMaps": ("GET", "/api/v1/namespaces/kube-system/configmaps"),
    "all ConfigMaps": ("GET", "/api/v1/configmaps"),
    "secrets": ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"),
    "all secrets": ("GET", "/api/v1/secrets"),
    "pods": ("GET", "/api/v1/pods"),
    "pods beside it": ("GET", f"/api/v1/namespaces/{NAMESPACE}/pods"),
    "exec": ("POST", f"/api/v1/namespaces/{NAMESPACE}/pods/agent-own/exec?command=id"),
    "evict": ("POST", f"/api/v1/namespaces/{NAMESPACE}/pods/agent-own/eviction"),
    "a token": (
        "POST",
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/profile-loader/token",
    ),
    "its DaemonSet": ("PATCH", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/profile-loader"),
    "its policy": (
        "DELETE",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/profile-loader",
    ),
    "the binding of the policy": (
        "DELETE",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/profile-loader",
    ),
    "roles": ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    "read Events": ("GET", "/apis/events.k8s.io/v1/namespaces/default/events"),
    "Events elsewhere": ("POST", "/apis/events.k8s.io/v1/namespaces/kube-system/events"),
    "core Events": ("POST", "/api/v1/namespaces/default/events"),
    "sign a certificate": ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
    "leases": ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_rbac_denies_unnecessary_requests(agent, what):
    """RBAC denies every request that the agent does not need."""
    method, path = FORBIDDEN[what]
    denial = refusal(
        lambda: (
            agent.get(path)
            if method == "GET"
            else agent.send(
                method,
                path,
                {"metadata": {"name": "x"}},
                content_type=MERGE_PATCH if method == "PATCH" else "",
            )
        )
    )
    assert (denial.status, denial.reason) == (403, "Forbidden"), denial
    assert "cannot" in denial.message


EVERYWHERE = {
    "/nodes": {"get", "watch", "patch"},
    # This label marks the account for the admission policy.
    "profile-loader.io/nodelabels": {"limit"},
}
GRANTED = {
    NAMESPACE: {**EVERYWHERE, "/configmaps": {"get", "list", "watch"}},
    "default": {**EVERYWHERE, "events.k8s.io/events": {"create"}},
    "kube-system": EVERYWHERE,
}
# The role system:basic-user allows every authenticated user to make requests about itself.
ANYBODY = {
    "authorization.k8s.io/selfsubjectaccessreviews": {"create"},
    "authorization.k8s.io/selfsubjectrulesreviews": {"create"},
    "authentication.k8s.io/selfsubjectreviews": {"create"},
}


def test_the_component_pod_aware_grants_only_pods(cluster, agent):
    """The component pod-aware grants only the permission to list and watch the pods of all
    namespaces.
    """
    assert refusal(lambda: agent.get("/api/v1/pods")).status == 403
    applied(cluster, "pod-aware")
    try:
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": "kube-system"},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"

        def listed():
            rules = agent.send("POST", path, asked)["status"]["resourceRules"]
            return {
                f"{group}/{resource}": set(rule["verbs"])
                for rule in rules
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            }

        expected = {**GRANTED["kube-system"], **ANYBODY, "/pods": {"list", "watch"}}
        until(lambda: listed() == expected, listed)
        query = [("fieldSelector", "spec.nodeName=own"), ("resourceVersion", "0")]
        assert agent.get("/api/v1/pods", query)["kind"] == "PodList"
    finally:
        cluster.kubectl("delete", "clusterrolebinding,clusterrole", "profile-loader-pods")
        applied(cluster)


@pytest.mark.parametrize("namespace", GRANTED)
def test_the_api_server_lists_exactly_these_permissions(agent, namespace):
    """The API server lists exactly the expected permissions, so that nobody can add a permission by
    accident.
    """
    asked = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    status = agent.send("POST", path, asked)["status"]
    listed = {
        f"{group}/{resource}": set(rule["verbs"])
        for rule in status["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert (listed, status["incomplete"]) == ({**GRANTED[namespace], **ANYBODY}, False)
    assert {verb for rule in status["nonResourceRules"] for verb in rule["verbs"]} == {"get"}


def test_impersonation_is_denied(cluster, agent):
    """The agent cannot use impersonation to replace the claims of its token."""
    cluster.write_kubeconfig("impersonator", cluster.agent_token("own"))
    arguments = ("get", "--raw", "/api/v1/nodes/own", "--as", "system:admin")
    result = cluster.kubectl(*arguments, user="impersonator", check=False)
    assert (result.returncode, "cannot impersonate" in result.stderr) == (1, True)


def test_the_necessary_permissions_are_granted(agent):
    """The agent can read its Node and the ConfigMaps of its namespace, and can create Events."""
    assert agent.get("/api/v1/nodes/own")["kind"] == "Node"
    assert agent.get(CONFIG_MAPS)["kind"] == "ConfigMapList"
    query = [("fieldSelector", "metadata.name=own"), ("timeoutSeconds", "1")]
    assert [item["type"] for item in agent.watch("/api/v1/nodes", query, silence_seconds=5)] == [
        "ADDED"
    ]


# --- the manifests -------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [(), *((name,) for name in kustomize.COMPONENTS)])
def test_manifests_apply_without_a_warning(cluster, components):
    """The API server accepts the manifests with server-side apply and strict validation."""
    try:
        assert applied(cluster, *components) == ""
    finally:
        if components:
            applied(cluster)


def test_the_policy_compares_every_field_of_the_node_spec(cluster):
    """The policy compares every field of the Node's spec. A field that a new Kubernetes release
    adds makes this test fail.
    """
    schemas = cluster.get("/openapi/v3/api/v1")["components"]["schemas"]
    fields = schemas["io.k8s.api.core.v1.NodeSpec"]["properties"]
    policy = kustomize.objects("startup-taint")["ValidatingAdmissionPolicy", "profile-loader"]
    (compared,) = [
        variable["expression"]
        for variable in policy["spec"]["variables"]
        if variable["name"] == "onlyStartupTaintRemoved"
    ]
    assert set(re.findall(r"oldObject\.spec\.\?(\w+)", compared)) == set(fields)


def test_only_the_startup_taint_can_be_removed_from_the_spec(cluster, agent):
    """The component allows the agent to remove the startup taint, but no other change of
    the spec.
    """
    applied(cluster, "startup-taint")
    startup = {"key": "profile-loader.io/startup", "effect": "NoSchedule"}
    other = {"key": "keep", "effect": "NoSchedule"}

    def taints(*wanted):
        return merged(agent, {"spec": {"taints": list(wanted)}})

    def reset():
        body = json.dumps({"spec": {"taints": [other, startup]}})
        cluster.kubectl("patch", "node", "own", "--type=merge", "-p", body)

    try:
        reset()

        def allowed():
            try:
                taints(other)
            except errors.StatusError:
                return False  # The API server has not read the policy yet.
            return True

        until(allowed, "the component's policy to become effective")
        reset()
        both = [other, startup, {**startup, "effect": "NoExecute"}]
        body = json.dumps({"spec": {"taints": both}})
        cluster.kubectl("patch", "node", "own", "--type=merge", "-p", body)
        reported = cluster.get("/api/v1/nodes/own")
        own = node_labels.NodeLabeler(
            agent,
            NodeOptions(name="own", taint=startup["key"]),
            lambda: "boot of own",
        )
        own.remove_startup_taint(node_metadata(reported), report())
        assert cluster.get("/api/v1/nodes/own")["spec"]["taints"] == [other]
        reset()
        for wrong in ([startup], [], [other, startup, {"key": "new", "effect": "NoExecute"}]):
            assert (
                "may only remove the taint" in refusal(lambda wrong=wrong: taints(*wrong)).message
            )
        assert (
            "may only remove the taint"
            in refusal(lambda: merged(agent, {"spec": {"unschedulable": True}})).message
        )
    finally:
        cluster.kubectl("patch", "node", "own", "--type=merge", "-p", '{"spec":{"taints":null}}')
        applied(cluster)


def test_the_namespace_allows_the_pod_of_the_daemonset(cluster):
    """docs/security.md lists exactly the fields of the pod that violate the Pod Security level
    baseline.
    """
    spec = {**kustomize.pod(kustomize.objects()), "serviceAccountName": "default"}
    spec.pop("priorityClassName")
    reported = violations(cluster, "baseline", {"metadata": {"name": "pod"}, "spec": spec})
    # An older API server writes the plural "profiles" even for a single profile.
    assert sorted(re.sub("profile$", "profiles", value) for value in reported) == [
        "forbidden AppArmor profiles",
        "host namespaces",
        "hostPath volumes",
        "non-default capabilities",
    ]
    assert violations(cluster, "privileged", {"metadata": {"name": "pod"}, "spec": spec}) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda item: item.stem
)
def test_examples_are_admitted_under_restricted(cluster, path):
    """The Pod Security level restricted admits all example pods."""
    assert violations(cluster, "restricted", yaml.safe_load(path.read_text())) == []


def violations(cluster, level, pod):
    """Return the violations of a Pod Security level by a pod."""
    name = f"level-{level}"
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": level},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": name},
        },
    )
    whole = {"apiVersion": "v1", "kind": "Pod", **pod}
    result = cluster.kubectl(
        "-n", name, "create", "--dry-run=server", "-f", "-", stdin=whole, check=False
    )
    if result.returncode == 0:
        return []
    assert "violates PodSecurity" in result.stderr, result.stderr
    reported = result.stderr.split('latest": ', 1)[1]
    return [word.split(" (", 1)[0] for word in reported.strip().split("), ") if " (" in word]
