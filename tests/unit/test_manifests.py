"""Tests that the manifests use existing options, the current image and existing paths."""

import configparser
import re
import tomllib
from pathlib import Path

import yaml

from agent import cli

UNIT = Path("manifests/systemd/profile-loader-restore.service")
USER_DATA = Path("manifests/cloud-init/user-data.yaml")
COMMAND = "/usr/local/bin/profile-loader"


class CaseSensitiveParser(configparser.ConfigParser):
    """Keeps the case of the names of options."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def parsed(argv: list[str]) -> cli.Parsed:
    assert argv[0] == COMMAND
    return cli.parse(argv[1:], {}, lambda _: None)


def test_the_unit_runs_restore_before_the_kubelet() -> None:
    """The command of the systemd unit is a valid `restore`, and the unit runs before the
    kubelet.
    """
    unit = CaseSensitiveParser(interpolation=None)
    unit.read_string(UNIT.read_text())
    assert isinstance(parsed(unit["Service"]["ExecStart"].split()), cli.Restore)
    assert unit["Unit"]["Before"] == "kubelet.service"


def test_the_user_data_installs_the_profiles_that_it_writes() -> None:
    """The cloud-init user data writes profiles to one directory, and the pass that it starts reads
    only that directory.
    """
    text = USER_DATA.read_text()
    assert text.startswith("#cloud-config\n")
    data = yaml.safe_load(text)
    run = parsed(data["runcmd"][0])
    assert isinstance(run, cli.Run), run
    (source,) = run.config.source
    below = source.removeprefix("dir:") + "/"
    assert [file["path"].removeprefix(below) for file in data["write_files"]] == [
        "profiles/audit.json"
    ]


def test_the_page_lists_every_manifest() -> None:
    """manifests/README.md lists every manifest, and each listed path exists."""
    top = Path("manifests")
    listed = re.findall(r"\]\(([^)#]+)[^)]*\)", (top / "README.md").read_text())
    files = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    assert [path for path in listed if not (top / path).exists()] == []
    known = tuple(f"{path}/" for path in listed if (top / path).is_dir())
    assert {path for path in files if not path.startswith(known)} <= {*listed, "README.md"}


# These fields grant a right, or make the pod run on nodes that reject other pods.
RIGHTS = re.compile(
    r"verbs: \[|operator: Exists|add: \[|hostPID: true|hostPath: \{|privileged: true"
    r"|type: (?:Unconfined|spc_t)\}|runAsUser: 0|readOnlyRootFilesystem: false"
)
FOLDERS = ("base", "components", "helm/profile-loader/templates")


def test_every_right_and_toleration_has_a_comment() -> None:
    """The comment is in the same line, or in one of the four lines before it."""
    paths = [path for name in FOLDERS for path in Path("manifests", name).rglob("*.yaml")]
    paths.append(Path("manifests/helm/profile-loader/values.yaml"))
    count, missing = 0, []
    for path in paths:
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines):
            if RIGHTS.search(line.partition("#")[0]):
                count += 1
                place = lines[max(0, index - 4) : index + 1]
                if not any("# " in text for text in place):
                    missing.append(f"{path}:{index + 1}")
    assert count > 30
    assert missing == []


VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
# Container runtimes expand the plain name in the manifests to this name.
IMAGE = f"docker.io/library/profile-loader:{VERSION}"


def test_the_manifests_use_the_image_of_this_version() -> None:
    """The base uses the plain image name with the version as its tag, and has the version as a
    label. The chart and the Containerfile have the same version.
    """
    kustomization = yaml.safe_load(Path("manifests/base/kustomization.yaml").read_text())
    assert "images" not in kustomization
    assert kustomization["labels"][0]["pairs"]["app.kubernetes.io/version"] == VERSION
    text = "".join(path.read_text() for path in Path("manifests").rglob("*.yaml"))
    assert set(re.findall(r"app.kubernetes.io/version: (\".*)", text)) == {f'"{VERSION}"'}
    chart = yaml.safe_load(Path("manifests/helm/profile-loader/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    images = {
        image
        for path in Path("manifests").rglob("*.yaml")
        for image in re.findall(r"^ *(?:- )?image: *(\S+)", path.read_text(), re.MULTILINE)
        if "profile-loader" in image
    }
    # An init container has only the plain name, because kustomize replaces it with the image of the
    # agent.
    assert images == {"profile-loader", f"profile-loader:{VERSION}"}
    assert f"\nARG VERSION={VERSION}\n" in Path("Containerfile").read_text()


def test_the_newest_section_of_the_changelog_is_about_this_version() -> None:
    """The heading of the newest section contains this version, and either its date or the words
    "not yet released".
    """
    headings = re.findall(r"^## (.*)$", Path("CHANGELOG.md").read_text(), re.MULTILINE)
    pattern = rf"{re.escape(VERSION)} (\(not yet released\)|- \d{{4}}-\d\d-\d\d)"
    assert re.fullmatch(pattern, headings[0])


def test_the_documents_use_the_image_name_of_the_manifests() -> None:
    """In the documents, each command uses the full image name, and each sentence uses the full name
    or the plain name.
    """
    pages = [Path("README.md"), *Path("docs").rglob("*.md"), Path("manifests/README.md")]
    text = "\n".join(page.read_text() for page in pages)
    commands = re.findall(r"^(?:podman|buildah|docker) .*$", text, re.MULTILINE)
    assert commands != []
    assert [command for command in commands if IMAGE not in command.split()] == []
    assert set(re.findall(r"(?<![\w=./-])[\w./-]*profile-loader:[\w.-]+", text)) == {
        IMAGE,
        f"profile-loader:{VERSION}",
    }
