"""Defines the errors of requests to the API server.

This module imports no library, so that callers can handle these errors without loading the client.
"""

from http import HTTPStatus


class KubeError(Exception):
    """Raised if a request to the API server failed. The text of the error is a human-readable
    reason.
    """

    status = 0
    """The HTTP status; 0 without a response."""


class NoClusterError(KubeError):
    """Raised if no usable configuration with the address of an API server was found."""


class UnreachableError(KubeError):
    """Raised if no response arrived, or if the response does not come from the Kubernetes API."""


class TooLargeError(UnreachableError):
    """Raised if the response is larger than the size limit of the request."""


class WatchNotStartedError(UnreachableError):
    """Raised if the API server did not send the status line of a watch."""


class StatusError(KubeError):
    """Raised if the API server responded with an error status."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        """The HTTP status, or the code in an ERROR event of a watch."""
        self.reason = reason
        """The reason in the Status object, for example `NotFound`; empty without a reason."""
        self.message = message
        self.retry_after = retry_after
        """The seconds in the Retry-After header; 0 without this header."""

    @property
    def is_server_error(self) -> bool:
        """Whether the API server failed, so that it may have carried out the request (RFC 9110,
        15.6).
        """
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later (RFC 6585, RFC 9110)."""
        return self.status == HTTPStatus.TOO_MANY_REQUESTS or self.is_server_error
