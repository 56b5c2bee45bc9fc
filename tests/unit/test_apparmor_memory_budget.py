"""Specification of the memory that apparmor_parser may take."""

import pytest

from agent.backends.apparmor import memory_budget
from agent.core.model import Rejection
from tests.inspection import inspected
from tests.unit.test_apparmor_compile import backend as one
from tests.unit.test_apparmor_compile import blobs, runs
from tests.unit.test_apparmor_faults import write

MIB = 1 << 20
# The limit is set from outside, right after the start.
WAIT = 'until [ "$(ulimit -v)" != unlimited ]; do :; done\n'


def cgroup(tmp_path, path, **files):
    """Make a list of cgroups with one of version 2 at path, and its files."""
    own = write(tmp_path, "proc/self/cgroup", f"4:memory:/other\n0::{path}\n")
    for name, content in files.items():
        write(tmp_path, f"cgroup{path}/memory.{name}", f"{content}\n")
    return own, tmp_path / "cgroup"


def stat(inactive, active):
    return f"anon 1\ninactive_file {inactive}\nactive_file {active}"


@pytest.mark.parametrize("path", ["/", "/system.slice/agent.service"])
@pytest.mark.parametrize(
    ("most", "expected"), [(512 * MIB, 396 * MIB), (128 * MIB, 64 * MIB), (8 << 30, 1 << 30)]
)
def test_the_parser_has_what_the_container_has_left(tmp_path, path, most, expected):
    """Limit less use, less a reserve; the page cache is no use; between 64 MiB and 1 GiB."""
    files = {"max": most, "current": 150 * MIB, "stat": stat(30 * MIB, 20 * MIB)}
    assert memory_budget.available_bytes(*cgroup(tmp_path, path, **files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"max": "max", "current": MIB, "stat": stat(0, 0)}, 1 << 30),
        ({}, 1 << 30),
        ({"max": 512 * MIB}, 64 * MIB),
        ({"max": 512 * MIB, "current": MIB, "stat": "anon 1"}, 64 * MIB),
    ],
)
def test_no_limit_is_plenty_and_an_unknown_use_is_all(tmp_path, files, expected):
    """Only a limit that is known restricts the parser, and then as if nothing were left."""
    assert memory_budget.available_bytes(*cgroup(tmp_path, "/", **files)) == expected


def test_without_a_cgroup_of_version_2_there_is_plenty(tmp_path):
    """Version 1 ends the parser alone."""
    own = write(tmp_path, "cgroup", "4:memory:/pod\n")
    assert (
        memory_budget.available_bytes(own, tmp_path)
        == memory_budget.available_bytes(tmp_path / "none", tmp_path)
        == 1 << 30
    )


@pytest.mark.parametrize(
    ("left", "expected"), [(1024, [64, 960]), (128, [64, 64]), (100, [64, 100]), (10, [64, 64])]
)
def test_each_run_gets_the_memory_that_is_left(tmp_path, left, expected):
    """A quick run gets 64 MiB; a full run leaves 64 MiB for a second parser, if there is enough."""
    made = backend(tmp_path, f"{WAIT}ulimit -v >> {tmp_path}/runs; exit 1", left)
    inspected(made, *blobs("profile x {}"))
    assert [int(kib) // 1024 for kib in runs(tmp_path)] == expected


def test_no_second_parser_runs_where_the_memory_is_short(tmp_path):
    """64 MiB for each is the least."""
    made = backend(
        tmp_path,
        f"cd {tmp_path}; mkdir busy || touch both; sleep 0.2; rmdir busy",
        100,
    )
    inspected(made, *blobs("1", "2", "3"))
    assert not (tmp_path / "both").exists()


def backend(tmp_path, text, left=1024):
    """Return a backend whose parser may use so many MiB."""
    return one(tmp_path, text, free_memory=lambda: left * MIB)


WHAT = (
    "apparmor_parser exceeded a limit: more than 80 MiB of memory. The text is not compiled again "
    "until it changes."
)
HINT = (
    "Simplify the rules (alternations, many ** in one rule), or raise the memory limit of the "
    "agent's container: the parser may use what is left."
)


@pytest.mark.parametrize("said", ["what():  std::bad_alloc", "Out of memory", "Memory allocation"])
def test_a_text_that_needs_too_much_memory_is_told_so(tmp_path, said):
    """It is no mistake of the text's language, and more memory would help."""
    made = one(tmp_path, f"echo '{said}' >&2; exit 10", cpu_limit=1.0, free_memory=lambda: 80 * MIB)
    (found,) = inspected(made, *blobs("profile x {}"))
    assert isinstance(found, Rejection)
    (finding,) = found.findings
    assert (finding.code, finding.message, finding.hint) == (
        "parser_killed",
        WHAT,
        HINT,
    )


def test_a_parser_that_hangs_for_want_of_memory_is_told_so(tmp_path):
    """Now and then apparmor_parser says bad_alloc and does not end: memory is the reason."""
    made = one(tmp_path, "echo std::bad_alloc >&2; exec sleep 600", cpu_limit=0.1)
    (found,) = inspected(made, *blobs("profile x {}"))
    assert "MiB of memory" in found.findings[0].message
