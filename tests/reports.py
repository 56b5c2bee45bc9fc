"""Builders of reports for specifications of what reads them."""

from agent.core.report import Report, Row, SetStatus, Support

D = "example.org"
SET = "configmap ns/web"
READ = (SetStatus(origin=SET, state="read", keys=1),)


def row(name="a.json", state="installed", kind="seccomp", origin=SET, **more):
    fields = {"key": name, "localhost_profile": name, "action": "keep", "why": "", **more}
    return Row(kind=kind, origin=origin, name=name, state=state, **fields)


def report(*rows, sets=READ, problems=(), **supports):
    return Report(
        rows=rows,
        sets=sets,
        supports={kind: Support(state=state) for kind, state in supports.items()},
        problems=problems,
    )
