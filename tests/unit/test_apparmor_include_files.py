"""Tests of agent.backends.apparmor.include_files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.backends.apparmor.include_expansion import IncludedFile, IncludeFileError
from agent.backends.apparmor.include_files import IncludeDirectories
from tests.narrowing import not_none


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Create an include directory."""
    directory = tmp_path / "apparmor.d"
    (directory / "tunables/home.d/deep").mkdir(parents=True)
    for name in ("a", "b", "README", ".hidden", "c.dpkg-new", "d~", "e.rpmsave"):
        (directory / "tunables/home.d" / name).write_text(f"# {name}\n")
    (directory / "base").write_text("/a r,\n")
    (tmp_path / "secret").write_text("root:x\n")
    return directory


def files(*directories: Path) -> IncludeDirectories:
    """Return the files in the given directories."""
    return IncludeDirectories([str(directory) for directory in directories], max_bytes=1000)


def test_the_name_of_an_include_is_the_path_of_a_file(top: Path) -> None:
    """The name of an include is the path of a file in the include directory."""
    assert files(top).find("base") == (
        IncludedFile(name="base", path=f"{top}/base", text="/a r,\n"),
    )
    assert files(top).find("absent") is None


def test_a_directory_has_its_profiles_in_the_order_of_the_parser(top: Path) -> None:
    """An included directory contributes its files in the order of the parser, without
    subdirectories, hidden files and files of package managers.
    """
    (top / "tunables/home.d/link").symlink_to("a")
    result = not_none(files(top).find("tunables/home.d"))
    assert [file.name for file in result] == [
        "tunables/home.d/link",
        "tunables/home.d/b",
        "tunables/home.d/a",
    ]


def test_the_first_directory_that_contains_a_name_decides(top: Path, tmp_path: Path) -> None:
    """If several include directories contain a name, only the file in the first of these
    directories is included.
    """
    more = tmp_path / "more"
    more.mkdir()
    (more / "base").write_text("/b r,\n")
    (more / "extra").write_text("/c r,\n")
    both = files(top, more)
    assert [not_none(both.find(name))[0].text for name in ("base", "extra")] == [
        "/a r,\n",
        "/c r,\n",
    ]
    assert both.directories() == f"{top} or {more}"


@pytest.mark.parametrize(
    ("target", "name"),
    [("../secret", "link"), ("/etc/hostname", "link"), ("..", "link"), ("..", "link/secret")],
)
def test_a_link_out_of_the_directory_is_rejected(top: Path, target: str, name: str) -> None:
    """A link that points outside the include directories is rejected, so no other file becomes part
    of a text.
    """
    (top / "link").symlink_to(target)
    with pytest.raises(IncludeFileError, match="points outside the include directory") as refused:
        files(top).find(name)
    assert refused.value.hint == "Replace the link with a copy of the file."


def test_a_file_in_a_directory_may_not_be_a_link_out_of_it(top: Path) -> None:
    """A file in an included directory may not be a link that points outside the directory."""
    (top / "tunables/home.d/z").symlink_to("../../../secret")
    with pytest.raises(IncludeFileError, match="points outside the include directory"):
        files(top).find("tunables/home.d")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("absent"), "not a regular file"),
        (lambda path: path.write_bytes(b"a\xff"), r"not UTF-8 \(byte 1\)"),
    ],
)
def test_an_unusable_file_is_rejected_with_a_reason(
    top: Path, make: Callable[..., object], reason: str
) -> None:
    """An unusable file is rejected with a reason. A special file is not opened, and an included
    text must be UTF-8.
    """
    make(top / "bad")
    with pytest.raises(IncludeFileError, match=reason):
        files(top).find("bad")
