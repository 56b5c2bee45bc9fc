"""The API client and the copies it keeps: against a real API server, and through every fault.

A server of our own stands in only for answers that a real one gives too rarely: 429, 503, a watch
that is not JSON. What both can give is asked of both by the same tests.
"""

import base64
import contextlib
import datetime as dt
import http.server
import json
import math
import os
import queue
import re
import signal
import socket
import ssl
import threading
import types
import urllib.request
from pathlib import Path

import pytest
from kubernetes.config import incluster_config

from agent import app
from agent.config import Config
from agent.core import pod_references
from agent.kube import client, errors, node_labels
from agent.kube import reflector as reflector_module
from agent.sources import configmap as cluster_source
from tests.system.cluster import Cluster, free_port, until
from tests.system.guest import pace
from tests.system.proxy import Proxy
from tests.system.test_tls import certificate

PATH = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as one:
        yield one


def config(folder, server, ca="", token="admin"):  # noqa: S107 - of a test server
    """Write a kubeconfig; return its path."""
    cluster = {"server": server} | ({"certificate-authority": str(ca)} if ca else {})
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return str(path)


class Watched:
    """A reflector of the data of ConfigMaps, and a queue of what it told."""

    def __init__(self, api, **more):
        self.api = api
        self.changes = queue.SimpleQueue()
        self.restarts = 0
        self.reflector = reflector_module.Reflector(
            api,
            PATH,
            keep=lambda found: found.get("data", {}),
            changed=lambda: self.changes.put(self.reflector.store),
            restarted=self.restarted,
            **more,
        )

    def restarted(self):
        self.restarts += 1

    def __enter__(self):
        self.reflector.start()
        return self

    def __exit__(self, *_):
        self.reflector.stop()
        self.api.close()

    def until(self, condition, seconds=20):
        return until(lambda: condition(self.reflector.store), lambda: self.reflector.store, seconds)


def map_(name, **data):
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


def objects(copy):
    return {
        name: one for name, one in (copy.objects or {}).items() if not name.startswith("kube-root")
    }


# --- the real API server --------------------------------------------------------------------------


def test_a_copy_follows_what_is_made_changed_and_deleted(cluster, tmp_path):
    """Every change arrives as content; one that changes no content tells nothing."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    with Watched(api) as watched:
        watched.until(lambda copy: copy.objects is not None)
        cluster.apply(map_("one", key="a"))
        watched.until(lambda copy: objects(copy) == {"one": {"key": "a"}})
        cluster.apply(map_("one", key="b"))
        watched.until(lambda copy: objects(copy) == {"one": {"key": "b"}})
        told = watched.changes.qsize()
        cluster.kubectl("label", "configmap", "one", "x=y")
        cluster.apply(map_("two", key="c"))
        watched.until(lambda copy: "two" in objects(copy))
        assert watched.changes.qsize() == told + 1
        cluster.kubectl("delete", "configmap", "one", "two")
        watched.until(lambda copy: objects(copy) == {})


def test_a_restart_of_the_api_server_is_survived(cluster, tmp_path):
    """The connection breaks, the copy stays, and what changed meanwhile arrives."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    with Watched(api) as watched:
        watched.until(lambda copy: copy.objects is not None)
        cluster.stop("kube-apiserver")
        watched.until(lambda copy: copy.reason != "" and copy.objects is not None)
        cluster.start_api()
        cluster.apply(map_("later", key="a"))
        watched.until(lambda copy: objects(copy) == {"later": {"key": "a"}}, 60)
        cluster.kubectl("delete", "configmap", "later")


def test_a_single_object_is_followed_across_a_restart_of_the_api_server(cluster, tmp_path):
    """Its version is older than all that the new server remembers; changes arrive at once."""
    cluster.node("seldom")
    cluster.apply(map_("newer", key="a"))
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    path = "/api/v1/nodes/seldom"
    reflector = reflector_module.Reflector(
        api,
        "/api/v1/nodes",
        keep=lambda found: found["metadata"].get("labels", {}).get("x", ""),
        changed=lambda: None,
        query=(("fieldSelector", "metadata.name=seldom"),),
        one=path,
        metadata=True,
    )
    reflector.start()
    until(lambda: reflector.store.objects == {"seldom": ""}, lambda: reflector.store)
    cluster.stop("kube-apiserver")
    until(lambda: reflector.store.reason != "", lambda: reflector.store)
    cluster.start_api()
    until(lambda: not reflector.store.reason, lambda: reflector.store, 60)
    for value in ("1", "2"):
        cluster.kubectl("label", "node", "seldom", f"x={value}", "--overwrite")
        until(lambda value=value: reflector.store.objects == {"seldom": value}, "the change", 5)
    reflector.stop()
    api.close()
    cluster.kubectl("delete", "configmap", "newer")


