"""Builds the objects of the program and passes each object its dependencies.

The module only builds and starts objects; it makes no decisions about profiles. This module also
reads the configuration of the API client, and starts the daemon's servers and threads. Each command
imports only the libraries that it needs, because each library uses memory on every node.
"""

import errno
import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import backend_loader, reconciler
from agent.backends import security_modules
from agent.backends.parts import (
    BackendContext,
    BackendParts,
    CheckerParts,
    CheckTarget,
    Watcher,
)
from agent.config import Config
from agent.core import plan, ports
from agent.core.acknowledgements import SHIPPED, Acknowledgements
from agent.core.acknowledgements import parse as parse_acknowledgement
from agent.core.model import KINDS, InstalledSize, ProfileKind
from agent.core.vocabulary import PruneMode
from agent.heartbeat import Heartbeat
from agent.host.filesystem import Host
from agent.host.installed_keys import InstalledKeys
from agent.host.ledger import FileLedger
from agent.sources import source_spec
from agent.version import version
from agent.wake_queue import WakeQueue, WakeReason

if TYPE_CHECKING:
    from agent.cluster import ClusterConnections
    from agent.control.confinement_checks import ConfinementChecks
    from agent.controller import Controller
    from agent.kube.publisher import Publisher
    from agent.reporting.http_server import HttpServer
    from agent.reporting.metrics import Metrics
    from agent.reporting.status_store import StatusStore

STALLED_SECONDS: Final = 60.0
"""The liveness probe fails after this many seconds without a heartbeat from the main loop."""


class StartupError(Exception):
    """An option references an address, a file or a directory that cannot be used."""


def host(config: Config) -> Host:
    """Return the host's file system under --host-root.

    Raises:
        StartupError: --host-root is not a directory.
    """
    try:
        is_directory = Path(config.host_root).is_dir()
    except OSError as error:
        raise StartupError(f"--host-root {config.host_root}: {error.strerror}") from error
    if not is_directory:
        raise StartupError(
            f"--host-root {config.host_root} is not a directory. Pass the root of the host's files"
        )
    return Host(config.host_root)


def ledger(config: Config) -> FileLedger:
    """Return the ledger in --state-dir."""
    return FileLedger(host(config), config.state_dir)


def backend_parts(
    config: Config,
    *,
    may_write_state: bool = True,
    check_completed: Callable[[], None] | None = None,
    policy_changed: Callable[[], None] = lambda: None,
    program_ran: Callable[[float], None] = lambda _: None,
) -> dict[ProfileKind, BackendParts]:
    """Return the backends that --kinds selects.

    Args:
        config: the options of this run.
        may_write_state: whether the backends may write to the state directory.
        check_completed: see the class BackendContext.
        policy_changed: see the class BackendContext.
        program_ran: see the class BackendContext.
    """
    context = BackendContext(
        host=host(config),
        may_write_state=may_write_state and not config.dry_run,
        check_completed=check_completed,
        policy_changed=policy_changed,
        program_ran=program_ran,
    )
    return {
        kind: backend_loader.factory(kind).build(config, context)
        for kind in KINDS
        if kind in config.kinds
    }


def checkers(config: Config, target: CheckTarget) -> dict[ProfileKind, CheckerParts]:
    """Return the checkers of the kinds that --kinds selects."""
    return {
        kind: backend_loader.factory(kind).build_checker(config, target)
        for kind in KINDS
        if kind in config.kinds
    }


def confinement_trackers(
    parts: Mapping[ProfileKind, BackendParts],
) -> dict[ProfileKind, ports.ConfinementTracker]:
    """Return the confinement trackers of all profile kinds that have one."""
    return {
        kind: part.confinement_tracker
        for kind, part in parts.items()
        if part.confinement_tracker is not None
    }


def connect(
    config: Config,
    *,
    installed_size: Callable[[str], InstalledSize] = lambda _: InstalledSize(),
    changed: Callable[[WakeReason], None] = lambda _: None,
    request_ended: Callable[[str, str, float], None] = lambda *_: None,
    watch_restarted: Callable[[str], None] = lambda _: None,
) -> "ClusterConnections | None":
    """Return the connections to the API server; None if no option needs the API server.

    Args:
        config: the options of this run.
        installed_size: returns the size of the installed keys of a profile set.
            Another thread calls this function.
        changed: called from another thread after objects of the API server have changed.
        request_ended: called with the verb, the result and the seconds of each request.
        watch_restarted: called with the kind of object whose watch was restarted.

    Raises:
        agent.kube.errors.NoClusterError: no configuration of the API client was found.
    """
    config_maps = [
        spec for spec in _source_specs(config) if isinstance(spec, source_spec.ConfigMapSpec)
    ]
    if not config_maps and not config.node_name:
        return None
    from agent import cluster

    callbacks = cluster.ClusterCallbacks(
        changed=changed, request_ended=request_ended, watch_restarted=watch_restarted
    )
    return cluster.connect(config, host(config), config_maps, installed_size, callbacks)


