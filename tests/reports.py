"""Builds reports for the tests of reporters, metrics and labels."""

import time

from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.heartbeat import Heartbeat
from agent.reporting.status_store import StatusStore

D = "example.org"
SET = "configmap ns/web"
READ = (ProfileSetStatus(profile_set=SET, state="read", keys=1),)


def row(name="a.json", state="installed", kind="seccomp", origin=SET, **more):
    fields = {"key": name, "localhost_profile": name, "action": "keep", "reason": "", **more}
    return ProfileStatus(kind=kind, profile_set=origin, name=name, state=state, **fields)


def report(*rows, sets=READ, findings=(), **supports):
    return Report(
        profiles=rows,
        profile_sets=sets,
        kind_support={kind: KindSupport(state=state) for kind, state in supports.items()},
        findings=findings,
    )


def status_store(metrics, store_class=StatusStore, **more):
    """Return a status store for a process with a running loop and an unlabelled Node."""
    fields = {
        "version": "1",
        "node": "n",
        "patience": 60.0,
        "heartbeat": Heartbeat(time.monotonic),
        "labels": dict,
        "unconfined_processes": lambda: 0,
        "domain": D,
        "runbook_url": "",
        "allow_unsupported": False,
    }
    return store_class(metrics, **{**fields, **more})


def scrape(metrics, accept=""):
    """Scrape the metrics with an Accept header, and return the content type and the body."""
    content_type, render = metrics.renderer(accept)
    return content_type, render()
