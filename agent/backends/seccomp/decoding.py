"""Decodes the bytes of a seccomp profile, which must be unambiguous UTF-8 JSON.

This module does not check the fields of a profile, which is the task of `syntax`.
"""

import json
from typing import Final

from agent.backends.seccomp import wrapped
from agent.core import common_findings
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

MOST_BYTES: Final = 1 << 20

Json = object  # The value comes from json.loads, and every use checks its type with isinstance.


class _NotJsonError(ValueError):
    """Raised for a text that is not JSON although Python's decoder accepts it."""


def decode(content: bytes, pairs: "wrapped.PairsHook | None" = None) -> tuple[Json] | Finding:
    """Return the decoded JSON in a tuple, or the reason why the bytes are not JSON."""
    text = _text(content)
    if isinstance(text, Finding):
        return text
    try:
        return (json.loads(text, object_pairs_hook=pairs, parse_constant=_reject_constant),)
    except json.JSONDecodeError as error:
        message = f"This is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        return _not_json(f"line {error.lineno}", message, _json_hint(text, error.pos))
    except RecursionError:
        return _not_json(
            "profile", "The JSON is nested too deeply.", "Reduce the depth of the JSON."
        )
    except ValueError as error:
        return _not_json("profile", f"This is not JSON: {error}."[:200], "Correct the JSON.")


def _json_hint(text: str, position: int) -> str:
    """Return the next step for a text that is not JSON from this position on."""
    rest = text[position:]
    if not text.strip():
        return "The file is empty: write a profile, or remove the file."
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments: remove the comment."
    if rest[:1] in ("]", "}") and text[:position].rstrip().endswith(","):
        return "Remove the comma in front of the closing bracket."
    if text.lstrip().startswith("{{"):
        return "The text looks like a template. Run the program that expands it first."
    general = "Correct the JSON; `python3 -m json.tool FILE` reports the same location."
    return wrapped.yaml_hint(text) or general


def _text(content: bytes) -> str | Finding:
    """Return the text of a file, or the reason why the file does not contain text."""
    if len(content) > MOST_BYTES:
        reason = f"The profile has {len(content)} bytes; the limit is {MOST_BYTES} bytes"
        return common_findings.key_too_large(
            "profile", reason, "Remove rules or comments from the profile."
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return common_findings.not_utf8("profile", f"The text is not UTF-8 (byte {error.start})")
    if text.startswith("\ufeff"):
        reason = "The text begins with a byte order mark, which no runtime accepts"
        return common_findings.not_utf8("profile", reason)
    return text


def _not_json(location: str, message: str, hint: str) -> Finding:
    return Finding(code=FindingCode.NOT_JSON, location=location, message=message, hint=hint)


def _reject_constant(text: str) -> float:
    raise _NotJsonError(f"{text} is not a JSON number")
