"""ConfigMaps in a YAML file: `data` and `binaryData` of every ConfigMap of every document.

Rule 1: the file is one set: a ConfigMap that leaves the file is a removal of its keys, a file that
is missing or cannot be understood removes nothing.
Rule 2: other kinds of objects are passed over; a ConfigMap that is not well-formed makes the whole
file unreadable, since its keys may still be desired.
"""

from pathlib import Path

from agent.core.labels import DOMAIN
from agent.core.model import Blob, Missing, Snapshot, Unreadable
from agent.core.problems import Problem
from agent.sources import config_map, documents, limits


class Manifest:
    """The ConfigMaps of one file of this machine. Fulfils agent.core.ports.Source."""

    def __init__(self, path: str, domain: str = DOMAIN) -> None:
        self.path = path
        self.origin = f"manifest {Path(path).absolute()}"
        self.domain = domain
        self._seen: set[str] = set()
        self.watched = Path(path).absolute()

    def absent(self, set_: str) -> Snapshot | None:  # noqa: ARG002 - the port's
        """Return None: this source has one set, and always answers for it."""
        return None

    def forget(self) -> None:
        """Do nothing: the file is read every time."""

    def read(self) -> tuple[Snapshot, ...]:
        """Read the file once."""
        try:
            content = documents.read(self.path)
        except FileNotFoundError:
            return (Missing(origin=self.origin, why=f"{self.path} does not exist"),)
        except OSError as error:
            return (Unreadable(origin=self.origin, why=f"{self.path}: {error.strerror}"),)
        blobs: list[Blob] = []
        refused: list[tuple[str, Problem]] = []
        empty = False
        self._seen = set()
        try:
            for document in documents.parse(content):
                empty = self._object(document, blobs, refused) or empty
        except (documents.NotYaml, config_map.Malformed) as error:
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
            raise config_map.Malformed("a document is no Kubernetes object")
        if document.get("kind") in ("List", "ConfigMapList"):
            items = document.get("items")
            if not isinstance(items, list):
                raise config_map.Malformed("a List has no items")
            answers = [self._object(item, blobs, refused) for item in items]
            return any(answers)
        if document.get("kind") != "ConfigMap":
            return False
        if document.get("apiVersion") != "v1":
            raise config_map.Malformed("a ConfigMap has another apiVersion than v1")
        found = config_map.content(document, origin=self.origin, domain=self.domain, qualified=True)
        blobs += found.blobs
        refused += found.refused
        where = f"{found.namespace}/{found.name}"
        if where in self._seen:
            raise config_map.Malformed(f"ConfigMap {where} is in it twice")
        self._seen.add(where)
        return found.allow_empty