@pytest.mark.parametrize("metadata", [False, True])
def test_a_list_without_objects_is_empty(cluster, tmp_path, metadata):
    """The API server gives `[]`, and null where it makes a list of metadata alone."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    reflector = Watched(api, metadata=metadata, query=(("labelSelector", "no=one"),)).reflector
    reflector.list()
    assert reflector.store == reflector_module.Store(objects={})


def compact(cluster, version):
    """Let the store forget every state before a version."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.etcd_port}/v3/kv/compaction",
        data=json.dumps({"revision": version, "physical": True}).encode(),
    )
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - the same


def test_a_version_that_was_compacted_away_is_gone(cluster, tmp_path):
    """A watch from before the compaction is refused with 410, and a list puts it right."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    cluster.apply(map_("old", key="a"))
    first = api.get(f"{PATH}/old")["metadata"]["resourceVersion"]
    for number in range(3):
        cluster.apply(map_("old", key=str(number)))
    last = api.get(f"{PATH}/old")["metadata"]["resourceVersion"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.etcd_port}/v3/kv/compaction",
        data=json.dumps({"revision": last, "physical": True}).encode(),
    )
    urllib.request.urlopen(request, timeout=100).close()  # noqa: S310 - the same
    cluster.stop("kube-apiserver")
    cluster.start_api()
    with pytest.raises(errors.StatusError) as refused:
        list(api.watch(PATH, [("resourceVersion", first)], silence_seconds=20))
    assert (refused.value.status, refused.value.reason) == (410, "Expired")
    watched = Watched(api)
    watched.reflector.list()
    assert objects(watched.reflector.store) == {"old": {"key": "2"}}
    cluster.kubectl("delete", "configmap", "old")


def test_a_silent_peer_is_detected(cluster, tmp_path):
    """A connection on which nothing comes any more, not even bookmarks, is given up."""
    with Proxy(cluster.port) as proxy:
        api = client.Api(kubeconfig=config(tmp_path, f"https://127.0.0.1:{proxy.port}", cluster.ca))
        with Watched(api, silence_seconds=1.0) as watched:
            watched.until(lambda copy: copy.objects is not None)
            proxy.silence()
            cluster.apply(map_("unseen", key="a"))
            watched.until(lambda copy: "no answer in time" in copy.reason, 40)
            proxy.forward()
            watched.until(lambda copy: objects(copy) == {"unseen": {"key": "a"}}, 75)
        cluster.kubectl("delete", "configmap", "unseen")


def test_close_wakes_a_watch_at_once(cluster, tmp_path):
    """Whoever reads a watch hears of the end within a second."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    ended = queue.SimpleQueue()

    def read():
        try:
            version = str(api.get(PATH)["metadata"]["resourceVersion"])
            query = [("resourceVersion", version)]
            ended.put(list(api.watch(PATH, query, silence_seconds=60)))
        except errors.UnreachableError as error:
            ended.put(error)

    threading.Thread(target=read, daemon=True).start()
    until(lambda: api._streams, "a watch that is read")
    api.close()
    assert isinstance(ended.get(timeout=pace.scaled(1.0)), errors.UnreachableError)


def test_a_token_is_read_again_and_says_to_which_node_it_is_bound(cluster, tmp_path):
    """The claims of a token that the kubelet would hand out hold the uid of the Node."""
    uid = cluster.node("bound")
    token = cluster.agent_token("bound")
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca, token))
    assert api.token_node_uid() == uid
    unbound = cluster.agent_token("bound", bound=False)
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca, unbound))
    assert api.token_node_uid() == ""


