"""Tests of the TLS connections of agent.kube, with certificate authorities that openssl creates."""

import http.server
import json
import ssl
import subprocess
import tempfile
import threading

import pytest
from kubernetes.config import kube_config

from agent.kube import credentials
from agent.kube.client import Api
from agent.kube.errors import NoClusterError, UnreachableError


class EmptyObject(http.server.BaseHTTPRequestHandler):
    """Responds to each GET with an empty object."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        """Write no log lines."""


def authority(folder, name):
    """Create a self-signed CA certificate without key usage, as in old clusters."""
    files = (folder / f"{name}.crt", folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the certificate authorities `right` and `wrong`."""
    folder = tmp_path_factory.mktemp("tls")
    authority(folder, "right")
    authority(folder, "wrong")
    return folder


@pytest.fixture(scope="module")
def port(folder):
    """The port of a server with a certificate from the authority `right`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "right.crt", folder / "right.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EmptyObject) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(folder, server, bearer="x", **cluster):
    """Send a GET request with a kubeconfig that has additional cluster fields, and return the
    response.
    """
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "x", "user": {"token": bearer}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(json.dumps(config))
    return Api(kubeconfig=str(path)).get("/")


def trusting(folder):
    """Return the cluster fields for the authority `right`."""
    return {"certificate-authority": str(folder / "right.crt")}


def test_an_authority_without_key_usage_is_accepted(folder, port):
    """The client accepts a certificate authority without key usage, as kubectl does. By default,
    Python 3.13 would reject it.
    """
    trust = {"certificate-authority": str(folder / "right.crt")}
    assert get(folder, f"https://127.0.0.1:{port}", **trust) == {}


@pytest.mark.parametrize("trusted", ["wrong", None])
def test_a_server_without_a_trusted_authority_is_rejected(folder, port, trusted):
    """The client sends no token to a server whose certificate is from another authority."""
    trust = {"certificate-authority": str(folder / f"{trusted}.crt")} if trusted else {}
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        get(folder, f"https://127.0.0.1:{port}", **trust)


def test_a_certificate_for_another_address_is_rejected(folder, port):
    """The client rejects a server certificate for another address."""
    trust = {"certificate-authority": str(folder / "right.crt")}
    with pytest.raises(UnreachableError, match="Hostname mismatch"):
        get(folder, f"https://localhost:{port}", **trust)


def test_only_the_kubeconfig_disables_verification(folder, port):
    """Only the kubeconfig field `insecure-skip-tls-verify` disables the verification of the
    server.
    """
    trust = {"insecure-skip-tls-verify": True}
    with pytest.warns(match="Unverified HTTPS request"):
        assert get(folder, f"https://127.0.0.1:{port}", **trust) == {}


@pytest.mark.parametrize("token", ["secret\r\nX: y", "secret\n\n2", "secret\u20282", "secret\0"])
def test_a_token_that_no_header_can_contain_is_not_shown(folder, port, token):
    """The client rejects a token with invalid characters before the HTTP library can quote the
    token in an error.
    """
    with pytest.raises(NoClusterError) as error:
        get(folder, f"https://127.0.0.1:{port}", token, **trusting(folder))
    assert "secret" not in str(error.value)


def test_a_line_end_after_a_token_is_removed(folder, port):
    """A line break at the end of a token file is removed, because editors add one."""
    assert get(folder, f"https://127.0.0.1:{port}", "secret\n", **trusting(folder)) == {}


def test_certificates_of_a_plugin_are_renewed_and_old_keys_are_removed(
    tmp_path, monkeypatch, folder
):
    """If the certificate of a plugin changes, the client opens a new connection and deletes the
    files with the old key.
    """
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    monkeypatch.setattr(kube_config, "_temp_files", {})
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    plugin, output = tmp_path / "plugin", tmp_path / "output"
    plugin.write_text(f"#!/bin/sh\nexec cat {output}\n")
    plugin.chmod(0o755)
    peers = []

    class RecordsPeers(EmptyObject):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            ((_, name),) = self.connection.getpeercert()["subject"][0]
            peers.append((name, self.client_address))
            super().do_GET()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "right.crt", folder / "right.key")
    context.verify_mode = ssl.CERT_REQUIRED
    version = "client.authentication.k8s.io/v1"
    users = {"user": {"exec": {"apiVersion": version, "command": str(plugin)}}}
    for name in ("first", "second"):
        context.load_verify_locations(authority(tmp_path, name)[0])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RecordsPeers) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        config = {
            "current-context": "x",
            "clusters": [
                {
                    "name": "x",
                    "cluster": {
                        "server": f"https://127.0.0.1:{server.server_port}",
                        "certificate-authority": str(folder / "right.crt"),
                    },
                }
            ],
            "users": [{"name": "x", **users}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        api = None
        try:
            for name in ("first", "first", "second"):
                status = {
                    "clientCertificateData": (tmp_path / f"{name}.crt").read_text(),
                    "clientKeyData": (tmp_path / f"{name}.key").read_text(),
                }
                output.write_text(
                    json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
                )
                api = api or Api(kubeconfig=str(tmp_path / "kubeconfig"))
                api.get("/")
        finally:
            server.shutdown()
            thread.join()
    kept = {file.read_text() for file in (tmp_path / "tmp").iterdir()}
    assert [name for name, _ in peers] == ["first", "first", "second"]
    assert peers[0] == peers[1]
    assert kept == {status["clientCertificateData"], status["clientKeyData"]}
