"""Tests of the AppArmor backend under faults of the kernel, the parser and the cache."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.backends.apparmor import (
    compiled_policy,
    kernel_access,
    parser,
    policy_cache,
)
from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.core.model import (
    Observation,
    ObservedProfile,
    Pending,
    Profile,
    Rejection,
    SourceKey,
    Unchecked,
    Unobservable,
    Unsupported,
    digest,
)
from agent.host.filesystem import Host
from tests import inspection
from tests.inspection import inspected
from tests.narrowing import instance_of, not_none
from tests.property.test_apparmor_policy import profile

PROBES = replace(
    kernel_access.SYSTEM_PROBES,
    filesystem=lambda _: kernel_access.SECURITYFS_MAGIC,
    rights=lambda: "",
)


def write(root: Path, path: str, content: str = "") -> Path:
    """Write a file in a host root, and return its path."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def node(root: Path, *, revision: str = "7\n") -> Host:
    """Create the files of a kernel with AppArmor, and return the host."""
    for name, content in (("revision", revision), (".load", ""), (".replace", ""), (".remove", "")):
        write(root, f"{kernel_access.ROOT}/{name}", content)
    write(root, f"{kernel_access.ROOT}/features/policy/set_load", "yes\n")
    (root / kernel_access.ROOT.lstrip("/") / "policy/profiles").mkdir(parents=True)
    return Host(root)


def loaded(root: Path, directory: str, name: str, mode: str = "enforce", **hashes: str) -> None:
    """Create the files of a loaded profile."""
    base = f"{kernel_access.ROOT}/policy/profiles/{directory}"
    for file, content in {"name": name, "mode": mode, **hashes}.items():
        write(root, f"{base}/{file}", f"{content}\n")


def apparmor_backend(host: Host, **options: Any) -> AppArmorBackend:
    """Return a backend that accepts ordinary files as securityfs."""
    return inspection.apparmor_backend(host, **{"probes": PROBES, **options})


def source_key(text: str = "profile x {}") -> SourceKey:
    """Return a key with a text."""
    return SourceKey(profile_set="dir test", key="key", content=text.encode())


