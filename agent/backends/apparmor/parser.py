"""Runs apparmor_parser, which turns a profile text into a compiled policy or an error message.

The parser neither loads policy (`-Q`) nor uses its own cache (`-K`), because that cache identifies
a text by file name and time only. The parser is always given kernel features: without features, it
leaves rules out of the policy and reports nothing. It runs within limits, and its output is
bounded and escaped. It compiles in a child process, so the limits must hold for that process too.
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

from agent.backends.apparmor import parser_messages, parser_sandbox
from agent.backends.apparmor.policy_cache import ParserResult
from agent.core.model import digest
from agent.host import commands, landlock, reading, stat_signature
from agent.host.commands import CommandLimits, Exited
from agent.host.filesystem import HostError

DEFAULT_PATHS = ("/sbin/apparmor_parser", "/usr/sbin/apparmor_parser")
_OPTIONS = ("-Q", "-K", "-S", "--warn=rule-not-enforced")
_QUICK_OPTIONS = ("-O", "no-expr-simplify")
_OUTPUT_BYTES = 8 << 20
WALL_CLOCK_FACTOR = 10.0  # of the CPU time: a node may be busy with other work
# Options in the parser's configuration file (apparmor_parser(8)) that name files.
_FEATURES = re.compile(
    rb"^\s*(?:policy|kernel|override-policy)?-?(?:features|abi|features-file)=(\S+)", re.MULTILINE
)
_INCLUDES = re.compile(rb"^\s*(?:include|Include|I)[= ]\s*(/\S+)", re.MULTILINE)
# What C++, libc, flex and the parser itself say when an allocation fails.
_NO_MEMORY = re.compile(
    rb"(?i)bad_alloc|out of (dynamic )?memory|memory allocation|allocate memory|memory exhausted"
)


class ParserError(Exception):
    """The parser cannot be started."""


class RunFailure(enum.Enum):
    """Why a parser run says nothing final about the text."""

    WALL_CLOCK = "wall_clock"
    CPU_TIME = "cpu_time"
    MEMORY = "memory"
    OUTPUT = "output"
    SIGNAL = "signal"  # the parser crashed, or another process killed it
    CANCELLED = "cancelled"
    NOT_STARTED = "not_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserRun:
    """One finished run. detail: the reason in words, where there is no result."""

    outcome: ParserResult | RunFailure
    detail: str = ""
    seconds: float = 0.0


class Parser:
    """One apparmor_parser of this machine, with the includes that it reads."""

    def __init__(
        self,
        path: str,
        *,
        include_dir: str,
        config_file: str = "/etc/apparmor/parser.conf",
        ran: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.path = path or next((one for one in DEFAULT_PATHS if os.access(one, os.X_OK)), "")
        self.include_dir = include_dir
        self.config_file = config_file
        self.ran = ran
        self._signatures: object = None
        self._digest = ""
        self._needed: tuple[object, tuple[str, ...]] = (None, ())

    def unavailable_reason(self) -> str:
        """Return why there is no parser, or nothing."""
        if not self.path:
            return "apparmor_parser is not installed"
        if not Path(self.path).is_file() or not os.access(self.path, os.X_OK):
            return f"{self.path} is not an executable file"
        return ""

    def newest_features_file(self) -> str:
        """Return the newest features file below the include directory, or nothing."""
        found = [
            path for path in Path(self.include_dir, "abi").glob("*") if re.match(r"\d", path.name)
        ]
        newest = max(found, key=lambda path: [int(one) for one in _numbers(path)], default=None)
        return str(newest) if newest is not None else ""

    def input_digest(self) -> str:
        """Return a digest of the parser, its configuration and every file it may include.

        Contents are read again only when some file's identity, size or times changed. Without the
        sandbox a policy may have other inputs, so the digest is another one. Raises ParserError.
        """
        confined = not self.unsandboxed_reason()
        configuration = file_content(self.config_file)
        files = [self.path, self.config_file, *_configured(_FEATURES, configuration)]
        files += parser_sandbox.include_tree(self._roots(configuration)).files
        signatures = (confined, *((path, _identity(path)) for path in files))
        if signatures != self._signatures:
            contents = (os.fsencode(path) + b"\0" + file_content(path) for path in files)
            self._digest = digest(b"".join((b"sandboxed\0" * confined, *contents)))
            self._signatures = signatures
        return self._digest

    def unsandboxed_reason(self) -> str:
        """Return why the parser runs without a sandbox here, or nothing. Raises ParserError."""
        try:
            return parser_sandbox.unavailable_reason(self.path)
        except OSError as error:
            raise ParserError(f"{self.path}: {error.strerror}") from error

    def run(  # noqa: PLR0913 - each limit is a fact of its own
        self,
        text: bytes,
        features: Sequence[str],
        *,
        cpu_seconds: float,
        memory_bytes: int,
        is_quick: bool,
        is_cancelled: Callable[[], bool],
    ) -> ParserRun:
        """Compile one text.

        Args:
            text: the profile text.
            features: the options that name the features to compile for.
            cpu_seconds: CPU time that the parser may use. The wall-clock limit is longer, so that
                a busy node does not condemn a text.
            memory_bytes: address space that the parser may use.
            is_quick: omit the simplification of expressions. That takes half the time and gives
                the same policy byte for byte (docs/performance.md), but some patterns then need
                much more time and memory.
            is_cancelled: asked while the parser runs; true ends the run.
        """
        quick = _QUICK_OPTIONS if is_quick else ()
        argv = [self.path, *_OPTIONS, *quick, "--base", self.include_dir, *features]
        cpu = max(1, math.ceil(cpu_seconds))
        seconds = WALL_CLOCK_FACTOR * cpu_seconds
        limits = CommandLimits(
            seconds=seconds,
            memory_bytes=memory_bytes,
            cpu_seconds=cpu,
            output_bytes=_OUTPUT_BYTES,
        )
        try:
            access = None if self.unsandboxed_reason() else self.access(features)
        except ParserError as error:
            return ParserRun(outcome=RunFailure.NOT_STARTED, detail=str(error))
        try:
            with commands.started(argv, stdin=text, limits=limits, sandbox=access) as running:
                done = running.result(is_cancelled)
        except HostError as error:
            return ParserRun(outcome=RunFailure.NOT_STARTED, detail=str(error))
        self.ran(done.seconds)
        outcome = _outcome(done, self._known(text), cpu)
        detail = ""
        if isinstance(outcome, RunFailure):
            detail = {
                RunFailure.WALL_CLOCK: f"it took more than {seconds:g} s on this busy node",
                RunFailure.CPU_TIME: f"more than {cpu} s of CPU time",
                RunFailure.MEMORY: f"more than {memory_bytes >> 20} MiB of memory",
                RunFailure.OUTPUT: f"more than {_OUTPUT_BYTES >> 20} MiB of output",
                RunFailure.SIGNAL: f"signal {-done.status}" if done.status < 0 else "a signal",
            }.get(outcome, "")
        return ParserRun(outcome=outcome, detail=detail, seconds=done.seconds)

    def _known(self, text: bytes) -> parser_messages.QuotableWords:
        """Return what a message about a text may contain."""
        words = _words(self.path, _identity(self.path))
        return parser_messages.QuotableWords(source=text, words=words, include_dir=self.include_dir)

    def _roots(self, configuration: bytes) -> tuple[str, ...]:
        """Return the directories that includes are looked up in."""
        return (self.include_dir, *_configured(_INCLUDES, configuration))

    def access(self, features: Sequence[str]) -> landlock.Access:
        """Return what the parser may open in its next runs. Raises ParserError."""
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
            signatures = [_identity(file) for file in files]
            if signatures != self._needed[0]:
                found = parser_sandbox.libraries(self.path, loader)
                self._needed = (signatures, (loader, *found))
        except (OSError, HostError, parser_sandbox.NotElfError) as error:
            raise ParserError(f"the libraries of {self.path} cannot be listed: {error}") from error
        return self._needed[1]


def _configured(option: re.Pattern[bytes], configuration: bytes) -> list[str]:
    """Return the paths that the parser's configuration file gives for an option."""
    return [os.fsdecode(path) for path in option.findall(configuration)]


