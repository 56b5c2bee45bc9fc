"""Helper functions that change the only profile of the source, and check the daemon and its
processes.
"""

import contextlib
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import daemon
from daemon import HTTP, SOURCE, until
from node_tools import Confined, content, loaded, plain
from pace import in_time


def probe(path):
    """Return the status of a probe."""
    try:
        with urllib.request.urlopen(f"http://{HTTP}{path}", timeout=200) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0  # The daemon does not listen on its port yet.


def metric(name):
    """Return the value of a metric, or None if it is missing or the server does not respond yet."""
    with contextlib.suppress(OSError):
        return daemon.metric(name)
    return None


def finding(code):
    """Return the number of findings with a code in the last report."""
    return metric(f'profile_loader_problems{{code="{code}"}}') or 0


def provide(number):
    """Replace the text of the only profile in the source."""
    new = SOURCE / ".new"
    new.write_text(text(number))
    new.rename(SOURCE / "web.profile")


def text(number):
    """Return the text of a version of the only profile in the source."""
    return plain("web", f"deny /etc/shadow{number} r,")


def wait_until_converged():
    """Wait until the daemon reports that it has converged."""
    # The first start takes longer, because Python compiles its standard library.
    until(
        lambda: probe("/readyz") == 200 and metric("profile_loader_converged") == 1, 180, "settle"
    )


def require_clean_stop(running):
    """Stop the daemon with SIGTERM. Require that the daemon exits within two seconds and does not
    change the policy.
    """
    before = {name: content(name) for name in loaded()}
    status, seconds = running.stop()
    assert (status, in_time(seconds, 2.0)) == (0, True), (status, seconds)
    assert {name: content(name) for name in loaded()} == before


@contextlib.contextmanager
def recorded_labels(name):
    """Run a process under a profile, and record every label that it has."""
    stop, seen = threading.Event(), set()
    with Confined(name) as process:
        path = Path(f"/proc/{process.pid}/attr/current")

        def watch():
            while not stop.is_set():
                seen.add(path.read_text().strip())
                time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            stop.set()
            watcher.join()
