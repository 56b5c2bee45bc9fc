"""The seccomp backend on a real directory: it checks, observes, installs and removes."""

import json
import os
import time
from pathlib import Path

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.model import (
    Observation,
    ObservedProfile,
    Profile,
    Rejection,
    SourceKey,
    UnknownUse,
    Unobservable,
    digest,
)
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host.filesystem import Host
from tests.inspection import install

AUDIT = b'{"defaultAction":"SCMP_ACT_LOG"}'
CHMOD = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod", "fchmodat", "chmodat"], "action": "SCMP_ACT_ERRNO"}],
}


@pytest.fixture
def kind(tmp_path):
    return SeccompBackend(host=Host(tmp_path), directory="/seccomp", machine="x86_64")


def blob(content, key="a.json", **more):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    return SourceKey(profile_set="dir /x", key=key, content=content, **more)


def accepted(kind, content, **more):
    found = kind.inspect(blob(content, **more))
    assert isinstance(found, Profile), found
    return found


def codes(profile):
    return {finding.code for finding in profile.findings}


# --- check ---------------------------------------------------------------------------------------


def test_prevent_chmod_is_accepted_in_both_forms(kind):
    """The old name form and the names form of the AKS document's example are accepted."""
    old = CHMOD | {
        "syscalls": [
            {"name": name, "action": "SCMP_ACT_ERRNO"} for name in CHMOD["syscalls"][0]["names"]
        ]
    }
    common = {"syscall_ignored", "dangerous_syscalls", "abi_missing", "newer_call_allowed"}
    assert codes(accepted(kind, CHMOD)) == common
    found = accepted(kind, old)
    assert codes(found) == common | {"name_rewritten"}
    assert json.loads(kind.body(found))["syscalls"][0] == {
        "names": ["chmod"],
        "action": "SCMP_ACT_ERRNO",
    }


def test_rule_less_profile_gets_one_rule_equal_to_its_default(kind):
    """A profile without rules gets one, since cri-dockerd ignores it otherwise."""
    found = accepted(kind, AUDIT)
    assert json.loads(kind.body(found)) == {
        "defaultAction": "SCMP_ACT_LOG",
        "syscalls": [{"names": ["futex_waitv"], "action": "SCMP_ACT_LOG"}],
    }
    assert codes(found) == {"rule_added", "not_enforcing", "dangerous_syscalls", "abi_missing"}


def test_allow_list_without_execve_is_warned_about(kind):
    """With a denying default and neither execve nor exit_group, no container starts."""
    assert codes(accepted(kind, b'{"defaultAction":"SCMP_ACT_ERRNO"}')) == {
        "rule_added",
        "start_impossible",
        "abi_missing",
    }


def test_allow_list_reports_dangerous_and_ignored_calls(kind):
    """With a denying default, dangerous calls cause a finding, and unknown calls another."""
    found = accepted(
        kind,
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {
                    "names": ["execve", "exit_group", "bpf", "mseal", "arm_fadvise64_64"],
                    "action": "SCMP_ACT_ALLOW",
                }
            ],
        },
    )
    assert codes(found) == {"dangerous_syscalls", "start_impossible", "syscall_ignored"}


def test_fine_grained_is_accepted(kind):
    """The fine-grained.json of the Kubernetes tutorial is accepted with three warnings."""
    text = """
        accept4 epoll_wait pselect6 futex madvise epoll_ctl getsockname setsockopt vfork mmap read
        write close arch_prctl sched_getaffinity munmap brk rt_sigaction rt_sigprocmask sigaltstack
        gettid clone bind socket openat readlinkat exit_group epoll_create1 listen rt_sigreturn
        sched_yield clock_gettime connect dup2 epoll_pwait execve exit fcntl getpid getuid ioctl
        mprotect nanosleep open poll recvfrom sendto set_tid_address setitimer writev fstatfs
        getdents64 pipe2 getrlimit
    """
    tree = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": text.split(), "action": "SCMP_ACT_ALLOW"}],
    }
    found = accepted(kind, tree)
    assert codes(found) == {"clone3_denied", "dangerous_syscalls", "start_limited"}
    assert json.loads(kind.body(found)) == tree


