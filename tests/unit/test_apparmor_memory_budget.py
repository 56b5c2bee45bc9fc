"""Tests of the amount of memory that apparmor_parser may use."""

import os
from pathlib import Path

import pytest

from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.apparmor.memory_budget import MemoryCgroup
from agent.core.model import Pending, Rejection
from tests.inspection import inspected
from tests.narrowing import instance_of
from tests.unit.test_apparmor_compile import runs, script_backend, source_keys
from tests.unit.test_apparmor_faults import write

MIB = 1 << 20
# The script waits, because another process sets its memory limit right after its start.
WAIT = 'until [ "$(ulimit -v)" != unlimited ]; do :; done\n'


def cgroup(tmp_path: Path, path: str, **files: int | str) -> MemoryCgroup:
    """Create the files of a cgroup of version 2, and the list of this process's cgroups."""
    own = write(tmp_path, "proc/self/cgroup", f"4:cpu:/other\n0::{path}\n")
    for name, content in files.items():
        write(tmp_path, f"cgroup{path}/memory.{name}", f"{content}\n")
    return MemoryCgroup(own=own, root=tmp_path / "cgroup")


def cgroup_v1(tmp_path: Path, directory: str, **files: int | str) -> MemoryCgroup:
    """Create the files of a cgroup of version 1, and the list of this process's cgroups."""
    own = write(tmp_path, "proc/self/cgroup", "9:cpu,memory:/kubepods/pod1\n0::/kubepods/pod1\n")
    for name, content in files.items():
        write(tmp_path, f"cgroup/memory{directory}/memory.{name}", f"{content}\n")
    return MemoryCgroup(own=own, root=tmp_path / "cgroup")


def stat(inactive: int, active: int) -> str:
    return f"anon 1\ninactive_file {inactive}\nactive_file {active}"


@pytest.mark.parametrize("path", ["/", "/system.slice/agent.service"])
@pytest.mark.parametrize(
    ("limit", "expected"),
    [(512 * MIB, 396 * MIB), (140 * MIB, 24 * MIB), (100 * MIB, 0), (8 << 30, 1 << 30)],
)
def test_the_parser_may_use_the_memory_that_the_container_has_left(
    tmp_path: Path, path: str, limit: int, expected: int
) -> None:
    """The parser may use the memory limit minus the usage (without the page cache) and a reserve,
    but at most 1 GiB.
    """
    files: dict[str, int | str] = {
        "max": limit,
        "current": 150 * MIB,
        "stat": stat(30 * MIB, 20 * MIB),
    }
    assert cgroup(tmp_path, path, **files).available_bytes() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"max": "max", "current": MIB, "stat": stat(0, 0)}, 1 << 30),
        ({}, 1 << 30),
        ({"max": 512 * MIB}, 64 * MIB),
        ({"max": 512 * MIB, "current": MIB, "stat": "anon 1"}, 64 * MIB),
    ],
)
def test_an_unknown_usage_leaves_the_minimum(
    tmp_path: Path, files: dict[str, int | str], expected: int
) -> None:
    """If the usage is unknown, the parser may use the minimum. Without a limit, the parser may use
    the maximum.
    """
    assert cgroup(tmp_path, "/", **files).available_bytes() == expected


@pytest.mark.parametrize("directory", ["", "/kubepods/pod1"])
@pytest.mark.parametrize(
    ("limit", "expected"), [(512 * MIB, 396 * MIB), (0x7FFFFFFFFFFFF000, 1 << 30)]
)
def test_a_limit_of_cgroup_version_1_is_respected(
    tmp_path: Path, directory: str, limit: int, expected: int
) -> None:
    """A limit of cgroup version 1 also applies. In a container, the files at the mount point may
    belong to the cgroup of the container.
    """
    files: dict[str, int | str] = {
        "limit_in_bytes": limit,
        "usage_in_bytes": 150 * MIB,
        "stat": f"cache 1\ntotal_inactive_file {30 * MIB}\ntotal_active_file {20 * MIB}",
    }
    assert cgroup_v1(tmp_path, directory, **files).available_bytes() == expected


def test_without_a_memory_cgroup_the_parser_may_use_the_maximum(tmp_path: Path) -> None:
    """If the list of cgroups is missing or contains no memory cgroup, the parser may use the
    maximum.
    """
    own = write(tmp_path, "cgroup", "4:cpu:/pod\n")
    for file in (own, tmp_path / "none"):
        assert MemoryCgroup(own=file, root=tmp_path).available_bytes() == 1 << 30


