"""Runs the agent on mutated inputs. The default is 100,000 inputs for the checks in Python, and
3,000 inputs for the parser.

usage: python -m tests.fuzz [--seed N] [--texts N] [--parsed N] [--budget SECONDS]

The agent may reject every input, but it must catch every exception. After an uncaught exception,
the run ends with exit status 1. The message of the run contains the seed, the number and the bytes
of the input, so that a developer can reproduce the failure. Every run prints its seed.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from agent import app
from agent.backends.apparmor import (
    compiled_policy,
    container_checks,
    escape_rules,
    include_expansion,
    network_addresses,
    source_checks,
    validation,
)
from agent.backends.apparmor.include_files import IncludeDirectories
from agent.config import Config
from agent.core import classify
from agent.core.model import SourceKey
from agent.host.filesystem import Host
from agent.sources.manifest import ManifestSource
from tests.inspection import apparmor_backend, inspected
from tests.system.guest import pace

SHIPPED = Path(__file__).parent.parent / "profiles"
TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"#include <", b"include if exists ", b"//"),
    *(b"profile ", b"^hat ", b"@{X}=/a", b" flags=(", b"unconfined", b"complain)", b" -> ", b"Ux,"),
    *(b"change_profile ", b"abi <", b":ns:", b"\\u0000", b"\\ud800", b"1e999", b"-1", b"null"),
    *(b'"SCMP_ACT_ALLOW"', b'"syscalls"', b'"names"', b'"args"', b'"archMap"', b'"includes"'),
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\x1b[2J", b"9" * 5000, b"[" * 20000),
]
ONE_HALF = 0.5
KEYS = [
    *("defaultAction", "defaultErrnoRet", "architectures", "archMap", "flags", "listenerPath"),
    *("listenerMetadata", "syscalls", "names", "name", "action", "errnoRet", "errno", "args"),
    *("index", "value", "valueTwo", "op", "comment", "includes", "excludes", "caps", "arches"),
    *("minKernel", "architecture", "subArchitectures", "", "syscall"),
]
VALUES = [
    *(None, True, 0, 1, -1, 6, 4096, 2**32, 2**63, 2**64, 1.5, 1e300, "", "chmod", "\0", "\ud800"),
    *("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_NOTIFY", "SCMP_CMP_EQ"),
    *("SCMP_CMP_MASKED_EQ", "SCMP_ARCH_X86_64", "SCMP_ARCH_FOO", "amd64", "4.15", "CAP_SYS_ADMIN"),
    *([], {}, [[]], ["chmod"], [{}], {"arches": ["amd64"]}, {"caps": []}, {"minKernel": "4.8"}),
    [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
    [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}],
    [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
]
TURNS = [
    *["seccomp"] * 4,
    *["seccomp docker"] * 2,
    *["text"] * 3,
    *["policy"] * 3,
    "manifest",
    "recognise",
]
MANIFEST = b"""apiVersion: v1
kind: ConfigMap
metadata: {name: fuzz, namespace: default, annotations: {a/seccomp-prefix: team}}
data:
  audit.json: '{"defaultAction": "SCMP_ACT_LOG"}'
  web: "profile web { file, }"
