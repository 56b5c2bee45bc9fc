"""Specification of agent.kube.node_labels, against an API server in memory."""

import pytest

from agent.core.findings import Finding
from agent.core.report import ProfileSetStatus
from agent.kube import node_labels
from agent.kube.errors import KubeError, StatusError, UnreachableError
from agent.kube.node_labels import NodeLabeler, NodeMetadata, Options, WrongNodeError
from tests.api_server import BOOT_ID, NAME, UID, ApiServer
from tests.reports import SET, D, report, row

READY = f"set.{D}/ns__web"
A, B = f"seccomp.{D}/a.json", f"seccomp.{D}/b.json"
TAINT = {"key": f"{D}/startup", "effect": "NoSchedule"}
OTHER = {"key": "other", "effect": "NoSchedule"}


def own_node(server, *, boot_id=BOOT_ID, **options):
    options = {"name": NAME, "domain": D, **options}
    return NodeLabeler(server, Options(**options), boot_id=lambda: boot_id)


def seen(server):
    return node_labels.keep(server._node())


def test_the_whole_set_goes_on_in_one_request_and_the_same_set_in_none():
    """The first one proves the Node by a GET; what does not differ is not sent."""
    server = ApiServer({"kubernetes.io/os": "linux"})
    own = own_node(server)
    answer = own.publish(seen(server), {A: "installed", B: "installed"})
    assert server.requests() == ["GET", "APPLY"]
    assert answer == NodeMetadata(
        uid=UID, labels={"kubernetes.io/os": "linux", A: "installed", B: "installed"}
    )
    assert own.publish(answer, {A: "installed", B: "installed"}) is answer
    assert server.requests() == []
    own.publish(answer, {A: "installed"})
    assert server.requests() == ["APPLY"]
    assert server.labels == {"kubernetes.io/os": "linux", A: "installed"}


def test_a_label_taken_off_or_changed_by_others_is_put_back():
    """Its key is ours, whoever wrote its value last."""
    server = ApiServer()
    own = own_node(server)
    own.publish(seen(server), {A: "installed", B: "installed"})
    server.drop_label(A)
    server.set_label(B, "forged")
    own.publish(seen(server), {A: "installed", B: "installed"})
    assert server.labels == {A: "installed", B: "installed"}
    assert server.owners == {A: {"profile-loader"}, B: {"profile-loader"}}


def test_a_label_of_another_below_our_prefix_is_left_and_told_once():
    """It costs one request, not one each time, and none is made to take it off."""
    server = ApiServer({B: "forged"})
    own = own_node(server)
    answer = own.publish(seen(server), {A: "installed"})
    assert server.labels == {A: "installed", B: "forged"}
    assert own.findings() == (
        Finding(
            code="label_foreign",
            location=B,
            message="The label is below the agent's prefix, and somebody else holds it. It is "
            "left as it is, and says nothing about this node.",
            hint=f"kubectl label node {NAME} {B}-",
        ),
    )
    server.requests()
    own.publish(answer, {A: "installed"})
    assert server.requests() == []


def test_a_label_of_another_that_is_gone_is_told_no_more():
    """Whoever follows the hint sees the problem end, without a request."""
    server = ApiServer({B: "forged"})
    own = own_node(server)
    own.publish(seen(server), {A: "installed"})
    server.drop_label(B)
    server.requests()
    own.publish(seen(server), {A: "installed"})
    assert (own.findings(), server.requests()) == ((), [])


def test_a_label_that_another_holds_too_stays_and_is_told():
    """Dropping it gives up our part alone."""
    server = ApiServer()
    own = own_node(server)
    own.publish(seen(server), {A: "installed", B: "installed"})
    server.set_label(B, "installed")
    answer = own.publish(seen(server), {A: "installed"})
    assert answer.labels == {A: "installed", B: "installed"}
    assert own.own(answer) == {A: "installed"}
    assert [one.location for one in own.findings()] == [B]


def test_no_other_label_is_counted_as_own():
    """Neither beside nor around the own prefixes."""
    own = own_node(ApiServer())
    others = {"kubernetes.io/os": "linux", f"x.{D}/a": "1", f"x{D}/a": "1", "plain": "1"}
    assert own.own(NodeMetadata(uid=UID, labels={**others, A: "installed"})) == {A: "installed"}


