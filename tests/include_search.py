"""Searches for profile texts that pass the source checks, although they make the parser open a file
outside the include directory.

usage: python -m tests.include_search [--seed N] [--passing N] [--only-host]

A generator creates the texts. Each text includes its own canary file through an absolute path, a
path that leaves the include directory, or a path relative to the working directory. Every text is
read by the parser of this machine, of Debian 13 and of Debian unstable. inotify reports the canary
files that the parsers open. The search ends with status 1 if a text opens its canary file and
neither `source_checks.errors` nor `source_checks.undecided_includes` reports the text.
"""

import argparse
import collections
import ctypes
import itertools
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from agent.backends.apparmor import parser, source_checks
from tests.system import kept, releases

PACKAGES = ("apparmor", "libapparmor1", "libc6", "libstdc++6", "libgcc-s1")
BATCH = 400
IN_OPEN = 0x20
EVENT = struct.Struct("iIII")
BREAKS = ("\n", "\n", "\n  ", "\r\n", "\n\n", "\n#\n", "\n\t")
GAPS = (" ", " ", " ", "\t", "  ", "", *BREAKS)
WORDS = (
    *("abi", "include", "#include", "if", "exists", "include if exists", "#include if exists"),
    *("the", "see", "profile", "hat", "^", "->", "=", "+=", ":=", "?=", "==", "!=", "+", ":", "&"),
    *('"', '"', '""', '\\"', "'", "[", "]", "[^", "{", "}", "(", ")", "<", ">", "\\", "\\\\", "!"),
    *(",", ",x", "\\,", "\\ ", "#", "#x", "@", "@{", "@{X}", "@{X", "$", "$b", "${b}", "/", "//"),
    *("mount", "umount", "signal", "ptrace", "unix", "dbus", "network", "rlimit", "userns"),
    *("mqueue", "change_profile", "priority=1", "priority=", "peer=(", "peer =(", "xattrs=(x=y)"),
    *("in (", "in(", "x=", "x =", "flags=", "flags=(complain)", "identities=", "safe", "unsafe"),
    *("abi=", "include=", "include in (", "abi,", "abi <abs/abi>", "include <abs/base>"),
    *("include <abs/open>", "include <abs/values>", "not", "defined", "and", "or", "if defined $b"),
    *("\u00a0", "\u00e9", "\r", "\\x41", "\\101", "\\d065"),
)
PREAMBLE = (
    "abi <abs/abi> ,",
    "@{X} = a b",
    "@{X} += /c \\\n /d",
    '@{Y} = "q r" s # t',
    "@{Z}=#a",
    "$b = true",
    "alias /a -> /b ,",
    "include <abs/base>",
    "#include <abs/base>",
    "include if exists <abs/nope>",
    "#include if exists <abs/base>",
    "include <abs/open>",
    "include <abs/values>",
    "@{W} ?= x",
    "@{W} := x",
)
HEADS = (
    "profile w {",
    "profile w flags=(complain) {",
    "profile w flags = ( complain , audit ) {",
    'profile "w x" /bin/w {',
    "profile w /bin/{a,b} xattrs=(user.x=y) flags=(audit) {",
    "/bin/w {",
    '"/bin/w y" {',
    "@{X}/w {",
    ":ns:w {",
    "hat w {",
)
RULES = (
    "/a r ,",
    "r /a ,",
    '"/a b" rw ,',
    "owner /a\\ b\\,c w ,",
    "/a,b[c,d]{e,f} rix ,",
    "/a px -> other ,",
    "/a px -> :ns:other ,",
    "audit deny /a#b w ,",
    "file ,",
    "capability ,",
    "capability chown setuid ,",
    "network ,",
    "network inet stream ,",
    "network netlink raw ,",
    "network ( send , receive ) inet peer=( ip=127.0.0.1 port=80 ) ,",
    "signal ,",
    "signal ( send , receive ) set=( hup , term ) peer=other ,",
    'signal send peer="a b" ,',
    "ptrace ( read ) peer=@{X} ,",
    "ptrace trace ,",
    "unix ,",
    "unix ( create , bind ) type=stream addr=@a peer=( label=x addr=none ) ,",
    "dbus send bus=session path=/a interface=b.c member={d,e} peer=( name=f label=g ) ,",
    "mount ,",
    "mount options=( ro , bind ) /a -> /b ,",
    'mount fstype=ext4 options in (rw) "/a b" -> /c ,',
    "umount /a ,",
    "remount /a ,",
    "pivot_root oldroot=/a /b -> w ,",
    "change_profile -> a ,",
    "change_profile unsafe /a -> :ns:b ,",
    'change_profile "/a b" ,',
    "set rlimit nofile <= 5 ,",
    "set rlimit data <= 5 MB ,",
    "link subset /a -> /b ,",
    "/a l -> /b ,",
    "abi <abs/abi> ,",
    "include <abs/rules>",
    "#include <abs/rules>",
    "include if exists <abs/nope>",
    "^h { /a r , }",
    "hat h { /a r , }",
    'profile "k l" /bin/k { include <abs/rules> /a r , }',
    "profile k flags=(complain) { ^h { } }",
    "if defined $b { /a r , } else { /b r , }",
    "if $b { /a r , }",
    "if not defined @{X} { include <abs/rules> }",
    "audit { /a r , }",
    "priority = 5 /a r ,",
    "userns create ,",
    "mqueue ( read ) type=posix /a ,",
    "io_uring sqpoll ,",
    "all ,",
)
INCLUDES = (
    'include "{absolute}"',
    "include {absolute}",
    '#include "{absolute}"',
    "#include {absolute}",
    'include if exists "{absolute}"',
    "#include if exists {absolute}",
    'include\t"{relative}"',
    "include {relative}",
    "#include{relative}",
    '#include"{absolute}"',
    "include <{climbing}>",
    "#include <{climbing}>",
    "include < {climbing} >",
    'include <"{climbing}">',
    "include if exists <{climbing}>",
    "include <{escaped}>",
    'include <"{octal}">',
    'include\n"{absolute}"',
    'include \n "{absolute}"',
    'include \r\n\t"{absolute}"',
    '#include\n\n"{absolute}"',
    'include if  exists\t\n"{absolute}"',
    'include if\nexists "{absolute}"',
    'abi "{absolute}" ,',
    "abi {absolute} ,",
    "abi <{climbing}> ,",
    "abi <{escaped}> ,",
    'abi\n"{relative}"\n,',
    "abi<{climbing}>,",
    'include <abs/values> include "{absolute}"',
    'include <abs/values> # " \n include "{absolute}" "',
    'include <abs/base> include "{absolute}"',
)
FILES = {
    "abs/base": "@{BASE} = a\n",
    "abs/rules": "/included r,\n",
    "abs/abi": "query {label {perms {allow deny audit quiet\n}\n}\n}\n",
    "abs/open": "@{OPEN} = a\n# no line break at the end",
    "abs/values": "@{VALUES} = a",
}


