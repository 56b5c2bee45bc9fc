"""Tests of the checks that a profile text must pass before the parser reads it: source_checks and
escape_rules.
"""

import time

import pytest

from agent.backends.apparmor import escape_rules, source_checks
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

HINT = "Include only files of /etc/apparmor.d, for example: include <abstractions/base>"


def places(findings: tuple[Finding, ...]) -> list[tuple[FindingCode, str]]:
    """Return the code and the location of each finding."""
    return [(finding.code, finding.location) for finding in findings]


@pytest.mark.parametrize(
    "line",
    [
        '#include "/etc/shadow"',
        'include "/etc/shadow"',
        "include /etc/shadow",
        "include </etc/shadow>",
        'include <"/etc/shadow">',
        'include if exists "/etc/shadow"',
        "include if exists </etc/shadow>",
        '#include"/etc/shadow"',
        'include\t"/etc/shadow"',
        "include <../../etc/shadow>",
        "include <\\056\\056/shadow>",
        "include <\\x2e./shadow>",
        'include <"../shadow">',
        "include < ../shadow >",
        "include <abstractions/../../shadow>",
        'include "abstractions/base"',
        'include "../x"',
        'abi "/etc/shadow",',
        "abi </etc/shadow>,",
        "abi <../shadow>,",
        "abi /etc/shadow,",
        'profile x {} #include "/etc/shadow"',
        'profile "a #b" {} include "/etc/shadow"',
        "abi 3.0,",
        'profile x { priority=5abi "/etc/shadow",',
    ],
)
def test_an_include_outside_the_include_directory_is_rejected(line: str) -> None:
    """In every spelling, an absolute include path, a path with `..` and a path without angle
    brackets are rejected.
    """
    findings = source_checks.errors(f"\n{line}\nprofile y {{}}\n".encode())
    assert places(findings) == [("include_refused", "line 2")]


@pytest.mark.parametrize(
    "line",
    [
        "#include <tunables/global>",
        "include <abstractions/base>",
        "include if exists <local/x>",
        "abi <abi/3.0>,",
        '# see #include "/etc/shadow"',
        "/usr/include/** r,",
        "profile abi {",
        "profile x {\n  /usr/share/** r,   # should include fonts\n}\n",
        "profile x {\n  file, # see the abi and include it\n}\n",
        '@{X}=a #include "/etc/shadow"\n',
        '  "/a include /x" r,\n',
        "  signal peer=include,\n",
        'include\n"/etc/shadow"\n',
    ],
)
def test_a_harmless_include_and_the_word_include_are_accepted(line: str) -> None:
    """Paths in angle brackets, comments, and paths that contain the word "include" are accepted."""
    assert source_checks.errors(line.encode()) == ()


def test_the_error_about_an_include_has_a_reason_and_an_example() -> None:
    """The message about an include contains the reason, and the hint contains an allowed path as an
    example.
    """
    assert source_checks.errors(b'include "/etc/shadow"') == (
        Finding(
            code=FindingCode.INCLUDE_REFUSED,
            location="line 1",
            message="The path of this include rule is absolute.",
            hint=HINT,
        ),
    )


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("  /bin/* ux,", ["unconfined_exec"]),
        ("  /bin/* rUx,", ["unconfined_exec"]),
        ("  /bin/sh PUx -> other,", ["unconfined_exec"]),
        ("  ux /bin/*,", ["unconfined_exec"]),
        ("  /bin/* rix,", []),
        ("  /bin/linux r,", []),
        ("  change_profile -> unconfined,", ["unconfined_transition"]),
        ("  change_profile /bin/x -> unconfined,", ["unconfined_transition"]),
        ("  change_profile,", ["unconfined_transition"]),
        ("  change_profile -> **,", ["unconfined_transition"]),
        ("  change_profile -> other,", []),
        ("  file ux /x,", ["unconfined_exec"]),
        ("  audit allow file ux /x,", ["unconfined_exec"]),
        ("profile a { ux /x, }", ["unconfined_exec"]),
        ("  /x\nux,", ["unconfined_exec"]),
        ('  "/a b"\n  PUx,', ["unconfined_exec"]),
        ("  /x px -> unconfined,", ["unconfined_exec"]),
        ("  /x cx -> kid,", []),
        ("  /x{a,b} rpix -> @{P},", ["unconfined_exec"]),
        ("  /ux r,", []),
        ("  /a/ux/b mr,", []),
        ("  change_profile\n  -> unconfined,", ["unconfined_transition"]),
        ("  change_profile -> un*,", ["unconfined_transition"]),
        ("  change_profile -> u{nconfined,x},", ["unconfined_transition"]),
        ("  change_profile -> :ns:unconfined,", ["unconfined_transition"]),
        ("  change_profile unsafe /a{b,c} -> [tu]*,", ["unconfined_transition"]),
        ("  change_profile /bin/x,", ["unconfined_transition"]),
        ("  change_profile -> unconfined_but_named,", []),
        ("  change_profile -> web-{a,b},", []),
        ("  deny change_profile -> unconfined,", []),
        ("  # /bin/* ux,", []),
    ],
)
def test_a_rule_that_ends_confinement_causes_a_warning(line: str, codes: list[str]) -> None:
    """A rule causes a warning if it runs a program without a profile or changes to unconfined."""
    assert [finding.code for finding in escape_rules.warnings(line)] == codes


