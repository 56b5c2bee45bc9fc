"""Tests of the API client and the reflector, with a real API server and with a scripted server.

Only the scripted server sends the responses that a real server rarely sends, for example 429, 503,
or a watch that is not JSON.
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
from agent.backoff import Backoff
from agent.config import Config
from agent.core import pod_references
from agent.kube import client, credentials, errors, lister, responses
from agent.kube import reflector as reflector_module
from agent.kube.lister import Resource
from agent.kube.own_node import node_metadata
from agent.sources import configmap as cluster_source
from tests.system.cluster import Cluster, free_port, until
from tests.system.guest import pace
from tests.system.proxy import Proxy
from tests.system.test_tls import certificate

PATH = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as running:
        yield running


def config(folder, server, ca="", token="admin"):  # noqa: S107 - the token of a test server
    """Write a kubeconfig, and return its path."""
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


class RecordedBackoff(Backoff):
    """A back-off without delays, which records the number of consecutive failures."""

    def __init__(self):
        super().__init__(first_seconds=0.0, longest_seconds=0.0)
        self.recorded = []

    def next_delay(self):
        delay = super().next_delay()
        self.recorded.append(self.failures)
        return delay


class WatchedConfigMaps:
    """A reflector of ConfigMap data, with a queue of its reported stores."""

    def __init__(
        self,
        api,
        *,
        backoff=None,
        bounds=None,
        on_change=lambda: None,
        on_restart=lambda: None,
        **resource,
    ):
        self.changes = queue.SimpleQueue()
        self.on_change = on_change
        self.on_restart = on_restart
        self.has_ended = False
        self.reflector = reflector_module.Reflector(
            api,
            Resource(path=PATH, **resource),
            keep=lambda item: item.get("data", {}),
            on_change=self.changed,
            on_restart=self.restarted,
            backoff=backoff or reflector_module.new_backoff(),
            bounds=bounds,
        )

    def changed(self):
        self.park_if_ended()
        self.changes.put(self.reflector.store)
        self.on_change()

    def restarted(self):
        self.park_if_ended()
        self.on_restart()

    def park_if_ended(self):
        """At the end of a test, block the thread of the reflector forever, because the thread
        cannot be stopped.
        """
        if self.has_ended:
            threading.Event().wait()

    def end(self):
        """Let the thread of the reflector block after its current request."""
        self.has_ended = True

    def __enter__(self):
        self.reflector.start()
        return self

    def __exit__(self, *_):
        self.end()

    def until(self, condition, seconds=20):
        return until(lambda: condition(self.reflector.store), lambda: self.reflector.store, seconds)


def config_map(name, **data):
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


def objects(store):
    """Return the objects of a store, except for objects that Kubernetes itself creates."""
    return {
        name: data
        for name, data in (store.objects or {}).items()
        if not name.startswith("kube-root")
    }


# --- the real API server --------------------------------------------------------------------------


def test_the_store_follows_created_changed_and_deleted_objects(cluster, tmp_path):
    """The store follows each change of an object's content. A change of only a label is not
    reported.
    """
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    with WatchedConfigMaps(api) as watched:
        watched.until(lambda store: store.objects is not None)
        cluster.apply(config_map("one", key="a"))
        watched.until(lambda store: objects(store) == {"one": {"key": "a"}})
        cluster.apply(config_map("one", key="b"))
        watched.until(lambda store: objects(store) == {"one": {"key": "b"}})
        reported = watched.changes.qsize()
        cluster.kubectl("label", "configmap", "one", "x=y")
        cluster.apply(config_map("two", key="c"))
        watched.until(lambda store: "two" in objects(store))
        assert watched.changes.qsize() == reported + 1
        cluster.kubectl("delete", "configmap", "one", "two")
        watched.until(lambda store: objects(store) == {})


def test_the_store_follows_changes_after_a_restart_of_the_api_server(cluster, tmp_path):
    """While the API server is stopped, the store keeps its objects. After the restart, the store
    follows changes again.
    """
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    with WatchedConfigMaps(api) as watched:
        watched.until(lambda store: store.objects is not None)
        cluster.stop("kube-apiserver")
        watched.until(lambda store: store.reason != "" and store.objects is not None)
        cluster.start_api()
        cluster.apply(config_map("later", key="a"))
        watched.until(lambda store: objects(store) == {"later": {"key": "a"}}, 60)
        cluster.kubectl("delete", "configmap", "later")


def test_a_single_object_is_followed_across_a_restart_of_the_api_server(cluster, tmp_path):
    """Changes still arrive if the version of an object is older than the history of the API
    server.
    """
    cluster.node("seldom")
    cluster.apply(config_map("newer", key="a"))
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    reflector = reflector_module.Reflector(
        api,
        Resource(
            path="/api/v1/nodes",
            query=(("fieldSelector", "metadata.name=seldom"),),
            object_path="/api/v1/nodes/seldom",
            metadata_only=True,
        ),
        keep=lambda item: item["metadata"].get("labels", {}).get("x", ""),
        on_change=lambda: None,
        backoff=reflector_module.new_backoff(),
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
    cluster.kubectl("delete", "configmap", "newer")


@pytest.mark.parametrize("metadata_only", [False, True])
def test_a_list_without_objects_is_empty(cluster, tmp_path, metadata_only):
    """A list without objects results in an empty store. The API server sends `[]`, or null for a
    list of metadata.
    """
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    reflector = WatchedConfigMaps(
        api, metadata_only=metadata_only, query=(("labelSelector", "no=match"),)
    ).reflector
    reflector.list()
    assert reflector.store == reflector_module.Store(objects={})


def compact(cluster, version):
    """Make etcd delete all states before a version."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.etcd_port}/v3/kv/compaction",
        data=json.dumps({"revision": version, "physical": True}).encode(),
    )
    urllib.request.urlopen(request, timeout=100).close()  # noqa: S310 - the scheme is http


