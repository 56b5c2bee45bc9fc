"""Settings that all tests share."""

import os
import signal

from hypothesis import settings

# CI tests every commit with the same examples, so that only the changes in the commit affect the
# result.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure() -> None:
    """Restore the default signal handlers, so that signals end child processes even in a background
    job.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # nohup deliberately ignores SIGHUP.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
