"""Tests of agent.commands.render, which creates ConfigMaps from a directory."""

import time
from pathlib import Path

import yaml

from agent.commands import render
from agent.core.labels import DOMAIN
from agent.core.model import Read
from agent.sources.directory import DirectorySource
from agent.sources.manifest import ManifestSource
from tests.narrowing import instance_of

LABELS = {"app.kubernetes.io/component": "profiles", "profile-loader.io/profiles": "true"}


def rendered(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the text and the error messages for a rendered directory."""
    result = render.render(str(path), "node-profiles", "kube-system", DOMAIN)
    return result.text, result.mistakes


def test_rendered_config_maps_contain_the_same_profiles(tmp_path: Path) -> None:
    """Rendered ConfigMaps contain the same profiles as the directory, even with subdirectories and
    binary data.
    """
    top = tmp_path / "set"
    (top / "profiles/deep").mkdir(parents=True)
    (top / "web.profile").write_bytes(b"profile web {\n  file,\n}\n")
    (top / "profiles/audit.json").write_bytes(b'{\r\n\t"defaultAction": "SCMP_ACT_LOG"}')
    (top / "profiles/deep/x.json").write_bytes(b"\xff\x00{")
    text, mistakes = rendered(top)
    (tmp_path / "set.yaml").write_text(text)
    (original,) = DirectorySource(str(top), clock_ns=time.time_ns).read()
    (rendered_set,) = ManifestSource(str(tmp_path / "set.yaml")).read()
    assert mistakes == ()
    assert {key.path: key.content for key in instance_of(rendered_set, Read).source_keys} == {
        key.path: key.content for key in instance_of(original, Read).source_keys
    }


def test_each_directory_has_a_config_map_with_its_prefix(tmp_path: Path) -> None:
    """Each directory becomes a ConfigMap. An annotation contains the path of the directory, and a
    label lets the DaemonSet select the ConfigMap.
    """
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


def test_a_large_directory_is_split_into_several_config_maps(tmp_path: Path) -> None:
    """A large directory is split into several ConfigMaps. Each ConfigMap is smaller than 1 MiB, and
    no ConfigMap is empty.
    """
    for number in range(5):
        (tmp_path / f"{number}.json").write_text("x" * 300_000)
    sizes = [
        len(yaml.safe_dump(document)) for document in yaml.safe_load_all(rendered(tmp_path)[0])
    ]
    assert (len(sizes), max(sizes) < 1 << 20) == (3, True)


def test_a_file_that_is_too_large_for_a_config_map_is_a_mistake(tmp_path: Path) -> None:
    """A file that is too large for a ConfigMap is a mistake. All other files are rendered."""
    (tmp_path / "a b.json").write_text("{}")
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "out.json").symlink_to("/nowhere")
    text, mistakes = rendered(tmp_path)
    assert list(yaml.safe_load(text)["data"]) == ["c.json"]
    assert len(mistakes) == 2


def test_a_file_that_equals_the_output_has_no_differences(tmp_path: Path) -> None:
    """Only a file that equals the output exactly has no differences. A byte order mark or other
    line endings are differences.
    """
    (tmp_path / "web.json").write_text("{}")
    text, _ = rendered(tmp_path)
    committed = tmp_path / "web.yaml"
    for content, is_equal in (
        (text.encode(), True),
        (text.replace("\n", "\r\n").encode(), False),
        (b"\xef\xbb\xbf" + text.encode(), False),
        (text.encode() + b"\xff", False),
        (b"", False),
    ):
        committed.write_bytes(content)
        assert (render.differences(str(committed), text) == []) == is_equal


def test_differences_are_a_unified_diff(tmp_path: Path) -> None:
    """Differences are printed as a unified diff from the file to the output."""
    committed = tmp_path / "web.yaml"
    committed.write_text("a\nold\n")
    assert render.differences(str(committed), "a\nnew\n") == [
        f"--- {committed}",
        "+++ output of render",
        "@@ -1,3 +1,3 @@",
        " a",
        "-old",
        "+new",
        " ",
    ]


def test_bytes_that_look_like_their_escape_sequence_are_a_difference(tmp_path: Path) -> None:
    """Invalid bytes and text that looks like their escape sequence would result in equal lines of a
    diff, so one line contains the reason instead.
    """
    committed = tmp_path / "web.yaml"
    committed.write_bytes(b"\xff")
    assert render.differences(str(committed), "\\xff") == [
        f"{committed} contains bytes that are not valid UTF-8"
    ]


def test_a_directory_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """The message about a missing directory differs from the message about an empty directory."""
    absent = f"{tmp_path}/absent"
    result = render.render(absent, "n", "ns", DOMAIN)
    assert (result.text, result.read) == ("", False)
    assert result.mistakes == (f"{absent} does not exist",)
    result = render.render(str(tmp_path), "n", "ns", DOMAIN)
    assert result.read
    assert result.mistakes == (f"{tmp_path}: the directory contains no profile",)


INCLUDING = "profile web {\n  include <abstractions/web>\n}\n"
INLINED = (
    "profile web {{\n"
    "  # begin include <abstractions/web>\n"
    "# file {directory}/abstractions/web\n"
    "/srv/** r,\n"
    "# end include <abstractions/web>\n"
    "}}\n"
)


def include_directory(tmp_path: Path) -> str:
    """Create an include directory with one abstraction."""
    directory = tmp_path / "apparmor.d"
    (directory / "abstractions").mkdir(parents=True)
    (directory / "abstractions/web").write_text("/srv/** r,\n")
    return str(directory)


def test_an_inlined_profile_has_no_include_rules(tmp_path: Path) -> None:
    """With --inline, the output for a single file is the text of the profile without include rules,
    whatever the file extension is.
    """
    include = include_directory(tmp_path)
    (tmp_path / "web.txt").write_text(INCLUDING)
    result = render.inline(str(tmp_path / "web.txt"), [include])
    assert result == render.Rendered(text=INLINED.format(directory=include), mistakes=())


def test_config_maps_can_have_inlined_profiles(tmp_path: Path) -> None:
    """Rendered ConfigMaps can contain AppArmor profiles with expanded includes. Other profiles do
    not change.
    """
    include = include_directory(tmp_path)
    top = tmp_path / "set"
    top.mkdir()
    (top / "web.profile").write_text(INCLUDING)
    (top / "audit.json").write_text("{}")
    (top / "bad.profile").write_text("include <absent>\nprofile bad { }\n")
    result = render.render(str(top), "n", "ns", DOMAIN, [include])
    (document,) = yaml.safe_load_all(result.text)
    assert document["data"] == {
        "audit.json": "{}",
        "web.profile": INLINED.format(directory=include),
    }
    assert result.mistakes == (
        (
            '"bad.profile": line 1: The includes in the text cannot be expanded: '
            f"{include} does not contain absent. Pass a directory that contains the file with "
            "another --include."
        ),
    )


def test_a_profile_that_cannot_be_inlined_has_a_reason(tmp_path: Path) -> None:
    """If the includes of a profile cannot be expanded, the error contains the reason, for example a
    missing or large file or an absolute path.
    """
    include = include_directory(tmp_path)
    absent = render.inline(str(tmp_path / "absent"), [include])
    assert (absent.read, absent.mistakes) == (
        False,
        (f"{tmp_path}/absent: No such file or directory",),
    )
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    large = render.inline(str(tmp_path / "large"), [include])
    assert (large.read, len(large.mistakes)) == (True, 1)
    (tmp_path / "web").write_text('include "/etc/shadow"\n')
    (mistake,) = render.inline(str(tmp_path / "web"), [include]).mistakes
    assert "The path of this include rule is absolute" in mistake
