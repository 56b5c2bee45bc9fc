"""Searches for generated profiles whose built filter differs from the rules of the profile.

`python -m tests.system.seccomp_filter.search --count 100000 --seed 1` checks each profile as the
agent does. For accepted profiles, the search builds the filters of each runtime and each version of
libseccomp, and compares them with the rules and with the agent's model. With `--rejected`, the
search also builds the filters of rejected profiles, and counts the profiles that every libseccomp
compiles correctly. If an accepted profile has a wrong filter, the exit status is 1.
"""

import argparse
import collections
import enum
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.backends.seccomp import canonical, resolve, syntax, syscalls
from agent.backends.seccomp.backend import SeccompBackend
from agent.core.findings import Finding
from agent.host.filesystem import Host
from tests.system.seccomp_filter import generator, libraries
from tests.system.seccomp_filter.bpf import Program
from tests.system.seccomp_filter.compare import Difference, Questions, differences
from tests.system.seccomp_filter.libraries import Library
from tests.system.seccomp_filter.model import Model
from tests.system.seccomp_filter.reference import Reference
from tests.system.seccomp_filter.runtimes import (
    BuildError,
    Instruction,
    Profile,
    Runtime,
    enosys_stub,
    export,
    wants_tree,
)

NATIVE = {machine: abis[0] for machine, abis in generator.MACHINES.items()}
# The limit in seconds of CPU time. libseccomp never finishes some of the profiles that the agent
# rejects.
_SECONDS = 10
_BATCH = 200
# the number of argument vectors for each call, because runc's stub ignores arguments
_WITH_STUB = 3


class Outcome(enum.Enum):
    """The result of comparing a filter of a profile with its rules."""

    RIGHT = "right"
    FAILS_OPEN = "fails open"
    DIFFERS = "differs"  # The filter is wrong, but it does not allow a call that the rules deny.
    REJECTED = "no filter"  # libseccomp does not build the filter, so no container starts.
    DIED = "died"  # libseccomp crashed or did not finish.


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The worst outcome among the filters of a profile, with the library and the runtime."""

    outcome: Outcome
    text: str = ""


@dataclass(slots=True, kw_only=True)
class Result:
    """The counts of a search, and the accepted profiles with wrong filters."""

    generated: int = 0
    accepted: collections.Counter[Outcome] = field(default_factory=collections.Counter)
    # How many profiles the agent rejected for a single reason, and how many of these profiles every
    # libseccomp builds correctly.
    rejected: collections.Counter[str] = field(default_factory=collections.Counter)
    needlessly: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[tuple[str, Verdict]] = field(default_factory=list)


def wrong_filters(
    profile: Profile, found: Sequence[Library], draw: random.Random, machine: str = "x86_64"
) -> Iterator[tuple[Library, Runtime, Difference | BuildError]]:
    """Return each pair of a library and a runtime that builds a wrong filter, with the worst
    difference.

    Equal filters are evaluated only once.
    """
    questions = Questions(profile, draw)
    native = NATIVE[machine]
    asked = set()
    for library in found:
        known = tuple(library.resolves(name) for name in sorted(questions.names))
        programs: dict[bool, tuple[Instruction, ...]] = {}
        for runtime in Runtime:
            tree = wants_tree(profile, runtime)
            try:
                if tree not in programs:
                    programs[tree] = export(library, profile, native, binary_tree=tree)
            except BuildError as error:
                yield library, runtime, error
                break
            program = programs[tree]
            stub = enosys_stub(library, profile, native, runtime)
            if (stub, program, known) in asked:
                continue
            most = _WITH_STUB if ((), program, known) in asked else None
            asked.add((stub, program, known))
            reference = Reference(library, profile, runtime, native)
            built = Program((*stub, *program))
            model = Model(library, profile, runtime, native, json.dumps(profile))
            for expected in (reference, model):
                worst = _worst(differences(built, expected, questions, most))
                if worst is not None:
                    yield library, runtime, worst


def _worst(found: Iterable[Difference]) -> Difference | None:
    """Return the first difference that fails open. If no difference fails open, return the first
    difference.
    """
    first = None
    for item in found:
        if item.fails_open:
            return item
        first = first or item
    return first


def compare_filters(body: str, seed: str, machine: str) -> Verdict:
    """Build the filters of a written profile, and compare the filters with the rules of the
    profile.
    """
    draw = random.Random(seed)  # noqa: S311 - the same every time
    verdict = Verdict(outcome=Outcome.RIGHT)
    for library, runtime, wrong in wrong_filters(
        json.loads(body), libraries.every(), draw, machine
    ):
        text = f"libseccomp {library.version}, {runtime.value}: {wrong}"
        if isinstance(wrong, BuildError):
            outcome = Outcome.REJECTED
        elif wrong.fails_open:
            return Verdict(outcome=Outcome.FAILS_OPEN, text=text)
        else:
            outcome = Outcome.DIFFERS
        if verdict.outcome is Outcome.RIGHT:
            verdict = Verdict(outcome=outcome, text=text)
    return verdict


def compare_all(bodies: Sequence[tuple[str, str]], machine: str) -> Iterator[Verdict]:
    """Judge (body, seed) pairs in a child process. After each crash, start another child
    process.
    """
    result = 0
    while result < len(bodies):
        for verdict in _judged_by_child(bodies[result:], machine):
            yield verdict
            result += 1


def _judged_by_child(bodies: Sequence[tuple[str, str]], machine: str) -> Iterator[Verdict]:
    """Return the verdicts of one child process. The last verdict may report that the child process
    crashed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _judge_in_child(bodies, machine, writer)
    os.close(writer)
    count = 0
    with os.fdopen(reader) as lines:
        for line in lines:
            outcome, text = json.loads(line)
            yield Verdict(outcome=Outcome[outcome], text=text)
            count += 1
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        yield Verdict(outcome=Outcome.DIED, text=f"libseccomp was ended by {number.name}")
    elif count < len(bodies):
        raise RuntimeError("The child ended before its work.")


