"""Tests the AppArmor backend on a real kernel, inside the virtual machine.

For each case, the program prints `PASS name`, or `FAIL name` with the reason. After a failure, the
exit status is 1. The program needs only the standard library, the agent package and
apparmor_parser.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from inspection import apparmor_backend, compiled, inspected, install

from agent.core.model import InUse, Observation, Profile, Rejection, SourceKey, Unused
from agent.core.ports import Failed, Installed, Removed, StillInUse
from agent.host.filesystem import Host

ROOT = Path("/sys/kernel/security/apparmor")
FEATURES = ROOT / "features"
CASES = []


def case(function):
    CASES.append(function)
    return function


def kind(**options):
    return apparmor_backend(Host("/"), state_dir="/var/lib/profile-loader", **options)


def inspect(text, **options):
    blob = SourceKey(profile_set="dir test", key="key", content=text.encode())
    (result,) = inspected(kind(**options), blob)
    return result


def accepted(text, **options):
    result = inspect(text, **options)
    assert isinstance(result, Profile), result
    return result


def put(text, replaceable=(), agent=None):
    return install(agent or kind(), accepted(text), replaceable)


def installed(text, replaceable=(), agent=None):
    result = put(text, replaceable, agent)
    assert isinstance(result, Installed), result
    return result


def removed(names, evidence, *, require_unused=True):
    return kind().remove(names, evidence, require_unused=require_unused)


def look(*names, removal_candidates=()):
    result = kind().observe(names, removal_candidates)
    assert isinstance(result, Observation), result
    return result


def code(failed):
    assert isinstance(failed, Failed), failed
    return failed.finding.code


def revision():
    return kind().view.revision()


def parser(text, *options):
    return subprocess.run(
        ["apparmor_parser", "-K", *options], input=text.encode(), check=False, capture_output=True
    )


@contextlib.contextmanager
def confined(label, *, command="import time; print(1, flush=True); time.sleep(600)"):
    """Run a process under a label until the block ends."""
    script = (
        "import sys; open('/proc/self/attr/exec', 'w').write('exec ' + sys.argv[1]);"
        "import os; os.execv(sys.executable, [sys.executable, '-c', sys.argv[2]])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, label, command], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline().strip() == "1", "the confined process did not start"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


OPEN = "  file,\n  signal,\n  capability,\n  change_profile,\n"


def text(name, rules="", flags=""):
    return f"profile {name} {flags} {{\n{OPEN}{rules}}}\n"


@case
def a_new_profile_is_loaded_and_verified_by_the_kernels_hashes():
    profile = accepted(text("new"))
    result = install(kind(), profile)
    assert isinstance(result, Installed), result
    fact = look("new").profiles["new"]
    # The kernel's hashes of the whole policy and of the single profile are the hashes that the
    # agent predicted.
    assert fact.evidence <= profile.version.evidence["new"], fact
    assert {token.split(":")[0] for token in fact.evidence} == {"raw", "own"}
    assert (fact.mode, result.modes) == ("enforce", {"new": "enforce"})


@case
def several_profiles_hats_and_children_in_one_key_are_each_verified():
    source = text("many1", "  ^HAT { file, }\n  profile kid /bin/ls flags=(complain) { file, }\n")
    profile = accepted(source + text("many2"))
    result = install(kind(), profile)
    assert isinstance(result, Installed), result
    assert profile.version.names == ("many1", "many1//HAT", "many1//kid", "many2")
    facts = look(*profile.version.names).profiles
    assert {name: fact.mode for name, fact in facts.items()} == {
        "many1": "enforce",
        "many1//HAT": "enforce",
        "many1//kid": "complain",
        "many2": "enforce",
    }
    for name, fact in facts.items():
        assert fact.evidence <= profile.version.evidence[name], (name, fact)


@case
def the_parser_runs_in_a_sandbox_on_this_kernel():
    result = kind().sandbox()
    assert result is not None
    assert result.finding is None, result
    secret = Path("/root/secret")
    secret.write_text("xylophone rest\n")
    reading, writing = os.pipe()
    os.write(writing, b"xylophone rest\n")
    os.close(writing)
    process = f"/proc/{os.getpid()}"
    for path in (secret, f"{process}/root{secret}", f"{process}/fd/{reading}", "/root/missing"):
        source = f'profile x {{\n  capability # see the abi\n  include "{path}"\n  ,\n}}\n'
        run = compiled(
            kind().inspector.parser, source.encode(), ("--kernel-features", str(FEATURES))
        )
        assert run.error.endswith(f"Could not open '{path}'"), (path, run.error)


@case
def the_sandboxed_parser_reads_the_kernels_features_and_the_shipped_features():
    for abi in ("", "abi <abi/3.0>,\n", "abi <kernel>,\n"):
        rules = "  file,\n  include <abstractions/base>\n"
        source = f"{abi}include <tunables/global>\nprofile x {{\n{rules}}}\n".encode()
        run = compiled(kind().inspector.parser, source, ("--kernel-features", str(FEATURES)))
        free = subprocess.run(
            ["apparmor_parser", "-Q", "-K", "-S", "--kernel-features", str(FEATURES)],
            input=source,
            check=True,
            capture_output=True,
        )
        assert (run.error, run.policy) == ("", free.stdout), abi


@case
def a_profile_that_another_program_loaded_is_never_replaced():
    assert parser(text("foreign"), "-r").returncode == 0
    before = look("foreign").profiles
    assert code(put(text("foreign", "  deny /x w,\n"))) == "foreign_name"
    assert look("foreign").profiles == before


@case
def a_foreign_profile_in_a_key_prevents_the_replacement_of_the_whole_key():
    installed(text("mixed1"))
    parser(text("mixed2"), "-r")
    before = look("mixed1", "mixed2").profiles
    both = text("mixed1", "  deny /x w,\n") + text("mixed2", "  deny /x w,\n")
    assert code(put(both, replaceable=["mixed1"])) == "foreign_name"
    assert look("mixed1", "mixed2").profiles == before


@case
def a_changed_profile_is_replaced_under_the_running_process():
    installed(text("change"))
    with confined("change") as child:
        installed(text("change", "  deny /x w,\n", "flags=(complain)"), replaceable=["change"])
        label = Path(f"/proc/{child.pid}/attr/current").read_text().strip()
    assert label == "change (complain)"


@case
def a_profile_that_is_added_to_an_installed_key_is_loaded():
    installed(text("grow"))
    result = installed(text("grow", "  ^H { file, }\n") + text("grow2"), replaceable=["grow"])
    assert sorted(result.evidence) == ["grow", "grow//H", "grow2"]


@case
def a_replacement_by_another_program_is_noticed():
    result = installed(text("drift"))
    parser(text("drift", "  deny /y w,\n"), "-r")
    assert not look("drift").profiles["drift"].evidence & result.evidence["drift"]


@case
def complain_mode_set_by_another_program_is_noticed():
    result = installed(text("mode"))
    parser(text("mode"), "-r", "-C")
    fact = look("mode").profiles["mode"]
    assert fact.mode == "complain"
    assert not fact.evidence & result.evidence["mode"]


@case
def an_unused_profile_is_removed_and_an_absent_one_counts_as_removed():
    result = installed(text("gone") + text("gone2"))
    names = ["gone", "gone2"]
    assert removed(names, result.evidence) == Removed()
    assert look(*names).profiles == {}
    assert removed(names, result.evidence) == Removed()


@case
def content_of_another_program_is_never_removed():
    result = installed(text("other"))
    parser(text("other", "  deny /y w,\n"), "-r")
    assert code(removed(["other"], result.evidence)) == "foreign_name"
    assert "other" in look("other").profiles


@case
def a_child_that_another_program_added_prevents_the_removal_of_its_parent():
    result = installed(text("host"))
    parser(text("host2", "  profile kid { file, }\n"), "-r")
    blob = subprocess.run(
        ["apparmor_parser", "-QKS"],
        capture_output=True,
        check=True,
        input=text("host", "  profile kid { file, }\n").encode(),
    ).stdout
    (ROOT / ".replace").write_bytes(blob)
    facts = look("host", "host//kid").profiles
    evidence = {"host": facts["host"].evidence}
    assert code(removed(["host"], evidence)) == "foreign_name"
    assert set(look("host", "host//kid").profiles) == {"host", "host//kid"}
    assert result.evidence["host"]


@case
def a_dropped_hat_is_removed_alone():
    first = installed(text("hatted", "  ^A { file, }\n  ^B { file, }\n"))
    second = installed(text("hatted", "  ^A { file, }\n"), replaceable=["hatted", "hatted//A"])
    assert "hatted//B" in look("hatted//B").profiles
    # This removal does not require that the profile is proved unused, because Linux 6.1 offers no
    # way to prove this for a hat.
    assert removed(["hatted//B"], first.evidence, require_unused=False) == Removed()
    assert set(look("hatted", "hatted//A", "hatted//B").profiles) == {"hatted", "hatted//A"}
    assert second.evidence["hatted"] & look("hatted").profiles["hatted"].evidence


@case
def a_profile_in_use_is_not_removed():
    result = installed(text("used"))
    with confined("used") as child:
        assert removed(["used"], result.evidence) == StillInUse(
            uses={"used": InUse(pids=(child.pid,))}
        )
        assert "used" in look("used").profiles
    assert removed(["used"], result.evidence) == Removed()


@case
def a_parent_is_in_use_through_its_child():
    result = installed(text("par", "  profile kid { file, signal, change_profile, }\n"))
    with confined("par//kid") as child:
        seen = look("par", "par//kid", removal_candidates=["par", "par//kid"])
        assert seen.uses == {"par": InUse(pids=(child.pid,)), "par//kid": InUse(pids=(child.pid,))}
        assert isinstance(removed(["par", "par//kid"], result.evidence), StillInUse)


@case
def a_stacked_profile_is_in_use():
    result = installed(text("stack1"))
    installed(text("stack2"))
    with confined("stack1//&stack2") as child:
        label = Path(f"/proc/{child.pid}/attr/current").read_text()
        assert "//&" in label, label
        assert isinstance(removed(["stack1"], result.evidence), StillInUse)


@case
def a_profile_is_in_use_through_a_single_thread():
    result = installed(text("thread"))
    ready, end = threading.Event(), threading.Event()

    def run():
        own = f"/proc/self/task/{threading.get_native_id()}/attr/current"
        Path(own).write_text("changeprofile thread")
        ready.set()
        end.wait()

    one = threading.Thread(target=run)
    one.start()
    try:
        assert ready.wait(10)
        assert Path("/proc/self/attr/current").read_text().strip() == "unconfined"
        uses = {"thread": InUse(pids=(os.getpid(),))}
        assert removed(["thread"], result.evidence) == StillInUse(uses=uses)
    finally:
        end.set()
        one.join()


SIGNAL_RULES = {
    "": False,
    "signal,": True,
    "signal (receive) peer=unconfined,": True,
    "signal (send) peer=unconfined,": False,
    "signal (receive) set=(term) peer=unconfined,": False,
    "signal (receive) set=(kill) peer=unconfined,": False,
    "signal (receive) set=(term kill) peer=unconfined,": True,
    "signal (receive) peer=other,": False,
    "signal, deny signal (receive) set=(kill),": False,
}


def is_stopped(name, number):
    """Return whether the kernel lets this unconfined process send a signal to a process."""
    with confined(name) as child:
        try:
            child.send_signal(number)
        except PermissionError:
            installed(text(name), replaceable=[name])
            return False
        return child.wait() == -number


@case
def the_kernel_denies_stop_signals_to_the_profiles_with_a_warning():
    for rules, can_be_stopped in SIGNAL_RULES.items():
        source = f"profile stop {{\n  file,\n  capability,\n  change_profile,\n  {rules}\n}}\n"
        result = accepted(source)
        is_warned = any(finding.code == "stop_impossible" for finding in result.findings)
        assert is_warned != can_be_stopped, (rules, result.findings)
        stopped = []
        for number in (signal.SIGTERM, signal.SIGKILL):
            assert isinstance(install(kind(), result, ["stop"]), Installed)
            stopped.append(is_stopped("stop", number))
        assert all(stopped) == can_be_stopped, (rules, stopped)


@case
def an_unused_profile_is_proven_unused():
    installed(text("idle"))
    assert look("idle", removal_candidates=["idle"]).uses == {"idle": Unused()}


@case
def inspecting_and_observing_do_not_change_the_revision():
    installed(text("quiet"))
    before = revision()
    accepted(text("quiet"))
    look("quiet", removal_candidates=["quiet"])
    assert revision() == before


@case
def a_second_inspection_starts_no_parser():
    accepted(text("cached"))
    agent = kind()
    result = agent.inspect(
        SourceKey(profile_set="dir test", key="key", content=text("cached").encode())
    )
    assert isinstance(result, Profile), result


@case
def what_is_compiled_mediates_as_the_parser_itself_would():
    source = "profile abi {\n  ptrace read,\n  network inet,\n  signal,\n  mount,\n}\n"
    blob = subprocess.run(
        ["apparmor_parser", "-QKS"], input=source.encode(), capture_output=True, check=True
    ).stdout
    assert kind().body(accepted(source)) == blob


@case
def names_that_jam_the_kernel_are_rejected():
    for name, expected in (("n" * 201, "name_unsafe"), ('"a//b"', "name_unsafe")):
        result = inspect(text(name))
        assert isinstance(result, Rejection), result
        assert [item.code for item in result.findings] == [expected], result


def jam():
    """Load a foreign profile whose name is too long, so that the kernel rejects all later loads."""
    result = parser(text("j" * 300 + str(time.monotonic_ns())), "-a")
    assert result.returncode != 0, "the name was not too long"


@case
def a_jammed_kernel_recovers_by_an_identical_replacement_of_an_agent_owned_profile():
    agent = kind()
    profile = accepted(text("own"))
    assert isinstance(install(agent, profile), Installed)
    number = revision()
    jam()
    assert parser(text("witness"), "-a").returncode != 0, "the kernel is not jammed"
    result = install(agent, accepted(text("after")))
    assert isinstance(result, Installed), result
    assert revision() == number + 2
    assert "after" in look("after").profiles


@case
def a_jammed_replacement_of_an_agent_owned_profile_is_repeated():
    installed(text("jreplace"))
    jam()
    installed(text("jreplace", "  deny /x w,\n"), replaceable=["jreplace"])


@case
def a_jam_that_cannot_be_resolved_is_reported():
    jam()
    assert code(put(text("hopeless"))) == "kernel_jammed"
    # This command makes the kernel usable again for the next case.
    installed(text("own", "  deny /z w,\n"), replaceable=["own"])


@case
def a_policy_that_the_kernel_rejects_is_reported_with_its_reason():
    profile = accepted(text("broken"))
    body = kind().body(profile)
    broken = body.replace(b"\x04\x07\x00caps64\x00", b"\x04\x07\x00caps65\x00")
    failed = kind().install(profile, broken, replaceable=())
    assert code(failed) == "kernel_refused", failed
    assert "EPROTO" in failed.finding.message, failed
    assert "broken" not in look("broken").profiles


@case
def a_profile_in_unconfined_mode_is_rejected():
    result = inspect(text("loose", flags="flags=(unconfined)"))
    assert [item.code for item in result.findings] == ["unconfined_refused"], result


@case
def without_the_right_to_load_nothing_is_observed():
    script = (
        "import sys; sys.path.insert(0, '.');"
        "from inspection import apparmor_backend;"
        "from agent.host.filesystem import Host;"
        "found = apparmor_backend(Host('/')).observe(['x'], []);"
        "print(type(found).__name__, found.finding.code)"
    )
    dropped = ["setpriv", "--bounding-set=-mac_admin", "--inh-caps=-mac_admin"]
    result = subprocess.run(
        [*dropped, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "Unobservable kind_unobservable", result


@case
def in_another_pid_namespace_no_profile_is_proven_unused():
    installed(text("nsuse"))
    script = (
        "import sys; sys.path.insert(0, '.');"
        "from inspection import apparmor_backend;"
        "from agent.host.filesystem import Host;"
        "uses = apparmor_backend(Host('/')).observe(['nsuse'], ['nsuse']).uses;"
        "print(type(uses['nsuse']).__name__)"
    )
    result = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "UnknownUse", result


def main():
    failed = 0
    only = sys.argv[1:]
    for function in CASES:
        name = function.__name__
        if only and name not in only:
            continue
        try:
            function()
        except Exception:  # noqa: BLE001 - a failed case must not hide the others
            failed += 1
            sys.stdout.write(f"FAIL {name}\n{traceback.format_exc()}\n")
        else:
            sys.stdout.write(f"PASS {name}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
