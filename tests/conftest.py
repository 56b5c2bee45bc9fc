"""Settings that all tests share."""

import os
import signal

from hypothesis import settings

# In CI, every commit is tested with the same examples, so that only its changes affect the result.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure():
    """Ensure that signals also end the processes that tests started, even in a background job."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # nohup ignores SIGHUP on purpose.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
