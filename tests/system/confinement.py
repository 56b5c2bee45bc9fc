"""Runs the scenarios that try to defeat the check for disuse and the confinement tracker, on one
kernel.
"""

from pathlib import Path

from tests.system import guest_programs, vm

INSPECTION = Path("tests/inspection.py")
LIMIT_SECONDS = 1800
PROGRAMS = ("disuse", "tracker")
WITHOUT_RAW_DATA = guest_programs.scenarios("disuse", "WITHOUT_RAW_DATA")
SCENARIOS = [name for program in PROGRAMS for name in guest_programs.scenarios(program)]
SCENARIOS += WITHOUT_RAW_DATA


def outcomes(release, command, append=""):
    """Run a command in a guest, and return the error of each scenario. The error of a successful
    scenario is None.
    """
    files = {**guest_programs.files(), f"guest/{INSPECTION.name}": INSPECTION.read_bytes()}
    result = vm.run(files, command, timeout_seconds=LIMIT_SECONDS, release=release, append=append)
    actual = guest_programs.outcomes(result)
    assert actual, result.output
    return actual


def every_scenario(release):
    """Return the error of each scenario, on a kernel that keeps raw policy data and on a kernel
    that does not.
    """
    command = "; ".join(f"python3 guest/{program}.py" for program in PROGRAMS)
    bare = "python3 guest/disuse.py without_raw_data"
    return outcomes(release, command) | outcomes(release, bare, "apparmor.export_binary=0")
