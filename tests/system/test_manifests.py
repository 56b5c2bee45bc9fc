"""The manifests, rendered by the real kubectl and parsed by the agent's command line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent import cli
from agent.core import labels
from tests.system import rights
from tests.system.cluster import NAMESPACE, programs

PROFILES = Path(__file__).parents[2] / "profiles"
ROOT = Path(__file__).parents[2] / "manifests"
FOLDERS = ["base", *sorted(f"overlays/{one.name}" for one in (ROOT / "overlays").iterdir())]


def made(folder, root=ROOT):
    """Return the objects that kustomize builds from a folder, by kind and name."""
    done = subprocess.run(
        [*programs()("kubectl"), "kustomize", root / folder],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {
        (one["kind"], one["metadata"]["name"]): one
        for one in yaml.safe_load_all(done.stdout)
        if one is not None
    }


def pod(objects):
    return objects["DaemonSet", "profile-loader"]["spec"]["template"]["spec"]


def environment(objects):
    """Return the container's environment as a kubelet of a node named "node" would set it."""
    found = {}
    for one in pod(objects)["containers"][0]["env"]:
        source = one.get("valueFrom")
        if source is None:
            found[one["name"]] = one["value"]
        else:
            values = {"spec.nodeName": "node", "metadata.namespace": NAMESPACE}
            found[one["name"]] = values[source["fieldRef"]["fieldPath"]]
    return found


def parsed(objects):
    """Return the agent's options, parsed from the container's arguments and environment."""
    environ = environment(objects)
    arguments = rights.expanded(
        {
            "args": pod(objects)["containers"][0]["args"],
            "env": [{"name": name, "value": value} for name, value in environ.items()],
        }
    )
    return cli.parse(arguments, environ, lambda path: None)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_agent_takes_its_arguments(folder):
    """Every option in the manifests exists, and the options are compatible."""
    found = parsed(made(folder))
    assert not isinstance(found, cli.Usage), found.text
    assert (found.config.node_name, found.config.label_domain) == ("node", labels.DOMAIN)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_label_domain_comes_from_one_place(tmp_path, folder):
    """The agent and the policy use the domain in base/labels.yaml, which itself is not applied."""
    shutil.copytree(ROOT, tmp_path / "manifests")
    place = tmp_path / "manifests/base/labels.yaml"
    content = yaml.safe_load(place.read_text())
    content["data"] = {"domain": "new.example.org", "former-domains": labels.DOMAIN}
    place.write_text(yaml.safe_dump(content))
    before, after = made(folder), made(folder, tmp_path / "manifests")
    assert environment(after)["PROFILE_LOADER_LABEL_DOMAIN"] == "new.example.org"
    assert ("ConfigMap", "profile-loader-labels") not in after
    policy = ("ValidatingAdmissionPolicy", "profile-loader")

    def variables(objects):
        return {one["name"]: one["expression"] for one in objects[policy]["spec"]["variables"]}

    changed = {"labelDomain": "'new.example.org'", "formerDomains": f"'{labels.DOMAIN}'"}
    assert variables(after) == {**variables(before), **changed}
    assert str(after[policy]["spec"]["matchConditions"]).count("example") == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_policy_is_applied_before_the_rights(folder):
    """Kubectl applies objects in the order in which kustomize writes the objects."""
    order = [kind for kind, _ in made(folder)]
    assert order.index("ValidatingAdmissionPolicyBinding") < order.index("ClusterRoleBinding")
    assert order.index("ValidatingAdmissionPolicy") < order.index("ClusterRoleBinding")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_command_in_the_agents_container_looks_where_the_agent_does(folder):
    """`kubectl exec ... status` has the environment of the container, but not its arguments."""
    objects = made(folder)
    agent = parsed(objects).config
    status = cli.parse(["status"], environment(objects), lambda path: None).config
    asked = ("host_root", "state_dir", "seccomp_dir", "kinds", "label_domain")
    assert [getattr(status, one) for one in asked] == [getattr(agent, one) for one in asked]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_agent_writes_where_the_host_is_mounted(folder):
    """Each directory that the agent writes to is a host path, mounted at the same path."""
    objects = made(folder)
    config = parsed(objects).config
    (agent,) = pod(objects)["containers"]
    volumes = {one["name"]: one for one in pod(objects)["volumes"]}
    mounted = {one["mountPath"]: volumes[one["name"]] for one in agent["volumeMounts"]}
    others = {
        mount["name"]
        for one in pod(objects).get("initContainers", ())
        for mount in one["volumeMounts"]
    }
    assert {one["name"] for one in agent["volumeMounts"]} | others == set(volumes)
    wanted = {config.state_dir, config.seccomp_dir}
    if "apparmor" in config.kinds:
        wanted.add("/sys/kernel/security")
    hosts = {path: one["hostPath"]["path"] for path, one in mounted.items() if "hostPath" in one}
    assert hosts == {path: path for path in wanted}
    assert not any(
        one.get("readOnly") for one in agent["volumeMounts"] if one["mountPath"] in wanted
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_right_to_read_configmaps_where_they_are_mounted(folder):
    """The Role exists only where the agent reads its profiles from the API server."""
    objects = made(folder)
    asks = all(one.startswith("configmap") for one in parsed(objects).config.source)
    rights = {
        ("Role", "profile-loader") in objects,
        ("RoleBinding", "profile-loader") in objects,
    }
    assert rights == {asks}


def test_the_mounted_volume_holds_the_profiles_that_ship():
    """The volume and the ConfigMaps contain the same profile names."""
    objects = made("overlays/mounted-volume")
    (volume,) = [one for one in pod(objects)["volumes"] if one["name"] == "profiles"]
    paths = []
    for source in volume["projected"]["sources"]:
        config_map = objects["ConfigMap", source["configMap"]["name"]]
        items = source["configMap"].get("items")
        if items is None:
            paths += list(config_map["data"])
        else:
            assert {one["key"] for one in items} == set(config_map["data"])
            paths += [one["path"] for one in items]
    shipped = {
        str(path.relative_to(PROFILES))
        for path in PROFILES.rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    assert sorted(paths) == sorted(shipped)


def test_the_profiles_are_those_that_ship():
    """The committed ConfigMaps are the current output of `render` for profiles/."""
    command = [sys.executable, "-m", "agent", "render", str(PROFILES)]
    command += ["--name", "node-profiles", "--namespace", NAMESPACE]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ROOT / "profiles/node-profiles.yaml").read_text() == rendered.stdout


def references(spec):
    """Yield the kind and name of each profile that a pod references."""
    for one in (spec, *spec["containers"]):
        for kind in ("appArmorProfile", "seccompProfile"):
            found = one.get("securityContext", {}).get(kind, {})
            if found.get("type") == "Localhost":
                yield (
                    {"appArmorProfile": "apparmor"}.get(kind, "seccomp"),
                    found["localhostProfile"],
                )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda one: one.stem
)
def test_an_example_asks_for_the_label_of_the_profile_that_it_names(path):
    """The pod's nodeSelector is the label that the agent sets for the profile."""
    spec = yaml.safe_load(path.read_text())["spec"]
    ((kind, name),) = references(spec)
    value = {"apparmor": "enforce", "seccomp": "installed"}[kind]
    assert spec["nodeSelector"] == {labels.label_key(kind, name, labels.DOMAIN): value}
