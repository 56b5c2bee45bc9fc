"""Tests of agent.reporting.http_server over TLS, with certificates that openssl creates."""

import contextlib
import http.client
import shutil
import ssl
import subprocess
import time

import pytest
import structlog

from agent.reporting.http_server import READING_CONNECTIONS, REQUEST_SECONDS, HttpServer
from agent.reporting.http_tls import CertificateError, Certificates
from tests.unit.test_http_server import Pages, silent


def certificate(folder, name, subject="localhost", alternative=""):
    """Write a self-signed certificate and its key, and return both paths."""
    files = (str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    more = [
        "-subj",
        f"/CN={subject}",
        "-addext",
        f"subjectAltName={alternative or f'DNS:{subject}'}",
    ]
    command = ["openssl", *words, *more, "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a directory with the certificates `server`, `renewed` and `client`."""
    folder = tmp_path_factory.mktemp("tls")
    certificate(folder, "server")
    certificate(folder, "renewed", "renewed")
    certificate(folder, "client", "client")
    return folder


@pytest.fixture
def pages():
    return Pages()


def ask_tls(server, context):
    """Send a probe over TLS, and return the status and the certificate of the server."""
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=300, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/healthz")
        shown = connection.sock.getpeercert(binary_form=True)
        return connection.getresponse().status, ssl.DER_cert_to_PEM_cert(shown)


def client(folder, name=""):
    """Return the TLS settings of a client. If a name is passed, the client has the certificate of
    this name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_an_idle_connection_delays_no_handshake(folder, pages):
    """Idle connections and an incomplete handshake do not delay the next handshake."""
    cert, key = str(folder / "server.pem"), str(folder / "server.key")
    server = HttpServer("127.0.0.1:0", pages, certificates=Certificates(cert, key, ""))
    server.start()
    with contextlib.ExitStack() as stack:
        silent(stack, server, 2 * READING_CONNECTIONS)
        begin = time.monotonic()
        status, shown = ask_tls(server, client(folder))
        assert (status, shown) == (200, (folder / "server.pem").read_text())
        # The server closes the idle connections later.
        assert time.monotonic() - begin < REQUEST_SECONDS


def test_only_clients_of_the_authority_are_accepted(folder, pages):
    """The server sends no response to a client without a certificate, or with a certificate from
    another authority.
    """
    server = HttpServer(
        "127.0.0.1:0",
        pages,
        certificates=Certificates(
            str(folder / "server.pem"), str(folder / "server.key"), str(folder / "client.pem")
        ),
    )
    server.start()
    assert ask_tls(server, client(folder, "client"))[0] == 200
    for name in ("", "renewed"):
        with pytest.raises(OSError, match=r"(?i)alert|reset|eof|closed"):
            ask_tls(server, client(folder, name))


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(folder, tmp_path, pages):
    """The server reads changed files again. The previous certificate stays in use until the new
    certificate and the new key match.
    """
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(folder / "server.pem", cert)
    shutil.copy(folder / "server.key", key)
    server = HttpServer("127.0.0.1:0", pages, certificates=Certificates(str(cert), str(key), ""))
    server.start()
    shutil.copy(folder / "renewed.pem", cert)  # The new key does not match the certificate yet.
    previous = (folder / "server.pem").read_text()
    assert ask_tls(server, client(folder)) == (200, previous)
    shutil.copy(folder / "renewed.key", key)
    renewed = (folder / "renewed.pem").read_text()
    assert ask_tls(server, client(folder)) == (200, renewed)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("none", "", ""), "--tls-cert {}/none: No such file or directory"),
        (("text", "server.key", ""), "--tls-cert {}/text: the file contains no certificate in PEM"),
        (
            ("server.pem", "", ""),
            "--tls-cert {}/server.pem: the file contains no private key in PEM format. Pass",
        ),
        (
            ("server.pem", "text", ""),
            "--tls-key {}/text: the file contains no private key in PEM format",
        ),
        (("server.pem", "client.key", ""), "the private key does not belong to the certificate"),
        (
            ("server.pem", "encrypted.key", ""),
            "--tls-key {}/encrypted.key: OpenSSL cannot use them: ",
        ),
        (
            ("server.pem", "server.key", "text"),
            "--tls-client-ca {}/text: the file contains no certificate in PEM format",
        ),
    ],
)
def test_an_unusable_certificate_is_reported_at_once(folder, files, message):
    """The constructor raises an error for an unusable certificate. The message contains the option
    and the file.
    """
    (folder / "text").write_text("text")
    command = ["openssl", "pkey", "-in", "server.key", "-aes256", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", "encrypted.key"], cwd=folder, check=True)
    with pytest.raises(CertificateError) as raised:
        Certificates(*(str(folder / name) if name else "" for name in files))
    assert message.format(folder) in str(raised.value)


def test_a_broken_renewed_certificate_is_logged_once_per_change(folder, tmp_path, pages):
    """If a changed certificate is unusable, the server logs this once per change of the files."""
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(folder / "server.pem", cert)
    shutil.copy(folder / "server.key", key)
    server = HttpServer("127.0.0.1:0", pages, certificates=Certificates(str(cert), str(key), ""))
    server.start()
    with structlog.testing.capture_logs() as logged:
        for text in ("broken", "broken differently"):
            cert.write_text(text)
            for _ in range(20):
                assert ask_tls(server, client(folder))[0] == 200
        shutil.copy(folder / "server.pem", cert)
        assert ask_tls(server, client(folder))[0] == 200
    events = [line["event"] for line in logged]
    assert events == ["certificate_unreadable", "certificate_unreadable", "certificate_renewed"]
