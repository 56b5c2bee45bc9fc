"""Build the parts of a pass from settings.

Rule 1: nothing is written here, and nothing is read but the configuration of the API client.
Rule 2: a mode imports only what it needs: without a cluster the client is never imported.
"""

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent import reconciler
from agent.config import Config
from agent.core import plan, ports
from agent.core.findings import Finding
from agent.core.labels import is_own, key
from agent.core.model import ProfileKind
from agent.core.ownership import owned_names
from agent.core.pod_references import Named, referenced_profiles
from agent.core.report import Report
from agent.core.vocabulary import PruneMode
from agent.host.filesystem import Host, HostError
from agent.host.ledger import FileLedger
from agent.sources import source_spec

if TYPE_CHECKING:
    from agent.backends.apparmor.confinement_tracker import ConfinementTracker
    from agent.controller import Controller
    from agent.kube.client import Api
    from agent.kube.node_labels import NodeLabeler, NodeMetadata
    from agent.kube.publisher import Publisher
    from agent.kube.reflector import Reflector, Store
    from agent.reporting.http_server import HttpServer
    from agent.reporting.status_store import StatusStore
    from agent.sources.configmap import ConfigMapEntry

Wake = Callable[[str], None]


def host(settings: Config) -> Host:
    """Return the host below --host-root. Raises StartupError if that is no directory."""
    try:
        there = Path(settings.host_root).is_dir()
    except OSError as error:
        raise StartupError(f"--host-root {settings.host_root}: {error.strerror}") from error
    if not there:
        raise StartupError(f"--host-root {settings.host_root} is no directory")
    return Host(settings.host_root)


def kinds(
    settings: Config,
    completed: Callable[[], None] | None = None,
    *,
    write: bool = True,
) -> dict[ProfileKind, ports.ProfileBackend]:
    """Return the kinds that --kinds names, AppArmor first.

    Args:
        settings: the options.
        completed: called from another thread after each background check. None: a command waits
            for all of them.
        write: whether they may write to the state directory.
    """
    found: dict[ProfileKind, ports.ProfileBackend] = {}
    if "apparmor" in settings.kinds:
        from agent.backends.apparmor.backend import AppArmorBackend

        found["apparmor"] = AppArmorBackend(
            host=host(settings),
            parser=settings.apparmor_parser,
            cpu_limit=settings.parser_timeout,
            completed=completed,
            state_dir=settings.state_dir,
            deny_names=settings.deny_name,
            allow_attachments=settings.allow_attachments,
            allow_unconfined_mode=settings.allow_unconfined_mode,
            remember=write and not settings.dry_run,
        )
    if "seccomp" in settings.kinds:
        from agent.backends.seccomp.backend import SeccompBackend

        found["seccomp"] = SeccompBackend(
            host=host(settings),
            directory=settings.seccomp_dir,
            prefix=settings.seccomp_prefix,
            format=settings.seccomp_format,
            allow_unknown_syscalls=settings.allow_unknown_syscalls,
        )
    return found


