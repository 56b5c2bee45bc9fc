"""Specification of the AppArmor kind's answers to faults: no kernel, no parser, odd processes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.backends.apparmor import (
    backend,
    compiled_policy,
    kernel,
    kernel_access,
    parser,
    policy_cache,
)
from agent.core.model import (
    Observation,
    ObservedProfile,
    Pending,
    Rejection,
    SourceKey,
    Unchecked,
    Unobservable,
    Unsupported,
    digest,
)
from agent.host.filesystem import Host
from tests.inspection import inspected
from tests.property.test_apparmor_policy import profile

PROBES = kernel_access.Probes(
    filesystem=lambda _: kernel_access.SECURITYFS_MAGIC, rights=lambda: ""
)


def write(root, path, content=""):
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def node(root, *, revision="7\n"):
    """Make the files that a kernel with AppArmor shows."""
    for name, content in (("revision", revision), (".load", ""), (".replace", ""), (".remove", "")):
        write(root, f"{kernel_access.ROOT}/{name}", content)
    write(root, f"{kernel_access.ROOT}/features/policy/set_load", "yes\n")
    (root / kernel_access.ROOT.lstrip("/") / "policy/profiles").mkdir(parents=True)
    return Host(root)


def loaded(root, directory, name, mode="enforce", **hashes):
    base = f"{kernel_access.ROOT}/policy/profiles/{directory}"
    for file, content in {"name": name, "mode": mode, **hashes}.items():
        write(root, f"{base}/{file}", f"{content}\n")


def agent(host, **options):
    return backend.AppArmorBackend(host=host, **{"probes": PROBES, **options})


def blob(text="profile x {}"):
    return SourceKey(profile_set="dir test", key="key", content=text.encode())


def script(root, text):
    """Make a program that stands in for a parser with a fault."""
    file = write(root, "bin/parser", f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


# --- the kernel ----------------------------------------------------------------------------------


def test_a_kernel_without_apparmor_is_unsupported(tmp_path):
    """No AppArmor below the host root means that this node cannot have profiles."""
    found = agent(Host(tmp_path)).observe(["x"], [])
    assert isinstance(found, Unsupported)
    assert found.finding.code == "kind_unsupported"


def test_apparmor_without_its_files_is_unobservable(tmp_path):
    """AppArmor that is enabled, and cannot be looked at, is not taken for absent."""
    write(tmp_path, "/sys/module/apparmor/parameters/enabled", "Y\n")
    write(tmp_path, "/sys/kernel/security/.keep")
    assert isinstance(agent(Host(tmp_path)).observe(["x"], []), Unobservable)


def test_a_directory_that_is_no_securityfs_is_not_believed(tmp_path):
    """Files that look like AppArmor's prove nothing on another file system."""
    found = agent(node(tmp_path), probes=kernel_access.Probes(rights=lambda: "")).observe(["x"], [])
    assert isinstance(found, Unobservable)
    assert "not a securityfs" in found.finding.message


def test_without_the_right_to_load_the_node_is_unobservable(tmp_path):
    """An agent that could not change policy does not pretend to manage it."""
    probes = kernel_access.Probes(filesystem=PROBES.filesystem, rights=lambda: "no right")
    assert isinstance(agent(node(tmp_path), probes=probes).observe(["x"], []), Unobservable)


def test_a_child_policy_namespace_is_unobservable(tmp_path):
    """Inside a policy namespace (LXD) the host's policy is not seen."""
    host = node(tmp_path)
    write(tmp_path, f"{kernel_access.ROOT}/.ns_level", "1\n")
    assert isinstance(agent(host).observe(["x"], []), Unobservable)


