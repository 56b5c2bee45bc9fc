"""The API server: the only user of the `kubernetes` package, by its raw ApiClient.

Rule 1: every call has time-outs for connecting and for reading, and no hidden retries: who calls
decides when to call again. Rule 2: a refusal and a silence are two errors. Rule 3: no object of
the client leaves this module; answers are the parsed JSON. Rule 4: a request is made with
credentials that were read at most a minute ago, and after they were refused; by a clock that
nobody sets. The client's own renewal is by the time of day, and not of all kinds: it is not used.

The typed API of the package costs 27 MiB more (measured with kubernetes 37.0.2), therefore
`param_serialize` and `call_api`, which are its generator's internals: pinned below 38.
"""

import base64
import binascii
import contextlib
import json
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

import msgspec
import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import (
    ConfigException,
    kube_config,
    load_incluster_config,
    load_kube_config,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs
from yaml import YAMLError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 10.0  # between two pieces of an answer
ANSWER_SECONDS: Final = 60.0  # for a whole answer, from its request to its last byte
# For a whole watch: reflect asks the server to end it after 360 s at the latest.
WATCH_SECONDS: Final = 600.0
# Read and parsed, an answer takes about 3.3 bytes for each of its own: 40 MB of ConfigMaps made
# 178 MiB (measured), in a container of 128 MiB.
ANSWER_BYTES: Final = 16 << 20
FRESH_SECONDS: Final = 60.0  # of credentials that were read; client-go: as long for a token's file
WAIT_SECONDS: Final = 10.0  # for credentials that are read again
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


# What the client raises where no answer came.
_SILENT: Final = (urllib3.exceptions.HTTPError, OSError, ApiException)


# How urllib3 begins what it says of a connection: the name of a class, and the address.
_PEER: Final = re.compile(r"^\w*Connection\(host='?([^',]*)'?, port=(\d+)\): ")


class KubeError(Exception):
    """A call that did not succeed; the text says why, for people."""


class NoClusterError(KubeError):
    """There is no configuration with which to call an API server."""


class UnreachableError(KubeError):
    """No answer, or none that could be understood."""


class TooLargeError(UnreachableError):
    """The answer has more bytes than are read."""


class UnansweredError(UnreachableError):
    """Nothing came of a watch, not even its first line."""


class RefusedError(KubeError):
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


class _Deadline(threading.local):
    """When the answer that this thread reads must be complete, in monotonic seconds."""

    at: float = math.inf


_deadline = _Deadline()


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Let every read of this thread fail with TimeoutError after so many seconds in total.

    The time-outs of sockets restart with each byte that arrives.
    """
    _deadline.at = time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline.at = math.inf


@contextlib.contextmanager
def _shortened(connection: socket.socket) -> Iterator[None]:
    """Bound the time-out of one read by the deadline of its answer. Raises TimeoutError."""
    usual = connection.gettimeout()
    left = _deadline.at - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer took too long")
    if usual is not None and usual <= left:
        yield
        return
    connection.settimeout(left if left < math.inf else usual)
    try:
        yield
    finally:
        connection.settimeout(usual)


class _TlsSocket(ssl.SSLSocket):
    def recv_into(
        self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0
    ) -> int:
        with _shortened(self):
            return super().recv_into(buffer, nbytes, flags)


class _PlainSocket(socket.socket):
    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0) -> int:
        with _shortened(self):
            return super().recv_into(buffer, nbytes, flags)


class _PlainConnection(HTTPConnection):
    """For a kubeconfig whose server is http://, as `kubectl proxy` is."""

    def connect(self) -> None:
        """Connect with a socket that keeps the deadline of an answer."""
        super().connect()
        opened = self.sock
        seconds = opened.gettimeout()
        self.sock = _PlainSocket(fileno=opened.detach())
        self.sock.settimeout(seconds)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _Connection(HTTPSConnection):
    """Verifies as kubectl and the kubelet do: chain, dates and address.

    Python 3.13 is stricter by default (VERIFY_X509_STRICT): it refuses authorities without key
    usage or key identifiers, as clusters have that are some years old
    (https://github.com/kubernetes-client/python/issues/2394).
    """

    def connect(self) -> None:
        """Connect with a context of its own, so that a renewed authority counts."""
        self.ssl_context = create_urllib3_context(cert_reqs=resolve_cert_reqs(self.cert_reqs))
        self.ssl_context.sslsocket_class = _TlsSocket
        self.ssl_context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data):
            self.ssl_context.load_default_certs()
        super().connect()


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


