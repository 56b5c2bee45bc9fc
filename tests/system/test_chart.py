"""Tests that the Helm chart creates the same objects as the kustomization, and that helm-unittest
accepts the chart.
"""

import json
import re

import pytest
import yaml

from tests.system import charts, image, kustomize

VALUES = charts.CHART.parent / "values"
# The component `settings` has no values file, because it only copies the values of a user's
# kustomization.
COMPONENTS = [name for name in kustomize.COMPONENTS if name != "settings"]
ONLY_IN_THE_CHART = {"helm.sh/chart", "app.kubernetes.io/managed-by"}
# With these annotations, helm adopts a policy that was applied before the installation.
OWNER = {"meta.helm.sh/release-name", "meta.helm.sh/release-namespace"}
# Kustomize and helm add different hashes to the name of this ConfigMap.
HASHED = re.compile(r"\b(profile-loader-own-seccomp)-[a-z0-9]{10}\b")


def canonical(value):
    """Return a value without empty parts, with the named entries of each list in a fixed order."""
    if isinstance(value, dict):
        items = {key: canonical(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item not in ({}, [], None)}
    if isinstance(value, list):
        items = [canonical(item) for item in value]
        named = items and all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True)) if named else items
    return value


def compared(documents):
    """Return the objects in a comparable form, by kind, namespace and name."""
    objects = {}
    for item in yaml.safe_load_all(HASHED.sub(r"\1", documents)):
        if item is None or item["kind"] == "Namespace":
            continue
        metadata = item["metadata"]
        places = [metadata, item.get("spec", {}).get("template", {}).get("metadata", {})]
        for place in places:
            for label in ONLY_IN_THE_CHART & place.get("labels", {}).keys():
                del place["labels"][label]
            for annotation in OWNER & place.get("annotations", {}).keys():
                del place["annotations"][annotation]
        key = (item["kind"], metadata.get("namespace", ""), metadata["name"])
        assert key not in objects
        objects[key] = canonical(item)
    return objects


def test_the_default_values_equal_the_base():
    """With its default values, the chart creates the objects of manifests/base, apart from the
    Namespace and the metadata that only helm uses.
    """
    assert compared(charts.template()) == compared(kustomize.text())


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_values_file_equals_the_component_of_its_name(name):
    """The values file of a component has the same effect as the component."""
    rendered = charts.template("--values", VALUES / f"{name}.yaml")
    assert compared(rendered) == compared(kustomize.text(name))


def test_the_values_of_monitoring_equal_the_kustomization():
    """With the monitoring values, the chart also creates the PodMonitor, the alerts and the
    dashboard of manifests/monitoring.
    """
    rendered = compared(charts.template("--values", VALUES / "monitoring.yaml"))
    base = compared(charts.template())
    added = {key: item for key, item in rendered.items() if key not in base}
    assert added == compared(kustomize.build(kustomize.ROOT / "monitoring"))
    assert {key: rendered[key] for key in base} == base


@pytest.mark.parametrize("path", [None, *sorted(VALUES.iterdir())], ids=str)
def test_every_object_of_the_chart_has_the_recommended_labels(path):
    """The objects of every values file have labels with the program, the release and its version.

    The selector of the DaemonSet cannot be changed, so it does not contain the version.
    """
    words = () if path is None else ("--values", path)
    expected = {**kustomize.LABELS, "app.kubernetes.io/managed-by": "Helm"}
    items = [item for item in yaml.safe_load_all(charts.template(*words)) if item is not None]
    for item in items:
        result = item["metadata"]["labels"]
        assert expected.items() <= result.items(), (item["kind"], item["metadata"]["name"])
        assert result["helm.sh/chart"] == f"profile-loader-{image.VERSION}"
    (daemon,) = [item for item in items if item["kind"] == "DaemonSet"]
    assert expected.items() <= daemon["spec"]["template"]["metadata"]["labels"].items()


def test_every_component_has_a_values_file():
    """Each component has a values file, and each values file has a component."""
    expected = {*COMPONENTS, "monitoring"}
    assert {path.stem for path in VALUES.iterdir()} == expected


def test_another_namespace_equals_the_settings():
    """The namespace of the Helm release has the same effect as the setting `namespace`."""
    setting = {"name": "profile-loader-settings", "behavior": "merge"}
    generator = {**setting, "literals": ["namespace=security", "label-domain=new.example"]}
    built = kustomize.text("pod-aware", "settings", configMapGenerator=[generator])
    words = ("--set", "podAware=true,labelDomain=new.example")
    rendered = compared(charts.template(*words, namespace="security"))
    expected = compared(built)
    # The chart also moves the annotations of the shipped profiles to the new domain.
    for objects in (rendered, expected):
        for (kind, _, _), item in objects.items():
            if kind == "ConfigMap":
                item["metadata"].pop("annotations", None)
    assert rendered == expected


def test_the_chart_passes_the_linter():
    """`helm lint --strict` accepts the chart with the default values and with all values files."""
    charts.helm("lint", "--strict", charts.CHART)
    # The components own-seccomp and privileged exclude each other.
    for excluded in ("own-seccomp", "privileged"):
        files = [f"--values={path}" for path in VALUES.iterdir() if path.stem != excluded]
        charts.helm("lint", "--strict", charts.CHART, *files)


def test_the_unit_tests_of_the_chart_pass():
    """helm-unittest runs the suites in the chart's directory tests/."""
    output = charts.run("helm-unittest", "--strict", charts.CHART).stdout
    passed = re.search(r"^Tests: +(\d+) passed, (\d+) total$", output, re.MULTILINE)
    assert passed is not None, output
    assert passed[1] == passed[2] != "0", output


def test_a_package_contains_every_file(tmp_path):
    """A packaged chart contains files instead of symbolic links, and creates the same objects."""
    charts.helm("package", charts.CHART, "--destination", tmp_path)
    (package,) = tmp_path.iterdir()
    rendered = charts.helm("template", charts.RELEASE, package, "--namespace", "profile-loader")
    assert compared(rendered) == compared(charts.template())


def test_no_value_removes_the_admission_policy():
    """With every values file, the chart creates the admission policy, its binding and the
    permission that identifies the agent.
    """
    for path in VALUES.iterdir():
        objects = compared(charts.template("--values", path))
        binding = objects["ValidatingAdmissionPolicyBinding", "", "profile-loader"]
        assert binding["spec"]["validationActions"] == ["Deny", "Audit"]
        assert ("ValidatingAdmissionPolicy", "", "profile-loader") in objects
        marks = [rule["verbs"] for rule in objects["ClusterRole", "", "profile-loader"]["rules"]]
        assert ["limit"] in marks


@pytest.mark.parametrize("name", ["policy.enabled", "admissionPolicy.create", "rbac.create"])
def test_an_unknown_value_is_rejected(name):
    """If a user sets a value that this chart does not have, helm reports an error."""
    result = charts.run(
        "helm", "template", "x", charts.CHART, "--set", f"{name}=false", check=False
    )
    assert (result.returncode, "additional properties" in result.stderr.lower()) == (1, True), (
        result
    )


def test_an_older_kubernetes_is_rejected():
    """Helm rejects a Kubernetes version in which admission policies cannot read the claims of
    tokens.
    """
    words = ("template", "x", charts.CHART, "--kube-version", "1.29.9")
    result = charts.run("helm", *words, check=False)
    assert (result.returncode, "kubeVersion: >=1.30.0-0" in result.stderr) == (1, True), (
        result.stderr
    )
