"""ConfigMaps in a YAML file: `data` and `binaryData` of every ConfigMap of every document.

Rule 1: the file is one set: a ConfigMap that leaves the file is a removal of its keys, a file that
is missing or cannot be understood removes nothing.
Rule 2: other kinds of objects are passed over; a ConfigMap that is not well-formed makes the whole
file unreadable, since its keys may still be desired.
"""

from pathlib import Path

from agent.core.findings import Finding
from agent.core.labels import DOMAIN
from agent.core.model import Missing, Snapshot, SourceKey, Unreadable
from agent.sources import configmap_data, limits, yaml_documents


class ManifestSource:
    """The ConfigMaps of one file of this machine. Fulfils agent.core.ports.Source."""

    def __init__(self, path: str, domain: str = DOMAIN) -> None:
        self.path = path
        self.origin = f"manifest {Path(path).absolute()}"
        self.domain = domain
        self._seen: set[str] = set()
        self.watched_path = Path(path).absolute()

    def explain_absence(self, set_: str) -> Snapshot | None:  # noqa: ARG002 - the port's
        """Return None: this source has one set, and always answers for it."""
        return None

    def invalidate(self) -> None:
        """Do nothing: the file is read every time."""

    def read(self) -> tuple[Snapshot, ...]:
        """Read the file once."""
        try:
            content = yaml_documents.read(self.path)
        except FileNotFoundError:
            return (Missing(profile_set=self.origin, reason=f"{self.path} does not exist"),)
        except OSError as error:
            return (Unreadable(profile_set=self.origin, reason=f"{self.path}: {error.strerror}"),)
        blobs: list[SourceKey] = []
        refused: list[tuple[str, Finding]] = []
        empty = False
        self._seen = set()
        try:
            for document in yaml_documents.parse(content):
                empty = self._object(document, blobs, refused) or empty
        except (yaml_documents.InvalidYamlError, configmap_data.MalformedError) as error:
            why = " ".join(str(error).split())[:300]
            return (Unreadable(profile_set=self.origin, reason=f"{self.path}: {why}"),)
        return (limits.snapshot(self.origin, blobs, refused, empty=empty),)

    def _object(
        self, document: object, blobs: list[SourceKey], refused: list[tuple[str, Finding]]
    ) -> bool:
        """Collect the keys of one object; return whether it may be empty."""
        if document is None:
            return False
        if not isinstance(document, dict):
            raise configmap_data.MalformedError("a document is no Kubernetes object")
        if document.get("kind") in ("List", "ConfigMapList"):
            items = document.get("items")
            if not isinstance(items, list):
                raise configmap_data.MalformedError("a List has no items")
            answers = [self._object(item, blobs, refused) for item in items]
            return any(answers)
        if document.get("kind") != "ConfigMap":
            return False
        if document.get("apiVersion") != "v1":
            raise configmap_data.MalformedError("a ConfigMap has another apiVersion than v1")
        found = configmap_data.content(
            document, origin=self.origin, domain=self.domain, qualified=True
        )
        blobs += found.source_keys
        refused += found.refused
        where = f"{found.namespace}/{found.name}"
        if where in self._seen:
            raise configmap_data.MalformedError(f"ConfigMap {where} is in it twice")
        self._seen.add(where)
        return found.allow_empty