def script(root: Path, text: str) -> str:
    """Create a shell script that replaces the parser and return its path."""
    file = write(root, "bin/parser", f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


# --- the kernel ----------------------------------------------------------------------------------


def test_a_kernel_without_apparmor_is_unsupported(tmp_path: Path) -> None:
    """If the host root contains no files of AppArmor, the kind is unsupported."""
    result = apparmor_backend(Host(tmp_path)).observe(["x"], [])
    assert isinstance(result, Unsupported)
    assert result.finding.code == "kind_unsupported"


def test_apparmor_without_its_files_is_unobservable(tmp_path: Path) -> None:
    """If AppArmor is enabled but its files are missing, the kind is unobservable."""
    write(tmp_path, "/sys/module/apparmor/parameters/enabled", "Y\n")
    write(tmp_path, "/sys/kernel/security/.keep")
    assert isinstance(apparmor_backend(Host(tmp_path)).observe(["x"], []), Unobservable)


def test_files_on_another_file_system_than_securityfs_are_not_trusted(tmp_path: Path) -> None:
    """The agent does not trust files with the expected names if their file system is not
    securityfs.
    """
    probes = replace(kernel_access.SYSTEM_PROBES, rights=lambda: "")
    result = apparmor_backend(node(tmp_path), probes=probes).observe(["x"], [])
    assert isinstance(result, Unobservable)
    assert "not a securityfs" in result.finding.message


def test_without_the_right_to_load_the_node_is_unobservable(tmp_path: Path) -> None:
    """If the agent may not load policy, the kind is unobservable."""
    probes = replace(PROBES, rights=lambda: "no right")
    assert isinstance(
        apparmor_backend(node(tmp_path), probes=probes).observe(["x"], []), Unobservable
    )


def test_a_child_policy_namespace_is_unobservable(tmp_path: Path) -> None:
    """In a child policy namespace, as in LXD, the kind is unobservable, because the policy of the
    host is not visible.
    """
    host = node(tmp_path)
    write(tmp_path, f"{kernel_access.ROOT}/.ns_level", "1\n")
    assert isinstance(apparmor_backend(host).observe(["x"], []), Unobservable)


def test_names_are_read_from_the_name_files(tmp_path: Path) -> None:
    """The agent reads names from the `name` files, because the kernel changes the directory names.

    The name of a hat begins with the name of its parent.
    """
    host = node(tmp_path)
    loaded(tmp_path, "two_words.1", "two words", raw_sha1="aa", sha1="bb")
    loaded(tmp_path, "two_words.1/profiles/HAT.2", "HAT", mode="complain", sha256="cc")
    loaded(tmp_path, "other.3", "other", sha1="dd")
    assert apparmor_backend(host).observe(
        ["two words", "two words//HAT", "gone"], []
    ) == Observation(
        profiles={
            "two words": ObservedProfile(
                evidence=frozenset({"raw:sha1:aa", "own:sha1:bb"}),
                mode="enforce",
                is_agent_object=False,
            ),
            "two words//HAT": ObservedProfile(
                evidence=frozenset({"own:sha256:cc"}), mode="complain", is_agent_object=False
            ),
        }
    )


def test_without_content_the_evidence_is_the_object_and_its_last_replacement(
    tmp_path: Path,
) -> None:
    """A kernel without hashes still shows which object has a name and when it was replaced."""
    host = node(tmp_path)
    boot = write(tmp_path, "/proc/sys/kernel/random/boot_id", "b-o-o-t\n")
    loaded(tmp_path, "x.1", "x")
    mode = host.path(f"{kernel_access.ROOT}/policy/profiles/x.1/mode")
    os.utime(mode, ns=(1, 5))
    result = instance_of(apparmor_backend(host).observe(["x"], []), Observation)
    path = f"{kernel_access.ROOT}/policy/profiles/x.1"
    assert result.profiles == {
        "x": ObservedProfile(
            evidence=frozenset({f"object:b-o-o-t:{path}:5"}),
            mode="enforce",
            is_agent_object=False,
            is_readable=False,
        )
    }
    assert [finding.code for finding in result.findings] == ["content_unverifiable"]
    # Other programs load further profiles.
    write(tmp_path, f"{kernel_access.ROOT}/revision", "9\n")
    assert (
        instance_of(apparmor_backend(host).observe(["x"], []), Observation).profiles
        == result.profiles
    )
    os.utime(mode, ns=(1, 6))
    assert (
        instance_of(apparmor_backend(host).observe(["x"], []), Observation).profiles
        != result.profiles
    )
    boot.write_text("next\n")
    os.utime(mode, ns=(1, 5))
    assert (
        instance_of(apparmor_backend(host).observe(["x"], []), Observation).profiles
        != result.profiles
    )


@pytest.mark.parametrize(
    ("hash_policy", "export_binary", "codes"),
    [("N", "N", ["content_unverifiable"]), ("N", "Y", []), ("Y", "N", []), ("Y", "", [])],
)
def test_a_node_without_profiles_reports_whether_content_can_be_verified(
    tmp_path: Path, hash_policy: str, export_binary: str, codes: list[str]
) -> None:
    """Even on a node without profiles, the agent reports whether content can be verified."""
    host = node(tmp_path)
    for name, value in (("hash_policy", hash_policy), ("export_binary", export_binary)):
        if value:
            write(tmp_path, f"/sys/module/apparmor/parameters/{name}", f"{value}\n")
    assert [
        finding.code
        for finding in instance_of(apparmor_backend(host).observe(["x"], []), Observation).findings
    ] == codes


def test_policy_that_never_stops_changing_is_unobservable(tmp_path: Path) -> None:
    """If the policy revision changes during every attempt, the kind is unobservable."""
    host = node(tmp_path)

    class ChangingView(PolicyView):
        count = 0

        def revision(self) -> int:
            self.count += 1
            return self.count

    view = ChangingView(host, RawDataRelease(host, PROBES))
    assert isinstance(view.observe(["x"]), Unobservable)


def test_an_unreadable_profile_does_not_count_as_missing(tmp_path: Path) -> None:
    """If the files of one profile cannot be read, the profile does not count as missing."""
    host = node(tmp_path)
    loaded(tmp_path, "x.1", "x", sha1="aa")
    mode = tmp_path / kernel_access.ROOT.lstrip("/") / "policy/profiles/x.1/mode"
    mode.unlink()
    mode.mkdir()
    assert isinstance(apparmor_backend(host).observe(["x"], []), Unobservable)


# --- the parser ----------------------------------------------------------------------------------


def test_without_a_parser_a_text_cannot_be_checked(tmp_path: Path) -> None:
    """If the parser is missing, the text is not checked and therefore not rejected."""
    (result,) = inspected(apparmor_backend(node(tmp_path), parser="/nonexistent"), source_key())
    assert isinstance(result, Unchecked)
    assert result.finding.code == "kind_unsupported"
    assert "--apparmor-parser" in result.finding.hint


def test_a_parser_that_does_not_start_is_not_reported_as_missing(tmp_path: Path) -> None:
    """If an installed parser cannot be started, the next step is not to install the parser."""
    path = script(tmp_path, "")
    Path(path).write_bytes(b"\x7fELF\x02\x01" + bytes(100))
    (result,) = inspected(
        apparmor_backend(node(tmp_path), parser=path, state_dir="/state"), source_key()
    )
    assert isinstance(result, Unchecked)
    assert "Install" not in result.finding.hint
    assert "apparmor_parser --version" in result.finding.hint


@pytest.mark.parametrize(
    ("checking", "step"), [(True, "which contains this directory"), (False, "Boot a kernel")]
)
def test_without_a_features_file_the_next_step_depends_on_the_kernel(
    tmp_path: Path, checking, step
) -> None:
    """On a node without AppArmor, the missing features file is not the problem to solve."""
    backend = apparmor_backend(
        Host(tmp_path),
        parser=script(tmp_path, "exit 0"),
        include_dir=str(tmp_path / "empty"),
        checking=checking,
    )
    (result,) = inspected(backend, source_key())
    assert isinstance(result, Unchecked)
    assert "abi contains no features file" in result.finding.message
    assert step in result.finding.hint


def test_a_parser_that_can_compress_runs_without_compression(tmp_path: Path) -> None:
    """The agent reads only uncompressed policies."""
    path = script(tmp_path, f'# zstd-compress-level\necho "$@" > {tmp_path}/options')
    inspected(apparmor_backend(node(tmp_path), parser=path), source_key())
    assert "--zstd-compress-level=0" in (tmp_path / "options").read_text()


def test_an_older_parser_gets_no_option_for_compression(tmp_path: Path) -> None:
    """apparmor_parser before 5.0 rejects the option."""
    path = script(tmp_path, f'echo "$@" > {tmp_path}/options')
    inspected(apparmor_backend(node(tmp_path), parser=path), source_key())
    assert "zstd" not in (tmp_path / "options").read_text()


def test_a_compressed_policy_is_reported_as_compressed(tmp_path: Path) -> None:
    """The message states that the policy is compressed, instead of an unknown tag."""
    path = script(tmp_path, r"printf '\001\003\0\0\0\0\0\0\050\265\057\375rest'")
    (result,) = inspected(apparmor_backend(node(tmp_path), parser=path), source_key())
    assert isinstance(result, Rejection)
    (finding,) = result.findings
    assert finding.code == "policy_unreadable"
    assert "it is compressed with zstd" in finding.message


@pytest.mark.parametrize(
    ("fault", "step"),
    [("kill -9 $$", "apparmor_parser -Q -K FILE"), ("exec sleep 600", "simplify the rules")],
)
def test_the_next_step_after_a_failed_run_depends_on_the_failure(
    tmp_path: Path, fault, step
) -> None:
    """A text that crashes the parser has another next step than a text that takes too long."""
    options = {"cpu_limit": 0.05, "state_dir": "/state"}
    (result,) = inspected(
        apparmor_backend(node(tmp_path), parser=script(tmp_path, fault), **options), source_key()
    )
    assert isinstance(result, Pending)
    assert step in result.findings[0].hint


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("while :; do :; done", "more than 1 s of CPU time"),
        ("exec head -c 100000000 /dev/zero", "more than 8 MiB of output"),
        ("echo out of memory >&2; exit 1", "MiB of memory"),
    ],
)
def test_a_text_that_exceeds_the_parser_s_limits_is_rejected_until_it_changes(
    tmp_path: Path, fault: str, reason: str
) -> None:
    """A text that exceeds a limit stays rejected until it changes. A restarted agent reads the
    rejection from the cache.
    """
    host = node(tmp_path)
    path = script(tmp_path, f"echo run >> {tmp_path}/runs\n{fault}")
    options = {"parser": path, "cpu_limit": 1.0, "state_dir": "/state"}
    for _ in range(2):
        (result,) = inspected(apparmor_backend(host, **options), source_key())
        assert isinstance(result, Rejection)
        assert [finding.code for finding in result.findings] == ["parser_killed"]
        assert reason in result.findings[0].message
    assert (tmp_path / "runs").read_text() == 2 * "run\n"  # one quick run and one full run


