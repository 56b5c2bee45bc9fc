"""Runs measurements in one process: `python -m bench.inside ROW ARGUMENT...` prints JSON.

The program imports modules only when it needs them, so that the process is as small as the measured
code.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.config import Config
    from agent.reconciler import Reconciler
    from agent.sources.configmap import ConfigMapSource

NAMESPACE = "bench"
YOUNG_SECONDS = 3.0  # The agent reads newer files again (agent/sources/directory.py).
_KEYS = 50  # With this number of keys, a ConfigMap stays below its limit of 1 MiB.
_PROCESSES = 1000
_CONFINED = 50  # The number of confined processes among them.


def _config(source: str, root: str, kinds: str) -> "Config":
    from agent import cli

    Path(root).mkdir(exist_ok=True)
    argv = [f"--source={source}", f"--host-root={root}", f"--kinds={kinds}", "--oneshot"]
    parsed = cli.parse([*argv, "--allow-unsupported"], {}, lambda _: None)
    if not isinstance(parsed, cli.Run):
        raise TypeError(parsed)
    return parsed.config


def _pass(source: str, root: str, kinds: str) -> "Reconciler":
    """Return a pass of the daemon; the source `api:DIR` provides a directory as ConfigMaps."""
    from agent import app
    from agent.heartbeat import Heartbeat

    scheme, _, path = source.partition(":")
    is_api = scheme == "api"
    config = _config(f"dir:{path}" if is_api else source, root, kinds)
    return app.build_reconciler(
        config,
        parts=app.backend_parts(config),
        sources=[_config_maps(Path(path))] if is_api else app.open_sources(config, None),
        ledger=app.ledger(config),
        heartbeat=Heartbeat(time.monotonic),
    )


def _config_maps(directory: Path) -> "ConfigMapSource":
    """Return a source with copied ConfigMaps, as if an API server had sent them."""
    from agent.core.labels import DOMAIN
    from agent.kube.reflector import Store
    from agent.sources.configmap import ConfigMapSource, entry_for
    from agent.sources.source_spec import ConfigMapSpec

    files = sorted(directory.iterdir())
    objects = {}
    for begin in range(0, len(files), _KEYS):
        name = f"set{begin:05}"
        data = {one.name: one.read_text() for one in files[begin : begin + _KEYS]}
        meta = {"name": name, "namespace": NAMESPACE}
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
        objects[name] = entry_for(DOMAIN)(document)
    copy = Store(objects=objects)
    return ConfigMapSource(ConfigMapSpec(namespace=NAMESPACE), store=lambda: copy, node_labels=dict)


def passes(source: str, root: str, kinds: str, runs: str) -> None:
    """Run a first pass and later passes. Print the cost of each pass, and the result of the last
    pass.

    The later passes begin only when the files are old enough for the agent to trust their
    signatures.
    """
    one = _pass(source, root, kinds)
    begin, cpu = time.monotonic(), time.process_time()
    one.run()
    first = (time.monotonic() - begin, time.process_time() - cpu)
    time.sleep(YOUNG_SECONDS)
    one.run(full=False)
    more = []
    for _ in range(int(runs)):
        begin, cpu = time.monotonic(), time.process_time()
        report = one.run(full=False)
        more.append((time.monotonic() - begin, time.process_time() - cpu))
    begin, cpu = time.monotonic(), time.process_time()
    one.run(full=True)
    full = (time.monotonic() - begin, time.process_time() - cpu)
    states: dict[str, int] = {}
    for row in report.profiles:
        states[row.state] = states.get(row.state, 0) + 1
    found = {"first": first, "more": more, "full": full, "states": states, "memory": _memory()}
    sys.stdout.write(json.dumps(found))


def grown(source: str, root: str, kinds: str, runs: str) -> None:
    """Run many passes, and print how much the memory of the process grows after the first 5 s.

    After 5 s, the agent trusts the signatures of all new files.
    """
    one = _pass(source, root, kinds)
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        one.run(full=False)
    before = _memory()
    for _ in range(int(runs)):
        one.run(full=False)
    sys.stdout.write(json.dumps({"more": _memory() - before}))


def floor(source: str, out: str, whole: str, small: str) -> None:
    """Parse each file of a directory as JSON, and write several files.

    Each file is written as atomically and durably as by the agent: a temporary file, fsync, rename,
    and fsync of the directory.

    Args:
        source: the directory of the JSON files.
        out: the directory for the written files.
        whole: the number of files that contain the JSON on one line.
        small: the number of files with 1 KiB.
    """
    target = Path(out)
    target.mkdir()
    directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    for path in sorted(Path(source).iterdir()):
        content = json.dumps(json.loads(path.read_bytes())).encode()
        for number, part in enumerate([content] * int(whole) + [content[:1024]] * int(small)):
            temporary = target / "temporary"
            with temporary.open("xb") as stream:
                stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(target / f"{path.name}.{number}")
            os.fsync(directory)


def imports(argument: str) -> None:
    """Run the agent with some arguments in this process, and print the imported libraries."""
    from agent.__main__ import main

    main(argument.split("\n"))
    known = ("kubernetes", "prometheus_client", "watchdog", "yaml", "structlog")
    sys.stdout.write("\n" + json.dumps([*(one for one in known if one in sys.modules)]))


def look(top: str, threads: str = "1") -> None:
    """Check 1,000 processes ten times, 50 of them confined; print the CPU seconds of each check.

    50 of the processes are confined. The processes are plain files in a directory that looks like
    procfs and is the root of this process.

    Args:
        top: the directory.
        threads: the number of threads of each process.
    """
    from agent.backends.apparmor.confinement_tracker import ConfinementTracker
    from agent.host.filesystem import Host

    for pid in range(1, _PROCESSES + 1):
        confined = pid % (_PROCESSES // _CONFINED) == 0
        label = "cri-containerd.apparmor.d (enforce)" if confined else "unconfined"
        for tid in range(int(threads)):
            thread = Path(top, f"proc/{pid}/task/{pid + tid * _PROCESSES}")
            (thread / "attr/apparmor").mkdir(parents=True)
            (thread / "attr/apparmor/current").write_text(f"{label}\n")
            # The file has 52 fields, as described in proc(5).
            stat = f"{pid} (app) S 1 " + " ".join(["0"] * 48)
            (thread / "stat").write_text(f"{stat}\n")
    os.chroot(top)
    tracker = ConfinementTracker(Host("/"), state_dir="/state", find_directories=lambda _: {})
    found = []
    for _ in range(10):
        cpu = time.process_time()
        tracker.observe(["web"])
        found.append(time.process_time() - cpu)
    sys.stdout.write(json.dumps({"cpu": found}))


def _memory() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    measures = {"passes": passes, "grown": grown, "floor": floor, "imports": imports, "look": look}
    measures[sys.argv[1]](*sys.argv[2:])
