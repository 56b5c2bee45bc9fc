"""Checks one key of 1 MiB whose check could take much time or memory.

`python -m tests.unit.hostile NAME` runs a check. The command prints the number of findings, the CPU
time in seconds and the additional memory in MiB as JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.backends.apparmor import escape_rules, source_checks
from agent.backends.seccomp.backend import SeccompBackend
from agent.core.findings import Finding
from agent.core.model import Rejection, SourceKey
from agent.host.filesystem import Host
from tests.narrowing import instance_of

SIZE = 1 << 20
RULE = (
    '{"names":["read"],"action":"SCMP_ACT_%s","args":[{"index":0,"value":%d,"op":"SCMP_CMP_GT"}]}'
)


def filled(head: str, item: str | Callable[[int], str], tail: str) -> bytes:
    """Return at most SIZE bytes: the beginning, as many items as fit, and the end."""
    parts: list[str] = []
    left, number = SIZE - len(head) - len(tail), 0
    while (left := left - len(part := item if isinstance(item, str) else item(number)) - 1) >= 0:
        parts.append(part)
        number += 1
    return (head + ",".join(parts) + tail).encode()


def deny(inner: str) -> str:
    return '{"defaultAction":"SCMP_ACT_ERRNO",' + inner


SECCOMP = {
    "empty rules": filled(deny('"syscalls":['), "{}", "]}"),
    "items that are not rules": filled(deny('"syscalls":['), "1", "]}"),
    "rules of one call": filled(
        deny('"syscalls":['), lambda n: RULE % (("ALLOW", "LOG")[n % 2], n), "]}"
    ),
    "unknown names": filled(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO","names":[',
        '"red{}"'.format,
        "]}]}",
    ),
    "conditions": filled(
        deny('"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":['), "{}", "]}]}"
    ),
    "architectures": filled(deny('"architectures":['), '"x"', "]}"),
    "unknown fields": filled(deny(""), '"k{}":0'.format, "}"),
    "empty lines before YAML": b"\n" * (SIZE - 8) + b"kind: X\n",
    "one duplicate among very many keys": filled('{"a":1,"a":2,', '"k{}":0'.format, "}"),
}
APPARMOR = {
    "quotes that never end": "\u201c".encode() + b'"' + b"a" * (SIZE - 4),
    "empty lines": b"\n" * SIZE,
    "empty lines after a comment": b"# a\n" + b"\n" * SIZE,
    "spaces that are not ASCII": b"# a\n" + b"\xc2\xa0" * (SIZE // 2),
    "letters that are not ASCII": b"# a\n/" + b"\xc3\xa9" * (SIZE // 2),
    "typographic quotes": b"# a\n" + b" \xe2\x80\x9c" * (SIZE // 4),
    "empty comments": b"#\n" * (SIZE // 2),
    "short lines": b"ab\n" * (SIZE // 3),
    "includes after empty lines": b"\n" * (SIZE // 2) + b"include /a\n" * (SIZE // 22),
    "unconfined executions": b"ux,\n" * (SIZE // 4),
    "changes of profile": b"change_profile,\n" * (SIZE // 16),
    "variables": b"@{a}=b\n" * (SIZE // 7),
    "includes in one line": b"#include <a>" * (SIZE // 12) + b"\n",
    "includes without a line break": b"#include" * (SIZE // 8),
    "single characters": b"# include a\n" + b"{}" * (SIZE // 2),
    "commas in a list": b"include a\nsignal (" + b"," * SIZE,
    "blanks after a word": b"include a\n" + (b"a" + b" " * 999) * (SIZE // 1000),
    "escaped quotes": b'include a\n"/' + b'\\"' * (SIZE // 2),
    "a text at the limit for splitting": b"# include a\n" + b"{}" * (SIZE // 8 - 8),
    "paths that never end": b'include a\nabi <"' + b'\\"' * (SIZE // 2),
    "many assignments": b"include a\n" + b"@{a}=b c # d\n" * (SIZE // 13),
    "names with variables": b"profile @{x} {\n" * (SIZE // 15),
}


def seccomp(content: bytes) -> Sequence[Finding]:
    """Return the problems of a seccomp key."""
    kind = SeccompBackend(host=Host(Path("/nonexistent")), clock_ns=time.time_ns, machine="x86_64")
    source_key = SourceKey(profile_set="o", key="a.json", content=content)
    return instance_of(kind.inspect(source_key), Rejection).findings


def apparmor(content: bytes) -> Sequence[object]:
    """Return the longest list of problems that any check of the text reports."""
    source = content.decode()
    return max(
        source_checks.errors(content),
        source_checks.variable_names(source),
        source_checks.undecided_includes(content),
        escape_rules.warnings(source),
        key=len,
    )


def main(name: str) -> None:
    """Check one key and print the measurement."""
    check: Callable[[bytes], Sequence[object]] = seccomp if name in SECCOMP else apparmor
    content = SECCOMP[name] if name in SECCOMP else APPARMOR[name]
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    problems = check(content)
    seconds, after = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"problems": len(problems), "seconds": seconds, "memory": (after - before) / 1024}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
