"""Tests of the findings about typical mistakes, with apparmor_parser of several releases.

The mistakes come from public bug reports. This machine has the parser 3.0.8; the parsers of Debian
13 (4.1) and unstable (5.0) are unpacked into a cache.
"""

import shlex
from pathlib import Path

import pytest

from agent.core.model import Profile, Rejection, SourceKey
from agent.host.filesystem import Host
from tests import include_search
from tests.inspection import apparmor_backend, inspected
from tests.system import kept

CONFLICT = "has merged rule /bin/a with conflicting x modifiers"
REJECTED = {
    "conflicting modes": (
        "profile web {\n  file,\n  /bin/a ix,\n  /bin/a px,\n}\n",
        CONFLICT,
        "Keep one",
    ),
    "an open brace": (
        "profile web {\n  file,\n  /srv/{a,b r,\n}\n",
        "Unable to parse input line '/srv/{a,b'",
        "Close every {",
    ),
    "a mount rule": (
        "profile web {\n  file,\n  mount options=(make-rslave) /dev/x -> /x,\n}\n",
        "Encoding of mount rule failed",
        "Remove the source",
    ),
    "a warning before the reason": (
        "profile a {\n  dbus,\n  file,\n}\nprofile web {\n  /bin/a ix,\n  /bin/a px,\n}\n",
        CONFLICT,
        "Keep one",
    ),
    "a forgotten include of tunables": (
        "profile web {\n  #include <abstractions/base>\n  file,\n}\n",
        "HOMEDIRS",
        "Begin the text with: include <tunables/global>",
    ),
    "an undeclared variable": (
        "@{A} = @{B}\nprofile r { @{A}/x r, }\n",
        "@{B}",
        "Assign a value to @{B}",
    ),
    "a variable of the tunables": (
        "@{HOMEDIRS}=/srv/home/\n#include <tunables/global>\nprofile web { file, }\n",
        "/tunables/",
        "An included file declares this variable",
    ),
}
WARNED = {
    "a socket rule with a peer": (
        "profile web {\n  file,\n  unix (connect) type=stream peer=(label=sidecar),\n}\n",
        [("rule_not_enforced", "line 3")],
    ),
    "no file rule": (
        "include <tunables/global>\nprofile web {\n  include <abstractions/base>\n  network,\n}\n",
        [("start_impossible", "line 2")],
    ),
    "no name": (
        "profile flags=(complain) {\n  file,\n}\n",
        [("name_suspicious", "line 1")],
    ),
    "a word in a comment": (
        "profile web {\n  file,\n  /usr/share/** r,   # should include fonts\n}\n",
        [],
    ),
}


@pytest.fixture(scope="module", params=["host", "trixie", "sid"])
def options(request, tmp_path_factory):
    """Return the options of a backend with the parser of one release."""
    if request.param == "host":
        return {"include_dir": "/etc/apparmor.d"}
    command = include_search.other_releases()[request.param]
    script = tmp_path_factory.mktemp("parser") / "apparmor_parser"
    # The words in the parser program decide what a message may contain, so `words` follows the
    # command.
    start = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
    script.write_bytes(start.encode() + Path(command[-1]).read_bytes())
    script.chmod(0o755)
    include_dir = kept.CACHE / "apparmor" / request.param / "etc/apparmor.d"
    return {"parser": str(script), "include_dir": str(include_dir)}


def inspect(tmp_path, options, text):
    """Return the result of the inspection of one text."""
    backend = apparmor_backend(Host(tmp_path), checking=True, **options)
    source_key = SourceKey(profile_set="dir test", key="key", content=text.encode())
    (result,) = inspected(backend, source_key)
    return result


@pytest.mark.parametrize(("text", "message", "hint"), REJECTED.values(), ids=REJECTED)
def test_a_rejected_text_has_its_reason_and_a_next_step(tmp_path, options, text, message, hint):
    """In every release, the error contains the reason that the parser reports."""
    result = inspect(tmp_path, options, text)
    assert isinstance(result, Rejection)
    (finding,) = result.findings
    assert finding.code == "parser_rejected"
    assert message in finding.message
    assert hint in finding.hint


@pytest.mark.parametrize(("text", "findings"), WARNED.values(), ids=WARNED)
def test_an_accepted_text_has_warnings_about_its_weaknesses(tmp_path, options, text, findings):
    """Each warning has the line of the rule or of the profile."""
    result = inspect(tmp_path, options, text)
    assert isinstance(result, Profile)
    assert [(finding.code, finding.location) for finding in result.findings] == findings


def test_a_flag_that_the_parser_ignores_causes_a_warning(tmp_path, options):
    """The parser of Debian 13 ignores the flag; the parser 3.0.8 rejects the flag."""
    text = "profile web flags=(error=EPERM) {\n  file,\n}\n"
    result = inspect(tmp_path, options, text)
    codes = [(finding.code, finding.location) for finding in result.findings]
    expected = "rule_not_enforced" if "parser" in options else "parser_rejected"
    assert codes == [(expected, "line 1")]