def test_refusals_say_why(cluster, tmp_path):
    """The status, the reason and the message are those of the API server."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca, "nobody"))
    with pytest.raises(errors.StatusError) as refused:
        api.get(PATH)
    assert (refused.value.status, refused.value.reason) == (401, "Unauthorized")
    admin = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    with pytest.raises(errors.StatusError) as refused:
        admin.get(f"{PATH}/none")
    assert (refused.value.status, refused.value.reason) == (404, "NotFound")


def test_nobody_there_is_no_refusal(tmp_path):
    """A closed port is unreachable, and the text says where in one line."""
    port = free_port()
    api = client.Api(kubeconfig=config(tmp_path, f"https://127.0.0.1:{port}"))
    with pytest.raises(
        errors.UnreachableError, match=rf"^127\.0\.0\.1:{port}: .*Connection refused"
    ):
        api.get(PATH)


def test_a_kubeconfig_that_is_none_is_told(tmp_path):
    """Missing, not YAML, a text, a number for an address, without a cluster: no traceback."""
    (tmp_path / "bad").write_text("{]")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "bad", tmp_path / "text", config(tmp_path, 5)):
        with pytest.raises(errors.NoClusterError):
            client.Api(kubeconfig=str(path))
    with pytest.raises(errors.NoClusterError, match="there is no such file"):
        client.Api(kubeconfig=str(tmp_path / "missing"))
    with pytest.raises(errors.NoClusterError):
        client.Api()  # this is no pod


# --- answers that a real one gives too rarely -----------------------------------------------------


class Script:
    """An HTTP server that gives scripted answers, one for each request; the last one for ever.

    None is no answer at all, until the client hangs up.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.named = set()
        self.bearers = []
        self.peers = []
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                script.asked.append(self.path)
                script.named.add(self.headers["User-Agent"])
                script.bearers.append(self.headers["Authorization"])
                script.peers.append(self.client_address)
                last = len(script.answers) == 1
                given = script.answers[0] if last else script.answers.pop(0)
                if given is None:
                    self.rfile.read()
                    self.close_connection = True
                    return
                status, headers, body = given
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def answer(status, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, content


LIST = answer(200, {"metadata": {"resourceVersion": "7"}, "items": []})


@pytest.mark.parametrize(
    ("given", "status", "retry"),
    [
        (answer(429, {"message": "slower"}, Retry_After="3"), 429, 3.0),
        (answer(503, b"<html>away</html>"), 503, 0.0),
        (answer(302, b"", Location="http://127.0.0.1:1/"), 302, 0.0),
        (answer(429, b"{}", Retry_After="9" * 400), 429, client.RETRY_SECONDS),
        (answer(429, b"{}", Retry_After="\N{SUPERSCRIPT TWO}"), 429, 0.0),
        (answer(503, b"{}", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 503, 0.0),
    ],
)
def test_a_refusal_is_one_request_and_keeps_its_retry_after(tmp_path, given, status, retry):
    """Nothing is retried or followed behind the caller's back; a wait that is none has an end."""
    with Script(given) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url), version="1.2.3")
        with pytest.raises(errors.StatusError) as refused:
            api.get(PATH)
        assert (refused.value.status, refused.value.retry_after) == (status, retry)
        assert (server.asked, server.named) == ([PATH], {"profile-loader/1.2.3"})


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_object_is_no_answer(tmp_path, body):
    """It is never taken for an empty list."""
    with Script(answer(200, body)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with pytest.raises(errors.UnreachableError):
            Watched(api).reflector.list()


@pytest.mark.parametrize(
    "odd",
    [
        *({"items": items} for items in (5, [5], "x", [{}])),
        {},
        {"items": None},
        {"items": None, "kind": "ConfigMapList"},
        {"items": None, "kind": "PartialObjectMetadataList", "metadata": {}},
    ],
)
def test_a_list_of_odd_items_is_no_answer(tmp_path, odd):
    """Items that are no objects with a name, or are missing, make the whole list unreadable."""
    with Script(answer(200, {"metadata": {"resourceVersion": "1"}} | odd)) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)))
        with pytest.raises(errors.UnreachableError):
            watched.reflector.list()
        assert watched.reflector.store.objects is None


ODD = (None, True, 5, 1.5, "x", "\ud800", [], ["x"], [[]], {}, {"x": []}, {"\udfff": 5})


def variants(value):
    """Yield copies of a JSON value, each with one part of another type."""
    yield from ODD
    if isinstance(value, dict):
        for key in value:
            yield from (value | {key: changed} for changed in variants(value[key]))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from (
                [*value[:index], changed, *value[index + 1 :]] for changed in variants(item)
            )


WHOLE = {
    cluster_source.keep("d.org"): {
        "metadata": {
            "name": "web",
            "namespace": "ns",
            "resourceVersion": "7",
            "annotations": {"d.org/allow-empty": "true", "d.org/node-selector": "a=b"},
        },
        "data": {"a.json": "{}"},
        "binaryData": {"b.json": "e30="},
    },
    node_labels.keep: {"metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}}, "spec": {}},
    pod_references.referenced_profiles: {
        "metadata": {"name": "p", "namespace": "ns", "annotations": {"a": "b"}},
        "spec": {
            "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a"}},
            "containers": [{"securityContext": {"appArmorProfile": {"type": "Localhost"}}}],
        },
        "status": {"phase": "Running"},
    },
}