def test_a_watch_from_a_compacted_version_is_rejected(cluster, tmp_path):
    """If the API server rejects a watch with status 410, the reflector lists the current
    objects.
    """
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    cluster.apply(config_map("old", key="a"))
    first = api.get(f"{PATH}/old")["metadata"]["resourceVersion"]
    for number in range(3):
        cluster.apply(config_map("old", key=str(number)))
    last = api.get(f"{PATH}/old")["metadata"]["resourceVersion"]
    compact(cluster, last)
    cluster.stop("kube-apiserver")
    cluster.start_api()
    with pytest.raises(errors.StatusError) as error:
        list(api.watch(PATH, [("resourceVersion", first)], silence_seconds=20))
    assert (error.value.status, error.value.reason) == (410, "Expired")
    watched = WatchedConfigMaps(api)
    watched.reflector.list()
    assert objects(watched.reflector.store) == {"old": {"key": "2"}}
    cluster.kubectl("delete", "configmap", "old")


def test_a_silent_peer_is_detected(cluster, tmp_path, monkeypatch):
    """If a connection delivers no data, not even bookmarks, the reflector opens a new
    connection.
    """
    monkeypatch.setattr(reflector_module, "SILENCE_SECONDS", 1.0)
    with Proxy(cluster.port) as proxy:
        api = client.Api(kubeconfig=config(tmp_path, f"https://127.0.0.1:{proxy.port}", cluster.ca))
        with WatchedConfigMaps(api) as watched:
            watched.until(lambda store: store.objects is not None)
            proxy.silence()
            cluster.apply(config_map("unseen", key="a"))
            watched.until(lambda store: "no response in time" in store.reason, 40)
            proxy.forward()
            watched.until(lambda store: objects(store) == {"unseen": {"key": "a"}}, 75)
        cluster.kubectl("delete", "configmap", "unseen")


def test_the_token_contains_the_uid_of_the_node_that_it_is_bound_to(cluster, tmp_path):
    """The token of a pod contains the uid of the pod's Node. An unbound token contains no uid."""
    uid = cluster.node("bound")
    token = cluster.agent_token("bound")
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca, token))
    assert api.token_node_uid() == uid
    unbound = cluster.agent_token("bound", bound=False)
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca, unbound))
    assert api.token_node_uid() == ""


def test_a_status_error_contains_the_reason_of_the_api_server(cluster, tmp_path):
    """A status error contains the HTTP status and the reason in the Status object."""
    api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca, "unknown"))
    with pytest.raises(errors.StatusError) as error:
        api.get(PATH)
    assert (error.value.status, error.value.reason) == (401, "Unauthorized")
    admin = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
    with pytest.raises(errors.StatusError) as error:
        admin.get(f"{PATH}/none")
    assert (error.value.status, error.value.reason) == (404, "NotFound")


def test_a_closed_port_is_unreachable(tmp_path):
    """If a port is closed, the error message contains the address and the reason on one line."""
    port = free_port()
    api = client.Api(kubeconfig=config(tmp_path, f"https://127.0.0.1:{port}"))
    with pytest.raises(
        errors.UnreachableError, match=rf"^127\.0\.0\.1:{port}: .*Connection refused"
    ):
        api.get(PATH)


def test_an_unusable_kubeconfig_is_an_error(tmp_path):
    """A missing kubeconfig, invalid content or an address of the wrong type raises
    NoClusterError.
    """
    (tmp_path / "bad").write_text("{]")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "bad", tmp_path / "text", config(tmp_path, 5)):
        with pytest.raises(errors.NoClusterError):
            client.Api(kubeconfig=str(path))
    with pytest.raises(errors.NoClusterError, match="the file does not exist"):
        client.Api(kubeconfig=str(tmp_path / "missing"))
    with pytest.raises(errors.NoClusterError):
        client.Api()  # The test itself does not run in a pod.


