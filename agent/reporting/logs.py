"""Logs on standard error: JSON off a terminal, one line per event, libraries' lines included.

Rule 1: no profile body, no local variable of a traceback, no environment is ever logged.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Final, Literal

import structlog

from agent.core.findings import Finding, Severity
from agent.core.report import ProfileStatus, Report
from agent.core.vocabulary import INSTALLS, ON_NODE, ActionName, ProfileState
from agent.reporting import table
from agent.reporting.log_writer import LogWriter, QueueHandler


def configure(
    form: Literal["auto", "json", "console"], level: str, writer: LogWriter | None = None
) -> None:
    """Set up structlog and the standard library's logging to write the same lines.

    writer: writes the lines to standard error in its own thread; without it each call does.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
    last: list[structlog.typing.Processor] = (
        [
            _clean,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # The default shows local variables wherever rich can be imported.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
        if console
        else [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    )
    handler = logging.StreamHandler(sys.stderr) if writer is None else QueueHandler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in ("urllib3", "watchdog"):  # every request and every read, else
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


def _clean(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape what is not printable; JSON does that by itself."""
    return {
        key: table.clean(value) if isinstance(value, str) else value for key, value in event.items()
    }


def log(report: Report) -> None:
    """Log what a pass did: a line for each change and problem, one summary."""
    ReportLogger().on_report(report, 0.0, passed=True)


class ReportLogger:
    """Logs reports one after another: what a pass did, problems when they come and when they go."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str, str], Finding] = {}

    def on_report(self, report: Report, at: float, *, passed: bool) -> None:  # noqa: ARG002 - an audience's
        """Log one report: what a pass did, and problems that came or went."""
        logger = structlog.stdlib.get_logger("agent")
        events = [(event, row) for row in report.profiles if passed and (event := _event(row))]
        for event, row in events:
            logger.info(event, **_keys(row))
        found = dict(_problems(report))
        for what, finding in found.items():
            if self._known.get(what) == finding:
                continue
            if what[1] == "node":  # of a whole kind
                logger.warning("kind_not_enabled", kind=what[0], what=finding.message)
            else:
                _log_finding(logger, finding, _about(what))
        for what, finding in self._known.items():
            if what not in found:
                over = {"code": finding.code, "where": finding.location}
                logger.info("problem_over", **_about(what), **over)
        if passed:
            self._summary(logger, report, changed=bool(events) or found != self._known)
        self._known = found

    def _summary(
        self, logger: structlog.stdlib.BoundLogger, report: Report, *, changed: bool
    ) -> None:
        logger.log(
            logging.INFO if changed else logging.DEBUG,
            "pass_finished",
            profiles=len(report.profiles),
            converged=report.converged,
            dry_run=report.dry_run,
            seconds=round(sum(report.seconds.values()), 3),
        )


def _about(what: tuple[str, str, str, str]) -> dict[str, str]:
    names = ("kind", "origin", "key")
    return {name: one for name, one in zip(names, what, strict=False) if one}


def _problems(report: Report) -> Iterator[tuple[tuple[str, str, str, str], Finding]]:
    """Yield every problem with what it is about; one of a code for each key is enough."""
    said = {kind for kind, one in report.kind_support.items() if one.finding is not None}
    for row in report.profiles:
        for finding in row.findings:
            if finding.code != "kind_unsupported" or row.kind not in said:
                yield (
                    (row.kind, row.profile_set, row.key, f"{finding.code} {finding.location}"),
                    finding,
                )
    for kind, support in report.kind_support.items():
        if support.finding is not None:
            yield (kind, "node", "", support.finding.code), support.finding
    for finding in report.findings:
        yield ("", "", "", f"{finding.code} {finding.location}"), finding


def _event(row: ProfileStatus) -> str:
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


def _keys(row: ProfileStatus) -> dict[str, str]:
    keys = {"kind": row.kind, "origin": row.profile_set, "key": row.key, "name": row.name}
    return {**keys, "why": row.why, "digest": row.source_digest[:12]}


def _log_finding(
    logger: structlog.stdlib.BoundLogger, finding: Finding, keys: dict[str, str]
) -> None:
    level = {
        Severity.ERROR: logging.ERROR,
        Severity.WARNING: logging.WARNING,
        Severity.NOTICE: logging.INFO,
    }
    said = {"code": finding.code, "where": finding.location, "what": finding.message}
    detail = {"detail": finding.detail} if finding.detail else {}
    level_of = level[finding.severity]
    logger.log(level_of, "profile_problem", **keys, **said, hint=finding.hint, **detail)
