"""Settings that every test shares."""

import os
import signal

from hypothesis import settings

# In CI the same examples for every commit: a commit is judged by what it changes.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure():
    """Let an end from outside end what the tests started too, in a background job as well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # nohup ignores it, and means that.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