# --- responses that a real API server sends too rarely --------------------------------------------


class ScriptedServer:
    """An HTTP server that sends one scripted response to each request, and repeats the last
    response.

    If a response is None, the server sends nothing until the client closes the connection.
    """

    def __init__(self, *responses):
        self.responses = list(responses)
        self.paths = []
        self.user_agents = set()
        self.authorizations = []
        self.peers = []
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                script.paths.append(self.path)
                script.user_agents.add(self.headers["User-Agent"])
                script.authorizations.append(self.headers["Authorization"])
                script.peers.append(self.client_address)
                is_last = len(script.responses) == 1
                response = script.responses[0] if is_last else script.responses.pop(0)
                if response is None:
                    self.rfile.read()
                    self.close_connection = True
                    return
                status, headers, body = response
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


def response(status, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, content


LIST = response(200, {"metadata": {"resourceVersion": "7"}, "items": []})


@pytest.mark.parametrize(
    ("scripted", "status", "retry_after"),
    [
        (response(429, {"message": "slower"}, Retry_After="3"), 429, 3.0),
        (response(503, b"<html>away</html>"), 503, 0.0),
        (response(302, b"", Location="http://127.0.0.1:1/"), 302, 0.0),
        (response(429, b"{}", Retry_After="9" * 400), 429, responses.RETRY_AFTER_SECONDS),
        (response(429, b"{}", Retry_After="\N{SUPERSCRIPT TWO}"), 429, 0.0),
        (response(503, b"{}", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 503, 0.0),
    ],
)
def test_an_error_status_is_not_retried_and_contains_retry_after(
    tmp_path, scripted, status, retry_after
):
    """If the response has an error status, the client does not retry, follows no redirect, and
    limits the value of Retry-After.
    """
    with ScriptedServer(scripted) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url), version="1.2.3")
        with pytest.raises(errors.StatusError) as error:
            api.get(PATH)
        assert (error.value.status, error.value.retry_after) == (status, retry_after)
        assert (server.paths, server.user_agents) == ([PATH], {"profile-loader/1.2.3"})


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_response_that_is_not_an_object_is_an_error(tmp_path, body):
    """A response that is not a JSON object is an error, and never counts as an empty list."""
    with ScriptedServer(response(200, body)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with pytest.raises(errors.UnreachableError):
            WatchedConfigMaps(api).reflector.list()


@pytest.mark.parametrize(
    "fields",
    [
        *({"items": items} for items in (5, [5], "x", [{}])),
        {},
        {"items": None},
        {"items": None, "kind": "ConfigMapList"},
        {"items": None, "kind": "PartialObjectMetadataList", "metadata": {}},
    ],
)
def test_a_list_with_malformed_items_is_an_error(tmp_path, fields):
    """If a list has no items, or an item has no name, the whole list is unreadable."""
    with ScriptedServer(response(200, {"metadata": {"resourceVersion": "1"}} | fields)) as server:
        watched = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url)))
        with pytest.raises(errors.UnreachableError):
            watched.reflector.list()
        assert watched.reflector.store.objects is None


ODD = (None, True, 5, 1.5, "x", "\ud800", [], ["x"], [[]], {}, {"x": []}, {"\udfff": 5})


def variants(value):
    """Yield copies of a JSON value in which one part has another type."""
    yield from ODD
    if isinstance(value, dict):
        for key in value:
            yield from (value | {key: changed} for changed in variants(value[key]))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from (
                [*value[:index], changed, *value[index + 1 :]] for changed in variants(item)
            )


COMPLETE_OBJECTS = {
    cluster_source.entry_for("d.org"): {
        "metadata": {
            "name": "web",
            "namespace": "ns",
            "resourceVersion": "7",
            "annotations": {"d.org/allow-empty": "true", "d.org/node-selector": "a=b"},
        },
        "data": {"a.json": "{}"},
        "binaryData": {"b.json": "e30="},
    },
    node_metadata: {
        "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}},
        "spec": {},
    },
    pod_references.referenced_profiles: {
        "metadata": {"name": "p", "namespace": "ns", "annotations": {"a": "b"}},
        "spec": {
            "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a"}},
            "containers": [{"securityContext": {"appArmorProfile": {"type": "Localhost"}}}],
        },
        "status": {"phase": "Running"},
    },
}


