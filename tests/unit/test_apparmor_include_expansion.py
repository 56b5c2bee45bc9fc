"""Tests of agent.backends.apparmor.include_expansion and include_rules."""

import pytest

from agent.backends.apparmor import include_expansion, include_rules
from agent.backends.apparmor.include_expansion import (
    ExpansionError,
    IncludedFile,
    IncludeFileError,
    Origin,
)

FILES = {
    "abstractions/base": "abi <abi/4.0>,\n/base r,\n",
    "abstractions/nested": "  include <abstractions/base>\n  /nested r,",
    "abstractions/open": "profile child {\n",
    "abstractions/close": "}\n",
    "abstractions/unfinished": "capability\n  signal",
    "abstractions/loop": "profile loop {\n  include <abstractions/loop>\n}\n",
    "tunables/global": "@{HOME}=/home/*\n",
    "tunables/value": "@{VALUE}=a",
}
DIRECTORIES = {"tunables/home.d": ("tunables/home.d/b", "tunables/home.d/a"), "empty.d": ()}


class Files:
    """Include files in memory, with the interface of include_expansion.IncludeFiles."""

    def find(self, name: str) -> tuple[include_expansion.IncludedFile, ...] | None:
        """Return the files to which an include rule with this name resolves."""
        if name == "broken":
            raise IncludeFileError("broken is not UTF-8", "Save it as UTF-8.")
        if name in DIRECTORIES:
            return tuple(
                IncludedFile(name=path, path=f"/d/{path}", text=f"@{{HOME}}+={path[-1]}\n")
                for path in DIRECTORIES[name]
            )
        text = FILES.get(name)
        return None if text is None else (IncludedFile(name=name, path=f"/d/{name}", text=text),)

    def directories(self) -> str:
        """Return the name of the directory."""
        return "/d"


def expand(text: str, max_characters: int = 10_000) -> include_expansion.Expanded:
    """Return the expanded form of a text."""
    return include_expansion.expand(text, Files(), max_characters=max_characters)


EXPANDED = {
    "no include": ("profile web {\n  file,\n}\n", "profile web {\n  file,\n}\n"),
    "a word in a comment": ("# include <x>\nprofile web { }\n", "# include <x>\nprofile web { }\n"),
    "a tunable": (
        "include <tunables/global>\nprofile web { }\n",
        (
            "# begin include <tunables/global>\n"
            "# file /d/tunables/global\n"
            "@{HOME}=/home/*\n"
            "# end include <tunables/global>\n"
            "profile web { }\n"
        ),
    ),
    "nested includes": (
        "profile web {\n  #include <abstractions/nested>\n}\n",
        (
            "profile web {\n"
            "  # begin include <abstractions/nested>\n"
            "# file /d/abstractions/nested\n"
            "  # begin include <abstractions/base>\n"
            "# file /d/abstractions/base\n"
            "abi <abi/4.0>,\n"
            "/base r,\n"
            "# end include <abstractions/base>\n"
            "  /nested r,\n"
            "# end include <abstractions/nested>\n"
            "}\n"
        ),
    ),
    "rules in the same line": (
        "profile web { include <tunables/value> /a r, }\n",
        (
            "profile web { # begin include <tunables/value>\n"
            "# file /d/tunables/value\n"
            "@{VALUE}=a\n"
            "# end include <tunables/value>\n"
            " /a r, }\n"
        ),
    ),
    "a second abi rule": (
        "abi <abi/3.0>,\nprofile web {\n  include <abstractions/base>\n  file,\n}\n",
        (
            "abi <abi/3.0>,\n"
            "profile web {\n"
            "  # begin include <abstractions/base>\n"
            "# file /d/abstractions/base\n"
            "# omitted, because only the first abi applies: abi <abi/4.0>\n"
            "/base r,\n"
            "# end include <abstractions/base>\n"
            "  file,\n"
            "}\n"
        ),
    ),
    "a missing optional file": (
        "profile web {\n  include if exists <local/web>\n}\n",
        (
            "profile web {\n"
            "  # begin include if exists <local/web>\n"
            "# local/web does not exist\n"
            "# end include if exists <local/web>\n"
            "}\n"
        ),
    ),
    "a directory": (
        "include <tunables/home.d>\n",
        (
            "# begin include <tunables/home.d>\n"
            "# file /d/tunables/home.d/b\n"
            "@{HOME}+=b\n"
            "# file /d/tunables/home.d/a\n"
            "@{HOME}+=a\n"
            "# end include <tunables/home.d>\n"
        ),
    ),
    "an empty directory": (
        "include <empty.d>\n",
        "# begin include <empty.d>\n# empty.d is an empty directory\n# end include <empty.d>\n",
    ),
    "a repeated include": (
        "include <tunables/global>\ninclude <tunables/global>\n",
        (
            "# begin include <tunables/global>\n"
            "# file /d/tunables/global\n"
            "@{HOME}=/home/*\n"
            "# end include <tunables/global>\n"
            "# omitted, because it was included before: include <tunables/global>\n"
        ),
    ),
}


