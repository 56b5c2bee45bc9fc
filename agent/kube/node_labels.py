"""The own Node in the API: its labels, and the startup taint.

Rule 1: the own Node has this name and this kernel's boot id, and is the one the token is bound
to; no other is ever labelled. Rule 2: the whole set in one server-side apply, only when it
differs; a label of another manager is never touched. Rule 3: what the API server answered is what
is known, nothing is assumed. Rule 4: a refused key concerns itself alone: labels that became untrue
are removed, and the other labels are set.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from agent.core import labels
from agent.core.findings import Finding
from agent.core.report import Report
from agent.core.vocabulary import (
    ON_NODE,
    ProfileSetState,
    ProfileState,
    SupportState,
    UnreadableCause,
)
from agent.kube import managed_fields
from agent.kube.client import JSON_PATCH, Api
from agent.kube.errors import KubeError, StatusError, UnreachableError
from agent.kube.responses import Json

Change = tuple[str, str | None]  # a label's key, and its new value; None: it is removed

REFUSAL_REQUESTS: Final = 24  # to find out which keys are refused, in one attempt
REFUSED_SHOWN: Final = 5
UNLABEL_TRIES: Final = 5
# What the API server says to the content of a request: 400 and 422 by its own validation, 403 and
# 422 by an admission policy, 413 for a Node that would be too large.
_OF_CONTENT: Final = frozenset({400, 403, 413, 422})

# Everything accepted is in place; one refused key must not taint new nodes for ever.
_SETTLED: Final = ON_NODE | {
    ProfileState.REJECTED,
    ProfileState.REMOVED,
    ProfileState.RELEASED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetadata:
    """What is remembered of a Node. is_forged: an apply would change more than own labels."""

    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    is_forged: bool = False


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


class WrongNodeError(Exception):
    """The Node of this name is not this machine, or not yet."""


def keep(found: Json) -> NodeMetadata:
    """Return what is remembered of a Node; its conditions and heartbeats are not.

    Raises Unreachable for metadata of another type: unreadable labels are not missing labels.
    """
    metadata = found.get("metadata") or {}
    known = metadata.get("labels") or {} if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(known, dict):
        raise UnreachableError("the Node's metadata or labels are not a mapping")
    return NodeMetadata(
        uid=str(metadata.get("uid", "")),
        labels={str(key): str(value) for key, value in known.items()},
        is_forged=managed_fields.is_forged(metadata),
    )


class NodeLabeler:
    """Labels one Node. boot_id: of this kernel, empty where it cannot be read."""

    def __init__(self, api: Api, options: Options, boot_id: Callable[[], str]) -> None:
        self.api = api
        self.options = options
        self.boot_id = boot_id
        self.strays: frozenset[str] = frozenset()  # below our prefixes, and another's
        self._proven: str | None = None  # uid of the Node that is known to be ours
        # Labels (None: their removal) that the API server refused, and what it said last.
        self.refused: frozenset[Change] = frozenset()
        self.refusal = ""
        self._suspects: set[Change] = set()  # refused when they were tried alone
        self._doubtful = False  # an apply may have been carried out, and its answer is lost
        self._untainted = ""  # uid of the Node whose startup taint is known to be gone

    def read(self) -> NodeMetadata:
        """Ask for the Node. Raises KubeError."""
        return keep(self.api.get(self.options.path))

    def wanted(self, report: Report, meta: NodeMetadata | None) -> labels.Labels:
        """Return the labels that a report earns on the Node as it is known."""
        return labels.labels_for(
            report,
            domain=self.options.domain,
            digest=self.options.digest,
            limit=self.options.limit,
            present=self.own(meta) if meta is not None else {},
        )

    def below(self, meta: NodeMetadata) -> frozenset[str]:
        """Return the labels below our prefixes, whoever holds them."""
        return frozenset(key for key in meta.labels if labels.is_own(key, self.options.domain))

    def own(self, meta: NodeMetadata) -> dict[str, str]:
        """Return the labels below our prefixes that are not known to be another's."""
        return {key: meta.labels[key] for key in self.below(meta) - self.strays}

    def allowed(self, meta: NodeMetadata, wanted: Mapping[str, str]) -> dict[str, str]:
        """Return the wanted labels without the changes that the API server refused."""
        kept = {key: value for key, value in wanted.items() if (key, value) not in self.refused}
        stuck = {key: value for key, value in self.own(meta).items() if (key, None) in self.refused}
        return stuck | kept

    def retry_refused(self) -> None:
        """Let the next `publish` try again what the API server refused."""
        self.refused, self.refusal = frozenset(), ""

    def publish(self, meta: NodeMetadata, wanted: Mapping[str, str]) -> NodeMetadata:
        """Set the wanted labels that the API server allows; return the Node of its response.

        Changes that the API server refuses are in `refused` afterwards. Raises WrongNodeError, and
        KubeError where nothing is allowed or no answer came.
        """
        self.strays = self.strays.intersection(meta.labels)  # one that is gone is told no more
        target = self.allowed(meta, wanted)
        if self.own(meta) == target and not self._doubtful:
            return meta
        self.prove(meta)
        if meta.is_forged:
            meta = self._repaired()
        try:
            return self._apply(meta, target)
        except StatusError as error:
            if error.status not in _OF_CONTENT:
                raise
            return self._apply_parts(meta, wanted, error)

    def _apply_parts(
        self, meta: NodeMetadata, wanted: Mapping[str, str], error: StatusError
    ) -> NodeMetadata:
        """Apply what the API server allows of a set that it refused as a whole.

        Raises the refusal if not even the labels that are there may be applied.
        """
        state = self.own(meta)
        try:
            answer = self._apply(meta, state)
        except StatusError:
            raise error from None
        parts = deque(_parts(state, wanted, self._suspects))  # a suspect is tried last
        suspects = [one for one in _additions(state, wanted) if one in self._suspects]
        halves: list[tuple[Change, ...]] = [tuple(suspects)]
        for _ in range(REFUSAL_REQUESTS):
            part = parts.popleft() if parts else halves.pop() if halves else ()
            if not part:
                break
            target = _changed(state, part)
            try:
                answer, state = self._apply(answer, target), target
                self._suspects.difference_update(part)
            except StatusError as refusal:
                if refusal.status not in _OF_CONTENT:
                    raise
                error = refusal
                self._suspects.update(part if len(part) == 1 else ())
                half = len(part) // 2
                if half and part[0][1] is None:  # the other untrue labels come next
                    parts.extendleft([part[half:], part[:half]])
                elif half:
                    halves += [part[half:], part[:half]]
        changes = {change for part in _parts(state, wanted, ()) for change in part}
        self._suspects &= changes
        self.refused, self.refusal = frozenset(changes), str(error)
        return answer

    def _repaired(self) -> NodeMetadata:
        """Give up fields that are falsely attributed to the agent; return the Node after that."""
        found = self.api.get(self.options.path)
        metadata = found.get("metadata")
        patch = managed_fields.repair(metadata if isinstance(metadata, dict) else {})
        if not patch:
            return keep(found)
        return keep(self.api.send("PATCH", self.options.path, patch, content_type=JSON_PATCH))

    def _apply(self, meta: NodeMetadata, wanted: Mapping[str, str]) -> NodeMetadata:
        body = self._with(meta, wanted)
        doubtful, self._doubtful = self._doubtful, True
        try:
            answer = keep(self.api.apply(self.options.path, body))
        except StatusError as error:
            # What a 4xx refuses was not carried out; what ends in a 504 may have been.
            self._doubtful = doubtful or error.status >= 500  # noqa: PLR2004 - RFC 9110
            raise
        self._doubtful = False
        self.strays = self.below(answer) - wanted.keys()
        return answer

    def is_proven(self, meta: NodeMetadata | None) -> bool:
        """Return whether the Node was found to be this machine."""
        return meta is not None and self._proven == meta.uid

    def prove(self, meta: NodeMetadata) -> None:
        """Return if the Node of this uid is this machine. Raises WrongNodeError, and KubeError."""
        if self._proven == meta.uid:
            return
        name = self.options.name
        bound = self.api.token_node_uid()
        if bound and bound != meta.uid:
            raise WrongNodeError(
                f"the Node {name} was made anew (uid {meta.uid}); the agent's token is still "
                f"bound to the former one (uid {bound})"
            )
        status = self.api.get(self.options.path).get("status")
        info = status.get("nodeInfo") if isinstance(status, dict) else None
        told = info.get("bootID") if isinstance(info, dict) else None
        mine = self.boot_id()
        if not mine:
            raise WrongNodeError("this kernel's boot id cannot be read")
        if told != mine:
            raise WrongNodeError(
                f"the Node {name} has boot id {told or 'none yet'}, and this kernel has {mine}"
            )
        self._proven = meta.uid

    def untaint(self, meta: NodeMetadata, report: Report) -> None:
        """Take the startup taint off once everything accepted is in place.

        Raises WrongNodeError, and KubeError.
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
            self.api.send("PATCH", self.options.path, patch, content_type=JSON_PATCH)
        self._untainted = meta.uid

    def unlabel(self) -> None:
        """Remove every label with one of the agent's prefixes, and change nothing else.

        A JSON patch names each label and its value. An apply without labels would remove whatever
        metadata.managedFields attributes to the agent, and other writers of the Node can forge
        that: taints, for example. Raises KubeError, also if there is no such Node.
        """
        for attempt in range(1, UNLABEL_TRIES + 1):
            meta = self.read()
            patch = _removal(meta, self.below(meta))
            if not patch:
                return
            try:
                self.api.send("PATCH", self.options.path, patch, content_type=JSON_PATCH)
            except StatusError as error:
                changed = error.status in (409, 422)  # Conflict, Unprocessable: a test failed
                if not changed or attempt == UNLABEL_TRIES:
                    raise
            else:
                return

    def _with(self, meta: NodeMetadata, wanted: Mapping[str, str]) -> dict[str, object]:
        """Return the Node with these labels of ours; without its uid an apply would make it."""
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.options.name, "uid": meta.uid, "labels": dict(wanted)},
        }

    def findings(self) -> tuple[Finding, ...]:
        """Return what is to be said of the labels as they are."""
        refused = (_refused(self.refused, self.refusal, self.options.name),) * bool(self.refused)
        return refused + tuple(
            Finding(
                code="label_foreign",
                location=key,
                message="The label is below the agent's prefix, and somebody else holds it. It is "
                "left as it is, and says nothing about this node.",
                hint=f"kubectl label node {self.options.name} {key}-",
            )
            for key in sorted(self.strays)
        )


def _parts(
    state: Mapping[str, str], wanted: Mapping[str, str], suspects: Collection[Change]
) -> list[tuple[Change, ...]]:
    """Return what turns the labels of the Node into the wanted ones, in parts.

    Labels that became untrue are removed first, those with another value too. The others follow by
    prefix and value, because a policy of another release differs in these. Suspects are left out.
    """
    untrue: list[Change] = [
        (key, None) for key, value in sorted(state.items()) if wanted.get(key) != value
    ]
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for key, value in _additions(state, wanted):
        prefix = key.partition("/")[0]
        if (key, value) not in suspects:
            groups[prefix, "" if "-digest." in prefix else value].append((key, value))
    return [tuple(part) for part in (untrue, *groups.values()) if part]


def _additions(state: Mapping[str, str], wanted: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the labels that are missing or have another value."""
    return [(key, value) for key, value in sorted(wanted.items()) if state.get(key) != value]


