"""Runs measurements in a machine with AppArmor: `python3 -m bench.guest ROW RUNS`, as root.

The program prints one line of JSON with the samples by name, in seconds or MiB, and with the
versions of the programs of this machine. All programs run on one core. Programs that are compared
with each other run alternately, during the same start of the machine.
"""

import hashlib
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench import made
from bench.measure import Spent, child

KERNEL: Final = Path("/sys/kernel/security/apparmor")
TOP: Final = Path("/var/bench")
STATE: Final = TOP / "state"
DEFAULT_STATE: Final = Path("/var/lib/profile-loader")
PARSER: Final = "/sbin/apparmor_parser"
LOADER: Final = Path("/job/apparmor-loader")
MANY: Final = 1000
FEW: Final = 20
REPAIRED: Final = 50
POLL_SECONDS: Final = 30
# `python -m agent --oneshot --kinds=apparmor` imports these modules if its source is a directory.
IMPORTS: Final = (
    "import agent.__main__, agent.cli, agent.app, agent.reconciler, "
    "agent.oneshot, agent.backends.apparmor.backend, agent.backends.apparmor.factory, "
    "agent.sources.directory, agent.reporting.table, agent.reporting.logs"
)
# This is the time between two removals. If a change follows a pass by less than 0.25 s, the agent
# waits for more changes (agent/controller.py). In an emulated machine, a pass ends long after the
# load.
_GAP_SECONDS: Final = 1.0


def main() -> None:
    """Measure one row."""
    # Bytecode is stored first, as in a container image.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    TOP.mkdir()
    # Without it, the first program would spend time on compiling its modules.
    agent(made.fill_seccomp(TOP / "warm", 1), kinds="apparmor,seccomp")
    shutil.rmtree(STATE, ignore_errors=True)
    measure = {"cold": cold, "thousand": thousand, "repair": repair, "poll": poll}[sys.argv[1]]
    found = measure(int(sys.argv[2]))
    versions = f"Linux {platform.release()} and CPython {platform.python_version()}"
    sys.stdout.write(json.dumps({**found, "versions": versions}) + "\n")


def agent(source: Path, *, kinds: str = "apparmor") -> Spent:
    """Run the agent once."""
    argv = [sys.executable, "-m", "agent", "--oneshot", f"--source=dir:{source}"]
    return child([*argv, f"--state-dir={STATE}", f"--kinds={kinds}"])


# --- cold -----------------------------------------------------------------------------------------


def cold(runs: int) -> dict[str, list[float]]:
    """Install 1 profile, and then 100 profiles, none of which was compiled before."""
    found: dict[str, list[float]] = {}
    for count in (1, 100):
        source = made.fill_apparmor(TOP / f"source{count}", count)
        files = sorted(source.iterdir())
        contenders: dict[str, Callable[[Path], Spent]] = {
            "apparmor_parser -r -K": lambda _, files=files: child([PARSER, "-r", "-K", *files]),
            "agent": agent,
            "least": lambda _, files=files: least(files),
            "apparmor-loader": lambda source: child([LOADER, source]),
        }
        for _ in range(runs if count > 1 else 5 * runs):
            for name, run in contenders.items():
                clear()
                shutil.rmtree(STATE, ignore_errors=True)
                found.setdefault(f"{count} {name}", []).append(run(source).wall)
                if len(loaded()) != count:
                    raise AssertionError(f"{name}: {loaded()}")
    return found


def least(files: list[Path]) -> Spent:
    """Start Python without imports, and run the parser once with its faster option."""
    start = child([sys.executable, "-I", "-S", "-c", "pass"])
    run = child([PARSER, "-r", "-K", "-O", "no-expr-simplify", *files])
    return replace(run, wall=start.wall + run.wall)


# --- a thousand -----------------------------------------------------------------------------------