@pytest.mark.parametrize("fault", ["kill -9 $$", "exit 10"])
def test_a_signal_never_causes_a_rejection(tmp_path: Path, fault: str) -> None:
    """If a signal kills the parser or its child process (status ECHILD), the agent does not reject
    the text.
    """
    host = node(tmp_path)
    options = {"cpu_limit": 1.0, "state_dir": "/state"}
    (result,) = inspected(
        apparmor_backend(host, parser=script(tmp_path, fault), **options), source_key()
    )
    assert isinstance(result, Pending)
    assert [finding.code for finding in result.findings] == ["parser_killed"]
    (result,) = inspected(
        apparmor_backend(host, parser=script(tmp_path, "exit 0"), **options), source_key()
    )
    assert [finding.code for finding in instance_of(result, Rejection).findings] == ["no_profile"]


def test_a_wall_clock_limit_never_causes_a_rejection(tmp_path: Path) -> None:
    """If a run exceeds the wall-clock limit, the text stays pending, and a restarted agent compiles
    it.
    """
    host = node(tmp_path)
    options = {"cpu_limit": 0.05, "state_dir": "/state"}
    (result,) = inspected(
        apparmor_backend(host, parser=script(tmp_path, "exec sleep 600"), **options), source_key()
    )
    assert isinstance(result, Pending)
    assert [finding.code for finding in result.findings] == ["parser_killed"]
    (result,) = inspected(
        apparmor_backend(host, parser=script(tmp_path, "exit 0"), **options), source_key()
    )
    assert [finding.code for finding in instance_of(result, Rejection).findings] == ["no_profile"]


