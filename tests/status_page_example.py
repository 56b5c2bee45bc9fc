"""The example of the status page: a node with 300 profiles, of which 20 are rejected.

The browser tests use this example, and scripts/screenshots.py makes the pictures in docs/ from it.
"""

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.labels import node_selector
from agent.core.report import KindSupport, ProfileSetStatus, ProfileStatus, Report
from agent.core.vocabulary import ProfileSetState, SupportState
from agent.reporting.status_page import PassSummary, StatusView, page

DOMAIN = "profile-loader.node-restriction.kubernetes.io"
SOURCE = "configmap profile-loader/node-profiles"
RUNBOOK = "https://wiki.example.com/runbook.md"
PROFILES = 300
REJECTED = 20
AGE_SECONDS = 12
ENDED = 1_794_045_604.0
PASS_SECONDS = 0.25
PASS_INTERVAL_SECONDS = 300.0
PASSES = 3
UNLABELLED = 3  # the number of profiles whose labels are not set


def profile(number: int) -> ProfileStatus:
    """Return an ordinary profile. The profiles with the lowest numbers are rejected."""
    is_json = number % 3 != 0
    is_rejected = number < REJECTED
    name = f"shop/checkout-{number}.json" if is_json else f"shop-checkout-{number}"
    finding = Finding(
        code=FindingCode.BAD_VALUE if is_json else FindingCode.PARSER_REJECTED,
        location="syscalls[4].action" if is_json else "line 7",
        message='"SCMP_ACT_ALOW" is not a known action. No version of the profile is on the node.'
        if is_json
        else "syntax error, unexpected TOK_ID, expecting TOK_END_OF_RULE.",
        hint="Did you mean SCMP_ACT_ALLOW?"
        if is_json
        else "Correct the text. apparmor_parser -Q -K FILE reports the same error.",
    )
    return ProfileStatus(
        kind="seccomp" if is_json else "apparmor",
        profile_set=SOURCE,
        key=name.replace("/", "__"),
        name=name,
        localhost_profile=name,
        state="rejected" if is_rejected else "installed",
        action="reject" if is_rejected else "keep",
        reason="" if is_rejected else "unchanged",
        mode="" if is_json or is_rejected else "enforce",
        findings=(finding,) if is_rejected else (),
    )


def report(*others: ProfileStatus, pass_number: int = PASSES) -> Report:
    """Return the report about the ordinary profiles and the profiles in other states."""
    rows = (*(profile(number) for number in range(PROFILES)), *others)
    enabled = KindSupport(state=SupportState.ENABLED)
    return Report(
        profiles=rows,
        profile_sets=(
            ProfileSetStatus(profile_set=SOURCE, state=ProfileSetState.READ, keys=len(rows)),
        ),
        kind_support={"apparmor": enabled, "seccomp": enabled},
        seconds={"act": PASS_SECONDS},
        pass_number=pass_number,
    )


def labels(of: Report) -> dict[str, str]:
    """Return the labels on the Node. The labels of some installed profiles are not set."""
    present = {f"{DOMAIN}/apparmor": "enabled", f"{DOMAIN}/seccomp": "enabled"}
    for row in of.profiles[: PROFILES - UNLABELLED]:
        present |= node_selector(row, DOMAIN)
    return present


def html() -> str:
    """Return the page that the pictures show. The page depends only on the code that renders it."""
    shown = report()
    passes = [
        PassSummary(
            at=ENDED - PASS_INTERVAL_SECONDS * number, seconds=PASS_SECONDS, converged=False
        )
        for number in reversed(range(PASSES))
    ]
    view = StatusView(
        version="1.2.3",
        node="node-1",
        report=shown,
        labels=labels(shown),
        passes=tuple(passes),
        at=ENDED,
        domain=DOMAIN,
        runbook_url=RUNBOOK,
    )
    parts = page(view)
    return parts.opening(ENDED + AGE_SECONDS) + parts.ending
