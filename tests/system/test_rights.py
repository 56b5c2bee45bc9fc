"""Tests that the agent works with exactly the rights of its pod."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from agent.core import labels
from tests.system import calls, image, rights, rights_run, vm
from tests.system.test_runtimes import contain

LIMIT_SECONDS = 900
BUDGET_SECONDS = 240
LABELS = {
    f"{labels.DOMAIN}/apparmor": "enabled",
    f"{labels.DOMAIN}/seccomp": "enabled",
    f"{labels.DOMAIN}/selinux": "disabled",
    f"apparmor.{labels.DOMAIN}/k8s-apparmor-example-deny-write": "enforce",
    f"seccomp.{labels.DOMAIN}/prevent-chmod": "installed",
    f"seccomp.{labels.DOMAIN}/profiles__audit.json": "installed",
    f"seccomp.{labels.DOMAIN}/profiles__fine-grained.json": "installed",
    f"seccomp.{labels.DOMAIN}/profiles__violation.json": "installed",
    f"set.{labels.DOMAIN}/profile-loader__node-profiles": "ready",
    f"set.{labels.DOMAIN}/profile-loader__node-profiles-2": "ready",
}
# With these system calls, a process can leave its container, or modify the kernel or another
# process.
MIGHTY = {
    *("bpf", "chroot", "delete_module", "finit_module", "init_module", "kexec_load", "keyctl"),
    *("mknod", "mknodat", "mount", "move_mount", "open_by_handle_at", "open_tree", "pivot_root"),
    *("perf_event_open", "process_vm_readv", "process_vm_writev", "ptrace", "reboot", "setns"),
    *("setuid", "setgid", "swapon", "umount2", "unshare", "userfaultfd", "io_uring_setup"),
}
SCENARIOS = [
    "base one pass",
    "base daemon",
    "privileged daemon",
    "own seccomp daemon",
    "own seccomp as it ships",
]


# The result of a pass with all rights. The pass replaces one AppArmor profile, installs a new
# profile, restores a missing profile, removes a profile that is in no source, and keeps such a
# profile if it is in use. The pass also installs a new seccomp file, and removes a seccomp file
# that no key defines.
EVERYTHING = {
    "status": 0,
    "problems": [],
    "rows": {
        "changed": "installed",
        "fresh": "installed",
        "lost": "installed",
        "gone": "removed",
        "used": "held",
        "new.json": "installed",
        "old.json": "removed",
    },
    "node": ["changed", "fresh", "lost", "used", "changed: replaced", "new.json"],
}
BLIND = "unobservable kind_unobservable"
FILES = {"new.json": "installed", "old.json": "removed"}
NO_APPARMOR = {
    "status": 1,
    "rows": dict.fromkeys(("changed", "fresh", "lost", "gone", "used"), BLIND) | FILES,
    "node": ["changed", "gone", "used", "new.json"],
}
FOUND = {
    "nothing": {},
    # Without this capability, the agent cannot write to the state directory of root, so it stops
    # before the pass and prints no report.
    "uid 0": {
        "status": 2,
        "rows": {},
        "node": ["changed", "gone", "used", "old.json"],
    },
    "MAC_ADMIN": NO_APPARMOR,
    # The agent cannot read the features of the kernel, so it cannot compile profiles or read their
    # names.
    "AppArmor unconfined": {
        **NO_APPARMOR,
        "rows": {
            **dict.fromkeys(("changed.profile", "fresh.profile", "lost.profile"), BLIND),
            **dict.fromkeys(("gone", "used"), BLIND),
            **FILES,
        },
    },
    "hostPID": {
        "rows": EVERYTHING["rows"] | {"gone": "held"},
        "node": ["changed", "fresh", "gone", "lost", "used", "changed: replaced", "new.json"],
    },
    "security writable": NO_APPARMOR,
    # The agent installs no new profile, because the ledger could not record it. The agent still
    # removes and restores recorded profiles, but the ledger keeps the entries of removed profiles.
    # The report also shows that the agent cannot write the record of confined threads.
    "state writable": {
        "status": 1,
        "problems": ["write_failed"],
        "rows": {
            **dict.fromkeys(EVERYTHING["rows"], "failed write_failed"),
            "lost": "installed",
            "used": "held",
        },
        "node": ["changed", "lost", "used"],
    },
    "seccomp writable": {
        "status": 1,
        "rows": EVERYTHING["rows"]
        | {"new.json": "failed write_failed", "old.json": "failed remove_failed"},
        "node": ["changed", "fresh", "lost", "used", "changed: replaced", "old.json"],
    },
    # The agent cannot compile a profile, but it restores a compiled policy from its ledger.
    "tmp writable": {
        "status": 1,
        "rows": {
            **{name: EVERYTHING["rows"][name] for name in ("lost", "gone", "used")},
            "changed": "outdated kind_unsupported",
            "fresh.profile": "unsupported kind_unsupported",
            **FILES,
        },
        "node": ["changed", "lost", "used", "new.json"],
    },
}


# docs/security.md describes the tested rights with these names.
RIGHTS = {
    "uid 0": "runAsUser: 0",
    "MAC_ADMIN": "capabilities.add: [MAC_ADMIN]",
    "AppArmor unconfined": "appArmorProfile: Unconfined",
    "hostPID": "hostPID: true",
    "security writable": "/sys/kernel/security",
    "state writable": "/var/lib/profile-loader",
    "seccomp writable": "/var/lib/kubelet/seccomp",
    "tmp writable": "/tmp",  # noqa: S108 - of the pod
}


@pytest.fixture(scope="module")
def built():
    return image.build()


@pytest.fixture(scope="module")
def guest_lines(built, tmp_path_factory):
    """Return the lines that the guest printed in one run."""
    place = tmp_path_factory.mktemp("drive") / "image"
    with rights_run.prepared() as cluster:
        actual = rights_run.files(built.config, cluster, len(LABELS))
        drives = [rights_run.drive(built.root, place)]
        result = vm.run(
            actual, rights_run.START, timeout_seconds=LIMIT_SECONDS, drives=drives, network=True
        )
    lines = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert lines, result.output
    for line in lines:
        if "seconds" in line:
            print(f"{line.get('scenario') or line['without']}: {line['seconds']} s")
        print(*filter(None, [line.get("note")]), end="\n" * ("note" in line))
    if result.seconds > BUDGET_SECONDS:
        print(f"the guest took {result.seconds:.0f} s; its budget is {BUDGET_SECONDS} s")
    return lines


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_agent_works_with_exactly_these_rights(guest_lines, scenario):
    """Each scenario of tests/system/guest/rights.py succeeds with the rights of the pod."""
    outcomes = {line["scenario"]: line["error"] for line in guest_lines if "scenario" in line}
    assert outcomes.get(scenario, "the scenario did not run") is None, outcomes.get(scenario)


def test_the_shipped_pod_labels_its_node_with_the_installed_profiles(guest_lines):
    """The shipped pod labels its Node, with its own seccomp profile, its own token and the
    admission policy.
    """
    (line,) = [line for line in guest_lines if "labels" in line]
    assert line["labels"] == LABELS


@pytest.mark.parametrize("right", rights_run.WITHOUT)
def test_without_a_right_only_the_functions_that_need_it_fail(guest_lines, right):
    """Without one right, a pass reports the expected rows, and the node has the expected
    profiles.
    """
    (line,) = [line for line in guest_lines if line.get("without") == f"without {right}"]
    result = line["found"]
    expected = EVERYTHING | FOUND[right]
    assert {name: result.get(name) for name in expected} == expected, result


@pytest.fixture
def own():
    return json.loads((rights.ROOT / "components/own-seccomp/agent.json").read_text())


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_runtimes_start_the_agent_under_its_own_profile(runtime, own, built, tmp_path):
    """Runtimes can start the agent under its own profile, which allows the calls that a runtime
    makes after loading the filter.
    """
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["root"]["path"] = str(built.root)
    path.write_text(json.dumps(config))
    command = ["/opt/profile-loader/bin/profile-loader", "--version"]
    strict = {**own, "defaultAction": "SCMP_ACT_KILL_PROCESS"}
    del strict["defaultErrnoRet"]
    status, output = contain(runtime, tmp_path, strict, command)
    assert (status, output.split()[:1]) == (0, ["profile-loader"]), output
    strict["syscalls"][0]["names"].remove("getrandom")
    assert contain(runtime, tmp_path, strict, command)[0] != 0


def test_its_own_profile_is_complete_and_allows_no_dangerous_call(own):
    """The agent's own profile contains all variants of its calls, and no call that can leave the
    container.
    """
    (rule,) = own["syscalls"]
    assert calls.profile(rule["names"]) == own
    assert set(rule["names"]) & MIGHTY == set()


def test_the_page_lists_each_right_that_is_tested():
    """docs/security.md has exactly one row for each tested right."""
    page = Path("docs/security.md").read_text()
    section = page.partition("## Rights")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`|]+)`", section, re.MULTILINE)
    assert sorted(rows) == sorted(RIGHTS[name] for name in rights_run.WITHOUT if name != "nothing")
