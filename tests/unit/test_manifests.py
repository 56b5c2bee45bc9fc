"""Manifests that ship call the command as it is."""

import configparser
import re
import tomllib
from pathlib import Path

import yaml

from agent import cli

UNIT = Path("manifests/systemd/profile-loader-restore.service")
USER_DATA = Path("manifests/cloud-init/user-data.yaml")
COMMAND = "/usr/local/bin/profile-loader"


def parsed(argv):
    assert argv[0] == COMMAND
    return cli.parse(argv[1:], {}, lambda _: None)


def test_the_unit_runs_restore_before_the_kubelet():
    """Its command is understood, and it comes in time."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(UNIT.read_text())
    assert isinstance(parsed(unit["Service"]["ExecStart"].split()), cli.Restore)
    assert unit["Unit"]["Before"] == "kubelet.service"


def test_the_user_data_installs_what_it_writes():
    """The directory it writes is the one source of the pass that it runs."""
    text = USER_DATA.read_text()
    assert text.startswith("#cloud-config\n")
    data = yaml.safe_load(text)
    run = parsed(data["runcmd"][0])
    assert isinstance(run, cli.Run), run
    (source,) = run.settings.source
    below = source.removeprefix("dir:") + "/"
    assert [one["path"].removeprefix(below) for one in data["write_files"]] == [
        "profiles/audit.json"
    ]


def test_the_page_lists_every_manifest():
    """Each file below manifests/ lies below a path of its README, and each such path exists."""
    top = Path("manifests")
    told = re.findall(r"\]\(([^)]+)\)", (top / "README.md").read_text())
    there = {str(one.relative_to(top)) for one in top.rglob("*") if one.is_file()}
    assert [one for one in told if not (top / one).exists()] == []
    known = tuple(f"{one}/" for one in told if (top / one).is_dir())
    assert {one for one in there if not one.startswith(known)} <= {*told, "README.md"}


VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
IMAGE = f"localhost/profile-loader:{VERSION}"


def test_the_manifests_name_the_image_of_this_version():
    """A full name, so that what is built and what the kubelet looks for is one; never `latest`."""
    made = yaml.safe_load(Path("manifests/base/kustomization.yaml").read_text())
    assert made["images"] == [
        {"name": "profile-loader", "newName": IMAGE.rpartition(":")[0], "newTag": VERSION}
    ]
    there = {
        one
        for path in Path("manifests").rglob("*.yaml")
        for one in re.findall(r"^ *(?:- )?image: *(\S+)", path.read_text(), re.MULTILINE)
        if "profile-loader" in one
    }
    assert there == {"profile-loader"}
    assert f"\nARG VERSION={VERSION}\n" in Path("Containerfile").read_text()


def test_the_documents_build_carry_and_show_the_image_that_the_manifests_name():
    """Each command and each mention of it in a page has the same full name."""
    pages = [Path("README.md"), *Path("docs").rglob("*.md"), Path("manifests/README.md")]
    text = "\n".join(one.read_text() for one in pages)
    commands = re.findall(r"^(?:podman|buildah|docker) .*$", text, re.MULTILINE)
    assert commands != []
    assert [one for one in commands if IMAGE not in one.split()] == []
    assert set(re.findall(r"(?<![\w=./-])[\w./-]*profile-loader:[\w.-]+", text)) == {IMAGE}
