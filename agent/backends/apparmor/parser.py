"""Runs apparmor_parser, which turns a profile text into compiled policy or an error message.

The agent always passes kernel features to the parser, because without them the parser omits rules
from the policy and reports no error. The parser compiles in a child process, so the limits also
apply to its children. parser_options.py has the options of each run, and parser_messages.py selects
the parts of the output that the agent shows.
"""

import enum
import errno
import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.backends.apparmor import parser_messages, parser_options, parser_sandbox
from agent.backends.apparmor.policy_cache import ParserResult
from agent.core.model import digest
from agent.host import commands, landlock, reading, stat_signature
from agent.host.commands import CommandLimits, Exited
from agent.host.filesystem import HostError

INCLUDE_DIR = "/etc/apparmor.d"
CONFIG_FILE = "/etc/apparmor/parser.conf"
DEFAULT_PATHS = ("/sbin/apparmor_parser", "/usr/sbin/apparmor_parser")
_MAX_OUTPUT_BYTES = 8 << 20
# The wall-clock limit is this multiple of the CPU limit, because other work may keep the node busy.
WALL_CLOCK_FACTOR = 10.0
# The values of these options in the parser's configuration file (apparmor_parser(8)) are paths.
_FEATURES = re.compile(
    rb"^\s*(?:policy|kernel|override-policy)?-?(?:features|abi|features-file)=(\S+)", re.MULTILINE
)
_POLICY_FEATURES = re.compile(rb"^\s*policy-features=(\S+)", re.MULTILINE)
_PRINTED_VERSION = re.compile(rb"version (\d[\w.~+-]{0,30})")
_VERSION_SECONDS = 10.0
_VERSION_MEMORY_BYTES = 256 << 20
_VERSION_OUTPUT_BYTES = 1 << 16
_INCLUDES = re.compile(rb"^\s*(?:include|Include|I)[= ]\s*(/\S+)", re.MULTILINE)


class ParserError(Exception):
    """The parser cannot be started."""


class RunFailure(enum.Enum):
    """The reason why a parser run ended without a result."""

    WALL_CLOCK = "wall_clock"
    CPU_TIME = "cpu_time"
    MEMORY = "memory"
    OUTPUT = "output"
    SIGNAL = "signal"
    """The parser crashed, or another process killed the parser."""
    CANCELLED = "cancelled"
    NOT_STARTED = "not_started"
    NO_MEMORY = "no_memory"
    """The container had too little memory left for a decision about the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserRun:
    """A parser run that has ended."""

    outcome: ParserResult | RunFailure
    detail: str = ""
    """A human-readable description of the failure; empty if the run produced a result."""
    seconds: float = 0.0
    """The duration of the run in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserLimits:
    """What one run of the parser may use."""

    cpu_seconds: float
    """The CPU time. The wall-clock limit is longer, so that a busy node does not cause a text to be
    rejected.
    """
    memory_bytes: int
    """The address space."""

    def of_command(self) -> CommandLimits:
        """Return the limits of the command that runs the parser."""
        return CommandLimits(
            seconds=WALL_CLOCK_FACTOR * self.cpu_seconds,
            memory_bytes=self.memory_bytes,
            cpu_seconds=max(1, math.ceil(self.cpu_seconds)),
            output_bytes=_MAX_OUTPUT_BYTES,
        )


