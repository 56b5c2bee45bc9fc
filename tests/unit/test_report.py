"""Tests of agent.core.report, which merges reports and defines convergence."""

from dataclasses import replace

from agent.core.report import ProfileStatus, exit_status, merge_reports
from tests.reports import report, row


def change(name: str, action: str, state: str = "installed", reason: str = "new") -> ProfileStatus:
    return row(name, action=action, state=state, reason=reason)


def test_the_reports_of_two_passes_are_merged() -> None:
    """The reports of two passes are merged. A change by the first pass is reported even if the
    second pass did not change the profile.
    """
    first = report(
        change("a", "install"),
        change("b", "install", state="failed"),
        change("gone", "remove", state="removed", reason="not desired"),
        change("slow", "hold", state="pending", reason="pending"),
        change("back", "restore", state="outdated", reason="went missing"),
    )
    second = report(
        change("a", "keep", reason="unchanged"),
        change("b", "install", reason="new"),
        change("slow", "install", reason="new"),
        change("back", "hold", state="outdated", reason="rejected"),
    )
    merged = merge_reports(
        replace(first, pending=1, seconds={"act": 1.0}), replace(second, seconds={"act": 2.0})
    )
    assert merged == replace(
        second,
        profiles=(
            change("a", "install"),
            change("b", "install"),
            change("slow", "install"),
            change("back", "restore", state="outdated", reason="went missing"),
            change("gone", "remove", state="removed", reason="not desired"),
        ),
        seconds={"act": 3.0},
    )


def test_a_report_with_a_pending_key_is_not_converged() -> None:
    """If the update of a key is pending, the node is not converged."""
    assert exit_status(replace(report(row()), pending=1), allow_unsupported=False) == 1
