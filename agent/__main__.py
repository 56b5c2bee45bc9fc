"""The command `profile-loader`, and `python -m agent`: the only place that makes exit codes."""

import _thread
import atexit
import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from agent import cli
from agent.config import Config
from agent.core.report import Report, exit_status
from agent.wake_queue import WakeReason

USAGE: Final = 2
UNREAD: Final = 3  # a source, or the API server
LOCKED: Final = 4
BUG: Final = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
AGAIN_SECONDS: Final = 0.01  # until a signal comes again that Python ignored
LAST_SECONDS: Final = 0.5  # for the last words
# Signals that would end the process; the daemon handles SIGHUP and SIGQUIT, and ignores the others.
_HANDLED: Final = (
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
)
_NOT_WRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    os.umask(0o022)  # whatever the caller's: directories 0755, files 0644
    _open_closed()
    try:
        return _run(cli.parse(sys.argv[1:] if argv is None else argv, os.environ, _read_config))
    except KeyboardInterrupt:
        return INTERRUPTED  # as any kill: every step survives it
    except _NotTold as error:
        # Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.why:
            sys.stderr.write(f"profile-loader: standard output cannot be written: {error.why}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - the last place that can tell
        return _configuration(error) or _bug(error)


def _run(parsed: cli.Parsed) -> int:  # noqa: PLR0911 - one return a command
    match parsed:
        case cli.Usage(text=text, status=status):
            if status:
                sys.stderr.write(text)
            else:
                _print(text)
            return status
        case cli.Run(settings=settings, oneshot=oneshot):
            return _pass(settings, restore=False) if oneshot else _daemon(settings)
        case cli.Restore(settings=settings):
            return _pass(settings, restore=True)
        case cli.Status(settings=settings):
            from agent.commands import status as told

            return _tell(
                told.status(settings), settings, selectors=True, nothing="Nothing is installed"
            )
        case cli.Unlabel(settings=settings):
            return _unlabel(settings)
        case cli.Check(settings=settings, paths=paths, arch=arch, kernel=kernel):
            from agent.commands import check
            from agent.reporting.progress import Progress

            checked = check.check(settings, paths, arch, kernel, Progress(sys.stderr.write).show)
            if checked.abi:
                sys.stderr.write(f"AppArmor profiles were compiled against {checked.abi}\n")
            _say(checked.skipped)
            status = _tell(checked.report, settings, nothing="Nothing was checked")
            return status or int(not checked.report.profiles)
        case cli.Render() | cli.Convert() | cli.Diff():
            return _print_files(parsed)


def _unlabel(settings: Config) -> int:
    from agent.commands import unlabel

    _print(unlabel.unlabel(settings))
    return 0


def _print_files(call: cli.Render | cli.Convert | cli.Diff) -> int:
    """Run a command that reads files and prints a text."""
    match call:
        case cli.Render():
            return _render(call)
        case cli.Convert():
            return _convert(call)
        case _:
            return _diff(call)


def _convert(call: cli.Convert) -> int:
    from agent.commands import convert
    from agent.reporting import table

    try:
        result = convert.convert(
            call.path, arch=call.arch, kernel=call.kernel, capabilities=call.capabilities
        )
    except OSError as error:
        _say([f"{call.path}: {error.strerror}"])
        return UNREAD
    _print(result.text)
    for finding in result.findings:
        text = f"{finding.severity}: {finding.code}: {finding.location}: {finding.message}"
        sys.stderr.write(table.clean(f"{text} {finding.hint}".rstrip()) + "\n")
    return int(result.has_errors)


def _diff(call: cli.Diff) -> int:
    from agent.commands import diff

    options = {"arch": call.arch, "kernel": call.kernel}
    try:
        if call.baseline:
            compared = diff.with_baseline(
                call.baseline, call.paths[0], **options, capabilities=call.capabilities
            )
        else:
            compared = {"": diff.diff(*call.paths, **options, capabilities=call.capabilities)}
    except OSError as error:
        _say([f"{error.filename}: {error.strerror}"])
        return UNREAD
    except diff.NotAProfileError as error:
        _say([str(error)])
        return 1
    _print(diff.as_json(compared) if call.is_json else diff.table(compared))
    if call.fails_only_if_more_permissive:
        return int(any(one.is_more_permissive for one in compared.values()))
    return int(any(one.differences for one in compared.values()))


def _render(wanted: cli.Render) -> int:
    from agent.commands import render

    made = render.render(wanted.directory, wanted.name, wanted.namespace, wanted.domain)
    _print(made.text)
    _say(made.mistakes)
    return UNREAD if not made.read else 1 if made.mistakes else 0


def _pass(settings: Config, *, restore: bool) -> int:
    """Run one pass under the lock, or, for a dry run, without it."""
    from agent import oneshot
    from agent.reporting import logs
    from agent.reporting.progress import Progress

    logs.configure(settings.log_format, settings.log_level)
    with contextlib.ExitStack() as stack:
        if not settings.dry_run and not stack.enter_context(_lock(settings)):
            return LOCKED
        run = oneshot.restore if restore else oneshot.run_once
        report = run(settings, Progress(sys.stderr.write).show)
    logs.log(report)
    return _tell(report, settings)


class _Ended(SystemExit):
    """A signal ends the daemon. number: of the signal. status: of the process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.status = 0 if number == signal.SIGTERM else 128 + number
        super().__init__(self.status)


def _daemon(settings: Config) -> int:
    """Run passes until a signal ends the process."""
    try:
        return _passes(settings)
    except _Ended as end:  # after every `finally`: no command outlives the agent
        _leave(end.status)
    except Exception as error:  # noqa: BLE001 - the rest of Python's end may never end
        _leave(_configuration(error) or _bug(error))


def _passes(settings: Config) -> int:
    from agent import app
    from agent.reporting import logs
    from agent.reporting.log_writer import LogWriter

    def leave(number: int, _frame: object) -> None:
        # Like a SIGKILL, which every step survives: nothing on the node is undone or finished.
        raise _Ended(number)

    def broken(args: threading.ExceptHookArgs) -> None:
        # A thread that is gone would be missed silently: whoever started the agent starts it anew.
        if not isinstance(args.exc_value, SystemExit):
            with contextlib.suppress(RuntimeError):  # no room for a thread
                _later(LAST_SECONDS, lambda: os._exit(BUG))  # nobody may read standard error
            logging.shutdown()
            os._exit(_bug(args.exc_value) if isinstance(args.exc_value, Exception) else BUG)

    threading.excepthook = broken
    _ignore_no_end()
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    for number in _HANDLED:
        signal.signal(number, _leave_to_thread)
    writer = LogWriter(sys.stderr.fileno())
    logs.configure(settings.log_format, settings.log_level, writer)
    with _lock(settings) as mine:
        if not mine:
            return LOCKED
        daemon = app.daemon(settings, writer.dropped)
        _receive_signals(daemon.wake_queue.put, daemon.request_full_pass)
        daemon.run()
    return 0


def _leave_to_thread(_number: int, _frame: object) -> None:
    """Do nothing: the thread of `_receive_signals` acts, whatever the main thread is doing.

    Unlike SIG_IGN, a handler is not inherited by the commands that the agent runs.
    """


def _ignore_no_end() -> None:
    """Let a signal that came where Python ignores exceptions come again, soon after.

    That is while an object ends, or in the callback of a weak reference: importing makes hundreds.
    """
    former, main_thread = sys.unraisablehook, threading.get_ident()

    def ignored(told: "sys.UnraisableHookArgs") -> None:
        end = told.exc_value
        if not isinstance(end, _Ended):
            former(told)
            return
        try:
            _later(AGAIN_SECONDS, lambda: signal.pthread_kill(main_thread, end.number))
        except RuntimeError:  # no room for a thread
            os._exit(end.status)

    sys.unraisablehook = ignored


def _leave(status: int) -> NoReturn:
    """End the process at once, after what Python does at its end for modules and streams.

    The rest of its end takes away what daemon threads are using: OpenSSL, the lock of a stream. One
    may crash, or be waited for without end (Python, C API, Py_FinalizeEx: bugs and caveats).
    """
    try:
        with contextlib.suppress(RuntimeError):
            _later(LAST_SECONDS, lambda: os._exit(status))  # a log that nobody reads
        atexit._run_exitfuncs()  # noqa: SLF001 - the client's files of keys; a test holds it
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _later(seconds: float, do: Callable[[], None]) -> None:
    """Do something in so many seconds. Raises RuntimeError where there is no room for a thread.

    Without threading, whose locks the main thread may hold where it was interrupted.
    """

    def run() -> None:
        time.sleep(seconds)
        do()

    _thread.start_new_thread(run, ())


def _receive_signals(
    wake: Callable[[WakeReason], None], request_full_pass: Callable[[], None]
) -> None:
    """Start the thread that receives signals, and wakes the main thread for its own handlers.

    The kernel interrupts a main thread that waits already; a signal that comes right before, or
    that another thread receives, would be noticed only when the wait ends (Python,
    signal.set_wakeup_fd).
    """
    received, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def run() -> None:
        while numbers := os.read(received, 1):
            match numbers[0]:
                case signal.SIGHUP:
                    request_full_pass()
                case signal.SIGQUIT:
                    _log_stacks()
                case number if number in _HANDLED:
                    _log("signal_ignored", signal=signal.Signals(number).name)
                case _:
                    wake(WakeReason.SIGNAL)

    threading.Thread(target=run, name="signals", daemon=True).start()


def _log(event: str, **fields: object) -> None:
    import structlog

    structlog.stdlib.get_logger("agent").warning(event, **fields)


def _log_stacks() -> None:
    """Log where every thread is, without values of variables."""
    import traceback

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented in sys
        lines = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
        stack = [f"{one.filename}:{one.lineno} {one.name}" for one in lines]
        _log("thread_stack", thread=names.get(ident, str(ident)), stack=stack)


@contextlib.contextmanager
def _lock(settings: Config) -> Iterator[bool]:
    """Give whether this agent may write to the state directory."""
    from agent import app
    from agent.host.filesystem import HostError

    below = "" if settings.host_root == "/" else f" below {settings.host_root}"
    with contextlib.ExitStack() as stack:
        mine = True
        try:
            mine = stack.enter_context(app.host(settings).lock(settings.state_dir, "lock"))
        except HostError as error:
            if error.errno not in _NOT_WRITABLE:
                raise app.StartupError(
                    f"no lock{below}: {error}. Remove what lies there, or name another --state-dir"
                ) from error
            # A state directory that cannot be written fails each put with its own problem.
            sys.stderr.write(f"profile-loader: no lock{below}: {error}. Going on without\n")
        if not mine:
            sys.stderr.write(
                f"profile-loader: another agent is running on {settings.state_dir}{below} and "
                "holds its lock. Nothing was changed. Wait for it, or name another --state-dir.\n"
            )
        for directory in app.ledger(settings).make_private() if mine else ():
            sys.stderr.write(
                f"profile-loader: others could write {directory}; its mode was changed\n"
            )
        yield mine


def _say(lines: Iterable[str]) -> None:
    from agent.reporting import table

    sys.stderr.writelines(f"profile-loader: {table.clean(one)}\n" for one in lines)


def _tell(
    report: Report,
    settings: Config,
    *,
    selectors: bool = False,
    nothing: str = "Nothing to do",
) -> int:
    status = exit_status(report, allow_unsupported=settings.allow_unsupported)
    if settings.output == "json":
        from agent.reporting import json_report

        _print(json_report.document(report, exit_status=status, domain=settings.label_domain))
    else:
        from agent.reporting import table

        width = shutil.get_terminal_size((80, 24)).columns
        domain = settings.label_domain if selectors else ""
        has_colors = table.has_colors(sys.stdout, os.environ)
        text = table.table(
            report, width=width, domain=domain, nothing=nothing, has_colors=has_colors
        )
        _print(text)
    return status


class _NotTold(Exception):  # noqa: N818 - no mistake of the agent's
    """What was done could not be told on standard output. why: empty if its reader went away."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _print(text: str) -> None:
    """Write to standard output, to its end. Raises _NotTold."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise _NotTold("") from error
    except OSError as error:
        raise _NotTold(error.strerror or str(error)) from error


def _open_closed() -> None:
    """Open /dev/null for each standard stream that the caller closed.

    Else the next file that is opened would have its number, and be written to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            mode = "r" if number == 0 else "w"
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - till the end
            setattr(sys, name, stream)


def _read_config(path: str) -> object:
    from agent.sources import yaml_documents

    try:
        found = yaml_documents.parse(yaml_documents.read(path))
    except yaml_documents.InvalidYamlError as error:
        raise ValueError(str(error)) from error
    if len(found) > 1:
        raise ValueError("it must be one document")
    return found[0] if found else None


def _configuration(error: Exception) -> int:
    """Tell what of the outside is not as the options say; 0 if it is something else: a bug."""
    from agent import app

    if isinstance(error, app.StartupError):
        sys.stderr.write(f"profile-loader: {error}\n")
        return USAGE
    if "agent.kube.errors" not in sys.modules:
        return 0
    from agent.kube import errors

    if not isinstance(error, errors.KubeError):
        return 0
    if isinstance(error, errors.NoClusterError):
        sys.stderr.write(f"profile-loader: {error}\n")
        return USAGE
    did = "refused" if isinstance(error, errors.StatusError) else "cannot be reached"
    sys.stderr.write(f"profile-loader: the API server {did}: {error}\n")
    return UNREAD


def _bug(error: Exception) -> int:
    import traceback

    sys.stderr.write(
        "profile-loader: this is a bug; the node was left as it is at this point. Please report "
        f"it with the lines below.\n{''.join(traceback.format_exception(error))}"
    )
    return BUG


if __name__ == "__main__":
    sys.exit(main())