def _ended_child(done: Exited, cpu_seconds: float) -> RunFailure:
    """Return why a signal ended the child process in which the parser compiles.

    The parser does not report which signal it was (parser_main.c, the macro work_sync_one). The
    kernel counts the CPU time for the limit by sampling, so the exact time can be smaller: 0.87 s
    was measured for a limit of 1 s.
    """
    return RunFailure.CPU_TIME if done.cpu_seconds >= cpu_seconds / 2 else RunFailure.SIGNAL


def _outcome(
    done: Exited, known: parser_messages.QuotableWords, cpu_seconds: float
) -> ParserResult | RunFailure:
    # A parser that ran out of memory may hang as well: memory is the reason then.
    if done.status != 0 and _NO_MEMORY.search(done.stderr):
        return RunFailure.MEMORY
    if done.limit is not None:
        return RunFailure(done.limit.value)
    if done.status < 0:
        return RunFailure.SIGNAL
    if done.status != 0:
        shown = parser_messages.error_message(done.stderr, known)
        if not shown and done.status == errno.ECHILD:
            return _ended_child(done, cpu_seconds)
        return ParserResult(error=shown or f"exit status {done.status}")
    return ParserResult(
        policy=done.stdout, omitted_rules=parser_messages.omitted_rules(done.stderr, known)
    )


@functools.lru_cache(maxsize=1)
def _words(path: str, identity: tuple[int, ...]) -> frozenset[str]:  # noqa: ARG001 - for the cache
    return parser_messages.words_of_program(file_content(path)) | {path, Path(path).name}


def _numbers(path: Path) -> list[str]:
    return re.findall(r"\d+", path.name)


def _identity(path: str) -> tuple[int, ...]:
    try:
        return stat_signature.of(os.stat(path))  # noqa: PTH116 - quicker, asked of each include
    except OSError as error:
        return (error.errno or errno.EIO,)


def file_content(path: str) -> bytes:
    """Return a file's digest-worthy content; what cannot be read is an error the parser meets."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - as above
            return b"irregular"  # a FIFO or device would never end
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = reading.read_all(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
    except OSError as error:
        return f"unreadable {error.errno}".encode()
    return f"{len(content)}\n".encode() + content