@pytest.mark.parametrize("keep", COMPLETE_OBJECTS, ids=["configmap", "node", "pod"])
def test_a_list_of_objects_with_wrong_types_is_read_or_is_an_error(tmp_path, keep):
    """Whatever types a response contains, the reflector raises no exception that would end the
    agent.
    """
    items = [item for item in variants(COMPLETE_OBJECTS[keep]) if isinstance(item, dict)]
    lists = [{"metadata": {"resourceVersion": "1"}, "items": [item]} for item in items]
    errors_count = 0
    with ScriptedServer(*(response(200, content) for content in lists)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        reflector = reflector_module.Reflector(
            api,
            Resource(path=PATH),
            keep=keep,
            on_change=lambda: None,
            backoff=reflector_module.new_backoff(),
        )
        for _ in lists:
            try:
                reflector.list()
            except errors.UnreachableError:
                errors_count += 1
                continue
            repr(reflector.store).encode()
    print(f"{len(lists)} lists, {errors_count} of them unreadable")
    assert 0 < errors_count < len(lists)


def test_lone_surrogates_in_a_response_are_replaced(tmp_path):
    """The client replaces lone surrogates, as Go does, because the ledger and the log cannot encode
    them.
    """
    body = (
        rb'{"metadata": {"resourceVersion": "7"}, "items": [' + json.dumps(config_map("x")).encode()
    )
    body = body.replace(b'"x"', rb'"a\ud800b\ud83d\ude00"') + b"]}"
    with ScriptedServer(response(200, body)) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
    assert list(reflector.store.objects) == ["a\ufffdb\U0001f600"]


@pytest.mark.parametrize("is_head_slow", [True, False], ids=["head", "body"])
@pytest.mark.parametrize("uses_tls", [True, False], ids=["TLS", "plain"])
def test_a_response_that_arrives_byte_by_byte_has_a_deadline(
    tmp_path, monkeypatch, uses_tls, is_head_slow
):
    """A response has a total time limit, even if each byte arrives within the timeout."""
    monkeypatch.setattr(client, "RESPONSE_SECONDS", 1.0)
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
        with pytest.raises(errors.UnreachableError, match=r"no response in time|took too long"):
            api.get(PATH)
    finally:
        ended.set()
        listener.close()
        thread.join()


def test_watches_that_end_immediately_are_repeated_with_a_delay(tmp_path):
    """If a server closes every watch immediately, the reflector waits longer after each attempt."""
    with ScriptedServer(LIST, response(200, b"")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with WatchedConfigMaps(api) as watched:
            until(lambda: len(server.paths) >= 3, lambda: server.paths)
            watched.end()
        assert len(server.paths) < 40


def test_an_error_event_ends_the_watch_with_its_status(tmp_path):
    """An ERROR event with code 410 raises the same error as a response with status 410."""
    event = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    with ScriptedServer(response(200, event)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with pytest.raises(errors.StatusError) as error:
            list(api.watch(PATH, [], silence_seconds=5))
        assert (error.value.status, error.value.reason) == (410, "Expired")


@pytest.mark.parametrize("code", ["no number", 10**9, 7, 410.5, None, []])
def test_an_error_event_without_a_valid_code_has_status_500(tmp_path, code):
    """If an ERROR event has no valid code, it counts as status 500, and the thread of the reflector
    continues.
    """
    event = {"type": "ERROR", "object": {"code": code, "message": "odd"}}
    with ScriptedServer(response(200, event)) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with pytest.raises(errors.StatusError) as error:
            list(api.watch(PATH, [], silence_seconds=5))
        assert (error.value.status, error.value.message) == (500, "odd")


def test_a_response_over_the_size_limit_is_an_error_and_the_store_stays(tmp_path):
    """A response above the size limit is an error, because it would not fit into the memory. The
    store stays unchanged.
    """
    kept = {"metadata": {"resourceVersion": "7"}, "items": [config_map("one", key="a")]}
    huge = kept | {"items": [config_map("one", key="x" * responses.RESPONSE_BYTES)]}
    with ScriptedServer(response(200, kept), response(200, huge)) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        for _ in range(2):
            with pytest.raises(errors.UnreachableError, match="larger than 16777216 bytes"):
                reflector.list()
        assert (reflector.store.objects, reflector.store.status) == ({"one": {"key": "a"}}, 0)
        assert reflector.store.reason == "the response is larger than 16777216 bytes"


def test_the_delay_grows_with_each_failed_list(tmp_path, monkeypatch):
    """Each failed list increases the delay, even if the failure takes long. Only a stable watch
    resets the delay.
    """
    monkeypatch.setattr(reflector_module, "STABLE_SECONDS", 0.0)
    with ScriptedServer(response(503, b"{}")) as server:
        backoff = RecordedBackoff()
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with WatchedConfigMaps(api, backoff=backoff):
            until(lambda: len(backoff.recorded) >= 4, lambda: backoff.recorded)
    assert backoff.recorded[:4] == [1, 2, 3, 4]


@pytest.mark.parametrize("stable", [0.0, 60.0])
def test_a_list_follows_a_broken_watch(tmp_path, monkeypatch, stable):
    """If a watch breaks, the reflector lists the objects, because resource versions may belong to
    another history.
    """
    monkeypatch.setattr(reflector_module, "STABLE_SECONDS", stable)
    event = {"type": "ADDED", "object": config_map("one", key="a")}
    event["object"]["metadata"]["resourceVersion"] = "9"
    broken = response(200, json.dumps(event).encode() + b"\n{")
    with ScriptedServer(LIST, broken, LIST, response(410, b"{}")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with WatchedConfigMaps(api) as watched:
            until(lambda: len(server.paths) >= 4, lambda: server.paths)
            watched.end()
    versions = [re.findall(r"resourceVersion=(\d+)", path) for path in server.paths[:4]]
    assert versions == [[], ["7"], [], ["7"]]


def test_a_list_follows_a_watch_that_ended_early(tmp_path, monkeypatch):
    """If a watch ends early, the reflector lists the objects, because the API server may be
    shutting down.
    """
    monkeypatch.setattr(reflector_module, "SHORT_WATCH_SECONDS", 0.0)
    with ScriptedServer(LIST, response(200, b""), LIST, None) as server:
        watched = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url)))
        with watched:
            until(lambda: len(server.paths) == 4, lambda: server.paths)
            watched.end()
    assert ["watch=" in path for path in server.paths] == [False, True, False, True]


def test_a_list_follows_a_resource_version_that_is_older(tmp_path):
    """If a list has an older resource version, the reflector lists again, because etcd was restored
    under the running API server.
    """

    def event(version):
        changed = config_map("one", key=version)
        changed["metadata"]["resourceVersion"] = version
        return json.dumps({"type": "MODIFIED", "object": changed}).encode()

    lost = response(200, event("10") + b"\n" + event("8") + b"\n" + event("11"))
    with ScriptedServer(LIST, lost, LIST, None) as server:
        watched = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url)))
        with watched:
            until(lambda: len(server.paths) == 4, lambda: server.paths)
            assert watched.reflector.store.objects == {}
            watched.end()
    reported = []
    while not watched.changes.empty():
        reported.append((watched.changes.get().objects or {}).get("one"))
    assert {"key": "11"} not in reported
    assert {"key": "8"} not in reported


