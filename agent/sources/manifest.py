"""ConfigMaps in a YAML file: `data` and `binaryData` of every ConfigMap of every document.

Rule 1: the file is one set: a ConfigMap that leaves the file is a removal of its keys, a file that
is missing or cannot be understood removes nothing.
Rule 2: other kinds of objects are passed over; a ConfigMap that is not well-formed makes the whole
file unreadable, since its keys may still be desired.
"""

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from agent.core import recognise
from agent.core.model import Blob, Missing, Snapshot, Unreadable
from agent.core.problems import Problem
from agent.sources import documents, limits

DOMAIN = "profile-loader.node-restriction.kubernetes.io"
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")  # kubernetes: IsConfigMapKey


class _Malformed(ValueError):  # noqa: N818 - a ConfigMap, not an error, is malformed
    """What is wrong with a ConfigMap."""


class Manifest:
    """The ConfigMaps of one file of this machine. Fulfils agent.core.ports.Source."""

    def __init__(self, path: str, domain: str = DOMAIN) -> None:
        self.path = path
        self.origin = f"manifest {Path(path).absolute()}"
        self.domain = domain

    def read(self) -> tuple[Snapshot, ...]:
        """Read the file once."""
        try:
            content = _regular(self.path)
        except FileNotFoundError:
            return (Missing(origin=self.origin, why=f"{self.path} does not exist"),)
        except OSError as error:
            return (Unreadable(origin=self.origin, why=f"{self.path}: {error.strerror}"),)
        blobs: list[Blob] = []
        refused: list[tuple[str, Problem]] = []
        empty = False
        try:
            for document in documents.parse(content):
                empty = self._object(document, blobs, refused) or empty
        except (documents.NotYaml, _Malformed) as error:
            why = " ".join(str(error).split())[:300]
            return (Unreadable(origin=self.origin, why=f"{self.path}: {why}"),)
        return (limits.snapshot(self.origin, blobs, refused, empty=empty),)

    def _object(
        self, document: object, blobs: list[Blob], refused: list[tuple[str, Problem]]
    ) -> bool:
        """Collect the keys of one object; return whether it may be empty."""
        if document is None:
            return False
        if not isinstance(document, dict):
            raise _Malformed("a document is no Kubernetes object")
        if document.get("kind") in ("List", "ConfigMapList"):
            items = document.get("items")
            if not isinstance(items, list):
                raise _Malformed("a List has no items")
            answers = [self._object(item, blobs, refused) for item in items]
            return any(answers)
        if document.get("kind") != "ConfigMap" or document.get("apiVersion") != "v1":
            return False
        return self._config_map(document, blobs, refused)

    def _config_map(
        self,
        document: dict[str, object],
        blobs: list[Blob],
        refused: list[tuple[str, Problem]],
    ) -> bool:
        metadata = _strings(document, "metadata")
        name = metadata.get("name")
        if not isinstance(name, str) or not name:
            raise _Malformed("a ConfigMap has no metadata.name")
        where = f"{metadata.get('namespace') or 'default'}/{name}"
        annotations = _strings(metadata, "annotations")
        prefix = annotations.get(f"{self.domain}/seccomp-prefix", "")
        allow = annotations.get(f"{self.domain}/allow-empty", "false")
        if not isinstance(prefix, str) or allow not in ("true", "false"):
            raise _Malformed(f"ConfigMap {where} has an annotation of a wrong value")
        for key, content in _keys(document, where):
            if recognise.kind_of(key, content) is None:
                continue
            id_ = f"{where}/{key}"
            if not _KEY.fullmatch(key) or key.startswith(".."):
                shown = ascii(id_)[1:-1]
                refused.append((shown, limits.unsafe(shown, "is not a ConfigMap key")))
            elif len(content) > limits.KEY_BYTES:
                refused.append((id_, limits.too_large(id_)))
            else:
                blobs.append(
                    Blob(origin=self.origin, key=id_, content=content, prefix=prefix, name=key)
                )
        return allow == "true"


def _keys(document: dict[str, object], where: str) -> Iterable[tuple[str, bytes]]:
    data, binary = _strings(document, "data"), _strings(document, "binaryData")
    both = data.keys() & binary.keys()
    if both:
        raise _Malformed(f"ConfigMap {where} has {min(both)!r} in data and in binaryData")
    for key, value in sorted({**data, **binary}.items()):
        if not isinstance(value, str):
            raise _Malformed(f"ConfigMap {where}: the value of {key!r} is no string")
        if key in data:
            yield key, value.encode("utf-8")
            continue
        try:
            yield key, base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _Malformed(f"ConfigMap {where}: binaryData {key!r} is not base64") from error


def _strings(document: dict[str, object], field: str) -> dict[str, object]:
    """Return a field that maps strings to anything; absent and null are empty."""
    value = document.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _Malformed(f"{field} of a ConfigMap is no mapping of strings")
    return value


def _regular(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        if status.st_size > documents.BYTES:
            raise OSError(0, f"larger than {documents.BYTES} bytes")
        with open(fd, "rb", closefd=False) as stream:
            content = stream.read(documents.BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > documents.BYTES:  # it grew since it was measured
        raise OSError(0, f"larger than {documents.BYTES} bytes")
    return content