def random_numbers(seed):
    """Return the random number generator of a search."""
    return random.Random(seed)  # noqa: S311 - repeatable, not secret


def generated(random_, paths):
    """Return a text that includes its canary through a random path."""
    lines = random_.sample(PREAMBLE, random_.randint(0, 2))
    lines.append(random_.choice(HEADS))
    lines += [random_.choice(RULES) for _ in range(random_.randint(1, 4))]
    lines.append("}")
    pieces = [piece for line in lines for piece in (*line.split(" "), "\n")]
    for _ in range(random_.randint(1, 2)):
        payload = random_.choice(INCLUDES).format(**paths)
        at = random_.randint(0, len(pieces))
        pieces[at:at] = disguised(random_, payload)
    content = joined(random_, pieces)
    for _ in range(random_.choice((0, 0, 0, 1, 1, 2, 3))):
        content = mutated(random_, content)
    return content


def disguised(random_, payload):
    """Return a payload that may follow a comment, a quote or a keyword."""
    noise = [random_.choice(WORDS) for _ in range(random_.randint(0, 4))]
    match random_.randrange(6):
        case 0:
            return ["\n", payload, "\n"]
        case 1:
            return ["#", *noise, "\n", payload, "\n"]
        case 2:
            return ["#", *noise, payload, "\n"]
        case 3:
            return [f'"/{" ".join(noise)}', payload, '"', "r", ","]
        case 4:
            return ["#", *noise, "\n", payload, "#", *noise[::-1], "\n"]
        case _:
            return [*noise, payload]


def joined(random_, pieces):
    """Return the pieces, joined by spaces, line breaks or comments."""
    parts = []
    for piece in pieces:
        parts.append(piece)
        chance = random_.random()
        if chance < 0.85:
            parts.append(" ")
        elif chance < 0.95:
            parts.append(random_.choice(GAPS))
        else:
            noise = " ".join(random_.choice(WORDS) for _ in range(random_.randint(0, 3)))
            parts.append(f" #{random_.choice(('', ' '))}{noise}{random_.choice(BREAKS)}")
    return "".join(parts)


def mutated(random_, content):
    """Return a text with one change."""
    at = random_.randint(0, len(content))
    match random_.randrange(5):
        case 0:
            return content[:at] + random_.choice(WORDS) + content[at:]
        case 1:
            return content[:at] + content[at + random_.randint(1, 3) :]
        case 2:
            return content[:at] + random_.choice(GAPS) + content[at:]
        case 3:
            return content.replace("\n", "\r\n") if "\r" not in content else content
        case _:
            begin = random_.randint(0, at)
            return content[:at] + content[begin : begin + 40] + content[at:]