def test_a_parser_that_cannot_be_started_makes_the_key_unchecked(tmp_path: Path) -> None:
    """If the parser cannot be started, the key is not checked and therefore not rejected."""
    path = script(tmp_path, "")
    Path(path).write_text("neither a script nor a program")
    (result,) = inspected(
        apparmor_backend(node(tmp_path), parser=path, state_dir="/state"), source_key()
    )
    assert isinstance(result, Unchecked)


def test_a_message_is_bounded_and_printable_and_has_its_line(tmp_path: Path) -> None:
    """A message contains the line of the mistake. The agent escapes invisible characters, and
    truncates a long message.
    """
    path = script(
        tmp_path,
        "echo 'Warning: x' >&2;"
        r"printf 'AppArmor parser error at line 7: \377 a\342\200\213b ' >&2;"
        "head -c 9000 /dev/zero | tr '\\0' y | fold -w 100 | tr '\\n' ' ' >&2; exit 1",
    )
    text = "\n" * 7 + "profile x { } # a\u200bb " + "y" * 100 + "\n"
    backend = apparmor_backend(node(tmp_path), parser=path, state_dir="/state")
    (result,) = inspected(backend, source_key(text))
    assert isinstance(result, Rejection)
    assert [(finding.code, finding.location) for finding in result.findings] == [
        ("parser_rejected", "line 7")
    ]
    what = result.findings[0].message
    assert what.startswith("AppArmor parser error at line 7: \ufffd a\\u200bb yyy")
    assert len(what) == 601