def test_names_come_from_the_name_files_and_hats_with_their_parent(tmp_path):
    """Directory names are mangled by the kernel and never used."""
    host = node(tmp_path)
    loaded(tmp_path, "two_words.1", "two words", raw_sha1="aa", sha1="bb")
    loaded(tmp_path, "two_words.1/profiles/HAT.2", "HAT", mode="complain", sha256="cc")
    loaded(tmp_path, "other.3", "other", sha1="dd")
    assert agent(host).observe(["two words", "two words//HAT", "gone"], []) == Observation(
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


def test_without_any_content_the_object_and_its_last_replacement_are_the_evidence(tmp_path):
    """A kernel that shows no content still shows which object it is, and when it was replaced."""
    host = node(tmp_path)
    boot = write(tmp_path, "/proc/sys/kernel/random/boot_id", "b-o-o-t\n")
    loaded(tmp_path, "x.1", "x")
    mode = host.path(f"{kernel_access.ROOT}/policy/profiles/x.1/mode")
    os.utime(mode, ns=(1, 5))
    found = agent(host).observe(["x"], [])
    path = f"{kernel_access.ROOT}/policy/profiles/x.1"
    assert found.profiles == {
        "x": ObservedProfile(
            evidence=frozenset({f"object:b-o-o-t:{path}:5"}),
            mode="enforce",
            is_agent_object=False,
            is_readable=False,
        )
    }
    assert [one.code for one in found.findings] == ["content_unverifiable"]
    write(tmp_path, f"{kernel_access.ROOT}/revision", "9\n")  # other programs load other profiles
    assert agent(host).observe(["x"], []).profiles == found.profiles
    os.utime(mode, ns=(1, 6))
    assert agent(host).observe(["x"], []).profiles != found.profiles
    boot.write_text("next\n")
    os.utime(mode, ns=(1, 5))
    assert agent(host).observe(["x"], []).profiles != found.profiles


@pytest.mark.parametrize(
    ("hash_policy", "export_binary", "codes"),
    [("N", "N", ["content_unverifiable"]), ("N", "Y", []), ("Y", "N", []), ("Y", "", [])],
)
def test_a_node_without_profiles_says_whether_it_will_show_content(
    tmp_path, hash_policy, export_binary, codes
):
    """The kernel's parameters say it before anything is loaded."""
    host = node(tmp_path)
    for name, value in (("hash_policy", hash_policy), ("export_binary", export_binary)):
        if value:
            write(tmp_path, f"/sys/module/apparmor/parameters/{name}", f"{value}\n")
    assert [one.code for one in agent(host).observe(["x"], []).findings] == codes


def test_policy_that_never_stops_changing_is_unobservable(tmp_path):
    """A list read while the revision changed is no answer."""
    host = node(tmp_path)

    class Restless(kernel.Kernel):
        count = 0

        def revision(self):
            self.count += 1
            return self.count

    assert isinstance(Restless(host, PROBES).observe(["x"]), Unobservable)


def test_an_unreadable_profile_is_not_an_absent_one(tmp_path):
    """A profile whose files cannot be read makes the whole look blind."""
    host = node(tmp_path)
    loaded(tmp_path, "x.1", "x", sha1="aa")
    mode = tmp_path / kernel_access.ROOT.lstrip("/") / "policy/profiles/x.1/mode"
    mode.unlink()
    mode.mkdir()
    assert isinstance(agent(host).observe(["x"], []), Unobservable)


# --- the parser ----------------------------------------------------------------------------------


def test_without_a_parser_nothing_can_be_checked(tmp_path):
    """A missing parser is this node's matter, not the profile's fault."""
    (found,) = inspected(agent(node(tmp_path), parser="/nonexistent"), blob())
    assert isinstance(found, Unchecked)
    assert found.finding.code == "kind_unsupported"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("while :; do :; done", "more than 1 s of CPU time"),
        ("exec head -c 100000000 /dev/zero", "more than 8 MiB of output"),
        ("echo out of memory >&2; exit 1", "MiB of memory"),
    ],
)
def test_a_text_that_exceeds_the_parser_s_limits_is_rejected_until_it_changes(tmp_path, fault, why):
    """A restarted agent remembers the result and does not run the parser again."""
    host = node(tmp_path)
    path = script(tmp_path, f"echo run >> {tmp_path}/runs\n{fault}")
    options = {"parser": path, "cpu_limit": 1.0, "state_dir": "/state"}
    for _ in range(2):
        (found,) = inspected(agent(host, **options), blob())
        assert isinstance(found, Rejection)
        assert [finding.code for finding in found.findings] == ["parser_killed"]
        assert why in found.findings[0].message
    assert (tmp_path / "runs").read_text() == 2 * "run\n"  # the quick run and the full run


