"""Tests of the seccomp backend with files in a real directory."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from agent.backends.seccomp.backend import SeccompBackend
from agent.core.finding_codes import FindingCode
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
from agent.core.ownership import has_same_content
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host.filesystem import Host
from agent.host.stat_signature import Signature
from tests.inspection import install
from tests.json_object import JsonObject
from tests.narrowing import instance_of, not_none

AUDIT = b'{"defaultAction":"SCMP_ACT_LOG"}'
CHMOD: JsonObject = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod", "fchmodat", "chmodat"], "action": "SCMP_ACT_ERRNO"}],
}


@pytest.fixture
def backend(tmp_path: Path) -> SeccompBackend:
    return SeccompBackend(
        host=Host(tmp_path), clock_ns=time.time_ns, directory="/seccomp", machine="x86_64"
    )


def source_key(content: bytes | JsonObject, key: str = "a.json", **more: str) -> SourceKey:
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    return SourceKey(profile_set="dir /x", key=key, content=content, **more)


def accepted(backend: SeccompBackend, content: bytes | JsonObject, **more: str) -> Profile:
    profile = backend.inspect(source_key(content, **more))
    assert isinstance(profile, Profile), profile
    return profile


def codes(profile: Profile) -> set[FindingCode]:
    return {finding.code for finding in profile.findings}


# --- check ---------------------------------------------------------------------------------------


def test_prevent_chmod_is_accepted_with_name_and_with_names(backend: SeccompBackend) -> None:
    """The AKS example prevent-chmod is accepted with `name` and with `names` in its rules."""
    old = CHMOD | {
        "syscalls": [
            {"name": name, "action": "SCMP_ACT_ERRNO"} for name in CHMOD["syscalls"][0]["names"]
        ]
    }
    common = {"syscall_ignored", "dangerous_syscalls", "abi_missing", "newer_call_allowed"}
    assert codes(accepted(backend, CHMOD)) == common
    profile = accepted(backend, old)
    assert codes(profile) == common | {"name_rewritten"}
    assert json.loads(not_none(backend.body(profile)))["syscalls"][0] == {
        "names": ["chmod"],
        "action": "SCMP_ACT_ERRNO",
    }


def test_a_profile_without_rules_gets_a_rule_equal_to_its_default(backend: SeccompBackend) -> None:
    """The agent adds a rule that equals the default action to a profile without rules."""
    profile = accepted(backend, AUDIT)
    assert json.loads(not_none(backend.body(profile))) == {
        "defaultAction": "SCMP_ACT_LOG",
        "syscalls": [{"names": ["futex_waitv"], "action": "SCMP_ACT_LOG"}],
    }
    assert codes(profile) == {"rule_added", "not_enforcing", "dangerous_syscalls", "abi_missing"}


def test_an_allow_list_without_execve_causes_a_warning(backend: SeccompBackend) -> None:
    """An allow list without execve causes a warning that no container can start."""
    assert codes(accepted(backend, b'{"defaultAction":"SCMP_ACT_ERRNO"}')) == {
        "rule_added",
        "start_impossible",
        "abi_missing",
    }


def test_dangerous_and_ignored_calls_of_an_allow_list_are_reported(backend: SeccompBackend) -> None:
    """In an allow list, dangerous calls and unknown calls each cause a separate finding."""
    profile = accepted(
        backend,
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
    assert codes(profile) == {"dangerous_syscalls", "start_impossible", "syscall_ignored"}


def test_the_kubernetes_tutorial_profile_is_accepted(backend: SeccompBackend) -> None:
    """The agent accepts fine-grained.json of the Kubernetes tutorial with three warnings."""
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
    profile = accepted(backend, tree)
    assert codes(profile) == {"clone3_denied", "dangerous_syscalls", "start_limited"}
    assert json.loads(not_none(backend.body(profile))) == tree


@pytest.mark.parametrize(
    ("machine", "architectures", "names"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], [["chmod"]]),
        ("aarch64", ["SCMP_ARCH_AARCH64"], [["fchmodat"]]),
    ],
)
def test_architecture_fields_are_resolved_for_the_node(
    tmp_path: Path, machine: str, architectures: list[str], names: list[list[str]]
) -> None:
    """The agent resolves the fields archMap and arches for the architecture of the node."""
    backend = SeccompBackend(host=Host(tmp_path), clock_ns=time.time_ns, machine=machine)
    errno = {"action": "SCMP_ACT_ERRNO"}
    profile = accepted(
        backend,
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
    tree = json.loads(not_none(backend.body(profile)))
    assert "expanded_for_arch" in codes(profile)
    assert tree["architectures"] == architectures
    assert tree["syscalls"] == [{"names": call_names} | errno for call_names in names]


def test_docker_format_keeps_capabilities(tmp_path: Path) -> None:
    """In the docker format, the agent keeps conditions on capabilities, which CRI-O supports, and
    converts errno to errnoRet.
    """
    backend = SeccompBackend(
        host=Host(tmp_path), clock_ns=time.time_ns, machine="x86_64", format="docker"
    )
    rule = {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_BPF"]}}
    tree = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule | {"errno": "EPERM"}]}
    assert json.loads(not_none(backend.body(accepted(backend, tree))))["syscalls"] == [
        rule | {"errnoRet": 1}
    ]


def test_every_profile_is_rejected_on_an_unknown_machine(tmp_path: Path) -> None:
    """The agent rejects profiles for an architecture whose system calls it does not know."""
    rejection = SeccompBackend(host=Host(tmp_path), clock_ns=time.time_ns, machine="pdp11").inspect(
        source_key(AUDIT)
    )
    assert isinstance(rejection, Rejection)
    assert [finding.code for finding in rejection.findings] == ["not_portable"]


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a//b", ".a", "a/.b", "a b", "a..b", "", "a/", "ä", "a" * 201, "a\n"]
)
def test_an_unsafe_path_is_rejected(backend: SeccompBackend, path: str) -> None:
    """The agent rejects a path that leaves the directory or that no pod can reference."""
    rejection = backend.inspect(
        source_key(AUDIT, key="k", name=path) if path else source_key(AUDIT, key="")
    )
    assert isinstance(rejection, Rejection)
    assert "path_unsafe" in {finding.code for finding in rejection.findings}


def test_the_prefix_of_the_profile_set_overrides_the_prefix_of_the_backend(tmp_path: Path) -> None:
    """The prefix of a profile set overrides the prefix of the backend."""
    backend = SeccompBackend(
        host=Host(tmp_path), clock_ns=time.time_ns, prefix="node/", machine="x86_64"
    )
    assert accepted(backend, AUDIT).version.names == ("node/a.json",)
    assert accepted(backend, AUDIT, prefix="set/").version.names == ("set/a.json",)


# --- install and observe -------------------------------------------------------------------------


def test_an_installed_file_has_the_canonical_form_and_is_observed(
    backend: SeccompBackend, tmp_path: Path
) -> None:
    """An installed file has the canonical form. The observed evidence of the file equals the
    expected evidence of its version.
    """
    profile = accepted(backend, AUDIT, prefix="p/")
    token = f"bytes:{digest(not_none(backend.body(profile)))}"
    result = install(backend, profile, replaceable=())
    assert result == Installed(evidence={"p/a.json": frozenset({token})}, modes={})
    assert (tmp_path / "seccomp/p/a.json").read_bytes() == backend.body(profile)
    observation = backend.observe(["p/a.json", "absent"], ["p/a.json", "absent"])
    assert isinstance(observation, Observation)
    assert observation.profiles == {
        "p/a.json": ObservedProfile(
            evidence=frozenset({token}),
            equivalent_evidence=profile.version.evidence["p/a.json"] - {token},
        )
    }
    assert {name: type(use) for name, use in observation.uses.items()} == {"p/a.json": UnknownUse}


def test_a_foreign_file_is_never_replaced(backend: SeccompBackend, tmp_path: Path) -> None:
    """A foreign file stays unchanged, even if it was created after the observation."""
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/a.json").write_bytes(b"theirs")
    result = install(backend, accepted(backend, AUDIT), replaceable=())
    assert isinstance(result, Failed)
    assert result.finding.code == "foreign_name"
    assert (tmp_path / "seccomp/a.json").read_bytes() == b"theirs"
    assert isinstance(install(backend, accepted(backend, AUDIT), replaceable=["a.json"]), Installed)


def test_a_failed_write_is_reported(backend: SeccompBackend, tmp_path: Path) -> None:
    """If a file is at the path of a necessary directory, the installation fails with a finding."""
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/p").write_bytes(b"")
    result = install(backend, accepted(backend, AUDIT, prefix="p/"), replaceable=())
    assert isinstance(result, Failed)
    assert result.finding.code == "write_failed"


def write_foreign_file(tmp_path: Path, content: bytes | dict[str, str | list[JsonObject]]) -> Path:
    """Write a foreign file into the directory of the backend, and return its path."""
    path = tmp_path / "seccomp/a.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o644)
    return path


def is_equal(backend: SeccompBackend, content: bytes | JsonObject) -> bool:
    """Return whether the file in the directory equals a profile."""
    observed = instance_of(backend.observe(["a.json"], []), Observation).profiles["a.json"]
    return has_same_content(accepted(backend, content).version.evidence["a.json"], observed)


ALLOW = "SCMP_ACT_ALLOW"


def after_unknown_names(rule: JsonObject) -> dict[str, str | list[JsonObject]]:
    """Return a profile with a rule after a hundred unknown names."""
    names = [f"unknown{number}" for number in range(100)]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": names, "action": ALLOW}, rule],
    }


def test_a_file_with_the_same_meaning_has_the_canonical_token(
    backend: SeccompBackend, tmp_path: Path
) -> None:
    """A file that every runtime reads like the canonical form has the canonical token, so the agent
    can adopt it.
    """
    write_foreign_file(tmp_path, json.dumps(CHMOD, indent=2).encode())
    assert is_equal(backend, CHMOD)


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
            after_unknown_names(
                {"names": ["chmod"], "action": ALLOW, "includes": {"arches": ["amd64"]}}
            ),
            after_unknown_names({"names": ["chmod"], "action": ALLOW}),
        ),
    ],
    ids=["name", "arches", "without rules", "arches after more warnings than a report contains"],
)
def test_a_file_that_a_runtime_reads_differently_is_not_equal(
    backend: SeccompBackend,
    tmp_path: Path,
    file: bytes | dict[str, str | list[JsonObject]],
    source: bytes | JsonObject,
) -> None:
    """The agent does not adopt a file that containerd or cri-dockerd reads differently."""
    path = write_foreign_file(tmp_path, file)
    tokens = {f"bytes:{digest(path.read_bytes())}"}
    observation = backend.observe(["a.json"], [])
    assert observation == Observation(
        profiles={"a.json": ObservedProfile(evidence=frozenset(tokens))}
    )
    assert not is_equal(backend, source)


def test_a_file_that_other_users_can_write_is_not_equal(
    backend: SeccompBackend, tmp_path: Path
) -> None:
    """The content of a file that other users can write does not count as evidence."""
    path = write_foreign_file(tmp_path, CHMOD)
    assert is_equal(backend, CHMOD)
    path.chmod(0o666)
    assert not is_equal(backend, CHMOD)
    path.chmod(0o644)
    os.chown(path, os.geteuid() + 1000, -1) if os.geteuid() == 0 else path.chmod(0o664)
    assert not is_equal(backend, CHMOD)


class RacingHost(Host):
    """A host on which another process changes a file while the agent reads it back."""

    races = False

    def read_regular(
        self, base: str, name: str, *, limit: int, private: bool = False
    ) -> bytes | None:
        content = super().read_regular(base, name, limit=limit, private=private)
        if self.races:
            Path(self.path(base), name).write_bytes(b"{}")
        return content


def test_a_write_by_another_process_during_an_installation_is_detected(tmp_path: Path) -> None:
    """The backend caches a file only if its signature is the same before and after reading."""
    host = RacingHost(tmp_path)
    backend = SeccompBackend(
        host=host, clock_ns=time.time_ns, directory="/seccomp", machine="x86_64"
    )
    profile = accepted(backend, CHMOD)
    backend.observe(["a.json"], [])
    host.races = True
    assert isinstance(
        backend.install(profile, not_none(backend.body(profile)), replaceable=()), Installed
    )
    host.races = False
    assert not backend.is_unchanged()
    assert not is_equal(backend, CHMOD)


class CoarseHost(Host):
    """A host with coarse time stamps, on which a second write does not change the signature."""

    frozen: dict[str, Signature] | None = None

    def signatures(
        self, base: str, names: Iterable[str] | None = None
    ) -> dict[str, Signature] | None:
        return self.frozen or super().signatures(base, names)

    def signature(self, path: str) -> Signature | None:
        return self.frozen["a.json"] if self.frozen else super().signature(path)


def test_a_recently_written_file_is_read_again(tmp_path: Path) -> None:
    """A recently written file is read again, because two writes within one tick of coarse time
    stamps have the same signature.
    """
    host, clock = CoarseHost(tmp_path), [time.time_ns()]
    backend = SeccompBackend(
        host=host, directory="/seccomp", machine="x86_64", clock_ns=lambda: clock[0]
    )
    path = write_foreign_file(tmp_path, CHMOD)
    backend.observe(["a.json"], [])
    assert backend.is_unchanged()
    host.frozen = host.signatures("/seccomp", ["a.json"])
    path.write_bytes(b"{}")
    clock[0] += 10**10
    assert not backend.is_unchanged()
    assert not is_equal(backend, CHMOD)
    assert backend.is_unchanged()


@pytest.mark.parametrize("what", ["link", "directory", "fifo", "large", "linked parent"])
def test_an_irregular_or_huge_file_is_observed_without_evidence(
    backend: SeccompBackend, tmp_path: Path, what: str
) -> None:
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
    assert backend.observe([name], []) == Observation(
        profiles={name: ObservedProfile(evidence=frozenset())}
    )


def test_an_unreadable_path_makes_the_backend_unobservable(tmp_path: Path) -> None:
    """If a path is unreadable, the backend is unobservable, and does not report the file as
    absent.
    """
    backend = SeccompBackend(
        host=Host(tmp_path), clock_ns=time.time_ns, directory="/seccomp", machine="x86_64"
    )
    (tmp_path / "seccomp").mkdir()
    observation = backend.observe(["a" * 300], [])
    assert isinstance(observation, Unobservable)
    assert observation.finding.code == "kind_unobservable"


# --- remove --------------------------------------------------------------------------------------


def test_remove_checks_the_content_before_it_removes_a_file(
    backend: SeccompBackend, tmp_path: Path
) -> None:
    """The backend removes a file only if the file has the expected content. A missing file is not
    an error.
    """
    profile = accepted(backend, AUDIT)
    evidence = profile.version.evidence
    assert backend.remove(["a.json"], evidence, require_unused=False) == Removed()
    install(backend, profile, replaceable=())
    result = backend.remove(
        ["a.json"], {"a.json": frozenset({"bytes:other"})}, require_unused=False
    )
    assert isinstance(result, Failed)
    assert result.finding.code == "foreign_name"
    held = backend.remove(["a.json"], evidence, require_unused=True)
    assert isinstance(held, StillInUse)
    assert set(held.uses) == {"a.json"}
    assert (tmp_path / "seccomp/a.json").exists()
    assert backend.remove(["a.json"], evidence, require_unused=False) == Removed()
    assert not (tmp_path / "seccomp/a.json").exists()


def test_a_file_with_the_same_meaning_is_not_removed(
    backend: SeccompBackend, tmp_path: Path
) -> None:
    """A file with the same meaning but other bytes is not removed, because only the exact content
    proves that the agent wrote it.
    """
    path = write_foreign_file(tmp_path, CHMOD)
    evidence = accepted(backend, CHMOD).version.evidence
    assert is_equal(backend, CHMOD)
    result = backend.remove(["a.json"], evidence, require_unused=False)
    assert isinstance(result, Failed)
    assert result.finding.code == "foreign_name"
    assert path.exists()


def test_a_link_in_place_of_an_agent_owned_file_is_not_removed(
    backend: SeccompBackend, tmp_path: Path
) -> None:
    """If a link is at the path of an agent-owned file, the link is not removed."""
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/a.json").symlink_to("elsewhere")
    result = backend.remove(
        ["a.json"], accepted(backend, AUDIT).version.evidence, require_unused=False
    )
    assert isinstance(result, Failed)
    assert result.finding.code == "foreign_name"
    assert (tmp_path / "seccomp/a.json").is_symlink()


def test_a_file_that_cannot_be_read_is_not_removed() -> None:
    """A read of /proc/self/mem always fails with EIO."""
    backend = SeccompBackend(
        host=Host("/proc"), clock_ns=time.time_ns, directory="/self", machine="x86_64"
    )
    result = backend.remove(["mem"], {}, require_unused=False)
    assert isinstance(result, Failed)
    assert result.finding.code == "remove_failed"
    assert 'The profile "mem" was not removed: the file cannot be read (' in result.finding.message


def test_every_context_is_accepted(backend: SeccompBackend) -> None:
    """A stored version is valid in every context, because the canonical form depends only on the
    machine.
    """
    assert backend.accepts_context("")


def test_an_input_error_makes_the_backend_unobservable() -> None:
    """An input error makes the backend unobservable. The test reads /proc/self/mem, which always
    fails with EIO.
    """
    backend = SeccompBackend(
        host=Host("/proc"), clock_ns=time.time_ns, directory="/self", machine="x86_64"
    )
    observation = backend.observe(["mem"], [])
    assert isinstance(observation, Unobservable)
    assert observation.finding.code == "kind_unobservable"


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
def test_a_newer_variant_of_a_denied_call_causes_a_warning(
    backend: SeccompBackend, denied: list[str], newer: str
) -> None:
    """If a newer variant of a denied call stays allowed, the profile has a warning."""
    rule = {"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile = accepted(backend, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    messages = [item.message for item in profile.findings if item.code == "newer_call_allowed"]
    assert [f"but {newer} (" in message for message in messages] == [True] * bool(newer)


def test_the_shipped_profile_has_a_hint_about_fchmodat2(backend: SeccompBackend) -> None:
    """The shipped profile prevent-chmod is accepted with the hint that fchmodat2 stays allowed."""
    profile = accepted(backend, Path("profiles/prevent-chmod").read_bytes(), key="prevent-chmod")
    (hint,) = (item.hint for item in profile.findings if item.code == "newer_call_allowed")
    assert "--runtime-floor libseccomp=2.5.5" in hint