def test_an_equal_list_has_a_new_revision(tmp_path):
    """A list with equal content still creates a store with a new revision."""
    with ScriptedServer(LIST) as server:
        watched = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url)))
        stores = []
        for _ in range(2):
            watched.reflector.list()
            stores.append(watched.reflector.store)
        assert stores[0] == stores[1]
        assert [store.revision for store in stores] == [1, 2]
        assert watched.changes.qsize() == 2


# --- lists in pages -------------------------------------------------------------------------------


def page(*names, more="", version="7"):
    metadata = {"resourceVersion": version} | ({"continue": more} if more else {})
    return response(200, {"metadata": metadata, "items": [config_map(name) for name in names]})


def parameters(server, name):
    """Return the values of a query parameter in all requests."""
    return [re.findall(rf"{name}=(\w+)", path) for path in server.paths]


def test_a_list_is_read_in_pages(tmp_path):
    """The client requests each page of a list with the token from the previous page."""
    with ScriptedServer(page("a", "b", more="x"), page("c", more="y"), page("d")) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        assert list(reflector.store.objects) == ["a", "b", "c", "d"]
        assert parameters(server, "continue") == [[], ["x"], ["y"]]
        assert set(map(tuple, parameters(server, "limit"))) == {("100",)}


def test_a_list_whose_token_expires_is_read_from_the_beginning(tmp_path):
    """If a page token has expired, the client reads the list from the beginning."""
    expired = response(410, {"reason": "Expired", "message": "too old"})
    with ScriptedServer(page("a", more="x"), expired, page("b", more="y"), page("c")) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        assert list(reflector.store.objects) == ["b", "c"]
        assert parameters(server, "continue") == [[], ["x"], [], ["y"]]


def test_a_list_whose_token_always_expires_fails(tmp_path):
    """If a page token expires in every attempt, the list fails, and the store stays unchanged."""
    expired = response(410, {"reason": "Expired", "message": "too old"})
    rounds = [
        scripted for _ in range(lister.LIST_ATTEMPTS) for scripted in (page("a", more="x"), expired)
    ]
    with ScriptedServer(page("z"), *rounds) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        with pytest.raises(errors.StatusError, match="too old"):
            reflector.list()
        assert (list(reflector.store.objects), reflector.store.status) == (["z"], 410)
        assert len(server.paths) == 1 + 2 * lister.LIST_ATTEMPTS


def test_a_page_that_is_too_large_is_requested_with_fewer_objects(tmp_path):
    """If a page is too large, the client requests fewer objects per page. A page with a single
    object may be larger.
    """
    large = config_map("large", key="x" * lister.PAGE_BYTES)
    huge = response(200, {"metadata": {"resourceVersion": "7"}, "items": [large]})
    with ScriptedServer(huge) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        reflector.list()
        assert list(reflector.store.objects) == ["large"]
        assert parameters(server, "limit") == [["100"], ["25"], ["6"], ["1"]]


