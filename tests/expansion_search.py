"""Compares the policies that real parsers compile from generated texts and from their expanded
forms.

If the parser accepts a text with an include directory, the expanded text must compile to the same
bytes without this directory. The texts mix include rules with profiles, hats, blocks, assignments
and comments.
"""

import collections
import subprocess

from agent.backends.apparmor import include_expansion, source_checks
from agent.backends.apparmor.include_expansion import ExpansionError
from agent.backends.apparmor.include_files import IncludeDirectories
from tests import include_search

FILES = {
    "abs/base": "@{BASE} = a\n",
    "abs/rules": "/included r,\n",
    "abs/abi": "query {label {perms {allow deny audit quiet\n}\n}\n}\n",
    "abs/values": "@{VALUES} = a",
    "abs/dir/a": "/dir/a r,\n",
    "abs/dir/b": "include <abs/rules>\n/dir/b r,",
    "abs/child": "profile kid { include <abs/rules> }\n^HAT { include <abs/rules>\n}\n",
    "abs/nested": "include <abs/rules>\ninclude <abs/child>\ninclude if exists <abs/none>\n",
}
INCLUDES = (
    "#include <abs/rules>",
    "include <abs/nested>",
    "include <abs/child>",
    "include <abs/dir>",
    "include if exists <abs/none>",
    "include <abs/rules> # a comment",
    "include <abs/rules> /z r,",
    'include <"abs/rules">',
    "include < abs/rules >",
    "abi <abs/abi>,",
    "#include if exists <abs/rules> ",
)
RULES = (
    "/a r,",
    "capability,",
    "network inet,",
    "owner {",
    "}",
    "profile child {",
    "^HAT2 {",
    'profile "two words" {',
    "signal,",
    "mount,",
    "umount /a,",
    "@{HOME}/x r,",
    "/b ix,",
    "# a comment",
    "# include <abs/none>",
    "deny /c w,",
    "change_profile -> other,",
)
PREAMBLE = (
    "@{HOME}+=/x",
    "include <abs/base>",
    "include <abs/values>",
    "include <abs/base> # a comment",
    "abi <abs/abi>,",
    "# abi",
)
HEADS = ("profile {name} {{", "/usr/bin/{name} {{", "profile {name} flags=(complain) {{")
BREAKS = (*["\n"] * 12, "\n\n", " \n", "\r\n", " ")


def generated(random_):
    """Return a random text that includes files."""
    lines = ["@{HOME}=/h", *random_.choices(PREAMBLE, k=random_.randint(0, 3))]
    for name in ("one", "two")[: random_.randint(1, 2)]:
        lines.append(random_.choice(HEADS).format(name=name))
        depth = 1
        for _ in range(random_.randint(1, 8)):
            line = random_.choice(random_.choice((RULES, INCLUDES)))
            change = line.endswith("{") - (line == "}")
            if 1 <= depth + change <= 2:
                depth += change
                lines.append(line)
        lines += ["}"] * depth
    text = "".join(line + random_.choice(BREAKS) for line in lines) + "\n"
    return include_search.mutated(random_, text) if random_.random() < 0.2 else text


def compiled(command, base, text):
    """Return the compiled policy of a text, or None if the parser rejects the text."""
    argv = [*command, "-Q", "-K", "-S", "-O", "no-expr-simplify", "--base", str(base)]
    result = subprocess.run(argv, input=text.encode(), capture_output=True, check=False, cwd="/")
    return None if result.returncode else result.stdout


def search(random_, commands, root, number):
    """Compare a number of texts. Return the counts, and the texts that compile to different
    policies.
    """
    include_dir, bare = root / "includes", root / "bare"
    for name, content in FILES.items():
        folders = [include_dir, bare] if name == "abs/abi" else [include_dir]
        for folder in folders:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
    files = IncludeDirectories([str(include_dir)], max_bytes=1 << 20)
    counts, failures = collections.Counter(), []
    for _ in range(number):
        text = generated(random_)
        if source_checks.errors(text.encode()):
            counts["unsafe"] += 1
            continue
        try:
            expanded = include_expansion.expand(text, files, max_characters=1 << 20).text
        except ExpansionError:
            counts["refused"] += 1
            continue
        for name, command in commands.items():
            original = compiled(command, include_dir, text)
            result = compiled(command, bare, expanded)
            counts[f"{name}, {'rejected' if original is None else 'compiled'}"] += 1
            if original != result:
                failures.append((name, text))
    return counts, failures