@pytest.mark.parametrize("keep", WHOLE, ids=["configmap", "node", "pod"])
def test_whatever_types_an_object_has_the_list_is_read_or_is_no_answer(tmp_path, keep):
    """Nothing but the errors of the API leaves a list, since anything else ends the agent."""
    objects = [one for one in variants(WHOLE[keep]) if isinstance(one, dict)]
    lists = [{"metadata": {"resourceVersion": "1"}, "items": [one]} for one in objects]
    refused = 0
    with Script(*(answer(200, one) for one in lists)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        reflector = reflector_module.Reflector(api, PATH, keep=keep, changed=lambda: None)
        for _ in lists:
            try:
                reflector.list()
            except errors.UnreachableError:
                refused += 1
                continue
            repr(reflector.store).encode()
    print(f"{len(lists)} lists, {refused} of them no answer")
    assert 0 < refused < len(lists)


def test_lone_surrogates_of_an_answer_are_replaced(tmp_path):
    """Lone surrogates are replaced as in Go: the ledger and the log could not encode them."""
    body = rb'{"metadata": {"resourceVersion": "7"}, "items": [' + json.dumps(map_("x")).encode()
    body = body.replace(b'"x"', rb'"a\ud800b\ud83d\ude00"') + b"]}"
    with Script(answer(200, body)) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
    assert list(reflector.store.objects) == ["a\ufffdb\U0001f600"]


@pytest.mark.parametrize("is_head_slow", [True, False], ids=["head", "body"])
@pytest.mark.parametrize("uses_tls", [True, False], ids=["TLS", "plain"])
def test_an_answer_that_comes_byte_by_byte_has_a_total_deadline(
    tmp_path, monkeypatch, uses_tls, is_head_slow
):
    """Each byte arrives in time, but the whole answer does not."""
    monkeypatch.setattr(client, "ANSWER_SECONDS", 1.0)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http{'s' * uses_tls}://127.0.0.1:{listener.getsockname()[1]}"
    ended = threading.Event()
    head, body = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n", b"\r\n" + b" " * 100_000
    context = None
    if uses_tls:
        certificate(tmp_path, "server", "127.0.0.1", "IP:127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    def serve():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection = (
                context.wrap_socket(connection, server_side=True) if context else connection
            )
            with connection:
                connection.recv(1 << 16)
                if not is_head_slow:
                    connection.sendall(head)
                for byte in body if not is_head_slow else head + b"A: " + body[2:]:
                    connection.sendall(bytes([byte]))
                    if ended.wait(0.02):
                        return

    thread = threading.Thread(target=serve)
    thread.start()
    ca = tmp_path / "server.pem" if uses_tls else ""
    try:
        api = client.Api(kubeconfig=config(tmp_path, url, ca=ca))
        with pytest.raises(errors.UnreachableError, match=r"no answer in time|took too long"):
            api.get(PATH)
    finally:
        ended.set()
        listener.close()
        thread.join()


def test_a_watch_that_ends_at_once_again_and_again_is_no_tight_loop(tmp_path):
    """A server that closes every watch is asked less and less often."""
    with Script(LIST, answer(200, b"")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with Watched(api, silence_seconds=5) as watched:
            until(lambda: len(server.asked) >= 3, lambda: server.asked)
            watched.reflector.stop()
        assert len(server.asked) < 40


def test_an_error_event_ends_the_watch_with_its_status(tmp_path):
    """410 in the stream is the same as 410 as an answer."""
    event = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    with Script(answer(200, event)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with pytest.raises(errors.StatusError) as refused:
            list(api.watch(PATH, [], silence_seconds=5))
        assert (refused.value.status, refused.value.reason) == (410, "Expired")


@pytest.mark.parametrize("code", ["no number", 10**9, 7, 410.5, None, []])
def test_an_error_event_of_an_odd_status_is_an_error_of_the_server(tmp_path, code):
    """What it says is not believed, and ends no thread."""
    event = {"type": "ERROR", "object": {"code": code, "message": "odd"}}
    with Script(answer(200, event)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with pytest.raises(errors.StatusError) as refused:
            list(api.watch(PATH, [], silence_seconds=5))
        assert (refused.value.status, refused.value.message) == (500, "odd")


def test_an_answer_beyond_the_bound_is_no_answer_and_the_copy_stays(tmp_path):
    """Parsed, it would take more memory than the container has."""
    kept = {"metadata": {"resourceVersion": "7"}, "items": [map_("one", key="a")]}
    huge = kept | {"items": [map_("one", key="x" * client.ANSWER_BYTES)]}
    with Script(answer(200, kept), answer(200, huge)) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        for _ in range(2):
            with pytest.raises(errors.UnreachableError, match="larger than 16777216 bytes"):
                reflector.list()
        assert (reflector.store.objects, reflector.store.status) == ({"one": {"key": "a"}}, 0)
        assert reflector.store.reason == "the answer is larger than 16777216 bytes"


def test_waits_grow_however_long_each_try_takes(tmp_path, monkeypatch):
    """A slow refusal is a failure as a quick one is; only a watch that lasted begins anew."""
    monkeypatch.setattr(reflector_module, "STABLE_SECONDS", 0.0)
    with Script(answer(503, b"{}")) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)))
        told = []
        watched.reflector.pause = lambda failures: told.append(failures) or 0.0
        with watched:
            until(lambda: len(told) >= 4, lambda: told)
    assert told[:4] == [1, 2, 3, 4]


@pytest.mark.parametrize("stable", [0.0, 60.0])
def test_after_a_watch_that_broke_it_lists_again(tmp_path, monkeypatch, stable):
    """Versions after a broken watch may belong to another history, however long it lasted."""
    monkeypatch.setattr(reflector_module, "STABLE_SECONDS", stable)
    event = {"type": "ADDED", "object": map_("one", key="a")}
    event["object"]["metadata"]["resourceVersion"] = "9"
    broken = answer(200, json.dumps(event).encode() + b"\n{")
    with Script(LIST, broken, LIST, answer(410, b"{}")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with Watched(api) as watched:
            until(lambda: len(server.asked) >= 4, lambda: server.asked)
            watched.reflector.stop()
    versions = [re.findall(r"resourceVersion=(\d+)", one) for one in server.asked[:4]]
    assert versions == [[], ["7"], [], ["7"]]


def test_after_a_watch_that_ended_early_it_lists_again(tmp_path, monkeypatch):
    """An API server that shuts down ends its watches as it does after their time limit."""
    monkeypatch.setattr(reflector_module, "FIRST_SECONDS", 0.0)
    with Script(LIST, answer(200, b""), LIST, None) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)), silence_seconds=60)
        with watched:
            until(lambda: len(server.asked) == 4, lambda: server.asked)
            watched.reflector.stop()
    assert ["watch=" in one for one in server.asked] == [False, True, False, True]