def _configured(kubeconfig: str) -> Configuration:
    """Read the configuration, and the credentials in it. Raises NoClusterError, which says why."""
    config = Configuration()
    try:
        if kubeconfig:
            load_kube_config(  # type: ignore[no-untyped-call] # the package's own
                kubeconfig, client_configuration=config, persist_config=False
            )
        else:
            load_incluster_config(client_configuration=config)  # type: ignore[no-untyped-call] # the same
    except (ConfigException, YAMLError, OSError, ValueError) as error:
        raise NoClusterError(" ".join(str(error).split())[:300]) from error
    except (TypeError, KeyError, AttributeError) as error:  # YAML of some other kind
        raise NoClusterError("it is no kubeconfig") from error
    config.refresh_api_key_hook = None
    # A line's end after a token is none of it (client-go, transport/token_source.go).
    config.api_key = {name: token.strip() for name, token in config.api_key.items()}
    config.retries = False  # urllib3: none at all, not even of the connection
    config.connection_pool_maxsize = 4
    config.keep_alive = True
    config.proxy = None
    return config


def _identity(config: Configuration) -> tuple[object, ...]:
    """Return what two configurations with the same server and the same credentials share.

    Raises OSError. An authority's file is read for each connection.
    """
    server = (config.host, config.verify_ssl, config.tls_server_name, config.ssl_ca_cert)
    files = (config.cert_file, config.key_file)
    keys = [Path(name).read_bytes() if name else b"" for name in files]
    return (*server, tuple(config.api_key.items()), *files, *keys)


