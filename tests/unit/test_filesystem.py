"""The host door: files below a root, whatever stands in their way, and bounded commands."""

import errno
import fcntl
import os
import select
import stat

import pytest

from agent.host.filesystem import (
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    Exited,
    Host,
    HostError,
    Limit,
)

PYTHON = os.path.realpath("/proc/self/exe")
LIMITS = {
    "stdin": b"",
    "timeout_seconds": 20,
    "memory_bytes": 1 << 30,
    "cpu_seconds": 10,
    "output_bytes": 1 << 16,
}


@pytest.fixture
def host(tmp_path):
    """Give a host whose root is an empty directory."""
    return Host(tmp_path)


def tree(path):
    return {
        str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()
    }


def errno_of(call, *args, **kwargs):
    with pytest.raises(HostError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def test_a_written_file_is_whole_and_readable_by_all(host, tmp_path):
    """A file gets its content and mode; nothing temporary is left beside it."""
    host.write_file("/var/lib/seccomp", "profiles/a.json", b"{}")
    assert tree(tmp_path) == {"var/lib/seccomp/profiles/a.json": b"{}"}
    made = tmp_path / "var/lib/seccomp/profiles"
    assert stat.S_IMODE((made / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


def test_a_new_file_never_replaces_another(host, tmp_path):
    """With new, what somebody else wrote stays, and nothing temporary is left."""
    host.write_file("/d", "a", b"theirs")
    assert errno_of(host.write_file, "/d", "a", b"ours", new=True) == errno.EEXIST
    assert tree(tmp_path) == {"d/a": b"theirs"}
    host.write_file("/d", "b", b"ours", new=True)
    assert tree(tmp_path) == {"d/a": b"theirs", "d/b": b"ours"}


def test_a_replaced_file_is_the_new_one(host, tmp_path):
    """Without new, the content is replaced as a whole."""
    host.write_file("/d", "a", b"old")
    host.write_file("/d", "a", b"new")
    assert tree(tmp_path) == {"d/a": b"new"}


def test_no_link_below_the_base_is_followed(host, tmp_path):
    """A planted link leads no write, read or removal elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a").write_bytes(b"theirs")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d/link").symlink_to(tmp_path / "elsewhere/a")
    assert errno_of(host.write_file, "/d", "sub/a", b"x") in (errno.ELOOP, errno.ENOTDIR)
    assert errno_of(host.read_regular, "/d", "sub/a", limit=9) in (errno.ELOOP, errno.ENOTDIR)
    assert errno_of(host.read_regular, "/d", "link", limit=9) == errno.ELOOP
    assert errno_of(host.remove_file, "/d", "sub/a") in (errno.ELOOP, errno.ENOTDIR)
    host.write_file("/d", "link", b"ours")
    assert tree(tmp_path) == {"elsewhere/a": b"theirs", "d/link": b"ours"}


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "./a", "a/.."])
def test_only_descending_names_are_taken(host, name):
    """A name that could leave the base is refused before anything is opened."""
    if name != "./a":
        assert errno_of(host.write_file, "/d", name, b"x") == errno.EINVAL


def test_only_regular_files_are_read(host, tmp_path):
    """A FIFO or a directory is an error at once, a large file too, an absent one is None."""
    (tmp_path / "d/directory").mkdir(parents=True)
    os.mkfifo(tmp_path / "d/fifo")
    (tmp_path / "d/large").write_bytes(b"0123456789")
    assert errno_of(host.read_regular, "/d", "fifo", limit=9) == errno.EINVAL
    assert errno_of(host.read_regular, "/d", "directory", limit=9) == errno.EINVAL
    assert errno_of(host.read_regular, "/d", "large", limit=9) == errno.EFBIG
    assert host.read_regular("/d", "large", limit=10) == b"0123456789"
    assert host.read_regular("/d", "absent", limit=9) is None
    assert host.read_regular("/nowhere", "absent", limit=9) is None


def test_removing_what_is_absent_is_no_error(host, tmp_path):
    """A removal can be repeated."""
    host.write_file("/d", "a", b"x")
    host.remove_file("/d", "a")
    host.remove_file("/d", "a")
    host.remove_file("/nowhere", "a")
    assert tree(tmp_path) == {}


def test_a_system_file_is_read_whole_and_bounded(host, tmp_path):
    """Large files are read to their end; more than the limit is an error, never a part."""
    (tmp_path / "f").write_bytes(b"x" * 200_000)
    assert host.read("/f") == b"x" * 200_000
    assert errno_of(host.read, "/f", limit=1000) == errno.EFBIG
    assert errno_of(host.read, "/absent") == errno.ENOENT


def test_names_and_presence(host, tmp_path):
    """A dangling link exists; an absent path does not; an absent directory is an error."""
    (tmp_path / "b").symlink_to("nowhere")
    (tmp_path / "a").write_bytes(b"")
    assert host.names("/") == ["a", "b"]
    assert [host.exists(path) for path in ("/b", "/c", "/a/c")] == [True, False, False]
    assert errno_of(host.names, "/absent") == errno.ENOENT


def test_a_kernel_file_is_written_in_one_piece(host, tmp_path):
    """The bytes arrive as they are; a missing file is not made."""
    (tmp_path / "replace").write_bytes(b"")
    host.write_kernel("/replace", b"policy")
    assert tree(tmp_path) == {"replace": b"policy"}
    assert errno_of(host.write_kernel, "/absent", b"") == errno.ENOENT


def test_a_command_gets_its_input_and_gives_its_output(host):
    """Standard input, both outputs and the exit status pass through."""
    code = "import sys; d = sys.stdin.read(); print(d.upper()); sys.stderr.write('e'); sys.exit(3)"
    done = host.run([PYTHON, "-c", code], **{**LIMITS, "stdin": b"abc"})
    assert done == Exited(status=3, stdout=b"ABC\n", stderr=b"e")


def test_a_hanging_command_is_ended_with_its_children(host):
    """A time-out kills the whole process group."""
    code = "import os, signal; os.fork(); signal.pause()"
    done = host.run([PYTHON, "-c", code], **{**LIMITS, "timeout_seconds": 0.3})
    assert (done.status, done.limit) == (-9, Limit.WALL_CLOCK)


def test_a_talkative_command_is_ended(host):
    """Megabytes of output end the command, and only the bounded part is kept."""
    code = "import os\nwhile True: os.write(1, b'x' * 4096)"
    done = host.run([PYTHON, "-c", code], **LIMITS)
    assert (len(done.stdout), done.status != 0) == (1 << 16, True)


def test_a_spinning_command_is_ended(host):
    """CPU time is bounded, wall time apart."""
    done = host.run([PYTHON, "-c", "while True: pass"], **{**LIMITS, "cpu_seconds": 1})
    assert done.limit is Limit.CPU_TIME


def test_a_command_that_does_not_exist_is_a_host_error(host):
    """What cannot be started is told as the path and its errno."""
    assert errno_of(host.run, ["/nowhere/parser"], **LIMITS) == errno.ENOENT


def test_links_on_the_way_to_a_host_path_stay_on_the_host(host, tmp_path):
    """A host's absolute link is read below the root, as the host itself would read it."""
    (tmp_path / "mnt/kubelet").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/kubelet").symlink_to("/mnt/kubelet")
    (tmp_path / "var/out").symlink_to("../../../..")
    host.write_file("/var/lib/kubelet/seccomp", "a", b"x")
    host.write_file("/var/out/d", "b", b"y")
    assert {
        name: one
        for name, one in tree(tmp_path).items()
        if not name.startswith(("var/lib/kubelet", "var/out"))
    } == {"mnt/kubelet/seccomp/a": b"x", "d/b": b"y"}


def test_links_in_a_circle_are_an_error(host, tmp_path):
    """A path that never ends is ELOOP, not a hang."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert errno_of(host.write_file, "/a/d", "x", b"") == errno.ELOOP


def test_what_a_kill_left_behind_is_cleared_by_the_next_write(host, tmp_path, monkeypatch):
    """A temporary file of an earlier process neither stays nor stands in the way."""
    with monkeypatch.context() as broken:
        broken.setattr(os, "link", lambda *_, **__: os._exit(0))
        pid = os.fork()
        if pid == 0:
            host.write_file("/d", "a", b"cut", new=True)
        os.waitpid(pid, 0)
    assert list(tree(tmp_path).values()) == [b"cut"]
    host.write_file("/d", "a", b"whole", new=True)
    assert tree(tmp_path) == {"d/a": b"whole"}


def test_a_temporary_file_that_a_process_is_writing_is_left_alone(host, tmp_path):
    """Two agents may share a directory: only the remains of processes that ended are removed."""
    folder = tmp_path / "d"
    folder.mkdir()
    names = [f"{TEMPORARY_PREFIX}{one}{TEMPORARY_SUFFIX}" for one in ("live", "stale", "pipe")]
    for name in names[:2]:
        (folder / name).write_bytes(b"")
    os.mkfifo(folder / names[2])
    with (folder / names[0]).open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        host.write_file("/d", "a", b"")
    assert sorted(one.name for one in folder.iterdir()) == sorted([names[0], names[2], "a"])


# --- signatures -----------------------------------------------------------------------------------


def test_signatures_of_many_files_are_those_of_each(host, tmp_path):
    """Names below a directory, one of them deeper, give what each alone gives; absent ones none."""
    (tmp_path / "set/sub").mkdir(parents=True)
    (tmp_path / "set/a").write_bytes(b"1")
    (tmp_path / "set/sub/b").write_bytes(b"2")
    (tmp_path / "set/link").symlink_to("a")
    names = ["a", "sub/b", "link", "absent", "bad\0name"]
    expected = {name: host.signature(f"/set/{name}") for name in ("a", "sub/b", "link")}
    assert host.signatures("/set", names) == expected


def test_signatures_of_everything_tell_the_directory_too(host, tmp_path):
    """Without names it is the directory under the empty name, and each name in it."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").write_bytes(b"1")
    expected = {"": host.signature("/set"), "a": host.signature("/set/a")}
    assert host.signatures("/set") == expected


def test_no_directory_has_no_signatures(host, tmp_path):
    """Absent and unreadable differ from a directory without files."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    answers = [host.signatures(path, ["a"]) for path in ("/absent", "/file", "/empty")]
    assert answers == [None, None, {}]


@pytest.mark.parametrize("number", range(20))
def test_a_process_that_the_command_starts_at_once_gets_the_same_limits(tmp_path, number):
    """The command may fork before its own limits are set; its child waits for them here."""
    memory_kib = LIMITS["memory_bytes"] >> 10
    script = f"{{ until [ $(ulimit -v) = {memory_kib} ]; do :; done; echo {number}; }} & wait"
    done = Host(tmp_path).run(["/bin/sh", "-c", script], **LIMITS)
    assert (done.status, done.stdout) == (0, b"%d\n" % number)


def test_the_cpu_time_of_a_command_includes_its_children(tmp_path):
    """A program that works in a child process used that CPU time itself."""
    script = 'sh -c "while :; do :; done"; exit 10'
    done = Host(tmp_path).run(["/bin/sh", "-c", script], **{**LIMITS, "cpu_seconds": 1})
    assert (done.status, done.limit) == (10, None)
    assert done.cpu_seconds >= 0.5


def test_the_output_limit_of_a_process_that_the_command_starts_is_reported(tmp_path):
    """The command reports only that its child failed."""
    script = "head -c 10000000 /dev/zero; exit 10"
    done = Host(tmp_path).run(["/bin/sh", "-c", script], **{**LIMITS, "output_bytes": 4096})
    assert (done.status, done.limit) == (10, Limit.OUTPUT)


def test_a_process_that_outlives_the_command_is_ended(tmp_path):
    """The parser's child must not run on after the parser itself was killed."""
    script = "{ while :; do :; done; } & exit 0"
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    Host(tmp_path).run(["/bin/sh", "-c", f"exec 3>{path}; {script}"], **LIMITS)
    # The pipe reports a hang-up once the process that has it open is gone.
    ready = select.poll()
    ready.register(reader, 0)
    assert ready.poll(60_000) == [(reader, select.POLLHUP)]
    os.close(reader)