def _changed(state: Mapping[str, str], part: Iterable[Change]) -> dict[str, str]:
    """Return the labels after some changes."""
    changed: dict[str, str | None] = {**state, **dict(part)}
    return {key: value for key, value in changed.items() if value is not None}


def _removal(meta: NodeMetadata, keys: Iterable[str]) -> list[Mapping[str, object]]:
    """Return the JSON patch that removes labels of a Node if they still have the same values."""
    patch: list[Mapping[str, object]] = []
    for key in sorted(keys):
        path = "/metadata/labels/" + key.replace("~", "~0").replace("/", "~1")
        patch.append({"op": "test", "path": path, "value": meta.labels[key]})
        patch.append({"op": "remove", "path": path})
    return [{"op": "test", "path": "/metadata/uid", "value": meta.uid}, *patch] if patch else []


def settled(report: Report) -> bool:
    """Return whether what every set says is known, and every accepted profile is in place.

    A kind that this node cannot have is no reason to wait; one that could not be looked at is. A
    set that is refused as a whole (an invalid node selector, too large) is like a rejected key:
    waiting would not help. An emptied set has nothing to wait for only if its profiles were
    installed before: on a fresh node it may be a ConfigMap that is still being filled.
    """
    never = {
        kind
        for kind, support in report.kind_support.items()
        if support.state == SupportState.DISABLED
    }
    if report.pending:
        return False
    installed = {row.profile_set for row in report.profiles if row.name and row.state in ON_NODE}
    return all(
        status.state == ProfileSetState.READ
        or (status.state == ProfileSetState.EMPTIED and status.profile_set in installed)
        or status.cause in (UnreadableCause.INVALID, UnreadableCause.OVER_LIMIT)
        for status in report.profile_sets
    ) and all(
        row.state in _SETTLED or (row.state == ProfileState.UNSUPPORTED and row.kind in never)
        for row in report.profiles
    )


