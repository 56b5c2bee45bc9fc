"""Sends requests to the API server with urllib3.

Every request has time limits and a size limit. This module never repeats a request, because the
caller decides when to send it again. An error status and a missing response raise two different
errors (errors.py). responses.py parses the JSON of responses. credentials.py reads the
configuration, and connections.py opens the connections. The generated API of the kubernetes package
is not used, because it needs 27 MiB more memory (measured with kubernetes 37.0.2).
"""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlencode

import urllib3

from agent.kube import connections, responses
from agent.kube.connections import ClusterAccess
from agent.kube.credentials import Credentials
from agent.kube.errors import StatusError, UnreachableError, WatchNotStartedError
from agent.kube.responses import RESPONSE_BYTES, Event, Json

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 10.0  # The longest time between two parts of a response.
RESPONSE_SECONDS: Final = 60.0  # The longest time between the request and the end of the response.
# The time limit of a whole watch. The reflector requests that the server ends each watch after at
# most 360 s.
WATCH_SECONDS: Final = 600.0
# The name of the field manager must never change. With a different name, server-side apply would
# leave the labels of the previous field manager on the Node.
FIELD_MANAGER: Final = "profile-loader"
JSON_TYPE: Final = "application/json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
JSON_PATCH: Final = "application/json-patch+json"
Query = Sequence[tuple[str, str]]