@pytest.mark.parametrize("fault", ["kill -9 $$", "exit 10"])
def test_a_signal_never_condemns_a_text(tmp_path, fault):
    """The kernel's OOM killer may have ended the parser, or its child (status ECHILD)."""
    host = node(tmp_path)
    options = {"cpu_limit": 1.0, "state_dir": "/state"}
    (found,) = inspected(agent(host, parser=script(tmp_path, fault), **options), blob())
    assert isinstance(found, Pending)
    assert [finding.code for finding in found.findings] == ["parser_killed"]
    (found,) = inspected(agent(host, parser=script(tmp_path, "exit 0"), **options), blob())
    assert [finding.code for finding in found.findings] == ["no_profile"]


def test_a_wall_clock_limit_never_condemns_a_text(tmp_path):
    """A node may be busy: the text stays pending with the reason, and a new agent compiles it."""
    host = node(tmp_path)
    options = {"cpu_limit": 0.05, "state_dir": "/state"}
    (found,) = inspected(agent(host, parser=script(tmp_path, "exec sleep 600"), **options), blob())
    assert isinstance(found, Pending)
    assert [finding.code for finding in found.findings] == ["parser_killed"]
    (found,) = inspected(agent(host, parser=script(tmp_path, "exit 0"), **options), blob())
    assert [finding.code for finding in found.findings] == ["no_profile"]


def test_a_parser_that_cannot_be_started_makes_the_key_unchecked(tmp_path):
    """The parser is the node's matter: the text is not rejected."""
    path = script(tmp_path, "")
    Path(path).write_text("neither a script nor a program")
    (found,) = inspected(agent(node(tmp_path), parser=path, state_dir="/state"), blob())
    assert isinstance(found, Unchecked)


def test_a_message_is_bounded_printable_and_has_its_line(tmp_path):
    """Bytes that are no UTF-8 and invisible characters are escaped, and length is cut."""
    path = script(
        tmp_path,
        "echo 'Warning: x' >&2;"
        r"printf 'AppArmor parser error at line 7: \377 a\342\200\213b ' >&2;"
        "head -c 9000 /dev/zero | tr '\\0' y | fold -w 100 | tr '\\n' ' ' >&2; exit 1",
    )
    text = "\n" * 7 + "profile x { } # a\u200bb " + "y" * 100 + "\n"
    made = agent(node(tmp_path), parser=path, state_dir="/state")
    (found,) = inspected(made, blob(text))
    assert isinstance(found, Rejection)
    assert [(one.code, one.location) for one in found.findings] == [("parser_rejected", "line 7")]
    what = found.findings[0].message
    assert what.startswith("AppArmor parser error at line 7: \ufffd a\\u200bb yyy")
    assert len(what) == 601


def test_output_that_is_no_policy_is_refused(tmp_path):
    """A layout that is not known could hide a name."""
    path = script(tmp_path, "echo something else")
    (found,) = inspected(agent(node(tmp_path), parser=path, state_dir="/state"), blob())
    assert isinstance(found, Rejection)
    assert [one.code for one in found.findings] == ["policy_unreadable"]


def test_a_second_inspection_runs_no_parser_and_a_new_kernel_does(tmp_path):
    """The cache is keyed by the text and everything the result depends on."""
    host = node(tmp_path)
    path = script(tmp_path, f"echo run >> {tmp_path}/runs")
    options = {"parser": path, "state_dir": "/state"}
    for _ in range(2):
        inspected(agent(host, **options), blob())
    assert (tmp_path / "runs").read_text() == "run\n"
    write(tmp_path, f"{kernel_access.ROOT}/features/policy/versions", "v9\n")
    inspected(agent(host, **options), blob())
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_the_least_recently_used_results_leave_the_disk(tmp_path, monkeypatch):
    """The cache on disk has a limit in bytes, which a restart does not reset."""
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


def test_a_huge_cache_entry_is_not_read(tmp_path):
    """A file that no agent of this version wrote costs no memory."""
    host = Host(tmp_path)
    policy_cache.PolicyCache(host, "/state", write=True).store(
        "key", policy_cache.ParserResult(policy=b"x")
    )
    os.truncate(tmp_path / "state/cache/key", 1 << 30)
    assert policy_cache.PolicyCache(host, "/state", write=True).find("key") is None


