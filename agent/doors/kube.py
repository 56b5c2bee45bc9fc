"""The API server: the only user of the `kubernetes` package, by its raw ApiClient.

Rule 1: every call has time-outs for connecting and for reading, and no hidden retries: who calls
decides when to call again. Rule 2: a refusal and a silence are two errors. Rule 3: no object of
the client leaves this module; answers are the parsed JSON.

The typed API of the package costs 27 MiB more (measured with kubernetes 37.0.2), therefore
`param_serialize` and `call_api`, which are its generator's internals: pinned below 38.
"""

import base64
import binascii
import json
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs
from yaml import YAMLError

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 10.0
# Read and parsed, an answer takes about 3.3 bytes for each of its own: 40 MB of ConfigMaps made
# 178 MiB (measured), in a container of 128 MiB.
ANSWER_BYTES: Final = 16 << 20
RETRY_SECONDS: Final = 60.0  # what a Retry-After counts for at most: nobody waits for days
MANAGER: Final = "profile-loader"  # constant for ever: labels of another manager are never ours
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
JSON_PATCH: Final = "application/json-patch+json"

Json = dict[str, object]
Query = Sequence[tuple[str, str]]


class Event(TypedDict):
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK with an object."""

    type: str
    object: Json


# What the client raises where no answer came; ConfigException: the token's file is empty.
_SILENT: Final = (urllib3.exceptions.HTTPError, OSError, ApiException, ConfigException)


# How urllib3 begins what it says of a connection: the name of a class, and the address.
_PEER: Final = re.compile(r"^\w*Connection\(host='?([^',]*)'?, port=(\d+)\): ")


class KubeError(Exception):
    """A call that did not succeed; the text says why, for people."""


class NoCluster(KubeError):  # noqa: N818 - reads as what it is
    """There is no configuration with which to call an API server."""


class Unreachable(KubeError):  # noqa: N818 - reads as what it is
    """No answer, or none that could be understood."""


class Unanswered(Unreachable):
    """Nothing came of a watch, not even its first line."""


class Refused(KubeError):  # noqa: N818 - reads as what it is
    """The API server answered and said no.

    status: the HTTP status. reason: of the Status object, or empty. retry_after: seconds, or 0.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


def _no_cluster(kubeconfig: str, why: str) -> str:
    if not kubeconfig:
        return f"no cluster from this pod: {why} Outside of a pod, name one with --kubeconfig FILE."
    there = any(Path(one).is_file() for one in kubeconfig.split(os.pathsep))
    return f"no cluster from kubeconfig {kubeconfig}: {why if there else 'there is no such file'}"


def _nothing(_verb: str, _code: str, _seconds: float) -> None:
    """Count no request."""


