"""Decodes the bytes of a seccomp profile, which must be unambiguous UTF-8 JSON.

This module does not know the fields of a profile; `syntax` checks them.
"""

import json
from typing import Final

from agent.backends.seccomp import wrapped
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

MOST_BYTES: Final = 1 << 20

Json = object  # This is a value from json.loads, and every use checks it with isinstance.


class _NotJsonError(ValueError):
    """The text is not JSON, although Python's decoder accepts it."""


def decode(content: bytes, pairs: "wrapped.PairsHook | None" = None) -> tuple[Json] | Finding:
    """Return the decoded JSON in a tuple, or the reason why the bytes are not JSON."""
    text = _text(content)
    if isinstance(text, Finding):
        return text
    try:
        return (json.loads(text, object_pairs_hook=pairs, parse_constant=_reject_constant),)
    except json.JSONDecodeError as error:
        message = f"This is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        return Finding(
            code=FindingCode.NOT_JSON,
            location=f"line {error.lineno}",
            message=message,
            hint=wrapped.yaml_hint(text)
            or "Correct the JSON; `python3 -m json.tool FILE` reports the same location.",
        )
    except RecursionError:
        return _whole(
            FindingCode.NOT_JSON, "The JSON is nested too deeply.", "Reduce the depth of the JSON."
        )
    except ValueError as error:
        return _whole(
            FindingCode.NOT_JSON, f"This is not JSON: {error}."[:200], "Correct the JSON."
        )


def _text(content: bytes) -> str | Finding:
    """Return the text of the file, or the reason why the file is not text."""
    if len(content) > MOST_BYTES:
        message = f"The profile has {len(content)} bytes; the limit is {MOST_BYTES} bytes."
        return _whole(
            FindingCode.KEY_TOO_LARGE, message, "Remove rules or comments from the profile."
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _whole(
            FindingCode.NOT_UTF8, f"Byte {error.start} is not UTF-8.", "Save the file as UTF-8."
        )
    if text.startswith("\ufeff"):
        message = "The file begins with a byte order mark, which no runtime accepts."
        return _whole(FindingCode.NOT_UTF8, message, "Save it as UTF-8 without a BOM.")
    return text


def _whole(code: FindingCode, message: str, hint: str) -> Finding:
    return Finding(code=code, location="profile", message=message, hint=hint)


def _reject_constant(text: str) -> float:
    raise _NotJsonError(f"{text} is not a JSON number")