def open_sources(config: Config, connections: "ClusterConnections | None") -> list[ports.Source]:
    """Return the sources that --source selects."""
    opened: list[ports.Source] = []
    for spec in _source_specs(config):
        if not isinstance(spec, source_spec.ConfigMapSpec):
            opened.append(source_spec.local_source(spec, config.label_domain))
        elif connections is not None:
            opened.append(connections.source(spec))
    return opened


def _source_specs(config: Config) -> list[source_spec.SourceSpec]:
    return [source_spec.parse_source(text) for text in config.source]


def build_reconciler(
    config: Config,
    *,
    parts: Mapping[ProfileKind, BackendParts],
    sources: Sequence[ports.Source],
    ledger: FileLedger,
    heartbeat: Heartbeat,
) -> reconciler.Reconciler:
    """Return a reconciler.

    Args:
        config: the options of this run.
        parts: the backends.
        sources: the sources of profiles.
        ledger: the record of what the agent installed.
        heartbeat: records that the main loop is running.
    """
    return reconciler.Reconciler(
        sources=sources,
        backends={kind: part.backend for kind, part in parts.items()},
        ledger=ledger,
        options=plan.PlanOptions(
            prune=PruneMode(config.prune),
            take_over=frozenset(config.take_over),
            grace_seconds=config.removal_grace,
            pod_aware=config.pod_aware,
        ),
        allow_empty=config.allow_empty,
        heartbeat=heartbeat,
        observe_modules=functools.partial(security_modules.states, host(config)),
        acknowledged=acknowledgements(config),
    )


def acknowledgements(config: Config) -> Acknowledgements:
    """Return the acknowledged warnings of the operator and of the shipped profiles."""
    return SHIPPED | {parse_acknowledgement(text) for text in config.acknowledge_warning}


def daemon(config: Config, log_lines_dropped: Callable[[], int]) -> "Controller":
    """Build the controller of a daemon, and start the daemon's servers and threads.

    Args:
        config: the options of this run.
        log_lines_dropped: returns how many log lines were dropped since the start.

    Raises:
        StartupError: an option references an address, a file or a directory that cannot be used.
        agent.kube.errors.NoClusterError: no configuration of the API client was found.
    """
    from agent.control.confinement_checks import ConfinementChecks
    from agent.controller import Controller, NoCluster
    from agent.host.watcher import FileWatcher
    from agent.reporting.logs import ReportLogger
    from agent.reporting.metrics import Metrics
    from agent.reporting.problem_record import ProblemRecord

    metrics = Metrics(
        version(), allow_unsupported=config.allow_unsupported, log_lines_dropped=log_lines_dropped
    )
    wake_queue, heartbeat = WakeQueue(), Heartbeat(time.monotonic)
    parts = _daemon_backends(config, wake_queue, metrics)
    state = _read_ledger(config)
    connections, publisher = _connect_daemon(config, state.installed_keys, wake_queue, metrics)
    sources = open_sources(config, connections)
    confinement = ConfinementChecks(confinement_trackers(parts))
    store = _status_store(config, metrics, publisher, confinement, heartbeat)
    files = FileWatcher(_watched_paths(config, parts, sources), wake_queue.put)
    passes = build_reconciler(
        config, parts=parts, sources=sources, ledger=state, heartbeat=heartbeat
    )
    controller = Controller(
        reconciler=passes,
        wake_queue=wake_queue,
        cluster=connections if connections is not None else NoCluster(),
        publisher=publisher,
        confinement=confinement,
        sinks=(ReportLogger(), store, files, ProblemRecord(host(config), config.state_dir)),
        resync_seconds=config.resync,
        label_domain=config.label_domain,
        heartbeat=heartbeat,
        clock=time,
    )
    _start([*_servers(config, store), files, *_watchers(parts)], connections, publisher)
    return controller


def _start(
    threads: list[Watcher],
    connections: "ClusterConnections | None",
    publisher: "Publisher | None",
) -> None:
    """Start each component that runs in its own thread."""
    threads += connections.reflectors() if connections is not None else []
    threads += [publisher] if publisher is not None else []
    for thread in threads:
        thread.start()