def test_a_list_without_an_end_is_an_error(tmp_path, monkeypatch):
    """If an API server always announces another page, the list fails at a limit."""
    monkeypatch.setattr(lister, "PAGE_LIMIT", 5)
    with ScriptedServer(page("a", more="x")) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        with pytest.raises(errors.UnreachableError, match="more than 5 pages"):
            reflector.list()
        assert len(server.paths) == 5


@pytest.mark.parametrize("token", [5, ["x"], {"a": 1}])
def test_a_token_of_a_wrong_type_is_an_error(tmp_path, token):
    """If a continue token is invalid, the list fails."""
    with ScriptedServer(response(200, {"metadata": {"continue": token}, "items": []})) as server:
        reflector = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url))).reflector
        with pytest.raises(errors.UnreachableError, match="not a list"):
            reflector.list()


class TwoObjects:
    """Bounds for at most two objects. These bounds report room while the store contains fewer
    objects.
    """

    def __init__(self):
        self.most = 0

    def within(self, objects):
        self.most = max(self.most, len(objects))
        return dict(sorted(objects.items())[:2])

    def has_room(self, objects):
        return len(objects) < 2


def test_bounds_apply_after_each_page(tmp_path):
    """The client applies the bounds after each page, so that the memory contains at most the
    allowed objects and one page.
    """
    pages = [page(f"a{number}", f"b{number}", more="x") for number in range(9)]
    with ScriptedServer(*pages, page("c")) as server:
        bounds = TwoObjects()
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        reflector = WatchedConfigMaps(api, bounds=bounds).reflector
        reflector.list()
        assert (list(reflector.store.objects), reflector.store.partial) == (["a0", "a1"], True)
        assert bounds.most == 4


def test_a_list_follows_when_dropped_content_has_room_again(tmp_path, monkeypatch):
    """When an object that was left out because of a limit fits again, the reflector lists the
    objects, because no event contains the content of this object.
    """
    monkeypatch.setattr(reflector_module, "ROOM_SECONDS", 0.0)
    start = {"type": "DELETED", "object": config_map("a")}
    with ScriptedServer(page("a", "b", "c"), response(200, start), page("b", "c"), None) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with WatchedConfigMaps(api, bounds=TwoObjects()) as watched:
            until(lambda: len(server.paths) == 4, lambda: server.paths)
            watched.end()
            assert list(watched.reflector.store.objects) == ["b", "c"]
            assert watched.reflector.store.partial is False


def test_real_pages_make_the_same_list(cluster, tmp_path, monkeypatch):
    """A list is complete for every page size, even if etcd compacts its history between two
    pages.
    """
    names = {f"page-{number}" for number in range(7)}
    cluster.apply(*(config_map(name, key=name) for name in names))
    compacted = []

    def keep(item):
        if not compacted:
            compacted.append(item)
            cluster.apply(config_map("page-0", key="page-0", more="x"))
            compact(cluster, cluster.get(f"{PATH}/page-0")["metadata"]["resourceVersion"])
        return item.get("data", {})

    for size in (1, 2, 3, 7, 100):
        monkeypatch.setattr(lister, "PAGE_OBJECTS", size)
        api = client.Api(kubeconfig=config(tmp_path, cluster.url, cluster.ca))
        reflector = reflector_module.Reflector(
            api,
            Resource(path=PATH),
            keep=keep,
            on_change=lambda: None,
            backoff=reflector_module.new_backoff(),
        )
        reflector.list()
        assert names == objects(reflector.store).keys()
    assert objects(reflector.store)["page-0"] == {"key": "page-0", "more": "x"}
    cluster.kubectl("delete", "configmap", *names)