@pytest.mark.parametrize(
    ("machine", "architectures", "names"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], [["chmod"]]),
        ("aarch64", ["SCMP_ARCH_AARCH64"], [["fchmodat"]]),
    ],
)
def test_architecture_fields_are_expanded_for_the_node(tmp_path, machine, architectures, names):
    """The fields archMap and arches are evaluated for the node's architecture."""
    kind = SeccompBackend(host=Host(tmp_path), machine=machine)
    errno = {"action": "SCMP_ACT_ERRNO"}
    found = accepted(
        kind,
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
            ],
            "syscalls": [
                {"names": ["chmod"], "includes": {"arches": ["amd64"]}} | errno,
                {"names": ["fchmodat"], "excludes": {"arches": ["amd64"]}} | errno,
            ],
        },
    )
    tree = json.loads(kind.body(found))
    assert "expanded_for_arch" in codes(found)
    assert tree["architectures"] == architectures
    assert tree["syscalls"] == [{"names": one} | errno for one in names]


def test_docker_format_keeps_capabilities(tmp_path):
    """The docker format keeps caps, which CRI-O honours, and turns errno into errnoRet."""
    kind = SeccompBackend(host=Host(tmp_path), machine="x86_64", format="docker")
    rule = {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_BPF"]}}
    tree = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule | {"errno": "EPERM"}]}
    assert json.loads(kind.body(accepted(kind, tree)))["syscalls"] == [rule | {"errnoRet": 1}]


def test_unknown_machine_is_rejected(tmp_path):
    """On an architecture without a table of calls, every profile is rejected."""
    found = SeccompBackend(host=Host(tmp_path), machine="pdp11").inspect(blob(AUDIT))
    assert isinstance(found, Rejection)
    assert [finding.code for finding in found.findings] == ["not_portable"]


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a//b", ".a", "a/.b", "a b", "a..b", "", "a/", "ä", "a" * 201, "a\n"]
)
def test_unsafe_path_is_rejected(kind, path):
    """A path that a pod cannot reference, or that leaves the directory, is rejected."""
    found = kind.inspect(blob(AUDIT, key="k", name=path) if path else blob(AUDIT, key=""))
    assert isinstance(found, Rejection)
    assert "path_unsafe" in {finding.code for finding in found.findings}


def test_prefix_of_the_set_goes_before_that_of_the_kind(tmp_path):
    """The prefix of the source key takes precedence over the prefix of the backend."""
    kind = SeccompBackend(host=Host(tmp_path), prefix="node/", machine="x86_64")
    assert accepted(kind, AUDIT).version.names == ("node/a.json",)
    assert accepted(kind, AUDIT, prefix="set/").version.names == ("set/a.json",)


# --- install and observe -------------------------------------------------------------------------


def test_an_installation_writes_the_canonical_form_and_observe_reads_it(kind, tmp_path):
    """An installed file is observed with the evidence that the inspection predicted."""
    profile = accepted(kind, AUDIT, prefix="p/")
    token = f"bytes:{digest(kind.body(profile))}"
    put = install(kind, profile, replaceable=())
    assert put == Installed(evidence={"p/a.json": frozenset({token})}, modes={})
    assert (tmp_path / "seccomp/p/a.json").read_bytes() == kind.body(profile)
    seen = kind.observe(["p/a.json", "absent"], ["p/a.json", "absent"])
    assert isinstance(seen, Observation)
    assert seen.profiles == {
        "p/a.json": ObservedProfile(evidence=profile.version.evidence["p/a.json"])
    }
    assert {name: type(use) for name, use in seen.uses.items()} == {"p/a.json": UnknownUse}


def test_foreign_file_is_never_replaced(kind, tmp_path):
    """A foreign file stays, even if it appeared after the observation."""
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/a.json").write_bytes(b"theirs")
    put = install(kind, accepted(kind, AUDIT), replaceable=())
    assert isinstance(put, Failed)
    assert put.finding.code == "foreign_name"
    assert (tmp_path / "seccomp/a.json").read_bytes() == b"theirs"
    assert isinstance(install(kind, accepted(kind, AUDIT), replaceable=["a.json"]), Installed)


def test_an_installation_that_cannot_write_reports_it(kind, tmp_path):
    """A file in the place of the directory is reported as a failed write."""
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/p").write_bytes(b"")
    put = install(kind, accepted(kind, AUDIT, prefix="p/"), replaceable=())
    assert isinstance(put, Failed)
    assert put.finding.code == "write_failed"


def there(tmp_path, content):
    """Write a foreign file into the directory of the backend; return its path."""
    path = tmp_path / "seccomp/a.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o644)
    return path