@pytest.mark.parametrize(
    ("left", "expected"), [(1024, [64, 960]), (128, [64, 64]), (100, [64, 100]), (40, [40, 40])]
)
def test_each_run_gets_the_memory_that_is_left(
    tmp_path: Path, left: int, expected: list[int]
) -> None:
    """A quick run may use at most 64 MiB. If possible, a full run leaves 64 MiB for a second
    parser.
    """
    backend = backend_with(tmp_path, f"{WAIT}ulimit -v >> {tmp_path}/runs; exit 1", left)
    inspected(backend, *source_keys("profile x {}"))
    assert [int(kib) // 1024 for kib in runs(tmp_path)] == expected


def test_a_second_parser_needs_64_mib(tmp_path: Path) -> None:
    """If less than 64 MiB is left for a second parser, the agent compiles one text at a time."""
    backend = backend_with(
        tmp_path,
        f"cd {tmp_path}; mkdir busy || touch both; sleep 0.2; rmdir busy",
        100,
    )
    inspected(backend, *source_keys("1", "2", "3"))
    assert not (tmp_path / "both").exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor runs one parser")
def test_the_memory_of_a_running_parser_is_subtracted_once(tmp_path: Path) -> None:
    """The memory of a running parser is subtracted only once, because the free memory already
    excludes it.
    """
    text = (
        f"cd {tmp_path}; mkdir busy || touch both\n"
        "for i in $(seq 100); do [ -e both ] && break; sleep 0.05; done\nrmdir busy"
    )
    backend = script_backend(
        tmp_path,
        text,
        free_memory=lambda: (70 if (tmp_path / "busy").exists() else 128) * MIB,
    )
    inspected(backend, *source_keys("1", "2"))
    assert (tmp_path / "both").exists()


def test_no_second_parser_starts_with_less_than_the_minimum(tmp_path: Path) -> None:
    """No second parser starts while less than the minimum of memory is free."""
    text = f"cd {tmp_path}; mkdir busy || touch both; sleep 0.2; rmdir busy"
    before_the_first_run = iter([128])
    backend = script_backend(
        tmp_path, text, free_memory=lambda: next(before_the_first_run, 63) * MIB
    )
    inspected(backend, *source_keys("1", "2", "3"))
    assert not (tmp_path / "both").exists()


def test_without_memory_no_parser_starts(tmp_path: Path) -> None:
    """While no memory is free, no parser starts, because the kernel would kill the container. The
    text is compiled later.
    """
    backend = backend_with(tmp_path, f"touch {tmp_path}/started", left=10)
    (result,) = inspected(backend, *source_keys("profile x {}"))
    assert isinstance(result, Pending)
    assert NO_MEMORY in result.findings[0].message
    assert not (tmp_path / "started").exists()


def test_a_parser_ends_when_the_memory_runs_out(tmp_path: Path) -> None:
    """A running parser is killed if the agent needs more memory."""
    text = f"touch {tmp_path}/started; exec sleep 600"
    backend = script_backend(
        tmp_path, text, free_memory=lambda: 0 if (tmp_path / "started").exists() else 64 * MIB
    )
    (result,) = inspected(backend, *source_keys("profile x {}"))
    assert isinstance(result, Pending)
    assert NO_MEMORY in result.findings[0].message


def test_a_text_is_not_rejected_for_a_lack_of_memory_in_the_container(tmp_path: Path) -> None:
    """A text is not rejected if the container had less memory than usual, because the parser might
    compile it later.
    """
    backend = backend_with(tmp_path, "echo Out of memory >&2; exit 10", left=63)
    (result,) = inspected(backend, *source_keys("profile x {}"))
    assert isinstance(result, Pending)
    assert NO_MEMORY in result.findings[0].message


NO_MEMORY = "the container of the agent has too little memory left"


def backend_with(tmp_path: Path, text: str, left: int = 1024) -> AppArmorBackend:
    """Return a backend whose parsers together may use the given number of MiB."""
    return script_backend(tmp_path, text, free_memory=lambda: left * MIB)


MESSAGE = (
    "apparmor_parser exceeded a limit: more than 80 MiB of memory. The text is not compiled again "
    "until it changes."
)
HINT = (
    "Simplify the rules (alternations, or many ** in one rule), or raise the memory limit of the "
    "agent's container, because the parser may use the memory that is left there."
)


@pytest.mark.parametrize(
    "output", ["what():  std::bad_alloc", "Out of memory", "Memory allocation"]
)
def test_a_text_that_needs_too_much_memory_is_rejected_with_that_reason(
    tmp_path: Path, output: str
) -> None:
    """If a text needs too much memory, the hint recommends to simplify the text or to raise the
    memory limit.
    """
    backend = script_backend(
        tmp_path, f"echo '{output}' >&2; exit 10", cpu_limit=1.0, free_memory=lambda: 80 * MIB
    )
    (result,) = inspected(backend, *source_keys("profile x {}"))
    assert isinstance(result, Rejection)
    (finding,) = result.findings
    assert (finding.code, finding.message, finding.hint) == ("parser_killed", MESSAGE, HINT)


def test_a_parser_that_hangs_without_memory_is_reported_with_that_reason(tmp_path: Path) -> None:
    """If apparmor_parser reports bad_alloc but does not exit, the run is reported as out of
    memory.
    """
    backend = script_backend(tmp_path, "echo std::bad_alloc >&2; exec sleep 600", cpu_limit=0.1)
    (result,) = inspected(backend, *source_keys("profile x {}"))
    assert "MiB of memory" in instance_of(result, Rejection).findings[0].message
