"""Scenarios about the ownership of profiles, on kernels that show all of the loaded content, a part
of it, or nothing.

The program runs as root in the virtual machine, and prints one line of JSON for each scenario. The
first argument, `content` or `nothing`, states whether the kernel shows loaded content.
"""

import json
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from node_tools import (
    SECURITY,
    SOURCE,
    STATE,
    agent,
    clean,
    loaded,
    parser,
    plain,
    revision,
    rows,
    source,
)

CODE = "content_unverifiable"
KIDS = "  file,\n  signal,\n  ^HAT {{\n    file,\n    {rule}\n  }}\n  profile kid {{ file, }}\n"


def family_text(name, rule=""):
    """Return a profile with a hat and a child."""
    return f"profile {name} {{\n{KIDS.format(rule=rule)}}}\n"


def actions(report):
    """Return the action and the reason for each profile, by name."""
    return {item["name"]: (item["action"], item["why"]) for item in report["profiles"]}


def codes(report):
    """Return the codes of all findings, including the findings about the node."""
    result = [finding["code"] for finding in report["problems"]]
    return result + [item["code"] for row in report["profiles"] for item in row["problems"]]


def load_the_same_bytes(name):
    """Load the bytes of an agent-owned profile again, as another program would."""
    for path in (STATE / "entries").glob("*.json"):
        installed = json.loads(path.read_text())["installed"]
        if installed is not None and name in installed["provides"]:
            (SECURITY / ".load").write_bytes((STATE / "bodies" / installed["body"]).read_bytes())


KEPT = ("keep", "unchanged")


def assert_own(report, *names):
    """Require that the agent removes the profiles that are in no source, or keeps these profiles if
    this kernel offers no way to prove that they are unused.

    The agent would release a profile that it considers foreign.
    """
    for name in names:
        state = rows(report)[name][0]
        assert (state, name in loaded()) in {("removed", False), ("held", True)}, rows(report)


def loads_of_other_programs_are_no_drift(shows):
    """If other programs load profiles of other names, the agent repairs nothing."""
    source(web=family_text("web"), other=plain("other") + plain("second"))
    agent()
    names = ("web", "web//HAT", "web//kid", "other", "second")
    for number in range(5):
        assert parser(plain("stranger", f"deny /x{number} r,"), "-r")[0] == 0
        report, _ = agent()
        assert actions(report) == dict.fromkeys(names, KEPT), actions(report)
        assert codes(report).count(CODE) == (shows == "nothing"), codes(report)
        assert "drift_fought" not in codes(report)
    source(other=plain("other"))
    assert parser(plain("stranger", "deny /y r,"), "-r")[0] == 0
    report, _ = agent()
    assert_own(report, *names[:3], "second")
    assert {"other", "stranger"} <= set(loaded()), loaded()


def the_first_pass_reports_whether_content_can_be_verified(shows):
    """Even on a node without profiles, the first pass reports whether the agent can verify
    content.
    """
    source(web=plain("web"))
    report, _ = agent()
    assert codes(report).count(CODE) == (shows == "nothing"), codes(report)
    assert rows(report) == {"web": ("installed", "new")}, rows(report)


def a_replacement_by_another_program_is_repaired_once(_):
    """If another program replaces a profile with other rules and another mode, the agent repairs it
    exactly once.
    """
    for text, mode, flags in (
        (family_text("web", "deny /x r,"), "enforce", ["-r"]),
        (family_text("web"), "complain", ["-C", "-r"]),
    ):
        source(web=family_text("web"))
        agent()
        assert parser(text, *flags)[0] == 0
        assert loaded()["web"] == mode
        report, _ = agent()
        assert actions(report)["web"] == ("restore", "drifted"), actions(report)
        assert loaded()["web"] == "enforce"
        report, _ = agent()
        assert set(actions(report).values()) == {KEPT}, actions(report)


def another_object_of_other_content_is_foreign(_):
    """If another program removes a profile and loads other content, the agent neither replaces nor
    removes this content.
    """
    source(web=plain("web"), other=plain("other"))
    agent()
    assert parser(plain("web"), "-R")[0] == 0
    assert parser(plain("web", "deny /x r,"), "-C", "-a")[0] == 0
    report, _ = agent(status=1)
    assert rows(report)["web"] == ("foreign", "foreign"), rows(report)
    assert loaded()["web"] == "complain"
    source(other=plain("other"))
    report, _ = agent()
    assert rows(report)["web"] == ("released", "foreign"), rows(report)
    assert loaded()["web"] == "complain"


def a_profile_that_is_taken_over_becomes_agent_owned(_):
    """If --take-over is set, a foreign profile is replaced, and later removed with its key."""
    source(web=plain("web"), other=plain("other"))
    agent()
    assert parser(plain("web"), "-R")[0] == 0
    assert parser(plain("web", "deny /x r,"), "-a")[0] == 0
    agent("--take-over=web")
    report, _ = agent()
    assert actions(report)["web"] == KEPT, actions(report)
    source(other=plain("other"))
    report, _ = agent()
    assert_own(report, "web")


