"""Tests of agent.backends.apparmor.parser_messages and parser_hints."""

import pytest

from agent.backends.apparmor import parser_hints, parser_messages
from agent.backends.apparmor.parser_messages import REPLACED
from tests.narrowing import not_none

PROGRAM = (
    b"\x7fELF\0AppArmor parser error at line %d: %s\0Could not open '%s'\0Invalid capability %s.\0"
    b"Lexer found unexpected character: '%s' (0x%x) in state: %s\0INITIAL\0"
    b"failed to find features abi '%s': %m\0profile %s (%s): dbus rules not enforced\0stdin\0"
)


def quotable(source: str) -> parser_messages.QuotableWords:
    """Return the words that a message about this text may contain."""
    return parser_messages.QuotableWords(
        source=source.encode(),
        words=parser_messages.words_of_program(PROGRAM),
        include_dir="/etc/apparmor.d/",
    )


@pytest.mark.parametrize(
    ("message", "source", "shown"),
    [
        ("Invalid capability chwon.", "capability chwon,", "Invalid capability chwon."),
        ("Invalid capability hunter2.", "capability,", f"Invalid capability {REPLACED}"),
        ("Invalid capability hunter2.", "capability hunter22,", f"Invalid capability {REPLACED}"),
        ("Could not open 'a/b'", "include <a/b>", "Could not open 'a/b'"),
        ("Could not open '/etc/x'", "include <a/b>", f"Could not open {REPLACED}"),
        (
            "Could not open '/etc/apparmor.d/a/b'", "",
            "Could not open '/etc/apparmor.d/a/b'",
        ),
        ("Could not open '/etc/apparmor.d/../x'", "", f"Could not open {REPLACED}"),
        ("Could not open '@{X}'", "/a@{X}/b r,", "Could not open '@{X}'"),
        ("Invalid root:x:0:0 of the 12 secret", "", f"Invalid {REPLACED}"),
        (
            "failed to find features abi 'x': No such file or directory", "abi <x>,",
            "failed to find features abi 'x'",
        ),
        ("Lexer found unexpected character: '%' (0x25)", "a % b",
         "Lexer found unexpected character: '%' (0x25)"),
        ("Lexer found unexpected character: '%' (0x25)", "a b",
         f"Lexer found unexpected character: {REPLACED}"),
    ],
)  # fmt: skip
def test_only_words_of_the_parser_and_of_the_key_are_shown(
    message: str, source: str, shown: str
) -> None:
    """A message shows only words of the parser and of the key. A word that only an included file
    contains is replaced.
    """
    prefix = "AppArmor parser error at line 3: "
    assert (
        parser_messages.error_message((prefix + message).encode(), quotable(source))
        == prefix + shown
    )


def test_a_warning_contains_the_names_of_the_key() -> None:
    """A warning about a missing rule may contain names that the key declares."""
    stderr = (
        b"Warning from profile web (stdin): dbus rules not enforced\n"
        b"Warning from profile host (stdin): x not enforced\n"
    )
    assert parser_messages.weaker_rules(stderr, quotable("profile web {")) == (
        "profile web: dbus rules not enforced",
        f"profile {REPLACED} not enforced",
    )


DOWNGRADED = (
    "Warning from profile web (stdin): downgrading extended network unix socket rule to generic "
    "network rule\n"
)


