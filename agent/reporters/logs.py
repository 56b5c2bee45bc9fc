"""Logs on standard error: JSON off a terminal, one line an event, libraries' lines included.

Rule 1: no profile body, no local variable of a traceback, no environment is ever logged.
"""

import logging
import sys
from typing import Literal

import structlog

from agent.core.problems import Problem
from agent.core.report import Report, Row
from agent.reporters import table


def configure(form: Literal["auto", "json", "console"], level: str) -> None:
    """Set up structlog and the standard library's logging to write the same lines."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
    last: list[structlog.typing.Processor] = (
        [_clean, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if console
        else [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
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
    logger = structlog.stdlib.get_logger("agent")
    for row in report.rows:
        event = _event(row)
        if event:
            logger.info(event, **_keys(row))
        for problem in row.problems:
            if problem.code != "kind_unsupported":  # said once for the node, below
                _problem(logger, problem, _keys(row))
    for kind, support in report.supports.items():
        if support.problem is not None:
            logger.warning(
                "kind_not_enabled", kind=kind, state=support.state, what=support.problem.what
            )
    for problem in report.problems:
        _problem(logger, problem, {})
    changed = any(_event(row) for row in report.rows)
    logger.log(
        logging.INFO if changed else logging.DEBUG,
        "pass_finished",
        profiles=len(report.rows),
        converged=report.converged,
        dry_run=report.dry_run,
        seconds=round(sum(report.seconds.values()), 3),
    )


def _event(row: Row) -> str:
    if row.action == "put" and row.state in ("installed", "outdated", "held"):
        return "profile_put"
    return {"removed": "profile_removed", "released": "profile_released"}.get(row.state, "")


def _keys(row: Row) -> dict[str, str]:
    keys = {"kind": row.kind, "origin": row.origin, "key": row.key, "name": row.name}
    return {**keys, "why": row.why, "digest": row.source[:12]}


def _problem(logger: structlog.stdlib.BoundLogger, problem: Problem, keys: dict[str, str]) -> None:
    level = {"error": logging.ERROR, "warning": logging.WARNING, "notice": logging.INFO}
    said = {"code": problem.code, "where": problem.where, "what": problem.what}
    logger.log(level[problem.severity], "profile_problem", **keys, **said, hint=problem.hint)
