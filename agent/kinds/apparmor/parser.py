"""Run apparmor_parser: a text and a set of features in, a compiled policy or a message out.

Rule 1: the parser never touches the kernel and never its own cache (`-Q -K`; its cache is keyed by
base name and time). Rule 2: it always knows the features of a kernel: without them it drops
mediation silently. Rule 3: it runs within limits, and what it prints is bounded and escaped.
"""

import contextlib
import errno
import functools
import itertools
import math
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.core.model import digest
from agent.doors import landlock, reading, signature
from agent.doors.host import Exited, Host, HostError, Running
from agent.kinds.apparmor import messages, room, sandbox
from agent.kinds.apparmor.cache import Compiled

PLACES = ("/sbin/apparmor_parser", "/usr/sbin/apparmor_parser")
_OPTIONS = ("-Q", "-K", "-S", "--warn=rule-not-enforced")
_OUTPUT_BYTES = 32 << 20
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
    """The parser could not be started at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effort:
    """How long and how hard the parser may try, and with which options."""

    seconds: float
    cpu: int
    memory: int
    options: tuple[str, ...] = ()


_QUICK = _Effort(seconds=10.0, cpu=2, memory=room.LEAST, options=("-O", "no-expr-simplify"))
_MOST_AT_ONCE = 2
_LEAST_AT_ONCE = room.LEAST // _MOST_AT_ONCE  # most texts need less than 16 MiB


def _cores() -> int:
    """Return how many parsers may run at a time."""
    return min(_MOST_AT_ONCE, len(os.sched_getaffinity(0)))


class Parser:
    """One apparmor_parser of this machine, with the includes that it reads."""

    def __init__(
        self,
        host: Host,
        path: str,
        *,
        timeout_seconds: float,
        include_dir: str,
        config_file: str = "/etc/apparmor/parser.conf",
    ) -> None:
        self.host = host
        self.path = path or next((one for one in PLACES if os.access(one, os.X_OK)), "")
        self.timeout_seconds = timeout_seconds
        self.include_dir = include_dir
        self.config_file = config_file
        self.ran: Callable[[float], None] = lambda _: None  # told the seconds of each run
        self.room: Callable[[], int] = room.room  # the bytes that parsers may take at a time
        self._signatures: object = None
        self._digest = ""
        self._needed: tuple[object, tuple[str, ...]] = (None, ())

    def missing(self) -> str:
        """Return why there is no parser, or nothing."""
        if not self.path:
            return "apparmor_parser is not installed"
        if not Path(self.path).is_file() or not os.access(self.path, os.X_OK):
            return f"{self.path} is not an executable file"
        return ""

    def abi(self) -> str:
        """Return the newest features file below the include directory, or nothing."""
        found = [
            path for path in Path(self.include_dir, "abi").glob("*") if re.match(r"\d", path.name)
        ]
        newest = max(found, key=lambda path: [int(one) for one in _numbers(path)], default=None)
        return str(newest) if newest is not None else ""

    def inputs(self) -> str:
        """Return a digest of the parser, its configuration and every file it may include.

        Contents are read again only when some file's identity, size or times changed. Without the
        sandbox a policy may have other inputs, so the digest is another one. Raises ParserError.
        """
        confined = not self.unsandboxed()
        configuration = content(self.config_file)
        files = [self.path, self.config_file, *_configured(_FEATURES, configuration)]
        files += sandbox.tree(self._roots(configuration)).files
        signatures = (confined, *((path, _identity(path)) for path in files))
        if signatures != self._signatures:
            contents = (os.fsencode(path) + b"\0" + content(path) for path in files)
            self._digest = digest(b"".join((b"sandboxed\0" * confined, *contents)))
            self._signatures = signatures
        return self._digest

    def unsandboxed(self) -> str:
        """Return why the parser runs without a sandbox here, or nothing. Raises ParserError."""
        try:
            return sandbox.missing(self.path)
        except OSError as error:
            raise ParserError(f"{self.path}: {error.strerror}") from error

    def limits(self) -> str:
        """Return what decides whether a text is too much: the limits that can be changed."""
        return f"{self.timeout_seconds:g} {room.limit()}"

    def compile(self, text: bytes, features: Sequence[str]) -> Compiled:
        """Compile a text. features: the options that name them. Raises ParserError."""
        (found,) = self.compile_all((text,), features)
        return found

    def compile_all(
        self,
        texts: Iterable[bytes],
        features: Sequence[str],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Generator[Compiled, None, None]:
        """Compile texts in their order, a few at a time; a text is taken when its turn comes.

        First without the simplification of expressions: it costs half of the time, and the policy
        is the same byte by byte (docs/performance.md), but some patterns need very much of it. So
        what does not succeed soon and in little memory is compiled as the parser does by itself,
        with no other beside it: both would not fit into the memory of a small container.
        meanwhile: called while it waits, and after each.
        """
        left = iter(texts)
        access = None if self.unsandboxed() else self.access(features)
        with contextlib.ExitStack() as stack:
            share = max(_LEAST_AT_ONCE, min(_QUICK.memory, self.room() // _MOST_AT_ONCE))
            quick = replace(_QUICK, memory=share)
            running: deque[tuple[bytes, Running, contextlib.ExitStack]] = deque()
            while True:
                for text in itertools.islice(left, _cores() - len(running)):
                    own = stack.enter_context(contextlib.ExitStack())
                    running.append((text, self._start(own, text, features, quick, access), own))
                if not running:
                    return
                text, one, own = running.popleft()
                with own:
                    done = one.result(meanwhile)
                self.ran(done.seconds)
                effort = quick
                if done.status != 0:
                    for other in running:
                        other[1].result(meanwhile)
                    effort = self._patient()
                    with contextlib.ExitStack() as own:
                        again = self._start(own, text, features, effort, access)
                        done = again.result(meanwhile)
                    self.ran(done.seconds)
                meanwhile()
                yield _compiled(done, effort.memory, self._known(text))

    def _known(self, text: bytes) -> messages.Known:
        """Return what a message about a text may contain."""
        words = _words(self.path, _identity(self.path))
        return messages.Known(source=text, words=words, include_dir=self.include_dir)

    def _patient(self) -> "_Effort":
        cpu = max(1, math.ceil(self.timeout_seconds))
        return _Effort(seconds=self.timeout_seconds, cpu=cpu, memory=self.room())

    def _start(
        self,
        stack: contextlib.ExitStack,
        text: bytes,
        features: Sequence[str],
        effort: "_Effort",
        access: landlock.Access | None,
    ) -> Running:
        argv = [self.path, *_OPTIONS, *effort.options, "--base", self.include_dir, *features]
        try:
            return stack.enter_context(
                self.host.started(
                    argv,
                    stdin=text,
                    timeout_seconds=min(effort.seconds, self.timeout_seconds),
                    memory_bytes=effort.memory,
                    cpu_seconds=effort.cpu,
                    output_bytes=_OUTPUT_BYTES,
                    sandbox=access,
                )
            )
        except HostError as error:
            raise ParserError(str(error)) from error

    def _roots(self, configuration: bytes) -> tuple[str, ...]:
        """Return the directories that includes are looked up in."""
        return (self.include_dir, *_configured(_INCLUDES, configuration))

    def access(self, features: Sequence[str]) -> landlock.Access:
        """Return what the parser may open in its next runs. Raises ParserError."""
        configuration = content(self.config_file)
        return sandbox.access(
            self.path,
            self._libraries(),
            sandbox.tree(self._roots(configuration)),
            (self.config_file, *_configured(_FEATURES, configuration), *features[1:]),
        )

    def _libraries(self) -> tuple[str, ...]:
        """Return the dynamic loader and the libraries of the parser. Raises ParserError."""
        try:
            loader = sandbox.interpreter(self.path)
            if not loader:
                return ()
            files = (self.path, loader, sandbox.CACHE_OF_LIBRARIES)
            signatures = [_identity(file) for file in files]
            if signatures != self._needed[0]:
                found = sandbox.libraries(self.host, self.path, loader)
                self._needed = (signatures, (loader, *found))
        except (OSError, HostError, sandbox.NotElfError) as error:
            raise ParserError(f"the libraries of {self.path} cannot be listed: {error}") from error
        return self._needed[1]


def _configured(option: re.Pattern[bytes], configuration: bytes) -> list[str]:
    """Return the paths that the parser's configuration file gives for an option."""
    return [os.fsdecode(path) for path in option.findall(configuration)]


