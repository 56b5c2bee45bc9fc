"""Applies the next step of each finding to the rejected profiles of Debian's packages.

The node is a plain installation of a release, without the packages apparmor-profiles and
apparmor-profiles-extra. A next step renames a profile, removes a flag, selects an existing abi, or
replaces an include rule by the included rules.
"""

import re

import pytest

from agent.backends.apparmor import include_expansion, include_rules
from agent.backends.apparmor.include_expansion import ExpansionError
from agent.backends.apparmor.include_files import IncludeDirectories
from agent.backends.apparmor.include_rules import RuleKind
from agent.core.model import Profile
from tests.system import apparmor_releases, kept

PACKAGES = ("apparmor-profiles", "apparmor-profiles-extra")
FOLDERS = ("etc/apparmor.d", "usr/share/apparmor/extra-profiles")
HEADER = re.compile(
    r'^[ \t]*(?:profile[ \t]+)?(?P<name>"[^"]+"|\S+)(?:[ \t]+(?:"[^"]+"|[/@]\S+))?'
    r"(?P<flags>(?:[ \t]+flags[ \t]*=[ \t]*\([^)]*\))?)"
)
RENAMED = (
    "attachment_refused",
    "name_unsafe",
    "name_variable",
    "name_denied",
    "namespace_refused",
)
MAX_STEPS = 5


@pytest.fixture(scope="module")
def local_directory(tmp_path_factory):
    """Create the empty local files that the installation scripts of the packages create."""
    folder = tmp_path_factory.mktemp("includes") / "local"
    folder.mkdir()
    for package in PACKAGES:
        for path in (kept.package(package) / FOLDERS[0]).iterdir():
            if path.is_file():
                (folder / path.name).touch()
    return folder.parent


def profiles(release):
    """Return the profiles of the packages of a release."""
    folders = [apparmor_releases.include_dir(release)]
    if release == "host":
        folders += [kept.package(package) / folder for package in PACKAGES for folder in FOLDERS]
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "README"
    ]


def renamed(text):
    """Return a text in which each profile has a plain name and no attachment."""
    depth = 0
    for rule in reversed(include_rules.rules(text)):
        depth += (rule.kind is RuleKind.CLOSE_BLOCK) - rule.kind.value.endswith("{")
        if rule.kind is RuleKind.OPEN_PROFILE and depth == 0:
            begin = text.rfind("\n", 0, rule.start) + 1
            header = HEADER.match(text[begin : rule.start])
            name = re.sub(r"[^\w-]+", ".", header["name"]).strip(".")
            plain = f"profile plain.{name}{header['flags']} "
            text = text[:begin] + plain + text[rule.start :]
    return text


def corrected(text, finding, include_directories):
    """Return a text after the next step of a finding, or None if only a person can do the step."""
    if "@{exec_path} = /usr/bin/NAME" in finding.hint:
        return f"@{{exec_path}} = /usr/bin/program\n{text}"
    missing = re.search(r"Could not open '?(?P<abi>abi/)?", finding.message)
    if finding.code in RENAMED:
        return renamed(text)
    if finding.code == "unconfined_refused":
        return re.sub(r"\b(?:unconfined|default_allow)\b(?=[^()\n]*\)[^\n]*\{)", "audit", text)
    if missing is not None and missing["abi"]:
        abi = re.search(r"abi <abi/[\w.-]+>,", finding.hint)[0]
        return re.sub(r"abi\s*<abi/[\w.-]+>\s*,", abi, text)
    if missing is not None and "profile-loader render key --inline --include " in finding.hint:
        files = IncludeDirectories(include_directories, max_bytes=1 << 20)
        return include_expansion.expand(text, files, max_characters=1 << 20).text
    return None


def steps(folder, options, text, include_directories):
    """Apply next steps until the text is accepted. Return the codes of the findings."""
    codes = []
    for _ in range(MAX_STEPS):
        result = apparmor_releases.inspect(folder, options, text)
        if isinstance(result, Profile):
            return [*codes, "accepted"]
        codes.append(str(result.findings[0].code))
        try:
            changed = corrected(text, result.findings[0], include_directories)
        except ExpansionError as error:
            return [*codes, str(error)]
        if changed in (None, text):
            return [*codes, result.findings[0].message]
        text = changed
    return [*codes, "refused again"]


def outcomes(release, folder, local_directory, stride):
    """Return the findings of some profiles of a release, and the profiles that stay rejected."""
    options = apparmor_releases.backend_options(release, folder)
    include_directories = [options["include_dir"], str(local_directory)]
    include_directories += [str(kept.package(package) / FOLDERS[0]) for package in PACKAGES]
    refusals = set()
    remaining = {}
    for path in profiles(release)[::stride]:
        *codes, last = steps(folder, options, path.read_text(), include_directories)
        refusals.update(codes)
        if last != "accepted":
            remaining[path.name] = last
    return refusals, remaining


@pytest.mark.parametrize("release", apparmor_releases.RELEASES)
def test_the_next_step_of_a_rejection_works(tmp_path, local_directory, release):
    """After the recommended next steps are applied, every tenth profile is accepted."""
    refusals, remaining = outcomes(release, tmp_path, local_directory, 10)
    assert "attachment_refused" in refusals
    assert remaining == {}


@pytest.mark.search
@pytest.mark.parametrize("release", apparmor_releases.RELEASES)
def test_the_next_step_of_every_rejection_works(tmp_path, local_directory, release):
    """Once the recommended next steps are applied, every profile in the packages is accepted."""
    refusals, remaining = outcomes(release, tmp_path, local_directory, 1)
    assert "attachment_refused" in refusals
    assert remaining == {}
