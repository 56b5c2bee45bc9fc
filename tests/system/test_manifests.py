"""Tests of the manifests, which the real kubectl renders and the agent's command line parses."""

import shutil
import subprocess
import sys
from collections import ChainMap
from pathlib import Path

import pytest
import yaml

from agent import cli
from agent.core import labels
from tests.system import kustomize, rights
from tests.system.cluster import NAMESPACE

PROFILES = Path(__file__).parents[2] / "profiles"
ROOT = kustomize.ROOT
# The base alone, and the base with each component.
SELECTIONS = [(), *((name,) for name in kustomize.COMPONENTS)]
every_selection = pytest.mark.parametrize("components", SELECTIONS, ids="-".join)


def environment(objects):
    """Return the environment of the container as a kubelet sets it on a node named "node"."""
    fields = {"spec.nodeName": "node", "metadata.namespace": NAMESPACE}
    variables = [
        {"name": item["name"], "value": fields[item["valueFrom"]["fieldRef"]["fieldPath"]]}
        if "valueFrom" in item
        else item
        for item in kustomize.pod(objects)["containers"][0]["env"]
    ]
    return rights.environment({"env": variables})


def parsed(objects):
    """Return the agent's options, parsed from the arguments and the environment of the
    container.
    """
    arguments = kustomize.pod(objects)["containers"][0].get("args", [])
    return cli.parse(arguments, environment(objects), lambda path: None)


@every_selection
def test_the_agent_accepts_the_arguments_of_the_manifests(components):
    """The agent accepts all options in the manifests."""
    result = parsed(kustomize.objects(*components))
    assert not isinstance(result, cli.Usage), result.text
    assert (result.config.node_name, result.config.label_domain) == ("node", labels.DOMAIN)


@every_selection
def test_the_label_domain_comes_from_one_place(tmp_path, components):
    """The agent and the policy use the label domain in base/settings.yaml. The settings object
    itself is not applied.
    """
    shutil.copytree(ROOT, tmp_path / "manifests")
    settings = tmp_path / "manifests/base/settings.yaml"
    content = yaml.safe_load(settings.read_text())
    content["data"] |= {"label-domain": "new.example.org", "former-label-domains": labels.DOMAIN}
    settings.write_text(yaml.safe_dump(content))
    before = kustomize.objects(*components)
    after = kustomize.objects(*components, root=tmp_path / "manifests")
    assert environment(after)["PROFILE_LOADER_LABEL_DOMAIN"] == "new.example.org"
    assert ("ConfigMap", "profile-loader-settings") not in after
    policy = ("ValidatingAdmissionPolicy", "profile-loader")

    def variables(objects):
        return {item["name"]: item["expression"] for item in objects[policy]["spec"]["variables"]}

    changed = {"labelDomain": "'new.example.org'", "formerDomains": f"'{labels.DOMAIN}'"}
    assert variables(after) == {**variables(before), **changed}
    assert str(after[policy]["spec"]["matchConditions"]).count("example") == 0


@every_selection
def test_the_policy_is_applied_before_the_rights(components):
    """Kustomize writes the policy before the rights, and kubectl applies objects in this order."""
    order = [kind for kind, _ in kustomize.objects(*components)]
    assert order.index("ValidatingAdmissionPolicyBinding") < order.index("ClusterRoleBinding")
    assert order.index("ValidatingAdmissionPolicy") < order.index("ClusterRoleBinding")


@every_selection
def test_a_command_in_the_agents_container_uses_the_agents_directories(components):
    """A command of `kubectl exec` uses the same directories as the agent, because the container's
    environment contains them.
    """
    objects = kustomize.objects(*components)
    agent = parsed(objects).config
    status = cli.parse(["status"], environment(objects), lambda path: None).config
    asked = ("host_root", "state_dir", "seccomp_dir", "kinds", "label_domain")
    assert [getattr(status, item) for item in asked] == [getattr(agent, item) for item in asked]


