"""Tests that the Kustomize components can be combined with each other, and with the settings in a
user's kustomization.
"""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.system import kustomize
from tests.system.cluster import Cluster

POLICY = ("ValidatingAdmissionPolicy", "profile-loader")
# The pairs of components that cannot be combined, with the reason.
NOT_COMBINED = {
    ("k0s", "microk8s"): "a kubelet has one directory",
    ("own-seccomp", "privileged"): "runtimes ignore the seccomp profile of a privileged container",
}


def agent(objects):
    """Return the agent's container."""
    return kustomize.pod(objects)["containers"][0]


def variable(objects, name):
    """Return an environment variable of the agent's container, or None."""
    return next((item["value"] for item in agent(objects)["env"] if item["name"] == name), None)


def volume(objects, name):
    """Return a volume of the agent's pod, or None."""
    return next((item for item in kustomize.pod(objects)["volumes"] if item["name"] == name), None)


def has_node_directory(objects, path):
    """Return whether this directory on the node is mounted at the default seccomp directory."""
    mounts = {item["name"]: item["mountPath"] for item in agent(objects)["volumeMounts"]}
    return (volume(objects, "seccomp")["hostPath"]["path"], mounts["seccomp"]) == (
        path,
        "/var/lib/kubelet/seccomp",
    )


def reads_a_volume(objects):
    """Return whether the agent reads profiles from a volume, without a right to ConfigMaps."""
    return (
        variable(objects, "PROFILE_LOADER_SOURCE") == "dir:/profiles"
        and volume(objects, "profiles") is not None
        and not {("Role", "profile-loader"), ("RoleBinding", "profile-loader")} & objects.keys()
    )