def _judge_in_child(bodies: Sequence[tuple[str, str]], machine: str, writer: int) -> None:
    status = 1
    try:
        for body, seed in bodies:
            signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
            verdict = compare_filters(body, seed, machine)
            line = json.dumps([verdict.outcome.name, verdict.text]) + "\n"
            os.write(writer, line.encode())
        status = 0
    finally:
        os._exit(status)


def written(content: bytes, machine: str) -> str:
    """Return the file content that the agent would write if it accepted the profile."""
    document, _ = syntax.read(content)
    if document is None:
        return ""
    node = resolve.Node(machine=machine, kernel=(6, 1))
    return canonical.encode(canonical.expand(document, node).document).decode()


def reason(finding: Finding) -> str:
    """Return the text of a finding, with names and numbers removed."""
    words = re.split(r"([a-z0-9_]+)", finding.message)
    general = "".join("NAME" if word in syscalls.KNOWN else word for word in words)
    return f"{finding.code}: {re.sub(r'[0-9]+|SCMP_[A-Z0-9_]+', 'X', general)[:90]}"


def search(count: int, seed: int, machine: str, *, rejected: bool) -> Result:
    """Generate profiles, check them as the agent does, and judge their filters."""
    kind = SeccompBackend(host=Host(Path("/nonexistent")), clock_ns=time.time_ns, machine=machine)
    result = Result()
    for first in range(0, count, _BATCH):
        accepted: list[tuple[str, str]] = []
        refused: list[tuple[str, str]] = []
        reasons: list[str] = []
        for index in range(first, min(first + _BATCH, count)):
            draw = random.Random(f"{seed}/{index}")  # noqa: S311 - the same every time
            content = json.dumps(generator.profile(draw, machine)).encode()
            body, findings = kind.check(content)
            result.generated += 1
            if body:
                accepted.append((body.decode(), f"{seed}/{index}/calls"))
                continue
            actual = {reason(item) for item in findings if item.severity == "error"}
            key = actual.pop() if len(actual) == 1 else "several reasons"
            result.rejected[key] += 1
            if rejected and key != "several reasons" and (form := written(content, machine)):
                refused.append((form, f"{seed}/{index}/calls"))
                reasons.append(key)
        for (body, _), verdict in zip(accepted, compare_all(accepted, machine), strict=True):
            result.accepted[verdict.outcome] += 1
            if verdict.outcome is not Outcome.RIGHT:
                result.wrong.append((body, verdict))
        for key, verdict in zip(reasons, compare_all(refused, machine), strict=True):
            result.needlessly[key] += verdict.outcome is Outcome.RIGHT
    return result


def report(result: Result, show: int) -> None:
    """Print the counts, and the shortest profiles with wrong filters."""
    print(f"generated {result.generated}")
    print(f"accepted {result.accepted.total()}")
    for outcome, number in result.accepted.most_common():
        print(f"  {outcome.value}: {number}")
    print(f"rejected {result.rejected.total()}")
    for key, number in result.rejected.most_common():
        needlessly = f", {result.needlessly[key]} needlessly" if key in result.needlessly else ""
        print(f"  {number}{needlessly}: {key}")
    for body, verdict in sorted(result.wrong, key=lambda pair: len(pair[0]))[:show]:
        print(f"{verdict.outcome.value}: {verdict.text}")
        print(f"  {json.dumps(json.loads(body))}")


def main() -> int:
    """Run a search with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", choices=sorted(NATIVE), default="x86_64")
    parser.add_argument("--rejected", action="store_true")
    parser.add_argument("--show", type=int, default=10)
    options = parser.parse_args()
    libraries.every()
    begin = time.monotonic()
    result = search(options.count, options.seed, options.machine, rejected=options.rejected)
    versions = ", ".join(item.version for item in libraries.every())
    print(f"libseccomp {versions}; {time.monotonic() - begin:.0f} s")
    report(result, options.show)
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