def ledger(settings: Config) -> FileLedger:
    """Return the ledger in --state-dir."""
    return FileLedger(host(settings), settings.state_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConnections:
    """What speaks to the API server. own and node are None without --node-name."""

    api: "Api"
    reflectors: "Mapping[source_spec.ConfigMapSpec, Reflector[ConfigMapEntry]]"
    own: "NodeLabeler | None"
    node: "Reflector[NodeMetadata] | None"
    pods: "Reflector[Named] | None" = None

    def parts(
        self,
    ) -> "list[Reflector[ConfigMapEntry] | Reflector[NodeMetadata] | Reflector[Named]]":
        """Return everything that lists and watches."""
        return [
            *self.reflectors.values(),
            *([self.node] if self.node is not None else []),
            *([self.pods] if self.pods is not None else []),
        ]

    def users(self) -> dict[tuple[ProfileKind, str], tuple[str, ...]] | None:
        """Return which pods of this Node name a profile; None where that is not known.

        Without a watch a new pod would be missed, and what it names be removed.
        """
        if self.pods is None or not self.pods.is_live:
            return None
        copy = self.pods.store
        if copy.objects is None or copy.reason:
            return None
        found: dict[tuple[ProfileKind, str], tuple[str, ...]] = {}
        for pod, names in sorted(copy.objects.items()):
            for one in names:
                found[one] = (*found.get(one, ()), pod)
        return found

    def answered(self) -> bool:
        """Return whether the API server has answered every first question, or failed to."""
        return all(one.store.objects is not None or one.store.tried for one in self.parts())

    def node_labels(self) -> Mapping[str, str] | None:
        """Return the labels of the own Node that are not ours; None where they are not known."""
        if self.own is None or self.node is None:
            return None
        meta = (self.node.store.objects or {}).get(self.own.options.name)
        if meta is None:
            return None
        domain = self.own.options.domain
        return {key: value for key, value in meta.labels.items() if not is_own(key, domain)}


def cluster(
    settings: Config,
    wake: Wake,
    *,
    count: Callable[[str, str, float], None] = lambda *_: None,
    restarted: Callable[[str], None] = lambda _: None,
) -> ClusterConnections | None:
    """Return what speaks to the API server, or None where nothing does.

    wake is told "source" and "node". Raises kube.NoClusterError.
    """
    texts = [source_spec.open_source(text) for text in settings.source]
    wanted = [one for one in texts if isinstance(one, source_spec.ConfigMapSpec)]
    if not wanted and not settings.node_name:
        return None
    from agent.kube import node_labels
    from agent.kube.client import Api
    from agent.kube.lister import Resource
    from agent.kube.reflector import Reflector, new_backoff
    from agent.sources import configmap as config_maps

    api = Api(kubeconfig=settings.kubeconfig, version=_version(), on_request=count)
    reflectors = {
        one: Reflector(
            api,
            Resource(path=one.path, query=one.query),
            keep=config_maps.keep(settings.label_domain),
            on_change=lambda: wake("source"),
            on_restart=lambda: restarted("configmaps"),
            backoff=new_backoff(),
            bounds=config_maps.ConfigMapBounds(),
        )
        for one in wanted
    }
    if not settings.node_name:
        return ClusterConnections(api=api, reflectors=reflectors, own=None, node=None)
    own = node_labels.NodeLabeler(
        api,
        node_labels.NodeOptions(
            name=settings.node_name,
            domain=settings.label_domain,
            digest=settings.label_digest,
            limit=int(settings.label_limit),
            taint=settings.startup_taint,
        ),
        boot_id=lambda: _boot_id(host(settings)),
    )
    watched = Reflector(
        api,
        Resource(
            path="/api/v1/nodes",
            query=(("fieldSelector", f"metadata.name={settings.node_name}"),),
            object_path=own.options.path,
            metadata_only=True,
        ),
        keep=node_labels.node_metadata,
        on_change=lambda: wake("node"),
        on_restart=lambda: restarted("node"),
        backoff=new_backoff(),
    )
    pods = Reflector(
        api,
        Resource(
            path="/api/v1/pods",
            query=(("fieldSelector", f"spec.nodeName={settings.node_name}"),),
        ),
        keep=referenced_profiles,
        on_change=lambda: wake("pods"),
        on_restart=lambda: restarted("pods"),
        backoff=new_backoff(),
    )
    return ClusterConnections(
        api=api,
        reflectors=reflectors,
        own=own,
        node=watched,
        pods=pods if settings.pod_aware else None,
    )


def _version() -> str:
    from importlib import metadata

    return metadata.version("profile-loader")


def _boot_id(on: Host) -> str:
    try:
        return on.read("/proc/sys/kernel/random/boot_id", limit=64).decode("ascii").strip()
    except (HostError, UnicodeDecodeError):
        return ""


def sources(settings: Config, found: ClusterConnections | None) -> list[ports.Source]:
    """Return the sources that --source names."""
    opened: list[ports.Source] = []
    for text in settings.source:
        one = source_spec.open_source(text, settings.label_domain)
        if not isinstance(one, source_spec.ConfigMapSpec):
            opened.append(one)
        elif found is not None:
            from agent.sources.configmap import ConfigMapSource

            reflector = found.reflectors[one]
            opened.append(
                ConfigMapSource(one, copy=_copy_of(reflector), node_labels=found.node_labels)
            )
    return opened


def _copy_of(reflector: "Reflector[ConfigMapEntry]") -> "Callable[[], Store[ConfigMapEntry]]":
    return lambda: reflector.store


def one_pass(
    settings: Config,
    found: ClusterConnections | None = None,
    completed: Callable[[], None] | None = None,
) -> reconciler.Reconciler:
    """Return a pass over the sources that --source names. completed: see `kinds`."""
    return reconciler.Reconciler(
        sources=sources(settings, found),
        backends=kinds(settings, completed),
        ledger=ledger(settings),
        options=plan.PlanOptions(
            prune=PruneMode(settings.prune),
            take_over=frozenset(settings.take_over),
            grace_seconds=settings.removal_grace,
            pod_aware=settings.pod_aware,
        ),
        allow_empty=settings.allow_empty,
    )


def restore(settings: Config, progress: reconciler.Progress) -> Report:
    """Reinstall what the ledger records, without any source."""
    one = one_pass(settings)
    return one.completed(lambda: one.restore(dry_run=settings.dry_run), progress)


def once(settings: Config, progress: reconciler.Progress) -> Report:
    """Run one pass; with --node-name the Node is labelled too, and a removal waits for that."""
    found = cluster(settings, lambda _: None)
    one = one_pass(settings, found)
    tracker = None if settings.dry_run else _tracker(settings, one)
    if tracker is None:
        return _once(settings, one, found, progress)
    entries = one.ledger.entries()
    names = {
        name
        for entry in (() if isinstance(entries, Finding) else entries.values())
        if entry.id.kind == "apparmor"
        for name in owned_names(entry)
    }
    tracker.observe(names)
    report = _once(settings, one, found, progress)
    tracker.record_removals(reconciler.removed_names(report.profiles))
    tracker.observe(reconciler.tracked_names(report.profiles))
    return replace(report, findings=(*report.findings, *tracker.findings()))


def _once(
    settings: Config,
    one: reconciler.Reconciler,
    found: ClusterConnections | None,
    progress: reconciler.Progress,
) -> Report:
    def run() -> Report:
        return one.completed(lambda: one.run(dry_run=settings.dry_run), progress)

    if found is None:
        return run()
    from agent.kube.errors import KubeError

    for reflector in found.parts():
        with contextlib.suppress(KubeError):  # the copy says so, and the report then
            reflector.list()
    if found.own is None or found.node is None:
        return run()
    gone = _off(settings, one, found)
    one.options = replace(
        one.options, grace_seconds=0.0, label_absent_seconds=gone, pods_by_profile=found.users()
    )
    report = run()
    return report if settings.dry_run else _labelled(settings, found, report)


def _off(
    settings: Config, one: reconciler.Reconciler, found: ClusterConnections
) -> dict[tuple[ProfileKind, str], float]:
    """Return the names whose label is not on the Node: what an earlier run has taken off."""
    entries = one.ledger.entries()
    meta = _meta(settings, found)
    if isinstance(entries, Finding) or meta is None:
        return {}
    return {
        (entry.id.kind, name): 0.0
        for entry in entries.values()
        for name in owned_names(entry)
        if key(entry.id.kind, name, settings.label_domain) not in meta.labels
    }


def _meta(settings: Config, found: ClusterConnections) -> "NodeMetadata | None":
    objects = found.node.store.objects if found.node is not None else None
    return (objects or {}).get(settings.node_name)


def _labelled(settings: Config, found: ClusterConnections, report: Report) -> Report:
    """Label the Node as the report says; return the report with what went wrong."""
    from agent.kube import node_findings, node_labels
    from agent.kube.errors import KubeError

    own, meta, name = found.own, _meta(settings, found), settings.node_name
    findings: tuple[Finding, ...] = ()
    try:
        if own is None or meta is None:
            raise KubeError(found.node.store.reason if found.node is not None else "")  # noqa: TRY301 - told below
        wanted = own.desired_labels(report, meta)
        own.remove_startup_taint(own.publish(meta, wanted.labels), report)
        findings = (*wanted.findings, *own.findings())
    except node_labels.WrongNodeError as error:
        findings = (node_findings.wrong_node(str(error), name),)
    except KubeError as error:
        findings = (node_findings.unreachable(error, name),)
    return replace(report, findings=report.findings + findings)


def daemon(settings: Config, log_lines_dropped: Callable[[], int] = lambda: 0) -> "Controller":
    """Return the daemon, with everything it needs started.

    log_lines_dropped: returns how many log lines were dropped since the start.
    """
    from agent.controller import Controller, WakeQueue
    from agent.host.watcher import FileWatcher, PolicyRevisionWatcher
    from agent.reporting import logs
    from agent.reporting.metrics import Metrics
    from agent.reporting.status_store import StatusStore

    version = _version()
    metrics = Metrics(
        version,
        allow_unsupported=settings.allow_unsupported,
        log_lines_dropped=log_lines_dropped,
    )
    board = StatusStore(
        metrics,
        version=version,
        node=settings.node_name or platform.node(),
        patience=60.0,
    )
    servers = _servers(settings, board)
    wake = WakeQueue()
    publishers: list[Publisher] = []

    def woken(word: str) -> None:
        if word == "node":
            for one in publishers:
                one.notify()
        wake.put(word)

    found = cluster(settings, woken, count=metrics.request, restarted=metrics.watch_restarted)
    if found is not None and found.own is not None and found.node is not None:
        from agent.kube import publisher as teller

        watched = found.node
        made_for = teller.Publisher(
            found.own,
            found.api,
            store=lambda: watched.store,
            on_change=lambda: wake.put("labels"),
            on_drop=metrics.events_dropped,
        )
        publishers.append(made_for)
        board.labels = made_for.labels
    passes = one_pass(settings, found, completed=lambda: wake.put("compiled"))
    tracker = _tracker(settings, passes)
    if tracker is not None:
        board.lost = tracker.count
    made = Controller(
        passes,
        wake=wake,
        resync=settings.resync,
        teller=publishers[0] if publishers else None,
        domain=settings.label_domain,
        ready=(lambda: True) if found is None else found.answered,
        nodes=(lambda: None) if found is None else found.node_labels,
        pods=(lambda: None) if found is None else found.users,
        lost=tracker,
        audience=(logs.ReportLogger(), board),
    )
    _heard(made.reconciler.backends, metrics.parser_ran)
    files = FileWatcher(_watched(settings, made.reconciler.sources), wake.put)
    made.sinks = (*made.sinks, files)
    board.beat = lambda: made.last_heartbeat
    for server in servers:
        server.start()
    files.start()
    if "apparmor" in settings.kinds:
        revision = host(settings).path("/sys/kernel/security/apparmor/revision")
        PolicyRevisionWatcher(revision, lambda: wake.put("kernel")).start()
    for one in found.parts() if found is not None else ():
        one.start()
    for publisher in publishers:
        publisher.start()
    return made


def _heard(found: Mapping[ProfileKind, ports.ProfileBackend], ran: Callable[[float], None]) -> None:
    """Report each run of the parser to ran."""
    if "apparmor" in found:
        from agent.backends.apparmor.backend import AppArmorBackend

        kind = found["apparmor"]
        if isinstance(kind, AppArmorBackend):
            kind.parser.ran = ran


def _tracker(settings: Config, one: reconciler.Reconciler) -> "ConfinementTracker | None":
    """Return the tracker of confined threads, where AppArmor is one of the kinds."""
    if "apparmor" not in one.backends:
        return None
    from agent.backends.apparmor.backend import AppArmorBackend
    from agent.backends.apparmor.confinement_tracker import ConfinementTracker

    kind = one.backends["apparmor"]
    if not isinstance(kind, AppArmorBackend):
        return None
    return ConfinementTracker(
        host(settings), state_dir=settings.state_dir, places=kind.kernel.directories
    )


def _watched(settings: Config, made_of: Sequence[ports.Source]) -> dict[Path, str]:
    """Return the directories and files whose changes concern the agent, and what each says."""
    on = host(settings)
    words = {on.path(settings.state_dir) / "entries": "files"}
    if "seccomp" in settings.kinds:
        words[on.path(settings.seccomp_dir)] = "files"
    for source in made_of:
        if source.watched_path is not None:
            words[source.watched_path] = "source"
    return words


def _servers(settings: Config, board: "StatusStore") -> "list[HttpServer]":
    """Return the HTTP servers that the settings ask for. Raises StartupError."""
    from agent.reporting.http_server import HttpServer
    from agent.reporting.http_tls import CertificateError, Certificates

    made: list[HttpServer] = []
    for option, address, uses_tls in (
        ("--http-address", settings.http_address, False),
        ("--https-address", settings.https_address, True),
    ):
        if address == "off":
            continue
        try:
            files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
            certificates = Certificates(*files) if uses_tls else None
            made.append(HttpServer(address, board, certificates=certificates))
        except CertificateError as error:
            raise StartupError(str(error)) from error
        except OSError as error:
            raise StartupError(f"{option} {address}: {error.strerror or error}") from error
    return made


class StartupError(Exception):
    """What the options name cannot be used: an address, a certificate, a directory."""
