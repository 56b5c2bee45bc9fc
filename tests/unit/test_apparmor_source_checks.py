"""Specification of agent.backends.apparmor.source_checks."""

import time

import pytest

from agent.backends.apparmor import escape_rules, source_checks
from agent.core.findings import Finding

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
def test_an_include_outside_the_hosts_own_directory_is_refused(line):
    """Absolute, climbing and working-directory paths are refused in every spelling."""
    found = source_checks.errors(f"\n{line}\nprofile y {{}}\n".encode())
    assert [(one.code, one.location) for one in found] == [("include_refused", "line 2")]


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
def test_what_is_below_the_hosts_own_directory_or_no_include_is_not_refused(line):
    """Includes by angle brackets, comments and paths that hold the word are left alone."""
    assert source_checks.errors(line.encode()) == ()


def test_a_refusal_says_what_and_how_to_mend_it():
    """The message names the rule, what is wrong with its path, and what is allowed."""
    assert source_checks.errors(b'include "/etc/shadow"') == (
        Finding(
            code="include_refused",
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
def test_a_way_out_of_confinement_is_remarked(line, codes):
    """Unconfined execution and transitions to unconfined are warned about."""
    assert [one.code for one in escape_rules.warnings(line)] == codes


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
def test_a_variable_in_a_name_is_refused(line, refused):
    """A name must be written out; variables in rules and attachments are fine."""
    assert bool(source_checks.variable_names(line)) is refused


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
def test_an_include_is_found_wherever_a_parser_reads_it(content, line):
    """Comments, quotes, escapes and rules hide no include that some parser would read."""
    found = [(finding.code, finding.location) for finding in source_checks.errors(content.encode())]
    assert found == [("include_refused", f"line {line}")]


@pytest.mark.parametrize(
    ("content", "undecided"),
    [
        ("include <tunables/x> include <tunables/y>\n", True),
        ('include <tunables/x> # a "\n#"\n', True),
        ("include <tunables/x> # a \\\n", True),
        ("include <tunables/x>\t # plain\r\ninclude <tunables/y>\n", False),
        ("profile x { include <abstractions/base> file, }\n", False),
        ("abi <abi/3.0>, include <tunables/x>\nprofile x {}\n", False),
    ],
)
def test_text_behind_an_include_of_the_preamble_is_undecided(content, undecided):
    """An included file that ends within an assignment would take the rest of the line."""
    assert bool(source_checks.undecided_includes(content.encode())) is undecided
    assert source_checks.errors(content.encode()) == ()


def test_a_very_long_text_is_undecided_unless_its_includes_are_usual():
    """Splitting a long text in every dialect would delay all other profiles."""
    usual = b"include <tunables/global>\nprofile x {\n  /a r,\n}\n"
    unusual = b"# include fonts\n" + usual
    long = b"#" + b" " * (1 << 18) + b"\n"
    assert [
        bool(source_checks.undecided_includes(part)) for part in (usual, usual + long, unusual)
    ] == 3 * [False]
    found = source_checks.undecided_includes(unusual + long)
    assert [(finding.code, finding.location) for finding in found] == [
        ("include_refused", "line 1")
    ]


def test_a_carriage_return_alone_is_refused():
    """A reader sees a line break where the parser sees none."""
    found = source_checks.errors(b'profile x {\n # comment\r include "/etc/shadow"\n}\n')
    assert [(finding.code, finding.location) for finding in found] == [("text_unsafe", "line 2")]


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
    assert [(one.code, one.location) for one in source_checks.errors(content)] == [(code, where)]


def test_many_escapes_in_a_line_take_no_long_time():
    """A comment of a mebibyte must not delay the pass; CPU time counts, not the clock."""
    content = "# " + "\\1" * 500_000 + "\nprofile x { }\n"
    begin = time.process_time()
    assert source_checks.variable_names(content) == ()
    assert time.process_time() - begin < 20.0
