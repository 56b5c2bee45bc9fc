"""Tests of the files that the real apparmor_parser can open under the real Landlock.

The texts bypass the source checks, so these tests cover only the sandbox. Compiling a text needs no
AppArmor kernel.
"""

import errno
import os
import threading
from pathlib import Path

import pytest

from agent.backends.apparmor import parser_sandbox
from agent.backends.apparmor.parser import Parser
from agent.core.model import Profile, Rejection, SourceKey
from agent.host import commands, landlock
from agent.host.commands import CommandLimits
from agent.host.filesystem import Host
from tests import inspection
from tests.unit.test_landlock import SYSTEM_CALL_NUMBERS, output_under

pytestmark = pytest.mark.skipif(landlock.missing() != "", reason=landlock.missing() or "active")
FEATURES = ("--kernel-features", "/etc/apparmor.d/abi/3.0")
CANARY = "xylophone"
# Each of these texts makes the parser open PATH. A previous version of the source checks accepted
# the first text.
FORMS = {
    "an include after the word abi in a comment": (
        'profile web {\n  capability # see the abi\n  include "PATH"\n  ,\n}\n'
    ),
    "plain": 'profile web {\n  capability\n  include "PATH"\n  ,\n}\n',
    "with a number sign": 'profile web {\n  capability\n  #include "PATH"\n  ,\n}\n',
    "if it exists": 'profile web {\n  capability\n  include if exists "PATH"\n  ,\n}\n',
    "climbing": "profile web {\n  capability\n  include <../..PATH>\n  ,\n}\n",
    "as an abi": 'abi "PATH",\nprofile web {}\n',
    "an abi path with `..`": "abi <../..PATH>,\nprofile web {}\n",
}


def parser(include_dir="/etc/apparmor.d", **options):
    return Parser("", include_dir=include_dir, **options)


def compiled(form, path):
    """Compile a text that makes the parser open a path. Return the result, with the path
    removed.
    """
    text = FORMS[form].replace("PATH", str(path)).encode()
    result = inspection.compiled(parser(), text, FEATURES)
    return result.error.replace(str(path), "PATH"), bool(result.policy), result.exceeded_limit


@pytest.fixture
def outside(tmp_path):
    """Create files outside the include directory: a secret, a pipe and a directory."""
    (tmp_path / "secret").write_text(f"{CANARY} rest\n")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/secret").write_text(f"{CANARY} rest\n")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_a_file_outside_the_include_directory_is_not_opened(form, outside):
    """A file outside the include directory is not opened. A secret file, a directory, a pipe and a
    missing path have the same result.
    """
    missing = compiled(form, outside / "missing")
    for name in ("secret", "directory", "pipe"):
        result = compiled(form, outside / name)
        assert CANARY not in result[0]
        assert result == missing, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["root", "environ", "cwd", "fd", "maps"])
def test_the_files_of_other_processes_are_not_opened(form, place, outside):
    """The parser cannot open the files of the agent in /proc/PID, although the agent runs as the
    same user.
    """
    below = {"root": f"root{outside}/secret"}.get(place, place)
    result = compiled(form, f"/proc/{os.getpid()}/{below}")
    assert result == compiled(form, "/proc/0/missing")


@pytest.mark.parametrize("form", FORMS)
def test_pipes_of_other_processes_are_not_opened(form):
    """The parser cannot open the pipes of other processes. Landlock has no rule for pipes, but it
    denies access to /proc/PID/fd.
    """
    reading, writing = os.pipe()
    try:
        os.write(writing, f"{CANARY} rest\n".encode())
        os.close(writing)
        result = compiled(form, f"/proc/{os.getpid()}/fd/{reading}")
        assert CANARY not in result[0]
        assert result == compiled(form, f"/proc/{os.getpid()}/fd/9999")
        assert os.read(reading, 64).startswith(CANARY.encode())
    finally:
        os.close(reading)


def test_the_files_that_the_parser_needs_are_opened():
    """With and without the sandbox, a text with abstractions, tunables and an abi compiles to the
    same policy.
    """
    text = (
        b"abi <abi/3.0>,\ninclude <tunables/global>\n"
        b"profile web {\n  include <abstractions/base>\n  include if exists <local/web>\n}\n"
    )
    made = inspection.compiled(parser(), text, FEATURES)
    assert made.policy
    argv = [parser().path, "-Q", "-K", "-S", "--base", "/etc/apparmor.d", *FEATURES]
    limits = CommandLimits(seconds=60, memory_bytes=1 << 30, cpu_seconds=60, output_bytes=1 << 24)
    free = commands.run(argv, stdin=text, limits=limits)
    assert made.policy == free.stdout