def equal_bytes_that_another_program_loaded_stay(shows):
    """If another program loaded a profile with the desired content, the profile stays after the key
    is removed.
    """
    source(web=family_text("web"), other=plain("other"))
    agent()
    assert parser(family_text("web"), "-R")[0] == 0
    load_the_same_bytes("web")
    report, _ = agent(status=None)
    state = ("installed", "unchanged") if shows == "content" else ("foreign", "foreign")
    assert rows(report)["web"] == state, rows(report)
    source(other=plain("other"))
    report, _ = agent()
    assert rows(report)["web"] == ("released", "foreign"), rows(report)
    assert {"web", "web//HAT", "web//kid"} <= set(loaded()), loaded()


def a_profile_stays_agent_owned_if_another_program_loads_the_same_bytes(_):
    """If another program replaces an agent-owned profile with the same bytes, the profile stays
    agent-owned, because the kernel keeps the agent's object.
    """
    source(web=plain("web"), other=plain("other"))
    agent()
    assert parser(plain("web"), "-r")[0] == 0
    agent()
    source(other=plain("other"))
    report, _ = agent()
    assert_own(report, "web")


def a_restored_profile_is_agent_owned_again(_):
    """A profile that the agent restored from the ledger is removed after its key is removed."""
    source(web=family_text("web"), other=plain("other"))
    agent()
    assert parser(family_text("web"), "-R")[0] == 0
    agent(command="restore")
    assert "web//HAT" in loaded()
    source(other=plain("other"))
    report, _ = agent()
    assert_own(report, "web", "web//HAT", "web//kid")


def the_status_command_changes_no_file(shows):
    """After an interrupted load, the command `status` changes no file, and shows the finding about
    the node.
    """
    source(web=plain("web"))
    agent()
    record = STATE / "objects.jsonl"
    line = {"loading": {"web": []}, "revision": int(revision()) - 1}
    record.write_text(record.read_text() + json.dumps(line) + "\n")
    report, output = agent(command="status", mode="list")
    assert "effect" not in output, output
    assert codes(report).count(CODE) == (shows == "nothing"), codes(report)
    assert rows(report) == {"web": ("installed", "installed")}, rows(report)
    load = parser(plain("web"), "-R")[0], load_the_same_bytes("web")
    assert load == (0, None)
    report, _ = agent(command="status", status=None)
    other = ("failed", "other content on the node")
    same = ("installed", "loaded by another program")
    assert rows(report) == {"web": same if shows == "content" else other}, rows(report)


def an_agent_killed_at_any_step_leaves_no_unowned_profile(shows):
    """If the agent is killed before any effect of an update, the next passes complete the update.

    scenarios.py contains the same scenario for kernels that show content.
    """
    if shows == "content":
        return
    names = {"web", "web//HAT", "web//kid", "new"}
    step, limit = 0, 200
    while step < limit:
        clean()
        source(web=family_text("web"), goes=plain("goes"))
        agent()
        source(web=family_text("web", "deny /x r,"), new=plain("new"))
        report, _ = agent(mode=f"kill:{step}", status=None)
        killed = not report
        report, _ = agent()
        assert {name for name, (state, _) in rows(report).items() if state == "installed"} == names
        assert set(loaded()) == names | {"goes"}, (step, loaded())
        source(other=plain("other"))
        report, _ = agent()
        assert_own(report, *names, "goes")
        if not killed:
            break
        step += 1
    assert 5 < step < limit, step
    print(json.dumps({"note": f"killed at each of {step} effects"}))


def before_a_reboot():
    """The agent installs two profiles."""
    clean()
    source(web=family_text("web"), mine=plain("mine"), other=plain("other"))
    agent()


def after_a_reboot():
    """After the reboot, the host loads one profile, and the agent restores the other profile.

    Then the test removes both keys.
    """
    assert loaded() == {}
    load_the_same_bytes("web")
    agent(command="restore")
    assert "mine" in loaded()
    source(other=plain("other"))
    report, _ = agent()
    assert rows(report)["web"] == ("released", "foreign"), rows(report)
    assert rows(report)["mine"][0] == "removed", rows(report)
    assert set(loaded()) == {"web", "web//HAT", "web//kid", "other"}, loaded()


BOOTS = {"before": before_a_reboot, "after": after_a_reboot}
SCENARIOS = (
    loads_of_other_programs_are_no_drift,
    the_first_pass_reports_whether_content_can_be_verified,
    a_replacement_by_another_program_is_repaired_once,
    another_object_of_other_content_is_foreign,
    a_profile_that_is_taken_over_becomes_agent_owned,
    equal_bytes_that_another_program_loaded_stay,
    a_profile_stays_agent_owned_if_another_program_loads_the_same_bytes,
    a_restored_profile_is_agent_owned_again,
    the_status_command_changes_no_file,
    an_agent_killed_at_any_step_leaves_no_unowned_profile,
)


def main():
    """Run all scenarios, or only the named ones."""
    shows, *names = sys.argv[1:]
    if shows in BOOTS:
        BOOTS[shows]()
        return
    for scenario in SCENARIOS:
        if names and scenario.__name__ not in names:
            continue
        begin = time.monotonic()
        error = None
        try:
            clean()
            SOURCE.mkdir(exist_ok=True)
            scenario(shows)
        except BaseException:  # noqa: BLE001 - reported to the test on the host
            error = traceback.format_exc()
        seconds = round(time.monotonic() - begin, 1)
        line = {"scenario": scenario.__name__, "error": error, "seconds": seconds}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