def equal(kind, content):
    """Return whether the file in the directory is equal to a profile."""
    seen = kind.observe(["a.json"], [])
    return bool(
        seen.profiles["a.json"].evidence & accepted(kind, content).version.evidence["a.json"]
    )


ALLOW = "SCMP_ACT_ALLOW"


def flood(rule):
    """Return a profile with a rule after a hundred unknown names."""
    names = [f"unknown{number}" for number in range(100)]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": names, "action": ALLOW}, rule],
    }


def test_file_of_the_same_meaning_shares_the_canonical_token(kind, tmp_path):
    """A file with another form but the same meaning for every runtime can be adopted."""
    there(tmp_path, json.dumps(CHMOD, indent=2).encode())
    assert equal(kind, CHMOD)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            {**CHMOD, "syscalls": [{"name": "chmod", "action": "SCMP_ACT_ERRNO"}]},
            {**CHMOD, "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]},
        ),
        (
            {
                **CHMOD,
                "syscalls": [
                    {
                        "names": ["chmod"],
                        "action": "SCMP_ACT_ERRNO",
                        "includes": {"arches": ["amd64"]},
                    }
                ],
            },
            {**CHMOD, "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]},
        ),
        (AUDIT, AUDIT),
        (
            flood({"names": ["chmod"], "action": ALLOW, "includes": {"arches": ["amd64"]}}),
            flood({"names": ["chmod"], "action": ALLOW}),
        ),
    ],
    ids=["name", "arches", "without rules", "arches after more warnings than a report contains"],
)
def test_a_file_that_some_runtime_reads_otherwise_is_no_equal(kind, tmp_path, file, source):
    """A file that containerd or cri-dockerd reads differently is not adopted."""
    path = there(tmp_path, file)
    tokens = {f"bytes:{digest(path.read_bytes())}"}
    seen = kind.observe(["a.json"], [])
    assert seen == Observation(profiles={"a.json": ObservedProfile(evidence=frozenset(tokens))})
    assert not equal(kind, source)


def test_a_file_that_others_may_change_is_no_equal_and_drift(kind, tmp_path):
    """Others can change the file at any time, so it is neither adopted nor unchanged."""
    path = there(tmp_path, CHMOD)
    assert equal(kind, CHMOD)
    path.chmod(0o666)
    assert not equal(kind, CHMOD)
    path.chmod(0o644)
    os.chown(path, os.geteuid() + 1000, -1) if os.geteuid() == 0 else path.chmod(0o664)
    assert not equal(kind, CHMOD)


class RacingHost(Host):
    """A host on which another process changes a file while the agent reads it back."""

    races = False

    def read_regular(self, base, name, *, limit):
        content = super().read_regular(base, name, limit=limit)
        if self.races:
            Path(self.path(base), name).write_bytes(b"{}")
        return content


def test_a_write_by_another_process_during_an_installation_is_noticed(tmp_path):
    """The cached fact needs the same signature before and after the file is read back."""
    host = RacingHost(tmp_path)
    kind = SeccompBackend(host=host, directory="/seccomp", machine="x86_64")
    profile = accepted(kind, CHMOD)
    kind.observe(["a.json"], [])
    host.races = True
    assert isinstance(kind.install(profile, kind.body(profile), replaceable=()), Installed)
    host.races = False
    assert not kind.is_unchanged()
    assert not equal(kind, CHMOD)


class CoarseHost(Host):
    """A host with coarse time stamps: a second write does not change the signature."""

    frozen = None

    def signatures(self, base, names):
        return self.frozen or super().signatures(base, names)

    def signature(self, path):
        return self.frozen["a.json"] if self.frozen else super().signature(path)


def test_a_file_that_was_young_when_it_was_read_is_read_again(tmp_path):
    """Where time stamps are coarse, a second write within one tick keeps the signature."""
    host, clock = CoarseHost(tmp_path), [time.time_ns()]
    kind = SeccompBackend(
        host=host, directory="/seccomp", machine="x86_64", clock_ns=lambda: clock[0]
    )
    path = there(tmp_path, CHMOD)
    kind.observe(["a.json"], [])
    assert kind.is_unchanged()
    host.frozen = host.signatures("/seccomp", ["a.json"])
    path.write_bytes(b"{}")
    clock[0] += 10**10
    assert not kind.is_unchanged()
    assert not equal(kind, CHMOD)
    assert kind.is_unchanged()