def _clean(former: Configuration, now: Configuration) -> None:
    """Remove the files that the client wrote for former credentials: it would at its end only."""
    unused = {former.ssl_ca_cert, former.cert_file, former.key_file}
    unused -= {now.ssl_ca_cert, now.cert_file, now.key_file}
    written = kube_config._temp_files  # noqa: SLF001 - else each renewed key would lie there
    for content in [content for content, name in written.items() if name in unused]:
        with contextlib.suppress(OSError):
            Path(written.pop(content)).unlink()


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

        count is told verb, status code (or the kind of failure) and seconds of each request. A
        plugin of a kubeconfig has all the time it wants here: somebody may have to answer it.
        Raises NoClusterError.
        """
        self._kubeconfig = kubeconfig
        self._user_agent = f"profile-loader/{version}" if version else "profile-loader"
        self._read_at = time.monotonic()
        try:
            config = _configured(kubeconfig)
            self._identity = _identity(config)
        except (NoClusterError, OSError) as error:
            raise NoClusterError(_no_cluster(kubeconfig, str(error))) from error
        self._client = self._made(config)
        self._reader: threading.Thread | None = None
        self._unread = ""  # why the credentials could not be read again
        self.count = count
        self._streams: set[urllib3.BaseHTTPResponse] = set()
        self._lock = threading.Lock()
        self._closed = False

    def _made(self, config: Configuration) -> ApiClient:
        client = ApiClient(configuration=config)
        pools = client.rest_client.pool_manager
        pools.pool_classes_by_scheme = {"http": _PlainPool, "https": _Pool}
        client.user_agent = self._user_agent
        return client

    # --- credentials ------------------------------------------------------------------------------

    def _current(self) -> ApiClient:
        """Return the client, after reading the credentials again if it is time.

        In a thread of its own, because a plugin of a kubeconfig that hangs would keep every caller:
        the client bounds none. It is waited for once, and no second one is run beside it.
        """
        with self._lock:
            reader = self._reader
            stale = time.monotonic() - self._read_at >= FRESH_SECONDS
            if stale and (reader is None or not reader.is_alive()):
                self._read_at = time.monotonic()
                reader = threading.Thread(target=self._renew, name="credentials", daemon=True)
                try:
                    reader.start()
                except RuntimeError:  # no room for a thread
                    return self._client
                self._reader = reader
            until = self._read_at + WAIT_SECONDS
        if reader is not None:
            reader.join(max(0.0, until - time.monotonic()))
        return self._client

    def _renew(self) -> None:
        """Read the credentials again; the former ones stay where that fails."""
        former = self._client.configuration
        try:
            config = _configured(self._kubeconfig)
            identity = _identity(config)
            # A plugin's failure is logged by the client, and is none to it.
            if not (config.api_key or config.cert_file) and (former.api_key or former.cert_file):
                raise NoClusterError("they are empty")  # noqa: TRY301 - told below
        except Exception as error:  # noqa: BLE001 - of libraries that ask a provider
            self._unread = " ".join(str(error).split())[:300] or type(error).__name__
            return
        self._unread = ""
        if identity != self._identity:  # else the connections stay
            client, self._identity = self._client, identity
            self._client = self._made(config)
            client.rest_client.pool_manager.clear()  # what is asked just now goes on
            _clean(former, config)

    def _refuses(self, client: ApiClient, error: RefusedError) -> RefusedError:
        """Return a refusal; of credentials: let the next request read them again."""
        if error.status != 401:  # noqa: PLR2004 - Unauthorized
            return error
        with self._lock:
            if client is self._client:
                self._read_at = -math.inf
            hangs = self._reader is not None and self._reader.is_alive()
        why = "it is taking long" if hangs else self._unread
        if not why:
            return error
        message = f"{error.message}; the credentials could not be read again: {why}"
        return RefusedError(401, error.reason, message, error.retry_after)

    # --- one request ------------------------------------------------------------------------------

    def get(
        self,
        path: str,
        query: Query = (),
        *,
        accept: str = "application/json",
        most_bytes: int = ANSWER_BYTES,
    ) -> Json:
        """Return the object at a path. Raises Refused and Unreachable; TooLarge is one of these."""
        return self._ask("GET", path, query, accept=accept, most_bytes=most_bytes)

    def get_page(
        self, path: str, query: Query, *, accept: str, most_bytes: int
    ) -> tuple[Json, Iterator[Json]]:
        """Return a page of a list without its items, and its items.

        Each item is parsed when it is asked for, without its managedFields, so that a page with
        hundreds of thousands of keys takes little memory. `items` of the page is None where the
        API server said null. Raises Refused and Unreachable; TooLarge is one of these. The
        iterator raises Unreachable.
        """
        page = self._ask("GET", path, query, accept=accept, most_bytes=most_bytes, parse=_split)
        items = page.pop("items", _NO_ITEMS)
        if items is None:
            return page | {"items": None}, iter(())
        if isinstance(items, list) and all(isinstance(item, dict) for item in items):
            return page, iter(items)
        if not isinstance(items, msgspec.Raw):
            raise UnreachableError("the answer is no list")
        return page, _items(items)

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
        most_bytes: int = ANSWER_BYTES,
        parse: Callable[[bytes], Json] | None = None,
    ) -> Json:
        client = self._current()
        begin = time.monotonic()
        code = "unreachable"
        try:
            with _within(ANSWER_SECONDS):
                response = _open(
                    client, method, path, query, body=body, content=content, accept=accept
                )
                try:
                    code = str(response.status)
                    text = _content(response, most_bytes)
                finally:
                    response.release_conn()
            return _answer(response, text, parse or _parsed)
        except RefusedError as error:
            raise self._refuses(client, error) from error
        except _SILENT as error:
            raise UnreachableError(_why(error)) from error
        finally:
            self.count(method, code, time.monotonic() - begin)

    # --- a watch ----------------------------------------------------------------------------------

    def watch(
        self,
        path: str,
        query: Query,
        *,
        silence_seconds: float,
        accept: str = "application/json",
        answered: Callable[[], None] = lambda: None,
    ) -> Iterator[Event]:
        """Yield events until the server ends the watch; answered is called when it has begun it.

        Raises Refused for an answer or an ERROR event (410: list again), Unreachable for a
        connection that breaks, or that is silent for so many seconds, or that `close` ended;
        Unanswered if that was before any answer.
        """
        client = self._current()
        begin = time.monotonic()
        code = "unreachable"
        try:
            with _within(ANSWER_SECONDS + silence_seconds):
                response = _open(
                    client,
                    "GET",
                    path,
                    [*query, ("watch", "true")],
                    accept=accept,
                    read_seconds=silence_seconds,
                )
            code = str(response.status)
        except _SILENT as error:
            raise UnansweredError(_why(error)) from error
        finally:
            self.count("WATCH", code, time.monotonic() - begin)
        with self._lock:
            self._streams.add(response)
            closed = self._closed
        try:
            if closed:
                raise UnreachableError("closed")
            if response.status != 200:  # noqa: PLR2004 - the one status of a watch
                with _within(ANSWER_SECONDS):
                    _answer(response, _content(response), _parsed)
            answered()
            with _within(WATCH_SECONDS):
                yield from _events(response)
        except RefusedError as error:
            raise self._refuses(client, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(_why(error)) from error
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
        setting = self._current().configuration.auth_settings().get("BearerToken", {})
        parts = str(setting.get("value", "")).split(".")
        if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature
            return ""
        try:
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            uid = claims["kubernetes.io"]["node"]["uid"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            return ""
        return uid if isinstance(uid, str) else ""


def _open(  # noqa: PLR0913 - what a request consists of
    client: ApiClient,
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
    request = client.param_serialize(
        method,
        path,
        query_params=list(query),
        header_params=headers,
        body=body,
        auth_settings=["BearerToken"],
    )
    answer = client.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds))
    response: urllib3.BaseHTTPResponse = answer.response
    return response


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[Event]:
    rest = b""
    for chunk in response.stream(1 << 16, decode_content=True):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > ANSWER_BYTES:
            raise UnreachableError(f"one event is larger than {ANSWER_BYTES} bytes")
        for line in lines:
            if line.strip():
                yield _event(line)
    if rest.strip():
        yield _event(rest)


def _event(line: bytes) -> Event:
    found = _parsed(line)
    kind, body = found.get("type"), found.get("object")
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise UnreachableError("a line of the watch is no event")
    if kind == "ERROR":
        raise _refused(_status(body.get("code")), body, 0.0)
    return {"type": kind, "object": body}


def _status(code: object) -> int:
    """Return the status that an ERROR event tells; an odd one is the server's own error."""
    return code if isinstance(code, int) and 400 <= code < 600 else 500  # noqa: PLR2004 - RFC 9110


