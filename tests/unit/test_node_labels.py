"""Tests of agent.kube.node_labels, with an API server in memory."""

from collections.abc import Callable
from typing import Any

import pytest

from agent.core.finding_codes import FindingCode
from agent.core.findings import Finding
from agent.core.report import ProfileSetStatus, ProfileStatus
from agent.core.vocabulary import ProfileSetState
from agent.kube import node_findings, node_labels, startup_taint
from agent.kube.errors import KubeError, StatusError, UnreachableError
from agent.kube.node_labels import NodeLabeler
from agent.kube.own_node import NodeMetadata, NodeOptions, WrongNodeError, node_metadata
from tests.api_server import BOOT_ID, NAME, UID, ApiServer
from tests.narrowing import not_none
from tests.reports import SET, D, report, row

READY = f"set.{D}/ns__web"
A, B = f"seccomp.{D}/a.json", f"seccomp.{D}/b.json"
TAINT = {"key": f"{D}/startup", "effect": "NoSchedule"}
OTHER = {"key": "other", "effect": "NoSchedule"}


def own_node(
    server: ApiServer, *, boot_id: str = BOOT_ID, **options: Any
) -> node_labels.NodeLabeler:
    options = {"name": NAME, "domain": D, **options}
    return NodeLabeler(server, NodeOptions(**options), boot_id=lambda: boot_id)


def observed(server: ApiServer) -> NodeMetadata:
    return node_metadata(server.snapshot())


def test_all_labels_are_set_in_one_request_and_unchanged_labels_in_none() -> None:
    """One request sets all labels. If the labels are unchanged, the agent only reads the Node once
    to verify it.
    """
    server = ApiServer({"kubernetes.io/os": "linux"})
    own = own_node(server)
    answer = own.publish(observed(server), {A: "installed", B: "installed"})
    assert server.requests() == ["GET", "APPLY"]
    assert answer == NodeMetadata(
        uid=UID, labels={"kubernetes.io/os": "linux", A: "installed", B: "installed"}
    )
    assert own.publish(answer, {A: "installed", B: "installed"}) is answer
    assert server.requests() == []
    own.publish(answer, {A: "installed"})
    assert server.requests() == ["APPLY"]
    assert server.labels == {"kubernetes.io/os": "linux", A: "installed"}


def test_a_label_that_another_client_removed_or_changed_is_restored() -> None:
    """If another client removed or changed a label of the agent, the label is restored."""
    server = ApiServer()
    own = own_node(server)
    own.publish(observed(server), {A: "installed", B: "installed"})
    server.drop_label(A)
    server.set_label(B, "forged")
    own.publish(observed(server), {A: "installed", B: "installed"})
    assert server.labels == {A: "installed", B: "installed"}
    assert server.owners == {A: {"profile-loader"}, B: {"profile-loader"}}


def test_a_foreign_label_with_the_agents_prefix_stays_and_is_reported() -> None:
    """A foreign label with the agent's prefix stays and is reported, with a single request in
    total.
    """
    server = ApiServer({B: "forged"})
    own = own_node(server)
    answer = own.publish(observed(server), {A: "installed"})
    assert server.labels == {A: "installed", B: "forged"}
    assert own.findings() == (
        Finding(
            code=FindingCode.LABEL_FOREIGN,
            location=B,
            message="The label has the agent's prefix, and another field manager owns it. The "
            "agent does not change this label, which describes no profile on this node.",
            hint=f"kubectl label node {NAME} {B}-",
        ),
    )
    server.requests()
    own.publish(answer, {A: "installed"})
    assert server.requests() == []


def test_a_foreign_label_that_was_removed_is_no_longer_reported() -> None:
    """After a foreign label is removed, it is no longer reported. The end of the report needs no
    request.
    """
    server = ApiServer({B: "forged"})
    own = own_node(server)
    own.publish(observed(server), {A: "installed"})
    server.drop_label(B)
    server.requests()
    own.publish(observed(server), {A: "installed"})
    assert (own.findings(), server.requests()) == ((), [])


def test_a_label_that_another_manager_also_owns_stays_and_is_reported() -> None:
    """If another manager also owns a label, the agent releases its own ownership and reports the
    label.
    """
    server = ApiServer()
    own = own_node(server)
    own.publish(observed(server), {A: "installed", B: "installed"})
    server.set_label(B, "installed")
    answer = own.publish(observed(server), {A: "installed"})
    assert answer.labels == {A: "installed", B: "installed"}
    assert own.own_labels(answer) == {A: "installed"}
    assert [finding.location for finding in own.findings()] == [B]


