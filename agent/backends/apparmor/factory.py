"""Builds the AppArmor backend, its confinement tracker and the watcher of the kernel's policy."""

from collections.abc import Collection
from typing import Protocol

from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.apparmor.kernel_access import ROOT
from agent.backends.apparmor.policy_revision import PolicyRevisionWatcher
from agent.backends.parts import BackendContext, BackendParts


class AppArmorConfig(Protocol):
    """The agent's options for AppArmor; agent.config.Config implements this protocol."""

    @property
    def state_dir(self) -> str:
        """The state directory of the agent."""

    @property
    def apparmor_parser(self) -> str:
        """The path of apparmor_parser; if it is empty, the default paths are searched."""

    @property
    def parser_timeout(self) -> float:
        """How many CPU seconds apparmor_parser may use for one text."""

    @property
    def deny_name(self) -> Collection[str]:
        """The patterns of names that a profile must not have."""

    @property
    def allow_attachments(self) -> bool:
        """Whether a profile may attach to programs by their path."""

    @property
    def allow_unconfined_mode(self) -> bool:
        """Whether a profile may have the mode `unconfined`."""


def build(config: AppArmorConfig, context: BackendContext) -> BackendParts:
    """Build the parts of the backend. Building them starts and writes nothing."""
    backend = AppArmorBackend(
        host=context.host,
        parser=config.apparmor_parser,
        parser_ran=context.program_ran,
        cpu_limit=config.parser_timeout,
        completed=context.check_completed,
        state_dir=config.state_dir,
        deny_names=config.deny_name,
        allow_attachments=config.allow_attachments,
        allow_unconfined_mode=config.allow_unconfined_mode,
        remember=context.may_write_state,
    )
    revision = context.host.path(f"{ROOT}/revision")
    return BackendParts(
        backend=backend,
        confinement_tracker=backend.tracker,
        watchers=(PolicyRevisionWatcher(revision, context.policy_changed),),
    )