def test_links_of_the_include_directory_are_followed(tmp_path, outside):
    """The parser follows symbolic links in the include directory, because the administrator creates
    them. The parser does not follow a link to a parent directory.
    """
    include = tmp_path / "apparmor.d"
    include.mkdir()
    (outside / "rules").write_text("  deny /secret/** rw,\n")
    (outside / "more").mkdir()
    (outside / "more/rules").write_text("  deny /secret/** rw,\n")
    (include / "file").symlink_to(outside / "rules")
    (include / "directory").symlink_to(outside / "more")
    (include / "above").symlink_to(tmp_path)
    (include / "loop").symlink_to("loop")
    for name, expected in {
        "file": "",
        "directory/rules": "",
        "above/rules": "",  # the target of a second link, inside the first target
        "above/secret": "Could not open",
    }.items():
        text = f"profile web {{\n  include <{name}>\n}}\n"
        result = inspection.compiled(parser(str(include)), text.encode(), FEATURES)
        assert (expected in result.error, bool(result.policy)) == (True, not expected), name


def test_directories_and_features_of_the_configuration_file_are_readable(tmp_path, outside):
    """The parser can read the include directories and the features file in its
    configuration file.
    """
    (tmp_path / "more").mkdir()
    (tmp_path / "more/rules").write_text("  deny /secret/** rw,\n")
    features = tmp_path / "features"
    features.write_text(Path("/etc/apparmor.d/abi/3.0").read_text())
    configuration = tmp_path / "parser.conf"
    configuration.write_text(f"Include {tmp_path}/more\npolicy-features={features}\n")
    access = parser(config_file=str(configuration)).access(FEATURES)
    assert {f"{tmp_path}/more", str(features), str(configuration)} <= set(access.read)


def test_the_backend_reports_an_active_sandbox():
    """The report of a pass shows whether the sandbox is active."""
    result = inspection.apparmor_backend(Host("/"), checking=True).sandbox()
    assert result is not None
    assert result.finding is None


def test_a_parser_script_runs_without_a_sandbox_and_is_reported(tmp_path):
    """If the parser is a script, the agent runs it without a sandbox, and reports this."""
    script = tmp_path / "parser"
    script.write_text(f'#!/bin/sh\nexec {parser().path} "$@"\n')
    script.chmod(0o755)
    backend = inspection.apparmor_backend(Host("/"), parser=str(script), checking=True)
    result = backend.sandbox()
    assert result is not None
    assert result.finding is not None
    assert result.finding.code == "parser_not_sandboxed"
    assert "is not an ELF program" in result.finding.message
    source_key = SourceKey(profile_set="dir test", key="key", content=b"profile web { file, }\n")
    assert [type(result) for result in inspection.inspected(backend, source_key)] == [Profile]


def test_an_undecided_text_needs_the_sandbox(tmp_path):
    """If an include rule is followed by text on the same line, the key is accepted only with a
    sandbox.
    """
    content = b"include <tunables/global> profile web { file, }\n"
    source_key = SourceKey(profile_set="dir test", key="key", content=content)
    (result,) = inspection.inspected(
        inspection.apparmor_backend(Host("/"), checking=True), source_key
    )
    assert isinstance(result, Profile)
    script = tmp_path / "parser"
    script.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nexec {parser().path} "$@"\n')
    script.chmod(0o755)
    free = inspection.apparmor_backend(Host("/"), parser=str(script), checking=True)
    (refused,) = inspection.inspected(free, source_key)
    assert isinstance(refused, Rejection)
    assert [finding.code for finding in refused.findings] == ["include_refused"]
    assert not (tmp_path / "runs").exists()


def test_a_policy_that_was_compiled_without_the_sandbox_is_compiled_again():
    """A policy from a run without the sandbox is compiled again, because it may depend on other
    files.
    """
    script = """
from agent.backends.apparmor.parser import Parser
made = Parser("", include_dir="/etc/apparmor.d")
print(made.input_digest(), end="")
"""
    without = output_under(SYSTEM_CALL_NUMBERS["create"], errno.ENOSYS, script)
    assert len(without) == len(parser().input_digest())
    assert without != parser().input_digest()


def test_the_loader_and_the_libraries_are_those_of_the_program():
    """The paths of the dynamic loader and of the libraries come from the parser program itself."""
    path = parser().path
    loader = parser_sandbox.interpreter(path)
    result = parser_sandbox.libraries(path, loader)
    assert [path for path in (loader, *result) if not Path(path).is_file()] == []
    assert any("libc" in path or "musl" in path for path in result)


def test_a_file_that_is_not_a_program_has_no_loader(tmp_path):
    """A script, an empty file or a truncated program has no loader, and does not count as a static
    program.
    """
    path = tmp_path / "file"
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(parser_sandbox.NotElfError):
            parser_sandbox.interpreter(str(path))


def test_many_runs_leave_no_thread_and_no_descriptor():
    """After many runs of the parser, no thread and no descriptor remains."""
    made = parser()
    inspection.compiled(made, b"profile web {}\n", FEATURES)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        inspection.compiled(made, b"profile web {}\n", FEATURES)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors
