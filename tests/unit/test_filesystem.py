"""Tests of agent.host.filesystem, with malicious files in a host root."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host import temporary_files
from agent.host.filesystem import Host, HostError


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host whose root is an empty directory."""
    return Host(tmp_path)


def tree(path: Path) -> dict[str, bytes]:
    """Return the content of each file in a directory tree, by relative path."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def errno_of(call: Callable[..., object], *args: bytes | str, **kwargs: int) -> int:
    """Return the errno of the HostError that a call raises."""
    with pytest.raises(HostError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def test_a_written_file_is_complete_and_readable_by_everyone(host: Host, tmp_path: Path) -> None:
    """A written file has its complete content and is readable by all users. No temporary file
    remains.
    """
    host.write_file("/var/lib/seccomp", "profiles/a.json", b"{}")
    assert tree(tmp_path) == {"var/lib/seccomp/profiles/a.json": b"{}"}
    directory = tmp_path / "var/lib/seccomp/profiles"
    assert stat.S_IMODE((directory / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_a_new_file_never_replaces_another_file(host: Host, tmp_path: Path) -> None:
    """With the argument `new`, a write does not replace the file of another program. No temporary
    file remains.
    """
    host.write_file("/d", "a", b"foreign")
    assert errno_of(host.write_file, "/d", "a", b"own", new=True) == errno.EEXIST
    assert tree(tmp_path) == {"d/a": b"foreign"}
    host.write_file("/d", "b", b"own", new=True)
    assert tree(tmp_path) == {"d/a": b"foreign", "d/b": b"own"}


def test_a_write_replaces_the_whole_content(host: Host, tmp_path: Path) -> None:
    """Without the argument `new`, a write replaces the whole content of an existing file."""
    host.write_file("/d", "a", b"old")
    host.write_file("/d", "a", b"new")
    assert tree(tmp_path) == {"d/a": b"new"}


def test_no_link_below_the_base_is_followed(host: Host, tmp_path: Path) -> None:
    """No link redirects a read, a write or a removal to another directory."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a").write_bytes(b"foreign")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d/link").symlink_to(tmp_path / "elsewhere/a")
    assert errno_of(host.write_file, "/d", "sub/a", b"x") in (errno.ELOOP, errno.ENOTDIR)
    assert errno_of(host.read_regular, "/d", "sub/a", limit=9) in (errno.ELOOP, errno.ENOTDIR)
    assert errno_of(host.read_regular, "/d", "link", limit=9) == errno.ELOOP
    assert errno_of(host.remove_file, "/d", "sub/a") in (errno.ELOOP, errno.ENOTDIR)
    host.write_file("/d", "link", b"own")
    assert tree(tmp_path) == {"elsewhere/a": b"foreign", "d/link": b"own"}


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "a/.."])
def test_a_name_that_can_leave_the_base_is_rejected(host: Host, name: str) -> None:
    """A name that can leave the base directory, such as an absolute name or a name with `..`,
    raises EINVAL.
    """
    assert errno_of(host.write_file, "/d", name, b"x") == errno.EINVAL


def test_only_regular_files_are_read(host: Host, tmp_path: Path) -> None:
    """Only regular files are read. A FIFO, a directory or a file above the limit is an error. For a
    missing file, the result is None.
    """
    (tmp_path / "d/directory").mkdir(parents=True)
    os.mkfifo(tmp_path / "d/fifo")
    (tmp_path / "d/large").write_bytes(b"0123456789")
    assert errno_of(host.read_regular, "/d", "fifo", limit=9) == errno.EINVAL
    assert errno_of(host.read_regular, "/d", "directory", limit=9) == errno.EINVAL
    assert errno_of(host.read_regular, "/d", "large", limit=9) == errno.EFBIG
    assert host.read_regular("/d", "large", limit=10) == b"0123456789"
    assert host.read_regular("/d", "absent", limit=9) is None
    assert host.read_regular("/nowhere", "absent", limit=9) is None


def test_the_removal_of_a_missing_file_succeeds(host: Host, tmp_path: Path) -> None:
    """If a file is removed twice, the second removal succeeds too."""
    host.write_file("/d", "a", b"x")
    host.remove_file("/d", "a")
    host.remove_file("/d", "a")
    host.remove_file("/nowhere", "a")
    assert tree(tmp_path) == {}


def test_a_system_file_is_read_completely_within_a_limit(host: Host, tmp_path: Path) -> None:
    """A system file is read completely. A file above the limit raises EFBIG."""
    (tmp_path / "f").write_bytes(b"x" * 200_000)
    assert host.read("/f") == b"x" * 200_000
    assert errno_of(host.read, "/f", limit=1000) == errno.EFBIG
    assert errno_of(host.read, "/absent") == errno.ENOENT


