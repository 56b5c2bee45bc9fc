"""Measures the first installation of AppArmor profiles, compared with other loaders."""

import sys
from functools import partial
from pathlib import Path
from typing import Final

from bench import machine, made
from bench.measure import Spent, child, median, ratios, turns
from bench.passes import MANY, scratch
from bench.rows import Claim, Figure, Result

PARSER: Final = "apparmor_parser"
FEATURES: Final = "/etc/apparmor.d/abi/3.0"
BARE: Final = (PARSER, "-Q", "-K", "-S", "--kernel-features", FEATURES)
FAST: Final = ("-O", "no-expr-simplify")
_LEAST: Final = (
    "Least is a start of Python that imports nothing (`-I -S -c pass`), followed by one run of "
    "apparmor_parser with its faster option."
)


def measure(runs: int) -> Result:
    """Measure on the host, where no policy is loaded, and in the virtual machine, where policy is
    loaded.
    """
    figures, claims, said = _host(runs)
    found = machine.guest("cold", runs)
    for count in (1, 100):
        ours, bare = found[f"{count} agent"], found[f"{count} apparmor_parser -r -K"]
        figures += [
            machine.seconds(f"VM, {name}", samples)
            for name, samples in found.items()
            if name.startswith(f"{count} ")
        ]
        claims.append(
            Claim(
                label=f"VM, {count}: agent / one run of apparmor_parser",
                value=median(ratios(ours, bare)),
                limit=1.1,
                unit="x",
            )
        )
        figures.append(
            Figure(
                label=f"VM, {count} least / one run of apparmor_parser",
                samples=ratios(found[f"{count} least"], bare),
                unit="x",
            )
        )
    return Result(
        figures=tuple(figures),
        claims=tuple(claims),
        said=(*said, _LEAST),
        versions=machine.versions("VM"),
    )


def _host(runs: int) -> tuple[list[Figure], list[Claim], tuple[str, ...]]:
    with scratch() as top:
        source = made.fill_apparmor(top / "source", MANY)
        files = sorted(source.iterdir())
        found = turns(
            runs,
            {
                "one run of apparmor_parser, 1 core": partial(child, [*BARE, *files], cores=1),
                "the same with -O no-expr-simplify": partial(
                    child, [*BARE, *FAST, *files], cores=1
                ),
                "agent, 1 core": partial(_agent, source, top, 1),
                "agent, 2 cores": partial(_agent, source, top, 2),
            },
        )
        same, other = _same(files[:100] + _installed())
    walls = {name: tuple(one.wall for one in all_) for name, all_ in found.items()}
    cpus = {name: tuple(one.cpu for one in all_) for name, all_ in found.items()}
    bare = walls["one run of apparmor_parser, 1 core"]
    figures = [
        machine.seconds(f"host, 1,000, {name}: {what}", samples[name])
        for name in walls
        for what, samples in (("time", walls), ("CPU", cpus))
    ]
    bare_cpu = cpus["one run of apparmor_parser, 1 core"]
    claims = [
        Claim(
            label="host, 1,000, 1 core: agent / one run of apparmor_parser, time",
            value=median(ratios(walls["agent, 1 core"], bare)),
            limit=1.1,
            unit="x",
        ),
        Claim(
            label="host, 1,000, 1 core: agent / one run of apparmor_parser, CPU",
            value=median(ratios(cpus["agent, 1 core"], bare_cpu)),
            limit=1.1,
            unit="x",
        ),
        Claim(
            label="host, 1,000, 2 cores: agent / one run of apparmor_parser, time",
            value=median(ratios(walls["agent, 2 cores"], bare)),
            limit=0.6,
            unit="x",
        ),
        Claim(
            label="profiles whose policy `-O no-expr-simplify` changes by a byte",
            value=float(other),
            limit=0.0,
            unit="",
        ),
    ]
    said = (
        (
            f"`-O no-expr-simplify` was compared with the parser's default for {same + other} "
            f"profiles, including those in /etc/apparmor.d of this machine. {same} policies are "
            "identical."
        ),
        (
            "apparmor_parser runs with `-Q -K`, so it loads nothing and reads no cache. It then "
            "compiles all files in one process, whatever the number of cores."
        ),
        (
            "The Kubernetes project's apparmor-loader is built from the k8s.io/kubernetes module. "
            "kapparmor is not compared: the Go module proxy does not offer its module (403, "
            "November 2026)."
        ),
    )
    return figures, claims, said


def _agent(source: Path, top: Path, cores: int) -> Spent:
    """Run the agent on a host root without AppArmor, so that it only compiles and checks the
    profiles.
    """
    import shutil

    root = top / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    argv = [sys.executable, "-m", "agent", "--oneshot", f"--source=dir:{source}"]
    more = [f"--host-root={root}", "--kinds=apparmor", "--allow-unsupported"]
    return child([*argv, *more], cores=cores)


def _installed() -> list[Path]:
    return sorted(one for one in Path("/etc/apparmor.d").iterdir() if one.is_file())


def _same(files: list[Path]) -> tuple[int, int]:
    """Return the number of policies that the flag does not change, and the number of policies that
    it changes.
    """
    same = other = 0
    for path in files:
        plain = child([*BARE, path], fine=(0, 1))
        if plain.status != 0 or not plain.stdout:
            continue
        fast = child([*BARE, *FAST, path])
        same += plain.stdout == fast.stdout
        other += plain.stdout != fast.stdout
    return same, other
