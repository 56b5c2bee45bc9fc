"""Tests of `profile-loader diff`, which compares two seccomp profiles."""

import json
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.backends.seccomp import baseline
from tests.json_object import JsonObject

DEFAULTS = Path(baseline.__file__).parent / "defaults"
NODE = ("--arch=x86_64", "--kernel=6.1")


def profile(*rules: JsonObject, **more: list[str]) -> JsonObject:
    tree = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"]}
    return tree | {"syscalls": list(rules)} | more


def rule(
    name: str,
    *args: tuple[int, str, int],
    action: str = "SCMP_ACT_ALLOW",
    **more: int | dict[str, str],
) -> JsonObject:
    conditions = [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value} for index, op, value in args
    ]
    return {"names": [name], "action": action, "args": conditions} | more


def compared(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: JsonObject,
    second: JsonObject,
    *flags: str,
) -> tuple[int, str]:
    paths = [str(tmp_path / name) for name in ("old.json", "new.json")]
    for path, tree in zip(paths, (first, second), strict=True):
        Path(path).write_text(json.dumps(tree))
    status = main(["diff", *paths, *NODE, *flags])
    return status, capsys.readouterr().out


EQUAL = [
    (profile(rule("personality")), profile(rule("personality"), rule("personality"))),
    (
        profile(rule("personality", (0, "NE", 5))),
        profile(rule("personality", (0, "LT", 5)), rule("personality", (0, "GT", 5))),
    ),
    (profile(rule("mount", action="SCMP_ACT_ERRNO", errnoRet=1)), profile()),
    (
        profile(rule("mount", action="SCMP_ACT_KILL")),
        profile(rule("mount", action="SCMP_ACT_KILL_THREAD")),
    ),
    (profile(rule("bpf", includes={"minKernel": "7.0"})), profile()),
]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_profiles_with_the_same_meaning_have_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: JsonObject, second: JsonObject
) -> None:
    """Two profiles with the same meaning have no difference, even if their texts differ."""
    expected = (0, "The profiles have the same meaning.\n")
    assert compared(tmp_path, capsys, first, second) == expected


@pytest.mark.parametrize(
    ("rules", "direction", "line"),
    [
        ([rule("mount")], "more-permissive", "x86_64  mount: ERRNO(1) -> ALLOW"),
        (
            [rule("personality", (0, "EQ", 8)), rule("personality", (0, "EQ", 9))],
            "more-permissive",
            "x86_64  personality: ERRNO(1) -> ALLOW where arg0 == 9",
        ),
        (
            [rule("mount", action="SCMP_ACT_KILL_PROCESS")],
            "more-restrictive",
            "x86_64  mount: ERRNO(1) -> KILL_PROCESS",
        ),
        (
            [rule("mount", action="SCMP_ACT_ERRNO", errnoRet=38)],
            "other-error",
            "x86_64  mount: ERRNO(1) -> ERRNO(38)",
        ),
    ],
)
def test_each_difference_has_its_conditions_and_a_direction(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rules: list[JsonObject],
    direction: str,
    line: str,
) -> None:
    """The table and the JSON contain the same differences."""
    first = profile(rule("personality", (0, "EQ", 8)))
    second = profile(*rules, *first["syscalls"])
    status, output = compared(tmp_path, capsys, first, second)
    assert (status, line in output) == (1, True)
    status, output = compared(tmp_path, capsys, first, second, "--format=json")
    (difference,) = json.loads(output)["comparisons"][0]["differences"]
    assert (status, difference["direction"]) == (1, direction)


def test_an_architecture_that_one_filter_lacks_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An architecture that only one filter contains is a difference, because the kernel kills
    threads that use another ABI.
    """
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    status, output = compared(tmp_path, capsys, profile(), profile(architectures=both))
    assert status == 1
    assert "x86  *: KILL_THREAD -> ERRNO(1)" in output


@pytest.mark.parametrize(("rules", "status"), [([rule("mount")], 1), ([], 0)])
def test_fail_if_more_permissive_ignores_restrictions(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rules: list[dict[str, str | list[str]]],
    status: int,
) -> None:
    """With --fail-if-more-permissive, the command fails only if the new profile allows more."""
    first, second = profile(rule("bpf")), profile(*rules)
    assert compared(tmp_path, capsys, first, second, "--fail-if=more-permissive")[0] == status


def test_a_profile_is_compared_with_the_defaults_of_runtimes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The default profile of containerd equals itself, and differs from CRI-O's default profile."""
    path = str(DEFAULTS / "containerd.json")
    assert main(["diff", "--baseline=containerd", path, *NODE]) == 0
    begin = time.process_time()
    assert main(["diff", "--baseline=runtime-default", path, *NODE]) == 1
    # On an idle machine, each pair takes less than a second.
    assert time.process_time() - begin < 10
    output = capsys.readouterr().out
    assert "Compared with the default profile of cri-o" in output
    assert "x86_64  mount: ALLOW -> ERRNO(1)" in output


@pytest.mark.parametrize(
    ("words", "status"),
    [(["a"], 2), (["a", "b", "c"], 2), (["--baseline=cri-o", "a", "b"], 2), (["a", "b"], 3)],
)
def test_wrong_calls_and_missing_files_have_their_own_exit_status(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int
) -> None:
    """With a wrong number of files, the exit status is 2. With a missing file, the exit status is
    different.
    """
    assert main(["diff", *words]) == status
    assert capsys.readouterr().err


def test_a_file_without_a_profile_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a file does not contain a profile, the error message contains the path and the reason."""
    assert compared(tmp_path, capsys, profile(), {"hook": {}}) == (1, "")


def test_a_resource_is_compared_with_its_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command also compares files in the formats that `convert` reads."""
    tree = profile(rule("personality"))
    plain, wrapped = tmp_path / "plain.json", tmp_path / "resource.yaml"
    plain.write_text(json.dumps(tree))
    resource = {"apiVersion": "x/v1", "kind": "SeccompProfile", "spec": tree}
    wrapped.write_text(json.dumps(resource))
    assert main(["diff", str(plain), str(wrapped), *NODE]) == 0
    assert "same meaning" in capsys.readouterr().out