@pytest.mark.parametrize(
    ("line", "is_rejected"),
    [
        ("profile @{P} {", True),
        ('profile "a @{P}" {', True),
        ("profile x-@{P} flags=(complain) {", True),
        ("@{bin}/foo {", True),
        ("@{bin}/foo flags=(complain) {", True),
        ("profile x @{bin}/foo {", False),
        ("  @{PROC}/[0-9]*/{stat,status} r,", False),
        ("  owner @{HOME}/x rw,", False),
        ("@{P}=foo", False),
        ("profile x {\n  /opt/x rix, # runs under the profile @{HOME}/x later\n}\n", False),
        ("@{N}=hello\nprofile c1 {\n  ^@{N} { /a r, }\n}\n", True),
        ("profile x {\n  hat @{N} { }\n}\n", True),
        ("profile \\100{P} {", True),
        ("profile \\x40{P} {", True),
        ("alias /a -> @{P}/b,\n/bin/x {\n", False),
        ("@{P} += a b\n/bin/x flags=(complain,audit) {\n", False),
        ("@{P}/x flags=(complain,audit) {\n", True),
        ("profile a {}\n@{P}/x\n{\n", True),
    ],
)
def test_a_variable_in_a_profile_name_is_rejected(line: str, is_rejected: bool) -> None:
    """A variable in a profile name is rejected. Variables in rules and in attachments are
    accepted.
    """
    assert bool(source_checks.variable_names(line)) is is_rejected


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('profile a {include "/etc/shadow"\n}\n', 1),
        ('profile a {\n /foo\\ #x r, include "/etc/shadow"\n}\n', 2),
        ('profile a {\n "/foo\n #bar" r, include "/etc/shadow"\n}\n', 3),
        ('profile a {\n /foo[\\ #x] r, include "/etc/shadow"\n}\n', 2),
        ('profile a {\n  capability # see the abi\n  include "/etc/shadow"\n  ,\n}\n', 3),
        ('profile a {\n file, # an odd "\n include "/etc/shadow"\n # even "\n}\n', 3),
        ('profile a {\n file, # an odd [\n #x" ]\n include "/etc/shadow"\n # "\n}\n', 4),
        ('profile a {\n file, # a \\\n include "/etc/shadow"\n}\n', 3),
        ('include \n\n"/etc/shadow"\n', 3),
        ('#include\n"/etc/shadow"\n', 2),
        ("#included by default\n", 1),
        ('abi\n"/etc/shadow"\n,', 2),
        ('profile a {\n umount /a,\r\n peer=(x) , include "/etc/shadow"\n', 3),
        ('profile a {\n : include "/etc/shadow"\n', 2),
        ('@{X}=a\\\ninclude "/etc/shadow"\n', 2),
        ('@{X}=a # \\\ninclude "/etc/shadow"\n', 2),
    ],
)
def test_an_include_that_any_parser_reads_is_rejected(content: str, line: int) -> None:
    """An include that any version of the parser reads is rejected, even behind comments, quotes,
    escapes or other rules.
    """
    findings = source_checks.errors(content.encode())
    assert places(findings) == [("include_refused", f"line {line}")]


@pytest.mark.parametrize(
    ("content", "is_undecided"),
    [
        ("include <tunables/x> include <tunables/y>\n", True),
        ('include <tunables/x> # a "\n#"\n', True),
        ("include <tunables/x> # a \\\n", True),
        ("include <tunables/x>\t # plain\r\ninclude <tunables/y>\n", False),
        ("profile x { include <abstractions/base> file, }\n", False),
        ("abi <abi/3.0>, include <tunables/x>\nprofile x {}\n", False),
    ],
)
def test_text_after_an_include_on_the_same_line_is_undecided(
    content: str, is_undecided: bool
) -> None:
    """Text after an include on the same line is undecided, because the included file may end in an
    assignment.
    """
    assert bool(source_checks.undecided_includes(content.encode())) is is_undecided
    assert source_checks.errors(content.encode()) == ()


def test_a_very_long_text_is_undecided_unless_its_includes_have_the_usual_form() -> None:
    """A very long text is not split into tokens for every dialect, because that takes too long."""
    usual = b"include <tunables/global>\nprofile x {\n  /a r,\n}\n"
    unusual = b"# include fonts\n" + usual
    long = b"#" + b" " * (1 << 18) + b"\n"
    for content in (usual, usual + long, unusual):
        assert source_checks.undecided_includes(content) == ()
    findings = source_checks.undecided_includes(unusual + long)
    assert places(findings) == [("include_refused", "line 1")]