def thousand(runs: int) -> dict[str, list[float]]:
    """Install a thousand profiles. Then start the agent while all of them are loaded, and while
    none of them is loaded.

    Args:
        runs: the number of starts without loaded profiles. Each run also has two starts with all
            profiles loaded, and ten unchanged passes.
    """
    many = int(os.environ.get("MANY", MANY))
    few = made.fill_apparmor(TOP / "few", FEW)
    agent(few)
    found: dict[str, list[float]] = {"few memory": [passes(few, FEW, runs)["memory"]]}
    clear()
    shutil.rmtree(STATE)
    source = made.fill_apparmor(TOP / "source", many)
    found["cold"] = [agent(source).wall]
    policies = cached()
    keep_for_least(source)

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(2 * runs):
        before = (revision(), tree())
        spent = agent(source)
        note("loaded", spent.wall)
        note("loaded CPU", spent.cpu)
        note("loaded changes", float((revision(), tree()) != before))
    for _ in range(runs):
        clear()
        begin = time.monotonic()
        for path in policies:
            write(path.read_bytes())
        note("writing", time.monotonic() - begin)
        clear()
        least = [sys.executable, "-I", "bench/least.py", source, STATE, TOP / "least"]
        note("least", child(least).wall)
        note("imports", child([sys.executable, "-c", IMPORTS]).wall)
        if len(loaded()) != many:
            raise AssertionError(len(loaded()))
        clear()
        before_ = processes()
        note("reboot", agent(source).wall)
        note("reboot processes", processes() - before_)
        if len(loaded()) != many:
            raise AssertionError(len(loaded()))
    unchanged = passes(source, many, runs)
    found["unchanged"] = [one[1] for one in unchanged["more"]]
    found["unchanged full"] = [unchanged["full"][1]]
    found["passes memory"] = [unchanged["memory"]]
    return found


def passes(source: Path, count: int, runs: int) -> dict[str, Any]:
    """Run passes over stored and loaded profiles, and return the output of bench.inside.

    Each run has ten passes. The passes use a copy of the ledger in the default state directory.
    """
    shutil.rmtree(DEFAULT_STATE, ignore_errors=True)
    DEFAULT_STATE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(STATE, DEFAULT_STATE)
    argv = [sys.executable, "-m", "bench.inside", "passes", f"dir:{source}", "/", "apparmor"]
    found: dict[str, Any] = json.loads(child([*argv, str(10 * runs)]).stdout)
    if found["states"] != {"installed": count}:
        raise AssertionError(found["states"])
    return found


def keep_for_least(source: Path) -> None:
    """Store the policy of each text under the digest of the text."""
    top = TOP / "least"
    top.mkdir()
    for path in (STATE / "entries").glob("*.json"):
        entry = json.loads(path.read_text())
        policy = (STATE / "bodies" / entry["installed"]["body"]).read_bytes()
        text = (source / entry["key"]).read_bytes()
        (top / hashlib.sha256(text).hexdigest()).write_bytes(policy)


def cached() -> list[Path]:
    """Return the compiled policies in the ledger."""
    entries = [json.loads(path.read_text()) for path in (STATE / "entries").glob("*.json")]
    return [STATE / "bodies" / one["installed"]["body"] for one in entries]


def tree() -> list[tuple[str, int]]:
    """Return every file in the state directory with its modification time."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in STATE.rglob("*"))


def processes() -> float:
    """Return how many processes and threads have been started since the boot (proc(5): stat)."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes "):
            return float(line.split()[1])
    raise AssertionError("the number of processes is missing")


# --- repair ---------------------------------------------------------------------------------------


def repair(runs: int) -> dict[str, list[float]]:
    """Remove one of fifty profiles as another program would, and wait until it is restored."""
    source = TOP / "source"
    source.mkdir()
    names = [f"p{number}" for number in range(REPAIRED)]
    for name in names:
        (source / f"{name}.profile").write_text(made.small(name))
    agent(source)
    policies = cached()
    loads = []
    for path in policies:
        begin = time.monotonic()
        write(path.read_bytes(), "replace")
        loads.append(time.monotonic() - begin)
    with daemon(source) as process:
        wait(lambda: ready(process))
        # At this point, the first pass has finished, and the daemon has handled the notifications
        # of its changes.
        time.sleep(3.0)
        repairs = []
        for turn in range(runs):
            repairs.append(repaired(names[turn % REPAIRED]))
            time.sleep(_GAP_SECONDS)
    return {"load": loads, "repair": repairs}