def test_a_version_that_goes_backwards_is_followed_by_a_list(tmp_path):
    """The data of the store were restored while the API server was running."""

    def event(version):
        changed = map_("one", key=version)
        changed["metadata"]["resourceVersion"] = version
        return json.dumps({"type": "MODIFIED", "object": changed}).encode()

    lost = answer(200, event("10") + b"\n" + event("8") + b"\n" + event("11"))
    with Script(LIST, lost, LIST, None) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)), silence_seconds=60)
        with watched:
            until(lambda: len(server.asked) == 4, lambda: server.asked)
            assert watched.reflector.store.objects == {}
            watched.reflector.stop()
    told = []
    while not watched.changes.empty():
        told.append((watched.changes.get().objects or {}).get("one"))
    assert {"key": "11"} not in told
    assert {"key": "8"} not in told


def test_a_list_counts_as_a_change_although_it_is_equal(tmp_path):
    """The user of the copy may know a newer answer, which a restored API server has lost."""
    with Script(LIST) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)))
        copies = []
        for _ in range(2):
            watched.reflector.list()
            copies.append(watched.reflector.store)
        assert (copies[0] == copies[1], copies[0] is copies[1]) == (True, False)
        assert watched.changes.qsize() == 2


# --- lists in pages -------------------------------------------------------------------------------


def page(*names, more="", version="7"):
    metadata = {"resourceVersion": version} | ({"continue": more} if more else {})
    return answer(200, {"metadata": metadata, "items": [map_(name) for name in names]})


def asked_for(server, name):
    return [re.findall(rf"{name}=(\w+)", one) for one in server.asked]


def test_a_list_is_read_in_pages(tmp_path):
    """Each page is requested with the token of the previous page."""
    with Script(page("a", "b", more="x"), page("c", more="y"), page("d")) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        assert list(reflector.store.objects) == ["a", "b", "c", "d"]
        assert asked_for(server, "continue") == [[], ["x"], ["y"]]
        assert set(map(tuple, asked_for(server, "limit"))) == {("100",)}


def test_a_list_whose_token_expires_is_read_from_the_beginning(tmp_path):
    """The pages that were read belong to a state that no longer exists."""
    expired = answer(410, {"reason": "Expired", "message": "too old"})
    with Script(page("a", more="x"), expired, page("b", more="y"), page("c")) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        assert list(reflector.store.objects) == ["b", "c"]
        assert asked_for(server, "continue") == [[], ["x"], [], ["y"]]


