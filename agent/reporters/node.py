"""The own Node in the API: its labels, and the startup taint.

Rule 1: the own Node has this name and this kernel's boot id, and is the one the token is bound
to; no other is ever labelled. Rule 2: the whole set in one server-side apply, only when it
differs; a label of another manager is never touched. Rule 3: what the API server answered is what
is known, nothing is assumed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from agent.core import labels
from agent.core.problems import Problem
from agent.core.report import Report
from agent.doors.kube import JSON_PATCH, Api, Json, KubeError, Refused, Unreachable

# Everything accepted is in place; one refused key must not taint new nodes for ever.
_SETTLED: Final = frozenset({"installed", "outdated", "held", "rejected", "removed", "released"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What is remembered of a Node."""

    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the Node is labelled. taint: key of the startup taint, or empty."""

    name: str
    domain: str = labels.DOMAIN
    digest: bool = False
    limit: int = labels.LIMIT
    taint: str = ""

    @property
    def path(self) -> str:
        """Return the Node's path in the API."""
        return f"/api/v1/nodes/{quote(self.name)}"


class NotOurs(Exception):  # noqa: N818 - reads as what it is
    """The Node of this name is not this machine, or not yet."""


def keep(found: Json) -> Meta:
    """Return what is remembered of a Node; its conditions and heartbeats are not.

    Raises Unreachable for metadata of another type: unreadable labels are not missing labels.
    """
    metadata = found.get("metadata") or {}
    known = metadata.get("labels") or {} if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(known, dict):
        raise Unreachable("the Node's metadata or labels are not a mapping")
    return Meta(
        uid=str(metadata.get("uid", "")),
        labels={str(key): str(value) for key, value in known.items()},
    )


