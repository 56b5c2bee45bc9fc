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

from agent import oneshot
from agent.core import plan, ports
from agent.core.labels import is_own, key
from agent.core.model import KindName
from agent.core.ownership import owned
from agent.core.pods import Named, named
from agent.core.problems import Problem
from agent.core.report import Report
from agent.doors.host import Host, HostError
from agent.doors.ledger import FileLedger
from agent.settings import Settings
from agent.sources import opening

if TYPE_CHECKING:
    from agent.daemon import Daemon
    from agent.doors.kube import Api
    from agent.doors.reflect import Copy, Reflector
    from agent.kinds.apparmor.confinement import ConfinementTracker
    from agent.reporters.board import Board
    from agent.reporters.http import Server
    from agent.reporters.node import Meta, OwnNode
    from agent.reporters.publisher import Publisher
    from agent.sources.cluster import Kept

Wake = Callable[[str], None]


def host(settings: Settings) -> Host:
    """Return the host below --host-root. Raises Unserved if that is no directory."""
    try:
        there = Path(settings.host_root).is_dir()
    except OSError as error:
        raise Unserved(f"--host-root {settings.host_root}: {error.strerror}") from error
    if not there:
        raise Unserved(f"--host-root {settings.host_root} is no directory")
    return Host(settings.host_root)


