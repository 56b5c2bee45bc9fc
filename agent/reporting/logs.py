"""Writes the log to standard error, one line per event, as JSON or in a human-readable form.

The log lines of libraries have the same format. No line contains the text of a profile, the
environment or the local variables of a traceback.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import structlog

from agent.core.finding_codes import FindingCode, Severity
from agent.core.findings import Finding
from agent.core.printable import printable
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import INSTALLS, ON_NODE, ActionName, ProfileState
from agent.reporting import table
from agent.reporting.log_writer import LogWriter, QueueHandler
from agent.version import revision, version


def configure(
    form: Literal["auto", "json", "console"], level: str, writer: LogWriter | None = None
) -> None:
    """Make structlog and Python's logging module write the same format.

    Args:
        form: the format of the lines; auto means console on a terminal, and otherwise json.
        level: the lowest level that is logged.
        writer: writes the lines in its own thread. If no writer is passed, each call writes its
            line itself.
    """
    is_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr) if writer is None else QueueHandler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_console_renderers() if is_console else _json_renderers()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At the level debug, these libraries log each request and each read.
    for library in ("urllib3", "watchdog"):
        logging.getLogger(library).setLevel(max(root.level, logging.INFO))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _console_renderers() -> list[structlog.typing.Processor]:
    return [
        _clean,
        structlog.dev.ConsoleRenderer(
            colors=table.has_colors(sys.stderr, os.environ),
            # By default, tracebacks show local variables if the package rich is installed.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _json_renderers() -> list[structlog.typing.Processor]:
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
    return [
        structlog.processors.ExceptionRenderer(frames),
        structlog.processors.JSONRenderer(sort_keys=False),
    ]


def _clean(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape characters that are not printable.

    The JSON format does not need this function, because its renderer escapes such characters.
    """
    return {
        key: printable(value) if isinstance(value, str) else value for key, value in event.items()
    }


def log(report: Report, *, with_findings: bool = True) -> None:
    """Log the report of a single pass: each change, each finding (with `with_findings`), and one
    summary.
    """
    if not with_findings:
        rows = tuple(replace(row, findings=()) for row in report.profiles)
        report = replace(report, profiles=rows, kind_support={}, findings=())
    ReportLogger().on_report(report, 0.0, passed=True)


def log_start(**options: object) -> None:
    """Log the start of the daemon, with its version, revision and most important options."""
    logger = structlog.stdlib.get_logger("agent")
    logger.info("agent_started", version=version(), revision=revision(), **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """Identifies the same finding in consecutive reports, even if its text differs."""

    code: FindingCode
    location: str
    kind: str = ""
    profile_set: str = ""
    key: str = ""
    is_whole_kind: bool = False
    """Whether the finding states that the node does not support a whole profile kind."""

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a log line that identify its subject."""
        fields = {"kind": self.kind, "origin": self.profile_set, "key": self.key}
        return {name: value for name, value in fields.items() if value}


class ReportLogger:
    """Logs consecutive reports: their actions, new findings, and resolved findings."""

    def __init__(self) -> None:
        self._known: dict[_Subject, Finding] = {}

    def on_report(self, report: Report, _at: float, /, *, passed: bool) -> None:
        """Log the differences between a report and the previous one.

        Args:
            report: the new report.
            at: when the pass ended, which is not logged, because each line has its own time.
            passed: whether a new pass made the report; False if only the findings have changed.
        """
        logger = structlog.stdlib.get_logger("agent")
        events = [(event, row) for row in report.profiles if passed and (event := _event(row))]
        for event, row in events:
            logger.info(event, **_row_fields(row))
        findings = dict(_findings(report))
        for subject, finding in findings.items():
            if self._known.get(subject) != finding:
                _log_finding(logger, subject, finding)
        for subject in self._known:
            if subject not in findings:
                place = {"code": subject.code, "where": subject.location}
                logger.info("problem_over", **subject.fields, **place)
        if passed:
            _log_summary(logger, report, is_changed=bool(events) or findings != self._known)
        self._known = findings


def _findings(report: Report) -> Iterator[tuple[_Subject, Finding]]:
    """Yield every finding together with its subject.

    If the node does not support a kind, one finding about the kind replaces all findings about its
    profiles.
    """
    supports = report.kind_support.items()
    unsupported = {kind for kind, support in supports if support.finding is not None}
    for row in report.profiles:
        for finding in row.findings:
            if finding.code != FindingCode.KIND_UNSUPPORTED or row.kind not in unsupported:
                subject = _Subject(
                    code=finding.code,
                    location=finding.location,
                    kind=row.kind,
                    profile_set=row.profile_set,
                    key=row.key,
                )
                yield subject, finding
    for kind, support in supports:
        if support.finding is not None:
            code, location = support.finding.code, support.finding.location
            subject = _Subject(code=code, location=location, kind=kind, is_whole_kind=True)
            yield subject, support.finding
    for finding in report.findings:
        yield _Subject(code=finding.code, location=finding.location), finding


def _event(row: ProfileStatus) -> str:
    """Return the log event for an action; empty if the action is not logged."""
    if row.state in ON_NODE and row.action in INSTALLS:
        return _INSTALL_EVENTS[row.action]
    return _END_EVENTS.get(row.state, "")


_INSTALL_EVENTS: Final[Mapping[ActionName, str]] = {
    ActionName.INSTALL: "profile_installed",
    ActionName.REPLACE: "profile_replaced",
    ActionName.RESTORE: "profile_restored",
}
_END_EVENTS: Final[Mapping[ProfileState, str]] = {
    ProfileState.REMOVED: "profile_removed",
    ProfileState.RELEASED: "profile_released",
}
_LEVELS: Final[Mapping[Severity, int]] = {
    Severity.ERROR: logging.ERROR,
    Severity.WARNING: logging.WARNING,
    Severity.NOTICE: logging.INFO,
}


def _row_fields(row: ProfileStatus) -> dict[str, str]:
    place = {"kind": row.kind, "origin": row.profile_set, "key": row.key, "name": row.name}
    return {**place, "why": row.why, "digest": row.source_digest[:12]}


def _log_finding(logger: structlog.stdlib.BoundLogger, subject: _Subject, finding: Finding) -> None:
    if subject.is_whole_kind:
        logger.warning("kind_not_enabled", kind=subject.kind, what=finding.message)
        return
    text = {"where": finding.location, "what": finding.message, "hint": finding.hint}
    text |= {"detail": finding.detail} if finding.detail else {}
    level = logging.INFO if finding.is_acknowledged else _LEVELS[finding.severity]
    text |= {"acknowledged": "true"} if finding.is_acknowledged else {}
    logger.log(level, "profile_problem", **subject.fields, code=finding.code, **text)


def _log_summary(logger: structlog.stdlib.BoundLogger, report: Report, *, is_changed: bool) -> None:
    logger.log(
        logging.INFO if is_changed else logging.DEBUG,
        "pass_finished",
        profiles=len(report.profiles),
        converged=report.converged,
        dry_run=report.dry_run,
        seconds=round(sum(report.seconds.values()), 3),
    )
