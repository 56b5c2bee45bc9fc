"""Property tests of the checks of seccomp profiles."""

import json
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.model import Profile, Rejection, SourceKey, digest
from agent.host.filesystem import Host

ACTIONS = ["ALLOW", "LOG", "ERRNO", "TRAP", "TRACE", "KILL", "KILL_PROCESS", "NOTIFY"]
NAMES = ["chmod", "read", "execve", "clone", "chmodat", "mseal", "x y"]

actions = st.sampled_from(ACTIONS).map("SCMP_ACT_{}".format)
arches = st.lists(st.sampled_from(["amd64", "arm64", "s390x"]), max_size=2)
only = st.none() | st.fixed_dictionaries({}, optional={"arches": arches, "caps": st.just([])})
arg = st.fixed_dictionaries(
    {
        "index": st.integers(0, 6),
        "value": st.integers(0, 2**64),
        "op": st.sampled_from(["SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"]),
    },
    optional={"valueTwo": st.integers(0, 2)},
)
rule = st.fixed_dictionaries(
    {"action": actions},
    optional={
        "names": st.lists(st.sampled_from(NAMES), max_size=3),
        "name": st.sampled_from(NAMES),
        "args": st.none() | st.lists(arg, max_size=2),
        "errnoRet": st.none() | st.integers(0, 5000),
        "includes": only,
        "excludes": only,
        "comment": st.text(max_size=3),
    },
)
arch_map = st.just([{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}])
profiles = st.fixed_dictionaries(
    {"defaultAction": actions},
    optional={"syscalls": st.none() | st.lists(rule, max_size=4), "archMap": arch_map},
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["defaultAction", "syscalls", "names", "args", "includes", "archMap", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
machines = st.sampled_from(["x86_64", "aarch64", "s390x", "pdp11"])
formats = st.sampled_from(["oci", "docker"])


def backend(machine: str = "x86_64", **options: Any):
    return SeccompBackend(
        host=Host(Path("/nonexistent")), clock_ns=time.time_ns, machine=machine, **options
    )


def inspect(content, machine: str = "x86_64", **options: object):
    kind = backend(machine, **options)
    return kind.inspect(SourceKey(profile_set="dir /x", key="p.json", content=content))


def always_holds(condition):
    """Return whether a condition is always true, because it compares no bits."""
    return (
        condition["op"] == "SCMP_CMP_MASKED_EQ"
        and condition["value"] == condition.get("valueTwo", 0) == 0
    )


def effective(tree):
    """Return, for each system call on x86_64, the action of the first unconditional rule."""
    default = (tree["defaultAction"], tree.get("defaultErrnoRet"))
    actions = {}
    for rule in tree.get("syscalls") or []:
        includes = (rule.get("includes") or {}).get("arches")
        excludes = (rule.get("excludes") or {}).get("arches")
        conditions = [
            condition for condition in rule.get("args") or [] if not always_holds(condition)
        ]
        if conditions or (includes and "amd64" not in includes):
            continue
        if "amd64" in (excludes or []):
            continue
        for name in rule.get("names") or [rule["name"]]:
            actions.setdefault(name, (rule["action"], rule.get("errnoRet")))
    return {name: actions.get(name, default) for name in NAMES}


@given(st.binary(max_size=200) | anything.map(lambda tree: json.dumps(tree).encode()))
def test_any_bytes_are_accepted_or_rejected(content) -> None:
    """Any bytes are either accepted, or rejected with at least one error."""
    inspected = inspect(content)
    if isinstance(inspected, Rejection):
        assert any(finding.severity == "error" for finding in inspected.findings)
    else:
        assert isinstance(inspected, Profile)


@settings(max_examples=300)
@given(profiles, machines, formats)
def test_the_canonical_form_is_its_own_canonical_form(tree, machine, form) -> None:
    """The canonical form of an accepted profile is accepted, and equals its own canonical form."""
    inspected = inspect(json.dumps(tree).encode(), machine, format=form)
    if isinstance(inspected, Profile):
        body = backend(machine, format=form).body(inspected)
        second = inspect(body, machine, format=form)
        assert isinstance(second, Profile)
        assert second.version.body_digest == digest(body)


@settings(max_examples=300)
@given(profiles)
def test_the_canonical_form_has_the_same_effect(tree) -> None:
    """The unconditional rules of the canonical form have the same effect as the rules of the
    profile.
    """
    inspected = inspect(json.dumps(tree).encode())
    if isinstance(inspected, Profile):
        assert effective(json.loads(backend().body(inspected))) == effective(tree)