def kinds(
    settings: Settings,
    completed: Callable[[], None] | None = None,
    *,
    write: bool = True,
) -> dict[KindName, ports.Kind]:
    """Return the kinds that --kinds names, AppArmor first.

    Args:
        settings: the options.
        completed: called from another thread after each background check. None: a command waits
            for all of them.
        write: whether they may write to the state directory.
    """
    found: dict[KindName, ports.Kind] = {}
    if "apparmor" in settings.kinds:
        from agent.kinds.apparmor.kind import AppArmor

        found["apparmor"] = AppArmor(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What speaks to the API server. own and node are None without --node-name."""

    api: "Api"
    reflectors: "Mapping[opening.Wanted, Reflector[Kept]]"
    own: "OwnNode | None"
    node: "Reflector[Meta] | None"
    pods: "Reflector[Named] | None" = None

    def parts(self) -> "list[Reflector[Kept] | Reflector[Meta] | Reflector[Named]]":
        """Return everything that lists and watches."""
        return [
            *self.reflectors.values(),
            *([self.node] if self.node is not None else []),
            *([self.pods] if self.pods is not None else []),
        ]

    def users(self) -> dict[tuple[KindName, str], tuple[str, ...]] | None:
        """Return which pods of this Node name a profile; None where that is not known.

        Without a watch a new pod would be missed, and what it names be removed.
        """
        if self.pods is None or not self.pods.live:
            return None
        copy = self.pods.copy
        if copy.objects is None or copy.why:
            return None
        found: dict[tuple[KindName, str], tuple[str, ...]] = {}
        for pod, names in sorted(copy.objects.items()):
            for one in names:
                found[one] = (*found.get(one, ()), pod)
        return found

    def answered(self) -> bool:
        """Return whether the API server has answered every first question, or failed to."""
        return all(one.copy.objects is not None or one.copy.tried for one in self.parts())

    def node_labels(self) -> Mapping[str, str] | None:
        """Return the labels of the own Node that are not ours; None where they are not known."""
        if self.own is None or self.node is None:
            return None
        meta = (self.node.copy.objects or {}).get(self.own.options.name)
        if meta is None:
            return None
        domain = self.own.options.domain
        return {key: value for key, value in meta.labels.items() if not is_own(key, domain)}


def cluster(
    settings: Settings,
    wake: Wake,
    *,
    count: Callable[[str, str, float], None] = lambda *_: None,
    restarted: Callable[[str], None] = lambda _: None,
) -> Cluster | None:
    """Return what speaks to the API server, or None where nothing does.

    wake is told "source" and "node". Raises kube.NoCluster.
    """
    texts = [opening.open_source(text) for text in settings.source]
    wanted = [one for one in texts if isinstance(one, opening.Wanted)]
    if not wanted and not settings.node_name:
        return None
    from agent.doors.kube import Api
    from agent.doors.reflect import Reflector
    from agent.reporters import node
    from agent.sources import cluster as config_maps

    api = Api(kubeconfig=settings.kubeconfig, version=_version(), count=count)
    reflectors = {
        one: Reflector(
            api,
            one.path,
            query=one.query,
            keep=config_maps.keep(settings.label_domain),
            changed=lambda: wake("source"),
            restarted=lambda: restarted("configmaps"),
            bounds=config_maps.ConfigMapBounds(),
        )
        for one in wanted
    }
    if not settings.node_name:
        return Cluster(api=api, reflectors=reflectors, own=None, node=None)
    own = node.OwnNode(
        api,
        node.Options(
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
        "/api/v1/nodes",
        query=(("fieldSelector", f"metadata.name={settings.node_name}"),),
        one=own.options.path,
        metadata=True,
        keep=node.keep,
        changed=lambda: wake("node"),
        restarted=lambda: restarted("node"),
    )
    pods = Reflector(
        api,
        "/api/v1/pods",
        query=(("fieldSelector", f"spec.nodeName={settings.node_name}"),),
        keep=named,
        changed=lambda: wake("pods"),
        restarted=lambda: restarted("pods"),
    )
    return Cluster(
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


def sources(settings: Settings, found: Cluster | None) -> list[ports.Source]:
    """Return the sources that --source names."""
    opened: list[ports.Source] = []
    for text in settings.source:
        one = opening.open_source(text, settings.label_domain)
        if not isinstance(one, opening.Wanted):
            opened.append(one)
        elif found is not None:
            from agent.sources.cluster import ConfigMaps

            reflector = found.reflectors[one]
            opened.append(ConfigMaps(one, copy=_copy_of(reflector), node_labels=found.node_labels))
    return opened


def _copy_of(reflector: "Reflector[Kept]") -> "Callable[[], Copy[Kept]]":
    return lambda: reflector.copy


def one_pass(
    settings: Settings,
    found: Cluster | None = None,
    completed: Callable[[], None] | None = None,
) -> oneshot.Pass:
    """Return a pass over the sources that --source names. completed: see `kinds`."""
    return oneshot.Pass(
        sources=sources(settings, found),
        kinds=kinds(settings, completed),
        ledger=ledger(settings),
        options=plan.Options(
            prune=settings.prune,
            take_over=frozenset(settings.take_over),
            grace=settings.removal_grace,
            pod_aware=settings.pod_aware,
        ),
        allow_empty=settings.allow_empty,
    )


def restore(settings: Settings, progress: oneshot.Progress) -> Report:
    """Reinstall what the ledger records, without any source."""
    one = one_pass(settings)
    return one.completed(lambda: one.restore(dry_run=settings.dry_run), progress)


def once(settings: Settings, progress: oneshot.Progress) -> Report:
    """Run one pass; with --node-name the Node is labelled too, and a removal waits for that."""
    found = cluster(settings, lambda _: None)
    one = one_pass(settings, found)
    tracker = None if settings.dry_run else _tracker(settings, one)
    if tracker is None:
        return _once(settings, one, found, progress)
    entries = one.ledger.entries()
    names = {
        name
        for entry in (() if isinstance(entries, Problem) else entries.values())
        if entry.id.kind == "apparmor"
        for name in owned(entry)
    }
    tracker.look(names)
    report = _once(settings, one, found, progress)
    tracker.removed(oneshot.removed_names(report.rows))
    tracker.look(oneshot.tracked_names(report.rows))
    return replace(report, problems=(*report.problems, *tracker.problems()))


def _once(
    settings: Settings, one: oneshot.Pass, found: Cluster | None, progress: oneshot.Progress
) -> Report:
    def run() -> Report:
        return one.completed(lambda: one.run(dry_run=settings.dry_run), progress)

    if found is None:
        return run()
    from agent.doors.kube import KubeError

    for reflector in found.parts():
        with contextlib.suppress(KubeError):  # the copy says so, and the report then
            reflector.list()
    if found.own is None or found.node is None:
        return run()
    gone = _off(settings, one, found)
    one.options = replace(one.options, grace=0.0, gone=gone, pods=found.users())
    report = run()
    return report if settings.dry_run else _labelled(settings, found, report)


def _off(
    settings: Settings, one: oneshot.Pass, found: Cluster
) -> dict[tuple[KindName, str], float]:
    """Return the names whose label is not on the Node: what an earlier run has taken off."""
    entries = one.ledger.entries()
    meta = _meta(settings, found)
    if isinstance(entries, Problem) or meta is None:
        return {}
    return {
        (entry.id.kind, name): 0.0
        for entry in entries.values()
        for name in owned(entry)
        if key(entry.id.kind, name, settings.label_domain) not in meta.labels
    }


def _meta(settings: Settings, found: Cluster) -> "Meta | None":
    objects = found.node.copy.objects if found.node is not None else None
    return (objects or {}).get(settings.node_name)


def _labelled(settings: Settings, found: Cluster, report: Report) -> Report:
    """Label the Node as the report says; return the report with what went wrong."""
    from agent.doors.kube import KubeError
    from agent.reporters import node

    own, meta, name = found.own, _meta(settings, found), settings.node_name
    problems: tuple[Problem, ...] = ()
    try:
        if own is None or meta is None:
            raise KubeError(found.node.copy.why if found.node is not None else "")  # noqa: TRY301 - told below
        wanted = own.wanted(report, meta)
        own.untaint(own.publish(meta, wanted.labels), report)
        problems = (*wanted.problems, *own.problems())
    except node.NotOurs as error:
        problems = (node.not_ours(error, name),)
    except KubeError as error:
        problems = (node.failed(error, name),)
    return replace(report, problems=report.problems + problems)


def daemon(settings: Settings, log_lines_dropped: Callable[[], int] = lambda: 0) -> "Daemon":
    """Return the daemon, with everything it needs started.

    log_lines_dropped: returns how many log lines were dropped since the start.
    """
    from agent.daemon import Daemon, Words
    from agent.doors.watch import Files, Revision
    from agent.reporters import logs
    from agent.reporters.board import Board
    from agent.reporters.metrics import Metrics

    version = _version()
    metrics = Metrics(
        version,
        allow_unsupported=settings.allow_unsupported,
        log_lines_dropped=log_lines_dropped,
    )
    board = Board(
        metrics,
        version=version,
        node=settings.node_name or platform.node(),
        patience=60.0,
    )
    servers = _servers(settings, board)
    wake = Words()
    publishers: list[Publisher] = []

    def woken(word: str) -> None:
        if word == "node":
            for one in publishers:
                one.poke()
        wake.put(word)

    found = cluster(settings, woken, count=metrics.request, restarted=metrics.watch_restarted)
    if found is not None and found.own is not None and found.node is not None:
        from agent.reporters import publisher as teller

        watched = found.node
        made_for = teller.Publisher(
            found.own,
            found.api,
            copy=lambda: watched.copy,
            changed=lambda: wake.put("labels"),
            dropped=metrics.events_dropped,
        )
        publishers.append(made_for)
        board.labels = made_for.labels
    passes = one_pass(settings, found, completed=lambda: wake.put("compiled"))
    tracker = _tracker(settings, passes)
    if tracker is not None:
        board.lost = tracker.count
    made = Daemon(
        passes,
        wake=wake,
        resync=settings.resync,
        teller=publishers[0] if publishers else None,
        domain=settings.label_domain,
        ready=(lambda: True) if found is None else found.answered,
        nodes=(lambda: None) if found is None else found.node_labels,
        pods=(lambda: None) if found is None else found.users,
        lost=tracker,
        audience=(logs.Changes(), board),
    )
    _heard(made.one.kinds, metrics.parser_ran)
    files = Files(_watched(settings, made.one.sources), wake.put)
    made.audience = (*made.audience, files)
    board.beat = lambda: made.beat
    for server in servers:
        server.start()
    files.start()
    if "apparmor" in settings.kinds:
        revision = host(settings).path("/sys/kernel/security/apparmor/revision")
        Revision(revision, lambda: wake.put("kernel")).start()
    for one in found.parts() if found is not None else ():
        one.start()
    for publisher in publishers:
        publisher.start()
    return made


def _heard(found: Mapping[KindName, ports.Kind], ran: Callable[[float], None]) -> None:
    """Report each run of the parser to ran."""
    if "apparmor" in found:
        from agent.kinds.apparmor.kind import AppArmor

        kind = found["apparmor"]
        if isinstance(kind, AppArmor):
            kind.parser.ran = ran


def _tracker(settings: Settings, one: oneshot.Pass) -> "ConfinementTracker | None":
    """Return the tracker of confined threads, where AppArmor is one of the kinds."""
    if "apparmor" not in one.kinds:
        return None
    from agent.kinds.apparmor.confinement import ConfinementTracker
    from agent.kinds.apparmor.kind import AppArmor

    kind = one.kinds["apparmor"]
    if not isinstance(kind, AppArmor):
        return None
    return ConfinementTracker(
        host(settings), state_dir=settings.state_dir, places=kind.kernel.directories
    )


def _watched(settings: Settings, made_of: Sequence[ports.Source]) -> dict[Path, str]:
    """Return the directories and files whose changes concern the agent, and what each says."""
    on = host(settings)
    words = {on.path(settings.state_dir) / "entries": "files"}
    if "seccomp" in settings.kinds:
        words[on.path(settings.seccomp_dir)] = "files"
    for source in made_of:
        if source.watched is not None:
            words[source.watched] = "source"
    return words


def _servers(settings: Settings, board: "Board") -> "list[Server]":
    """Return the HTTP servers that the settings ask for. Raises Unserved."""
    from agent.reporters.http import Server
    from agent.reporters.http_tls import CertificateError, Certificates

    made: list[Server] = []
    for option, address, uses_tls in (
        ("--http-address", settings.http_address, False),
        ("--https-address", settings.https_address, True),
    ):
        if address == "off":
            continue
        try:
            files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
            certificates = Certificates(*files) if uses_tls else None
            made.append(Server(address, board, certificates=certificates))
        except CertificateError as error:
            raise Unserved(str(error)) from error
        except OSError as error:
            raise Unserved(f"{option} {address}: {error.strerror or error}") from error
    return made


class Unserved(Exception):  # noqa: N818 - reads as what it is
    """What the options name cannot be used: an address, a certificate, a directory."""