def test_a_watch_that_never_started_is_not_a_stable_watch(tmp_path, monkeypatch):
    """If watches never start, the delay grows, even if each attempt takes long."""
    monkeypatch.setattr(reflector_module, "STABLE_SECONDS", 0.0)
    monkeypatch.setattr(reflector_module, "SILENCE_SECONDS", 0.2)
    backoff = RecordedBackoff()
    with ScriptedServer(LIST, None, response(503, b"{}")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with WatchedConfigMaps(api, backoff=backoff) as watched:
            watched.until(lambda store: store.status == 503)
    assert ["watch=" in path for path in server.paths[:3]] == [False, True, False]
    assert backoff.recorded[:2] == [1, 2]


def test_a_reflector_is_not_live_between_a_broken_watch_and_the_next_response(tmp_path):
    """Between a broken watch and the next response, the store does not count as up to date."""
    event = {"type": "ADDED", "object": config_map("one", key="a")}
    broken = response(200, json.dumps(event).encode() + b"\n{")
    with ScriptedServer(LIST, broken, LIST, response(200, b"")) as server:
        live_in_delay, live_at_change = [], []
        watched = WatchedConfigMaps(
            client.Api(kubeconfig=config(tmp_path, server.url)),
            backoff=RecordedBackoff(),
            on_change=lambda: live_at_change.append(
                (len(live_in_delay), watched.reflector.is_live)
            ),
            on_restart=lambda: live_in_delay.append(watched.reflector.is_live),
        )
        assert watched.reflector.is_live is False
        with watched:
            until(
                lambda: any(delays and live for delays, live in live_at_change),
                lambda: live_at_change,
            )
    assert (live_in_delay[0], (0, True) in live_at_change) == (False, True)


def test_a_single_object_whose_version_is_too_old_is_watched_without_a_version(tmp_path):
    """If the version of a single object is too old, the reflector starts the watch without a
    version.
    """
    single = response(
        200, config_map("one", key="a") | {"metadata": {"name": "one", "resourceVersion": "3"}}
    )
    with ScriptedServer(single, response(410, b"{}"), response(200, b"")) as server:
        api = client.Api(kubeconfig=config(tmp_path, server.url))
        with WatchedConfigMaps(api, object_path=f"{PATH}/one") as watched:
            until(lambda: len(server.paths) >= 3, lambda: server.paths)
            watched.end()
    versions = [re.findall(r"resourceVersion=(\d+)", path) for path in server.paths[:3]]
    assert versions == [[], ["3"], []]


def test_a_reflector_is_not_live_before_its_watch_has_started(tmp_path):
    """Before its watch has started, a store does not count as up to date."""
    with ScriptedServer(LIST, None) as server:
        watched = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url)))
        with watched:
            until(lambda: len(server.paths) == 2, lambda: server.paths)
            assert (watched.reflector.store.objects, watched.reflector.is_live) == ({}, False)
            watched.end()


def test_a_reflector_is_not_live_between_two_watches_and_reports_no_change(tmp_path, monkeypatch):
    """Between two watches, a store does not count as up to date, but the end of a watch at its time
    limit is not a change.
    """
    monkeypatch.setattr(reflector_module, "SHORT_WATCH_SECONDS", 0.0)
    monkeypatch.setattr(reflector_module, "EARLY_SECONDS", math.inf)
    with ScriptedServer(LIST, response(200, b""), response(200, b""), None) as server:
        watched = WatchedConfigMaps(client.Api(kubeconfig=config(tmp_path, server.url)))
        with watched:
            until(lambda: len(server.paths) == 4, lambda: server.paths)
            assert (watched.reflector.is_live, watched.changes.qsize()) == (False, 2)
            watched.end()


def test_pods_are_listed_with_a_consistent_read(tmp_path):
    """The reflector lists pods with a consistent read, because a cache may lack a pod that was
    bound a moment ago.
    """
    with ScriptedServer(LIST) as server:
        connections = app.connect(
            Config(node_name="a", pod_aware=True, kubeconfig=config(tmp_path, server.url))
        )
        connections.own_node.pods.list()
        assert server.paths == ["/api/v1/pods?fieldSelector=spec.nodeName%3Da&limit=100"]
        assert connections.pods_by_profile() == {}


# --- credentials that are renewed -----------------------------------------------------------------


def user(folder, server, **fields):
    """Write a kubeconfig with the credentials of a user, and return its path."""
    path = Path(config(folder, server))
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"users": [{"name": "test", "user": fields}]},
        )
    )
    return str(path)


OK = response(200, {})


def test_a_token_file_is_read_again_after_a_minute_and_after_a_401(tmp_path, monkeypatch):
    """The client reads the token file again after a minute, and after a response with status 401.
    The client does not repeat the request.
    """
    (tmp_path / "token").write_text("one\n")
    denied = response(401, {"reason": "Unauthorized", "message": "Unauthorized"})
    with ScriptedServer(OK, OK, denied, OK, OK) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"))
        api.get("/")
        (tmp_path / "token").write_text("two\n")
        api.get("/")
        with pytest.raises(errors.StatusError):
            api.get("/")
        api.get("/")
        (tmp_path / "token").write_text("three\n")
        monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
        api.get("/")
    assert server.authorizations == [
        f"Bearer {token}" for token in ("one", "one", "one", "two", "three")
    ]


def test_a_token_file_is_read_again_after_a_watch_with_status_401(tmp_path):
    """If a watch gets status 401, the client reads the credentials again, as for any other
    request.
    """
    (tmp_path / "token").write_text("one")
    with ScriptedServer(response(401, {}), OK) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"))
        (tmp_path / "token").write_text("two")
        with pytest.raises(errors.StatusError):
            list(api.watch(PATH, [], silence_seconds=5))
        api.get("/")
    assert server.authorizations == ["Bearer one", "Bearer two"]


