"""Tests that compare the source checks with the files that the real apparmor_parser opens."""

from pathlib import Path

import pytest

from agent.core.model import Profile, Rejection, SourceKey
from agent.host.filesystem import Host
from tests import include_search
from tests.inspection import apparmor_backend, inspected

HIDDEN = {
    "abi in a comment": 'profile w {{\n  capability # the abi\n  include "{absolute}"\n  ,\n}}\n',
    "quote in a comment": 'profile w {{\n  file, # "\n  "/a\n  #b" r, include "{absolute}"\n}}\n',
    "bracket in a comment": 'profile w {{\n  file, # [\n  "/a\n  #b" r, include {absolute}\n}}\n',
    "backslash in a comment": 'profile w {{\n  file, # \\\n #include "{absolute}"\n}}\n',
    "abi in a word": 'profile w {{\n  /abi r,\n  include "{absolute}"\n}}\n',
    "path in the next line": '#include\n"{absolute}"\nprofile w {{ }}\n',
    "path after a blank and a line break": "include \n\n  {absolute}\nprofile w {{ }}\n",
    "word after include": "#include{relative}\nprofile w {{ }}\n",
    "path with escapes": "include <{escaped}>\nprofile w {{ }}\n",
    "quoted path with octal escapes": 'include <"{octal}">\nprofile w {{ }}\n',
    "abi path in the next line": 'abi\n"{absolute}"\n,\nprofile w {{ }}\n',
    "comma before a carriage return": (
        'profile w {{\n  umount /a,\r\n  ,\n  include "{absolute}"\n}}\n'
    ),
}


@pytest.mark.parametrize("template", HIDDEN.values(), ids=HIDDEN)
def test_no_hidden_include_reaches_the_parser(tmp_path, template):
    """If a text would make the parser open a file outside the include directory, the agent rejects
    it before the parser runs.
    """
    canaries = include_search.Canaries(tmp_path)
    content = template.format(**canaries.paths(0)).encode()
    backend = apparmor_backend(Host(tmp_path), checking=True, include_dir=str(canaries.inside))
    opened = include_search.read_by(
        {"host": [backend.inspector.parser.path]}, canaries, {0: content}
    )
    assert opened == {"host": {0}}
    (result,) = inspected(backend, SourceKey(profile_set="dir test", key="key", content=content))
    assert isinstance(result, Rejection)
    assert {finding.code for finding in result.findings} == {"include_refused"}
    assert canaries.opened() == set()