class Parser:
    """The apparmor_parser on this machine, with the include directories that the parser reads."""

    def __init__(
        self,
        path: str,
        *,
        include_dir: str,
        config_file: str = CONFIG_FILE,
        ran: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Create the object without running the parser.

        Args:
            path: the parser program; if it is empty, the first existing path of DEFAULT_PATHS.
            include_dir: the directory of the parser's option --base.
            config_file: the configuration file of the parser.
            ran: called with the duration of each run in seconds.
        """
        self.path = path or next(
            (default for default in DEFAULT_PATHS if os.access(default, os.X_OK)), ""
        )
        self.include_dir = include_dir
        self.config_file = config_file
        self.ran = ran
        # The stat signatures of the inputs, and their digest.
        self._input_digest: tuple[object, str] = (None, "")
        # The stat signature of the parser, and its version.
        self._version: tuple[object, str] = (None, "")
        # The stat signatures of the libraries, and their paths.
        self._library_files: tuple[object, tuple[str, ...]] = (None, ())

    def unavailable_reason(self) -> str:
        """Return the reason why the parser cannot be used, or "" if it can be used."""
        if not self.path:
            return "apparmor_parser is not installed"
        if not Path(self.path).is_file() or not os.access(self.path, os.X_OK):
            return f"{self.path} is not an executable file"
        return ""

    def features_files(self) -> list[Path]:
        """Return the features files in the include directory, the highest version last."""
        files = (
            path for path in Path(self.include_dir, "abi").glob("*") if re.match(r"\d", path.name)
        )
        return sorted(files, key=_version)

    def newest_features_file(self) -> str:
        """Return the features file with the highest version in the include directory.

        The result is "" if the directory contains no features file.
        """
        files = self.features_files()
        return str(files[-1]) if files else ""

    def has_include(self, path: str) -> bool:
        """Return whether the include directory contains a file that the parser could not open."""
        is_inside = not path.startswith("/") and ".." not in path.split("/")
        # Path.exists raises OSError for a name that is too long.
        return is_inside and os.path.lexists(os.path.join(self.include_dir, path))

    def policy_features(self, abi_path: str) -> bytes:
        """Return the features that the text's abi rule or the parser's configuration selects.

        The result is empty if neither of them selects features, so that only the kernel's features
        apply.

        Args:
            abi_path: the path in the text's abi rule; empty if the text has no abi rule.
        """
        if abi_path:
            return file_content(str(Path(self.include_dir, abi_path)))
        configured = _configured(_POLICY_FEATURES, file_content(self.config_file))
        return file_content(configured[-1]) if configured else b""

    def version(self) -> str:
        """Return the version of the parser; empty if the parser does not print a version.

        The parser is started only after its file has changed.
        """
        signature = _signature(self.path)
        if signature != self._version[0]:
            self._version = (signature, self._printed_version())
        return self._version[1]

    def _printed_version(self) -> str:
        limits = CommandLimits(
            seconds=_VERSION_SECONDS,
            memory_bytes=_VERSION_MEMORY_BYTES,
            cpu_seconds=int(_VERSION_SECONDS),
            output_bytes=_VERSION_OUTPUT_BYTES,
        )
        try:
            access = None if self.unsandboxed_reason() else self.access(())
            done = self._done([self.path, "--version"], b"", limits, access, lambda: False)
        except (HostError, ParserError):
            return ""
        printed = _PRINTED_VERSION.search(done.stdout)
        return printed[1].decode("ascii") if printed is not None else ""

    def input_digest(self) -> str:
        """Return a digest of the parser, its configuration and every file that it may include.

        The files are read again only after a stat signature has changed. If the parser has no
        sandbox, a policy may depend on other files too, so the digest differs from the digest with
        a sandbox. Raises ParserError.
        """
        is_sandboxed = not self.unsandboxed_reason()
        configuration = file_content(self.config_file)
        files = [self.path, self.config_file, *_configured(_FEATURES, configuration)]
        files += parser_sandbox.include_tree(self._roots(configuration)).files
        signatures = (is_sandboxed, *((path, _signature(path)) for path in files))
        if signatures != self._input_digest[0]:
            contents = (os.fsencode(path) + b"\0" + file_content(path) for path in files)
            level = map(os.fsencode, parser_options.uncompressed(self._words()))
            inputs = b"".join((b"sandboxed\0" * is_sandboxed, *level, *contents))
            self._input_digest = (signatures, digest(inputs))
        return self._input_digest[1]

    def unsandboxed_reason(self) -> str:
        """Return the reason why the parser has no sandbox, or "" if it has one. Raises
        ParserError.
        """
        try:
            return parser_sandbox.unavailable_reason(self.path)
        except OSError as error:
            raise ParserError(f"{self.path}: {error.strerror}") from error

    def run(
        self,
        text: bytes,
        features: Sequence[str],
        *,
        limits: ParserLimits,
        is_quick: bool,
        is_cancelled: Callable[[], bool],
    ) -> ParserRun:
        """Compile one text.

        Args:
            text: the profile text.
            features: the command line options that select the kernel features.
            limits: the CPU time and the memory that the parser may use.
            is_quick: whether to omit the simplification of expressions. A quick run takes half the
                time of a full run and produces the same bytes (docs/performance.md). For some path
                patterns, however, a quick run needs much more time and memory.
            is_cancelled: called while the parser runs; if it returns True, the run is ended.
        """
        command_limits = limits.of_command()
        options = parser_options.options(self._words(), is_quick=is_quick)
        argv = [self.path, *options, "--base", self.include_dir, *features]
        try:
            access = None if self.unsandboxed_reason() else self.access(features)
            done = self._done(argv, text, command_limits, access, is_cancelled)
            stderr = done.stderr
            if not is_quick and done.status > 0 and b" at line " in stderr and b"include" in text:
                argv.append(parser_messages.INPUT_PATH)
                located = self._done(argv, text, command_limits, access, is_cancelled)
                stderr = located.stderr if b" in profile " in located.stderr else stderr
        except (HostError, ParserError) as error:
            return ParserRun(outcome=RunFailure.NOT_STARTED, detail=str(error))
        outcome = _outcome(done, stderr, self._quotable(text), command_limits)
        detail = _detail(outcome, done, command_limits) if isinstance(outcome, RunFailure) else ""
        return ParserRun(outcome=outcome, detail=detail, seconds=done.seconds)

    def _words(self) -> frozenset[str]:
        """Return the words in the parser program."""
        return _words(self.path, _signature(self.path))

    def _done(
        self,
        argv: Sequence[str],
        text: bytes,
        limits: CommandLimits,
        access: landlock.Access | None,
        is_cancelled: Callable[[], bool],
    ) -> Exited:
        """Run the parser one time. Raises HostError."""
        with commands.started(argv, stdin=text, limits=limits, sandbox=access) as running:
            done = running.result(is_cancelled)
        self.ran(done.seconds)
        return done

    def _quotable(self, text: bytes) -> parser_messages.QuotableWords:
        """Return the words that the agent may show in a message about a profile text."""
        words = self._words()
        return parser_messages.QuotableWords(source=text, words=words, include_dir=self.include_dir)

    def _roots(self, configuration: bytes) -> tuple[str, ...]:
        """Return the include directories."""
        return (self.include_dir, *_configured(_INCLUDES, configuration))

    def access(self, features: Sequence[str]) -> landlock.Access:
        """Return the files that the parser may open in its sandbox. Raises ParserError."""
        configuration = file_content(self.config_file)
        return parser_sandbox.allowed_access(
            self.path,
            self._libraries(),
            parser_sandbox.include_tree(self._roots(configuration)),
            (self.config_file, *_configured(_FEATURES, configuration), *features[1:]),
        )

    def _libraries(self) -> tuple[str, ...]:
        """Return the dynamic loader and the libraries of the parser. Raises ParserError."""
        try:
            loader = parser_sandbox.interpreter(self.path)
            if not loader:
                return ()
            files = (self.path, loader, parser_sandbox.LIBRARY_CACHE)
            signatures = [_signature(file) for file in files]
            if signatures != self._library_files[0]:
                libraries = parser_sandbox.libraries(self.path, loader)
                self._library_files = (signatures, (loader, *libraries))
        except (OSError, HostError, parser_sandbox.NotElfError) as error:
            raise ParserError(f"the libraries of {self.path} cannot be listed: {error}") from error
        return self._library_files[1]


def _configured(option: re.Pattern[bytes], configuration: bytes) -> list[str]:
    """Return the paths that an option of the parser's configuration file contains."""
    return [os.fsdecode(path) for path in option.findall(configuration)]


def _failure_of_child(done: Exited, cpu_seconds: float) -> RunFailure:
    """Return the reason why a signal ended the child process in which the parser compiles.

    The parser does not report the number of the signal (parser_main.c, the macro work_sync_one).
    The kernel samples the CPU time for the limit, so the exact time can be less: in a measurement
    it was 0.87 s for a limit of 1 s.
    """
    return RunFailure.CPU_TIME if done.cpu_seconds >= cpu_seconds / 2 else RunFailure.SIGNAL


def _outcome(
    done: Exited, stderr: bytes, quotable: parser_messages.QuotableWords, limits: CommandLimits
) -> ParserResult | RunFailure:
    # A parser that lacks memory may also hang instead of ending. In both cases, the run failed
    # because of the lack of memory.
    if done.status != 0 and parser_messages.is_out_of_memory(done.stderr):
        return RunFailure.MEMORY
    if done.limit is not None:
        return RunFailure(done.limit.value)
    if done.status < 0:
        return RunFailure.SIGNAL
    if done.status != 0:
        message = parser_messages.error_message(stderr, quotable)
        if not message and done.status == errno.ECHILD:
            return _failure_of_child(done, limits.cpu_seconds)
        return ParserResult(error=message or f"exit status {done.status}")
    return ParserResult(
        policy=done.stdout, warnings=parser_messages.weaker_rules(done.stderr, quotable)
    )


def _detail(failure: RunFailure, done: Exited, limits: CommandLimits) -> str:
    """Return a human-readable description of a failure."""
    return {
        RunFailure.WALL_CLOCK: f"the run took more than {limits.seconds:g} s on this busy node",
        RunFailure.CPU_TIME: f"more than {limits.cpu_seconds} s of CPU time",
        RunFailure.MEMORY: f"more than {limits.memory_bytes >> 20} MiB of memory",
        RunFailure.OUTPUT: f"more than {_MAX_OUTPUT_BYTES >> 20} MiB of output",
        RunFailure.SIGNAL: f"signal {-done.status}" if done.status < 0 else "a signal",
    }.get(failure, "")


@functools.lru_cache(maxsize=1)
def _words(path: str, _signature: tuple[int, ...]) -> frozenset[str]:
    return parser_messages.words_of_program(file_content(path)) | {path, Path(path).name}


def _version(path: Path) -> tuple[list[int], int]:
    """Return the numbers in the name of a features file, for comparison.

    If two files have the same version, the file without a suffix comes last.
    """
    return [int(number) for number in re.findall(r"\d+", path.name)], -len(path.name)


def _signature(path: str) -> tuple[int, ...]:
    """Return the stat signature of a file, or the errno if the file cannot be examined."""
    try:
        # This function is called for each include file, and os is faster than pathlib.
        return stat_signature.of(os.stat(path))
    except OSError as error:
        return (error.errno or errno.EIO,)


def file_content(path: str) -> bytes:
    """Return the content of a file as input for a digest.

    If the file is not regular or cannot be read, the result describes the problem, and the parser
    reports the error later.
    """
    try:
        # This function is called for each include file, and os is faster than pathlib.
        if not os.path.isfile(path):
            return b"irregular"  # Reading a FIFO or a device might never end.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = reading.read_all(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
    except OSError as error:
        return f"unreadable {error.errno}".encode()
    return f"{len(content)}\n".encode() + content