def test_only_changed_credentials_open_a_new_connection(tmp_path, monkeypatch):
    """The connection stays open if the client reads the same credentials again."""
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    (tmp_path / "token").write_text("one")
    with ScriptedServer(OK) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"), version="1")
        for token in ("one", "one", "two"):
            (tmp_path / "token").write_text(token)
            api.get("/")
    first, second, third = server.peers
    assert (first == second, second == third, server.user_agents) == (
        True,
        False,
        {"profile-loader/1"},
    )


@pytest.mark.parametrize("failure", ["missing", "empty", "no kubeconfig"])
def test_unreadable_credentials_stay_in_use_and_a_401_contains_the_reason(
    tmp_path, monkeypatch, failure
):
    """If the client cannot read the credentials, the previous ones stay in use, and an error with
    status 401 contains the reason.
    """
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    (tmp_path / "token").write_text("one")
    with ScriptedServer(OK, OK, response(401, {"message": "expired"})) as server:
        path = user(tmp_path, server.url, tokenFile="token")
        api = client.Api(kubeconfig=path)
        api.get("/")
        reason = {
            "missing": f"[Errno 2] No such file or directory: '{tmp_path}/token'",
            "empty": "they are empty",
            "no kubeconfig": "Invalid kube-config file. No configuration found.",
        }[failure]
        if failure == "missing":
            (tmp_path / "token").unlink()
        elif failure == "empty":
            (tmp_path / "token").write_text("")
        else:
            Path(path).unlink()
        api.get("/")
        with pytest.raises(errors.StatusError) as error:
            api.get("/")
    assert server.authorizations == ["Bearer one"] * 3
    assert error.value.message == f"expired; the credentials could not be read again: {reason}"


def test_a_clock_that_is_set_back_does_not_delay_the_renewal_of_a_token(tmp_path, monkeypatch):
    """The age of a token is measured with the monotonic clock."""

    def token(uid):
        claims = base64.urlsafe_b64encode(
            json.dumps({"kubernetes.io": {"node": {"uid": uid}}}).encode()
        )
        (tmp_path / "token").write_text(f"e30.{claims.decode().rstrip('=')}.x")

    class SetBack:
        behind = dt.timedelta()

        @classmethod
        def now(cls):
            return dt.datetime.now() - cls.behind  # noqa: DTZ005 - like the kubernetes package

    (tmp_path / "ca.crt").write_text("any")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    clock = types.SimpleNamespace(datetime=SetBack, timedelta=dt.timedelta)
    monkeypatch.setattr(incluster_config, "datetime", clock)
    token("one")
    api = client.Api()
    assert api.token_node_uid() == "one"
    token("two")
    SetBack.behind = dt.timedelta(hours=1)
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    assert api.token_node_uid() == "two"


def test_a_plugin_that_hangs_does_not_block_requests(tmp_path, monkeypatch):
    """While a credential plugin hangs, the previous credentials stay in use, and only one process
    of the plugin runs.
    """
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    monkeypatch.setattr(credentials, "WAIT_SECONDS", 0.2)
    plugin = tmp_path / "plugin"
    credential = json.dumps(
        {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": "one", "expirationTimestamp": "2020-01-01T00:00:00Z"},
        }
    )
    plugin.write_text(
        f"#!/bin/sh\ncd {tmp_path}\nif [ -e ran ]; then echo $$ >> hung; exec sleep 600; fi\n"
        f"touch ran\necho '{credential}'\n"
    )
    plugin.chmod(0o755)
    runs = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    with ScriptedServer(OK, OK, response(401, {"message": "expired"})) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, exec=runs))
        messages = queue.SimpleQueue()

        def send_requests():
            api.get("/")
            api.get("/")
            try:
                api.get("/")
            except errors.StatusError as error:
                messages.put(error.message)

        threading.Thread(target=send_requests, daemon=True).start()
        expected = (
            "expired; the credentials could not be read again: reading them is taking too long"
        )
        try:
            assert messages.get(timeout=pace.scaled(5)) == expected
        finally:
            until((tmp_path / "hung").exists, "a plugin that hangs")
            hung = (tmp_path / "hung").read_text().split()
            for pid in hung:
                os.kill(int(pid), signal.SIGKILL)
    assert (len(hung), server.authorizations) == (1, ["Bearer one"] * 3)


def test_the_previous_credentials_stay_in_use_if_no_thread_can_start(tmp_path, monkeypatch):
    """If no thread can start, the previous credentials stay in use. The client reads the
    credentials again as soon as a thread can start.
    """
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    (tmp_path / "token").write_text("one")
    start = threading.Thread.start
    is_full = [True]

    def started(thread):
        if thread.name == "credentials" and is_full:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    with ScriptedServer(OK) as server:
        api = client.Api(kubeconfig=user(tmp_path, server.url, tokenFile="token"))
        (tmp_path / "token").write_text("two")
        api.get("/")
        is_full.clear()
        api.get("/")
    assert server.authorizations == ["Bearer one", "Bearer two"]
