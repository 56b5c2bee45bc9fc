"""Tests of the content and the function of the built image."""

import hashlib
import json
import re
import stat
import tarfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.system import image

PYTHON = "/opt/profile-loader/bin/python"
SITE = "/opt/profile-loader/lib/python3.13/site-packages"
SBOM = "usr/share/profile-loader/sbom.cdx.json"
PROFILES = (Path("profiles").absolute(), "profiles")
PEAK = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"


def parts(root):
    """Return the size of each part of the image in bytes. The last value is the total size."""
    sizes = dict.fromkeys(
        (
            "bytecode for all Python code",
            "kubernetes, the API client",
            "other Python packages",
            "the agent",
            "Python's interpreter and library",
            "AppArmor's parser and abstractions",
            "the rest of Debian",
        ),
        0,
    )
    bytecode, client, others, own, python, apparmor, rest = sizes
    seen = set()
    for path in root.rglob("*"):
        status = path.lstat()
        if path.is_symlink() or not path.is_file() or status.st_ino in seen:
            continue
        seen.add(status.st_ino)
        name = str(path.relative_to(root))
        packages, _, inner = name.partition("site-packages/")
        if name.endswith(".pyc"):
            part = bytecode
        elif inner and packages.startswith("opt/"):
            result = {"kubernetes": client, "agent": own}
            part = result.get(inner.split("/")[0], others)
        elif name.startswith(("usr/lib/python3", "usr/bin/python3", "opt/")):
            part = python
        elif name.startswith(("etc/apparmor", "usr/sbin/apparmor", "usr/lib/apparmor")):
            part = apparmor
        else:
            part = rest
        sizes[part] += status.st_size
    sizes["total"] = sum(sizes.values())
    return sizes


@pytest.fixture(scope="module")
def built():
    return image.build()


def test_the_image_is_configured_as_documented(built):
    """The entry point, the environment, the port and the labels of the image have exactly the
    documented values.
    """
    about = "org.opencontainers.image."
    labels = {k: v for k, v in built.config["Labels"].items() if k.startswith(about)}
    assert {**built.config, "Labels": labels} == {
        "Entrypoint": ["profile-loader"],
        "Env": [
            "PATH=/opt/profile-loader/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "MALLOC_ARENA_MAX=2",
        ],
        "ExposedPorts": {"9808/tcp": {}},
        "Labels": {
            about + "title": "profile-loader",
            about + "description": "Installs AppArmor and seccomp profiles on Kubernetes nodes",
            about + "licenses": "Apache-2.0",
            about + "version": image.VERSION,
            about + "revision": image.REVISION,
            about + "base.name": "localhost/base",
        },
    }
    expected = f"profile-loader {image.VERSION} (revision {image.REVISION})\n"
    assert built.run("--version").stdout == expected


def test_the_image_checks_the_shipped_profiles_with_its_own_parser(built):
    """The parser in the image accepts all shipped profiles with the abstractions in the image."""
    result = built.run("check", "-v", "/mnt/profiles", "--output", "json", mounts=[PROFILES])
    rows = {item["key"]: item["state"] for item in json.loads(result.stdout)["profiles"]}
    assert rows == {
        "k8s-apparmor-example-deny-write.profile": "accepted",
        "prevent-chmod": "accepted",
        "profiles/audit.json": "accepted",
        "profiles/fine-grained.json": "accepted",
        "profiles/violation.json": "accepted",
    }
    assert "AppArmor profiles were compiled against" in result.stderr


def test_one_pass_installs_the_shipped_profiles_with_the_rights_of_the_pod(built, tmp_path):
    """One pass installs the shipped profiles in a temporary host root, with CAP_MAC_ADMIN as the
    only capability.
    """
    result = built.run(
        "--oneshot", "--source", "/mnt/profiles", "--host-root", "/mnt/host",
        "--allow-unsupported", "--output", "json", mounts=[PROFILES, (tmp_path, "host")],
    )  # fmt: skip
    rows = {item["name"]: item["state"] for item in json.loads(result.stdout)["profiles"]}
    expected = {"prevent-chmod", "profiles/audit.json", "profiles/fine-grained.json"}
    expected.add("profiles/violation.json")
    assert {name for name, state in rows.items() if state == "installed"} == expected
    assert set(rows.values()) == {"installed", "unsupported"}
    folder = tmp_path / "var/lib/kubelet/seccomp"
    assert {
        str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file()
    } == expected


def test_every_module_has_bytecode_that_is_used_unchecked(built):
    """Every Python module has bytecode with an unchecked hash (PEP 552), so that the bytecode stays
    valid when file times change.
    """
    code = """
import glob, importlib.util as util, pathlib
tops = [pathlib.Path(one) for one in ("/opt/profile-loader/lib", *glob.glob("/usr/lib/python3*"))]
for path in sorted(one for top in tops for one in top.rglob("*.py")):
    wanted = util.MAGIC_NUMBER + (1).to_bytes(4, "little") + util.source_hash(path.read_bytes())
    made = pathlib.Path(util.cache_from_source(str(path)))
    if not made.exists() or made.read_bytes()[:16] != wanted:
        print(path)
print(len(tops))
"""
    assert built.execute(PYTHON, "-I", "-c", code).stdout == "3\n"


def test_every_module_of_the_agent_is_imported_from_bytecode(built):
    """Python imports every module of the agent from bytecode: the option -v shows that no origin is
    a source file.
    """
    code = (
        "import pkgutil, importlib, agent\n"
        "for one in pkgutil.walk_packages(agent.__path__, 'agent.'):\n"
        "    if one.name != 'agent.__main__': importlib.import_module(one.name)\n" + PEAK
    )
    result = built.execute(PYTHON, "-I", "-v", "-c", code)
    # `python -v` prints bytecode paths in quotes, and source paths without quotes
    # (importlib/_bootstrap_external).
    came = re.findall(r"^# code object from (.+)$", result.stderr, re.MULTILINE)
    assert [item for item in came if item.endswith(".py")] == []
    assert f"'{SITE}/agent/core/plan/__pycache__/__init__.cpython-313.pyc'" in came
    peak = int(result.stdout) / 1024
    print(f"image: {peak:.0f} MiB with all modules imported")
    assert peak < 64, "docs/image.md"


def test_one_pass_needs_less_memory_than_the_pod_requests(built, tmp_path):
    """One pass uses less than 64 MiB of memory, which the DaemonSet requests."""
    code = (
        "import sys; from agent.__main__ import main\n"
        "status = main(sys.argv[1:])\n" + PEAK + "\nsys.exit(status)"
    )
    result = built.execute(
        PYTHON, "-I", "-c", code, "--oneshot", "--source", "/mnt/profiles", "--host-root",
        "/mnt/host", "--allow-unsupported", mounts=[PROFILES, (tmp_path, "host")],
    )  # fmt: skip
    peak = int(result.stdout.splitlines()[-1]) / 1024
    print(f"image: {peak:.0f} MiB for one pass")
    assert peak < 48, "docs/image.md"


def test_the_image_contains_no_build_or_download_tool(built):
    """The image contains no compiler, make, pip, uv, git or download tool, either as a command or
    as a module.
    """
    tools = {"pip", "pip3", "uv", "gcc", "cc", "c++", "ld", "as", "make", "curl", "wget", "git"}
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "opt/profile-loader/bin")
    commands = {item.name for folder in folders for item in (built.root / folder).iterdir()}
    assert commands & tools == set()
    assert {item.name for item in (built.root / "opt/profile-loader/bin").iterdir()} == {
        "profile-loader", "python", "python3", "python3.13",
    }  # fmt: skip
    modules = ("pip", "setuptools", "hatchling", "ensurepip")
    tops = [built.root / "opt/profile-loader/lib", *(built.root / "usr/lib").glob("python3*")]
    assert [item for top in tops for name in modules for item in top.rglob(name)] == []


def test_no_file_of_the_image_is_writable_for_other_users(built):
    """Other users can write only to sticky directories, to devices, and to Debian's directory for
    the group mail.
    """
    result = {}
    for path in built.root.rglob("*"):
        mode = path.lstat().st_mode
        if mode & (stat.S_IWOTH | stat.S_IWGRP) and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            result[str(path.relative_to(built.root))] = oct(stat.S_IMODE(mode))
    assert result == {
        "tmp": "0o1777", "var/tmp": "0o1777", "run/lock": "0o1777", "var/mail": "0o2775",
    }  # fmt: skip
    agents = [item.lstat() for item in (built.root / "opt/profile-loader").rglob("*")]
    assert {(item.st_uid, item.st_gid) for item in agents} == {(0, 0)}
    assert [item for item in agents if item.st_mode & (stat.S_ISUID | stat.S_ISGID)] == []


def test_the_image_contains_no_leftovers_of_the_build(built):
    """The image contains no package lists, logs, caches, wheels, build directories or name
    servers.
    """
    for name in ("var/lib/apt/lists", "var/log", "var/cache/apt", "mnt", "media", "root/.cache"):
        place = built.root / name
        assert [str(item) for item in (place.rglob("*") if place.exists() else ())] == [], name
    for name in ("src", "build", "wheels", "bytecode", "sbom"):
        assert not (built.root / name).exists(), name
    assert (built.root / "etc/resolv.conf").read_text() == ""
    site = built.root / "opt/profile-loader/lib"
    assert [*site.rglob("direct_url.json"), *site.rglob("*.whl")] == []


def test_two_builds_produce_the_same_files(built):
    """Two builds result in the same mode, owner and content of every path."""
    one, two = image.digests(built.root), image.second_build_digests()
    different = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    assert different == [], "\n".join(different[:60])


def test_the_archive_contains_the_built_image(built, tmp_path):
    """The docker-archive contains the layers and the entry point of the built image."""
    path = tmp_path / "image.tar"
    image.archive(path)
    with tarfile.open(path) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))
        config = json.load(tar.extractfile(manifest["Config"]))
        layers = []
        for name in manifest["Layers"]:
            result = tar.getmember(name)
            # A layer that occurs twice is stored as a link.
            file = tar.extractfile(result)
            layers.append("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
    assert manifest["RepoTags"] == [image.NAME]
    assert layers == config["rootfs"]["diff_ids"]
    assert config["config"]["Entrypoint"] == built.config["Entrypoint"]
    assert (config["os"], config["architecture"]) == ("linux", "amd64")


def test_the_sbom_is_complete(built):
    """The SBOM lists each Debian package and each Python package exactly once, and the image
    itself.
    """
    document = json.loads((built.root / SBOM).read_text())
    head = {key: document[key] for key in ("bomFormat", "specVersion", "version")}
    assert head == {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    version = built.config["Labels"]["org.opencontainers.image.version"]
    about = document["metadata"]["component"]
    assert (about["type"], about["name"], about["version"]) == (
        "container", "profile-loader", version,
    )  # fmt: skip

    records = (built.root / "var/lib/dpkg/status").read_text().strip().split("\n\n")
    parsed = [HeaderParser().parsestr(item) for item in records]
    debian = {
        (f"deb/debian/{item['Package']}", item["Version"])
        for item in parsed
        if item["Status"] == "install ok installed"
    }
    site = built.root / SITE[1:]
    result = [
        HeaderParser().parsestr(item.read_text()) for item in site.glob("*.dist-info/METADATA")
    ]
    python = {
        ("pypi/" + re.sub(r"[-_.]+", "-", item["Name"]).lower(), item["Version"])
        for item in result
        if item["Name"] != "profile-loader"
    }
    listed = [
        (item["purl"].removeprefix("pkg:").partition("@")[0].replace("%2B", "+"), item["version"])
        for item in document["components"]
    ]
    assert sorted(listed) == sorted(debian | python)
    references = [item["bom-ref"] for item in document["components"]]
    assert len(set(references)) == len(references)
    locked = re.findall(
        r"^([a-z0-9-]+)==(\S+)", Path("requirements.lock").read_text(), re.MULTILINE
    )
    assert python <= {(f"pypi/{name}", version) for name, version in locked}


def test_the_documented_command_prints_the_sbom(built):
    """The command with `--entrypoint cat` in docs/image.md prints the SBOM."""
    assert f"--entrypoint cat {image.NAME} /{SBOM}" in Path("docs/image.md").read_text()
    assert built.execute("cat", f"/{SBOM}").stdout == (built.root / SBOM).read_text()


def test_only_the_asynchronous_client_is_removed_from_a_package(built):
    """The image contains every file that the packages record, except for the module
    kubernetes/aio.
    """
    site = built.root / SITE[1:]
    missing = set()
    for record in site.glob("*.dist-info/RECORD"):
        for line in record.read_text().splitlines():
            name = line.split(",")[0].strip('"')
            if name.endswith((".py", ".so")) and not (site / name).exists():
                missing.add("/".join(name.split("/")[:2]))
    assert missing == {"kubernetes/aio"}
    sources = [item.read_text() for item in (site / "agent").rglob("*.py")]
    assert not any("kubernetes.aio" in item for item in sources)


def test_the_size_of_the_image_is_as_documented(built):
    """Each size in docs/image.md differs from the real size by at most ten percent or half a
    megabyte.
    """
    measured = parts(built.root)
    table = "\n".join(f"| {name} | {size / 1e6:.1f} |" for name, size in measured.items())
    print(table)
    documented = re.findall(
        r"^\| (.+?) \| ([0-9.]+) \|$", Path("docs/image.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in documented] == list(measured), table
    for name, size in documented:
        expected = measured[name] / 1e6
        assert abs(float(size) - expected) <= max(expected / 10, 0.5), f"{name}: {expected:.1f}"


def test_every_file_that_the_containerfile_copies_is_in_the_build_context():
    """The file .containerignore and the builder of the tests include all files that the
    Containerfile copies.
    """
    recipe = Path("Containerfile").read_text()
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", recipe, re.MULTILINE)
        for word in line.split()
    }
    copied |= set(re.findall(r"type=bind,source=(\S+?),", recipe))
    let = Path(".containerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in let if line.startswith("!")} == copied
    assert {*image.INPUTS, "agent"} == copied | {"Containerfile"}