@pytest.mark.parametrize(
    ("stderr", "source", "lines"),
    [
        (DOWNGRADED, "profile web {\n  unix (connect) peer=(label=a),\n}\n", ["line 2"]),
        (DOWNGRADED, "profile web {\n  unix,\n  # unix (connect),\n}\n", []),
        (
            "Warning from profile web (stdin): error flag not supported. Ignoring\n",
            "\n\nprofile web flags=(error=EPERM) {\n}\n",
            ["line 3"],
        ),
        (
            "Warning from profile web (stdin): mqueue rules not enforced\n",
            "profile web {\n  # mqueue\n  audit mqueue /a,\n}\n",
            ["line 3"],
        ),
        ("Warning from profile web (stdin): x rules not enforced\n", "profile web {}\n", [""]),
        ("Warning from stdin: deprecated use of '#include'\n", "#include <a>\n", []),
    ],
)
def test_a_warning_about_a_weaker_rule_has_the_line_of_the_rule(
    stderr: str, source: str, lines: list[str]
) -> None:
    """A warning about a weakened rule contains the line of the rule. Warnings about included files
    and warnings without effect are omitted.
    """
    warnings = parser_messages.weaker_rules(stderr.encode(), everything(source))
    assert [parser_messages.weaker_rule_line(warning, source) for warning in warnings] == lines


def everything(source: str) -> parser_messages.QuotableWords:
    """Return a fake that allows every word in a message of the parser."""
    words = {"profile", "web", "rules", "not", "enforced", "downgrading", "extended", "network"}
    words |= {"unix", "socket", "rule", "to", "generic", "error", "flag", "supported", "Ignoring"}
    return parser_messages.QuotableWords(
        source=source.encode(), words=words | {"x", "mqueue"}, include_dir="/etc/apparmor.d"
    )


@pytest.mark.parametrize(
    ("message", "location"),
    [
        ("at line 3: x", ""),
        (" at line 3: x", "line 3"),
        (" at line 4: x", ""),
        ("error in /etc/apparmor.d/a at line 1: x", ""),
        ("x", ""),
    ],
)
def test_a_line_of_an_included_file_is_not_a_line_of_the_text(message: str, location: str) -> None:
    """If a line number belongs to an included file, the message does not present it as a line of
    the text.
    """
    assert parser_messages.line_reference(message, "a\nb\n") == location


def test_a_line_number_of_any_length_is_read() -> None:
    """A line number of any length is read. A line number beyond the end of the text is not
    reported.
    """
    assert parser_messages.line_reference(f" at line {'9' * 5000}: x", "a\n") == ""


# Each row contains an output of apparmor_parser 3.0.8 or 5.0.2, the message, and the beginning of
# the hint.
OUTPUTS = {
    "every line contains a reason": (
        (
            "profile web: has merged rule /bin/a with conflicting x modifiers\n"
            "ERROR merging rules for profile web, failed to load\n"
        ),
        (
            "profile web: has merged rule /bin/a with conflicting x modifiers; "
            "ERROR merging rules for profile web, failed to load"
        ),
        "Two rules give the same path",
    ),
    "a warning is not a reason": (
        (
            "Warning from profile error-pages (stdin): dbus rules not enforced\n\n"
            "Cache read/write disabled: interface file missing.\n"
            "Encoding of mount rule failed\n"
        ),
        "Encoding of mount rule failed",
        "Remove the source from the mount rule",
    ),
    "an error in an included file": (
        (
            "AppArmor parser error for /proc/self/fd/0 in profile /etc/apparmor.d/tunables/home at "
            "line 13: variable @{HOMEDIRS} was previously declared\n"
        ),
        (
            "AppArmor parser error in /etc/apparmor.d/tunables/home at line 13: "
            "variable @{HOMEDIRS} was previously declared"
        ),
        "An included file declares this variable",
    ),
    "an error in the text itself": (
        (
            "AppArmor parser error for /proc/self/fd/0 in profile /proc/self/fd/0 at line 3: "
            "Could not open 'abstractions/nope'\n"
        ),
        "AppArmor parser error at line 3: Could not open 'abstractions/nope'",
        "",
    ),
    "a forgotten include of the tunables": (
        "Found reference to variable HOMEDIRS, but is never declared\n",
        "Found reference to variable HOMEDIRS, but is never declared",
        "Begin the text with: include <tunables/global>.",
    ),
    "an undeclared variable of the text": (
        (
            "Failed to find declaration for: @{B}\n"
            "terminate called after throwing an instance of 'std::bad_alloc'\n"
            "  what():  std::bad_alloc\n"
        ),
        "Failed to find declaration for: @{B}",
        "Assign a value to @{B} before the first profile.",
    ),
}


