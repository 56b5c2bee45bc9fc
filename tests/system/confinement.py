"""Runs the scenarios that attack the proof of disuse and the confinement tracker, on one kernel."""

import json
import re
from pathlib import Path

from tests.system import vm

GUEST = Path("tests/system/guest")
INSPECTION = Path("tests/inspection.py")
LIMIT_SECONDS = 1800
PROGRAMS = {"disuse": "a|an|the", "tracker": "a|an|every"}
SCENARIOS = [
    name
    for program, words in PROGRAMS.items()
    for name in re.findall(
        rf"^def ((?:{words})_\w+)\(", (GUEST / f"{program}.py").read_text(), re.MULTILINE
    )
]
WITHOUT_RAW_DATA = "disuse_is_not_proven_without_raw_data"


def outcomes(release, command, append=""):
    """Run a command in a guest, and return the error of each scenario. The error of a successful
    scenario is None.
    """
    files = {f"guest/{one.name}": one.read_bytes() for one in (*GUEST.glob("*.py"), INSPECTION)}
    result = vm.run(files, command, timeout_seconds=LIMIT_SECONDS, release=release, append=append)
    lines = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    for line in lines:
        print(line.get("note") or f"{line['scenario']}: {line['seconds']} s")
    found = {line["scenario"]: line["error"] for line in lines if "scenario" in line}
    assert found, result.output
    return found


def every_scenario(release):
    """Return the error of each scenario, on a kernel that keeps raw policy data and on a kernel
    that does not.
    """
    command = "; ".join(f"python3 guest/{program}.py" for program in PROGRAMS)
    bare = f"python3 guest/disuse.py {WITHOUT_RAW_DATA}"
    return outcomes(release, command) | outcomes(release, bare, "apparmor.export_binary=0")