class _Connection(HTTPSConnection):
    """Verifies as kubectl and the kubelet do: chain, dates and address.

    Python 3.13 is stricter by default (VERIFY_X509_STRICT): it refuses authorities without key
    usage or key identifiers, as clusters have that are some years old
    (https://github.com/kubernetes-client/python/issues/2394).
    """

    def connect(self) -> None:
        """Connect with a context of its own, so that a renewed authority counts."""
        self.ssl_context = create_urllib3_context(cert_reqs=resolve_cert_reqs(self.cert_reqs))
        self.ssl_context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data):
            self.ssl_context.load_default_certs()
        super().connect()


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class Api:
    """One connection pool to one API server. Safe to use from several threads."""

    def __init__(
        self,
        *,
        kubeconfig: str = "",
        version: str = "",
        count: Callable[[str, str, float], None] = _nothing,
    ) -> None:
        """Read the configuration: of the pod, or of the kubeconfig file where one is named.

        count is told verb, status code (or the kind of failure) and seconds of each request.
        Raises NoCluster.
        """
        config = Configuration()
        try:
            if kubeconfig:
                load_kube_config(  # type: ignore[no-untyped-call] # the package's own
                    kubeconfig, client_configuration=config, persist_config=False
                )
            else:
                load_incluster_config(client_configuration=config)  # type: ignore[no-untyped-call] # the same
        except (ConfigException, YAMLError, OSError, ValueError) as error:
            raise NoCluster(_no_cluster(kubeconfig, " ".join(str(error).split())[:300])) from error
        except (TypeError, KeyError, AttributeError) as error:  # YAML of some other kind
            raise NoCluster(_no_cluster(kubeconfig, "it is no kubeconfig")) from error
        config.retries = False  # urllib3: none at all, not even of the connection
        config.connection_pool_maxsize = 4
        config.keep_alive = True
        config.proxy = None
        self.config = config
        self.client = ApiClient(configuration=config)
        pools = self.client.rest_client.pool_manager
        pools.pool_classes_by_scheme = {**pools.pool_classes_by_scheme, "https": _Pool}
        self.client.user_agent = f"profile-loader/{version}" if version else "profile-loader"
        self.count = count
        self._streams: set[urllib3.BaseHTTPResponse] = set()
        self._lock = threading.Lock()
        self._closed = False

    # --- one request ------------------------------------------------------------------------------

    def get(self, path: str, query: Query = (), *, accept: str = "application/json") -> Json:
        """Return the object at a path. Raises Refused and Unreachable."""
        return self._ask("GET", path, query, accept=accept)

    def send(
        self, method: str, path: str, body: object, query: Query = (), *, content: str = ""
    ) -> Json:
        """Send an object (POST, PATCH, DELETE) and return the answer.

        content is the content type of the body. Raises Refused and Unreachable.
        """
        return self._ask(method, path, query, body=body, content=content)

    def apply(self, path: str, body: Mapping[str, object]) -> Json:
        """Apply an object on the server side, taking over what others hold of it."""
        query = [("fieldManager", MANAGER), ("force", "true")]
        return self._ask("PATCH", path, query, body=body, content=APPLY)

    def _ask(  # noqa: PLR0913 - what a request consists of
        self,
        method: str,
        path: str,
        query: Query,
        *,
        body: object = None,
        content: str = "",
        accept: str = "application/json",
    ) -> Json:
        begin = time.monotonic()
        code = "unreachable"
        try:
            response = self._open(method, path, query, body=body, content=content, accept=accept)
            try:
                code = str(response.status)
                text = _content(response)
            finally:
                response.release_conn()
            return _answer(response, text)
        except _SILENT as error:
            raise Unreachable(_why(error)) from error
        finally:
            self.count(method, code, time.monotonic() - begin)

    def _open(  # noqa: PLR0913 - what a request consists of
        self,
        method: str,
        path: str,
        query: Query,
        *,
        accept: str,
        body: object = None,
        content: str = "",
        read_seconds: float = READ_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept} | ({"Content-Type": content} if content else {})
        request = self.client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self.client.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds))
        response: urllib3.BaseHTTPResponse = answer.response
        return response

    # --- a watch ----------------------------------------------------------------------------------

    def watch(
        self, path: str, query: Query, *, silence_seconds: float, accept: str = "application/json"
    ) -> Iterator[Event]:
        """Yield events until the server ends the watch.

        Raises Refused for an answer or an ERROR event (410: list again), Unreachable for a
        connection that breaks, or that is silent for so many seconds, or that `close` ended;
        Unanswered if that was before any answer.
        """
        begin = time.monotonic()
        code = "unreachable"
        try:
            response = self._open(
                "GET",
                path,
                [*query, ("watch", "true")],
                accept=accept,
                read_seconds=silence_seconds,
            )
            code = str(response.status)
        except _SILENT as error:
            raise Unanswered(_why(error)) from error
        finally:
            self.count("WATCH", code, time.monotonic() - begin)
        with self._lock:
            self._streams.add(response)
            closed = self._closed
        try:
            if closed:
                raise Unreachable("closed")
            if response.status != 200:  # noqa: PLR2004 - the one status of a watch
                _answer(response, _content(response))
            yield from _events(response)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(_why(error)) from error
        finally:
            with self._lock:
                self._streams.discard(response)
            response.close()

    def close(self) -> None:
        """End every watch, and begin no other: whoever reads one is woken with Unreachable."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        for one in streams:
            try:
                one.shutdown()
            except (OSError, ValueError, urllib3.exceptions.HTTPError):
                continue  # it ended meanwhile

    # --- who we are -------------------------------------------------------------------------------

    def token_node_uid(self) -> str:
        """Return the uid of the Node that the token is bound to, or an empty text.

        Kubernetes 1.30 and newer put it into the tokens of pods (KEP-4193); nothing is verified
        here, the API server does that.
        """
        try:
            setting = self.config.auth_settings().get("BearerToken", {})
        except (ConfigException, OSError):
            return ""  # the token's file is away for the moment
        parts = str(setting.get("value", "")).split(".")
        if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature
            return ""
        try:
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            uid = claims["kubernetes.io"]["node"]["uid"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            return ""
        return uid if isinstance(uid, str) else ""


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[Event]:
    rest = b""
    for chunk in response.stream(1 << 16, decode_content=True):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > ANSWER_BYTES:
            raise Unreachable(f"one event is larger than {ANSWER_BYTES} bytes")
        for line in lines:
            if line.strip():
                yield _event(line)
    if rest.strip():
        yield _event(rest)


def _event(line: bytes) -> Event:
    found = _parsed(line)
    kind, body = found.get("type"), found.get("object")
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise Unreachable("a line of the watch is no event")
    if kind == "ERROR":
        raise _refused(_status(body.get("code")), body, 0.0)
    return {"type": kind, "object": body}


def _status(code: object) -> int:
    """Return the status that an ERROR event tells; an odd one is the server's own error."""
    return code if isinstance(code, int) and 400 <= code < 600 else 500  # noqa: PLR2004 - RFC 9110


