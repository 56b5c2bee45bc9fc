"""Scenarios for single passes on a real AppArmor kernel, run as root in the virtual machine.

Each scenario is a function. `scenarios.py` runs all scenarios, each with a clean state, and prints
one line of JSON for each of them: {"scenario": name, "error": null or the reason}.
"""

import json
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from node_tools import (
    RELEASES_HATS,
    SECCOMP,
    SOURCE,
    STATE,
    STRIDE,
    Confined,
    agent,
    clean,
    codes,
    content,
    loaded,
    parser,
    plain,
    revision,
    rows,
    source,
)

HERE = Path(__file__).parent


def shipped_profiles_are_loaded_and_confine():
    """The shipped profiles are loaded, and a process under the profile deny-write cannot write."""
    report, _ = agent(f"--source=dir:{HERE.parent / 'profiles'}", "--allow-empty")
    assert loaded()["k8s-apparmor-example-deny-write"] == "enforce", loaded()
    assert (SECCOMP / "profiles/audit.json").is_file()
    assert (SECCOMP / "prevent-chmod").is_file()
    before = subprocess.run(["touch", "/tmp/allowed"], check=False)  # noqa: S108
    code = (
        "import os\n"
        "fd = os.open('/proc/thread-self/attr/apparmor/current', os.O_WRONLY)\n"
        "os.write(fd, b'changeprofile k8s-apparmor-example-deny-write')\n"
        "os.close(fd)\n"
        "print(open('/proc/thread-self/attr/current').read().strip())\n"
        "try:\n    open('/tmp/denied', 'w')\nexcept PermissionError:\n    print('denied')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert before.returncode == 0
    assert result.stdout.split("\n")[:2] == [
        "k8s-apparmor-example-deny-write (enforce)",
        "denied",
    ], result
    assert all(one["state"] == "installed" for one in report["profiles"]), rows(report)


def an_update_replaces_the_loaded_policy():
    """If a text changes, the next pass loads the new version under the same name."""
    source(web=plain("web"))
    agent()
    old = content("web")
    source(web=plain("web", "deny /etc/shadow r,"))
    report, _ = agent()
    assert rows(report) == {"web": ("installed", "changed")}, rows(report)
    assert content("web") != old


def enforce_and_complain_follow_the_source():
    """If the mode of a profile changes in the source, the next pass loads the new mode."""
    source(web="profile web flags=(complain) {\n  file,\n}\n")
    report, _ = agent()
    assert (loaded()["web"], report["profiles"][0]["mode"]) == ("complain", "complain")
    source(web="profile web {\n  file,\n}\n")
    report, _ = agent()
    assert (loaded()["web"], report["profiles"][0]["mode"]) == ("enforce", "enforce")


def a_foreign_profile_is_not_changed():
    """The agent neither replaces nor removes a profile that an administrator loaded."""
    assert parser(plain("web", "deny /x r,"), "-a")[0] == 0
    old = content("web")
    source(web=plain("web"), other=plain("other"))
    report, _ = agent(status=1)
    assert rows(report)["web"][0] == "foreign", rows(report)
    assert rows(report)["other"] == ("installed", "new"), rows(report)
    assert content("web") == old
    source(other=plain("other"))
    agent()
    assert content("web") == old


def a_foreign_profile_of_the_same_content_is_adopted():
    """A foreign profile with the desired content is adopted. The profile stays after its key is
    removed.
    """
    assert parser(plain("web"), "-a")[0] == 0
    source(web=plain("web"), other=plain("other"))
    report, _ = agent()
    assert rows(report)["web"] == ("installed", "same content"), rows(report)
    source(other=plain("other"))
    agent()
    assert "web" in loaded()


def a_replacement_by_another_program_is_repaired():
    """If another program changes the rules or the mode of a profile, or removes it, the next pass
    repairs it.
    """
    source(web=plain("web"))
    agent()
    mine = content("web")
    for text, *flags in (
        (plain("web", "deny /x r,"), "-r"),
        (plain("web"), "-C", "-r"),
        (plain("web"), "-R"),
    ):
        assert parser(text, *flags)[0] == 0
        assert content("web") != mine
        report, _ = agent()
        assert rows(report)["web"][1] in ("drifted", "went missing"), rows(report)
        assert (content("web"), loaded()["web"]) == (mine, "enforce")


def a_profile_in_use_is_held_until_its_processes_end():
    """A profile is kept while a process or a single thread runs under it."""
    for thread in (False, True):
        source(web=plain("web"), other=plain("other"))
        agent()
        source(other=plain("other"))
        with Confined("web", thread=thread):
            report, _ = agent()
            assert rows(report)["web"] == ("held", "in_use"), (thread, rows(report))
            assert "web" in loaded()
        report, _ = agent()
        assert rows(report)["web"][0] == "removed", rows(report)
        assert "web" not in loaded()


HATS = (
    "profile web {\n  file,\n  signal,\n  change_profile,\n"
    "  ^HAT {\n    file,\n    signal,\n  }\n}\n"
)


def a_hat_in_use_holds_its_parent():
    """While a process is in a hat, the hat and its parent stay loaded."""
    source(web=HATS, other=plain("other"))
    agent()
    assert {"web", "web//HAT"} <= set(loaded())
    source(other=plain("other"))
    with Confined("web", hat="HAT"):
        agent()
        assert {"web", "web//HAT"} <= set(loaded())
    report, _ = agent()
    assert (set(loaded()) == {"other"}) == RELEASES_HATS, loaded()
    assert RELEASES_HATS or "use_unknown" in codes(report)["web.profile"], codes(report)


def a_dropped_hat_is_removed():
    """If a new text omits a hat, the hat is removed after its disuse is proven, and its parent
    stays.
    """
    source(web=HATS)
    agent()
    source(web=plain("web"))
    agent()
    report, _ = agent()
    assert "web" in loaded()
    assert ("web//HAT" not in loaded()) == RELEASES_HATS, loaded()
    assert RELEASES_HATS or "use_unknown" in codes(report)["web.profile"], codes(report)


def a_renamed_key_keeps_its_profile_loaded():
    """If only the name of a key changes, the policy in the kernel does not change."""
    source(old=plain("web"))
    agent()
    before = revision()
    source(new=plain("web"))
    report, _ = agent()
    assert rows(report) == {"web": ("installed", "renamed")}, rows(report)
    assert revision() == before


def names_that_jam_the_kernel_are_rejected():
    """The agent never passes a name to the kernel that would make every later load fail."""
    source(long=plain("n" * 253), orphan=plain("nobody//child"), good=plain("good"))
    before = revision()
    report, _ = agent(status=1)
    assert codes(report) == {"long.profile": ["name_unsafe"], "orphan.profile": ["name_unsafe"]}, (
        codes(report)
    )
    assert set(loaded()) == {"good"}
    assert revision() != before


def a_jammed_kernel_recovers_in_a_pass():
    """If another program has blocked the policy interface of the kernel, a pass of the agent still
    loads a profile.
    """
    source(first=plain("first"))
    agent()
    status, _ = parser(plain("x" * 300), "-a")
    assert status != 0
    assert parser(plain("stranger"), "-a")[0] != 0, "the kernel is not jammed"
    source(first=plain("first"), second=plain("second"))
    report, _ = agent()
    assert rows(report)["second"] == ("installed", "new"), rows(report)
    assert {"first", "second"} <= set(loaded())


def a_pass_without_changes_has_no_effect():
    """A second pass without changes starts no process, writes no file, and does not change the
    policy revision.
    """
    source(web=HATS, other=plain("other"))
    (SOURCE / "audit.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    agent()
    before = revision()
    report, output = agent(mode="list")
    effects = [
        line
        for line in output.splitlines()
        if line.startswith("effect ") and not line.endswith(" 'lock'")
    ]
    assert effects == [], effects
    assert revision() == before
    assert {one["action"] for one in report["profiles"]} == {"keep"}, rows(report)


def _tree(path):
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in sorted(path.rglob("*"))
        if one.is_file() and "cache" not in one.parts
    }


def _end():
    """Return the state after a pass: the loaded content, the files and the ledger entries."""
    policy = {name: (mode, content(name)) for name, mode in loaded().items()}
    entries = sorted(
        json.dumps(json.loads(one.read_text()), sort_keys=True)
        for one in (STATE / "entries").glob("*.json")
    )
    return policy, _tree(SECCOMP), entries


def an_agent_killed_at_any_step_reaches_the_same_state():
    """If the agent is killed before any effect of a pass, the next pass reaches the state of an
    uninterrupted pass.
    """

    def first():
        source(stays=plain("stays"), goes=plain("goes"), changes=plain("changes"))
        (SOURCE / "goes.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
        agent()

    def second():
        source(stays=plain("stays"), changes=plain("changes", "deny /x r,"), new=plain("new"))
        (SOURCE / "new.json").write_text('{"defaultAction": "SCMP_ACT_ERRNO"}')

    clean()
    first()
    second()
    agent("--prune=always")
    expected = _end()
    step, limit = 0, 200
    begin = time.monotonic()
    while step < limit:
        clean()
        first()
        second()
        report, _ = agent("--prune=always", mode=f"kill:{step}", status=None)
        killed = not report
        agent("--prune=always")
        result = _end()
        assert result == expected, (step, expected, result)
        if not killed:
            break
        step += STRIDE
    assert 5 < step < limit, step
    seconds = time.monotonic() - begin
    note = f"killed before {step // STRIDE} side effects, every {STRIDE}th one, in {seconds:.0f} s"
    print(json.dumps({"note": note}))


def profiles_are_restored_after_a_reboot_without_any_source():
    """If no profile is loaded, the agent restores all profiles from the ledger, without a
    source.
    """
    source(web=plain("web"))
    agent()
    mine = content("web")
    assert parser(plain("web"), "-R")[0] == 0
    shutil.rmtree(SOURCE)
    agent(command="restore")
    assert content("web") == mine


def the_last_good_policy_needs_neither_parser_nor_includes():
    """Profiles are restored from the ledger after a reboot, even if an include file is broken."""
    include = Path("/etc/apparmor.d/abstractions/for-the-test")
    include.write_text("/etc/hostname r,\n")
    try:
        source(web="profile web {\n  include <abstractions/for-the-test>\n}\n")
        agent()
        mine = content("web")
        include.write_text("nonsense\n")
        assert parser(plain("web"), "-R")[0] == 0
        agent(command="restore")
        assert content("web") == mine
        assert parser(plain("web"), "-R")[0] == 0
        report, _ = agent(status=1)
        assert rows(report)["web"] == ("outdated", "went missing"), rows(report)
        assert content("web") == mine
    finally:
        include.unlink()


def a_missing_source_changes_nothing():
    """If the source is missing, all profiles stay, and the exit status is not 0."""
    source(web=plain("web"))
    agent()
    shutil.rmtree(SOURCE)
    report, _ = agent(status=3)
    assert rows(report) == {"web": ("held", "source unavailable")}, rows(report)
    assert "web" in loaded()


def the_last_good_version_stays_after_a_broken_update():
    """If a text does not compile, the loaded profile does not change."""
    source(web=plain("web"))
    agent()
    mine = content("web")
    source(web="profile web {\n  nonsense,\n}\n")
    report, _ = agent(status=1)
    assert codes(report) == {"web.profile": ["parser_rejected"]}, codes(report)
    assert content("web") == mine


SCENARIOS = [
    shipped_profiles_are_loaded_and_confine,
    an_update_replaces_the_loaded_policy,
    enforce_and_complain_follow_the_source,
    a_foreign_profile_is_not_changed,
    a_foreign_profile_of_the_same_content_is_adopted,
    a_replacement_by_another_program_is_repaired,
    a_profile_in_use_is_held_until_its_processes_end,
    a_hat_in_use_holds_its_parent,
    a_dropped_hat_is_removed,
    a_renamed_key_keeps_its_profile_loaded,
    names_that_jam_the_kernel_are_rejected,
    a_jammed_kernel_recovers_in_a_pass,
    a_pass_without_changes_has_no_effect,
    an_agent_killed_at_any_step_reaches_the_same_state,
    profiles_are_restored_after_a_reboot_without_any_source,
    the_last_good_policy_needs_neither_parser_nor_includes,
    a_missing_source_changes_nothing,
    the_last_good_version_stays_after_a_broken_update,
]


def main():
    """Run all scenarios, or only the named ones."""
    SOURCE.mkdir(exist_ok=True)
    names = set(sys.argv[1:])
    for scenario in SCENARIOS:
        if names and scenario.__name__ not in names:
            continue
        begin = time.monotonic()
        error = None
        try:
            clean()
            SOURCE.mkdir(exist_ok=True)
            scenario()
        except BaseException:  # noqa: BLE001 - reported to the test on the host
            error = traceback.format_exc()
        line = {
            "scenario": scenario.__name__,
            "error": error,
            "seconds": round(time.monotonic() - begin, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