def test_a_list_whose_token_always_expires_is_refused(tmp_path):
    """The list is given up after some tries, and the copy stays."""
    expired = answer(410, {"reason": "Expired", "message": "too old"})
    rounds = [
        one for _ in range(reflector_module.LIST_TRIES) for one in (page("a", more="x"), expired)
    ]
    with Script(page("z"), *rounds) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        with pytest.raises(errors.StatusError, match="too old"):
            reflector.list()
        assert (list(reflector.store.objects), reflector.store.status) == (["z"], 410)
        assert len(server.asked) == 1 + 2 * reflector_module.LIST_TRIES


def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones(tmp_path):
    """A page with a single object may be larger than a page with several objects."""
    large = map_("large", key="x" * reflector_module.PAGE_BYTES)
    huge = answer(200, {"metadata": {"resourceVersion": "7"}, "items": [large]})
    with Script(huge) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        assert list(reflector.store.objects) == ["large"]
        assert asked_for(server, "limit") == [["100"], ["25"], ["6"], ["1"]]


def test_a_list_without_an_end_is_no_answer(tmp_path, monkeypatch):
    """An API server that always has another page does not block the agent for ever."""
    monkeypatch.setattr(reflector_module, "PAGES", 5)
    with Script(page("a", more="x")) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        with pytest.raises(errors.UnreachableError, match="more than 5 pages"):
            reflector.list()
        assert len(server.asked) == 5


@pytest.mark.parametrize("token", [5, ["x"], {"a": 1}])
def test_an_odd_token_is_no_answer(tmp_path, token):
    """It is not taken for the end of the list."""
    with Script(answer(200, {"metadata": {"continue": token}, "items": []})) as server:
        reflector = Watched(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        with pytest.raises(errors.UnreachableError, match="no list"):
            reflector.list()


class Two:
    """Limits that keep two objects, and that have room if fewer objects are known."""

    def __init__(self):
        self.most = 0

    def within(self, objects):
        self.most = max(self.most, len(objects))
        return dict(sorted(objects.items())[:2])

    def has_room(self, objects):
        return len(objects) < 2


def test_bounds_decide_after_each_page_what_is_kept(tmp_path):
    """The copy holds at most the allowed objects and one page, and says that there are more."""
    pages = [page(f"a{number}", f"b{number}", more="x") for number in range(9)]
    with Script(*pages, page("c")) as server:
        bounds = Two()
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        reflector = Watched(api, bounds=bounds).reflector
        reflector.list()
        assert (list(reflector.store.objects), reflector.store.partial) == (["a0", "a1"], True)
        assert bounds.most == 4


def test_it_lists_again_where_there_is_room_for_what_was_let_go(tmp_path, monkeypatch):
    """No event contains the content of an object that was dropped."""
    monkeypatch.setattr(reflector_module, "ROOM_SECONDS", 0.0)
    gone = {"type": "DELETED", "object": map_("a")}
    with Script(page("a", "b", "c"), answer(200, gone), page("b", "c"), None) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with Watched(api, bounds=Two(), silence_seconds=60) as watched:
            until(lambda: len(server.asked) == 4, lambda: server.asked)
            watched.reflector.stop()
            assert list(watched.reflector.store.objects) == ["b", "c"]
            assert watched.reflector.store.partial is False


def test_real_pages_make_the_same_list(cluster, tmp_path, monkeypatch):
    """Lists of any size are read completely, even if the store compacts the state in between."""
    names = {f"page-{number}" for number in range(7)}
    cluster.apply(*(map_(name, key=name) for name in names))
    forgotten = []

    def forget(found):
        if not forgotten:
            forgotten.append(found)
            cluster.apply(map_("page-0", key="page-0", more="x"))
            compact(cluster, cluster.get(f"{PATH}/page-0")["metadata"]["resourceVersion"])
        return found.get("data", {})

    for size in (1, 2, 3, 7, 100):
        monkeypatch.setattr(reflector_module, "PAGE_OBJECTS", size)
        api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
        reflector = reflector_module.Reflector(api, PATH, keep=forget, changed=lambda: None)
        reflector.list()
        assert names == objects(reflector.store).keys()
    assert objects(reflector.store)["page-0"] == {"key": "page-0", "more": "x"}
    cluster.kubectl("delete", "configmap", *names)


def test_a_watch_that_was_never_answered_is_none_that_lasted(tmp_path, monkeypatch):
    """However long it waited: only a list that fails tells that the API server is silent."""
    monkeypatch.setattr(reflector_module, "STABLE_SECONDS", 0.0)
    with Script(LIST, None, answer(503, b"{}")) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)), silence_seconds=0.2)
        failures = []
        watched.reflector.pause = lambda failed: failures.append(failed) or 0.0
        with watched:
            watched.until(lambda copy: copy.status == 503)
            watched.reflector.stop()
    assert (["watch=" in one for one in server.asked[:3]], failures[:2]) == (
        [False, True, False],
        [1, 2],
    )