def _content(response: urllib3.BaseHTTPResponse) -> bytes:
    content = b"".join(_bounded(response))
    if len(content) > ANSWER_BYTES:
        raise Unreachable(f"the answer is larger than {ANSWER_BYTES} bytes")
    return content


def _bounded(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    size = 0
    for chunk in response.stream(1 << 16, decode_content=True):
        size += len(chunk)
        yield chunk
        if size > ANSWER_BYTES:
            return


def _answer(response: urllib3.BaseHTTPResponse, text: bytes) -> Json:
    if 200 <= response.status < 300:  # noqa: PLR2004 - the range of success, RFC 9110
        return _parsed(text)
    try:
        body = _parsed(text)
    except Unreachable:
        body = {"message": text[:300].decode(errors="replace")}
    raise _refused(response.status, body, _seconds(str(response.headers.get("Retry-After", ""))))


def _seconds(wait: str) -> float:
    """Return for how long a Retry-After asks; 0 for a date, which no API server sends."""
    return min(float(wait), RETRY_SECONDS) if wait.isdecimal() else 0.0


def _refused(status: int, body: Json, retry_after: float) -> Refused:
    message = str(body.get("message") or "no message")
    return Refused(status, str(body.get("reason") or ""), message[:1000], retry_after)


def _parsed(text: bytes) -> Json:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreachable("the answer is not JSON") from error
    if not isinstance(found, dict):
        raise Unreachable("the answer is no object")
    return found


def _why(error: Exception) -> str:
    """Return one line that says what failed, without addresses of Python objects."""
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no answer in time"
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    text = _PEER.sub(r"\1:\2: ", text)
    head, _, tail = text.partition(">: ")  # "<urllib3... object at 0x...>: what happened"
    return (tail if head.startswith("<") and tail else text)[:300] or type(error).__name__
