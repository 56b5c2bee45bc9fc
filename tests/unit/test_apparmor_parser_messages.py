"""Specification of agent.backends.apparmor.parser_messages."""

import pytest

from agent.backends.apparmor import parser_messages
from agent.backends.apparmor.parser_messages import REPLACED

PROGRAM = (
    b"\x7fELF\0AppArmor parser error at line %d: %s\0Could not open '%s'\0Invalid capability %s.\0"
    b"Lexer found unexpected character: '%s' (0x%x) in state: %s\0INITIAL\0"
    b"failed to find features abi '%s': %m\0profile %s (%s): dbus rules not enforced\0stdin\0"
)


def known(source):
    return parser_messages.QuotableWords(
        source=source.encode(),
        words=parser_messages.words_of_program(PROGRAM),
        include_dir="/etc/apparmor.d/",
    )


@pytest.mark.parametrize(
    ("said", "source", "shown"),
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
def test_only_words_of_the_parser_and_of_the_key_are_shown(said, source, shown):
    """A word that is only in an included file is replaced, whatever the message says."""
    prefix = "AppArmor parser error at line 3: "
    assert parser_messages.error_message((prefix + said).encode(), known(source)) == prefix + shown


def test_notes_name_the_profile_of_the_key():
    """A note about a rule that was left out keeps the names that the key declares."""
    line = b"profile web (stdin): dbus rules not enforced\nprofile host (stdin): x not enforced\n"
    assert parser_messages.omitted_rules(line, known("profile web {")) == (
        "profile web (stdin): dbus rules not enforced",
        f"profile {REPLACED} (stdin): {REPLACED} not enforced",
    )


@pytest.mark.parametrize(
    ("said", "place"),
    [("at line 3: x", ""), (" at line 3: x", "line 3"), (" at line 4: x", ""), ("x", "")],
)
def test_a_line_behind_the_end_of_the_text_is_not_named(said, place):
    """Such a line is one of an included file."""
    assert parser_messages.line_reference(said, "a\nb\n") == place


def test_a_line_number_of_any_length_is_read():
    """A line number beyond the text is not reported."""
    assert parser_messages.line_reference(f" at line {'9' * 5000}: x", "a\n") == ""