def repaired(name: str) -> float:
    """Remove a profile, and return the seconds until the kernel has it again."""
    with watched() as changed:
        begin = time.monotonic()
        (KERNEL / ".remove").write_bytes(name.encode())
        while True:
            changed()
            at = time.monotonic()
            if name in loaded():
                return at - begin


@contextmanager
def watched() -> Iterator[Callable[[], None]]:
    """Return a function that reports whether the policy has changed since its last call."""
    fd = os.open(KERNEL / "revision", os.O_RDONLY | os.O_NONBLOCK)
    looked = select.poll()
    looked.register(fd, select.POLLIN)

    def changed() -> None:
        if not looked.poll(60_000):
            raise AssertionError("nothing changed for 60 s")
        os.read(fd, 64)

    try:
        with suppress(BlockingIOError):  # No policy was loaded since the boot.
            os.read(fd, 64)
        yield changed
    finally:
        os.close(fd)


@contextmanager
def daemon(source: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent as a daemon."""
    argv = [sys.executable, "-m", "agent", f"--source=dir:{source}", f"--state-dir={STATE}"]
    log = Path("/tmp/agent.log")  # noqa: S108 - the guest is ours alone
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - our own
            [*argv, "--http-address=127.0.0.1:9808", "--kinds=apparmor"], stdout=out, stderr=out
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write(log.read_text()[-4000:])
        raise
    finally:
        process.kill()
        process.wait()


def ready(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the daemon is ready."""
    import urllib.request

    if process.poll() is not None:
        raise AssertionError("the agent ended")
    try:
        with urllib.request.urlopen("http://127.0.0.1:9808/readyz", timeout=50) as answer:
            return bool(answer.status == 200)  # noqa: PLR2004 - OK
    except OSError:
        return False


def wait(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.05)


# --- a poll ---------------------------------------------------------------------------------------


def poll(runs: int) -> dict[str, list[float]]:
    """Measure when a loader that polls every 30 s has loaded a new file.

    The files are created at times that are spread evenly over the poll interval.
    """
    source = TOP / "source"
    source.mkdir()
    (source / "first").write_text(made.small("first"))
    argv = [LOADER, "-poll", f"{POLL_SECONDS}s", source]
    process = subprocess.Popen(argv)  # noqa: S603 - our own
    waits = []
    try:
        # The loader polls once at its start, and then at each interval.
        wait(lambda: "first" in loaded())
        for number in range(runs):
            time.sleep(POLL_SECONDS * (number + 0.5) / runs)
            name = f"n{number}"
            with watched() as changed:
                begin = time.monotonic()
                (source / name).write_text(made.small(name))
                while name not in loaded():
                    changed()
                waits.append(time.monotonic() - begin)
    finally:
        process.kill()
        process.wait()
    return {"poll": waits}


# --- the kernel -----------------------------------------------------------------------------------


def loaded() -> set[str]:
    """Return the names of the loaded profiles."""
    lines = (KERNEL / "profiles").read_text().splitlines()
    return {line.rsplit(" (", 1)[0] for line in lines}


def write(policy: bytes, how: str = "load") -> None:
    """Write a compiled policy to the kernel."""
    fd = os.open(KERNEL / f".{how}", os.O_WRONLY)
    try:
        os.write(fd, policy)
    finally:
        os.close(fd)


def clear() -> None:
    """Remove every loaded profile."""
    for name in loaded():
        (KERNEL / ".remove").write_bytes(name.encode())


def revision() -> int:
    """Return the policy revision."""
    fd = os.open(KERNEL / "revision", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int(os.read(fd, 64))
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