def _read_ledger(config: Config) -> FileLedger:
    """Return the ledger after reading it, because sources need its keys."""
    state = ledger(config)
    state.entries()
    return state


def _watchers(parts: Mapping[ProfileKind, BackendParts]) -> list[Watcher]:
    """Return the watchers of all backends."""
    return [watcher for part in parts.values() for watcher in part.watchers]


def _daemon_backends(
    config: Config, wake_queue: WakeQueue, metrics: "Metrics"
) -> dict[ProfileKind, BackendParts]:
    """Return the backends, which wake the controller after a check or a policy change."""
    return backend_parts(
        config,
        check_completed=lambda: wake_queue.put(WakeReason.COMPILED),
        policy_changed=lambda: wake_queue.put(WakeReason.KERNEL),
        program_ran=metrics.parser_ran,
    )


def _connect_daemon(
    config: Config, installed_keys: InstalledKeys, wake_queue: WakeQueue, metrics: "Metrics"
) -> "tuple[ClusterConnections | None, Publisher | None]":
    """Return the connections to the API server and the publisher of this node's labels."""

    def changed(reason: WakeReason) -> None:
        if reason is WakeReason.NODE and publisher is not None:
            publisher.notify()
        wake_queue.put(reason)

    publisher: Publisher | None = None
    connections = connect(
        config,
        installed_size=installed_keys.size,
        changed=changed,
        request_ended=metrics.request,
        watch_restarted=metrics.watch_restarted,
    )
    if connections is not None:
        publisher = connections.publisher(
            changed=lambda: wake_queue.put(WakeReason.LABELS),
            events_dropped=metrics.events_dropped,
        )
    return connections, publisher


def _status_store(
    config: Config,
    metrics: "Metrics",
    publisher: "Publisher | None",
    confinement: "ConfinementChecks",
    heartbeat: Heartbeat,
) -> "StatusStore":
    from agent.reporting.status_store import StatusStore

    return StatusStore(
        metrics,
        version=version(),
        node=config.node_name or platform.node(),
        patience=STALLED_SECONDS,
        labels=publisher.labels if publisher is not None else dict,
        unconfined_processes=confinement.unconfined_processes,
        heartbeat=heartbeat,
        domain=config.label_domain,
        runbook_url=config.runbook_url,
        allow_unsupported=config.allow_unsupported,
    )


def _watched_paths(
    config: Config, parts: Mapping[ProfileKind, BackendParts], sources: Sequence[ports.Source]
) -> dict[Path, WakeReason]:
    """Return the files and directories to watch, with a wake reason for each path."""
    reasons = {host(config).path(config.state_dir) / "entries": WakeReason.FILES}
    reasons |= {path: WakeReason.FILES for part in parts.values() for path in part.watched_paths}
    reasons |= {
        source.watched_path: WakeReason.SOURCE
        for source in sources
        if source.watched_path is not None
    }
    return reasons


def _servers(config: Config, store: "StatusStore") -> "list[HttpServer]":
    """Return the HTTP servers that the options configure, bound to their addresses.

    Raises:
        StartupError: an address or a certificate cannot be used.
    """
    from agent.reporting.http_server import HttpServer
    from agent.reporting.http_tls import CertificateError, Certificates

    servers: list[HttpServer] = []
    for option, address, uses_tls in (
        ("--http-address", config.http_address, False),
        ("--https-address", config.https_address, True),
    ):
        if address == "off":
            continue
        try:
            files = (config.tls_cert, config.tls_key, config.tls_client_ca)
            certificates = Certificates(*files) if uses_tls else None
            servers.append(HttpServer(address, store, certificates=certificates))
        except CertificateError as error:
            raise StartupError(str(error)) from error
        except OSError as error:
            raise StartupError(f"{option} {address}: {_bind_failure(error, address)}") from error
    return servers


def _bind_failure(error: OSError, address: str) -> str:
    """Return the reason why a server cannot use an address, and how to correct it."""
    if error.errno == errno.EADDRINUSE:
        port = address.rpartition(":")[2]
        return (
            "another process uses this port. Pass another address, or off. This command shows the "
            f"process: ss -ltnp 'sport = :{port}'"
        )
    # This line removes the remark that Python adds in parentheses to the system's error message.
    return f"{(error.strerror or str(error)).partition(' (while')[0]}. Pass another address, or off"
