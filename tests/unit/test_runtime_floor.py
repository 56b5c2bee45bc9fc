"""Tests of `--runtime-floor`, the oldest releases of libseccomp and runtimes on the nodes."""

import json
import time
from pathlib import Path
from typing import Literal

import pytest

from agent.__main__ import main
from agent.backends.seccomp import releases, syscalls
from agent.backends.seccomp.backend import SeccompBackend
from agent.core.findings import Finding
from agent.host.filesystem import Host
from tests.json_object import JsonObject


def denying(*names: str, **more: list[str]) -> JsonObject:
    rules = [{"names": list(names), "action": "SCMP_ACT_ERRNO"}]
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules} | more


def allowing(*names: str, **more: object) -> JsonObject:
    rules = [{"names": list(names), "action": "SCMP_ACT_ALLOW"}]
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules} | more


def check(
    tree: JsonObject, floor: str = "", form: Literal["oci", "docker"] = "oci"
) -> tuple[bytes, tuple[Finding, ...]]:
    backend = SeccompBackend(
        host=Host("/nowhere"),
        clock_ns=time.time_ns,
        machine="x86_64",
        format=form,
        floor=releases.parse(floor),
    )
    return backend.check(json.dumps(tree).encode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", releases.RuntimeFloor()),
        ("libseccomp=2.5.5", releases.RuntimeFloor(libseccomp=(2, 5, 5))),
        ("libseccomp=2.6, runc=1.2", releases.RuntimeFloor(libseccomp=(2, 6), runc=(1, 2))),
        ("runc=1.2.3,crun=1.14", releases.RuntimeFloor(runc=(1, 2, 3), crun=(1, 14))),
    ],
)
def test_a_floor_is_read(text: str, expected: releases.RuntimeFloor) -> None:
    """A program that the value of --runtime-floor does not contain keeps its default."""
    assert releases.parse(text) == expected
    assert releases.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("glibc=2.36", "must be libseccomp=VERSION"),
        ("libseccomp", "must be libseccomp=VERSION"),
        ("libseccomp=new", "must be libseccomp=VERSION"),
        ("runc=1.2,runc=1.3", "runc is stated twice"),
        ("libseccomp=2.4.1", "the oldest supported release is 2.5.4"),
    ],
)
def test_a_mistake_in_the_floor_is_a_usage_error(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid value of --runtime-floor results in exit status 2 and a message with the expected
    form.
    """
    assert main(["check", "--runtime-floor", text, "profiles"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("fchmodat2", "2.5.5"),
        ("futex_wake", "2.5.5"),
        ("mseal", "2.5.6"),
        ("listns", "2.6.1"),
    ],
)
def test_a_newer_call_can_be_denied_with_a_newer_floor(name: str, release: str) -> None:
    """If a denied call is known only to a newer release than --runtime-floor allows, the rejection
    states that release, and the profile is accepted if the option is set to it.
    """
    body, (error,) = check(denying(name))
    assert (body, error.code) == (b"", "unknown_syscall")
    assert f"known since libseccomp {release}" in error.hint
    assert f"state a newer floor: --runtime-floor libseccomp={release}" in error.hint
    assert "Did you mean" not in error.hint
    body, findings = check(denying(name), f"libseccomp={release}")
    assert name in body.decode()
    assert {finding.severity for finding in findings} <= {"warning", "notice"}


def test_a_floor_below_the_first_release_of_a_call_is_not_enough() -> None:
    """If --runtime-floor is older than the first release that knows a call, the message states the
    value of the option.
    """
    _, (error,) = check(denying("mseal"), "libseccomp=2.5.5")
    assert error.message.startswith("libseccomp 2.5.5 does not know mseal")


@pytest.mark.parametrize("name", sorted(releases.INTRODUCED))
def test_a_known_call_is_never_reported_as_a_misspelling(name: str) -> None:
    """The rejection of a newer call never suggests a misspelling, and contains facts about the
    call.
    """
    _, (error,) = check(denying(name))
    assert error.hint.startswith(f"{name} exists since Linux ")


def test_a_call_of_other_architectures_is_not_reported_as_a_misspelling() -> None:
    """The rejection of a call that only other architectures have, such as kern_features on sparc,
    does not suggest a misspelling.
    """
    _, (error,) = check(denying("kern_features"))
    assert "architectures that the agent does not support" in error.hint


def test_a_misspelt_name_gets_a_suggestion() -> None:
    """If no architecture has a call with this name, the message suggests a similar name."""
    _, (error,) = check(denying("fchmodta"))
    assert error.hint == "Did you mean fchmodat?"


def test_an_ignored_name_in_an_allow_list_refers_to_the_floor() -> None:
    """A single warning lists all names in an allow list that the oldest supported libseccomp does
    not know, and states that version.
    """
    tree = allowing("read", "fchmodat2", "mseal")
    warnings = [item for item in check(tree)[1] if item.code == "syscall_ignored"]
    assert [item.message for item in warnings] == [
        "libseccomp 2.5.4 does not know fchmodat2, mseal, and runtimes with it ignore these names."
    ]
    assert "--runtime-floor libseccomp=2.5.6" in warnings[0].hint
    codes = {item.code for item in check(tree, "libseccomp=2.5.6")[1]}
    assert "syscall_ignored" not in codes


def test_the_hint_about_a_newer_variant_refers_to_the_floor() -> None:
    """The hint recommends a newer variant of a call only if every libseccomp from the version in
    --runtime-floor onwards knows the variant.
    """
    tree = denying("fchmodat")
    hints = {
        floor: [item.hint for item in check(tree, floor)[1] if item.code == "newer_call_allowed"]
        for floor in ("", "libseccomp=2.5.5")
    }
    assert "--runtime-floor libseccomp=2.5.5" in hints[""][0]
    assert hints["libseccomp=2.5.5"] == ["Add fchmodat2 to the rule."]


@pytest.mark.parametrize("flag", ["LOG", "SPEC_ALLOW", "TSYNC"])
def test_a_flag_is_accepted_from_the_first_runc_that_knows_it(flag: str) -> None:
    """If a filter flag needs a newer runc, the rejection contains the necessary value of
    --runtime-floor. If this value is set, the written form contains the flag.
    """
    tree = denying("chmod", flags=[f"SECCOMP_FILTER_FLAG_{flag}"])
    body, (error,) = check(tree)
    assert (body, error.code) == (b"", "not_portable")
    assert "--runtime-floor runc=1.2" in error.hint
    body, _ = check(tree, "runc=1.2")
    assert json.loads(body)["flags"] == tree["flags"]


def test_an_unknown_flag_is_rejected_with_every_floor() -> None:
    """An unknown filter flag is rejected for every value of --runtime-floor."""
    tree = denying("chmod", flags=["SECCOMP_FILTER_FLAG_LOGS"])
    for floor in ("", "runc=1.5"):
        body, (error,) = check(tree, floor)
        assert (body, error.code) == (b"", "bad_value")
        assert "Did you mean SECCOMP_FILTER_FLAG_LOG?" in error.hint


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_the_floor_can_be_set_in_three_ways(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator can set --runtime-floor with a flag, an environment variable or a YAML key."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(denying("fchmodat2", architectures=["SCMP_ARCH_X86_64"])))
    value = "libseccomp=2.5.5"
    words = ["check", "--arch=x86_64", str(profile)]
    assert main(words) == 1
    if source == "flag":
        words += ["--runtime-floor", value]
    elif source == "variable":
        monkeypatch.setenv("PROFILE_LOADER_RUNTIME_FLOOR", value)
    else:
        config = tmp_path / "config.yaml"
        config.write_text(f"runtime-floor: {value}\n")
        words += ["--config", str(config)]
    assert main(words) == 0, capsys.readouterr()


def test_convert_uses_the_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command `convert` converts a profile that needs a newer libseccomp only if
    --runtime-floor is set to that version.
    """
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(denying("fchmodat2")))
    assert main(["convert", "--arch=x86_64", str(profile)]) == 1
    assert main(["convert", "--arch=x86_64", "--runtime-floor=libseccomp=2.5.5", str(profile)]) == 0
    assert "fchmodat2" in capsys.readouterr().out


def test_every_call_of_the_tables_is_known_or_has_its_first_release() -> None:
    """For each call of a supported architecture, the agent knows the first libseccomp release that
    has the call.
    """
    for name in sorted(releases.INTRODUCED):
        assert not syscalls.known(name)
        assert syscalls.exists(name)