def _compiled(done: Exited, memory: int, known: messages.Known) -> Compiled:
    if done.status != 0 and _NO_MEMORY.search(done.stderr):
        return Compiled(killed=f"more than {memory >> 20} MiB of memory", times=1)
    if done.killed or done.status < 0:
        return Compiled(killed=done.killed or f"signal {-done.status}", times=1)
    if done.status != 0:
        shown = messages.message(done.stderr, known)
        return Compiled(message=shown or f"exit status {done.status}")
    return Compiled(policy=done.stdout, notes=messages.notes(done.stderr, known))


@functools.lru_cache(maxsize=1)
def _words(path: str, identity: tuple[int, ...]) -> frozenset[str]:  # noqa: ARG001 - for the cache
    return messages.words(content(path)) | {path, Path(path).name}


def _numbers(path: Path) -> list[str]:
    return re.findall(r"\d+", path.name)


def _identity(path: str) -> tuple[int, ...]:
    try:
        return signature.of(os.stat(path))  # noqa: PTH116 - quicker, asked of each include
    except OSError as error:
        return (error.errno or errno.EIO,)


def content(path: str) -> bytes:
    """Return a file's digest-worthy content; what cannot be read is an error the parser meets."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - as above
            return b"irregular"  # a FIFO or device would never end
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = reading.whole(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
    except OSError as error:
        return f"unreadable {error.errno}".encode()
    return f"{len(content)}\n".encode() + content
