"""Tests that one mistake in a seccomp profile has one message with the right next step."""

import json
from typing import Any

import pytest

from agent.backends.seccomp import fields, inspection

RULE: dict[str, Any] = {"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}
PROFILE: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [RULE]}
CONDITION = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}


def profile(**changes: object) -> dict[str, object]:
    """Return a profile whose only rule has these changes."""
    return {**PROFILE, "syscalls": [{**RULE, **changes}]}


def without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object without a key."""
    return {name: value for name, value in tree.items() if name != key}


MISTAKES = {
    "a key in the wrong case": (
        {**without(PROFILE, "defaultAction"), "DefaultAction": "SCMP_ACT_ALLOW"},
        ("unknown_field", "DefaultAction", "Did you mean defaultAction?"),
    ),
    "a misspelt key of a rule": (
        {**PROFILE, "syscalls": [{**without(RULE, "names"), "nmaes": ["chmod"]}]},
        ("unknown_field", "syscalls[0].nmaes", "Did you mean names?"),
    ),
    "a short key in the wrong case": (
        profile(args=[{**without(CONDITION, "op"), "OP": "SCMP_CMP_EQ"}]),
        ("unknown_field", "syscalls[0].args[0].OP", "Did you mean op?"),
    ),
    "a name instead of a list": (
        profile(names="chmod"),
        ("bad_value", "syscalls[0].names", "Write a list: [...]."),
    ),
    "a default action that is a number": (
        {**PROFILE, "defaultAction": 5},
        ("bad_value", "defaultAction", "Write the value in quotes."),
    ),
    "an action that is a number": (
        profile(action=5),
        ("bad_value", "syscalls[0].action", "Write the value in quotes."),
    ),
    "a missing action": (
        {**PROFILE, "syscalls": [without(RULE, "action")]},
        ("bad_value", "syscalls[0].action", "Add an action."),
    ),
}


@pytest.mark.parametrize(("tree", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_one_mistake_has_one_message(
    tree: dict[str, object], expected: tuple[str, str, str]
) -> None:
    """The rejection contains no messages that only follow from the mistake."""
    checked = inspection.check(json.dumps(tree).encode(), fields.Options())
    assert [(item.code, item.location, item.hint) for item in checked.findings] == [expected]


TEXTS = {
    "// a comment\n{}": "JSON has no comments",
    '{"defaultAction": /* x */ "SCMP_ACT_LOG"}': "JSON has no comments",
    '{"defaultAction": "SCMP_ACT_LOG",}': "Remove the comma",
    '{"syscalls": [1, ]}': "Remove the comma",
    "": "The file is empty",
    " \n": "The file is empty",
    "{{ .Values.profile }}": "looks like a template",
    '{"defaultAction" "SCMP_ACT_LOG"}': "python3 -m json.tool FILE",
}


@pytest.mark.parametrize(("text", "hint"), TEXTS.items())
def test_a_text_that_is_not_json_has_its_own_next_step(text: str, hint: str) -> None:
    """The next step depends on the cause of the error."""
    (finding,) = inspection.check(text.encode(), fields.Options()).findings
    assert finding.code == "not_json"
    assert hint in finding.hint