@pytest.mark.parametrize(
    ("content", "code", "location"),
    [
        (b"profile x {\n  deny /secret\0/foo w,\n}\n", "text_unsafe", "line 2"),
        ("profile x {\n  /a\u202e r,\n}\n".encode(), "text_unsafe", "line 2"),
        (b"profile x { # \xff\n}\n", "not_utf8", "byte 14"),
    ],
    ids=["NUL", "direction", "not UTF-8"],
)
def test_a_text_with_a_misleading_appearance_is_rejected(
    content: bytes, code: str, location: str
) -> None:
    """A text is rejected if it looks different from what the parser reads, for example because of a
    NUL character.
    """
    assert places(source_checks.errors(content)) == [(code, location)]


@pytest.mark.parametrize(
    ("content", "name", "hint"),
    [
        ("# a\r deny /etc/** w,\n", "U+000D CARRIAGE RETURN", "End the line with a line feed"),
        ("# a\u2028 deny /b w,\n", "U+2028 LINE SEPARATOR", "End the line with a line feed"),
        ("# a\x85 deny /b w,\n", "U+0085 NEXT LINE", "End the line with a line feed"),
        ("# \u2066\n", "U+2066 LEFT-TO-RIGHT ISOLATE", "Remove it."),
        ("profile x { deny /etc/\u200b** w, }\n", "U+200B ZERO WIDTH SPACE", "Remove it."),
        ("profile x { /a\u00ad r, }\n", "U+00AD SOFT HYPHEN", "Remove it."),
        ("profile x { /a\ufe0f r, }\n", "U+FE0F VARIATION SELECTOR-16", "Remove it."),
        ("profile x { /a\ufeff r, }\n", "U+FEFF ZERO WIDTH NO-BREAK SPACE", "Remove it."),
        ("profile\u00a0x { }\n", "U+00A0 NO-BREAK SPACE", "Type an ordinary space instead."),
        ("profile x { /a\u3000r, }\n", "U+3000 IDEOGRAPHIC SPACE", "Type an ordinary space"),
        (
            "profile \u201cx\u201d { }\n",
            "U+201C LEFT DOUBLE QUOTATION MARK",
            "Type the plain quote",
        ),
        ("profile x { \u00ab/a b\u00bb r, }\n", "U+00AB LEFT-POINTING", "Type the plain quote"),
    ],
    ids=lambda value: value if value.startswith("U+") else "",
)
def test_a_character_that_misleads_the_reader_is_rejected_by_name(
    content: str, name: str, hint: str
) -> None:
    """A character that misleads the reader is rejected. The error contains the name of the
    character and its replacement.
    """
    (finding,) = source_checks.errors(content.encode())
    assert (finding.code, finding.location) == ("text_unsafe", "line 1")
    assert f"the character {name}" in finding.message
    assert finding.hint.startswith(hint)


@pytest.mark.parametrize(
    "content",
    [
        "# a\u00a0comment with \u201cquotes\u201d and a zero\u200bwidth space\nprofile x { }\n",
        "profile x { /srv/caf\u00e9/\u65e5\u672c r, }\n",
        "profile x { /srv/it\u2019s r, }\n",
        'profile x { "/srv/a \u201cb\u201d" r, }\n',
        "profile x { # a\u00a0comment\r\n}\r\n",
    ],
)
def test_visible_characters_and_comments_are_accepted(content: str) -> None:
    """Letters of every script are accepted, and a comment may contain any space and any quote."""
    assert source_checks.errors(content.encode()) == ()


def test_a_byte_order_mark_is_reported_as_such() -> None:
    """A byte order mark causes a specific error, and the other errors of the text are
    reported too.
    """
    findings = source_checks.errors('\ufeffprofile x {}\ninclude "/etc/shadow"\n'.encode())
    assert places(findings) == [("not_utf8", "line 1"), ("include_refused", "line 2")]
    assert findings[0].message.startswith("The text begins with a byte order mark")


def test_each_character_is_reported_once() -> None:
    """Each character is reported only once, even if a word processor wrote hundreds of them."""
    content = "profile x {\n" + "  /a\u00a0r,\n" * 100 + "  /b\u200b r,\n}\n"
    findings = source_checks.errors(content.encode())
    assert places(findings) == [("text_unsafe", "line 2"), ("text_unsafe", "line 102")]


def test_a_line_with_many_escapes_is_checked_in_bounded_time() -> None:
    """The check of a line with many escapes ends in bounded time, so that a comment of 1 MiB does
    not delay a pass. The test limits the CPU time.
    """
    content = "# " + "\\1" * 500_000 + "\nprofile x { }\n"
    begin = time.process_time()
    assert source_checks.variable_names(content) == ()
    assert time.process_time() - begin < 20.0