class Canaries:
    """The canary files of a batch, one for each text, with an inotify watch on all of them."""

    def __init__(self, root):
        self.root = root
        self.inside, self.outside, self.working = root / "d", root / "c", root / "w"
        for name, content in FILES.items():
            path = self.inside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.watch = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in (self.outside, self.working):
            folder.mkdir()
            for number in range(BATCH):
                (folder / f"c{number}").write_text("query {label {allow\n}\n}\n")
            if self.libc.inotify_add_watch(self.watch, os.fsencode(folder), IN_OPEN) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def paths(self, number):
        """Return several spellings of the path of a canary file."""
        climbing = f"../c/c{number}"
        return {
            "absolute": str(self.outside / f"c{number}"),
            "relative": f"c{number}",
            "climbing": climbing,
            "escaped": climbing.replace(".", "\\x2e"),
            "octal": climbing.replace("..", ".\\056"),
        }

    def opened(self):
        """Return the numbers of the canary files that were opened since the last call."""
        numbers = set()
        while True:
            try:
                events = os.read(self.watch, 1 << 16)
            except BlockingIOError:
                return numbers
            at = 0
            while at < len(events):
                _, _, _, length = EVENT.unpack_from(events, at)
                name = events[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0")
                numbers.add(int(name[1:] or b"-1"))
                at += EVENT.size + length


def other_releases():
    """Return the parser commands of other Debian releases. The packages are unpacked only once."""
    folder = kept.CACHE / "apparmor"
    commands = {}
    with kept.locked(folder):
        for suite in ("trixie", "sid"):
            tree = folder / suite
            if not (tree / "complete").exists():
                shutil.rmtree(tree, ignore_errors=True)
                with kept.reporting_progress(f"apparmor of {suite}", "20 s"):
                    releases.unpack(PACKAGES, suite, tree)
                (tree / "complete").touch()
            libraries = f"{tree}/usr/lib/x86_64-linux-gnu"
            commands[suite] = [
                f"{libraries}/ld-linux-x86-64.so.2",
                *("--library-path", libraries, f"{tree}/usr/sbin/apparmor_parser"),
            ]
    return commands


def read_by(commands, canaries, contents):
    """Run every parser on the texts, and return the canary files that each parser opened."""
    folder = canaries.root / "texts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, content in contents.items():
        (folder / f"t{number}").write_bytes(content)
    names = [str(folder / f"t{number}") for number in contents]
    canaries.opened()
    opened = {}
    for name, argv in commands.items():
        if names:
            subprocess.run(
                [*argv, "-N", "-Q", "-K", "-j1", "--base", str(canaries.inside), *names],
                cwd=canaries.working,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=600,
            )
        opened[name] = canaries.opened()
    return opened


def search(random_, commands, root, passing):
    """Generate texts until enough of them have passed the checks. Return the counts, and the texts
    that opened a canary file.
    """
    canaries = Canaries(root)
    counts, failures = collections.Counter(), []
    for batch in itertools.count():
        if counts["passed"] >= passing or failures:
            break
        groups = {"passed": {}, "undecided": {}, "rejected": {}}
        for number in range(BATCH):
            content = generated(random_, canaries.paths(number)).encode("utf-8", "replace")
            findings = source_checks.errors(content)
            group = (
                "rejected"
                if findings
                else "undecided"
                if source_checks.undecided_includes(content)
                else "passed"
            )
            groups[group][number] = content
            if findings and findings[0].code != "include_refused":
                del groups[group][number]
                counts["unsafe"] += 1
        for group, contents in groups.items():
            if group == "rejected" and batch % 8:
                # Rejected texts are only counted, to show how many of the rejections were
                # necessary.
                continue
            opened = read_by(commands, canaries, contents)
            counts[group] += len(contents)
            hits = set().union(*opened.values())
            if group == "passed" and hits:
                # inotify reports files that any process opens. Therefore, each parser runs twice. A
                # parser opens the same files in the second run, but another process opens a file
                # only by chance.
                opened = read_by(commands, canaries, contents)
                counts["not repeated"] += len(hits - set().union(*opened.values()))
                hits &= set().union(*opened.values())
                failures += [contents.get(number, b"?") for number in hits]
            counts[f"{group}, canary opened"] += len(hits)
            for name, numbers in opened.items():
                counts[f"{group}, opened by {name}"] += len(numbers)
    return counts, failures


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments.add_argument("--passing", type=int, default=20_000)
    arguments.add_argument("--only-host", action="store_true")
    chosen = arguments.parse_args()
    commands = {"host": [next(path for path in parser.DEFAULT_PATHS if os.access(path, os.X_OK))]}
    if not chosen.only_host:
        commands |= other_releases()
    print(f"seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        counts, failures = search(
            random_numbers(chosen.seed), commands, Path(folder), chosen.passing
        )
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    for content in failures:
        print(f"opened its canary: {content!r}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
