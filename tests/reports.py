"""Builds reports for the tests of reporters, metrics and labels."""

import time
from collections.abc import Callable, Mapping
from typing import TypedDict, Unpack

from agent.core.findings import Finding
from agent.core.model import ProfileKind
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import (
    ActionName,
    ProfileSetState,
    ProfileState,
    Reason,
    SupportState,
)
from agent.heartbeat import Heartbeat
from agent.reporting.metrics import Metrics
from agent.reporting.status_store import StatusStore

D = "example.org"
SET = "configmap ns/web"
READ = (ProfileSetStatus(profile_set=SET, state=ProfileSetState.READ, keys=1),)


class RowFields(TypedDict, total=False):
    """The fields of a row that depend on its name, and those that most rows do not have."""

    key: str
    localhost_profile: str
    source_digest: str
    installed: str
    policy: str
    mode: str
    desired: bool
    findings: tuple[Finding, ...]
    reason_text: str


class StoreOptions(TypedDict, total=False):
    """The options of a status store that tests replace."""

    version: str
    node: str
    patience: float
    heartbeat: Heartbeat
    labels: Callable[[], Mapping[str, str]]
    unconfined_processes: Callable[[], int]
    domain: str
    runbook_url: str
    allow_unsupported: bool


def row(  # noqa: PLR0913 - the fields that tests set
    name: str = "a.json",
    state: str = "installed",
    kind: ProfileKind = "seccomp",
    origin: str = SET,
    *,
    action: str = "keep",
    reason: str = "",
    **more: Unpack[RowFields],
) -> ProfileStatus:
    fields: RowFields = {"key": name, "localhost_profile": name, **more}
    return ProfileStatus(
        kind=kind,
        profile_set=origin,
        name=name,
        state=ProfileState(state),
        action=ActionName(action),
        reason=Reason(reason),
        **fields,
    )


def report(
    *rows: ProfileStatus,
    sets: tuple[ProfileSetStatus, ...] = READ,
    findings: tuple[Finding, ...] = (),
    apparmor: str = "",
    seccomp: str = "",
) -> Report:
    states: dict[ProfileKind, str] = {"apparmor": apparmor, "seccomp": seccomp}
    return Report(
        profiles=rows,
        profile_sets=sets,
        kind_support={
            kind: KindSupport(state=SupportState(state)) for kind, state in states.items() if state
        },
        findings=findings,
    )


def status_store(
    metrics: Metrics,
    store_class: type[StatusStore] = StatusStore,
    **more: Unpack[StoreOptions],
) -> StatusStore:
    """Return a status store for a process with a running loop and an unlabelled Node."""
    fields: StoreOptions = {
        "version": "1",
        "node": "n",
        "patience": 60.0,
        "heartbeat": Heartbeat(time.monotonic),
        "labels": dict,
        "unconfined_processes": lambda: 0,
        "domain": D,
        "runbook_url": "",
        "allow_unsupported": False,
        **more,
    }
    return store_class(metrics, **fields)


def scrape(metrics: Metrics, accept: str = "") -> tuple[str, bytes]:
    """Scrape the metrics with an Accept header, and return the content type and the body."""
    content_type, render = metrics.renderer(accept)
    return content_type, render()