_NO_RESPONSE: Final = (urllib3.exceptions.HTTPError, OSError)
# Many error messages of urllib3 begin with a class name and the address of an object.
_PEER: Final = re.compile(r"^\w*Connection\(host='?([^',]*)'?, port=(\d+)\): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    path: str
    query: Query
    accept: str = JSON_TYPE
    body: object = None
    content_type: str = JSON_TYPE
    """The media type of the request body; a request without a body has no media type."""


class Api:
    """A client that sends requests to one API server. Several threads may use the client at the
    same time.
    """

    def __init__(
        self,
        *,
        kubeconfig: str = "",
        version: str = "",
        on_request: Callable[[str, str, float], None] = lambda _verb, _code, _seconds: None,
    ) -> None:
        """Read the configuration from the pod or from a kubeconfig file. Raises NoClusterError.

        Args:
            kubeconfig: the path of the file; empty in a pod.
            version: the version of the agent, for the User-Agent header.
            on_request: called after each request with its verb, its status code (or "unreachable"),
                and its duration in seconds.
        """
        self._credentials = Credentials(kubeconfig)
        self._access = self._credentials.current()
        self._pools = connections.pool_manager(self._access)
        self._lock = threading.Lock()
        self._user_agent = f"profile-loader/{version}" if version else "profile-loader"
        self._on_request = on_request

    def get(self, path: str, query: Query = (), *, accept: str = JSON_TYPE) -> Json:
        """Return the object at a path. Raises StatusError and UnreachableError."""
        request = _Request(method="GET", path=path, query=query, accept=accept)
        return self._send(request)

    def get_page(
        self, path: str, query: Query, *, accept: str, byte_limit: int
    ) -> tuple[Json, Iterator[Json]]:
        """Return a page of a list without its items, together with an iterator over the items.

        The iterator parses each item separately and without managedFields, so that a page with
        hundreds of thousands of keys needs little memory. The page contains `items: None` if the
        API server sent null as its items. Raises StatusError and UnreachableError; the iterator
        raises UnreachableError.
        """
        request = _Request(method="GET", path=path, query=query, accept=accept)
        return responses.split_list(
            self._send(request, byte_limit=byte_limit, parse=responses.parse_list)
        )

    def send(
        self, method: str, path: str, body: object, query: Query = (), *, content_type: str = ""
    ) -> Json:
        """Send an object (POST, PATCH, DELETE) and return the object from the response.

        Raises StatusError and UnreachableError.
        """
        content_type = content_type or JSON_TYPE
        return self._send(
            _Request(method=method, path=path, query=query, body=body, content_type=content_type)
        )

    def apply(self, path: str, body: Mapping[str, object]) -> Json:
        """Apply an object with server-side apply, and take over its fields from other field
        managers.

        Raises StatusError and UnreachableError.
        """
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        return self.send("PATCH", path, body, query, content_type=APPLY_PATCH)

    def _send(
        self,
        request: _Request,
        *,
        byte_limit: int = RESPONSE_BYTES,
        parse: Callable[[bytes], Json] = responses.parse_object,
    ) -> Json:
        access, pools = self._connection()
        begin = time.monotonic()
        code = "unreachable"
        try:
            with connections.deadline(RESPONSE_SECONDS):
                response = self._open(access, pools, request, READ_SECONDS)
                try:
                    code = str(response.status)
                    content = responses.read(response, byte_limit)
                finally:
                    response.release_conn()
            return responses.parse_response(response, content, parse)
        except StatusError as error:
            raise self._with_credentials_failure(access, error) from error
        except _NO_RESPONSE as error:
            raise UnreachableError(_reason(error)) from error
        finally:
            self._on_request(request.method, code, time.monotonic() - begin)

    def watch(
        self,
        path: str,
        query: Query,
        *,
        silence_seconds: float,
        accept: str = JSON_TYPE,
        on_start: Callable[[], None] = lambda: None,
    ) -> Iterator[Event]:
        """Yield events until the server ends the watch.

        Args:
            path: the path of the list.
            query: the query without `watch=true`.
            silence_seconds: the longest time without any bytes from the server.
            accept: the media type of the events.
            on_start: called when the status line of the response has arrived.

        Raises:
            StatusError: the response or an ERROR event has an error status; 410 requires a new
                list.
            WatchNotStartedError: the server sent no response.
            UnreachableError: the connection broke, or was silent for too long.
        """
        access, pools = self._connection()
        request = _Request(
            method="GET", path=path, query=[*query, ("watch", "true")], accept=accept
        )
        response = self._start_watch(access, pools, request, silence_seconds)
        try:
            if response.status != HTTPStatus.OK:  # A successful watch has no other status.
                with connections.deadline(RESPONSE_SECONDS):
                    content = responses.read(response)
                    responses.parse_response(response, content, responses.parse_object)
            on_start()
            with connections.deadline(WATCH_SECONDS):
                yield from responses.watch_events(response)
        except StatusError as error:
            raise self._with_credentials_failure(access, error) from error
        except _NO_RESPONSE as error:
            raise UnreachableError(_reason(error)) from error
        finally:
            response.close()

    def _start_watch(
        self,
        access: ClusterAccess,
        pools: urllib3.PoolManager,
        request: _Request,
        silence_seconds: float,
    ) -> urllib3.BaseHTTPResponse:
        """Send the request of a watch. Raises WatchNotStartedError."""
        begin = time.monotonic()
        code = "unreachable"
        try:
            with connections.deadline(RESPONSE_SECONDS + silence_seconds):
                response = self._open(access, pools, request, silence_seconds)
            code = str(response.status)
        except _NO_RESPONSE as error:
            raise WatchNotStartedError(_reason(error)) from error
        finally:
            self._on_request("WATCH", code, time.monotonic() - begin)
        return response

    def token_node_uid(self) -> str:
        """Return the uid of the Node that the token is bound to, or "" for an unbound token.

        Kubernetes 1.30 and later include the uid in the tokens of pods (KEP-4193). This method does
        not verify the token, because the API server does.
        """
        try:
            _header, claims_text, _signature = self._credentials.current().authorization.split(".")
            padding = "=" * (-len(claims_text) % 4)
            claims = json.loads(base64.urlsafe_b64decode(claims_text + padding))
            uid = claims["kubernetes.io"]["node"]["uid"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            return ""
        return uid if isinstance(uid, str) else ""

    def _connection(self) -> tuple[ClusterAccess, urllib3.PoolManager]:
        """Return the current credentials and the connections for these credentials."""
        access = self._credentials.current()
        with self._lock:
            if access != self._access:
                # Requests that are already in progress keep their previous connections.
                self._pools.clear()
                self._access, self._pools = access, connections.pool_manager(access)
            return self._access, self._pools

    def _open(
        self,
        access: ClusterAccess,
        pools: urllib3.PoolManager,
        request: _Request,
        read_seconds: float,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, and return its response after the headers have been read."""
        headers = {"Accept": request.accept, "User-Agent": self._user_agent}
        if access.authorization:
            headers["Authorization"] = access.authorization
        body = None
        if request.body is not None:
            headers["Content-Type"] = request.content_type
            body = json.dumps(request.body).encode()
        query = urlencode(request.query, safe="/", quote_via=quote)
        return pools.request(
            request.method,
            f"{access.url}{request.path}{'?' * bool(query)}{query}",
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
            retries=False,
            redirect=False,
            preload_content=False,
        )

    def _with_credentials_failure(self, access: ClusterAccess, error: StatusError) -> StatusError:
        """Return the error for a response. For the status 401, the error also states why the
        credentials could not be read again.

        After the status 401, the next request also reads the credentials again.
        """
        if error.status != HTTPStatus.UNAUTHORIZED:
            return error
        failure = self._credentials.expire(access)
        if not failure:
            return error
        message = f"{error.message}; the credentials could not be read again: {failure}"
        return StatusError(error.status, error.reason, message, error.retry_after)


def _reason(error: Exception) -> str:
    """Return one line of text about a failure, without the addresses of Python objects."""
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no response in time"
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    text = _PEER.sub(r"\1:\2: ", text)
    # The message is "<urllib3... object at 0x...>: the failure".
    head, _, tail = text.partition(">: ")
    return (tail if head.startswith("<") and tail else text)[:300] or type(error).__name__
