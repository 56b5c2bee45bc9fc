"""Measures the rows that need an API server, on the loopback interface of this machine."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import about, machine, made
from bench.inside import YOUNG_SECONDS
from bench.measure import child, cpu_seconds, median, ratios, wakeups
from bench.measure import memory as of_process
from bench.passes import inside, install, scratch
from bench.rows import Claim, Figure, Result

if TYPE_CHECKING:
    from tests.system.daemon import OnNode

FEW: Final = 20
MANY: Final = 1000
PASSES: Final = 10_000
WINDOWS: Final = 10
WINDOW_SECONDS: Final = 60
# The DaemonSet enables both profile kinds, but this machine has no AppArmor.
KINDS: Final = "apparmor,seccomp"
BOTH: Final = (f"--kinds={KINDS}", "--allow-unsupported")
_KEYS: Final = 50  # The number of keys in one ConfigMap.
_SYSCALLS: Final = 100
_SETTLED_SECONDS: Final = 5.0
_KINDS_SAID: Final = (
    "The agent has both kinds, like the DaemonSet. This machine does not support AppArmor."
)


@contextmanager
def daemon(count: int, *, start: bool = True) -> "Iterator[OnNode]":
    """Provide a daemon that reads the given number of seccomp profiles from the API server."""
    from tests.system.cluster import Cluster
    from tests.system.daemon import RIGHTS, OnNode

    with ExitStack() as stack:
        top = stack.enter_context(scratch())
        cluster = stack.enter_context(Cluster())
        cluster.apply(*RIGHTS)
        one = OnNode(top, cluster, "bench")
        one.wanted = "--source=configmaps:bench?app=profiles"
        stack.callback(one.kill)
        for begin in range(0, count, _KEYS):
            numbers = range(begin, min(count, begin + _KEYS))
            data = {f"app{number}.json": made.seccomp(number, _SYSCALLS) for number in numbers}
            one.config_map(data, name=f"set{begin}", labels={"app": "profiles"})
        if start:
            one.start("--label-limit=2000", *BOTH)
            one.until(lambda: one.converged() and labelled(one, count), 120)
        yield one


def labelled(one: "OnNode", count: int) -> bool:
    """Return whether the Node has this number of profile labels."""
    return sum(key.startswith("seccomp.") for key in one.cluster.labels(one.name)) == count


# --- from a ConfigMap to a label ------------------------------------------------------------------


def label(runs: int) -> Result:
    """Replace the profile of a ConfigMap repeatedly, and wait each time for its new label."""
    samples = []
    with daemon(FEW) as one:
        for number in range(runs):
            key = f"more{number}.json"
            samples.append(_told(one, key, {key: made.seccomp(number, _SYSCALLS)}))
    return Result(
        figures=(machine.milliseconds("from the API server's response to the label", samples),),
        claims=(Claim(label="median", value=median(samples) * 1000, limit=100, unit="ms"),),
        said=(_KINDS_SAID,),
        versions=(about.api_server(),),
    )


def _told(one: "OnNode", key: str, data: dict[str, str]) -> float:
    """Apply a ConfigMap, and return the seconds from the response until a watch shows the label."""
    import http.client
    import ssl

    wanted = f"/{key}"
    context = ssl.create_default_context(cafile=str(one.cluster.ca))
    watch = http.client.HTTPSConnection("127.0.0.1", one.cluster.port, context=context, timeout=30)
    path = f"/api/v1/nodes?watch=true&fieldSelector=metadata.name%3D{one.name}"
    watch.request("GET", path, headers={"Authorization": "Bearer admin"})
    events = watch.getresponse()
    try:
        events.readline()  # The current state of the Node.
        one.config_map(data, name="more", labels={"app": "profiles"})
        begin = time.monotonic()
        while line := events.readline():
            at = time.monotonic()
            labels = json.loads(line)["object"]["metadata"].get("labels", {})
            if any(name.startswith("seccomp.") and name.endswith(wanted) for name in labels):
                return at - begin
    finally:
        events.close()
        watch.close()
    raise AssertionError(f"no label for {key}: {one.log_text()[-3000:]}")


def verified(runs: int) -> Result:
    """Change an AppArmor profile, and wait until the kernel of the VM and the label show the
    change.
    """
    from tests.system import label_kernel

    label_kernel.CHANGES = runs
    seen = label_kernel.measured()
    beside = machine.guest("poll", 6)
    over = [label - compiling for label, compiling in zip(seen.label, seen.compile, strict=True)]
    return Result(
        figures=(
            machine.milliseconds("from the response to the policy in the kernel", seen.kernel),
            machine.milliseconds("from the response to the label", seen.label),
            machine.milliseconds("one run of apparmor_parser in the VM before it", seen.compile),
            machine.milliseconds("label, minus the compile time of the same turn", over),
            machine.seconds(
                "for comparison: a new file in a directory that apparmor-loader polls every 30 s",
                beside["poll"],
            ),
        ),
        claims=(
            Claim(
                label="label, minus the compile time",
                value=median(over) * 1000,
                limit=300,
                unit="ms",
            ),
        ),
        said=(
            (
                "The new files are created at times that are spread evenly over the 30 s of the "
                "poll. apparmor-loader loads only profiles with new names, and never a changed "
                "profile (its loader.go: unloadedProfiles compares names)."
            ),
            (
                "The kubelet updates a mounted ConfigMap volume when it syncs the pod, every 60 s "
                "to 90 s unless the pod changes. The poll follows after that."
            ),
        ),
        versions=(about.api_server(), *machine.versions("VM")),
    )


# --- the cost of the daemon -----------------------------------------------------------------------


def memory(runs: int) -> Result:
    """Measure the resident memory with few profiles, with many profiles, and after many passes."""
    steady, peak, large, peaks = [], [], [], []
    grown = [_growth() for _ in range(runs)]
    for _ in range(runs):
        with daemon(FEW) as one:
            time.sleep(_SETTLED_SECONDS)
            now = of_process(one.process.pid)
            steady.append(now[0])
            peak.append(now[1])
        with daemon(MANY) as one:
            time.sleep(_SETTLED_SECONDS)
            now = of_process(one.process.pid)
            large.append(now[0])
            peaks.append(now[1])
    more = [many - few for many, few in zip(large, steady, strict=True)]
    beside = machine.thousand("UML", runs)
    few_there, many_there = beside["few memory"], beside["passes memory"]
    more_there = [many - few for many, few in zip(many_there, few_there, strict=True)]
    there = "UML, AppArmor from a directory, a process that only runs passes"

    def mib(text: str, samples: Sequence[float]) -> Figure:
        return Figure(label=text, samples=tuple(samples), unit="MiB")

    return Result(
        figures=(
            mib(f"{FEW} profiles: resident", steady),
            mib(f"{FEW} profiles: peak", peak),
            mib(f"growth in {PASSES:,} passes", grown),
            mib(f"{MANY:,} profiles: resident", large),
            mib(f"{MANY:,} profiles: peak", peaks),
            mib(f"{MANY:,} profiles: more than {FEW}", more),
            mib(f"{there}: {FEW} profiles: resident", few_there),
            mib(f"{there}: {MANY:,} profiles: resident", many_there),
            mib(f"{there}: {MANY:,} profiles: more than {FEW}", more_there),
        ),
        claims=(
            Claim(label="steady", value=median(steady), limit=60, unit="MiB"),
            Claim(label="peak", value=median(peak), limit=72, unit="MiB"),
            Claim(label=f"growth in {PASSES:,} passes", value=median(grown), limit=1.0, unit="MiB"),
            Claim(label=f"{MANY:,} profiles: more", value=median(more), limit=20, unit="MiB"),
            Claim(
                label=f"UML, AppArmor: {MANY:,} profiles: more",
                value=median(more_there),
                limit=20,
                unit="MiB",
            ),
        ),
        said=(
            f"Each seccomp profile has {_SYSCALLS} system calls. {_KEYS} are in each ConfigMap.",
            _KINDS_SAID,
            "The growth was measured in a process that only runs passes.",
        ),
        versions=(about.api_server(), *machine.versions("UML")),
    )


def _growth() -> float:
    """Return how much the memory of a process grows from the first pass to the last of many
    passes.
    """
    with scratch() as top:
        source = made.fill_seccomp(top / "source", FEW, syscalls=_SYSCALLS)
        found = inside("grown", f"api:{source}", top / "root", KINDS, PASSES)
    return float(str(found["more"]))


def idle(runs: int) -> Result:
    """Measure a daemon that handles only the requests of the kubelet and of Prometheus."""
    seconds: list[float] = []
    cpu: list[float] = []
    woken: list[float] = []
    for _ in range(runs):
        with daemon(FEW) as one:
            time.sleep(_SETTLED_SECONDS)
            for _ in range(WINDOWS):
                spent = _window(one)
                seconds.append(spent[0])
                cpu.append(spent[1])
                woken.append(spent[2])
    with scratch() as top:
        looks = inside("look", top)["cpu"]
    if not isinstance(looks, list):
        raise TypeError(looks)
    share, wakes = sum(cpu) / sum(seconds) * 100, sum(woken) / sum(seconds)
    return Result(
        figures=(
            Figure(
                label="share of a core",
                samples=tuple(one * 100 for one in ratios(cpu, seconds)),
                unit="%",
            ),
            Figure(label="wake-ups", samples=ratios(woken, seconds), unit="a second"),
            machine.milliseconds(
                "check of 1,000 processes, every 10 s on a node with AppArmor: CPU", looks
            ),
        ),
        claims=(
            Claim(label="share of a core, in all", value=share, limit=0.1, unit="%"),
            Claim(label="wake-ups, in all", value=wakes, limit=2.0, unit="a second"),
        ),
        said=(
            f"{FEW} profiles from ConfigMaps. {_KINDS_SAID}",
            (
                f"{WINDOWS} windows of {WINDOW_SECONDS} s, including two resyncs. /readyz is "
                "requested every 10 s, /healthz and /metrics every 30 s, as the DaemonSet's probes "
                "and Prometheus do. Wake-ups of the threads that respond are not counted."
            ),
            (
                "The check of processes reads plain files instead of procfs: 950 processes are "
                "unconfined, and 50 run under the profile of a container runtime."
            ),
        ),
        versions=(about.api_server(),),
    )


def _window(one: "OnNode") -> tuple[float, float, float]:
    """Send the requests of probes and of Prometheus; return elapsed seconds, CPU seconds and
    wake-ups.
    """
    pid = one.process.pid
    cpu, woken, begin = cpu_seconds(pid), wakeups(pid), time.monotonic()
    for second in range(0, WINDOW_SECONDS, 10):
        pages = ("/readyz",) if second % 30 else ("/readyz", "/healthz", "/metrics")
        for page in pages:
            status, text = one.get(page)
            if status != HTTPStatus.OK:
                raise AssertionError(f"{page}: {status} {text}")
        time.sleep(max(0.0, begin + second + 10 - time.monotonic()))
    return time.monotonic() - begin, cpu_seconds(pid) - cpu, float(wakeups(pid) - woken)


def start(runs: int) -> Result:
    """Measure the time from the start of the process to the end of its first pass."""
    with scratch() as top:
        source = made.fill_seccomp(top / "source", FEW, syscalls=_SYSCALLS)
        time.sleep(YOUNG_SECONDS)
        once = [
            install(source, top / "root", "--allow-unsupported", kinds=KINDS) for _ in range(runs)
        ]
        imports = {
            what: _imported(arguments)
            for what, arguments in (
                (
                    "`--oneshot` from a directory",
                    ["--oneshot", f"--source=dir:{source}", f"--host-root={top}/root", *BOTH],
                ),
                ("`check`", ["check", str(source)]),
            )
        }
    with daemon(FEW) as one:
        one.stop(signal.SIGTERM)
        first = [_first(one) for _ in range(runs)]
    walls = [spent.wall for spent in once]
    return Result(
        figures=(
            machine.seconds("`--oneshot` from a directory", walls),
            machine.seconds("`--oneshot`: CPU", [spent.cpu for spent in once]),
            machine.seconds("daemon with ConfigMaps: first pass done", first),
        ),
        claims=(
            Claim(label="`--oneshot`", value=median(walls), limit=0.4, unit="s"),
            Claim(label="daemon", value=median(first), limit=1.0, unit="s"),
        ),
        said=(
            *tuple(
                f"{what} imports {names or 'none of these libraries'}."
                for what, names in imports.items()
            ),
            "The libraries are kubernetes, prometheus_client, watchdog, yaml and structlog.",
            _KINDS_SAID,
        ),
        versions=(about.api_server(),),
    )


def _imported(arguments: list[str]) -> str:
    argv = [sys.executable, "-m", "bench.inside", "imports", "\n".join(arguments)]
    done = child(argv, fine=(0, 1))
    return ", ".join(json.loads(done.stdout.splitlines()[-1]))


def _first(one: "OnNode") -> float:
    """Start the daemon with an empty host root, and return the seconds until its first pass ends.

    At the end of a pass, the agent logs the event pass_finished.
    """
    for path in (one.seccomp, one.state):
        shutil.rmtree(path, ignore_errors=True)
    one.log.write_text("")
    begin = time.monotonic()
    one.start(*BOTH)
    try:
        while True:
            found = [line for line in _lines(one.log) if '"pass_finished"' in line]
            if found:
                return time.monotonic() - begin
            if time.monotonic() - begin > 600:  # noqa: PLR2004 - long enough
                raise AssertionError(one.log_text())
            time.sleep(0.002)
    finally:
        one.stop(signal.SIGKILL)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()
