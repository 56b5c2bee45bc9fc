"""Recognises files in other formats that users store under the name of an AppArmor profile.

For a file in another format, the parser would only report a syntax error in the first line, which
does not show the real mistake. No valid AppArmor profile text begins like one of these formats, so
this check rejects no valid text.
"""

import re
from collections.abc import Iterator
from typing import Final

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding

_JSON: Final = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\"{\]])")
# The possessive quantifier stores no state for the lines that it has matched. With an ordinary
# quantifier, 1 MiB of empty lines needed 320 MiB of memory.
_YAML: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*|---[^\n]*)?\r?\n)*+(?:apiVersion|kind):[ \t]")
_KIND: Final = re.compile(r"^kind:[ \t]*([A-Za-z]{1,40})[ \t]*\r?$", re.MULTILINE)


def findings(text: str) -> Iterator[Finding]:
    """Return an error if a profile text is JSON or a Kubernetes resource."""
    if _JSON.match(text):
        is_seccomp = '"defaultAction"' in text
        description = "a seccomp profile in JSON" if is_seccomp else "JSON"
        yield Finding(
            code=FindingCode.NOT_A_PROFILE,
            location="line 1",
            message=f"The text is {description}, and the name of the key is the name of an "
            "AppArmor profile.",
            hint="Rename a key with a seccomp profile so that its name ends in .json."
            if is_seccomp
            else "Rename a key with JSON so that its name ends in .json, or remove the key.",
        )
    elif _YAML.match(text):
        kind = _KIND.search(text)
        name = kind[1] if kind else "unknown kind"
        hint = "Install the profile from a directory or a ConfigMap, and remove this key."
        if name == "SeccompProfile":
            hint = (
                "The seccomp profile is in its spec: run `profile-loader convert FILE`, and "
                "install the output under a name that ends in .json."
            )
        elif name in ("ConfigMap", "List"):
            hint = "Rename the file so that its name ends in .yaml, and use its path as a source."
        yield Finding(
            code=FindingCode.NOT_A_PROFILE,
            location="line 1",
            message=f"The text is a Kubernetes resource ({name}) in YAML, and not an AppArmor "
            "profile.",
            hint=hint,
        )
