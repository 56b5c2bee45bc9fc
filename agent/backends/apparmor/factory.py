"""Builds the AppArmor backend, its confinement tracker and the watcher of the kernel's policy."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from agent.backends.apparmor.backend import AppArmorBackend
from agent.backends.apparmor.compile_target import TargetReader
from agent.backends.apparmor.compile_worker import CompileWorker
from agent.backends.apparmor.confinement_tracker import ConfinementTracker
from agent.backends.apparmor.inspector import Inspector
from agent.backends.apparmor.kernel_access import ROOT, SYSTEM_PROBES, KernelAccess
from agent.backends.apparmor.loaded_objects import LoadedObjects
from agent.backends.apparmor.memory_budget import OWN_CGROUP
from agent.backends.apparmor.parser import CONFIG_FILE, INCLUDE_DIR, Parser
from agent.backends.apparmor.policy_cache import PolicyCache
from agent.backends.apparmor.policy_changes import PolicyChanges
from agent.backends.apparmor.policy_references import PolicyReferences
from agent.backends.apparmor.policy_revision import PolicyRevisionWatcher
from agent.backends.apparmor.policy_view import PolicyView
from agent.backends.apparmor.policy_writer import PolicyWriter
from agent.backends.apparmor.processes import Processes
from agent.backends.apparmor.raw_data_release import RawDataRelease
from agent.backends.apparmor.validation import ValidationRules
from agent.backends.parts import BackendContext, BackendParts, CheckerParts, CheckTarget
from agent.host.filesystem import Host


class AppArmorConfig(Protocol):
    """The agent's options for AppArmor; agent.config.Config implements this protocol."""

    @property
    def state_dir(self) -> str:
        """The state directory of the agent."""

    @property
    def apparmor_parser(self) -> str:
        """The path of apparmor_parser. If it is empty, the agent searches the default paths."""

    @property
    def parser_timeout(self) -> float:
        """How many CPU seconds apparmor_parser may use for one profile text."""

    @property
    def deny_name(self) -> Collection[str]:
        """Patterns of reserved names, which no profile may have."""

    @property
    def allow_attachments(self) -> bool:
        """Whether the agent accepts profiles that attach to programs by path."""

    @property
    def allow_unconfined_mode(self) -> bool:
        """Whether the agent accepts profiles in the mode `unconfined`."""


def build(config: AppArmorConfig, context: BackendContext) -> BackendParts:
    """Build the parts of the backend. The function starts no thread and writes no file."""
    access = KernelAccess(context.host, SYSTEM_PROBES)
    parser = _parser(config, context.program_ran)
    inspector = Inspector(
        targets=TargetReader(access, parser, checks_only=False),
        worker=_worker(config, parser, context.check_completed),
        cache=PolicyCache(context.host, config.state_dir, write=context.may_write_state),
        rules=_rules(config),
        cpu_limit=config.parser_timeout,
        memory_limit=OWN_CGROUP.limit_bytes,
    )
    backend = connect(inspector, state_dir=config.state_dir, may_write=context.may_write_state)
    revision = context.host.path(f"{ROOT}/revision")
    return BackendParts(
        backend=backend,
        confinement_tracker=backend.changes.tracker,
        watchers=(PolicyRevisionWatcher(revision, context.policy_changed),),
    )


def build_checker(config: AppArmorConfig, _target: CheckTarget) -> CheckerParts:
    """Build an inspector that checks profile texts without the AppArmor of this kernel."""
    host = Host("/")
    parser = _parser(config, lambda _seconds: None)
    targets = TargetReader(KernelAccess(host, SYSTEM_PROBES), parser, checks_only=True)
    inspector = Inspector(
        targets=targets,
        worker=_worker(config, parser, None),
        cache=PolicyCache(host, config.state_dir, write=False),
        rules=_rules(config),
        cpu_limit=config.parser_timeout,
        memory_limit=OWN_CGROUP.limit_bytes,
    )
    return CheckerParts(checker=inspector, features_file=lambda: targets.features_file)


def connect(inspector: Inspector, *, state_dir: str, may_write: bool) -> AppArmorBackend:
    """Connect an inspector with the parts that observe and change the policy of the same host."""
    access = inspector.targets.access
    host, probes = access.host, access.probes
    release = RawDataRelease(host, probes)
    view = PolicyView(host, release)
    writer = PolicyWriter(host, view, release)
    processes = Processes(
        host, own=Path("/proc/self"), shows_pending_exec=probes.shows_pending_exec
    )
    objects = LoadedObjects(host, state_dir, may_write=may_write)
    changes = PolicyChanges(
        access=access,
        view=view,
        writer=writer,
        processes=processes,
        objects=objects,
        references=PolicyReferences(host, view, writer, probes),
        tracker=ConfinementTracker(
            host, state_dir=state_dir, find_directories=view.directories, may_write=may_write
        ),
    )
    return AppArmorBackend(
        inspector=inspector,
        access=access,
        view=view,
        processes=processes,
        objects=objects,
        changes=changes,
    )


def _parser(config: AppArmorConfig, ran: Callable[[float], None]) -> Parser:
    return Parser(config.apparmor_parser, include_dir=INCLUDE_DIR, config_file=CONFIG_FILE, ran=ran)


def _worker(
    config: AppArmorConfig, parser: Parser, completed: Callable[[], None] | None
) -> CompileWorker:
    """Build the worker. Without `completed`, the caller is a command that waits for all results, so
    texts that compile slowly do not pause between their runs.
    """
    return CompileWorker(
        parser,
        cpu_limit=config.parser_timeout,
        pauses_slow_texts=completed is not None,
        completed=completed or (lambda: None),
        free_memory=OWN_CGROUP.available_bytes,
    )


def _rules(config: AppArmorConfig) -> ValidationRules:
    return ValidationRules(
        deny_names=tuple(config.deny_name),
        allow_attachments=config.allow_attachments,
        allow_unconfined_mode=config.allow_unconfined_mode,
    )