def test_a_discarded_profile_leaves_the_memory_and_not_the_disk(tmp_path):
    """A profile without room is found again without another run of the parser."""
    (tmp_path / "policy").write_bytes(profile("x"))
    path = script(tmp_path, f"cat > /dev/null; cat {tmp_path}/policy")
    made = agent(node(tmp_path), parser=path, state_dir="/state")
    (found,) = inspected(made, blob())
    made.discard(found)
    assert (made.cache.memory, made.changes.checked) == ({}, {})
    assert made.inspect(blob()) == found


def test_a_damaged_cache_entry_counts_as_absent(tmp_path):
    """Content is verified on reading."""
    host = Host(tmp_path)
    stored = policy_cache.ParserResult(
        policy=b"policy", error="m", warnings=("n",), exceeded_limit="k"
    )
    policy_cache.PolicyCache(host, "/state", write=True).store("key", stored)
    found = replace(stored, sha256=digest(b"policy"), size=6)
    assert policy_cache.PolicyCache(host, "/state", write=True).find("key") == found
    file = tmp_path / "state/cache/key"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert policy_cache.PolicyCache(host, "/state", write=True).find("key") is None
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert policy_cache.PolicyCache(host, "/state", write=True).find("key") is None


def test_declarations_of_an_older_edition_are_read_from_the_policy_again(tmp_path):
    """An older edition may have read the same policy wrongly."""
    store = policy_cache.PolicyCache(Host(tmp_path), "/state", write=True)
    store.store("key", policy_cache.ParserResult(policy=profile("x")))
    file = tmp_path / "state/cache/key"
    _, line, policy = file.read_bytes().split(b"\n", 2)
    head = json.loads(line) | {"reader": compiled_policy.READER_VERSION - 1, "declared": []}
    line = json.dumps(head).encode()
    file.write_bytes(b"\n".join((digest(line).encode(), line, policy)))
    found = policy_cache.PolicyCache(Host(tmp_path), "/state", write=True).find("key")
    assert found.declared == compiled_policy.read(profile("x"))


def test_a_policy_is_read_from_the_disk_when_it_is_installed(tmp_path):
    """The memory holds what a check needs of a policy, but not its bytes."""
    (tmp_path / "policy").write_bytes(profile("x"))
    path = script(tmp_path, f"cat > /dev/null; cat {tmp_path}/policy")
    made = agent(node(tmp_path), parser=path, state_dir="/state")
    (found,) = inspected(made, blob())
    (file,) = (tmp_path / "state/cache").iterdir()
    assert found.body_size == len(profile("x"))
    assert [one.policy for one in made.cache.memory.values()] == [b""]
    assert made.body(found) == profile("x")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert made.body(found) is None
    assert isinstance(made.inspect(blob()), Pending)
    assert inspected(made, blob()) == [found]
    assert file.read_bytes() == whole


def test_a_policy_that_cannot_be_written_to_the_disk_stays_in_memory(tmp_path):
    """A full disk does not keep the agent from installing what it compiled."""
    (tmp_path / "policy").write_bytes(profile("x"))
    path = script(tmp_path, f"cat > /dev/null; cat {tmp_path}/policy")
    made = agent(node(tmp_path), parser=path, state_dir="/policy")
    (found,) = inspected(made, blob())
    assert made.body(found) == profile("x")


def test_a_changed_include_changes_the_context(tmp_path):
    """A compiled policy is only as current as the files that it included."""
    include = write(tmp_path, "apparmor.d/abstractions/base", "one")
    one = parser.Parser("/bin/true", include_dir=str(tmp_path / "apparmor.d"))
    before = one.input_digest()
    assert one.input_digest() == before
    include.write_text("two!")
    assert one.input_digest() != before


def test_an_include_behind_a_linked_directory_counts_too(tmp_path):
    """The parser follows the link, so the context does; one that leads in a circle ends."""
    include = write(tmp_path, "elsewhere/x", "one")
    top = tmp_path / "apparmor.d"
    top.mkdir()
    (top / "local").symlink_to(include.parent)
    (top / "circle").symlink_to(top)
    one = parser.Parser("/bin/true", include_dir=str(top))
    before = one.input_digest()
    include.write_text("two!")
    assert one.input_digest() != before
