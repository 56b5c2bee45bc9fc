"""Build the parts of a pass from settings.

Rule 1: nothing is read or written here. Rule 2: a mode imports only what it needs.
"""

from agent import oneshot
from agent.core import plan, ports
from agent.core.model import KindName
from agent.doors.host import Host
from agent.doors.ledger import FileLedger
from agent.settings import Settings
from agent.sources import opening


def host(settings: Settings) -> Host:
    """Return the host below --host-root."""
    return Host(settings.host_root)


def kinds(settings: Settings) -> dict[KindName, ports.Kind]:
    """Return the kinds that --kinds names, AppArmor first."""
    found: dict[KindName, ports.Kind] = {}
    if "apparmor" in settings.kinds:
        from agent.kinds.apparmor.kind import AppArmor

        found["apparmor"] = AppArmor(
            host=host(settings),
            parser=settings.apparmor_parser,
            timeout_seconds=settings.parser_timeout,
            state_dir=settings.state_dir,
            deny_names=settings.deny_name,
            allow_attachments=settings.allow_attachments,
            allow_unconfined_mode=settings.allow_unconfined_mode,
            remember=not settings.dry_run,
        )
    if "seccomp" in settings.kinds:
        from agent.kinds.seccomp.kind import Seccomp

        found["seccomp"] = Seccomp(
            host=host(settings),
            directory=settings.seccomp_dir,
            prefix=settings.seccomp_prefix,
            format=settings.seccomp_format,
            allow_unknown_syscalls=settings.allow_unknown_syscalls,
        )
    return found


def ledger(settings: Settings) -> FileLedger:
    """Return the ledger in --state-dir."""
    return FileLedger(host(settings), settings.state_dir)


def one_pass(settings: Settings) -> oneshot.Pass:
    """Return a pass over the sources that --source names."""
    return oneshot.Pass(
        sources=[opening.open_source(text) for text in settings.source],
        kinds=kinds(settings),
        ledger=ledger(settings),
        options=plan.Options(
            prune=settings.prune,
            allow_empty=settings.allow_empty,
            take_over=frozenset(settings.take_over),
        ),
    )
