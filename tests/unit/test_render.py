"""ConfigMaps made from a directory are read back as the same profiles."""

import yaml

from agent.commands import render
from agent.sources.directory import DirectorySource
from agent.sources.manifest import DOMAIN, ManifestSource

LABELS = {"app.kubernetes.io/component": "profiles"}


def rendered(path):
    made = render.render(str(path), "node-profiles", "kube-system", DOMAIN)
    return made.text, made.mistakes


def test_rendered_config_maps_hold_the_same_profiles(tmp_path):
    """Path and content of every key survive, sub-directories and odd bytes included."""
    top = tmp_path / "set"
    (top / "profiles/deep").mkdir(parents=True)
    (top / "web.profile").write_bytes(b"profile web {\n  file,\n}\n")
    (top / "profiles/audit.json").write_bytes(b'{\r\n\t"defaultAction": "SCMP_ACT_LOG"}')
    (top / "profiles/deep/x.json").write_bytes(b"\xff\x00{")
    text, mistakes = rendered(top)
    (tmp_path / "set.yaml").write_text(text)
    (ours,) = DirectorySource(str(top)).read()
    (back,) = ManifestSource(str(tmp_path / "set.yaml")).read()
    assert mistakes == ()
    assert {blob.path: blob.content for blob in back.source_keys} == {
        blob.path: blob.content for blob in ours.source_keys
    }


def test_each_directory_gets_a_config_map_with_its_prefix(tmp_path):
    """The annotation carries what a key cannot; the label is what the DaemonSet selects by."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "profiles/b.json").write_text("{}")
    documents = list(yaml.safe_load_all(rendered(tmp_path)[0]))
    assert documents == [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": "node-profiles",
                "namespace": "kube-system",
                "labels": LABELS,
            },
            "data": {"a.json": "{}"},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": "node-profiles-2",
                "namespace": "kube-system",
                "labels": LABELS,
                "annotations": {f"{DOMAIN}/seccomp-prefix": "profiles/"},
            },
            "data": {"b.json": "{}"},
        },
    ]


def test_a_large_set_is_split_below_the_limit_of_a_config_map(tmp_path):
    """Every ConfigMap stays below 1 MiB, and none is empty."""
    for number in range(5):
        (tmp_path / f"{number}.json").write_text("x" * 300_000)
    sizes = [len(yaml.safe_dump(one)) for one in yaml.safe_load_all(rendered(tmp_path)[0])]
    assert (len(sizes), max(sizes) < 1 << 20) == (3, True)


def test_what_cannot_be_rendered_is_named(tmp_path):
    """A key that no ConfigMap can hold is a mistake, and the others are rendered."""
    (tmp_path / "a b.json").write_text("{}")
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "out.json").symlink_to("/nowhere")
    text, mistakes = rendered(tmp_path)
    assert list(yaml.safe_load(text)["data"]) == ["c.json"]
    assert len(mistakes) == 2
    assert rendered(tmp_path / "absent")[0] == ""