def test_output_that_is_not_a_policy_is_rejected(tmp_path: Path) -> None:
    """If the output of the parser is not a policy, the text is rejected."""
    path = script(tmp_path, "echo something else")
    (result,) = inspected(
        apparmor_backend(node(tmp_path), parser=path, state_dir="/state"), source_key()
    )
    assert isinstance(result, Rejection)
    assert [finding.code for finding in result.findings] == ["policy_unreadable"]


def test_a_second_inspection_runs_no_parser_and_a_new_kernel_does(tmp_path: Path) -> None:
    """A second inspection uses the cached result. A new kernel causes a run of the parser, because
    the kernel affects the result.
    """
    host = node(tmp_path)
    path = script(tmp_path, f"echo run >> {tmp_path}/runs")
    options = {"parser": path, "state_dir": "/state"}
    for _ in range(2):
        inspected(apparmor_backend(host, **options), source_key())
    assert (tmp_path / "runs").read_text() == "run\n"
    write(tmp_path, f"{kernel_access.ROOT}/features/policy/versions", "v9\n")
    inspected(apparmor_backend(host, **options), source_key())
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_the_least_recently_used_results_are_removed_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the cache exceeds its limit, also after a restart, the least recently used results are
    removed from the disk.
    """
    host = Host(tmp_path)
    monkeypatch.setattr(policy_cache, "MAX_DISK_BYTES", 3500)
    first = policy_cache.PolicyCache(host, "/state", write=True)
    for number, key in enumerate(("one", "two", "three")):
        first.store(key, policy_cache.ParserResult(policy=b"x" * 700))
        os.utime(tmp_path / "state/cache" / key, (number, number))
    assert first.find("one") is not None
    first.store("four", policy_cache.ParserResult(policy=b"x" * 700))
    first.store("five", policy_cache.ParserResult(policy=b"x" * 700))
    names = {file.name for file in (tmp_path / "state/cache").iterdir()}
    assert names == {"one", "four", "five"}
    os.utime(tmp_path / "state/cache/four", (9, 9))
    policy_cache.PolicyCache(host, "/state", write=True).store(
        "six", policy_cache.ParserResult(policy=b"x" * 700)
    )
    names = {file.name for file in (tmp_path / "state/cache").iterdir()}
    assert names == {"four", "five", "six"}


def test_a_huge_cache_entry_is_not_read(tmp_path: Path) -> None:
    """A cache file that is too large is not read into memory."""
    host = Host(tmp_path)
    policy_cache.PolicyCache(host, "/state", write=True).store(
        "key", policy_cache.ParserResult(policy=b"x")
    )
    os.truncate(tmp_path / "state/cache/key", 1 << 30)
    assert policy_cache.PolicyCache(host, "/state", write=True).find("key") is None


def test_a_discarded_profile_stays_on_the_disk(tmp_path: Path) -> None:
    """If a profile was discarded from memory, the agent reads it from the disk without a run of the
    parser.
    """
    (tmp_path / "policy").write_bytes(profile("x"))
    path = script(tmp_path, f"cat > /dev/null; cat {tmp_path}/policy")
    backend = apparmor_backend(node(tmp_path), parser=path, state_dir="/state")
    (result,) = inspected(backend, source_key())
    backend.discard(instance_of(result, Profile))
    assert backend.inspector.cache.memory == {}
    assert backend.inspect(source_key()) == result


def test_a_damaged_cache_entry_counts_as_missing(tmp_path: Path) -> None:
    """The agent verifies a cache entry when it reads the entry. A damaged entry counts as
    missing.
    """
    host = Host(tmp_path)
    stored = policy_cache.ParserResult(
        policy=b"policy",
        error="m",
        warnings=("n",),
        exceeded_limit="k",
        is_memory_exceeded=True,
    )
    policy_cache.PolicyCache(host, "/state", write=True).store("key", stored)
    result = replace(stored, sha256=digest(b"policy"), size=6)
    assert policy_cache.PolicyCache(host, "/state", write=True).find("key") == result
    file = tmp_path / "state/cache/key"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert policy_cache.PolicyCache(host, "/state", write=True).find("key") is None
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert policy_cache.PolicyCache(host, "/state", write=True).find("key") is None


def test_a_policy_is_read_again_by_a_newer_reader(tmp_path: Path) -> None:
    """A newer version of the reader reads a cached policy again, because an older version may have
    read it incorrectly.
    """
    store = policy_cache.PolicyCache(Host(tmp_path), "/state", write=True)
    store.store("key", policy_cache.ParserResult(policy=profile("x")))
    file = tmp_path / "state/cache/key"
    _, line, policy = file.read_bytes().split(b"\n", 2)
    head = json.loads(line) | {"reader": compiled_policy.READER_VERSION - 1, "declared": []}
    line = json.dumps(head).encode()
    file.write_bytes(b"\n".join((digest(line).encode(), line, policy)))
    result = not_none(policy_cache.PolicyCache(Host(tmp_path), "/state", write=True).find("key"))
    assert result.declared == compiled_policy.read(profile("x"))


def test_a_policy_is_read_from_the_disk_when_it_is_installed(tmp_path: Path) -> None:
    """Until a policy is installed, only its declared profiles are in memory. The installation reads
    the policy from the disk.
    """
    (tmp_path / "policy").write_bytes(profile("x"))
    path = script(tmp_path, f"cat > /dev/null; cat {tmp_path}/policy")
    backend = apparmor_backend(node(tmp_path), parser=path, state_dir="/state")
    (result,) = inspected(backend, source_key())
    (file,) = (tmp_path / "state/cache").iterdir()
    assert instance_of(result, Profile).body_size == len(profile("x"))
    assert [entry.policy for entry in backend.inspector.cache.memory.values()] == [b""]
    assert backend.body(instance_of(result, Profile)) == profile("x")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert backend.body(instance_of(result, Profile)) is None
    assert isinstance(backend.inspect(source_key()), Pending)
    assert inspected(backend, source_key()) == [result]
    assert file.read_bytes() == whole


def test_a_policy_that_cannot_be_written_to_the_disk_stays_in_memory(tmp_path: Path) -> None:
    """If the disk is full, the compiled policy stays in memory and can be installed."""
    (tmp_path / "policy").write_bytes(profile("x"))
    path = script(tmp_path, f"cat > /dev/null; cat {tmp_path}/policy")
    backend = apparmor_backend(node(tmp_path), parser=path, state_dir="/policy")
    (result,) = inspected(backend, source_key())
    assert backend.body(instance_of(result, Profile)) == profile("x")


def test_a_changed_include_changes_the_context(tmp_path: Path) -> None:
    """If an included file changes, the context changes, so a policy that was compiled with the old
    file is outdated.
    """
    include = write(tmp_path, "apparmor.d/abstractions/base", "one")
    parser_ = parser.Parser("/bin/true", include_dir=str(tmp_path / "apparmor.d"))
    before = parser_.input_digest()
    assert parser_.input_digest() == before
    include.write_text("two!")
    assert parser_.input_digest() != before


def test_an_include_in_a_linked_directory_changes_the_context(tmp_path: Path) -> None:
    """A change of an included file in a linked directory changes the context. The agent follows a
    link to a parent directory only once.
    """
    include = write(tmp_path, "elsewhere/x", "one")
    top = tmp_path / "apparmor.d"
    top.mkdir()
    (top / "local").symlink_to(include.parent)
    (top / "circle").symlink_to(top)
    parser_ = parser.Parser("/bin/true", include_dir=str(top))
    before = parser_.input_digest()
    include.write_text("two!")
    assert parser_.input_digest() != before