def test_names_and_exists_with_links_and_missing_paths(host: Host, tmp_path: Path) -> None:
    """A dangling link exists, and a missing path does not. Listing the names of a missing directory
    is an error.
    """
    (tmp_path / "b").symlink_to("nowhere")
    (tmp_path / "a").write_bytes(b"")
    assert host.names("/") == ["a", "b"]
    assert [host.exists(path) for path in ("/b", "/c", "/a/c")] == [True, False, False]
    assert errno_of(host.names, "/absent") == errno.ENOENT


def test_a_write_to_a_kernel_file_creates_no_file(host: Host, tmp_path: Path) -> None:
    """A write to a kernel file never creates a file. If the file is missing, the write raises
    ENOENT.
    """
    (tmp_path / "replace").write_bytes(b"")
    host.write_kernel("/replace", b"policy")
    assert tree(tmp_path) == {"replace": b"policy"}
    assert errno_of(host.write_kernel, "/absent", b"") == errno.ENOENT


def test_links_in_a_host_path_stay_below_the_root(host: Host, tmp_path: Path) -> None:
    """The target of an absolute link in a host path is a path in the host root."""
    (tmp_path / "mnt/kubelet").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/kubelet").symlink_to("/mnt/kubelet")
    (tmp_path / "var/out").symlink_to("../../../..")
    host.write_file("/var/lib/kubelet/seccomp", "a", b"x")
    host.write_file("/var/out/d", "b", b"y")
    assert {
        name: content
        for name, content in tree(tmp_path).items()
        if not name.startswith(("var/lib/kubelet", "var/out"))
    } == {"mnt/kubelet/seccomp/a": b"x", "d/b": b"y"}


def test_a_loop_of_links_is_an_error(host: Host, tmp_path: Path) -> None:
    """A path through two links that point to each other raises ELOOP."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert errno_of(host.write_file, "/a/d", "x", b"") == errno.ELOOP


def test_the_next_write_removes_the_temporary_file_of_a_killed_process(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a process was killed during a write, the next write removes its temporary file."""
    with monkeypatch.context() as broken:
        broken.setattr(os, "link", lambda *_, **__: os._exit(0))
        pid = os.fork()
        if pid == 0:
            host.write_file("/d", "a", b"partial", new=True)
        os.waitpid(pid, 0)
    assert list(tree(tmp_path).values()) == [b"partial"]
    host.write_file("/d", "a", b"complete", new=True)
    assert tree(tmp_path) == {"d/a": b"complete"}


def test_a_temporary_file_that_a_process_is_writing_stays(host: Host, tmp_path: Path) -> None:
    """A temporary file that another process is writing is not removed."""
    folder = tmp_path / "d"
    folder.mkdir()
    names = [
        f"{temporary_files.PREFIX}{name}{temporary_files.SUFFIX}"
        for name in ("live", "stale", "pipe")
    ]
    for name in names[:2]:
        (folder / name).write_bytes(b"")
    os.mkfifo(folder / names[2])
    with (folder / names[0]).open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        host.write_file("/d", "a", b"")
    assert sorted(file.name for file in folder.iterdir()) == sorted([names[0], names[2], "a"])


# --- signatures -----------------------------------------------------------------------------------


def test_signatures_equal_the_signature_of_each_file(host: Host, tmp_path: Path) -> None:
    """Each listed file has a signature, also in a subdirectory. A missing file has no signature."""
    (tmp_path / "set/sub").mkdir(parents=True)
    (tmp_path / "set/a").write_bytes(b"1")
    (tmp_path / "set/sub/b").write_bytes(b"2")
    (tmp_path / "set/link").symlink_to("a")
    names = ["a", "sub/b", "link", "absent", "bad\0name"]
    expected = {name: host.signature(f"/set/{name}") for name in ("a", "sub/b", "link")}
    assert host.signatures("/set", names) == expected


def test_signatures_without_names_include_the_directory(host: Host, tmp_path: Path) -> None:
    """Without names, the result contains the signature of the directory itself, under an empty
    name.
    """
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").write_bytes(b"1")
    expected = {"": host.signature("/set"), "a": host.signature("/set/a")}
    assert host.signatures("/set") == expected


def test_signatures_of_a_missing_directory_are_none(host: Host, tmp_path: Path) -> None:
    """The result is None if the directory is missing or the path is a file, but not if the
    directory is empty.
    """
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    signatures = [host.signatures(path, ["a"]) for path in ("/absent", "/file", "/empty")]
    assert signatures == [None, None, {}]