def has_no_right_for_apparmor(objects):
    """Return whether the agent manages only seccomp profiles and has only the permissions that this
    requires.
    """
    security = agent(objects)["securityContext"]
    return (
        variable(objects, "PROFILE_LOADER_KINDS") == "seccomp"
        and "hostPID" not in kustomize.pod(objects)
        and "add" not in security.get("capabilities", {})
        and "appArmorProfile" not in security
        and kustomize.pod(objects)["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
        and volume(objects, "security") is None
    )


def has_own_seccomp_profile(objects):
    """Return whether an init container with the agent's image installs the agent's own profile."""
    (init,) = kustomize.pod(objects)["initContainers"]
    config_map = volume(objects, "own")["configMap"]["name"]
    return (
        init["image"] == agent(objects)["image"]
        and ("ConfigMap", config_map) in objects
        and agent(objects)["securityContext"]["seccompProfile"]
        == {"type": "Localhost", "localhostProfile": "profile-loader/agent.json"}
    )


def may_list_pods(objects):
    """Return whether the agent takes pods into account and is allowed to list and watch them."""
    (rule,) = objects["ClusterRole", "profile-loader-pods"]["rules"]
    return (
        variable(objects, "PROFILE_LOADER_POD_AWARE") == "true"
        and rule == {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}
        and ("ClusterRoleBinding", "profile-loader-pods") in objects
    )


def is_privileged(objects):
    """Return whether the agent is privileged and no other field contradicts this."""
    security = agent(objects)["securityContext"]
    return (
        security["privileged"] is True
        and not {"appArmorProfile", "allowPrivilegeEscalation"} & security.keys()
        and not security.get("capabilities")
        and "seccompProfile" not in (kustomize.pod(objects).get("securityContext") or {})
    )


def reads_the_mode_of_selinux(objects):
    """Return whether selinuxfs is mounted at its usual place and is read-only."""
    mount = {"name": "selinux", "mountPath": "/sys/fs/selinux", "readOnly": True}
    directory = {"path": "/sys/fs/selinux", "type": "Directory"}
    return (
        mount in agent(objects)["volumeMounts"]
        and volume(objects, "selinux")["hostPath"] == directory
    )


def removes_a_taint(objects):
    """Return whether the agent and the admission policy use the same startup taint."""
    taint = variable(objects, "PROFILE_LOADER_STARTUP_TAINT")
    return taint == "profile-loader.io/startup" and policy_variable(
        objects, "startupTaint"
    ) == repr(taint)


def policy_variable(objects, name):
    """Return the expression of a variable of the admission policy."""
    variables = {item["name"]: item for item in objects[POLICY]["spec"]["variables"]}
    return variables[name]["expression"]


EFFECTS = {
    "k0s": lambda objects: has_node_directory(objects, "/var/lib/k0s/kubelet/seccomp"),
    "microk8s": lambda objects: has_node_directory(
        objects, "/var/snap/microk8s/common/var/lib/kubelet/seccomp"
    ),
    "mounted-volume": reads_a_volume,
    "network-policy": lambda objects: ("NetworkPolicy", "profile-loader") in objects,
    "openshift": has_no_right_for_apparmor,
    "own-seccomp": has_own_seccomp_profile,
    "pod-aware": may_list_pods,
    "privileged": is_privileged,
    "selinux": reads_the_mode_of_selinux,
    "settings": lambda objects: is_in(objects, "profile-loader"),
    "startup-taint": removes_a_taint,
}
PAIRS = [
    pair for pair in itertools.combinations(kustomize.COMPONENTS, 2) if pair not in NOT_COMBINED
]


def is_in(objects, namespace):
    """Return whether every object, subject and expression has this namespace.

    The Role for Events stays in the namespace `default`, because Kubernetes stores Events about
    Nodes there.
    """
    namespaces = {
        key: item["metadata"]["namespace"]
        for key, item in objects.items()
        if "namespace" in item["metadata"]
    }
    events = {("Role", "profile-loader-events"), ("RoleBinding", "profile-loader-events")}
    subjects = [subject for item in objects.values() for subject in item.get("subjects", ())]
    (condition,) = objects[POLICY]["spec"]["matchConditions"]
    expected = {key: "default" if key in events else namespace for key in namespaces}
    return (
        namespaces == expected
        and events < namespaces.keys()
        and {subject["namespace"] for subject in subjects} == {namespace}
        and condition["expression"].startswith(f"['{namespace}'].exists(")
        and ("Namespace", namespace) in objects
    )


def test_every_component_has_an_effect_to_check():
    """EFFECTS contains a check for each component. Each check fails for the base alone, except for
    the check of `settings`.
    """
    assert sorted(EFFECTS) == kustomize.COMPONENTS
    base = kustomize.objects()
    present = {name for name, effect in EFFECTS.items() if has(effect, base)}
    assert present == {"settings"}


def has(effect, objects):
    """Return whether an effect is present. If an object is missing, the effect is absent."""
    try:
        return effect(objects)
    except (KeyError, TypeError):
        return False


@pytest.fixture(scope="module")
def combined():
    """Return the objects of each pair of components."""
    # The component `settings` must be the last component.
    pairs = [pair[::-1] if pair[0] == "settings" else pair for pair in PAIRS]
    with ThreadPoolExecutor(2) as pool:
        built = pool.map(lambda pair: kustomize.objects(*pair), pairs)
        return dict(zip(pairs, built, strict=True))


def test_every_pair_combines(combined):
    """Each pair of components has the effects of both components."""
    missing = [
        (pair, name)
        for pair, objects in combined.items()
        for name in pair
        if not has(EFFECTS[name], objects)
    ]
    assert missing == []


@pytest.mark.parametrize("pair", NOT_COMBINED, ids="-".join)
def test_the_listed_pairs_do_not_combine(pair):
    """Each pair in NOT_COMBINED lacks an effect, or has fields that a runtime ignores."""
    try:
        objects = kustomize.objects(*pair)
    except Exception:  # noqa: BLE001
        return
    ignored = agent(objects)["securityContext"].get("privileged") and has(
        has_own_seccomp_profile, objects
    )
    assert ignored or not all(has(EFFECTS[name], objects) for name in pair)


@pytest.mark.parametrize("excluded", [("microk8s", "privileged"), ("k0s", "own-seccomp")])
@pytest.mark.parametrize("step", [1, -1], ids=["alphabetical", "reversed"])
def test_all_components_combine(excluded, step):
    """All components that do not exclude each other can be used together in any order.

    Only the component `settings` must be the last component.
    """
    excluded = (*excluded, "settings")
    names = [name for name in kustomize.COMPONENTS if name not in excluded][::step]
    objects = kustomize.objects(*names, "settings")
    assert [name for name in (*names, "settings") if not has(EFFECTS[name], objects)] == []


def test_the_api_server_accepts_every_pair(combined):
    """The DaemonSet and the policy of each pair pass the strict validation of the API server."""
    items = []
    for number, objects in enumerate(combined.values()):
        for kind, name in (("DaemonSet", "profile-loader"), POLICY):
            item = json.loads(json.dumps(objects[kind, name]))
            item["metadata"]["name"] = f"{name}-{number}"
            items.append(item)
    with Cluster() as cluster:
        words = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
        result = cluster.kubectl(*words, stdin=yaml.safe_dump_all(items), check=False)
    assert (result.returncode, result.stderr) == (0, "")


LEFT_OUT = ("microk8s", "privileged", "settings")
NAMES = [name for name in kustomize.COMPONENTS if name not in LEFT_OUT]
SETTINGS = {"name": "profile-loader-settings", "behavior": "merge"}


def test_one_setting_changes_the_namespace_everywhere():
    """The setting `namespace` changes the namespace of every object of every component."""
    literals = {**SETTINGS, "literals": ["namespace=security"]}
    objects = kustomize.objects(*NAMES, "settings", configMapGenerator=[literals])
    assert is_in(objects, "security")
    assert "profile-loader" not in {item["metadata"].get("namespace") for item in objects.values()}


def test_one_setting_changes_the_label_domain_everywhere():
    """The agent and the policy use the label domain in the user's kustomization."""
    literals = ["label-domain=new.example", "former-label-domains=old.example"]
    generator = {**SETTINGS, "literals": literals}
    objects = kustomize.objects(*NAMES, "settings", configMapGenerator=[generator])
    assert variable(objects, "PROFILE_LOADER_LABEL_DOMAIN") == "new.example"
    assert policy_variable(objects, "labelDomain") == "'new.example'"
    assert policy_variable(objects, "formerDomains") == "'old.example'"


@pytest.mark.parametrize("components", [(), ("own-seccomp",)], ids=["base", "own-seccomp"])
def test_the_plain_name_selects_the_image_everywhere(components):
    """An entry of `images` with the name profile-loader replaces the image of every container."""
    image = {"name": "profile-loader", "newName": "registry.example/p", "newTag": "2"}
    objects = kustomize.objects(*components, images=[image])
    containers = [
        *kustomize.pod(objects)["containers"],
        *kustomize.pod(objects).get("initContainers", ()),
    ]
    assert {item["image"] for item in containers} == {"registry.example/p:2"}
    pinned = {"name": "profile-loader", "digest": "sha256:" + "0" * 64}
    objects = kustomize.objects(*components, images=[pinned])
    assert agent(objects)["image"] == f"profile-loader@{pinned['digest']}"


def test_common_labels_do_not_hide_the_profiles():
    """If a user adds common labels to every object, the selector of the agent does not change."""
    common = {
        f"app.kubernetes.io/{key}": "team"
        for key in ("name", "instance", "version", "component", "part-of", "managed-by")
    }
    objects = kustomize.objects(commonLabels=common)
    selector = variable(objects, "PROFILE_LOADER_SOURCE").partition("?")[2]
    key, _, value = selector.partition("=")
    profiles = [item for (kind, _), item in objects.items() if kind == "ConfigMap"]
    assert len(profiles) == 2
    assert {item["metadata"]["labels"][key] for item in profiles} == {value}
    assert {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in profiles} == {
        "team"
    }


@pytest.mark.parametrize("name", [None, *kustomize.COMPONENTS, "monitoring"])
def test_every_object_has_the_recommended_labels(name):
    """Every object has labels for the program, its version, its instance and its application."""
    if name == "monitoring":
        objects = kustomize.by_name(kustomize.build(kustomize.ROOT / name))
    else:
        objects = kustomize.objects(*filter(None, [name]))
    for key, item in objects.items():
        assert kustomize.LABELS.items() <= item["metadata"]["labels"].items(), key
    if name != "monitoring":
        daemon = objects["DaemonSet", "profile-loader"]
        template = daemon["spec"]["template"]
        assert kustomize.LABELS.items() <= template["metadata"]["labels"].items()
        # The selector of a DaemonSet cannot be changed, so it must not contain the version.
        assert daemon["spec"]["selector"] == {
            "matchLabels": {"app.kubernetes.io/name": "profile-loader"}
        }