def not_ours(error: WrongNodeError, name: str) -> Finding:
    """Say that the Node is not, or not yet, this machine's."""
    return Finding(
        code="node_unknown",
        location=f"node {name}",
        message=f"No label was changed: {error}.",
        hint="It is tried again; if it stays, compare --node-name with `kubectl get nodes`.",
    )


def fought(name: str) -> Finding:
    """Say that somebody else changes the agent's labels again and again."""
    return Finding(
        code="label_fought",
        location=f"node {name}",
        message="Somebody else takes the agent's labels off again and again; they are put back "
        "less "
        "and less often.",
        hint="kubectl get node --show-managed-fields -o yaml names the other field manager.",
    )


def _refused(changes: Collection[Change], refusal: str, name: str) -> Finding:
    """Report which labels the API server rejects."""
    keys = sorted({key for key, _ in changes})
    more = f" and {len(keys) - REFUSED_SHOWN} more" if len(keys) > REFUSED_SHOWN else ""
    return Finding(
        code="label_refused",
        location=f"node {name}",
        message=f"The API server refuses {len(keys)} of the agent's labels: "
        f"{', '.join(keys[:REFUSED_SHOWN])}{more}: {refusal}. All other labels are correct.",
        hint="Apply the admission policy of this release. The agent tries again by itself.",
    )


def failed(error: KubeError, name: str) -> Finding:
    """Say that the API server could not be asked, or refused."""
    return Finding(
        code="node_unreachable",
        location=f"node {name}",
        message=f"The Node's labels could not be brought up to date: {error}.",
        hint="It is tried again. A refusal is a matter of RBAC or of the admission policy.",
    )
