"""Controls how the daemon's process receives signals and how the process ends.

After SIGTERM or SIGINT, the process ends as abruptly as after SIGKILL. The process neither undoes
nor finishes its work on the node, because every step of a pass can be interrupted safely. Python's
own shutdown can hang or crash in some cases, so this module does not use it. agent.__main__ chooses
the exit statuses.
"""

import _thread
import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from agent.wake_queue import WakeReason

REPEAT_SECONDS: Final = 0.01
"""A signal is sent again after this many seconds, if Python ignored the exception of its
handler."""

FLUSH_SECONDS: Final = 0.5
"""The process ends after this many seconds, even if no other process reads its standard error."""

HANDLED_SIGNALS: Final[tuple[int, ...]] = (
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
    signal.SIGXCPU,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
"""Signals that end a process by default. In the daemon, only SIGHUP and SIGQUIT of these signals
have an effect.
"""


class TerminatedError(SystemExit):
    """Raised in the main thread when a signal has requested the end of the process."""

    def __init__(self, number: int) -> None:
        self.number = number
        """The number of the signal."""

        self.status = 0 if number == signal.SIGTERM else 128 + number
        """The exit status of the process."""

        super().__init__(self.status)


def handle_signals() -> None:
    """Install signal handlers, so that only SIGTERM and SIGINT end the process."""

    def terminate(number: int, _frame: object) -> None:
        raise TerminatedError(number)

    _repeat_ignored_signals()
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    for number in HANDLED_SIGNALS:
        signal.signal(number, _leave_to_thread)


def end_with_broken_threads(report_bug: Callable[[Exception], int], bug_status: int) -> None:
    """End the process if any of its threads ends with an exception.

    Without this function, the end of a thread would go unnoticed, whereas a restarted process has
    all of its threads again.

    Args:
        report_bug: writes the exception to standard error, and returns the exit status.
        bug_status: the exit status for an exception that is not an Exception.
    """

    def end(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        if isinstance(error, SystemExit):
            return
        with contextlib.suppress(RuntimeError):  # The system cannot start another thread.
            _run_later(FLUSH_SECONDS, lambda: os._exit(bug_status))
        logging.shutdown()
        os._exit(report_bug(error) if isinstance(error, Exception) else bug_status)

    threading.excepthook = end


def receive_signals(
    wake: Callable[[WakeReason], None], request_full_pass: Callable[[], None]
) -> None:
    """Start a thread that receives signals and wakes the main thread, which runs the handlers.

    A signal interrupts the main thread while it waits. However, two kinds of signals would have an
    effect only at the end of the wait. The two kinds are a signal that arrives right before the
    wait, and a signal that another thread receives (Python, signal.set_wakeup_fd). The thread that
    this function starts wakes the main thread in both cases.
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
                case number if number in HANDLED_SIGNALS:
                    _log_warning("signal_ignored", signal=_signal_name(number))
                case _:
                    wake(WakeReason.SIGNAL)

    threading.Thread(target=run, name="signals", daemon=True).start()


def end_process(status: int, signal_number: int = 0) -> NoReturn:
    """Run the exit functions of modules, and then end the process immediately.

    Args:
        status: the exit status.
        signal_number: the signal that ends the daemon, which is logged; 0 without a signal.

    The rest of Python's shutdown deletes objects that daemon threads still use, such as the state
    of OpenSSL or the lock of a stream. During that shutdown, a thread may crash, or Python may wait
    for a thread forever (Python, C API, Py_FinalizeEx: bugs and caveats).
    """
    try:
        with contextlib.suppress(RuntimeError):  # The system cannot start another thread.
            _run_later(FLUSH_SECONDS, lambda: os._exit(status))
        if signal_number:
            _log_stop(signal_number)
        atexit._run_exitfuncs()  # noqa: SLF001 - removes the client's key files; a test checks it
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _leave_to_thread(_number: int, _frame: object) -> None:
    """Do nothing, because the thread of `receive_signals` handles the signal.

    SIG_IGN is not used, because the programs that the agent runs would inherit it. A program does
    not inherit a signal handler.
    """


def _repeat_ignored_signals() -> None:
    """Send the signal again if Python has ignored the exception that its handler raised.

    Python ignores exceptions that are raised while it deletes an object, or in a callback of a weak
    reference. An import runs hundreds of such callbacks.
    """
    previous_hook, main_thread = sys.unraisablehook, threading.get_ident()

    def handle(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not isinstance(error, TerminatedError):
            previous_hook(unraisable)
            return
        try:
            _run_later(REPEAT_SECONDS, lambda: signal.pthread_kill(main_thread, error.number))
        except RuntimeError:  # The system cannot start another thread.
            os._exit(error.status)

    sys.unraisablehook = handle


def _run_later(seconds: float, function: Callable[[], None]) -> None:
    """Call a function in a new thread after a number of seconds.

    This function does not use the module threading, because a signal may interrupt the main thread
    while it holds locks of that module.

    Raises:
        RuntimeError: the system cannot start another thread.
    """

    def run() -> None:
        time.sleep(seconds)
        function()

    _thread.start_new_thread(run, ())


def _log_stop(number: int) -> None:
    """Log that a signal ends the daemon, unless the log is not configured yet."""
    import structlog

    if structlog.is_configured():
        logger = structlog.stdlib.get_logger("agent")
        logger.info("agent_stopped", signal=signal.Signals(number).name)


def _log_warning(event: str, **fields: object) -> None:
    import structlog

    structlog.stdlib.get_logger("agent").warning(event, **fields)


def _log_stacks() -> None:
    """Log the stack of each thread, without the values of variables."""
    import traceback

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented in sys
        frames = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
        stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        _log_warning("thread_stack", thread=names.get(ident, str(ident)), stack=stack)


def _signal_name(number: int) -> str:
    """Return the name of a signal. Python has names only for the first and the last real-time
    signal.
    """
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name