@pytest.mark.parametrize("what", ["link", "directory", "fifo", "large", "linked parent"])
def test_an_object_that_is_not_a_regular_file_is_observed_but_not_comparable(kind, tmp_path, what):
    """Links, directories, FIFOs and huge files are observed without blocking."""
    base = tmp_path / "seccomp"
    base.mkdir()
    match what:
        case "link":
            (base / "a").symlink_to("/etc/passwd")
        case "directory":
            (base / "a").mkdir()
        case "fifo":
            os.mkfifo(base / "a")
        case "large":
            (base / "a").write_bytes(b" " * ((1 << 20) + 1))
        case _:
            (base / "x").symlink_to("/etc")
    name = "x/passwd" if what == "linked parent" else "a"
    assert kind.observe([name], []) == Observation(
        profiles={name: ObservedProfile(evidence=frozenset())}
    )


def test_unreadable_is_blind(tmp_path):
    """An unreadable path makes the backend unobservable, and is not an absent file."""
    kind = SeccompBackend(host=Host(tmp_path), directory="/seccomp", machine="x86_64")
    (tmp_path / "seccomp").mkdir()
    seen = kind.observe(["a" * 300], [])
    assert isinstance(seen, Unobservable)
    assert seen.finding.code == "kind_unobservable"


# --- remove --------------------------------------------------------------------------------------


def test_remove_checks_the_file_again_before_it_removes(kind, tmp_path):
    """Agent-owned content is removed, other content is held, and an absent file is no error."""
    profile = accepted(kind, AUDIT)
    evidence = profile.version.evidence
    assert kind.remove(["a.json"], evidence, require_unused=False) == Removed()
    install(kind, profile, replaceable=())
    kept = kind.remove(["a.json"], {"a.json": frozenset({"bytes:other"})}, require_unused=False)
    assert isinstance(kept, Failed)
    assert kept.finding.code == "foreign_name"
    held = kind.remove(["a.json"], evidence, require_unused=True)
    assert isinstance(held, StillInUse)
    assert set(held.uses) == {"a.json"}
    assert (tmp_path / "seccomp/a.json").exists()
    assert kind.remove(["a.json"], evidence, require_unused=False) == Removed()
    assert not (tmp_path / "seccomp/a.json").exists()


def test_link_in_place_of_our_file_is_not_removed(kind, tmp_path):
    """A link that replaced an agent-owned file stays."""
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/a.json").symlink_to("elsewhere")
    kept = kind.remove(["a.json"], accepted(kind, AUDIT).version.evidence, require_unused=False)
    assert isinstance(kept, Failed)
    assert kept.finding.code == "foreign_name"
    assert (tmp_path / "seccomp/a.json").is_symlink()


def test_every_context_fits(kind):
    """The canonical form depends only on the machine, so every context fits."""
    assert kind.accepts_context("")


def test_an_input_error_is_not_an_absent_file():
    """A file whose read fails with EIO makes the kind unobservable (/proc/self/mem always does)."""
    kind = SeccompBackend(host=Host("/proc"), directory="/self", machine="x86_64")
    seen = kind.observe(["mem"], [])
    assert isinstance(seen, Unobservable)
    assert seen.finding.code == "kind_unobservable"


@pytest.mark.parametrize(
    ("denied", "newer"),
    [
        (["chmod", "fchmod", "fchmodat"], "fchmodat2"),
        (["openat"], "openat2"),
        (["clone"], "clone3"),
        (["openat", "openat2"], ""),
        (["mount"], ""),
    ],
)
def test_a_newer_variant_of_a_denied_call_causes_a_warning(kind, denied, newer):
    """Under an allow default the newer call stays allowed, and no runtime reports it."""
    rule = {"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    found = accepted(kind, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    told = [one.message for one in found.findings if one.code == "newer_call_allowed"]
    assert [f"but {newer} (" in one for one in told] == [True] * bool(newer)


def test_the_shipped_profile_reports_the_calls_that_it_does_not_deny(kind):
    """prevent-chmod is accepted, with the warning that fchmodat2 stays allowed."""
    found = accepted(kind, Path("profiles/prevent-chmod").read_bytes(), key="prevent-chmod")
    (hint,) = (one.hint for one in found.findings if one.code == "newer_call_allowed")
    assert hint.startswith("libseccomp 2.5.4 does not know fchmodat2")