class OwnNode:
    """Labels one Node. boot_id: of this kernel, empty where it cannot be read."""

    def __init__(self, api: Api, options: Options, boot_id: Callable[[], str]) -> None:
        self.api = api
        self.options = options
        self.boot_id = boot_id
        self.strays: frozenset[str] = frozenset()  # below our prefixes, and another's
        self._proven: str | None = None  # uid of the Node that is known to be ours
        self._doubtful = False  # an apply may have been carried out, and its answer is lost
        self._untainted = ""  # uid of the Node whose startup taint is known to be gone

    def read(self) -> Meta:
        """Ask for the Node. Raises KubeError."""
        return keep(self.api.get(self.options.path))

    def wanted(self, report: Report, meta: Meta | None) -> labels.Labels:
        """Return the labels that a report earns on the Node as it is known."""
        return labels.of(
            report,
            domain=self.options.domain,
            digest=self.options.digest,
            limit=self.options.limit,
            present=self.own(meta) if meta is not None else {},
        )

    def below(self, meta: Meta) -> frozenset[str]:
        """Return the labels below our prefixes, whoever holds them."""
        return frozenset(key for key in meta.labels if labels.is_own(key, self.options.domain))

    def own(self, meta: Meta) -> dict[str, str]:
        """Return the labels below our prefixes that are not known to be another's."""
        return {key: meta.labels[key] for key in self.below(meta) - self.strays}

    def publish(self, meta: Meta, wanted: Mapping[str, str]) -> Meta:
        """Make the Node's own labels the wanted ones; return the Node as answered.

        Raises NotOurs, and KubeError.
        """
        self.strays = self.strays.intersection(meta.labels)  # one that is gone is told no more
        if self.own(meta) == wanted and not self._doubtful:
            return meta
        self.prove(meta)
        body = self._with(meta, wanted)
        doubtful, self._doubtful = self._doubtful, True
        try:
            answer = keep(self.api.apply(self.options.path, body))
        except Refused as error:
            # What a 4xx refuses was not carried out; what ends in a 504 may have been.
            self._doubtful = doubtful or error.status >= 500  # noqa: PLR2004 - RFC 9110
            raise
        self._doubtful = False
        self.strays = self.below(answer) - wanted.keys()
        return answer

    def is_proven(self, meta: Meta | None) -> bool:
        """Return whether the Node was found to be this machine."""
        return meta is not None and self._proven == meta.uid

    def prove(self, meta: Meta) -> None:
        """Return if the Node of this uid is this machine. Raises NotOurs, and KubeError."""
        if self._proven == meta.uid:
            return
        name = self.options.name
        bound = self.api.token_node_uid()
        if bound and bound != meta.uid:
            raise NotOurs(
                f"the Node {name} was made anew (uid {meta.uid}); the agent's token is still "
                f"bound to the former one (uid {bound})"
            )
        status = self.api.get(self.options.path).get("status")
        info = status.get("nodeInfo") if isinstance(status, dict) else None
        told = info.get("bootID") if isinstance(info, dict) else None
        mine = self.boot_id()
        if not mine:
            raise NotOurs("this kernel's boot id cannot be read")
        if told != mine:
            raise NotOurs(
                f"the Node {name} has boot id {told or 'none yet'}, and this kernel has {mine}"
            )
        self._proven = meta.uid

    def untaint(self, meta: Meta, report: Report) -> None:
        """Take the startup taint off once everything accepted is in place.

        Raises NotOurs, and KubeError.
        """
        if not self.options.taint or self._untainted == meta.uid or not settled(report):
            return
        self.prove(meta)
        spec = self.api.get(self.options.path).get("spec")
        taints = spec.get("taints") if isinstance(spec, dict) else None
        # All effects of the key in one request, as the overlay's policy wants it; from the end, so
        # that the places of the others stay what they are.
        patch: list[Mapping[str, object]] = []
        known = taints if isinstance(taints, list) else []
        for index, taint in reversed(list(enumerate(known))):
            if isinstance(taint, dict) and taint.get("key") == self.options.taint:
                place = f"/spec/taints/{index}"
                patch.append({"op": "test", "path": place, "value": taint})
                patch.append({"op": "remove", "path": place})
        if patch:
            self.api.send("PATCH", self.options.path, patch, content=JSON_PATCH)
        self._untainted = meta.uid

    def unlabel(self) -> None:
        """Take every own label off. Raises KubeError, also if there is no such Node."""
        self.api.apply(self.options.path, self._with(self.read(), {}))

    def _with(self, meta: Meta, wanted: Mapping[str, str]) -> dict[str, object]:
        """Return the Node with these labels of ours; without its uid an apply would make it."""
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.options.name, "uid": meta.uid, "labels": dict(wanted)},
        }

    def problems(self) -> tuple[Problem, ...]:
        """Return what is to be said of the labels as they are."""
        return tuple(
            Problem(
                code="label_foreign",
                where=key,
                what="The label is below the agent's prefix, and somebody else holds it. It is "
                "left as it is, and says nothing about this node.",
                hint=f"kubectl label node {self.options.name} {key}-",
            )
            for key in sorted(self.strays)
        )


def settled(report: Report) -> bool:
    """Return whether what every set says is known, and every accepted profile is in place.

    A kind that this node cannot have is no reason to wait; one that could not be looked at is.
    """
    never = {kind for kind, support in report.supports.items() if support.state == "disabled"}
    if report.pending:
        return False
    return all(one.state in ("read", "emptied") for one in report.sets) and all(
        row.state in _SETTLED or (row.state == "unsupported" and row.kind in never)
        for row in report.rows
    )


def not_ours(error: NotOurs, name: str) -> Problem:
    """Say that the Node is not, or not yet, this machine's."""
    return Problem(
        code="node_unknown",
        where=f"node {name}",
        what=f"No label was changed: {error}.",
        hint="It is tried again; if it stays, compare --node-name with `kubectl get nodes`.",
    )


def fought(name: str) -> Problem:
    """Say that somebody else changes the agent's labels again and again."""
    return Problem(
        code="label_fought",
        where=f"node {name}",
        what="Somebody else takes the agent's labels off again and again; they are put back less "
        "and less often.",
        hint="kubectl get node --show-managed-fields -o yaml names the other field manager.",
    )


def failed(error: KubeError, name: str) -> Problem:
    """Say that the API server could not be asked, or refused."""
    return Problem(
        code="node_unreachable",
        where=f"node {name}",
        what=f"The Node's labels could not be brought up to date: {error}.",
        hint="It is tried again. A refusal is a matter of RBAC or of the admission policy.",
    )