@pytest.mark.parametrize("told", ["", "another"])
def test_a_node_with_another_boot_id_is_never_labelled(told):
    """Neither one of another machine, nor one whose kubelet has not said yet."""
    server = ApiServer(boot_id=told)
    with pytest.raises(WrongNodeError, match=told or "none yet"):
        own_node(server).publish(seen(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({}, ["GET"])


def test_without_a_boot_id_of_this_kernel_nothing_is_labelled():
    """Two unknown ids are not the same id."""
    server = ApiServer(boot_id="")
    with pytest.raises(WrongNodeError, match="cannot be read"):
        own_node(server, boot_id="").publish(seen(server), {A: "installed"})
    assert server.labels == {}


@pytest.mark.parametrize("part", ["status", "nodeInfo"])
def test_a_node_that_says_nothing_of_its_machine_is_not_labelled(part):
    """A Node that was just created has no status."""
    server = ApiServer()
    if part == "status":
        del server.node["status"]
    else:
        server.node["status"] = {"nodeInfo": None}
    with pytest.raises(WrongNodeError, match="none yet"):
        own_node(server).publish(seen(server), {A: "installed"})
    assert server.labels == {}


def test_a_node_without_a_uid_is_proven_like_any_other():
    """No uid is not the uid of a Node that was proven before."""
    server = ApiServer(boot_id="another")
    with pytest.raises(WrongNodeError):
        own_node(server).publish(NodeMetadata(uid=""), {A: "installed"})
    assert server.labels == {}


def test_a_node_made_anew_is_labelled_only_with_its_own_token():
    """The uid of the token decides, without a request; the same name is not enough."""
    server = ApiServer(bound=UID)
    own = own_node(server)
    own.publish(seen(server), {A: "installed"})
    server.make(uid="uid-2")
    server.requests()
    with pytest.raises(WrongNodeError, match="made anew"):
        own.publish(seen(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({}, [])
    server.bound = "uid-2"
    own.publish(seen(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({A: "installed"}, ["GET", "APPLY"])


def test_a_stale_copy_labels_no_new_node_of_the_same_name():
    """The uid goes with the request, and the API server compares it."""
    server = ApiServer()
    own = own_node(server)
    old = own.publish(seen(server), {A: "installed"})
    server.make(uid="uid-2")
    with pytest.raises(StatusError) as told:
        own.publish(old, {B: "installed"})
    assert (told.value.status, server.labels) == (409, {})


def test_a_node_that_is_gone_is_not_created():
    """The right to create one is not asked for."""
    server = ApiServer()
    own = own_node(server)
    old = own.publish(seen(server), {A: "installed"})
    server.node = None
    with pytest.raises(StatusError):
        own.publish(old, {})
    assert server.node is None


@pytest.mark.parametrize(
    "lost", [UnreachableError("no answer in time"), StatusError(504, "Timeout", "x")]
)
def test_after_an_answer_that_was_lost_the_set_is_applied_again(lost):
    """The labels may be on the Node although the copy does not show them."""
    server = ApiServer()
    own = own_node(server)
    before = seen(server)
    own.prove(before)
    server.lost = [lost]
    with pytest.raises(KubeError):
        own.publish(before, {A: "installed"})
    assert server.labels == {A: "installed"}
    answer = own.publish(before, {})
    assert (answer.labels, server.labels) == ({}, {})
    server.requests()
    own.publish(answer, {})
    assert server.requests() == []


def test_a_refusal_leaves_no_doubt():
    """What was refused was not carried out: a wish that is taken back costs no request."""
    server = ApiServer()
    own = own_node(server)
    before = seen(server)
    own.prove(before)
    server.errors = [StatusError(403, "Forbidden", "cannot patch")] * 2
    with pytest.raises(StatusError):
        own.publish(before, {A: "installed"})
    server.requests()
    assert own.publish(before, {}) is before
    assert server.requests() == []


def denies(*keys):
    """Return a policy that denies every change of some keys."""

    def policy(before, after):
        changed = [key for key in keys if before.get(key) != after.get(key)]
        return f"denied: {changed[0]}" if changed else ""

    return policy


def key(number):
    return f"seccomp.{D}/{number}.json"


def test_a_refused_label_concerns_no_other_one():
    """Untrue labels are removed, new ones are set, and the rejected one is reported."""
    server = ApiServer()
    own = own_node(server)
    before = own.publish(seen(server), {key(1): "installed", key(2): "installed"})
    server.policy = denies(READY)
    wanted = {key(2): "installed", key(3): "installed", READY: "ready"}
    answer = own.publish(before, wanted)
    assert server.labels == {key(2): "installed", key(3): "installed"}
    assert own.allowed(answer, wanted) == server.labels == answer.labels
    assert own.findings() == (
        Finding(
            code="label_refused",
            location=f"node {NAME}",
            message=f"The API server refuses 1 of the agent's labels: {READY}: 403 Forbidden: "
            "denied: "
            f"{READY}. All other labels are correct.",
            hint="Apply the admission policy of this release. The agent tries again by itself.",
        ),
    )


def test_refused_labels_are_not_tried_again_with_every_change():
    """Another change needs one request, and an unchanged set needs none."""
    server = ApiServer()
    own = own_node(server)
    server.policy = denies(READY)
    wanted = {key(1): "installed", READY: "ready"}
    answer = own.publish(seen(server), wanted)
    server.requests()
    assert own.publish(answer, wanted) is answer
    assert server.requests() == []
    wanted[key(2)] = "installed"
    own.publish(answer, wanted)
    assert server.requests() == ["APPLY"]
    server.policy = denies()
    own.retry_refused()
    answer = own.publish(seen(server), wanted)
    assert (server.labels, own.findings()) == (wanted, ())


def test_a_label_whose_removal_is_refused_stays_and_the_others_go():
    """The policy of another release may consider a key as foreign."""
    server = ApiServer()
    own = own_node(server)
    before = own.publish(seen(server), {key(number): "installed" for number in range(5)})
    server.policy = denies(key(1))
    answer = own.publish(before, {key(5): "installed"})
    assert server.labels == {key(1): "installed", key(5): "installed"}
    assert own.refused == {(key(1), None)}
    server.requests()
    assert own.publish(answer, {key(5): "installed"}) is answer
    assert server.requests() == []


def test_a_refused_value_does_not_leave_the_previous_one():
    """The profile is in complain mode now, and a label that says enforce would be untrue."""
    server = ApiServer()
    own = own_node(server)
    web = f"apparmor.{D}/web"
    before = own.publish(seen(server), {web: "enforce", key(1): "installed"})
    server.policy = lambda _, after: "denied" if "complain" in after.values() else ""
    own.publish(before, {web: "complain", key(1): "installed"})
    assert server.labels == {key(1): "installed"}


@pytest.mark.parametrize("count", [1, 2, 3, 40, 200])
def test_many_refused_labels_are_found_within_a_few_attempts(count):
    """Each attempt is bounded, and each sets labels of other groups at once."""
    server = ApiServer()
    own = own_node(server)
    refused = {key(number): "installed" for number in range(0, 200, 200 // count)}
    fine = {key(number): "installed" for number in range(200)}.keys() - refused.keys()
    wanted = dict.fromkeys([*refused, *fine], "installed") | {READY: "ready"}
    server.policy = denies(*refused)
    meta = seen(server)
    for _ in range(20):
        own.retry_refused()
        meta = own.publish(meta, wanted)
        assert READY in server.labels
        assert len(server.requests()) <= 2 + 1 + node_labels.REFUSAL_REQUESTS
        if server.labels.keys() == fine | {READY}:
            break
    assert server.labels.keys() == fine | {READY}


def test_what_is_no_matter_of_content_is_not_split():
    """A busy API server gets one request."""
    server = ApiServer()
    own = own_node(server)
    before = seen(server)
    own.prove(before)
    server.requests()
    server.errors = [StatusError(429, "TooManyRequests", "later")]
    with pytest.raises(StatusError, match="later"):
        own.publish(before, {A: "installed"})
    assert server.requests() == ["APPLY"]


def test_an_api_server_that_becomes_busy_ends_the_attempt():
    """The labels that were applied until then are applied."""
    server = ApiServer()
    own = own_node(server)
    before = seen(server)
    own.prove(before)
    server.errors = [StatusError(403, "Forbidden", "denied")]
    applies = []

    def busy(_, after):
        applies.append(dict(after))
        if len(applies) == 3:
            raise StatusError(429, "TooManyRequests", "later")
        return ""

    server.policy = busy
    with pytest.raises(StatusError, match="later"):
        own.publish(before, {A: "installed", READY: "ready"})
    assert applies == [{}, {A: "installed"}, {A: "installed", READY: "ready"}]


def test_the_startup_taint_goes_once_and_no_other():
    """Each of its effects at once; the others stay in their order; then nothing is asked."""
    hard = {"key": TAINT["key"], "effect": "NoExecute"}
    server = ApiServer(taints=[TAINT, OTHER, hard])
    own = own_node(server, taint=TAINT["key"])
    own.untaint(seen(server), report(row()))
    assert server.node["spec"]["taints"] == [OTHER]
    assert server.requests() == ["GET", "GET", "PATCH"]  # the proof, the taints, both of them
    own.untaint(seen(server), report(row()))
    assert server.requests() == []


def test_a_node_without_taints_is_asked_once():
    """An absent list is an empty one."""
    server = ApiServer()
    del server.node["spec"]["taints"]
    own = own_node(server, taint=TAINT["key"])
    own.untaint(seen(server), report(row()))
    own.untaint(seen(server), report(row()))
    assert server.requests() == ["GET", "GET"]  # the proof, the taints


def test_without_the_option_no_taint_is_asked_about():
    """The right to do it is in an overlay of its own."""
    server = ApiServer(taints=[TAINT])
    own_node(server).untaint(seen(server), report(row()))
    assert (server.node["spec"]["taints"], server.requests()) == ([TAINT], [])


def test_the_startup_taint_stays_until_everything_accepted_is_in_place():
    """Nothing is asked before, and it goes with the first report that says so."""
    server = ApiServer(taints=[TAINT])
    own = own_node(server, taint=TAINT["key"])
    own.untaint(seen(server), report(row(), row("b.json", "failed")))
    assert (server.node["spec"]["taints"], server.requests()) == ([TAINT], [])
    own.untaint(seen(server), report(row(), row("b.json")))
    assert server.node["spec"]["taints"] == []


def test_a_node_that_is_not_ours_keeps_its_taint():
    """The proof comes before the patch."""
    server = ApiServer(taints=[TAINT], boot_id="another")
    with pytest.raises(WrongNodeError):
        own_node(server, taint=TAINT["key"]).untaint(seen(server), report(row()))
    assert server.node["spec"]["taints"] == [TAINT]


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
def test_everything_accepted_must_be_in_place(state, expected):
    """A refused key does not keep a node tainted; one that could not be put does."""
    assert node_labels.settled(report(row(), row("b.json", state))) is expected


def test_a_kind_that_a_node_cannot_have_keeps_no_taint():
    """A node without AppArmor is as ready as it will be."""
    one = row("web", "unsupported", kind="apparmor")
    assert node_labels.settled(report(row(), one, apparmor="disabled")) is True
    assert node_labels.settled(report(row(), one, apparmor="enabled")) is False


EMPTIED = (ProfileSetStatus(profile_set=SET, state="emptied"),)


def test_an_emptied_set_whose_profiles_were_installed_keeps_no_taint():
    """An emptied set whose last good versions are on the node does not keep the taint."""
    assert node_labels.settled(report(row(state="held"), sets=EMPTIED)) is True


@pytest.mark.parametrize(
    "rows", [[], [row(origin="configmap ns/other")], [row(state="failed")], [row("", "rejected")]]
)
def test_an_emptied_set_that_was_never_installed_keeps_the_taint(rows):
    """On a fresh node an empty ConfigMap may still be filled, so the taint stays."""
    sets = (*EMPTIED, ProfileSetStatus(profile_set="configmap ns/other", state="read", keys=1))
    assert node_labels.settled(report(*rows, sets=sets)) is False


@pytest.mark.parametrize(
    ("state", "cause", "expected"),
    [
        ("missing", None, False),
        ("unreadable", "unanswered", False),
        ("unreadable", "invalid", True),
        ("unreadable", "over_limit", True),
    ],
)
def test_only_a_set_that_may_still_be_read_keeps_the_taint(state, cause, expected):
    """An invalid node selector, or a set that is too large, is refused like a rejected key."""
    sets = (
        ProfileSetStatus(profile_set=SET, state=state, cause=cause),
        ProfileSetStatus(profile_set="dir /p", state="read"),
    )
    assert node_labels.settled(report(row(origin="dir /p"), sets=sets)) is expected


def test_unlabel_removes_every_label_with_an_own_prefix():
    """Labels with other prefixes stay, and no proof is needed, because nothing is added."""
    server = ApiServer({"kubernetes.io/os": "linux", f"{D}/a~b": "x", f"seccomp.{D}/old": "x"})
    own = own_node(server)
    own.publish(seen(server), {A: "installed"})
    server.requests()
    own.unlabel()
    assert server.labels == {"kubernetes.io/os": "linux"}
    assert server.requests() == ["GET", "PATCH"]
    own.unlabel()
    assert server.requests() == ["GET"]


def test_forged_fields_are_given_up_before_an_apply():
    """An apply would remove whatever they name; the next one finds nothing to repair."""
    server = ApiServer()
    own = own_node(server)
    server.node["metadata"]["managedFields"] = [
        {
            "manager": "profile-loader",
            "operation": "Apply",
            "fieldsV1": {"f:spec": {"f:taints": {}}},
        }
    ]
    before = seen(server)
    answer = own.publish(before, {A: "installed"})
    assert (server.labels, server.requests()) == (
        {A: "installed"},
        ["GET", "GET", "PATCH", "APPLY"],
    )
    assert (before.is_forged, answer.is_forged) == (True, False)
    own.publish(before, {B: "installed"})
    assert server.requests() == ["GET", "APPLY"]


def test_unlabel_tries_again_where_a_label_changed_meanwhile():
    """The patch tests the values that were read, and gives up after some tries."""
    server = ApiServer({A: "installed"})
    own = own_node(server)
    changes = iter(range(3))

    def change():
        if server.asked[-1].startswith("PATCH") and next(changes, None) is not None:
            server.set_label(A, f"value-{len(server.asked)}")

    server.during = change
    own.unlabel()
    assert (server.labels, server.requests()) == ({}, ["GET", "PATCH"] * 4)
    server.set_label(A, "installed")
    changes = iter(range(100))
    with pytest.raises(StatusError, match="the test failed"):
        own.unlabel()
    assert server.requests() == ["GET", "PATCH"] * node_labels.UNLABEL_TRIES


def test_unlabel_of_a_node_that_was_made_anew_changes_nothing():
    """The patch also tests the Node's UID."""
    server = ApiServer({A: "installed"})
    server.during = lambda: (
        server.asked[-1].startswith("PATCH")
        and server.make({A: "installed"}, uid=f"uid-{len(server.asked)}")
    )
    with pytest.raises(StatusError):
        own_node(server).unlabel()
    assert server.labels == {A: "installed"}


def test_unlabel_of_a_node_that_refuses_is_reported_at_once():
    """A missing right is not tried again."""
    server = ApiServer({A: "installed"})
    server.during = lambda: (
        server.asked[-1].startswith("PATCH")
        and server.errors.append(StatusError(403, "Forbidden", "cannot patch"))
    )
    with pytest.raises(StatusError, match="cannot patch"):
        own_node(server).unlabel()
    assert server.requests() == ["GET", "PATCH"]


def test_wanted_labels_keep_those_that_are_on_the_node():
    """With the limit and the domain of the options."""
    server = ApiServer({B: "installed"})
    own = own_node(server, limit=1, digest=True)
    one = report(row(source_digest="0123456789abcdef"), row("b.json"), sets=())
    assert own.wanted(one, own.read()).labels == {B: "installed"}
    assert own.wanted(one, None).labels == {A: "installed"}


@pytest.mark.parametrize("metadata", ["text", ["list"], {"labels": ["list"]}, {"labels": "text"}])
def test_a_node_whose_labels_are_no_mapping_is_unreadable(metadata):
    """Unreadable labels are not missing labels, and do not end the agent."""
    with pytest.raises(UnreachableError):
        node_labels.keep({"metadata": metadata})


@pytest.mark.parametrize("metadata", [None, {}, {"labels": None}])
def test_an_object_without_metadata_has_no_uid_and_no_labels(metadata):
    """Nothing is assumed about it."""
    assert node_labels.keep({"metadata": metadata}) == NodeMetadata(uid="", labels={})


def test_what_kept_labels_from_the_node_is_told():
    """Both ways say for which Node, and why."""
    assert [
        node_labels.not_ours(WrongNodeError("it is another"), NAME),
        node_labels.failed(StatusError(403, "Forbidden", "denied"), NAME),
    ] == [
        Finding(
            code="node_unknown",
            location=f"node {NAME}",
            message="No label was changed: it is another.",
            hint="It is tried again; if it stays, compare --node-name with `kubectl get nodes`.",
        ),
        Finding(
            code="node_unreachable",
            location=f"node {NAME}",
            message="The Node's labels could not be brought up to date: 403 Forbidden: denied.",
            hint="It is tried again. A refusal is a matter of RBAC or of the admission policy.",
        ),
    ]
