"""Tests of the findings about typical mistakes in profiles, with apparmor_parser from several
releases.

The mistakes come from public bug reports. This machine has the parser 3.0.8. The parsers of Debian
13 (4.1) and unstable (5.0) are unpacked into a cache.
"""

from dataclasses import dataclass

import pytest

from agent.core.model import Profile, Rejection
from tests.system import apparmor_releases

ALL = apparmor_releases.RELEASES
NEWER = ("trixie", "sid")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A text and the findings about it."""

    text: str
    releases: tuple[str, ...] = ALL
    code: str = ""
    """The code of the finding. The code is empty if the text is accepted without a finding."""
    location: str = "key"
    message: str = ""
    """A part of the message."""
    hint: str = ""
    """A part of the next step."""


BASE = "include <tunables/global>\nprofile web {\n  include <abstractions/base>\n"
CONFLICT = "has merged rule /bin/a with conflicting x modifiers"
SIGNAL = "  signal (receive) peer=unconfined,\n"
WEB = f"profile web {{\n  file,\n{SIGNAL}"
LONG = "a" * 300  # A file name has at most 255 bytes.
REJECTED = {
    "a name that is not UTF-8": Case(
        text=f'profile "web\\377" {{\n  file,\n{SIGNAL}}}\n',
        code="name_unsafe",
        message='The profile name "web\\xff" is not UTF-8',
        hint="replace the escapes",
    ),
    "conflicting modes": Case(
        text=f"{WEB}  /bin/a ix,\n  /bin/a px,\n}}\n",
        code="parser_rejected",
        message=CONFLICT,
        hint="Keep one",
    ),
    "an open brace": Case(
        text=f"{WEB}  /srv/{{a,b r,\n}}\n",
        code="parser_rejected",
        message="Unable to parse input line '/srv/{a,b'",
        hint="Close every {",
    ),
    "an open bracket": Case(
        text=f"{WEB}  /srv/[ab r,\n}}\n",
        code="parser_rejected",
        message="Unable to parse input line '/srv/[ab'",
        hint="Close every {",
    ),
    "a mount rule with a source": Case(
        text=f"{WEB}  mount options=(make-rslave) /dev/x -> /x,\n}}\n",
        code="parser_rejected",
        message="Encoding of mount rule failed",
        hint="Remove the source",
    ),
    "a warning in front of the reason": Case(
        text=f"profile error-pages {{\n  dbus,\n  file,\n}}\n{WEB}  /bin/a ix,\n  /bin/a px,\n}}\n",
        code="parser_rejected",
        message=CONFLICT,
        hint="Keep one",
    ),
    "a missing include of tunables": Case(
        text="# add #include <tunables/global>\nprofile web {\n  #include <abstractions/base>\n}\n",
        code="parser_rejected",
        message="HOMEDIRS",
        hint="Begin the text with: include <tunables/global>",
    ),
    "an undeclared variable": Case(
        text="@{A} = @{B}\nprofile r { @{A}/x r, }\n",
        code="parser_rejected",
        message="@{B}",
        hint="Assign a value to @{B}",
    ),
    "a variable of the tunables": Case(
        text=f"@{{HOMEDIRS}}=/srv/home/\n#{BASE}  file,\n}}\n",
        code="parser_rejected",
        message="/tunables/",
        hint="An included file declares this variable",
    ),
    "a missing include": Case(
        text=f"{WEB}  include <abstractions/missing>\n}}\n",
        code="parser_rejected",
        location="line 4",
        message="Could not open 'abstractions/missing'",
        hint="does not contain abstractions/missing. Put the included rules into the text: run "
        "`profile-loader render key --inline --include ",
    ),
    "an include with an impossible file name": Case(
        text=f"{WEB}  include <abstractions/{LONG}>\n}}\n",
        code="parser_rejected",
        location="line 4",
        message=f"Could not open 'abstractions/{LONG}'",
        hint=f"does not contain abstractions/{LONG}. Put the included rules into the text: run ",
    ),
    "a missing abi": Case(
        text=f"abi <abi/9.0>,\n{WEB}}}\n",
        code="parser_rejected",
        location="line 1",
        message="Could not open 'abi/9.0'",
        hint="Replace the rule by one of: abi <abi/3.0>,",
    ),
    "an abi of a newer release": Case(
        text=f"abi <abi/4.0>,\n{WEB}}}\n",
        releases=("host",),
        code="parser_rejected",
        location="line 1",
        message="Could not open 'abi/4.0'",
        hint="/etc/apparmor.d of this node (apparmor_parser 3.0.8) does not contain abi/4.0. ",
    ),
    "a flag of a newer release": Case(
        text="profile web flags=(error=EPERM) {\n  file,\n}\n",
        releases=("host",),
        code="parser_rejected",
        location="line 1",
        message="Invalid profile flag",
    ),
    "a byte order mark": Case(
        text=f"\ufeff{WEB}}}\n",
        code="not_utf8",
        location="line 1",
        message="begins with a byte order mark",
        hint="without a byte order mark",
    ),
    "a zero width space": Case(
        text=f"{WEB}  deny /etc/\u200b** w,\n}}\n",
        code="text_unsafe",
        location="line 4",
        message="U+200B ZERO WIDTH SPACE",
        hint="Remove it",
    ),
    "a no-break space": Case(
        text=f"{WEB}  deny\u00a0/etc/** w,\n}}\n",
        code="text_unsafe",
        location="line 4",
        message="U+00A0 NO-BREAK SPACE",
        hint="Type an ordinary space",
    ),
    "a typographic quote": Case(
        text=f"{WEB}  deny \u201c/etc/**\u201d w,\n}}\n",
        code="text_unsafe",
        location="line 4",
        message="U+201C LEFT DOUBLE QUOTATION MARK",
        hint='Type the plain quote "',
    ),
    "a carriage return in a comment": Case(
        text=f"{WEB}  # old rule:\r  deny /etc/** w,\n}}\n",
        code="text_unsafe",
        location="line 4",
        message="U+000D CARRIAGE RETURN",
        hint="End the line with a line feed",
    ),
    "a name with the prefix of pods": Case(
        text=f"profile localhost/web {{\n  file,\n{SIGNAL}}}\n",
        code="name_unsafe",
        location="line 1",
        message="begins with localhost/",
        hint="profile web {",
    ),
}
WARNED = {
    "a socket rule with a peer": Case(
        text=f"{WEB}  unix (connect) type=stream peer=(label=sidecar),\n}}\n",
        code="rule_not_enforced",
        location="line 4",
        message="downgrading extended network unix socket rule",
    ),
    "an address in a network rule": Case(
        text=f"{WEB}  network inet tcp ip=10.0.0.1 port=443,\n}}\n",
        releases=NEWER,
        code="rule_not_enforced",
        location="line 4",
        message="applies to every address and port",
        hint="NetworkPolicy",
    ),
    "an address with an abi": Case(
        text=f"abi <abi/4.0>,\n{WEB}  network inet tcp ip=10.0.0.1 port=443,\n}}\n",
        releases=NEWER,
        code="rule_not_enforced",
        location="line 5",
        message="applies to every address and port",
    ),
    "the address of a peer": Case(
        text=f"{WEB}  network inet tcp peer=(ip=10.0.0.1),\n}}\n",
        releases=NEWER,
        code="rule_not_enforced",
        location="line 4",
        message="applies to every address and port",
    ),
    "an ignored flag": Case(
        text=f"profile web flags=(error=EPERM) {{\n  file,\n{SIGNAL}}}\n",
        releases=NEWER,
        code="rule_not_enforced",
        location="line 1",
        message="error flag not supported. Ignoring",
    ),
    "another ignored flag": Case(
        text=f"profile web flags=(interruptible) {{\n  file,\n{SIGNAL}}}\n",
        releases=NEWER,
        code="rule_not_enforced",
        location="line 1",
        message="flag interruptible not supported. Ignoring",
    ),
    "a rule that the features lack": Case(
        text=f"{WEB}  dbus,\n}}\n",
        code="rule_not_enforced",
        location="line 4",
        message="dbus rules not enforced",
    ),
    "no file rule": Case(
        text=f"{BASE}  network,\n}}\n",
        code="start_impossible",
        location="line 2",
        message="no container can start",
        hint="Add `file,`",
    ),
    "no signal rule": Case(
        text="profile web {\n  file,\n  network,\n  capability,\n}\n",
        code="stop_impossible",
        location="line 1",
        message="does not receive the signals TERM and KILL",
        hint="signal (receive) peer=unconfined,",
    ),
    "no name": Case(
        text=f"profile flags=(complain) {{\n  file,\n{SIGNAL}}}\n",
        code="name_suspicious",
        location="line 1",
        message="in enforce mode",
        hint="profile NAME flags=(...) {",
    ),
}
ACCEPTED = {
    "a child of an included file": Case(
        text="@{MODELS} = /srv/models\n#include <tunables/global>\nprofile gpu {\n"
        "  #include <abstractions/base>\n  #include <abstractions/opencl>\n"
        "  @{MODELS}/** r,\n}\n",
    ),
    "a keyword in a comment": Case(
        text=f"{WEB}  /usr/share/** r,   # should include fonts\n}}\n",
    ),
    "a profile in a comment": Case(
        text=f"{BASE}  file,\n  /opt/x rix, # runs under the profile @{{HOME}}/x later\n}}\n",
    ),
    "a network rule in a comment": Case(
        text=f"{WEB}  network inet tcp, # not ip=10.0.0.1\n}}\n",
    ),
}
CASES = {**REJECTED, **WARNED, **ACCEPTED}


@pytest.mark.parametrize(
    ("case", "release"),
    [
        pytest.param(case, release, id=f"{name}-{release}")
        for name, case in CASES.items()
        for release in ALL
        if release in case.releases
    ],
)
def test_a_typical_mistake_has_its_finding(tmp_path, release, case):
    """With every release of the parser, the finding contains the line of the mistake, its cause and
    the next step.
    """
    options = apparmor_releases.backend_options(release, tmp_path)
    result = apparmor_releases.inspect(tmp_path, options, case.text)
    assert isinstance(result, Rejection if case in REJECTED.values() else Profile)
    findings = [(finding.code, finding.location) for finding in result.findings]
    assert findings == [(case.code, case.location)] * bool(case.code)
    for finding in result.findings:
        assert case.message in finding.message
        assert case.hint in finding.hint