def _content(response: urllib3.BaseHTTPResponse, most_bytes: int = ANSWER_BYTES) -> bytes:
    """Return the body. Raises TooLarge, and closes the connection then: the rest is not read."""
    content = bytearray()
    for chunk in response.stream(1 << 16, decode_content=True):
        content += chunk
        if len(content) > most_bytes:
            response.close()
            raise TooLargeError(f"the answer is larger than {most_bytes} bytes")
    return bytes(content)


def _answer(
    response: urllib3.BaseHTTPResponse, text: bytes, parse: Callable[[bytes], Json]
) -> Json:
    if 200 <= response.status < 300:  # noqa: PLR2004 - the range of success, RFC 9110
        return parse(text)
    try:
        body = _parsed(text)
    except UnreachableError:
        body = {"message": text[:300].decode(errors="replace")}
    raise _refused(response.status, body, _seconds(str(response.headers.get("Retry-After", ""))))


def _seconds(wait: str) -> float:
    """Return for how long a Retry-After asks; 0 for a date, which no API server sends."""
    return min(float(wait), RETRY_SECONDS) if wait.isdecimal() else 0.0


def _refused(status: int, body: Json, retry_after: float) -> RefusedError:
    message = str(body.get("message") or "no message")
    return RefusedError(status, str(body.get("reason") or ""), message[:1000], retry_after)


def _parsed(text: bytes) -> Json:
    """Parse an object. What is not Unicode becomes U+FFFD, as Go's encoding/json does it."""
    try:
        found = json.loads(text.decode("utf-8", "replace"))
        if _SURROGATE.search(text):
            found = _without_surrogates(found)
    except (ValueError, RecursionError) as error:
        raise UnreachableError("the answer is not JSON") from error
    if not isinstance(found, dict):
        raise UnreachableError("the answer is no object")
    return found


_NO_ITEMS: Final = object()
_Fields = dict[str, msgspec.Raw]


def _split(text: bytes) -> Json:
    """Parse a list without its items, which stay text; null stays None. Raises Unreachable.

    What is not Unicode, which no API server sends, is parsed as a whole.
    """
    try:
        fields = msgspec.json.decode(text, type=_Fields)
    except _NOT_JSON:
        return _parsed(text)
    items = fields.pop("items", None)
    page = _joined(fields)
    if items is not None:
        page["items"] = None if bytes(items) == b"null" else items
    return page


def _items(text: msgspec.Raw) -> Iterator[Json]:
    """Yield the objects of a list, each parsed on its own. Raises Unreachable."""
    try:
        found = msgspec.json.decode(text, type=list[msgspec.Raw])
    except _NOT_JSON as error:
        raise UnreachableError("the answer is no list") from error
    for item in found:
        fields = _fields(item)
        if "metadata" in fields:
            metadata = _fields(fields["metadata"])
            metadata.pop("managedFields", None)
            fields.pop("metadata")
            yield {**_joined(fields), "metadata": _joined(metadata)}
        else:
            yield _joined(fields)


def _fields(text: bytes | msgspec.Raw) -> _Fields:
    try:
        return msgspec.json.decode(text, type=_Fields)
    except _NOT_JSON as error:
        raise UnreachableError("the answer is no object") from error


def _joined(fields: _Fields) -> Json:
    return {name: _parsed(b'{"":' + bytes(text) + b"}")[""] for name, text in fields.items()}


_NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def _without_surrogates(value: object) -> object:
    """Replace lone surrogates, which no encoder of Python accepts."""
    match value:
        case str():
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case list():
            return [_without_surrogates(item) for item in value]
        case dict():
            made = {_without_surrogates(key): item for key, item in value.items()}
            return {key: _without_surrogates(item) for key, item in made.items()}
        case _:
            return value


def _why(error: Exception) -> str:
    """Return one line that says what failed, without addresses of Python objects."""
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no answer in time"
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    text = _PEER.sub(r"\1:\2: ", text)
    head, _, tail = text.partition(">: ")  # "<urllib3... object at 0x...>: what happened"
    return (tail if head.startswith("<") and tail else text)[:300] or type(error).__name__
