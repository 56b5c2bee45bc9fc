"""Prints the report of a command as a table, as JSON, or only its errors.

agent.reporting produces the texts. agent.__main__ decides which report is printed.
"""

import os
import shutil
import sys

from agent import streams
from agent.config import Config
from agent.core.report import Report, exit_status


def print_report(
    report: Report,
    config: Config,
    *,
    selectors: bool = False,
    nothing: str = "Nothing to do",
) -> int:
    """Print a report, and return the exit status for the report.

    Args:
        report: the report.
        config: the options. With --quiet, only errors are written, to standard error.
        selectors: whether the table contains the node selector of each profile.
        nothing: the text to print instead of a table that has no rows.
    """
    status = exit_status(
        report,
        allow_unsupported=config.allow_unsupported,
        detailed=config.detailed_exitcode,
    )
    if config.output == "json" and not config.quiet:
        from agent.reporting import json_report

        streams.write(json_report.document(report, exit_status=status, domain=config.label_domain))
        return status
    from agent.reporting import table

    width = shutil.get_terminal_size((80, 24)).columns
    if config.quiet:
        sys.stderr.write(table.errors(report, width=width))
        return status
    text = table.table(
        report if config.verbose else table.without_acknowledged(report),
        width=width,
        domain=config.label_domain if selectors else "",
        nothing=nothing,
        has_colors=table.has_colors(sys.stdout, os.environ),
    )
    more = table.origins(report) if config.verbose else table.hidden_warnings(report)
    streams.write(f"{text}\n{more}" if more else text)
    return status