def test_from_a_watch_that_breaks_to_the_next_answer_it_does_not_live(tmp_path):
    """What began meanwhile is not in the copy: nothing may be concluded from it."""
    event = {"type": "ADDED", "object": map_("one", key="a")}
    broken = answer(200, json.dumps(event).encode() + b"\n{")
    with Script(LIST, broken, LIST, answer(200, b"")) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)))
        assert watched.reflector.is_live is False
        paused, changed = [], []
        watched.reflector.pause = lambda _: paused.append(watched.reflector.is_live) or 0.0
        watched.reflector.changed = lambda: changed.append((len(paused), watched.reflector.is_live))
        with watched:
            until(lambda: any(number and live for number, live in changed), lambda: changed)
            watched.reflector.stop()
    assert (paused[0], (0, True) in changed) == (False, True)


def test_a_single_object_whose_version_is_too_old_is_watched_from_now(tmp_path):
    """The version of an object that seldom changes may be gone from the API server's memory."""
    one = answer(200, map_("one", key="a") | {"metadata": {"name": "one", "resourceVersion": "3"}})
    with Script(one, answer(410, b"{}"), answer(200, b"")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with Watched(api, one=f"{PATH}/one") as watched:
            until(lambda: len(server.asked) >= 3, lambda: server.asked)
            watched.reflector.stop()
    versions = [re.findall(r"resourceVersion=(\d+)", one) for one in server.asked[:3]]
    assert versions == [[], ["3"], []]


def test_a_list_alone_is_no_watch(tmp_path):
    """What changes before the watch is answered is not in the copy."""
    with Script(LIST, None) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)), silence_seconds=60)
        with watched:
            until(lambda: len(server.asked) == 2, lambda: server.asked)
            assert (watched.reflector.store.objects, watched.reflector.is_live) == ({}, False)
            watched.reflector.stop()


def test_between_two_watches_it_does_not_live_and_tells_nobody(tmp_path, monkeypatch):
    """The end of a watch in its time is no news; only what is asked before the next one waits."""
    monkeypatch.setattr(reflector_module, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(reflector_module, "EARLY_SECONDS", math.inf)
    with Script(LIST, answer(200, b""), answer(200, b""), None) as server:
        watched = Watched(client.Api(kubeconfig=config(tmp_path, server.url)), silence_seconds=60)
        with watched:
            until(lambda: len(server.asked) == 4, lambda: server.asked)
            assert (watched.reflector.is_live, watched.changes.qsize()) == (False, 2)
            watched.reflector.stop()


def test_pods_are_listed_as_they_are_and_not_from_a_cache(tmp_path):
    """A cache may lag behind the binding of a pod: its list proves nothing."""
    with Script(LIST) as server:
        found = app.cluster(
            Config(node_name="a", pod_aware=True, kubeconfig=config(tmp_path, server.url)),
            lambda _: None,
        )
        found.pods.list()
        assert server.asked == ["/api/v1/pods?fieldSelector=spec.nodeName%3Da&limit=100"]
        assert found.users() == {}


# --- credentials that are renewed -----------------------------------------------------------------


def user(folder, server, **fields):
    """Write a kubeconfig of a user; return its path."""
    path = Path(config(folder, server))
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"users": [{"name": "test", "user": fields}]},
        )
    )
    return str(path)


FOUND = answer(200, {})


def test_a_token_file_is_read_again_after_a_minute_and_where_it_was_refused(tmp_path, monkeypatch):
    """Not before; the end of a line is no part of a token, and a refusal is not asked twice."""
    (tmp_path / "token").write_text("one\n")
    denied = answer(401, {"reason": "Unauthorized", "message": "Unauthorized"})
    with Script(FOUND, FOUND, denied, FOUND, FOUND) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"))
        api.get("/")
        (tmp_path / "token").write_text("two\n")
        api.get("/")
        with pytest.raises(errors.StatusError):
            api.get("/")
        api.get("/")
        (tmp_path / "token").write_text("three\n")
        monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
        api.get("/")
    assert server.bearers == [f"Bearer {one}" for one in ("one", "one", "one", "two", "three")]


def test_a_refused_watch_reads_the_token_file_again(tmp_path):
    """As any request."""
    (tmp_path / "token").write_text("one")
    with Script(answer(401, {}), FOUND) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"))
        (tmp_path / "token").write_text("two")
        with pytest.raises(errors.StatusError):
            list(api.watch(PATH, [], silence_seconds=5))
        api.get("/")
    assert server.bearers == ["Bearer one", "Bearer two"]


