"""Opens HTTP connections to the API server with urllib3, with time limits and TLS.

The timeout of a socket begins again with each byte that arrives. Therefore, each thread also has a
deadline for the whole response. This module does not read the configuration. credentials.py returns
the `ClusterAccess` for a pool, and client.py sends the requests.
"""

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

POOL_SIZE: Final = 4
# With these options, the kernel detects a dead peer after 30 s + 9 * 15 s, even while the client
# waits for a response (tcp(7)).
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAccess:
    """The address of an API server, with the credentials for this server."""

    url: str
    authorization: str = field(default="", repr=False)
    """The value of the Authorization header; empty without a token."""
    authority_file: str | None = None
    """The file with the certificates of trusted authorities.

    None for the system's trusted authorities.
    """
    certificate_file: str | None = None
    key_file: str | None = None
    certificate: bytes = field(default=b"", repr=False)
    """The content of the certificate file. This value changes when the certificate is renewed."""
    key: bytes = field(default=b"", repr=False)
    """The content of the file with the private key."""
    verifies_server: bool = True
    server_name: str | None = None
    """The name that the API server's certificate must contain; None for the host in the URL."""

    @property
    def has_credentials(self) -> bool:
        """Return whether requests contain credentials."""
        return bool(self.authorization or self.certificate_file)


class _Deadline(threading.local):
    """The deadline of the response that the current thread reads, in monotonic seconds."""

    at: float = math.inf


_deadline = _Deadline()


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Make every read in this thread raise TimeoutError after a number of seconds."""
    _deadline.at = time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline.at = math.inf


@contextlib.contextmanager
def _bounded_by_deadline(connection: socket.socket) -> Iterator[None]:
    """Shorten the timeout of one read so that it ends at the deadline. Raises TimeoutError after
    the deadline.
    """
    configured = connection.gettimeout()
    remaining = _deadline.at - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("the response took too long")
    if remaining == math.inf or (configured is not None and configured <= remaining):
        yield
        return
    connection.settimeout(remaining)
    try:
        yield
    finally:
        connection.settimeout(configured)


class _TlsSocket(ssl.SSLSocket):
    def recv_into(
        self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0
    ) -> int:
        with _bounded_by_deadline(self):
            return super().recv_into(buffer, nbytes, flags)


class _PlainSocket(socket.socket):
    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0) -> int:
        with _bounded_by_deadline(self):
            return super().recv_into(buffer, nbytes, flags)


class _PlainConnection(HTTPConnection):
    """A connection without TLS, for a kubeconfig that refers to `kubectl proxy`."""

    def connect(self) -> None:
        """Connect, and replace the socket with a socket that respects the deadline."""
        super().connect()
        connected = self.sock
        timeout = connected.gettimeout()
        self.sock = _PlainSocket(fileno=connected.detach())
        self.sock.settimeout(timeout)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsConnection(HTTPSConnection):
    """A TLS connection that verifies the certificate chain, the dates and the address, like
    kubectl.

    Python 3.13 also sets VERIFY_X509_STRICT, which rejects certificate authorities without key
    usage or key identifiers. The authorities of older clusters lack these extensions, so this class
    removes the flag (https://github.com/kubernetes-client/python/issues/2394).
    """

    def connect(self) -> None:
        """Connect with a new TLS context, which reads the CA file again."""
        self.ssl_context = create_urllib3_context(cert_reqs=resolve_cert_reqs(self.cert_reqs))
        self.ssl_context.sslsocket_class = _TlsSocket
        self.ssl_context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data):
            self.ssl_context.load_default_certs()
        super().connect()


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def pool_manager(access: ClusterAccess) -> urllib3.PoolManager:
    """Return the connection pools for one API server and one set of credentials."""
    manager = urllib3.PoolManager(
        maxsize=POOL_SIZE,
        retries=False,
        socket_options=[*HTTPConnection.default_socket_options, *_KEEP_ALIVE],
        cert_reqs=ssl.CERT_REQUIRED if access.verifies_server else ssl.CERT_NONE,
        ca_certs=access.authority_file,
        cert_file=access.certificate_file,
        key_file=access.key_file,
        server_hostname=access.server_name,
    )
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
    return manager