# The seccomp directory of each distribution whose kubelet does not use the default directory.
KUBELETS = {
    "k0s": "/var/lib/k0s/kubelet/seccomp",
    "microk8s": "/var/snap/microk8s/common/var/lib/kubelet/seccomp",
}


@every_selection
def test_the_agent_writes_only_to_mounted_host_directories(components):
    """Each directory that the agent writes to is a mounted host path."""
    objects = kustomize.objects(*components)
    config = parsed(objects).config
    (agent,) = kustomize.pod(objects)["containers"]
    volumes = {item["name"]: item for item in kustomize.pod(objects)["volumes"]}
    mounted = {item["mountPath"]: volumes[item["name"]] for item in agent["volumeMounts"]}
    others = {
        mount["name"]
        for item in kustomize.pod(objects).get("initContainers", ())
        for mount in item["volumeMounts"]
    }
    assert {item["name"] for item in agent["volumeMounts"]} | others == set(volumes)
    expected = {config.state_dir, config.seccomp_dir}
    if "apparmor" in config.kinds:
        expected.add("/sys/kernel/security")
    read_only = {item["mountPath"] for item in agent["volumeMounts"] if item.get("readOnly")}
    hosts = {
        path: item["hostPath"]["path"]
        for path, item in mounted.items()
        if "hostPath" in item and path not in read_only
    }
    other_directories = {name: {config.seccomp_dir: path} for name, path in KUBELETS.items()}
    changed = [other_directories.get(name, {}) for name in components]
    assert hosts == dict(ChainMap(*changed, {path: path for path in expected}))


@every_selection
def test_an_agent_with_a_mounted_volume_may_not_read_configmaps(components):
    """The Role for ConfigMaps exists only if the agent reads its profiles from the API server."""
    objects = kustomize.objects(*components)
    asks = all(item.startswith("configmap") for item in parsed(objects).config.source)
    rights = {
        ("Role", "profile-loader") in objects,
        ("RoleBinding", "profile-loader") in objects,
    }
    assert rights == {asks}


def test_the_mounted_volume_contains_the_shipped_profiles():
    """The mounted volume and the ConfigMaps contain the same profile names."""
    objects = kustomize.objects("mounted-volume")
    (volume,) = [item for item in kustomize.pod(objects)["volumes"] if item["name"] == "profiles"]
    paths = []
    for source in volume["projected"]["sources"]:
        config_map = objects["ConfigMap", source["configMap"]["name"]]
        items = source["configMap"].get("items")
        if items is None:
            paths += list(config_map["data"])
        else:
            assert {item["key"] for item in items} == set(config_map["data"])
            paths += [item["path"] for item in items]
    shipped = {
        str(path.relative_to(PROFILES))
        for path in PROFILES.rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    assert sorted(paths) == sorted(shipped)


def test_the_committed_configmaps_contain_the_shipped_profiles():
    """The committed ConfigMaps equal the current output of `render` for profiles/."""
    command = [sys.executable, "-m", "agent", "render", str(PROFILES)]
    command += ["--name", "node-profiles", "--namespace", NAMESPACE]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ROOT / "profiles/node-profiles.yaml").read_text() == rendered.stdout


def references(spec):
    """Yield the kind and the name of each profile that a pod references."""
    for item in (spec, *spec["containers"]):
        for kind in ("appArmorProfile", "seccompProfile"):
            result = item.get("securityContext", {}).get(kind, {})
            if result.get("type") == "Localhost":
                yield (
                    {"appArmorProfile": "apparmor"}.get(kind, "seccomp"),
                    result["localhostProfile"],
                )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda one: one.stem
)
def test_an_example_pod_selects_the_label_of_its_profile(path):
    """The nodeSelector of the pod is the label that the agent sets for the profile."""
    spec = yaml.safe_load(path.read_text())["spec"]
    ((kind, name),) = references(spec)
    value = {"apparmor": "enforce", "seccomp": "installed"}[kind]
    assert spec["nodeSelector"] == {labels.label_key(kind, name, labels.DOMAIN): value}
