"""Compares the compiled policies of expanded texts and of the original texts.

The parsers come from several releases. A parser compiles the original text with its include
directory. The parser compiles the expanded text with a directory that contains only the features
files of abi rules. Both policies must consist of the same bytes.
"""

import shutil
import subprocess

import pytest

from agent.backends.apparmor import include_expansion
from agent.backends.apparmor.include_expansion import ExpansionError
from agent.backends.apparmor.include_files import IncludeDirectories
from tests import expansion_search, include_search
from tests.system import apparmor_releases, kept

PACKAGES = ("apparmor-profiles", "apparmor-profiles-extra")
# The number of profiles in each release's packages that compile.
COMPILED = {"host": 143, "trixie": 97, "sid": 141}
FILES = {
    "tunables/base": "@{BASE}=/srv\n",
    "tunables/d/b": "@{BASE}+=/b\n",
    "tunables/d/a": "include <tunables/base>\n@{BASE}+=/a\n",
    "tunables/d/README": "not a profile\n",
    "tunables/open": "@{OPEN}=a",
    "abstractions/rules": "abi <abi/3.0>,\n@{BASE}/** r,\n  include if exists <local/rules>\n",
    "abstractions/child": "profile child {\n  include <abstractions/rules>\n  /child r,\n}\n",
    "abstractions/comment": "# include <abstractions/none>\n/comment r,",
    "abstractions/dos": "/dos r,\r\n  include <abstractions/comment>\r\n",
}
TEXTS = {
    "a child and a hat": (
        "include <tunables/base>\nprofile web {\n  include <abstractions/rules>\n"
        "  include <abstractions/child>\n  ^HAT {\n    include <abstractions/rules>\n  }\n"
        "  include <abstractions/rules>\n}\n"
    ),
    "a directory": (
        "include <tunables/base>\ninclude <tunables/d>\nprofile web {\n  @{BASE}/x r,\n}\n"
    ),
    "a variable without a line break": (
        "include <tunables/open>\nprofile web {\n  /@{OPEN} r,\n}\n"
    ),
    "a rule without a line break": (
        "profile web {\n  include <abstractions/comment>\n  /a r,\n}\n"
    ),
    "line breaks of DOS": "profile web {\r\n  include <abstractions/dos>\r\n  /a r,\r\n}\r\n",
    "rules in one line": (
        "include <tunables/base>\nprofile web { include <abstractions/rules> /a r, }\n"
    ),
    "an abi rule": (
        "abi <abi/3.0>,\ninclude <tunables/base>\nprofile web {\n"
        "  include <abstractions/rules>\n  dbus,\n}\n"
    ),
    "two profiles": (
        "include <tunables/base>\n/usr/bin/a {\n  include <abstractions/rules>\n}\n"
        "profile b flags=(complain) {\n  include <abstractions/rules>\n  owner {\n"
        "    include <abstractions/rules>\n    /owned w,\n  }\n}\n"
    ),
}


def packaged_profiles(release):
    """Return the profiles in the packages of a release, and create the local files that the
    profiles include.
    """
    directories = [apparmor_releases.include_dir(release)]
    if release == "host":
        for package in PACKAGES:
            folder = kept.package(package)
            directories += [folder / "etc/apparmor.d", folder / "usr/share/apparmor/extra-profiles"]
    return [
        path
        for directory in directories
        if directory.is_dir()
        for path in sorted(directory.iterdir())
        if path.is_file()
    ]


@pytest.fixture(scope="module", params=apparmor_releases.RELEASES)
def compiler(request, tmp_path_factory):
    """Return the compiler of one release."""
    return Compiler(request.param, tmp_path_factory.mktemp(request.param))


class Compiler:
    """The parser of one release, with an include directory and a directory without includes."""

    def __init__(self, release, folder):
        self.release = release
        self.include_dir = folder / "apparmor.d"
        shutil.copytree(apparmor_releases.include_dir(release), self.include_dir)
        self.profiles = packaged_profiles(release)
        if release == "host":
            for package in PACKAGES:
                origin = kept.package(package) / "etc/apparmor.d"
                shutil.copytree(origin, self.include_dir, dirs_exist_ok=True)
        for path in self.profiles:
            # The installation scripts of the packages create an empty local file for each profile.
            (self.include_dir / "local" / path.name).touch()
        self.bare = folder / "bare"
        shutil.copytree(self.include_dir / "abi", self.bare / "abi")
        self.features = self.bare / "abi/3.0"

    def compile(self, text, base):
        """Return the exit status and the compiled policy of a text."""
        command = [*apparmor_releases.command(self.release), "-Q", "-K", "-S"]
        command += ["-O", "no-expr-simplify", "--base", base, "--kernel-features", self.features]
        result = subprocess.run(command, input=text, capture_output=True, check=False)
        return result.returncode, result.stdout

    def expanded(self, text):
        """Return the expanded form of a text, which has no include rules."""
        files = IncludeDirectories([str(self.include_dir)], max_bytes=1 << 20)
        return include_expansion.expand(text, files, max_characters=1 << 20).text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_expanded_text_compiles_to_the_same_policy(compiler, text):
    """An expanded text compiles to the same policy, and needs no file except the features file of
    its abi rule.
    """
    for name, content in FILES.items():
        path = compiler.include_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    original = compiler.compile(text.encode(), compiler.include_dir)
    assert original[0] == 0
    expanded = compiler.expanded(text)
    assert compiler.compile(expanded.encode(), compiler.bare) == original


def test_some_packaged_profiles_compile_to_the_same_policy(compiler):
    """Every eighth profile of Debian's packages compiles to the same policy after its expansion."""
    compiled, _ = expanded_profiles(compiler, compiler.profiles[::8])
    assert compiled >= COMPILED[compiler.release] // 8


@pytest.mark.search
def test_every_packaged_profile_compiles_to_the_same_policy(compiler):
    """Every profile of Debian's packages compiles to the same policy after its expansion. A file
    that contains no profile is rejected.
    """
    compiled, refused = expanded_profiles(compiler, compiler.profiles)
    assert refused == [("README", 1)] * (compiler.release == "host")
    assert compiled == COMPILED[compiler.release]


def test_generated_texts_compile_to_the_same_policy(tmp_path):
    """A short search with a fixed seed finds no text whose policy changes when its includes are
    expanded.
    """
    commands = {name: apparmor_releases.command(name) for name in apparmor_releases.RELEASES}
    random_ = include_search.random_numbers(16)
    counts, failures = expansion_search.search(random_, commands, tmp_path, 150)
    print(dict(counts))
    assert failures == []
    assert counts["host, compiled"] > 0


@pytest.mark.search
def test_many_generated_texts_compile_to_the_same_policy(tmp_path):
    """The parsers of three releases compile 2,000 texts and their expanded forms to the same
    policies.
    """
    commands = {name: apparmor_releases.command(name) for name in apparmor_releases.RELEASES}
    random_ = include_search.random_numbers(1616)
    counts, failures = expansion_search.search(random_, commands, tmp_path, 2000)
    print(dict(counts))
    assert failures == []


def expanded_profiles(compiler, paths):
    """Return the number of profiles that compile to the same policy, and the rejected files."""
    compiled, refused = 0, []
    for path in paths:
        text = path.read_bytes().decode("utf-8")
        original = compiler.compile(text.encode(), compiler.include_dir)
        try:
            expanded = compiler.expanded(text)
        except ExpansionError:
            refused.append((path.name, original[0]))
            continue
        assert (path, compiler.compile(expanded.encode(), compiler.bare)) == (path, original)
        compiled += 1
    return compiled, refused
