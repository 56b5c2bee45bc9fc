"""Reads the credentials for the API server with the kubernetes package, and renews them every
minute.

The package's own renewal is not used, because it compares wall-clock times and does not support
every type of credential. Instead of the package's renewal, this module reads the whole
configuration again each time. A separate thread reads the configuration, because a plugin of a
kubeconfig can hang. connections.py uses the result.
"""

import contextlib
import math
import os
import threading
import time
from pathlib import Path
from typing import Final

from kubernetes.client.configuration import Configuration
from kubernetes.config import (
    ConfigException,
    kube_config,
    load_incluster_config,
    load_kube_config,
)
from yaml import YAMLError

from agent.kube.connections import ClusterAccess
from agent.kube.errors import NoClusterError

# When credentials reach this age in seconds, they are read again. client-go uses the same age for a
# token file.
REREAD_SECONDS: Final = 60.0
# The longest time in seconds that a request waits while another thread reads the credentials.
WAIT_SECONDS: Final = 10.0


class Credentials:
    """The current credentials for one API server. Several threads may use this object."""

    def __init__(self, kubeconfig: str = "") -> None:
        """Read the configuration from the pod or from a kubeconfig file.

        This first read has no time limit, because a plugin of the kubeconfig may prompt the user.
        Raises NoClusterError.
        """
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._read_at = time.monotonic()
        try:
            self._access = _read(kubeconfig)
        except (NoClusterError, OSError) as error:
            raise NoClusterError(_unusable(kubeconfig, str(error))) from error
        self._reader: threading.Thread | None = None
        self._failure = ""

    def current(self) -> ClusterAccess:
        """Return the credentials, after an attempt to renew them if they are old.

        At most one thread reads credentials, and each caller waits at most WAIT_SECONDS for this
        thread. The previous credentials stay in use until new credentials have been read.
        """
        with self._lock:
            reader = self._reader
            is_old = time.monotonic() - self._read_at >= REREAD_SECONDS
            if is_old and (reader is None or not reader.is_alive()):
                self._read_at = time.monotonic()
                reader = threading.Thread(target=self._reread, name="credentials", daemon=True)
                try:
                    reader.start()
                except RuntimeError:  # The system cannot start another thread.
                    return self._access
                self._reader = reader
            until = self._read_at + WAIT_SECONDS
        if reader is not None:
            reader.join(max(0.0, until - time.monotonic()))
        return self._access

    def expire(self, access: ClusterAccess) -> str:
        """Make the next request read the credentials again, because the API server rejected them.

        Returns:
            The reason why the last attempt to read the credentials failed, or "" after a success.
        """
        with self._lock:
            if access == self._access:
                self._read_at = -math.inf
            is_reading = self._reader is not None and self._reader.is_alive()
        return "reading them is taking too long" if is_reading else self._failure

    def _reread(self) -> None:
        """Read the credentials again.

        If the attempt fails, the previous credentials stay in use.
        """
        previous = self._access
        try:
            access = _read(self._kubeconfig)
        except Exception as error:  # noqa: BLE001 - plugins of providers raise anything
            self._failure = " ".join(str(error).split())[:300] or type(error).__name__
            return
        # The package kubernetes logs the failure of a plugin, and continues without credentials.
        if previous.has_credentials and not access.has_credentials:
            self._failure = "they are empty"
            return
        self._failure = ""
        if access != previous:
            self._access = access
            _remove_files(previous, access)


def _read(kubeconfig: str) -> ClusterAccess:
    """Read the configuration and its credentials. Raises NoClusterError and OSError."""
    config = Configuration()
    try:
        if kubeconfig:
            load_kube_config(  # type: ignore[no-untyped-call] # the package has no types here
                kubeconfig, client_configuration=config, persist_config=False
            )
        else:
            load_incluster_config(client_configuration=config)  # type: ignore[no-untyped-call] # the same
    except (ConfigException, YAMLError, OSError, ValueError) as error:
        raise NoClusterError(" ".join(str(error).split())[:300]) from error
    # The kubeconfig is valid YAML, but has an unexpected structure.
    except (TypeError, KeyError, AttributeError) as error:
        raise NoClusterError("the file is not a kubeconfig") from error
    config.refresh_api_key_hook = None
    # client-go also removes a line break at the end of a token (transport/token_source.go).
    config.api_key = {name: token.strip() for name, token in config.api_key.items()}
    token = str(config.auth_settings().get("BearerToken", {}).get("value") or "")
    if not (token.isascii() and token.isprintable()):
        # The token is checked here, because the HTTP library would quote an invalid token in an
        # error message.
        raise NoClusterError("the token contains characters that an HTTP header cannot contain.")
    return ClusterAccess(
        url=str(config.host),
        authorization=token,
        authority_file=config.ssl_ca_cert,
        certificate_file=config.cert_file,
        key_file=config.key_file,
        certificate=_content(config.cert_file),
        key=_content(config.key_file),
        verifies_server=config.verify_ssl,
        server_name=config.tls_server_name,
    )


def _content(path: str | None) -> bytes:
    return Path(path).read_bytes() if path else b""


def _unusable(kubeconfig: str, reason: str) -> str:
    """Return the reason why the configuration cannot be used, and how to correct it."""
    if not kubeconfig and "KUBERNETES_SERVICE_HOST" not in os.environ:
        return (
            "this process does not run in a pod of a cluster, so it does not know the API server. "
            "Pass --kubeconfig FILE."
        )
    if not kubeconfig:
        return f"the service account of this pod cannot be used: {reason}"
    exists = any(Path(path).is_file() for path in kubeconfig.split(os.pathsep))
    return f"kubeconfig {kubeconfig}: {reason if exists else 'the file does not exist'}"


def _remove_files(previous: ClusterAccess, current: ClusterAccess) -> None:
    """Remove the temporary files that contain previous credentials.

    The kubernetes package writes credentials from a kubeconfig or a plugin to files, and removes
    these files only when the process ends.
    """
    unused = {previous.authority_file, previous.certificate_file, previous.key_file}
    unused -= {current.authority_file, current.certificate_file, current.key_file}
    written = kube_config._temp_files  # noqa: SLF001 - the package has no public function for it
    for content in [content for content, name in written.items() if name in unused]:
        with contextlib.suppress(OSError):
            Path(written.pop(content)).unlink()
