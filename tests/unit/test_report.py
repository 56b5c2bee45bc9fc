"""Specification of reports: two passes as one, and what is converged."""

from dataclasses import replace

from agent.core.report import combined, exit_status
from tests.reports import report, row


def change(name, action, state="installed", reason="new"):
    return row(name, action=action, state=state, reason=reason)


def test_two_passes_are_reported_as_one():
    """A change by the first pass is reported where the second pass found nothing to do."""
    first = report(
        change("a", "put"),
        change("b", "put", state="failed"),
        change("gone", "remove", state="removed", reason="not desired"),
        change("slow", "hold", state="pending", reason="pending"),
        change("back", "put", state="outdated", reason="missing"),
    )
    second = report(
        change("a", "keep", reason="unchanged"),
        change("b", "put", reason="new"),
        change("slow", "put", reason="new"),
        change("back", "hold", state="outdated", reason="rejected"),
    )
    both = combined(
        replace(first, pending=1, seconds={"act": 1.0}), replace(second, seconds={"act": 2.0})
    )
    assert both == replace(
        second,
        profiles=(
            change("a", "put"),
            change("b", "put"),
            change("slow", "put"),
            change("back", "put", state="outdated", reason="missing"),
            change("gone", "remove", state="removed", reason="not desired"),
        ),
        seconds={"act": 3.0},
    )


def test_a_report_with_a_pending_key_is_not_converged():
    """A restored version whose update is still checked looks complete otherwise."""
    assert exit_status(replace(report(row()), pending=1), allow_unsupported=False) == 1