@pytest.mark.parametrize(("stderr", "message", "hint"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_error_has_every_reason_and_a_next_step(stderr: str, message: str, hint: str) -> None:
    """The message contains every reason in the output, without warnings and without the parser's
    final line.
    """
    words = parser_messages.words_of_program(stderr.encode())
    source = "profile web { /a@{B} r, }"
    known = parser_messages.QuotableWords(
        source=source.encode(), words=words | {"x", "mqueue"}, include_dir="/etc/apparmor.d"
    )
    assert parser_messages.error_message(stderr.encode(), known) == message
    assert not parser_messages.is_out_of_memory(stderr.encode())
    assert parser_hints.hint(message, source).startswith(hint)


MISSING_FILES = {
    "an include": (
        "AppArmor parser error at line 2: Could not open 'abstractions/x'",
        (
            "/etc/apparmor.d of this node (apparmor_parser 3.0.8) does not contain abstractions/x. "
            "Put the included rules into the text: run `profile-loader render 'my web' --inline "
            "--include /etc/apparmor.d > FILE` on a machine whose /etc/apparmor.d contains it. "
        ),
    ),
    "an include of an included file": (
        f"Could not open {parser_messages.REPLACED}",
        (
            "/etc/apparmor.d of this node (apparmor_parser 3.0.8) does not contain a file that an "
            "included file includes. "
        ),
    ),
    "an abi": (
        "AppArmor parser error at line 1: Could not open 'abi/4.0'",
        (
            "/etc/apparmor.d of this node (apparmor_parser 3.0.8) does not contain abi/4.0. "
            "Replace the rule by one of: abi <abi/3.0>, Or remove the rule."
        ),
    ),
}


@pytest.mark.parametrize(("message", "hint"), MISSING_FILES.values(), ids=MISSING_FILES)
def test_the_next_step_for_a_missing_file_has_the_directory_and_the_version(
    message: str, hint: str
) -> None:
    """The hint contains the include directory, the version of the parser, and the command that
    copies the included rules into the text.
    """
    missing = not_none(parser_hints.missing_file(message))
    assert parser_hints.missing_file_hint(
        missing,
        "my web",
        include_dir="/etc/apparmor.d",
        parser_version="3.0.8",
        abis=["3.0"],
    ).startswith(hint)


def test_a_directory_without_features_files_permits_no_abi_rule() -> None:
    """If the include directory contains no features files, the only next step is to remove the abi
    rule.
    """
    missing = not_none(parser_hints.missing_file("Could not open 'abi/4.0'"))
    assert (
        parser_hints.missing_file_hint(
            missing, "web", include_dir="/includes", parser_version="", abis=[]
        )
        == "/includes of this node (apparmor_parser) does not contain abi/4.0. Remove the rule."
    )


def test_an_error_with_another_reason_is_about_no_missing_file() -> None:
    """The next step for a missing file appears only if the parser could not open a file."""
    assert parser_hints.missing_file("syntax error, unexpected TOK_ID") is None


def test_a_variable_of_attachments_has_its_own_next_step() -> None:
    """A variable that exists only in profiles with an attachment has a specific next step: parser
    5.0 declares exec_path only there.
    """
    message = "Failed to find declaration for: @{exec_path}; ERROR expanding variables"
    source = "include <tunables/global>\nprofile web {\n  @{exec_path} mr,\n}\n"
    assert parser_hints.hint(message, source).endswith("@{exec_path} = /usr/bin/NAME")


def test_a_comment_does_not_count_as_an_include_of_the_tunables() -> None:
    """A comment that looks like an include rule does not declare the variables of the tunables."""
    message = "Found reference to variable HOME, but is never declared"
    source = "# see #include <tunables/global>\nprofile web {\n  @{HOME}/ r,\n}\n"
    assert parser_hints.hint(message, source).startswith("Begin the text with: include")
