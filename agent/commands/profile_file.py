"""Extracts the seccomp profile from a file of any known format, for `convert` and `diff`.

The formats are a plain profile, a SeccompProfile resource in JSON or YAML, and the config.json of
an OCI runtime. The checks of the profile itself are in agent.backends.seccomp.
"""

import json
from typing import Final

from agent.backends.seccomp import decoding, wrapped
from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.sources import limits, yaml_documents

_UINT64_DIGITS: Final = 20


def profile(path: str, content: bytes) -> bytes | Finding:
    """Return the JSON of the profile in a file, or the finding that the file contains no profile.

    A file is YAML if it has the extension .yaml or .yml, or if its first line looks like
    `apiVersion:`.
    """
    if path.endswith(limits.MANIFESTS) or wrapped.is_yaml(content.decode("utf-8", "replace")):
        return _from_yaml(content)
    decoded = decoding.decode(content)
    if isinstance(decoded, Finding):
        return decoded
    wrapper = wrapped.find(decoded[0])
    if wrapper is None:
        # The text is returned unchanged, because `syntax` reports duplicate keys in it.
        return content
    return _unwrapped(wrapper)


def _unwrapped(wrapper: wrapped.Wrapper) -> bytes | Finding:
    if wrapper.base:
        return Finding(
            code=FindingCode.BAD_VALUE,
            location=f"{wrapper.where}.baseProfileName",
            message=f"The profile extends the profile {ascii(wrapper.base)[1:-1][:100]}, which is "
            "not in the file.",
            hint="Add the rules of that profile, and remove baseProfileName.",
        )
    if wrapper.where:
        return json.dumps(wrapper.profile).encode()
    message = f"This is {wrapper.description}, which contains no seccomp profile."
    hint = "Pass a profile, a SeccompProfile resource or the config.json of a container."
    return Finding(code=FindingCode.NOT_A_PROFILE, location="profile", message=message, hint=hint)


def _from_yaml(content: bytes) -> bytes | Finding:
    try:
        documents = [_plain(item) for item in yaml_documents.parse(content) if item is not None]
    except yaml_documents.InvalidYamlError as error:
        message = f"This is not YAML: {' '.join(str(error).split())[:200]}."
        hint = "Correct the YAML."
        return Finding(
            code=FindingCode.NOT_A_PROFILE, location="profile", message=message, hint=hint
        )
    wrappers = [wrapped.find(document) for document in documents]
    candidates = [
        index for index, wrapper in enumerate(wrappers) if wrapper is None or wrapper.where
    ]
    if len(documents) == 1:
        candidates = [0]
    if len(candidates) != 1:
        message = f"The file contains {len(candidates)} seccomp profiles instead of a single one"
        names = ", ".join(filter(None, map(_name, documents)))
        hint = "Write one of them to a file of its own."
        return Finding(
            code=FindingCode.NOT_A_PROFILE,
            location="profile",
            message=f"{message}: {names}." if names else f"{message}.",
            hint=hint,
        )
    wrapper = wrappers[candidates[0]]
    return json.dumps(documents[candidates[0]]).encode() if wrapper is None else _unwrapped(wrapper)


def _name(document: object) -> str:
    """Return the name of a SeccompProfile resource; empty for any other document."""
    if not isinstance(document, dict) or document.get("kind") != "SeccompProfile":
        return ""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return ""
    return ascii(metadata.get("name", ""))[1:-1][:100]


def _plain(value: object) -> object:
    """Return a YAML value after the conversion of its numbers, as in JSON."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case yaml_documents.NotAString(text=text):
            is_number = text.isascii() and text.isdecimal() and len(text) <= _UINT64_DIGITS
            return int(text) if is_number else text
        case _:
            return value
