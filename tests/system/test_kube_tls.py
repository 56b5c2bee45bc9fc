"""agent.kube.client over TLS, with authorities that openssl made."""

import http.server
import json
import ssl
import subprocess
import tempfile
import threading

import pytest
from kubernetes.config import kube_config

from agent.kube import client
from agent.kube.client import Api
from agent.kube.errors import UnreachableError


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers everything with an empty object."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        """Say nothing."""


def authority(folder, name):
    """Make a self-signed certificate without key usage, as authorities some years old are."""
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
    """Give a directory with the authorities `right` and `wrong`."""
    folder = tmp_path_factory.mktemp("tls")
    authority(folder, "right")
    authority(folder, "wrong")
    return folder


@pytest.fixture(scope="module")
def port(folder):
    """Give the port of a server with the certificate of `right`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "right.crt", folder / "right.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(folder, server, **cluster):
    """Return what a client answers that trusts as a kubeconfig's cluster says."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "x", "user": {"token": "x"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(json.dumps(config))
    api = Api(kubeconfig=str(path))
    try:
        return api.get("/")
    finally:
        api.close()


def test_an_authority_without_key_usage_is_enough(folder, port):
    """As for kubectl; Python 3.13 alone would refuse it."""
    trust = {"certificate-authority": str(folder / "right.crt")}
    assert ask(folder, f"https://127.0.0.1:{port}", **trust) == {}


@pytest.mark.parametrize("trusted", ["wrong", None])
def test_a_stranger_is_refused(folder, port, trusted):
    """A server that no trusted authority vouches for gets no token."""
    trust = {"certificate-authority": str(folder / f"{trusted}.crt")} if trusted else {}
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(folder, f"https://127.0.0.1:{port}", **trust)


def test_another_address_is_refused(folder, port):
    """A certificate counts for the addresses in it."""
    trust = {"certificate-authority": str(folder / "right.crt")}
    with pytest.raises(UnreachableError, match="Hostname mismatch"):
        ask(folder, f"https://localhost:{port}", **trust)


def test_verification_ends_only_where_the_kubeconfig_says_so(folder, port):
    """`insecure-skip-tls-verify` does, and nothing else."""
    trust = {"insecure-skip-tls-verify": True}
    with pytest.warns(match="Unverified HTTPS request"):
        assert ask(folder, f"https://127.0.0.1:{port}", **trust) == {}


def test_certificates_of_a_plugin_are_renewed_and_the_former_keys_removed(
    tmp_path, monkeypatch, folder
):
    """A new certificate makes a new connection; the client's files are those in use."""
    monkeypatch.setattr(client, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(kube_config, "_temp_files", {})
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    plugin, given = tmp_path / "plugin", tmp_path / "given"
    plugin.write_text(f"#!/bin/sh\nexec cat {given}\n")
    plugin.chmod(0o755)
    named = []

    class Named(Pages):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            ((_, name),) = self.connection.getpeercert()["subject"][0]
            named.append((name, self.client_address))
            super().do_GET()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "right.crt", folder / "right.key")
    context.verify_mode = ssl.CERT_REQUIRED
    version = "client.authentication.k8s.io/v1"
    users = {"user": {"exec": {"apiVersion": version, "command": str(plugin)}}}
    for name in ("first", "second"):
        context.load_verify_locations(authority(tmp_path, name)[0])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Named) as server:
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
                given.write_text(
                    json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
                )
                api = api or Api(kubeconfig=str(tmp_path / "kubeconfig"))
                api.get("/")
        finally:
            server.shutdown()
            thread.join()
    kept = {one.read_text() for one in (tmp_path / "tmp").iterdir()}
    assert [name for name, _ in named] == ["first", "first", "second"]
    assert named[0] == named[1]
    assert kept == {status["clientCertificateData"], status["clientKeyData"]}