ACCEPTED = {
    "include": "profile web {\n  file,\n  /usr/share/** r,   # should include fonts\n}\n",
    "abi": "profile web {\n  # abi 4 would include more\n  /a r, # the abi\n}\n",
    "assignment": '@{X}=a #include "/etc/shadow"\nprofile web { /@{X} r, }\n',
    "variable": (
        "#include <tunables/global>\nprofile web {\n  /x rix, # the profile @{HOME}/x\n}\n"
    ),
    "child of an include": (
        "@{MODELS} = /srv\n#include <tunables/global>\nprofile gpu {\n"
        "  #include <abstractions/opencl>\n  @{MODELS}/** r,\n}\n"
    ),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_words_in_comments_and_children_of_includes_are_accepted(tmp_path, content):
    """Any word may occur in a comment, and an included file may declare child profiles."""
    backend = apparmor_backend(Host(tmp_path), checking=True)
    (result,) = inspected(
        backend, SourceKey(profile_set="dir test", key="key", content=content.encode())
    )
    assert isinstance(result, Profile), result


def test_no_accepted_text_of_a_short_search_opens_a_canary(tmp_path):
    """A short search with a fixed seed finds no accepted text that makes the parser open a canary
    file.
    """
    command = {"host": [apparmor_backend(Host(tmp_path)).inspector.parser.path]}
    counts, failures = include_search.search(
        include_search.random_numbers(13), command, tmp_path, passing=2000
    )
    assert failures == []
    assert counts["rejected, canary opened"] > 0
    print(dict(counts))


@pytest.mark.search
def test_no_accepted_text_of_a_long_search_opens_a_canary(tmp_path):
    """The parsers of Debian 12, 13 and unstable read 300,000 accepted texts, and open no canary
    file.
    """
    commands = {"host": [apparmor_backend(Host(tmp_path)).inspector.parser.path]}
    commands |= include_search.other_releases()
    counts, failures = include_search.search(
        include_search.random_numbers(1234), commands, tmp_path, passing=300_000
    )
    print(dict(counts))
    assert failures == []


def copy_features(include_dir):
    """Copy the features file of this machine into an include directory."""
    features = include_dir / "abi/3.0"
    features.parent.mkdir()
    features.write_bytes(Path("/etc/apparmor.d/abi/3.0").read_bytes())


HOST_WORD = "lighthouse"
QUOTED = (
    f"capability {HOST_WORD},",
    f"signal set={HOST_WORD},",
    f"include <{HOST_WORD}>",
    f"abi <{HOST_WORD}>,",
    f"unix type={HOST_WORD},",
    f"@{{{HOST_WORD}}}/x r,",
    f"profile x flags=({HOST_WORD}) {{}}",
)


@pytest.mark.parametrize("rule", QUOTED)
def test_a_message_quotes_the_key_and_no_included_file(tmp_path, rule):
    """If the parser quotes a word, the message contains the word only if the key contains it."""
    copy_features(tmp_path)
    (tmp_path / "host").write_text(f"{rule}\n")
    backend = apparmor_backend(
        Host(tmp_path),
        checking=True,
        include_dir=str(tmp_path),
    )
    shown = {}
    for body in (rule, "include <host>"):
        source_key = SourceKey(
            profile_set="dir x", key="key", content=f"profile w {{\n{body}\n}}\n".encode()
        )
        (result,) = inspected(backend, source_key)
        assert isinstance(result, Rejection)
        shown[body] = repr(result.findings)
    assert HOST_WORD in shown[rule]
    assert HOST_WORD not in shown["include <host>"]
    assert "line" not in {finding.location[:4] for finding in result.findings}


CHANGES = {
    "a missing file appears": ("include if exists <new>", "d/new", "/new r,\n"),
    "a file in a directory appears": ("include <dir>", "d/dir/new", "/new r,\n"),
    "a file in a directory changes": ("include <dir>", "d/dir/old", "/new r,\n"),
    "the target of a link changes": ("include <link>", "target", "/new r,\n"),
    "the target of a broken link appears": ("include if exists <broken>", "nothing", "/new r,\n"),
    "an included file includes a new file": ("include <outer>", "d/inner", "/new r,\n"),
}


@pytest.mark.parametrize(("rule", "changed", "content"), CHANGES.values(), ids=CHANGES)
def test_a_changed_include_invalidates_the_cached_policy(tmp_path, rule, changed, content):
    """After any change in the include directory, the agent compiles a key again."""
    (tmp_path / "d/dir").mkdir(parents=True)
    (tmp_path / "d/dir/old").write_text("/old r,\n")
    (tmp_path / "d/outer").write_text("include if exists <inner>\n")
    (tmp_path / "target").write_text("/old r,\n")
    (tmp_path / "d/link").symlink_to(tmp_path / "target")
    (tmp_path / "d/broken").symlink_to(tmp_path / "nothing")
    copy_features(tmp_path / "d")
    backend, other = (
        apparmor_backend(Host(tmp_path), checking=True, include_dir=str(tmp_path / "d"))
        for _ in range(2)
    )
    source_key = SourceKey(
        profile_set="dir test", key="key", content=f"profile w {{\n{rule}\n}}\n".encode()
    )
    (before,) = inspected(backend, source_key)
    first = backend.body(before)
    (tmp_path / changed).write_text(content)
    backend.begin_pass()
    (after,) = inspected(backend, source_key)
    (fresh,) = inspected(other, source_key)
    assert isinstance(before, Profile)
    assert isinstance(after, Profile)
    assert isinstance(fresh, Profile)
    assert (first == backend.body(after), backend.body(after) == other.body(fresh)) == (False, True)
    assert before.version.context != after.version.context
