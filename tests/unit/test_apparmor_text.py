"""Specification of agent.kinds.apparmor.text."""

import pytest

from agent.core.problems import Problem
from agent.kinds.apparmor import leaving, text

HINT = "Include only files below /etc/apparmor.d, as in include <abstractions/base>."


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
        'include\n"/etc/shadow"',
        "include <../../etc/shadow>",
        "include <abstractions/../../shadow>",
        'include "abstractions/base"',
        'include "../x"',
        'abi "/etc/shadow",',
        "abi </etc/shadow>,",
        "abi <../shadow>,",
        "abi /etc/shadow,",
        'profile x {} #include "/etc/shadow"',
        'profile "a #b" {} include "/etc/shadow"',
        '@{X}=a #include "/etc/shadow"',
    ],
)
def test_an_include_outside_the_hosts_own_directory_is_refused(line):
    """Absolute, climbing and working-directory paths are refused in every spelling."""
    found = text.refusals(f"\n{line}\nprofile y {{}}\n".encode())
    assert [(one.code, one.where) for one in found] == [("include_refused", "line 2")]


@pytest.mark.parametrize(
    "line",
    [
        "#include <tunables/global>",
        "include <abstractions/base>",
        "include if exists <local/x>",
        "abi <abi/3.0>,",
        '# see #include "/etc/shadow"',
        "/usr/include/** r,",
        "  /usr/src/*/include /x r,",
        "profile abi {",
    ],
)
def test_what_is_below_the_hosts_own_directory_or_no_include_is_not_refused(line):
    """Includes by angle brackets, comments and paths that hold the word are left alone."""
    assert text.refusals(line.encode()) == ()


def test_a_refusal_says_what_and_how_to_mend_it():
    """The message names the rule, what is wrong with its path, and what is allowed."""
    assert text.refusals(b'include "/etc/shadow"') == (
        Problem(
            code="include_refused",
            where="line 1",
            what="The path of this include rule is absolute.",
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
def test_a_way_out_of_confinement_is_remarked(line, codes):
    """Unconfined execution and transitions to unconfined are warned about."""
    assert [one.code for one in leaving.warnings(line)] == codes


@pytest.mark.parametrize(
    ("line", "refused"),
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
    ],
)
def test_a_variable_in_a_name_is_refused(line, refused):
    """A name must be written out; variables in rules and attachments are fine."""
    assert bool(text.variable_names(line)) is refused


@pytest.mark.parametrize(
    "line",
    [
        'profile a {include "/etc/shadow"\n}',
        'profile a {\n /foo\\ #x r, include "/etc/shadow"\n}',
        'profile a {\n "/foo\n #bar" r, include "/etc/shadow"\n}',
        'profile a {\n /foo[\\ #x] r, include "/etc/shadow"\n}',
        'file, # include "/etc/shadow"',
    ],
)
def test_an_include_is_found_behind_what_only_looks_like_a_comment(line):
    """A hash sign in a quoted, escaped or bracketed word begins no comment; in doubt it is none."""
    assert [one.code for one in text.refusals(line.encode())] == ["include_refused"]


def test_a_name_that_only_an_assignment_writes_out_is_refused():
    """Hats and profiles named by a variable of the text; children of includes are left alone."""
    source = "@{N}=hello\nprofile c1 {\n  ^@{N} { /a r, }\n}\n"
    found = text.undeclared(source, ["c1", "c1//hello"])
    assert [(one.code, one.where) for one in found] == [("name_variable", "c1//hello")]
    plain = "profile c1 {\n  #include <abstractions/ubuntu-helpers>\n}\n"
    assert text.undeclared(plain, ["c1", "c1//sanitized_helper"]) == ()


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        (b"profile x {\n  deny /secret\0/foo w,\n}\n", "text_unsafe", "line 2"),
        ("profile x {\n  /a\u202e r,\n}\n".encode(), "text_unsafe", "line 2"),
        (b"profile x { # \xff\n}\n", "not_utf8", "byte 14"),
    ],
    ids=["NUL", "direction", "no UTF-8"],
)
def test_a_text_that_reads_otherwise_than_it_looks_is_refused(content, code, where):
    """The parser ends a word at a NUL: deny /secret would hold instead of /secret/foo."""
    assert [(one.code, one.where) for one in text.refusals(content)] == [(code, where)]
