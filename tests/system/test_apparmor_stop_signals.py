"""Tests of the warning about missing signal rules, with apparmor_parser of several releases.

apparmor_guest.py compares the same decision with the signals that a kernel delivers.
"""

import pytest

from tests.system import apparmor_releases

RULES = {
    "": False,
    "signal,": True,
    "signal (receive) peer=unconfined,": True,
    "signal receive peer=runc,": True,
    "signal receive peer=crun,": True,
    "signal peer=un*,": True,
    "signal peer={runc,other},": True,
    "signal peer=web,": False,
    "signal peer=@{profile_name},": False,
    "signal (send) peer=unconfined,": False,
    "signal (receive) set=(term) peer=unconfined,": False,
    "signal (receive) set=(kill) peer=unconfined,": False,
    "signal (receive) set=(hup) peer=unconfined,": False,
    "signal (receive) set=(term kill) peer=unconfined,": True,
    "signal receive set=term peer=unconfined,\n  signal receive set=kill peer=runc,": False,
    "signal,\n  deny signal (receive) set=(kill),": False,
    "deny signal (receive) peer=unconfined,\n  signal receive peer=runc,": True,
    "include <abstractions/base>": True,
}


@pytest.mark.parametrize("release", apparmor_releases.RELEASES)
@pytest.mark.parametrize("abi", ["", "abi <abi/3.0>,\n"])
@pytest.mark.parametrize(("rules", "can_be_stopped"), RULES.items())
def test_a_profile_that_receives_no_stop_signals_has_a_warning(
    tmp_path, release, abi, rules, can_be_stopped
):
    """A profile must allow its processes to receive both TERM and KILL, because a runtime stops a
    container with these signals.
    """
    text = f"{abi}include <tunables/global>\nprofile web {{\n  file,\n  {rules}\n}}\n"
    options = apparmor_releases.backend_options(release, tmp_path)
    result = apparmor_releases.inspect(tmp_path, options, text)
    warnings = [finding for finding in result.findings if finding.code == "stop_impossible"]
    assert len(warnings) == (not can_be_stopped)


@pytest.mark.parametrize("release", apparmor_releases.RELEASES)
@pytest.mark.parametrize(
    ("text", "locations"),
    [
        ("profile web flags=(complain) {\n  file,\n}\n", []),
        ("profile web {\n  file,\n  signal,\n  profile child {\n    file,\n  }\n}\n", []),
        ("profile a {\n  file,\n}\nprofile b {\n  file,\n}\n", ["line 1", "line 4"]),
    ],
)
def test_only_enforced_profiles_that_a_pod_can_use_have_the_warning(
    tmp_path, release, text, locations
):
    """Profiles in complain mode and child profiles have no warning. A profile in complain mode
    denies nothing, and no container starts in a child profile.
    """
    options = apparmor_releases.backend_options(release, tmp_path)
    result = apparmor_releases.inspect(tmp_path, options, text)
    actual = [each.location for each in result.findings if each.code == "stop_impossible"]
    assert actual == locations
