"""Specification of agent.reporters.node, against an API server in memory."""

import pytest

from agent.core.problems import Problem
from agent.core.report import SetStatus
from agent.doors.kube import KubeError, Refused, Unreachable
from agent.reporters import node
from agent.reporters.node import Meta, NotOurs, Options, OwnNode
from tests.api_server import BOOT_ID, NAME, UID, ApiServer
from tests.reports import SET, D, report, row

A, B = f"seccomp.{D}/a.json", f"seccomp.{D}/b.json"
TAINT = {"key": f"{D}/startup", "effect": "NoSchedule"}
OTHER = {"key": "other", "effect": "NoSchedule"}


def own_node(server, *, boot_id=BOOT_ID, **options):
    options = {"name": NAME, "domain": D, **options}
    return OwnNode(server, Options(**options), boot_id=lambda: boot_id)


def seen(server):
    return node.keep(server._node())


def test_the_whole_set_goes_on_in_one_request_and_the_same_set_in_none():
    """The first one proves the Node by a GET; what does not differ is not sent."""
    server = ApiServer({"kubernetes.io/os": "linux"})
    own = own_node(server)
    answer = own.publish(seen(server), {A: "installed", B: "installed"})
    assert server.requests() == ["GET", "APPLY"]
    assert answer == Meta(
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
    assert own.problems() == (
        Problem(
            code="label_foreign",
            where=B,
            what="The label is below the agent's prefix, and somebody else holds it. It is "
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
    assert (own.problems(), server.requests()) == ((), [])


def test_a_label_that_another_holds_too_stays_and_is_told():
    """Dropping it gives up our part alone."""
    server = ApiServer()
    own = own_node(server)
    own.publish(seen(server), {A: "installed", B: "installed"})
    server.set_label(B, "installed")
    answer = own.publish(seen(server), {A: "installed"})
    assert answer.labels == {A: "installed", B: "installed"}
    assert own.own(answer) == {A: "installed"}
    assert [one.where for one in own.problems()] == [B]


def test_no_other_label_is_counted_as_own():
    """Neither beside nor around the own prefixes."""
    own = own_node(ApiServer())
    others = {"kubernetes.io/os": "linux", f"x.{D}/a": "1", f"x{D}/a": "1", "plain": "1"}
    assert own.own(Meta(uid=UID, labels={**others, A: "installed"})) == {A: "installed"}


@pytest.mark.parametrize("told", ["", "another"])
def test_a_node_with_another_boot_id_is_never_labelled(told):
    """Neither one of another machine, nor one whose kubelet has not said yet."""
    server = ApiServer(boot_id=told)
    with pytest.raises(NotOurs, match=told or "none yet"):
        own_node(server).publish(seen(server), {A: "installed"})
    assert (server.labels, server.requests()) == ({}, ["GET"])


def test_without_a_boot_id_of_this_kernel_nothing_is_labelled():
    """Two unknown ids are not the same id."""
    server = ApiServer(boot_id="")
    with pytest.raises(NotOurs, match="cannot be read"):
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
    with pytest.raises(NotOurs, match="none yet"):
        own_node(server).publish(seen(server), {A: "installed"})
    assert server.labels == {}


def test_a_node_without_a_uid_is_proven_like_any_other():
    """No uid is not the uid of a Node that was proven before."""
    server = ApiServer(boot_id="another")
    with pytest.raises(NotOurs):
        own_node(server).publish(Meta(uid=""), {A: "installed"})
    assert server.labels == {}


def test_a_node_made_anew_is_labelled_only_with_its_own_token():
    """The uid of the token decides, without a request; the same name is not enough."""
    server = ApiServer(bound=UID)
    own = own_node(server)
    own.publish(seen(server), {A: "installed"})
    server.make(uid="uid-2")
    server.requests()
    with pytest.raises(NotOurs, match="made anew"):
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
    with pytest.raises(Refused) as told:
        own.publish(old, {B: "installed"})
    assert (told.value.status, server.labels) == (409, {})


def test_a_node_that_is_gone_is_not_created():
    """The right to create one is not asked for."""
    server = ApiServer()
    own = own_node(server)
    old = own.publish(seen(server), {A: "installed"})
    server.node = None
    with pytest.raises(Refused):
        own.publish(old, {})
    assert server.node is None


@pytest.mark.parametrize("lost", [Unreachable("no answer in time"), Refused(504, "Timeout", "x")])
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
    server.errors = [Refused(403, "Forbidden", "the policy denies it")]
    with pytest.raises(Refused):
        own.publish(before, {A: "installed"})
    server.requests()
    assert own.publish(before, {}) is before
    assert server.requests() == []


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
    with pytest.raises(NotOurs):
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
    assert node.settled(report(row(), row("b.json", state))) is expected


def test_a_kind_that_a_node_cannot_have_keeps_no_taint():
    """A node without AppArmor is as ready as it will be."""
    one = row("web", "unsupported", kind="apparmor")
    assert node.settled(report(row(), one, apparmor="disabled")) is True
    assert node.settled(report(row(), one, apparmor="enabled")) is False


def test_an_emptied_set_keeps_no_taint():
    """It holds no profile that could be waited for."""
    assert node.settled(report(row(), sets=(SetStatus(origin=SET, state="emptied"),))) is True


@pytest.mark.parametrize("state", ["missing", "unreadable"])
def test_a_set_that_was_not_read_is_not_in_place(state):
    """What it holds is not known."""
    sets = (SetStatus(origin=SET, state=state),)
    assert node.settled(report(row(), sets=sets)) is False


def test_unlabel_takes_every_own_label_off():
    """And no other; it needs no proof, since it adds nothing."""
    server = ApiServer({"kubernetes.io/os": "linux"})
    own = own_node(server)
    own.publish(seen(server), {A: "installed"})
    own.unlabel()
    assert server.labels == {"kubernetes.io/os": "linux"}


def test_wanted_labels_keep_those_that_are_on_the_node():
    """With the limit and the domain of the options."""
    server = ApiServer({B: "installed"})
    own = own_node(server, limit=1, digest=True)
    one = report(row(source="0123456789abcdef"), row("b.json"), sets=())
    assert own.wanted(one, own.read()).labels == {B: "installed"}
    assert own.wanted(one, None).labels == {A: "installed"}


@pytest.mark.parametrize("metadata", ["text", ["list"], {"labels": ["list"]}, {"labels": "text"}])
def test_a_node_whose_labels_are_no_mapping_is_unreadable(metadata):
    """Unreadable labels are not missing labels, and do not end the agent."""
    with pytest.raises(Unreachable):
        node.keep({"metadata": metadata})


@pytest.mark.parametrize("metadata", [None, {}, {"labels": None}])
def test_an_object_without_metadata_has_no_uid_and_no_labels(metadata):
    """Nothing is assumed about it."""
    assert node.keep({"metadata": metadata}) == Meta(uid="", labels={})


def test_what_kept_labels_from_the_node_is_told():
    """Both ways say for which Node, and why."""
    assert [
        node.not_ours(NotOurs("it is another"), NAME),
        node.failed(Refused(403, "Forbidden", "denied"), NAME),
    ] == [
        Problem(
            code="node_unknown",
            where=f"node {NAME}",
            what="No label was changed: it is another.",
            hint="It is tried again; if it stays, compare --node-name with `kubectl get nodes`.",
        ),
        Problem(
            code="node_unreachable",
            where=f"node {NAME}",
            what="The Node's labels could not be brought up to date: 403 Forbidden: denied.",
            hint="It is tried again. A refusal is a matter of RBAC or of the admission policy.",
        ),
    ]
