"""Builds the seccomp backend."""

import time
from typing import Literal, Protocol

from agent.backends.parts import BackendContext, BackendParts, CheckerParts, CheckTarget
from agent.backends.seccomp import releases
from agent.backends.seccomp.backend import SeccompBackend
from agent.host.filesystem import Host


class SeccompConfig(Protocol):
    """The agent's options for seccomp; agent.config.Config implements this protocol."""

    @property
    def seccomp_dir(self) -> str:
        """The kubelet's directory of seccomp profiles."""

    @property
    def seccomp_prefix(self) -> str:
        """The directory for profiles, relative to the kubelet's directory."""

    @property
    def seccomp_format(self) -> Literal["oci", "docker"]:
        """The format of the profiles in the sources."""

    @property
    def allow_unknown_syscalls(self) -> bool:
        """Whether a profile may contain system calls that the agent does not know."""

    @property
    def runtime_floor(self) -> str:
        """The oldest releases of libseccomp and of the container runtimes on the nodes, for example
        `libseccomp=2.5.5,runc=1.2`.
        """


def build(config: SeccompConfig, context: BackendContext) -> BackendParts:
    """Build the parts of the backend. The function reads and writes no file."""
    backend = SeccompBackend(
        host=context.host,
        directory=config.seccomp_dir,
        prefix=config.seccomp_prefix,
        format=config.seccomp_format,
        allow_unknown_syscalls=config.allow_unknown_syscalls,
        floor=releases.parse(config.runtime_floor),
        clock_ns=time.time_ns,
    )
    return BackendParts(backend=backend, watched_paths=(context.host.path(config.seccomp_dir),))


def build_checker(config: SeccompConfig, target: CheckTarget) -> CheckerParts:
    """Build a backend that checks profiles for another node."""
    checker = SeccompBackend(
        host=Host("/"),
        prefix=config.seccomp_prefix,
        format=config.seccomp_format,
        allow_unknown_syscalls=config.allow_unknown_syscalls,
        machine=target.arch,
        kernel=target.kernel,
        floor=releases.parse(config.runtime_floor),
        clock_ns=time.time_ns,
    )
    return CheckerParts(checker=checker)
