"""agent.doors.kube over TLS, with authorities that openssl made."""

import http.server
import json
import ssl
import subprocess
import threading

import pytest

from agent.doors.kube import Api, Unreachable


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
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        ask(folder, f"https://127.0.0.1:{port}", **trust)


def test_another_address_is_refused(folder, port):
    """A certificate counts for the addresses in it."""
    trust = {"certificate-authority": str(folder / "right.crt")}
    with pytest.raises(Unreachable, match="Hostname mismatch"):
        ask(folder, f"https://localhost:{port}", **trust)


def test_verification_ends_only_where_the_kubeconfig_says_so(folder, port):
    """`insecure-skip-tls-verify` does, and nothing else."""
    trust = {"insecure-skip-tls-verify": True}
    with pytest.warns(match="Unverified HTTPS request"):
        assert ask(folder, f"https://127.0.0.1:{port}", **trust) == {}
