"""One key of 1 MiB, as a ConfigMap may hold it, that would take the agent's time or memory.

The container has 128 MiB, and what looks at one key holds up all others and the probes.
"""

import time
import tracemalloc

import pytest

from agent.core.model import Blob
from agent.core.problems import MOST, Problem, bounded
from agent.doors.host import Host
from agent.kinds.apparmor import leaving, text
from agent.kinds.seccomp.kind import Seccomp

SIZE = 1 << 20
SECONDS = 5.0  # of CPU, with the bookkeeping of tracemalloc
MEMORY = 64 << 20
RULE = (
    '{"names":["read"],"action":"SCMP_ACT_%s","args":[{"index":0,"value":%d,"op":"SCMP_CMP_GT"}]}'
)


def filled(head, one, tail):
    """Return bytes of at most SIZE with as many of one (or of what it makes of a number) as fit."""
    make = one if callable(one) else lambda _: one
    parts, left, number = [], SIZE - len(head) - len(tail), 0
    while (left := left - len(part := make(number)) - 1) >= 0:
        parts.append(part)
        number += 1
    return (head + ",".join(parts) + tail).encode()


def deny(inner):
    return '{"defaultAction":"SCMP_ACT_ERRNO",' + inner


SECCOMP = {
    "rules without anything": filled(deny('"syscalls":['), "{}", "]}"),
    "rules that are none": filled(deny('"syscalls":['), "1", "]}"),
    "rules of one call": filled(
        deny('"syscalls":['), lambda n: RULE % (("ALLOW", "LOG")[n % 2], n), "]}"
    ),
    "names that nobody knows": filled(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO","names":[',
        '"red{}"'.format,
        "]}]}",
    ),
    "conditions": filled(
        deny('"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":['), "{}", "]}]}"
    ),
    "architectures": filled(deny('"architectures":['), '"x"', "]}"),
    "unknown fields": filled(deny(""), '"k{}":0'.format, "}"),
    "a key twice among very many": filled('{"a":1,"a":2,', '"k{}":0'.format, "}"),
}
APPARMOR = {
    "empty lines": b"\n" * SIZE,
    "empty comments": b"#\n" * (SIZE // 2),
    "short lines": b"ab\n" * (SIZE // 3),
    "includes after empty lines": b"\n" * (SIZE // 2) + b"include /a\n" * (SIZE // 22),
    "unconfined executions": b"ux,\n" * (SIZE // 4),
    "changes of profile": b"change_profile,\n" * (SIZE // 16),
    "variables": b"@{a}=b\n" * (SIZE // 7),
    "names with variables": b"profile @{x} {\n" * (SIZE // 15),
}


def cost(look):
    """Return what a look said, and the CPU time and memory that it took."""
    tracemalloc.start()
    begin = time.process_time()
    found = look()
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, seconds, peak


@pytest.mark.parametrize("content", SECCOMP.values(), ids=SECCOMP)
def test_a_hostile_seccomp_key_is_refused_quickly(tmp_path, content):
    """With some of its mistakes, in little time and memory."""
    kind = Seccomp(host=Host(tmp_path), machine="x86_64")
    found, seconds, peak = cost(
        lambda: kind.inspect(Blob(origin="o", key="a.json", content=content))
    )
    assert (0 < len(found.problems) <= MOST + 1, seconds < SECONDS, peak < MEMORY) == (
        True,
        True,
        True,
    ), (len(found.problems), seconds, peak)


@pytest.mark.parametrize("content", APPARMOR.values(), ids=APPARMOR)
def test_a_hostile_text_is_looked_through_quickly(content):
    """Before the parser, and beside it."""
    source = content.decode()

    def look():
        return (
            text.refusals(content),
            text.variable_names(source),
            text.undeclared(source, ["a"]),
            leaving.warnings(source),
        )

    found, seconds, peak = cost(look)
    assert (max(map(len, found)) <= MOST + 1, seconds < SECONDS, peak < MEMORY) == (
        True,
        True,
        True,
    ), (seconds, peak)


def problem(code, number):
    return Problem(code=code, where=str(number), what="it is so")


def test_an_error_is_told_however_many_warnings_come_before():
    """A key with an error is refused: no flood of warnings may hide it."""
    warnings = [problem("complain_mode", number) for number in range(MOST * 2)]
    error = problem("not_json", 0)
    more = Problem(code="not_json", where="0", what="There is more, which is not told.")
    assert bounded([*warnings, error]) == (*warnings[: MOST - 1], error, more)
    assert bounded([error, *warnings]) == (
        error,
        *warnings[: MOST - 1],
        Problem(
            code="complain_mode", where=str(MOST - 2), what="There is more, which is not told."
        ),
    )


def test_what_has_few_problems_tells_them_all():
    """Nothing is added where nothing is left out."""
    found = tuple(problem("not_json", number) for number in range(MOST))
    assert (bounded(found), bounded(())) == (found, ())


def test_nothing_more_is_looked_for_once_an_error_and_enough_is_known():
    """What finds problems one by one may stop there."""
    found = iter([problem("not_json", number) for number in range(MOST + 5)])
    assert len(bounded(found)) == MOST + 1
    assert len([*found]) == 4