def test_only_new_credentials_make_a_new_connection(tmp_path, monkeypatch):
    """What is read again and is the same changes nothing."""
    monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
    (tmp_path / "token").write_text("one")
    with Script(FOUND) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"), version="1")
        for token in ("one", "one", "two"):
            (tmp_path / "token").write_text(token)
            api.get("/")
    first, second, third = server.peers
    assert (first == second, second == third, server.named) == (True, False, {"profile-loader/1"})


@pytest.mark.parametrize("broken", ["missing", "empty", "away"])
def test_credentials_that_cannot_be_read_again_stay_and_a_refusal_says_why(
    tmp_path, monkeypatch, broken
):
    """An empty file is one that is just written: nobody asks without a name."""
    monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
    (tmp_path / "token").write_text("one")
    with Script(FOUND, FOUND, answer(401, {"message": "expired"})) as server:
        path = user(tmp_path, server.url, tokenFile="token")
        api = client.Api(kubeconfig=path)
        api.get("/")
        why = {
            "missing": f"[Errno 2] No such file or directory: '{tmp_path}/token'",
            "empty": "they are empty",
            "away": "Invalid kube-config file. No configuration found.",
        }[broken]
        if broken == "missing":
            (tmp_path / "token").unlink()
        elif broken == "empty":
            (tmp_path / "token").write_text("")
        else:
            Path(path).unlink()
        api.get("/")
        with pytest.raises(errors.StatusError) as refused:
            api.get("/")
    assert server.bearers == ["Bearer one"] * 3
    assert refused.value.message == f"expired; the credentials could not be read again: {why}"


def test_in_a_pod_a_clock_that_is_set_back_keeps_no_old_token(tmp_path, monkeypatch):
    """The age of a token is told by a clock that nobody sets."""

    def token(uid):
        claims = base64.urlsafe_b64encode(
            json.dumps({"kubernetes.io": {"node": {"uid": uid}}}).encode()
        )
        (tmp_path / "token").write_text(f"e30.{claims.decode().rstrip('=')}.x")

    class Set:
        behind = dt.timedelta()

        @classmethod
        def now(cls):
            return dt.datetime.now() - cls.behind  # noqa: DTZ005 - as the client does

    (tmp_path / "ca.crt").write_text("any")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    clock = types.SimpleNamespace(datetime=Set, timedelta=dt.timedelta)
    monkeypatch.setattr(incluster_config, "datetime", clock)
    token("one")
    api = client.Api()
    assert api.token_node_uid() == "one"
    token("two")
    Set.behind = dt.timedelta(hours=1)
    monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
    assert api.token_node_uid() == "two"


def test_a_plugin_that_hangs_keeps_nobody(tmp_path, monkeypatch):
    """The former credentials serve on, and it is not run twice at a time."""
    monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.2)
    plugin = tmp_path / "plugin"
    given = json.dumps(
        {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": "one", "expirationTimestamp": "2020-01-01T00:00:00Z"},
        }
    )
    plugin.write_text(
        f"#!/bin/sh\ncd {tmp_path}\nif [ -e ran ]; then echo $$ >> hung; exec sleep 600; fi\n"
        f"touch ran\necho '{given}'\n"
    )
    plugin.chmod(0o755)
    runs = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    with Script(FOUND, FOUND, answer(401, {"message": "expired"})) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, exec=runs))
        ended = queue.SimpleQueue()

        def ask():
            api.get("/")
            api.get("/")
            try:
                api.get("/")
            except errors.StatusError as refused:
                ended.put(refused.message)

        threading.Thread(target=ask, daemon=True).start()
        told = "expired; the credentials could not be read again: it is taking long"
        try:
            assert ended.get(timeout=pace.scaled(5)) == told
        finally:
            until((tmp_path / "hung").exists, "a plugin that hangs")
            hung = (tmp_path / "hung").read_text().split()
            for one in hung:
                os.kill(int(one), signal.SIGKILL)
    assert (len(hung), server.bearers) == (1, ["Bearer one"] * 3)


def test_without_room_for_a_thread_the_former_credentials_serve_on(tmp_path, monkeypatch):
    """They are read when there is."""
    monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
    (tmp_path / "token").write_text("one")
    start = threading.Thread.start
    full = [True]

    def started(thread):
        if thread.name == "credentials" and full:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    with Script(FOUND) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"))
        (tmp_path / "token").write_text("two")
        api.get("/")
        full.clear()
        api.get("/")
    assert server.bearers == ["Bearer one", "Bearer two"]