def test_labels_with_similar_prefixes_are_foreign() -> None:
    """Labels with a longer prefix, a shorter prefix or no prefix are foreign."""
    own = own_node(ApiServer())
    others = {"kubernetes.io/os": "linux", f"x.{D}/a": "1", f"x{D}/a": "1", "plain": "1"}
    assert own.own_labels(NodeMetadata(uid=UID, labels={**others, A: "installed"})) == {
        A: "installed"
    }


@pytest.mark.parametrize("boot_id", ["", "another"])
def test_a_node_with_another_boot_id_is_never_labelled(boot_id: str) -> None:
    """If a Node has another boot ID or no boot ID, the agent sets no label."""
    server = ApiServer(boot_id=boot_id)
    with pytest.raises(WrongNodeError, match=boot_id or "none yet"):
        own_node(server).publish(observed(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({}, ["GET"])


def test_without_the_boot_id_of_this_kernel_no_label_is_set() -> None:
    """If the boot ID of this kernel is unknown, the agent sets no label, even on a Node without a
    boot ID.
    """
    server = ApiServer(boot_id="")
    with pytest.raises(WrongNodeError, match="cannot be read"):
        own_node(server, boot_id="").publish(observed(server), {A: "installed"})
    assert server.labels == {}


@pytest.mark.parametrize("part", ["status", "nodeInfo"])
def test_a_node_without_node_info_is_not_labelled(part: str) -> None:
    """A Node that was just created has no status, so the agent does not label it."""
    server = ApiServer()
    if part == "status":
        del server.node["status"]
    else:
        server.node["status"] = {"nodeInfo": None}
    with pytest.raises(WrongNodeError, match="none yet"):
        own_node(server).publish(observed(server), {A: "installed"})
    assert server.labels == {}


def test_a_node_without_a_uid_is_verified_like_any_other_node() -> None:
    """A Node without a uid is verified like any other Node, even if another Node was verified
    before.
    """
    server = ApiServer(boot_id="another")
    with pytest.raises(WrongNodeError):
        own_node(server).publish(NodeMetadata(uid=""), {A: "installed"})
    assert server.labels == {}


def test_a_node_that_was_created_again_is_labelled_only_with_its_own_token() -> None:
    """If a Node was created again, the agent labels it only with a token that contains the
    new uid.
    """
    server = ApiServer(bound=UID)
    own = own_node(server)
    own.publish(observed(server), {A: "installed"})
    server.make(uid="uid-2")
    server.requests()
    with pytest.raises(WrongNodeError, match="created again"):
        own.publish(observed(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({}, [])
    server.bound = "uid-2"
    own.publish(observed(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({A: "installed"}, ["GET", "APPLY"])


def test_a_stale_store_does_not_label_a_new_node_with_the_same_name() -> None:
    """If the store is stale, the API server compares the uid and rejects the request, so a new Node
    with the same name is not labelled.
    """
    server = ApiServer()
    own = own_node(server)
    old = own.publish(observed(server), {A: "installed"})
    server.make(uid="uid-2")
    with pytest.raises(StatusError) as error:
        own.publish(old, {B: "installed"})
    assert (error.value.status, server.labels) == (409, {})


def test_a_missing_node_is_not_created() -> None:
    """If the Node is missing, the request fails, and the API server does not create the Node."""
    server = ApiServer()
    own = own_node(server)
    old = own.publish(observed(server), {A: "installed"})
    server.node = None
    with pytest.raises(StatusError):
        own.publish(old, {})
    assert server.node is None


@pytest.mark.parametrize(
    "lost", [UnreachableError("no response in time"), StatusError(504, "Timeout", "x")]
)
def test_labels_are_applied_again_after_a_lost_response(lost: KubeError) -> None:
    """If a response is lost, the agent applies the labels again, because the data in the store may
    be outdated.
    """
    server = ApiServer()
    own = own_node(server)
    before = observed(server)
    own.identity.require_own_node(before)
    server.lost = [lost]
    with pytest.raises(KubeError):
        own.publish(before, {A: "installed"})
    assert server.labels == {A: "installed"}
    answer = own.publish(before, {})
    assert (answer.labels, server.labels) == ({}, {})
    server.requests()
    own.publish(answer, {})
    assert server.requests() == []


def test_a_rejected_request_has_no_effect() -> None:
    """A rejected request has no effect, so the agent need not undo it."""
    server = ApiServer()
    own = own_node(server)
    before = observed(server)
    own.identity.require_own_node(before)
    server.errors = [StatusError(403, "Forbidden", "cannot patch")] * 2
    with pytest.raises(StatusError):
        own.publish(before, {A: "installed"})
    server.requests()
    assert own.publish(before, {}) is before
    assert server.requests() == []


def denies(*keys: str) -> Callable[[dict[str, str], dict[str, str]], str]:
    """Return a policy that denies every change of some labels."""

    def policy(before: dict[str, str], after: dict[str, str]) -> str:
        changed = [key for key in keys if before.get(key) != after.get(key)]
        return f"denied: {changed[0]}" if changed else ""

    return policy


def key(number: int) -> str:
    return f"seccomp.{D}/{number}.json"


def test_a_rejected_label_does_not_affect_the_others() -> None:
    """If one label is rejected, the other labels are still set and removed."""
    server = ApiServer()
    own = own_node(server)
    before = own.publish(observed(server), {key(1): "installed", key(2): "installed"})
    server.policy = denies(READY)
    expected = {key(2): "installed", key(3): "installed", READY: "ready"}
    answer = own.publish(before, expected)
    assert server.labels == {key(2): "installed", key(3): "installed"}
    assert own.allowed_labels(answer, expected) == server.labels == answer.labels
    assert own.findings() == (
        Finding(
            code=FindingCode.LABEL_REFUSED,
            location=f"node {NAME}",
            message=f"The API server rejects 1 of the agent's labels: {READY}: 403 Forbidden: "
            "denied: "
            f"{READY}. All other labels are correct.",
            hint="Apply the admission policy of this release. The agent then tries again "
            "automatically.",
        ),
    )


def test_rejected_labels_are_not_sent_again_with_every_change() -> None:
    """The agent does not send rejected labels again with every change of other labels."""
    server = ApiServer()
    own = own_node(server)
    server.policy = denies(READY)
    expected = {key(1): "installed", READY: "ready"}
    answer = own.publish(observed(server), expected)
    server.requests()
    assert own.publish(answer, expected) is answer
    assert server.requests() == []
    expected[key(2)] = "installed"
    own.publish(answer, expected)
    assert server.requests() == ["APPLY"]
    server.policy = denies()
    own.retry_refused()
    answer = own.publish(observed(server), expected)
    assert (server.labels, own.findings()) == (expected, ())


def test_a_label_whose_removal_is_rejected_stays_and_the_others_are_removed() -> None:
    """If the removal of a label is rejected, the other labels are still removed."""
    server = ApiServer()
    own = own_node(server)
    before = own.publish(observed(server), {key(number): "installed" for number in range(5)})
    server.policy = denies(key(1))
    answer = own.publish(before, {key(5): "installed"})
    assert server.labels == {key(1): "installed", key(5): "installed"}
    assert own.refused == {(key(1), None)}
    server.requests()
    assert own.publish(answer, {key(5): "installed"}) is answer
    assert server.requests() == []


def test_a_rejected_value_removes_the_previous_value() -> None:
    """If a new value of a label is rejected, the agent removes the label with its previous
    value.
    """
    server = ApiServer()
    own = own_node(server)
    web = f"apparmor.{D}/web"
    before = own.publish(observed(server), {web: "enforce", key(1): "installed"})
    server.policy = lambda _, after: "denied" if "complain" in after.values() else ""
    own.publish(before, {web: "complain", key(1): "installed"})
    assert server.labels == {key(1): "installed"}


@pytest.mark.parametrize("count", [1, 2, 3, 40, 200])
def test_many_rejected_labels_are_found_within_a_few_attempts(count: int) -> None:
    """An attempt sends a limited number of requests. The attempt sets the labels of all groups that
    contain no rejected label.
    """
    server = ApiServer()
    own = own_node(server)
    refused = {key(number): "installed" for number in range(0, 200, 200 // count)}
    fine = {key(number): "installed" for number in range(200)}.keys() - refused.keys()
    expected = dict.fromkeys([*refused, *fine], "installed") | {READY: "ready"}
    server.policy = denies(*refused)
    meta = observed(server)
    for _ in range(20):
        own.retry_refused()
        meta = own.publish(meta, expected)
        assert READY in server.labels
        assert len(server.requests()) <= 2 + 1 + node_labels.REFUSAL_REQUESTS
        if server.labels.keys() == fine | {READY}:
            break
    assert server.labels.keys() == fine | {READY}


def test_a_request_is_not_split_after_an_error_that_is_not_about_its_content() -> None:
    """If an error is not about the content of a request, the request is not split into several
    requests.
    """
    server = ApiServer()
    own = own_node(server)
    before = observed(server)
    own.identity.require_own_node(before)
    server.requests()
    server.errors = [StatusError(429, "TooManyRequests", "later")]
    with pytest.raises(StatusError, match="later"):
        own.publish(before, {A: "installed"})
    assert server.requests() == ["APPLY"]


def test_an_api_server_that_becomes_busy_ends_the_attempt() -> None:
    """If the API server becomes busy during an attempt, the agent stops the attempt, and the labels
    that are already set stay.
    """
    server = ApiServer()
    own = own_node(server)
    before = observed(server)
    own.identity.require_own_node(before)
    server.errors = [StatusError(403, "Forbidden", "denied")]
    applies = []

    def busy(_: dict[str, str], after: dict[str, str]) -> str:
        applies.append(dict(after))
        if len(applies) == 3:
            raise StatusError(429, "TooManyRequests", "later")
        return ""

    server.policy = busy
    with pytest.raises(StatusError, match="later"):
        own.publish(before, {A: "installed", READY: "ready"})
    assert applies == [{}, {A: "installed"}, {A: "installed", READY: "ready"}]


def test_only_the_startup_taint_is_removed_and_only_once() -> None:
    """One request removes the startup taint with all of its effects. Other taints stay in order."""
    hard = {"key": TAINT["key"], "effect": "NoExecute"}
    server = ApiServer(taints=[TAINT, OTHER, hard])
    own = own_node(server, taint=TAINT["key"])
    own.remove_startup_taint(observed(server), report(row()))
    assert not_none(server.node)["spec"]["taints"] == [OTHER]
    # One request verifies the Node, and two requests read and remove the taints.
    assert server.requests() == ["GET", "GET", "PATCH"]
    own.remove_startup_taint(observed(server), report(row()))
    assert server.requests() == []


def test_a_node_without_taints_is_read_once() -> None:
    """The taints of a Node without taints are read only once."""
    server = ApiServer()
    del not_none(server.node)["spec"]["taints"]
    own = own_node(server, taint=TAINT["key"])
    own.remove_startup_taint(observed(server), report(row()))
    own.remove_startup_taint(observed(server), report(row()))
    # One request verifies the Node, and one request reads the taints.
    assert server.requests() == ["GET", "GET"]


def test_without_the_option_no_taint_is_read() -> None:
    """Without the option, the agent reads no taint, because the permission to remove taints is in a
    separate component.
    """
    server = ApiServer(taints=[TAINT])
    own_node(server).remove_startup_taint(observed(server), report(row()))
    assert (not_none(server.node)["spec"]["taints"], server.requests()) == ([TAINT], [])


def test_the_startup_taint_stays_until_every_accepted_profile_is_installed() -> None:
    """The startup taint stays until a report shows every accepted profile as installed. No request
    about taints is sent before.
    """
    server = ApiServer(taints=[TAINT])
    own = own_node(server, taint=TAINT["key"])
    own.remove_startup_taint(observed(server), report(row(), row("b.json", "failed")))
    assert (not_none(server.node)["spec"]["taints"], server.requests()) == ([TAINT], [])
    own.remove_startup_taint(observed(server), report(row(), row("b.json")))
    assert not_none(server.node)["spec"]["taints"] == []


def test_a_foreign_node_keeps_its_taint() -> None:
    """The agent does not remove the taint from the Node of another machine."""
    server = ApiServer(taints=[TAINT], boot_id="another")
    with pytest.raises(WrongNodeError):
        own_node(server, taint=TAINT["key"]).remove_startup_taint(observed(server), report(row()))
    assert not_none(server.node)["spec"]["taints"] == [TAINT]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("installed", True),
        ("outdated", True),
        ("held", True),
        ("rejected", True),
        ("unsupported", False),
        ("removed", True),
        ("released", True),
        ("foreign", False),
        ("failed", False),
        ("unobservable", False),
        ("planned", False),
    ],
)
def test_every_accepted_profile_must_be_installed(state: str, expected: bool) -> None:
    """The taint stays if an accepted profile could not be installed. A rejected key does not
    prevent the removal.
    """
    assert startup_taint.is_removable(report(row(), row("b.json", state))) is expected


def test_an_unsupported_kind_does_not_keep_the_taint() -> None:
    """A kind that the node does not support does not prevent the removal of the taint."""
    unsupported = row("web", "unsupported", kind="apparmor")
    assert startup_taint.is_removable(report(row(), unsupported, apparmor="disabled")) is True
    assert startup_taint.is_removable(report(row(), unsupported, apparmor="enabled")) is False


EMPTIED = (ProfileSetStatus(profile_set=SET, state=ProfileSetState.EMPTIED),)


def test_an_emptied_set_with_installed_profiles_does_not_keep_the_taint() -> None:
    """An emptied profile set with installed profiles does not prevent the removal of the taint."""
    assert startup_taint.is_removable(report(row(state="held"), sets=EMPTIED)) is True


@pytest.mark.parametrize(
    "rows", [[], [row(origin="configmap ns/other")], [row(state="failed")], [row("", "rejected")]]
)
def test_an_emptied_set_that_was_never_installed_keeps_the_taint(rows: list[ProfileStatus]) -> None:
    """The taint stays for an emptied profile set that was never installed, because a user may still
    fill it.
    """
    sets = (
        *EMPTIED,
        ProfileSetStatus(profile_set="configmap ns/other", state=ProfileSetState.READ, keys=1),
    )
    assert startup_taint.is_removable(report(*rows, sets=sets)) is False


@pytest.mark.parametrize(
    ("state", "cause", "expected"),
    [
        ("missing", None, False),
        ("unreadable", "unanswered", False),
        ("unreadable", "invalid", True),
        ("unreadable", "over_limit", True),
    ],
)
def test_only_a_set_that_may_still_be_read_keeps_the_taint(
    state: str, cause: str | None, expected: bool
) -> None:
    """The taint stays only for a profile set that may still be read. An invalid node selector, or a
    set that is too large, does not prevent the removal.
    """
    sets = (
        ProfileSetStatus(profile_set=SET, state=state, cause=cause),
        ProfileSetStatus(profile_set="dir /p", state=ProfileSetState.READ),
    )
    assert startup_taint.is_removable(report(row(origin="dir /p"), sets=sets)) is expected


def test_unlabel_removes_every_label_with_a_prefix_of_the_agent() -> None:
    """The command `unlabel` removes every label with a prefix of the agent, and no other label."""
    server = ApiServer({"kubernetes.io/os": "linux", f"{D}/a~b": "x", f"seccomp.{D}/old": "x"})
    own = own_node(server)
    own.publish(observed(server), {A: "installed"})
    server.requests()
    own.remove_labels()
    assert server.labels == {"kubernetes.io/os": "linux"}
    assert server.requests() == ["GET", "PATCH"]
    own.remove_labels()
    assert server.requests() == ["GET"]


def test_forged_fields_are_released_before_an_apply() -> None:
    """The agent releases forged fields before it applies labels, because the apply would otherwise
    remove these fields.
    """
    server = ApiServer()
    own = own_node(server)
    not_none(server.node)["metadata"]["managedFields"] = [
        {
            "manager": "profile-loader",
            "operation": "Apply",
            "fieldsV1": {"f:spec": {"f:taints": {}}},
        }
    ]
    before = observed(server)
    answer = own.publish(before, {A: "installed"})
    assert (server.labels, server.requests()) == (
        {A: "installed"},
        ["GET", "GET", "PATCH", "APPLY"],
    )
    assert (before.is_forged, answer.is_forged) == (True, False)
    own.publish(before, {B: "installed"})
    assert server.requests() == ["GET", "APPLY"]


def test_unlabel_tries_again_after_a_label_changed() -> None:
    """If a label changes during `unlabel`, the command tries again, but only a limited number of
    times.
    """
    server = ApiServer({A: "installed"})
    own = own_node(server)
    changes = iter(range(3))

    def change() -> None:
        if server.asked[-1].startswith("PATCH") and next(changes, None) is not None:
            server.set_label(A, f"value-{len(server.asked)}")

    server.during = change
    own.remove_labels()
    assert (server.labels, server.requests()) == ({}, ["GET", "PATCH"] * 4)
    server.set_label(A, "installed")
    changes = iter(range(100))
    with pytest.raises(StatusError, match="the test failed"):
        own.remove_labels()
    assert server.requests() == ["GET", "PATCH"] * node_labels.UNLABEL_ATTEMPTS


def test_unlabel_of_a_node_that_was_created_again_changes_nothing() -> None:
    """If the Node is created again during `unlabel`, the command changes nothing."""
    server = ApiServer({A: "installed"})
    server.during = lambda: (
        server.asked[-1].startswith("PATCH")
        and server.make({A: "installed"}, uid=f"uid-{len(server.asked)}")
    )
    with pytest.raises(StatusError):
        own_node(server).remove_labels()
    assert server.labels == {A: "installed"}


def test_unlabel_without_permission_is_reported_immediately() -> None:
    """If `unlabel` lacks a permission, it reports this immediately."""
    server = ApiServer({A: "installed"})
    server.during = lambda: (
        server.asked[-1].startswith("PATCH")
        and server.errors.append(StatusError(403, "Forbidden", "cannot patch"))
    )
    with pytest.raises(StatusError, match="cannot patch"):
        own_node(server).remove_labels()
    assert server.requests() == ["GET", "PATCH"]


def test_desired_labels_contain_the_existing_labels() -> None:
    """The desired labels contain the existing labels, within the limit and the domain of the
    options.
    """
    server = ApiServer({B: "installed"})
    own = own_node(server, limit=1, digest=True)
    complete = report(row(source_digest="0123456789abcdef"), row("b.json"), sets=())
    assert own.desired_labels(complete, own.read()).labels == {B: "installed"}
    assert own.desired_labels(complete, None).labels == {A: "installed"}


@pytest.mark.parametrize("metadata", ["text", ["list"], {"labels": ["list"]}, {"labels": "text"}])
def test_a_node_whose_labels_are_not_a_mapping_is_unreadable(
    metadata: str | list[str] | dict[str, str | list[str]],
) -> None:
    """A Node whose labels are not a mapping is unreadable."""
    with pytest.raises(UnreachableError):
        node_metadata({"metadata": metadata})


@pytest.mark.parametrize("metadata", [None, {}, {"labels": None}])
def test_an_object_without_metadata_has_no_uid_and_no_labels(
    metadata: dict[str, None] | None,
) -> None:
    """An object without metadata has an empty uid and no labels."""
    assert node_metadata({"metadata": metadata}) == NodeMetadata(uid="", labels={})


def test_problems_of_the_node_are_findings() -> None:
    """The findings about the Node contain its name and the reason."""
    assert [
        node_findings.wrong_node("the boot ID is different", NAME),
        node_findings.unreachable(StatusError(403, "Forbidden", "denied"), NAME),
    ] == [
        Finding(
            code=FindingCode.NODE_UNKNOWN,
            location=f"node {NAME}",
            message="No label was changed: the boot ID is different.",
            hint="The agent tries again. If the finding stays, compare --node-name with `kubectl "
            "get nodes`.",
        ),
        Finding(
            code=FindingCode.NODE_UNREACHABLE,
            location=f"node {NAME}",
            message="The Node's labels could not be updated: 403 Forbidden: denied.",
            hint="The agent tries again. Check RBAC and the admission policy.",
        ),
    ]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (404, "Compare --node-name with the names that `kubectl get nodes` prints."),
        (401, "Check the credentials in the kubeconfig or in the pod's token."),
        (403, "Check RBAC and the admission policy."),
        (429, "Check the load and the log of the API server."),
        (503, "Check the load and the log of the API server."),
        (0, "Check the address of the API server, and the network."),
    ],
)
def test_a_single_run_that_cannot_set_labels_reports_an_error_and_the_next_step(
    status: int, answer: str
) -> None:
    """If a single run cannot set labels, it reports an error. The next step depends on the response
    of the API server.
    """
    finding = node_findings.labels_not_set("no response", status, NAME)
    assert (finding.code, finding.severity) == ("node_unreachable", "error")
    assert finding.hint == f"{answer} Then run the command again."