@pytest.mark.parametrize(("text", "expanded"), EXPANDED.values(), ids=EXPANDED)
def test_each_include_rule_is_replaced(text: str, expanded: str) -> None:
    """Each include rule is replaced by the content of its file. Comments show the rule and the file
    of each part.
    """
    result = expand(text)
    assert result.text == expanded
    assert len(result.origins) == expanded.count("\n")


def test_each_profile_includes_a_file_once() -> None:
    """The parser includes a file once in each profile, hat and child profile."""
    text = (
        "profile a {\n include <tunables/value>\n owner { include <tunables/value>\n}\n"
        "^hat {\n include <tunables/value>\n}\n include <tunables/value>\n}\n"
        "/usr/bin/b {\n include <tunables/value>\n}\n"
    )
    assert expand(text).text.count("@{VALUE}=a") == 3


def test_each_line_has_its_origin() -> None:
    """Each line of the expanded text has an origin: the text, an included file, or the replaced
    rule.
    """
    text = "profile web {\n  include <abstractions/nested>\n  file,\n}\n"
    result = expand(text)
    assert [str(origin) for origin in result.origins] == [
        "line 1",
        "line 2",
        "line 2",
        "abstractions/nested line 1",
        "abstractions/nested line 1",
        "abstractions/base line 1",
        "abstractions/base line 2",
        "abstractions/nested line 1",
        "abstractions/nested line 2",
        "line 2",
        "line 3",
        "line 4",
    ]


REFUSED = {
    "a missing file": (
        "profile web {\n  include <abstractions/x>\n}\n",
        Origin("", 2),
        "/d does not contain abstractions/x",
        "another --include",
    ),
    "an absolute path": (
        'include "/etc/shadow"\n',
        Origin("", 1),
        "the path is absolute",
        "include <abstractions/base>",
    ),
    "a path that leaves the directory": (
        "include <../shadow>\n",
        Origin("", 1),
        "the path leaves its directory with ..",
        "include <abstractions/base>",
    ),
    "an unreadable file": (
        "include <broken>\n",
        Origin("", 1),
        "broken is not UTF-8",
        "Save it as UTF-8.",
    ),
    "a block that another file closes": (
        "include <abstractions/open>\n}\n",
        Origin("abstractions/open", 1),
        "opens or closes a block",
        "completely in one file",
    ),
    "a block that another file opens": (
        "profile web {\n  include <abstractions/close>\n",
        Origin("abstractions/close", 1),
        "opens or closes a block",
        "completely in one file",
    ),
    "an unfinished rule": (
        "profile web {\n  include <abstractions/unfinished>\n  set=hup,\n}\n",
        Origin("abstractions/unfinished", 3),
        "no known version of apparmor_parser can read the text",
        "Correct the syntax",
    ),
    "a loop": (
        "include <abstractions/loop>\n",
        Origin("abstractions/loop", 2),
        "nested more than 50 levels deep",
        "leads back to its own file",
    ),
    "a text with two meanings": (
        "@{X}=a # \\\ninclude <tunables/value>\nprofile web { }\n",
        Origin("", 2),
        "read the text in different ways",
        "Correct the syntax",
    ),
}


@pytest.mark.parametrize(("text", "origin", "reason", "hint"), REFUSED.values(), ids=REFUSED)
def test_a_text_that_cannot_be_expanded_has_a_reason(
    text: str, origin: include_expansion.Origin, reason: str, hint: str
) -> None:
    """If a text cannot be expanded, the message contains the location of the include rule, the
    reason and the next step.
    """
    with pytest.raises(ExpansionError, match=r".") as refused:
        expand(text)
    assert refused.value.origin == origin
    assert reason in str(refused.value)
    assert hint in refused.value.hint


def test_the_size_of_an_expanded_text_is_limited() -> None:
    """A text is not expanded if the result would be larger than the limit for a key."""
    with pytest.raises(ExpansionError, match="longer than a key may be"):
        expand("include <tunables/global>\n", max_characters=40)


def test_each_include_rule_has_its_position() -> None:
    """Each include rule has its position, even if its keyword and its path are on different
    lines.
    """
    text = 'abi\n <abi/3.0>\n,\n#include if exists \n  <a>\nprofile "x" { }\n'
    result = include_rules.rules(text)
    assert [(text[rule.start : rule.end], str(rule)) for rule in result] == [
        ("abi\n <abi/3.0>\n,", "abi <abi/3.0>"),
        ("#include if exists \n  <a>", "include if exists <a>"),
        ("{", "profile { "),
        ("}", "} "),
    ]
