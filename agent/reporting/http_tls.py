"""Provides TLS for the HTTP server, with a certificate, its key and an optional client CA.

Renewed files are read without a restart of the agent. If new files cannot be used, the server
continues to use the previous certificate. Each such change of the files causes one log line.
"""

import socket
import ssl
import time
from pathlib import Path
from typing import Final

import structlog

from agent.host import stat_signature
from agent.host.stat_signature import Signature

RETRY_SECONDS: Final = 10.0
# The largest file that is searched for certificates and keys, in bytes.
MOST_BYTES: Final = 1 << 20
_CERTIFICATE: Final = b"CERTIFICATE"
_KEY: Final = b"PRIVATE KEY"
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("agent")


class CertificateError(OSError):
    """Raised if a certificate, key or authority cannot be read. The text of the error names the
    option.
    """


class Certificates:
    """Wraps accepted connections in TLS with the newest usable certificate."""

    def __init__(self, certfile: str, keyfile: str, client_ca: str) -> None:
        """Read the files. Raises CertificateError."""
        self._files = (certfile, keyfile, client_ca)
        self._loaded = self._signatures()
        self._context = self._read()
        self._rejected: tuple[Signature | None, ...] | None = None
        self._retry_at = 0.0  # In monotonic seconds.

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return the connection as a TLS connection whose handshake has not begun. Raises
        OSError.
        """
        signatures = self._signatures()
        if signatures != self._loaded:
            self._renew(signatures)
        return self._context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )

    def _renew(self, signatures: tuple[Signature | None, ...]) -> None:
        """Read all files that have changed. If files were rejected, they are read again every
        RETRY_SECONDS.
        """
        is_known = signatures == self._rejected
        if is_known and time.monotonic() < self._retry_at:
            return
        try:
            self._context = self._read()
        # It is possible that only one of the two files has been renewed so far.
        except CertificateError as error:
            self._rejected = signatures
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not is_known:
                _log.warning("certificate_unreadable", error=str(error))
            return
        if self._rejected is not None:
            _log.info("certificate_renewed")
        self._loaded, self._rejected = signatures, None

    def _signatures(self) -> tuple[Signature | None, ...]:
        return tuple(_signature(file) for file in self._files)

    def _read(self) -> ssl.SSLContext:
        certfile, keyfile, client_ca = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _require_pem("--tls-cert", certfile, _CERTIFICATE)
        if keyfile:
            _require_pem("--tls-key", keyfile, _KEY)
        else:
            _require_pem(
                "--tls-cert",
                certfile,
                _KEY,
                hint=". Pass the file that contains the private key as --tls-key",
            )
        option = f"--tls-cert {certfile}" + (f", --tls-key {keyfile}" if keyfile else "")
        try:
            # Without a password argument, OpenSSL would prompt for a password on the terminal.
            context.load_cert_chain(certfile, keyfile or None, password="")
        except OSError as error:  # This includes ssl.SSLError, which is a subclass of OSError.
            raise CertificateError(f"{option}: {_explanation(error)}") from error
        if client_ca:
            _require_pem("--tls-client-ca", client_ca, _CERTIFICATE)
            try:
                context.load_verify_locations(client_ca)
            except OSError as error:
                option = f"--tls-client-ca {client_ca}"
                raise CertificateError(f"{option}: {_explanation(error)}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _require_pem(option: str, file: str, label: bytes, hint: str = "") -> None:
    """Raise CertificateError if a file cannot be read, or contains no PEM object of this type."""
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(MOST_BYTES)
    except OSError as error:
        raise CertificateError(
            f"{option} {file}: {error.strerror}. Pass the path of a readable file"
        ) from error
    if label + b"-----" not in content:
        name = label.decode("ascii").lower()
        raise CertificateError(f"{option} {file}: the file contains no {name} in PEM format{hint}")


def _explanation(error: OSError) -> str:
    """Return the reason why OpenSSL rejects the files."""
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the private key does not belong to the certificate"
    return f"OpenSSL cannot use them: {error.strerror or error}"


def _signature(file: str) -> Signature | None:
    """Return the stat signature of a file, or None if the file is unreadable or not configured."""
    try:
        return stat_signature.of(Path(file).stat()) if file else None
    except OSError:
        return None