binaryData: {x.json: e30=}
---
kind: List
items: [&a {kind: ConfigMap}, *a]
"""


def mutated(random_, seeds):
    """Return a random seed input with one to six changes."""
    content = bytearray(random_.choice(seeds))
    for _ in range(random_.randint(1, 6)):
        at = random_.randint(0, len(content))
        match random_.randrange(6):
            case 0:
                content[at:at] = random_.choice(TOKENS)
            case 1:
                del content[at : at + random_.randint(1, 12)]
            case 2 if at < len(content):
                content[at] ^= 1 << random_.randrange(8)
            case 3:
                other = random_.choice(seeds)
                begin = random_.randint(0, len(other))
                content[at:at] = other[begin : begin + random_.randint(1, 80)]
            case 4:
                del content[at:]
            case _:
                begin = random_.randint(0, at)
                content[at:at] = content[begin:at][:200]
    return bytes(content)


def rearranged(random_, seeds):
    """Return a random JSON input with one to four changed values, keys or items."""
    document = json.loads(random_.choice(seeds))
    for _ in range(random_.randint(1, 4)):
        places = list(_places(document))
        if not places:
            break
        parent, key = random_.choice(places)
        match random_.randrange(4):
            case 0:
                parent[key] = copy.deepcopy(random_.choice(VALUES))
            case 1:
                del parent[key]
            case 2 if isinstance(parent, dict):
                parent[random_.choice(KEYS)] = copy.deepcopy(random_.choice([parent[key], *VALUES]))
            case _:
                parent[key] = [parent[key], copy.deepcopy(random_.choice(VALUES))]
    return json.dumps(document, ensure_ascii=random_.random() < ONE_HALF).encode(
        "utf-8", "surrogatepass"
    )


def _places(value):
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def before_the_parser(manifest):
    """Return the functions that process input without the parser, by name."""
    seccomp = app.backend_parts(Config(kinds=frozenset({"seccomp"})))["seccomp"].backend
    docker_settings = Config(kinds=frozenset({"seccomp"}), seccomp_format="docker")
    docker = app.backend_parts(docker_settings)["seccomp"].backend

    no_includes = IncludeDirectories([str(manifest.parent)], max_bytes=1 << 20)

    def blob(content):
        return SourceKey(profile_set="dir fuzz", key="key", content=content)

    def texts(content):
        source = content.decode("utf-8", "replace")
        source_checks.errors(source.encode("utf-8", "surrogatepass"))
        source_checks.undecided_includes(content)
        source_checks.variable_names(source)
        escape_rules.warnings(source)
        network_addresses.dropped(source)
        with contextlib.suppress(include_expansion.ExpansionError):
            include_expansion.expand(source, no_includes, max_characters=1 << 20)

    def compiled(content):
        try:
            declared = compiled_policy.read(content)
        except compiled_policy.PolicyError:
            return
        validation.errors(declared, "", validation.ValidationRules())
        validation.warnings(declared, "")
        container_checks.warnings(declared, "")

    def manifests(content):
        manifest.write_bytes(content)
        ManifestSource(str(manifest)).read()

    return {
        "seccomp": lambda content: seccomp.inspect(blob(content)),
        "seccomp docker": lambda content: docker.inspect(blob(content)),
        "text": texts,
        "policy": compiled,
        "manifest": manifests,
        "recognise": lambda content: classify.classify("key", content),
    }


def shipped():
    """Return the contents of the shipped seccomp profiles and of the shipped AppArmor profiles."""
    result = {"seccomp": [], "apparmor": []}
    for path in sorted(SHIPPED.rglob("*")):
        if path.is_file():
            kind = classify.classify(path.name, path.read_bytes())
            if kind:
                result[kind].append(path.read_bytes())
    return result["seccomp"], result["apparmor"]


def fed(name, function, content, where):
    """Call a function with an input, and return whether the function raised an exception."""
    try:
        function(content)
    except Exception:  # noqa: BLE001 - the search is for any exception
        print(f"{name}, {where}: {content!r}\n{traceback.format_exc()}", file=sys.stderr)
        return True
    return False


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments.add_argument("--texts", type=int, default=100_000)
    arguments.add_argument("--parsed", type=int, default=3_000)
    arguments.add_argument("--budget", type=float, default=1200.0)
    chosen = arguments.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    random_ = random.Random(chosen.seed)  # noqa: S311 - reproducible, not secret
    begin = time.monotonic()
    filters, profiles = shipped()
    with tempfile.TemporaryDirectory() as folder:
        functions = before_the_parser(Path(folder) / "manifest.yaml")
        kind = apparmor_backend(Host("/"), cpu_limit=10.0, checking=True)
        if kind.inspector.parser.unavailable_reason():
            print(kind.inspector.parser.unavailable_reason(), file=sys.stderr)
            return 2
        functions["parser"] = lambda content: inspected(
            kind, SourceKey(profile_set="dir fuzz", key="key", content=content)
        )
        shipped_profiles = [
            SourceKey(profile_set="dir profiles", key=str(number), content=text)
            for number, text in enumerate(profiles)
        ]
        blobs = [kind.body(profile) for profile in inspected(kind, *shipped_profiles)]
        seeds = {"policy": blobs, "text": profiles, "parser": profiles, "manifest": [MANIFEST]}
        result = dict.fromkeys(functions, 0)
        for number in range(chosen.texts + chosen.parsed):
            name = TURNS[number % len(TURNS)] if number < chosen.texts else "parser"
            make = mutated
            if name.startswith("seccomp") and random_.random() < ONE_HALF:
                make = rearranged
            content = make(random_, seeds.get(name, filters))
            if fed(name, functions[name], content, f"seed {chosen.seed}, input {number}"):
                return 1
            result[name] += 1
            if not pace.in_time(time.monotonic() - begin, chosen.budget):
                print(f"the budget of {chosen.budget} s is exceeded: {result}", file=sys.stderr)
                return 1
    print(f"no uncaught exception in {time.monotonic() - begin:.0f} s: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
