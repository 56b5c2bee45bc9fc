"""A Python loop with only the steps of a start: `python3 -I bench/least.py SOURCE STATE KEPT`.

For each entry of the ledger, the loop reads the entry and its text, reads and verifies the cached
policy, loads the policy, and verifies the loaded content. Unlike the agent, the loop does not check
texts, plan, log or report. The benchmark compares the start of the agent with this loop.
"""

import hashlib
import json
import os
import sys

KERNEL = "/sys/kernel/security/apparmor"
TOP = f"{KERNEL}/policy/profiles"


def read(path: str) -> bytes:
    """Return a file's content."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, os.fstat(fd).st_size + 4096)
    finally:
        os.close(fd)


def revision() -> bytes:
    """Return the policy revision."""
    fd = os.open(f"{KERNEL}/revision", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 64)
    except BlockingIOError:
        return b"0"
    finally:
        os.close(fd)


def main() -> None:
    """Load all profiles."""
    source, state, kept = sys.argv[1:]
    known: set[str] = set()
    for file in os.listdir(f"{state}/entries"):
        entry = json.loads(read(f"{state}/entries/{file}"))
        name, installed = entry["key"], entry["installed"]
        text = read(f"{source}/{name}")
        policy = read(f"{kept}/{hashlib.sha256(text).hexdigest()}")
        if hashlib.sha256(policy).hexdigest() != installed["body"]:
            raise AssertionError(name)
        fd = os.open(f"{KERNEL}/.load", os.O_WRONLY)
        os.write(fd, policy)
        os.close(fd)
        before = revision()
        with os.scandir(TOP) as entries:
            place = next(one.name for one in entries if one.name not in known)
        known.add(place)
        loaded = read(f"{TOP}/{place}/name").decode().strip()
        found = f"own:sha1:{read(f'{TOP}/{place}/sha1').decode().strip()}"
        mode = read(f"{TOP}/{place}/mode").decode().strip()
        same = found in installed["evidence"][loaded] and mode == installed["modes"][loaded]
        if not same or revision() != before:
            raise AssertionError(name)


main()
